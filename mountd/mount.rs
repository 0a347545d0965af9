//! Making a mount: the FUSE connection, and a mount of it that is attached nowhere yet.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use cowl_core::handover::MountFailed;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

use crate::failure::{OrFail, failure};
use crate::sys;

/// What a mount is like to the kernel.
#[derive(Copy, Clone, Debug)]
pub(crate) struct MountParameters<'p> {
    /// The source in `/proc/self/mountinfo`.
    pub(crate) source: &'p OsStr,
    pub(crate) read_only: bool,
    /// Users other than the one that mounts may use it.
    pub(crate) allow_other: bool,
    /// SELinux contexts: option and value.
    pub(crate) contexts: &'p [(String, OsString)],
    pub(crate) attributes: MountAttrFlags,
}

/// Opens a new FUSE connection.
pub(crate) fn open_device() -> Result<OwnedFd, MountFailed> {
    rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        let hint = match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => {
                " (is the fuse module loaded? try: modprobe fuse)"
            }
            Errno::ACCESS | Errno::PERM => " (it must be readable and writable for this user)",
            _ => "",
        };
        failure(format!("cannot open /dev/fuse{hint}"), &errno.into())
    })
}

/// Makes the detached mount.
pub(crate) fn make_mount(
    parameters: &MountParameters<'_>,
    device: BorrowedFd<'_>,
) -> Result<OwnedFd, MountFailed> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| {
        let what = match errno {
            Errno::PERM => {
                "no privilege to mount (be root, or run in a user namespace: unshare -Urm)"
            }
            Errno::NODEV => "the kernel has no fuse filesystem (try: modprobe fuse)",
            Errno::NOSYS => "the kernel cannot mount by descriptor (Linux 5.6 or later is needed)",
            _ => "cannot begin a fuse mount",
        };
        failure(what, &errno.into())
    })?;
    configure(context.as_fd(), parameters, device).or_fail("the kernel refuses the fuse mount")?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        parameters.attributes,
    )
    .or_fail("the kernel refuses the fuse mount")
}

fn configure(
    context: BorrowedFd<'_>,
    parameters: &MountParameters<'_>,
    device: BorrowedFd<'_>,
) -> Result<(), Errno> {
    fsconfig_set_string(context, "source", parameters.source)?;
    fsconfig_set_string(context, "subtype", "cowl")?;
    fsconfig_set_string(context, "fd", device.as_raw_fd().to_string())?;
    // The root's type, in octal; INIT's answer is followed by its real attributes.
    fsconfig_set_string(context, "rootmode", "40000")?;
    let user = rustix::process::geteuid().as_raw();
    fsconfig_set_string(context, "user_id", user.to_string())?;
    let group = rustix::process::getegid().as_raw();
    fsconfig_set_string(context, "group_id", group.to_string())?;
    for (option, value) in parameters.contexts {
        fsconfig_set_string(context, &**option, &**value)?;
    }
    // The kernel checks permissions by the attributes, for every user: that is what modes and
    // owners are for.
    fsconfig_set_flag(context, "default_permissions")?;
    if parameters.allow_other {
        fsconfig_set_flag(context, "allow_other")?;
    }
    if parameters.read_only {
        fsconfig_set_flag(context, "ro")?;
    }
    fsconfig_create(context)
}

/// A detached, read-only clone of the mount that a directory is in, with that directory as root.
pub(crate) fn read_only_clone(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = open_tree(directory, "", flags)?;
    sys::mount::set_read_only(clone.as_fd())?;
    Ok(clone)
}
