//! The engine: containers, images, volumes and mounts.
//!
//! It is the layer between `cli` and `api` above and `core::store`, `volume` and `container` below.
//! It keeps no state: each call reads the store, so any number of `cowl` processes can share a
//! store. The next command cleans up after a killed one.

pub mod archive;
pub(crate) mod attach;
mod capabilities;
pub mod commit;
pub mod container;
pub mod create;
pub(crate) mod detach_keys;
pub mod docker;
pub mod duration;
pub mod error;
pub mod events;
pub mod exec;
pub mod execs;
mod export;
pub(crate) mod files;
mod frozen;
mod gc;
mod health;
pub mod helpers;
pub mod host;
pub mod image;
mod image_list;
mod image_remove;
pub mod info;
mod inspect;
mod isolation;
pub mod life;
mod limits;
pub mod list;
pub mod load;
pub mod logs;
mod mount;
mod mountpoint;
mod mounts;
mod names;
mod namespaces;
mod network;
mod output;
pub mod process;
pub mod prune;
mod restart;
pub mod run;
mod save;
pub(crate) mod seccomp;
pub(crate) mod signals;
pub(crate) mod size;
mod start;
pub mod stats;
pub(crate) mod terminal;
pub mod update;
pub mod usage;
pub mod volumes;

pub use mount::MountRequest;
pub(crate) use names::new_id;
pub use names::short;

use crate::volume::Volumes;
use container::config::Config;
use container::state::Status;
use container::{Container, Containers};
use cowl_core::store::{Store, StoreError};
use cowl_launch::cgroup::remove_leftovers;
use error::{Context, Error, Kind, Result};
use std::path::Path;

/// Prefix of the names of containers' pins.
const PIN_OF_CONTAINER: &str = "container-";

/// Name of the pin that keeps a container's layers. It is created before the container and removed
/// after it.
fn pin_name(id: &str) -> String {
    format!("{PIN_OF_CONTAINER}{id}")
}

/// Parent cgroup of all containers, in each hierarchy.
const CGROUP_PARENT: &str = "/cowl";

/// A list, and the errors for items that could not be read.
#[derive(Debug)]
pub struct Listing<T> {
    /// The readable items, in order.
    pub items: Vec<T>,
    /// One error for each damaged item.
    pub skipped: Vec<Error>,
}

/// An open store with its containers and volumes.
#[derive(Debug)]
pub struct Engine {
    store: Store,
    containers: Containers,
    volumes: Volumes,
}

impl Engine {
    /// Opens the store at `root`, creating it if missing.
    pub fn open_or_create(root: &Path) -> Result<Self> {
        Self::of(Store::open_or_create(root), root)
    }

    /// Opens the store at `root`.
    pub fn open(root: &Path) -> Result<Self> {
        Self::of(Store::open(root), root)
    }

