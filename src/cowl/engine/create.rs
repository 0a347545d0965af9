//! `create`: a container that is not started, from a client's request and an image.
//!
//! Invariant: an error leaves no container, no pin and no new volume.

use super::container::config::{Config, Mount, MountSource, VERSION};
use super::container::{Claim, Container, Guard};
use super::docker::{ContainerConfig, HostConfig};
use super::error::{Context, Error, Kind, Result};
use super::events::{self, Type};
use super::image::Image;
use super::mounts::{new_volume, specified, wanted};
use super::{Engine, limits, names, process};
use crate::volume::{Usage, VolumeName, VolumeSpec, is_name};
use cowl_core::image::{PlatformName, foreign_platform};
use cowl_core::store::{PinLife, Platform};
use jiff::Timestamp;
use std::os::fd::AsFd as _;

/// The parameters of [`Engine::create`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CreateRequest {
    /// If None, the engine generates one.
    pub name: Option<String>,
    /// Docker's `Config`.
    pub config: ContainerConfig,
    /// Docker's `HostConfig`.
    pub host: HostConfig,
    /// The image must be for this platform.
    pub platform: Option<PlatformName>,
}

/// A new container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Its id.
    pub id: String,
    /// What this host cannot provide.
    pub warnings: Vec<String>,
    /// The volumes that were created for it.
    pub new_volumes: Vec<VolumeName>,
}

/// Refuses what Docker's client refuses before it asks the daemon: malformed options.
pub fn check_syntax(host: &HostConfig) -> Result<()> {
    super::isolation::check_syntax(host)?;
    super::network::check_syntax(host)
}

impl Engine {
    /// Creates a container and its missing volumes, filled with the image's files. The container is
    /// not started.
    pub fn create(&self, request: &CreateRequest) -> Result<Created> {
        let created = self.create_unfilled(request)?;
        let container = self.containers.find(&created.id)?;
        match self.fill_volumes(container) {
            Ok(()) => Ok(created),
            Err(error) => {
                match self.discard(&self.containers.find(&created.id)?, &created.new_volumes) {
                    Ok(()) => Err(error),
                    Err(second) => Err(error.context(format!("{second}; before that"))),
                }
            }
        }
    }

    /// [`Engine::create`] for a caller that starts the container at once, which fills its volumes.
    pub(super) fn create_unfilled(&self, request: &CreateRequest) -> Result<Created> {
        check(request)?;
        // Take the guard first, so that the image is not removed before the container has a pin.
        let guard = self.containers.guard()?;
        let image = self.image(&request.config.image)?;
        check_platform(request, &image)?;
        let id = names::new_id()?;
        let mut request = request.clone();
        self.resolve_namespaces(&mut request.host)?;
        let resources = &mut request.host.resources;
        limits::adapt(resources);
        // As Docker keeps "unlimited" at creation.
        resources.pids_limit = resources.pids_limit.filter(|limit| *limit > 0);
        let (_, mut warnings) = limits::supported(&request.host.resources)?;
        let (_, discarded) = limits::device_weights(&request.host.resources)?;
        warnings.extend(discarded);
        warnings.extend(super::isolation::warnings(&request.host)?);
        let request = &request;
        let mut config = self.configure(&id, request, &image)?;
        self.choose_name(&guard, &mut config, request.name.as_deref())?;
        let name = config.name.clone();
        let actor = events::actor_of(&config, &[]);
        let made = self.make(&guard, config, &image);
        if made.is_err() {
            self.containers.drop_name(&name)?;
        }
        let new_volumes = made?;
        for volume in &new_volumes {
            self.tell_volume(volume.as_str(), "create", &[]);
        }
        self.event_log().tell(Type::Container, "create", &actor);
        warnings.extend(foreign_platform(&image.platform));
        Ok(Created {
            id,
            warnings,
            new_volumes,
        })
    }

    /// Fills a container's unused volumes from its root, as Docker does before the first start.
    fn fill_volumes(&self, container: Container) -> Result<()> {
        if !self.wants_filling(&container.config)? {
            return Ok(());
        }
        super::host::require_mounts("create")?;
        let lock = self.containers.take(&container)?;
        if container.status()?.is_live() {
            // It has been started, which filled them.
            return Ok(());
        }
        let pending = self.ready(container, lock)?;
        let mounted = self.mount_root(&pending)?;
        let filled = self.mounts_at_rest(&pending.container, mounted.root.as_fd());
        // Dropped before the mount ends: they may keep it busy.
        let filled = filled.map(drop);
        mounted.discard(&self.store)?;
        filled
    }

