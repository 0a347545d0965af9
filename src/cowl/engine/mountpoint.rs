//! Attaching a mount to a directory, and detaching it.
//!
//! The source of a mount by `cowl mount` is `IMAGE+ID` in /proc/self/mountinfo. ID names the
//! lease, which the mount's keeper holds until the last copy of the mount is gone.

use super::error::{Context, Error, Result};
use cowl_sys::mountinfo::{self, Mount};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// File system type of cowl's mounts.
const TYPE: &str = "fuse.cowl";

/// A directory that exists, held open.
#[derive(Debug)]
pub(super) struct MountPoint {
    fd: OwnedFd,
    path: PathBuf,
}

impl MountPoint {
    /// Opens a mount point.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        Self::at(path).map_err(|errno| match errno {
            Errno::NOENT => Error::invalid(format!(
                "mount point {shown}: no such directory; create it first: mkdir -p {shown}"
            )),
            Errno::NOTDIR => Error::invalid(format!("mount point {shown}: not a directory")),
            errno => Error::from(errno).context(format!("mount point {shown}")),
        })
    }

    fn at(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self {
            fd,
            path: path.to_owned(),
        })
    }

    /// Fails if cowl has a mount on this directory.
    pub(super) fn require_free(&self) -> Result<()> {
        match self.mounted()? {
            Some(source) => {
                let path = self.path.display();
                Err(Error::conflict(format!(
                    "mount point {path}: {source} is mounted there; run cowl umount {path} first or use another directory"
                )))
            }
            None => Ok(()),
        }
    }

    /// Its canonical path.
    pub(super) fn canonical(&self) -> Result<PathBuf> {
        canonical(&self.fd)
    }

    /// Attaches a detached mount.
    pub(super) fn attach(&self, mount: impl AsFd) -> Result<()> {
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(mount, "", &self.fd, "", flags)
            .context(|| format!("attaching the mount to {}", self.path.display()))
    }

    /// The source of the cowl mount whose root this directory is, if it is one.
    pub(super) fn mounted(&self) -> Result<Option<String>> {
        // Without a request to the worker, which may be dead: Linux 6.1 would send one.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(&self.fd, "", flags, StatxFlags::MNT_ID)
            .context(|| format!("statx {}", self.path.display()))?;
        if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Ok(None);
        }
        let table =
            std::fs::read("/proc/self/mountinfo").context(|| "reading /proc/self/mountinfo")?;
        let ours = |mount: &Mount| mount.id == stat.stx_mnt_id && mount.filesystem == TYPE;
        Ok(mountinfo::parse(&table)
            .find(ours)
            .map(|mount| mount.source.to_string_lossy().into_owned()))
    }
}

/// Unmounts `path`; returns the mount's source.
pub(super) fn detach(path: &Path) -> Result<String> {
    let shown = path.display();
    let absent = || {
        Error::invalid(format!(
            "umount {shown}: not a cowl mount; findmnt -t {TYPE} lists them"
        ))
    };
    let point = MountPoint::at(path)
        .map_err(|errno| Error::from(errno).context(format!("umount {shown}")))?;
    let source = point.mounted()?.ok_or_else(absent)?;
    // By path: an open descriptor would keep the mount busy.
    let real = canonical(&point.fd).context(|| format!("umount {shown}"))?;
    drop(point);
    match unmount(&real, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(source),
        Err(Errno::BUSY) => Err(Error::conflict(format!(
            "umount {shown}: target is busy; fuser -vm {shown} lists the processes that use it"
        ))),
        Err(Errno::INVAL) => Err(absent()),
        Err(Errno::PERM) => Err(Error::failed(format!(
            "umount {shown}: permission denied; run it as root or in the user namespace that mounted it"
        ))),
        Err(errno) => Err(Error::from(errno).context(format!("umount {shown}"))),
    }
}

/// Where this mount namespace has the mount whose source has this suffix, if it has it.
pub(super) fn place_of(end_of_source: &str) -> Result<Option<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo").context(|| "reading /proc/self/mountinfo")?;
    let ours = |mount: &Mount| {
        let source = mount.source.to_string_lossy();
        mount.filesystem == TYPE && source.ends_with(end_of_source)
    };
    Ok(mountinfo::parse(&table).find(ours).map(|mount| mount.point))
}

/// A process (pid and name) that has the mount `source` in its mount namespace, if one is visible.
pub(super) fn holder(source: &str) -> Result<Option<String>> {
    let processes = std::fs::read_dir("/proc").context(|| "reading /proc")?;
    for process in processes {
        let process = process.context(|| "reading /proc")?.path();
        // Not a process; or it has ended or belongs to another user.
        let Ok(table) = std::fs::read(process.join("mountinfo")) else {
            continue;
        };
        let ours = |mount: Mount| mount.filesystem == TYPE && mount.source == source;
        if mountinfo::parse(&table).any(ours) {
            let number = process.file_name().unwrap_or_default().to_string_lossy();
            let name = std::fs::read(process.join("comm")).unwrap_or_default();
            let name = String::from_utf8_lossy(&name);
            return Ok(Some(format!("{number} ({})", name.trim_end())));
        }
    }
    Ok(None)
}

/// The canonical path of an open file or directory.
pub(super) fn canonical(fd: &OwnedFd) -> Result<PathBuf> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    std::fs::read_link(&link).context(|| format!("reading {link}"))
}

/// Makes a path absolute.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).context(|| format!("the path {}", path.display()))
}

/// Opens a directory, creating it (but not its parents) if missing. True if it was created.
pub(super) fn open_or_make(path: &Path, mode: u32) -> Result<(OwnedFd, bool)> {
    let made = match rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(mode)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => {
            return Err(
                Error::from(errno).context(format!("creating directory {}", path.display()))
            );
        }
    };
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())
        .context(|| format!("opening directory {}", path.display()))?;
    Ok((fd, made))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn umount_of_a_plain_directory_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let error = detach(temp.path()).unwrap_err();
        assert!(error.to_string().contains("not a cowl mount"), "{error}");
        assert!(
            detach(Path::new("/proc"))
                .unwrap_err()
                .to_string()
                .contains("not a cowl mount")
        );
        let error = MountPoint::open(&temp.path().join("missing")).unwrap_err();
        assert!(
            error.to_string().ends_with(&format!(
                "create it first: mkdir -p {}",
                temp.path().join("missing").display()
            )),
            "{error}"
        );
    }
}