    fn of(store: std::result::Result<Store, StoreError>, root: &Path) -> Result<Self> {
        let what = || format!("store {}", root.display());
        let store = match store {
            // These errors name the store already.
            Err(error @ (StoreError::NotFound { .. } | StoreError::OtherOwner { .. })) => {
                return Err(error.into());
            }
            opened => opened.context(what)?,
        };
        let containers = Containers::new(store.root());
        let volumes = Volumes::new(store.root());
        Ok(Self {
            store,
            containers,
            volumes,
        })
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// All containers with their status, newest first.
    pub fn containers(&self) -> Result<Listing<(Container, Status)>> {
        let Listing { items, mut skipped } = self.containers.list()?;
        let mut with_status = Vec::new();
        for container in items {
            match container.status() {
                Ok(status) => with_status.push((container, status)),
                Err(error) => skipped.push(error),
            }
        }
        Ok(Listing {
            items: with_status,
            skipped,
        })
    }

    /// Cleans up after killed commands and removes ended containers that were run with `--rm`. What
    /// is still in use is left to a later command.
    pub fn sweep(&self) -> Result<()> {
        {
            let guard = self.containers.guard()?;
            self.containers.remove_unfinished(&guard)?;
            self.containers.drop_stale_names(&guard)?;
            self.drop_pins_of_gone_containers(&guard)?;
            self.volumes.remove_unfinished()?;
        }
        for (container, status) in self.containers()?.items {
            if status.is_orphaned() {
                // Its monitor is dead; its program may still run.
                container.kill()?;
            }
            if matches!(status, Status::Restarting(_)) {
                self.resume_restart(&container)?;
            }
            if container.is_disposable(&status) && container.unmounts_soon()? {
                self.remove_container(&container, true)?;
            }
        }
        self.purge()
    }

    /// A container by id, name or prefix of its id.
    pub fn container(&self, needle: &str) -> Result<Container> {
        self.containers.find(needle)
    }

    /// Removes a container by id or name; `force` kills a running one, `with_volumes` removes its
    /// anonymous volumes too.
    pub fn remove(&self, needle: &str, force: bool, with_volumes: bool) -> Result<()> {
        let container = match self.containers.find(needle) {
            Err(error) if force => match self.containers.find_damaged(needle)? {
                // Its anonymous volumes are unknown, so they stay.
                Some((container, _)) => {
                    container.kill()?;
                    return self.remove_container(&container, false);
                }
                None => return Err(error),
            },
            found => found?,
        };
        // `--rm` implies the removal of anonymous volumes.
        let with_volumes = with_volumes || container.config.host.auto_remove;
        match container.status() {
            Ok(Status::Paused) if !force => Err(Error::conflict(format!(
                "cannot remove container \"{needle}\": container is paused and must be unpaused first"
            ))),
            Ok(Status::Restarting(_)) if !force => Err(Error::conflict(format!(
                "cannot remove container \"{needle}\": container is restarting: stop the container before removing or force remove"
            ))),
            Ok(status) if status.is_live() && !force => Err(Error::conflict(format!(
                "cannot remove container \"{needle}\": container is running: stop the container before removing or force remove"
            ))),
            Err(damaged) if !force => Err(damaged),
            Ok(status) if !status.is_live() => self.remove_container(&container, with_volumes),
            // One with a damaged status may be running.
            status => {
                self.suspend_restarts(&container)?;
                container.kill()?;
                if status.is_ok() {
                    self.tell_container(&container.config, "kill", &[("signal", "9")]);
                }
                self.remove_container(&container, with_volumes)
            }
        }
    }

    /// Removes a container that has ended or is about to: waits for its monitor and its mount to
    /// end.
    fn remove_container(&self, container: &Container, with_volumes: bool) -> Result<()> {
        // Prevents a start meanwhile.
        let lock = match self.containers.take(container) {
            // Another command has removed it.
            Err(error) if error.kind() == Kind::NotFound => return self.purge(),
            taken => taken?,
        };
        container.wait_released()?;
        // With a damaged status it may be.
        let orphaned = container.status().as_ref().map_or(true, |status| {
            status.is_orphaned() || matches!(status, Status::Created(_))
        });
        if orphaned {
            // Its monitor was killed before it killed the processes.
            container.kill_locked()?;
        }
        container.wait_unmounted()?;
        if orphaned {
            remove_leftovers(&container.config.cgroup_parent(), &container.config.id)?;
        }
        // A killed command may have left a mount.
        self.store.wait_lease_end(short(&container.config.id))?;
        self.tell_end_locked(container, &lock);
        let guard = self.containers.guard()?;
        self.containers
            .mark_removed(&guard, container, with_volumes)?;
        self.store.unpin(&pin_name(&container.config.id))?;
        drop(guard);
        self.tell_container(&container.config, "destroy", &[]);
        self.purge()?;
        // The container may have been the last user of an untagged image.
        let config = &container.config;
        if self.is_listed(config.image_id, &config.config.image)? {
            return Ok(());
        }
        self.store
            .gc()
            .map(drop)
            .context(|| "freeing what only the container used")
    }

    /// Renames a container.
    pub fn rename(&self, needle: &str, name: &str) -> Result<()> {
        let name = name.strip_prefix('/').unwrap_or(name);
        if name.is_empty() {
            return Err(Error::invalid("new name cannot be empty"));
        }
        let guard = self.containers.guard()?;
        let mut container = self.containers.find(needle)?;
        if container.config.name == name {
            return Err(Error::invalid(
                "Renaming a container with the same name as its current name",
            ));
        }
        let volatile = container.config.host.auto_remove;
        self.claim(&guard, name, &container.config.id, volatile)?;
        let old = format!("/{}", container.config.name);
        let renamed = self.containers.set_name(&guard, &mut container, name);
        match renamed {
            Ok(()) => self.tell_container(&container.config, "rename", &[("oldName", &old)]),
            Err(_) => self.containers.drop_name(name)?,
        }
        renamed
    }

    fn purge(&self) -> Result<()> {
        self.containers.purge(|config: &Config| {
            let _guard = self.containers.guard()?;
            for name in config.anonymous_volumes() {
                if self.users_of_volume(name)?.is_empty() && self.volumes.remove(name)? {
                    self.tell_volume(name, "destroy", &[]);
                }
            }
            Ok(())
        })?;
        self.volumes.purge()
    }
}
