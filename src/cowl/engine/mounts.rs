//! What is mounted in a container beside the launcher's own: volumes, directories of the host, the
//! files of its network.

use super::Engine;
use super::container::Container;
use super::container::config::{Mount, MountSource};
use super::error::{Context as _, Result};
use super::signals::Signals;
use cowl_launch::sandbox::{self, Attributes};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// Mounts in their order, with a descriptor for each that needs one.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub(super) mounts: Vec<sandbox::Mount>,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Engine {
    /// Opens all that a container mounts, parents first. A new volume is filled from `root` before.
    pub(super) fn mounts_of(
        &self,
        container: &Container,
        root: BorrowedFd<'_>,
        signals: Option<&Signals>,
    ) -> Result<Mounts> {
        let config = &container.config;
        let mut all = Vec::new();
        for (destination, file) in self.network_files(container, root)? {
            let mount = sandbox::Mount::descriptor(destination, config.host.readonly_rootfs);
            all.push((mount, file));
        }
        if config.host.ipc_mode == "host" {
            let mut shm = sandbox::Mount::descriptor("/dev/shm", false);
            shm.attributes = Attributes {
                no_suid: true,
                no_devices: true,
                no_exec: true,
                ..Attributes::default()
            };
            all.push((shm, open(Path::new("/dev/shm"))?));
        }
        for mount in &config.mounts {
            let opened = self.open_mount(mount, root, signals)?;
            let destination = mount.destination.as_bytes();
            let mount = sandbox::Mount::descriptor(destination, mount.read_only);
            all.push((mount, opened));
        }
        all.sort_by_key(|(mount, _)| mount.destination.split(|byte| *byte == b'/').count());
        let (mounts, descriptors) = all.into_iter().unzip();
        Ok(Mounts {
            mounts,
            descriptors,
        })
    }

    fn open_mount(
        &self,
        mount: &Mount,
        root: BorrowedFd<'_>,
        signals: Option<&Signals>,
    ) -> Result<OwnedFd> {
        match &mount.source {
            MountSource::Volume { name, no_copy, .. } => {
                let volume = self.volumes.find(name)?;
                let interrupt = signals.map(Signals::interrupt);
                volume.prepare(root, &mount.destination, !no_copy, interrupt)?;
                volume.data()
            }
            MountSource::Bind(path) => open_bind(path),
        }
    }
}

/// Opens a host path to be mounted, creating a missing directory as Docker does for `-v`.
fn open_bind(path: &Path) -> Result<OwnedFd> {
    if let Err(Errno::NOENT) = rustix::fs::stat(path) {
        std::fs::create_dir_all(path)
            .context(|| format!("creating the directory {}", path.display()))?;
    }
    open(path)
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .context(|| format!("opening {}", path.display()))
}
