//! The /dev/shm of a running container, for another that shares its IPC.
//!
//! A mount can be copied only from inside its mount namespace, so a thread enters that of the
//! container, and ends there. It follows no link and reads no file. Caller: the engine.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, OFlags, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::path::open_no_symlinks;

/// A copy of what is mounted at /dev/shm in a mount namespace, attached nowhere; none if nothing
/// is.
pub fn of(mount_namespace: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Errno> {
    let taken = std::thread::scope(|scope| scope.spawn(|| take(mount_namespace)).join());
    // The thread does not panic.
    taken.unwrap_or(Err(Errno::CANCELED))
}

fn take(mount_namespace: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Errno> {
    crate::sys::clone::unshare_directories()?;
    move_into_link_name_space(mount_namespace, Some(LinkNameSpaceType::Mount))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let directory = match open_no_symlinks(CWD, c"dev/shm", flags) {
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
