//! A mount of a running container, for another that shares it: /dev/shm with its IPC, a volume
//! that is a file system of its own.
//!
//! A mount can be copied only from inside its mount namespace, so a thread enters that of the
//! container, and ends there. It reads no file. Caller: the engine.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, OFlags, ResolveFlags, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use cowl_sys::open::openat2;

use crate::path::open_no_symlinks;

/// A copy of what is mounted at /dev/shm in a mount namespace, attached nowhere; none if nothing
/// is. No link is followed.
pub fn shared_memory(mount_namespace: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Errno> {
    in_namespace(mount_namespace, || {
        open_no_symlinks(CWD, c"dev/shm", OFlags::PATH | OFlags::DIRECTORY)
    })
}

/// A copy of the mount of the file system `device` (major and minor number) at a path of a mount
/// namespace, attached nowhere and without the attributes that it has there; none if it is not
/// there.
///
/// Links lead as inside the container, where the path was looked up when it was mounted.
pub fn of_device(
    mount_namespace: BorrowedFd<'_>,
    path: &CStr,
    device: (u32, u32),
) -> Result<Option<OwnedFd>, Errno> {
    let opened = in_namespace(mount_namespace, || {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let found = openat2(CWD, path, OFlags::PATH | OFlags::DIRECTORY, resolve)?;
        let status = statx(&found, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
        if (status.stx_dev_major, status.stx_dev_minor) != device {
            return Err(Errno::NOENT);
        }
        Ok(found)
    })?;
    if let Some(mount) = &opened {
        crate::sys::mount::clear_attributes(mount.as_fd())?;
    }
    Ok(opened)
}

/// Copies the mount whose root is opened in a mount namespace.
fn in_namespace(
    mount_namespace: BorrowedFd<'_>,
    open: impl FnOnce() -> Result<OwnedFd, Errno> + Send,
) -> Result<Option<OwnedFd>, Errno> {
    let copied = std::thread::scope(|scope| scope.spawn(|| copy(mount_namespace, open)).join());
    // The thread does not panic.
    copied.unwrap_or(Err(Errno::CANCELED))
}

fn copy(
    mount_namespace: BorrowedFd<'_>,
    open: impl FnOnce() -> Result<OwnedFd, Errno>,
) -> Result<Option<OwnedFd>, Errno> {
    crate::sys::clone::unshare_directories()?;
    move_into_link_name_space(mount_namespace, Some(LinkNameSpaceType::Mount))?;
    let directory = match open() {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        opened => opened?,
    };
    let status = statx(&directory, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    if !status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(None);
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(directory.as_fd(), c"", flags).map(Some)
}
