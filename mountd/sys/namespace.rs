//! A mount namespace of this process's own, with nothing in it but `/proc`.
//!
//! A process in its caller's mount namespace keeps that namespace alive, and every mount in it.
//! After a user's `unshare -m` has ended, its mounts, the one served here among them, would stay
//! for ever.
#![expect(unsafe_code, reason = "unshare(2) has no safe wrapper")]

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Result;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsmount, fsopen, mount_change, move_mount,
    open_tree, unmount,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// Leaves the caller's mount namespace: from here on no path leads to the host's files, and
/// descriptors still do. For a process of one thread that has started whatever it has
/// to start.
///
/// # Errors
/// Where the root cannot be left: it is not a mount point, as after `chroot`, or the first of all,
/// as in an initial ramdisk. This process then stays where it was.
pub(crate) fn leave() -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let callers = rustix::fs::open("/proc/self/ns/mnt", flags, Mode::empty())?;
    // SAFETY: no descriptors are unshared, and the only thread is this one.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    empty_this_one().or_else(|error| {
        // A copy of the caller's would be worse: what is unmounted there goes on here.
        move_into_link_name_space(callers.as_fd(), Some(LinkNameSpaceType::Mount))?;
        Err(error)
    })
}

fn empty_this_one() -> Result<()> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    // The overlay reaches files of a directory that it has open by /proc/self/fd.
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    // Recursive, since in a user namespace nothing that is covered may be laid bare.
    let proc = open_tree(CWD, "/proc", clone | OpenTreeFlags::AT_RECURSIVE)?;
    let root = new_root()?;
    let by_descriptor = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&root, "", CWD, "/", by_descriptor)?;
    rustix::process::fchdir(&root)?;
    rustix::fs::mkdirat(&root, "proc", Mode::RWXU)?;
    move_mount(&proc, "", &root, "proc", by_descriptor)?;
    // The old root comes to lie over the new one, from where it is taken away with everything in
    // it (pivot_root(2)).
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)
}

fn new_root() -> Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
}
