//! `mount_setattr` (Linux 5.12).

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;

use crate::sandbox::Propagation;

/// Attributes to set on a mount, and on all below it if `recursive`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MountAttributes {
    /// MOUNT_ATTR_RDONLY.
    pub(crate) read_only: bool,
    /// MOUNT_ATTR_NOSUID.
    pub(crate) no_suid: bool,
    /// MOUNT_ATTR_NODEV.
    pub(crate) no_devices: bool,
    /// MOUNT_ATTR_NOEXEC.
    pub(crate) no_exec: bool,
    /// Whether mounts made later propagate.
    pub(crate) propagation: Option<Propagation>,
    /// AT_RECURSIVE.
    pub(crate) recursive: bool,
}

/// Takes away what [`mount_setattr`] sets, but for propagation, from the mount whose root is open.
pub(crate) fn clear_attributes(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: 0,
        attr_clr: libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC,
        propagation: 0,
        userns_fd: 0,
    };
    set(mount, libc::AT_EMPTY_PATH, &attributes)
}

/// Sets attributes of the mount whose root is open as `mount`.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, change: MountAttributes) -> Result<(), Errno> {
    let mut attributes = libc::mount_attr {
        attr_set: 0,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    if change.read_only {
        attributes.attr_set |= libc::MOUNT_ATTR_RDONLY;
    }
    if change.no_suid {
        attributes.attr_set |= libc::MOUNT_ATTR_NOSUID;
    }
    if change.no_devices {
        attributes.attr_set |= libc::MOUNT_ATTR_NODEV;
    }
    if change.no_exec {
        attributes.attr_set |= libc::MOUNT_ATTR_NOEXEC;
    }
    attributes.propagation = match change.propagation {
        None => 0,
        Some(Propagation::Private) => libc::MS_PRIVATE,
        Some(Propagation::Slave) => libc::MS_SLAVE,
        Some(Propagation::Shared) => libc::MS_SHARED,
    };
    let flags = libc::AT_EMPTY_PATH
        | if change.recursive {
            libc::AT_RECURSIVE
        } else {
            0
        };
    set(mount, flags, &attributes)
}

fn set(mount: BorrowedFd<'_>, flags: i32, attributes: &libc::mount_attr) -> Result<(), Errno> {
    // SAFETY: the path is a NUL-terminated literal and the attributes live during the call, their
    // size is given.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    super::checked(returned).map(drop)
}
