//! `mount_setattr(2)`, Linux 5.12.
#![expect(unsafe_code, reason = "the system call has no wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes the mount that `mount` is the root of read-only, whatever its filesystem is.
pub(crate) fn set_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a NUL-terminated string and the struct is as long as the size says; the
    // kernel only reads both.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