    /// Whether the image may have files for a volume that no container has used.
    fn wants_filling(&self, config: &Config) -> Result<bool> {
        for mount in &config.mounts {
            if let MountSource::Volume {
                name,
                no_copy: false,
                subpath,
                ..
            } = &mount.source
                && subpath.is_empty()
                && self.volumes.find(name)?.record.usage != Usage::InUse
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The container's configuration without its name.
    fn configure(&self, id: &str, request: &CreateRequest, image: &Image) -> Result<Config> {
        let asked = request.config.clone();
        let mut config = process::merge(&asked, &image.defaults)?;
        self.choose_hostname(id, &request.host, &mut config)?;
        let mounts = self.mounts(request, &config)?;
        Ok(Config {
            version: VERSION,
            id: id.to_owned(),
            name: String::new(),
            created: Timestamp::now(),
            image_id: image.id,
            layers: image.layers.clone(),
            asked,
            config,
            host: request.host.clone(),
            mounts,
        })
    }

    /// By default the host name is that of the container or host whose network it shares, else a
    /// prefix of its id.
    fn choose_hostname(
        &self,
        id: &str,
        host: &HostConfig,
        config: &mut ContainerConfig,
    ) -> Result<()> {
        if let Some(owner) = self.network_owner(host)? {
            config.hostname = owner.config.config.hostname;
            config.domainname = owner.config.config.domainname;
        } else if host.uts_mode == "host"
            || (host.network_mode == "host" && config.hostname.is_empty())
        {
            config.hostname = super::network::host_name();
        } else if config.hostname.is_empty() {
            names::short(id).clone_into(&mut config.hostname);
        }
        Ok(())
    }

    /// Takes the requested name, or generates one.
    fn choose_name(&self, guard: &Guard, config: &mut Config, wanted: Option<&str>) -> Result<()> {
        let id = &config.id;
        let volatile = config.host.auto_remove;
        config.name = match wanted {
            Some(name) => {
                let name = name.strip_prefix('/').unwrap_or(name);
                self.claim(guard, name, id, volatile)?;
                name.to_owned()
            }
            None => names::new_name(|name| {
                let claim = self.containers.claim_name(guard, name, id, volatile)?;
                Ok(claim != Claim::Made)
            })?,
        };
        Ok(())
    }

    /// Takes a name that a client requested.
    pub(super) fn claim(&self, guard: &Guard, name: &str, id: &str, volatile: bool) -> Result<()> {
        if !is_name(name) {
            let short = if name.chars().count() == 1 {
                ", two characters at least"
            } else {
                ""
            };
            return Err(Error::invalid(format!(
                "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed{short}"
            )));
        }
        match self.containers.claim_name(guard, name, id, volatile)? {
            Claim::Made => Ok(()),
            Claim::Taken(holder) => Err(Error::conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{holder}\". You have to remove (or rename) that container to be able \
                 to reuse that name."
            ))),
        }
    }

    /// Creates the container's pin, directory and volumes.
    fn make(&self, guard: &Guard, config: Config, image: &Image) -> Result<Vec<VolumeName>> {
        let pin = super::pin_name(&config.id);
        let owner = format!("container {}", config.name);
        let life = if config.host.auto_remove {
            PinLife::ThisBoot
        } else {
            PinLife::Permanent
        };
        self.store
            .pin(&pin, life, &owner, &image.layers, &image.blobs)
            .context(|| format!("making {owner}"))?;
        let mut new_volumes = Vec::new();
        let made = self
            .create_volumes(&config, &mut new_volumes)
            .and_then(|()| self.containers.create(guard, config));
        match made {
            Ok(pending) => {
                drop(pending.release());
                Ok(new_volumes)
            }
            Err(error) => {
                for volume in &new_volumes {
                    self.volumes.remove(volume.as_str())?;
                }
                self.store.unpin(&pin)?;
                Err(error)
            }
        }
    }

