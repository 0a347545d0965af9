//! Volumes that are file systems of their own (`type=tmpfs`, `nfs`), mounted while containers use
//! them.
//!
//! dockerd mounts one on the host with its first container and unmounts it with its last. Here
//! nothing is mounted on the host: the first container gets a new mount, each further one a copy of
//! a running container's mount, and the kernel ends the file system with the last mount. The volume
//! lists the containers that have it; the volume's lock serialises starts, so that two never create
//! two file systems.

use super::super::Engine;
use super::super::container::Container;
use super::super::error::{Context as _, Error, Kind, Result};
use super::super::signals::Signals;
use crate::volume::{Backing, FilesystemMount, MountedIn, Volume};
use cowl_launch::control::{Control, ControlError};
use cowl_launch::joined_mount;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, statx};
use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};

impl Engine {
    /// Locks the volumes with file systems that a container mounts, against other starts, until the
    /// result is dropped.
    pub(super) fn lock_filesystems(
        &self,
        container: &Container,
        signals: Option<&Signals>,
    ) -> Result<Vec<OwnedFd>> {
        let mut names: Vec<_> = container.config.volumes().collect();
        // All starts lock in the same order, so none deadlock.
        names.sort_unstable();
        let mut locks = Vec::new();
        let mut last = "";
        for name in names {
            let volume = self.volumes.find(name)?;
            let driven = volume.driven()?;
            if !driven.is_some_and(|driven| matches!(driven.source, Backing::Filesystem(_))) {
                continue;
            }
            if name == last {
                return Err(Error::invalid(format!(
                    "volume {name} is a file system: it can be mounted only once in a container"
                )));
            }
            last = name;
            locks.push(volume.lock_mounts(signals.map(Signals::interrupt))?);
        }
        Ok(locks)
    }

    /// A detached mount of a volume's file system for a container. The caller holds the volume's
    /// lock.
    pub(super) fn mount_filesystem(
        &self,
        volume: &Volume,
        filesystem: &FilesystemMount,
        container: &Container,
        destination: &str,
    ) -> Result<OwnedFd> {
        let mut mounts = Vec::new();
        let mut found = None;
        for mounted in volume.mounted_in()? {
            let Some(control) = self.control_of(&mounted)? else {
                continue;
            };
            if found.is_none() {
                found =
                    copy_of(&mounted, &control).context(|| format!("volume {}", volume.name))?;
            }
            mounts.push(mounted);
        }
        let mount = found.map_or_else(|| filesystem.mount(), Ok)?;
        let status = statx(&mount, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
        mounts.push(MountedIn {
            container: container.config.id.clone(),
            destination: destination.to_owned(),
            device: (status.stx_dev_major, status.stx_dev_minor),
        });
        volume.set_mounted_in(&mounts)?;
        Ok(mount)
    }

    /// Connects to the monitor of a container that has a mount; None if it does not run.
    fn control_of(&self, mounted: &MountedIn) -> Result<Option<Control>> {
        let container = match self.containers.find(&mounted.container) {
            Ok(container) => container,
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // A starting container waits for our lock, so it has not mounted it yet.
        match Control::connect(container.status_dir()) {
            Ok(control) => Ok(Some(control)),
            Err(ControlError::NotRunning) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A copy of a container's mount; None if the container has ended or has unmounted it.
fn copy_of(mounted: &MountedIn, control: &Control) -> Result<Option<OwnedFd>> {
    let id = &mounted.container;
    let Ok(state) = control.inspect() else {
        return Ok(None);
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = rustix::fs::open(format!("/proc/{}/ns/mnt", state.pid), flags, Mode::empty());
    // The monitor still answers, so it has not reaped the pid, and the namespace is its
    // container's.
    if control.inspect().is_err() {
        return Ok(None);
    }
    let namespace =
        namespace.context(|| format!("opening the mount namespace of container {id}"))?;
    let path = CString::new(mounted.destination.trim_start_matches('/'))?;
    joined_mount::of_device(namespace.as_fd(), &path, mounted.device)
        .context(|| format!("copying the mount of container {id}"))
}
