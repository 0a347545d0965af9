//! The mounts of a container beside the launcher's own: volumes, bind mounts, network files.

mod filesystem;
mod request;
mod tmpfs;

pub(super) use request::{new_volume, specified, wanted};

use super::Engine;
use super::container::Container;
use super::container::config::{BindMode, Mount, MountSource};
use super::error::{Context as _, Error, Result};
use super::namespaces::Mode;
use super::signals::Signals;
use crate::volume::{Backing, Driven, Filling, Volume, root_of};
use cowl_launch::sandbox::{self, Attributes, Propagation, Submounts};
use cowl_sys::open::openat2;
use rustix::fs::{CWD, Mode as FileMode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// Mounts in order, with a descriptor for each that needs one.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub(super) planned: Vec<sandbox::Mount>,
    pub(super) descriptors: Vec<OwnedFd>,
    /// Locks of volumes that are file systems; kept until the container has started.
    pub(super) locks: Vec<OwnedFd>,
}

impl Engine {
    /// Opens everything that a container mounts, parents first. New volumes are filled from `root`
    /// first.
    pub(super) fn mounts_of(
        &self,
        container: &Container,
        root: BorrowedFd<'_>,
        signals: Option<&Signals>,
    ) -> Result<Mounts> {
        let config = &container.config;
        let locks = self.lock_filesystems(container, signals)?;
        let mut all = Vec::new();
        for (destination, file) in self.network_files(container, root)? {
            let mount = sandbox::Mount::descriptor(destination, config.host.readonly_rootfs);
            all.push((mount, Some(file)));
        }
        if config.host.ipc_mode == "host" {
            let mut shm = sandbox::Mount::descriptor("/dev/shm", false);
            shm.attributes = Attributes {
                no_suid: true,
                no_devices: true,
                no_exec: true,
                ..Attributes::default()
            };
            all.push((shm, Some(open(Path::new("/dev/shm"))?)));
        }
        if let Mode::Container(id) = Mode::of(&config.host.ipc_mode) {
            all.push((sandbox::Mount::joined_shm(), Some(self.shared_memory(id)?)));
        }
        for mount in &config.mounts {
            all.push(self.open_mount(container, mount, root, signals)?);
        }
        all.sort_by_key(|(mount, _)| mount.destination.split(|byte| *byte == b'/').count());
        let (planned, descriptors): (_, Vec<_>) = all.into_iter().unzip();
        Ok(Mounts {
            planned,
            descriptors: descriptors.into_iter().flatten().collect(),
            locks,
        })
    }

    /// Opens the mounts of a container that does not run: all but tmpfs, which exist only while it
    /// runs. Unused volumes are filled from `root`.
    pub(super) fn mounts_at_rest(
        &self,
        container: &Container,
        root: BorrowedFd<'_>,
    ) -> Result<Mounts> {
        let config = &container.config;
        let mut mounts = Mounts {
            locks: self.lock_filesystems(container, None)?,
            ..Mounts::default()
        };
        for mount in &config.mounts {
            if let (planned, Some(opened)) = self.open_mount(container, mount, root, None)? {
                mounts.planned.push(planned);
                mounts.descriptors.push(opened);
            }
        }
        Ok(mounts)
    }

    fn open_mount(
        &self,
        container: &Container,
        mount: &Mount,
        root: BorrowedFd<'_>,
        signals: Option<&Signals>,
    ) -> Result<(sandbox::Mount, Option<OwnedFd>)> {
        let destination = mount.destination.as_str();
        let mut planned = sandbox::Mount::descriptor(destination, mount.read_only);
        let opened = match &mount.source {
            MountSource::Volume {
                name,
                no_copy,
                subpath,
                ..
            } => {
                let volume = self.volumes.find(name)?;
                let filling = Filling {
                    root,
                    destination,
                    // Only a mount of the whole volume corresponds to the image's directory.
                    copy: !no_copy && subpath.is_empty(),
                    interrupt: signals.map(Signals::interrupt),
                };
                match volume.driven()? {
                    None => {
                        volume.prepare(None, &filling)?;
                        open_below(volume.data()?, subpath)?
                    }
                    Some(driven) => {
                        planned.attributes = driven.attributes;
                        planned.attributes.read_only |= mount.read_only;
                        let (source, opened) =
                            self.open_driven(container, &volume, driven, filling, subpath)?;
                        planned.source = source;
                        opened
                    }
                }
            }
            MountSource::Bind(path) => {
                planned.source = passed_on(&mount.bind);
                open_bind(path)?
            }
            MountSource::Tmpfs { options, .. } => {
                let mount = tmpfs::mount(destination, options, mount.read_only);
                return Ok((mount, None));
            }
        };
        Ok((planned, Some(opened)))
    }

    /// Opens the directory, or mounts the file system, that a volume's options name.
    fn open_driven(
        &self,
        container: &Container,
        volume: &Volume,
        driven: Driven,
        mut filling: Filling<'_>,
        subpath: &str,
    ) -> Result<(sandbox::MountSource, OwnedFd)> {
        filling.copy &= !driven.attributes.read_only;
        match driven.source {
            Backing::Directory { recursive, .. } => {
                let content = volume.data()?;
                volume.prepare(Some(&content), &filling)?;
                let mode = BindMode {
                    non_recursive: !recursive,
                    ..BindMode::default()
                };
                Ok((passed_on(&mode), open_below(content, subpath)?))
            }
            Backing::Filesystem(_) if !subpath.is_empty() => Err(Error::invalid(format!(
                "volume {} is a file system: volume-subpath is not supported",
                volume.name
            ))),
            Backing::Filesystem(filesystem) => {
                // dockerd would unmount it after the copy, which loses the files.
                filling.copy &= !filesystem.is_in_memory();
                let destination = filling.destination;
                let mount = self.mount_filesystem(volume, &filesystem, container, destination)?;
                volume.prepare(Some(&root_of(&mount)?), &filling)?;
                Ok((sandbox::MountSource::Detached, mount))
            }
        }
    }
}

fn passed_on(mode: &BindMode) -> sandbox::MountSource {
    sandbox::MountSource::Descriptor {
        submounts: match (mode.non_recursive, mode.writable_below) {
            (true, _) => Submounts::None,
            (false, true) => Submounts::Unchanged,
            (false, false) => Submounts::Same,
        },
        propagation: match mode.propagation.as_str() {
            "shared" | "rshared" => Propagation::Shared,
            "slave" | "rslave" => Propagation::Slave,
            _ => Propagation::Private,
        },
    }
}

/// Opens a file or directory in a volume, without leaving it.
fn open_below(volume: OwnedFd, subpath: &str) -> Result<OwnedFd> {
    if subpath.is_empty() {
        return Ok(volume);
    }
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(&volume, subpath, OFlags::PATH, resolve).map_err(|errno| {
        let why = match errno {
            Errno::NOENT => "no such file or directory".to_owned(),
            errno => errno.to_string(),
        };
        Error::invalid(format!("cannot access path {subpath} of the volume: {why}"))
    })
}

/// Opens a host path to mount; creates a missing directory as Docker does for `-v`.
fn open_bind(path: &Path) -> Result<OwnedFd> {
    if let Err(Errno::NOENT) = rustix::fs::stat(path) {
        std::fs::create_dir_all(path)
            .context(|| format!("creating the directory {}", path.display()))?;
    }
    open(path)
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, FileMode::empty())
        .context(|| format!("opening {}", path.display()))
}