    /// Creates the container's missing volumes. The caller holds the containers' guard.
    fn create_volumes(&self, config: &Config, new: &mut Vec<VolumeName>) -> Result<()> {
        for mount in &config.mounts {
            let MountSource::Volume {
                name, anonymous, ..
            } = &mount.source
            else {
                continue;
            };
            let name = VolumeName::parse(name).map_err(Error::invalid)?;
            if !self.volumes.has(&name)? {
                let asked = new_volume(&config.host, mount, *anonymous)?;
                self.volumes.create(&name, &asked)?;
                new.push(name);
            }
        }
        Ok(())
    }

    /// The container's mounts, parents first: those of other containers, of `-v` and `--mount`,
    /// then the volumes of the image where nothing else is mounted.
    fn mounts(&self, request: &CreateRequest, config: &ContainerConfig) -> Result<Vec<Mount>> {
        let mut mounts = wanted(&request.host)?;
        let has = |mounts: &[Mount], mount: &Mount| {
            let same = |other: &Mount| other.destination == mount.destination;
            mounts.iter().any(same)
        };
        for from in &request.host.volumes_from {
            for mount in self.volumes_from(from)? {
                if !has(&mounts, &mount) {
                    mounts.push(mount);
                }
            }
        }
        for destination in config.volumes.iter().flat_map(serde_json::Map::keys) {
            let mount = specified(VolumeSpec::of_image(destination).map_err(Error::invalid)?)?;
            if !has(&mounts, &mount) {
                mounts.push(mount);
            }
        }
        mounts.sort_by_key(|mount| mount.destination.split('/').count());
        Ok(mounts)
    }

    /// The mounts of another container: `container[:ro|rw]`.
    fn volumes_from(&self, from: &str) -> Result<Vec<Mount>> {
        if from.is_empty() {
            return Err(Error::invalid(
                "volumes-from specification cannot be an empty string",
            ));
        }
        let (needle, read_only) = match from.rsplit_once(':') {
            Some((needle, "ro")) => (needle, true),
            Some((needle, "rw")) => (needle, false),
            Some((_, mode)) => {
                return Err(Error::invalid(format!(
                    "invalid mode for volumes-from: {mode}"
                )));
            }
            None => (from, false),
        };
        let found = self
            .containers
            .find(needle)
            .map_err(|error| match error.kind() {
                // Not found is what clients pull the image for.
                Kind::NotFound => Error::invalid(error.to_string()),
                _ => error,
            });
        let mut mounts = found?.config.mounts;
        mounts.retain(|mount| !matches!(mount.source, MountSource::Tmpfs { .. }));
        for mount in &mut mounts {
            mount.read_only |= read_only;
        }
        Ok(mounts)
    }
}

pub(super) fn check(request: &CreateRequest) -> Result<()> {
    let host = &request.host;
    limits::check(&host.resources, false)?;
    super::namespaces::check(&request.config, host)?;
    super::network::check(host)?;
    check_numbers(host)?;
    super::isolation::check(host)?;
    wanted(host)?;
    host.io_mode()?;
    process::check(&request.config)?;
    request
        .config
        .healthcheck
        .as_ref()
        .map_or(Ok(()), super::health::check)?;
    super::capabilities::capabilities(host)?;
    super::start::log(host)?;
    if !request.config.stop_signal.is_empty() {
        super::life::signal_number(&request.config.stop_signal)?;
    }
    host.check_supported()
}

/// moby, `daemon/images/image.go`.
fn check_platform(request: &CreateRequest, image: &Image) -> Result<()> {
    match &request.platform {
        // An image without a platform matches any.
        Some(wanted)
            if !image.platform.architecture.is_empty() && !wanted.matches(&image.platform) =>
        {
            let Platform {
                os, architecture, ..
            } = &image.platform;
            Err(Error::not_found(format!(
                "image with reference {} was found but its platform ({os}/{architecture}) does not match the specified platform ({wanted})",
                request.config.image
            )))
        }
        _ => Ok(()),
    }
}

fn check_numbers(host: &HostConfig) -> Result<()> {
    if host.shm_size < 0 {
        return Err(Error::invalid("SHM size can not be less than 0"));
    }
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return Err(Error::invalid(format!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            host.oom_score_adj
        )));
    }
    Ok(())
}
