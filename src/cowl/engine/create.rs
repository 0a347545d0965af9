//! `create`: a container at rest, from what a client asks for and an image.
//!
//! Invariant: an error leaves no container, no pin and no new volume.

use super::container::config::{Config, Mount, MountSource, VERSION};
use super::container::{Claim, Guard};
use super::docker::{ContainerConfig, HostConfig, MountRequest};
use super::error::{Context, Error, Result};
use super::image::Image;
use super::{Engine, limits, names, process};
use crate::volume::{NewVolume, Source, VolumeName, VolumeSpec, is_name};
use cowl_core::image::foreign_platform;
use jiff::Timestamp;
use rustix::io::Errno;
use std::path::{Path, PathBuf};

/// The parameters of [`Engine::create`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CreateRequest {
    /// Without one the engine finds one.
    pub name: Option<String>,
    /// Docker's `Config`.
    pub config: ContainerConfig,
    /// Docker's `HostConfig`.
    pub host: HostConfig,
}

/// A new container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Its id.
    pub id: String,
    /// What was asked for and can't be done on this host.
    pub warnings: Vec<String>,
    /// The volumes that were created for it.
    pub new_volumes: Vec<VolumeName>,
}

impl Engine {
    /// Creates a container, and the volumes that it wants and are not there. It does not run.
    pub fn create(&self, request: &CreateRequest) -> Result<Created> {
        check(request)?;
        // First the guard: an image that is found is not removed before the container's pin.
        let guard = self.containers.guard()?;
        let image = self.image(&request.config.image)?;
        let id = names::new_id()?;
        let mut request = request.clone();
        self.resolve_namespaces(&mut request.host)?;
        limits::adapt(&mut request.host.resources);
        let (_, mut warnings) = limits::supported(&request.host.resources)?;
        let request = &request;
        let mut config = self.configure(&id, request, &image)?;
        self.choose_name(&guard, &mut config, request.name.as_deref())?;
        let name = config.name.clone();
        let made = self.make(&guard, config, &image);
        if made.is_err() {
            self.containers.drop_name(&name)?;
        }
        let new_volumes = made?;
        warnings.extend(foreign_platform(&image.platform));
        Ok(Created {
            id,
            warnings,
            new_volumes,
        })
    }

    /// Everything about the container but its name.
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

    /// Without a name of its own the container has that of the container or the host whose network
    /// it shares, else the beginning of its id.
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

    /// Gives the container the name that was asked for, or finds one.
    fn choose_name(&self, guard: &Guard, config: &mut Config, wanted: Option<&str>) -> Result<()> {
        let id = &config.id;
        config.name = match wanted {
            Some(name) => {
                let name = name.strip_prefix('/').unwrap_or(name);
                self.claim(guard, name, id)?;
                name.to_owned()
            }
            None => names::new_name(|name| {
                Ok(self.containers.claim_name(guard, name, id)? != Claim::Made)
            })?,
        };
        Ok(())
    }

    /// Takes a name that a client asked for.
    pub(super) fn claim(&self, guard: &Guard, name: &str, id: &str) -> Result<()> {
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
        match self.containers.claim_name(guard, name, id)? {
            Claim::Made => Ok(()),
            Claim::Taken(holder) => Err(Error::conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{holder}\". You have to remove (or rename) that container to be able \
                 to reuse that name (cowl rm {name})."
            ))),
        }
    }

    /// Makes the container's pin, directory and volumes.
    fn make(&self, guard: &Guard, config: Config, image: &Image) -> Result<Vec<VolumeName>> {
        let pin = super::pin_name(&config.id);
        let owner = format!("container {}", config.name);
        self.store
            .pin(&pin, &owner, &image.layers, &image.blobs)
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
        for name in config.volumes() {
            let name = VolumeName::parse(name).map_err(Error::invalid)?;
            if !self.volumes.has(&name)? {
                let anonymous = config.anonymous_volumes().any(|own| own == name.as_str());
                let asked = NewVolume {
                    anonymous,
                    ..NewVolume::default()
                };
                self.volumes.create(&name, &asked)?;
                new.push(name);
            }
        }
        Ok(())
    }

    /// The container's mounts, parents first: those of other containers, of `-v` and `--mount`,
    /// then the volumes of the image where nothing else is mounted.
    fn mounts(&self, request: &CreateRequest, config: &ContainerConfig) -> Result<Vec<Mount>> {
        let mut own = Vec::new();
        for bind in &request.host.binds {
            let spec = VolumeSpec::parse(bind, Path::new("/")).map_err(Error::invalid)?;
            own.push(mount(spec)?);
        }
        for asked in &request.host.mounts {
            own.push(requested(asked)?);
        }
        let mut mounts: Vec<Mount> = Vec::new();
        let has = |mounts: &[Mount], mount: &Mount| {
            let same = |other: &Mount| other.destination == mount.destination;
            mounts.iter().any(same)
        };
        for mount in own {
            if has(&mounts, &mount) {
                return Err(Error::invalid(format!(
                    "Duplicate mount point: {}",
                    mount.destination
                )));
            }
            mounts.push(mount);
        }
        for from in &request.host.volumes_from {
            for mount in self.volumes_from(from)? {
                if !has(&mounts, &mount) {
                    mounts.push(mount);
                }
            }
        }
        for destination in config.volumes.iter().flat_map(serde_json::Map::keys) {
            let mount = mount(VolumeSpec::of_image(destination).map_err(Error::invalid)?)?;
            if !has(&mounts, &mount) {
                mounts.push(mount);
            }
        }
        mounts.sort_by_key(|mount| mount.destination.split('/').count());
        Ok(mounts)
    }

    /// The mounts of another container: `container[:ro|rw]`.
    fn volumes_from(&self, from: &str) -> Result<Vec<Mount>> {
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
        let mut mounts = self.containers.find(needle)?.config.mounts;
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
    for option in &host.security_opt {
        if !is_security_option(option) {
            return Err(Error::invalid(format!(
                "invalid --security-opt: {option:?} (known: seccomp=unconfined, no-new-privileges)"
            )));
        }
    }
    for bind in &host.binds {
        VolumeSpec::parse(bind, Path::new("/")).map_err(Error::invalid)?;
    }
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

fn is_security_option(option: &str) -> bool {
    matches!(
        option,
        "seccomp=unconfined"
            | "seccomp:unconfined"
            | "no-new-privileges"
            | "no-new-privileges=true"
            | "no-new-privileges:true"
    )
}

fn mount(spec: VolumeSpec) -> Result<Mount> {
    let no_copy = spec.no_copy;
    let source = match spec.source {
        Source::Host(path) => MountSource::Bind(path),
        Source::Named(name) => MountSource::Volume {
            name: name.to_string(),
            anonymous: false,
            no_copy,
        },
        Source::Anonymous => anonymous(no_copy)?,
    };
    Ok(Mount {
        source,
        destination: spec.destination,
        read_only: spec.read_only,
        mode: spec.mode,
    })
}

fn anonymous(no_copy: bool) -> Result<MountSource> {
    Ok(MountSource::Volume {
        name: names::new_id()?,
        anonymous: true,
        no_copy,
    })
}

/// A mount of `--mount`.
fn requested(asked: &MountRequest) -> Result<Mount> {
    let invalid = |why: String| {
        Error::invalid(format!(
            "invalid mount config for type \"{}\": {why}",
            asked.kind
        ))
    };
    if asked.target.is_empty() {
        return Err(invalid("field Target must not be empty".to_owned()));
    }
    let destination = VolumeSpec::of_image(&asked.target)
        .map_err(|why| invalid(format!("invalid mount path: '{}': {why}", asked.target)))?
        .destination;
    let source = match asked.kind.as_str() {
        "volume" => {
            if asked.bind_options.is_some() {
                return Err(invalid(
                    "field BindOptions must not be specified".to_owned(),
                ));
            }
            let no_copy = asked
                .volume_options
                .as_ref()
                .is_some_and(|options| options.no_copy);
            if let Some(options) = &asked.volume_options
                && !options.labels.is_empty()
            {
                return Err(invalid("labels are not supported".to_owned()));
            }
            if asked.source.is_empty() {
                anonymous(no_copy)?
            } else {
                let name = VolumeName::parse(&asked.source).map_err(Error::invalid)?;
                MountSource::Volume {
                    name: name.to_string(),
                    anonymous: false,
                    no_copy,
                }
            }
        }
        "bind" => bind(asked).map_err(invalid)?,
        kind => return Err(invalid(format!("mount type unknown: \"{kind}\""))),
    };
    Ok(Mount {
        source,
        destination,
        read_only: asked.read_only,
        mode: String::new(),
    })
}

fn bind(asked: &MountRequest) -> Result<MountSource, String> {
    if asked.volume_options.is_some() {
        return Err("field VolumeOptions must not be specified".to_owned());
    }
    if asked.source.is_empty() {
        return Err("field Source must not be empty".to_owned());
    }
    if !asked.source.starts_with('/') {
        return Err(format!(
            "invalid mount path: '{}' mount path must be absolute",
            asked.source
        ));
    }
    let creates = asked
        .bind_options
        .as_ref()
        .is_some_and(|options| options.create_mountpoint);
    let path = PathBuf::from(&asked.source);
    if !creates && matches!(rustix::fs::stat(&path), Err(Errno::NOENT)) {
        return Err(format!("bind source path does not exist: {}", asked.source));
    }
    Ok(MountSource::Bind(path))
}
