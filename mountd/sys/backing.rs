//! Giving a backing id back to the kernel; `fuser` registers ids and has no call for this.
#![expect(unsafe_code, reason = "ioctl(2) has no safe wrapper for this request")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `FUSE_DEV_IOC_BACKING_CLOSE`: `_IOW(229, 2, uint32_t)`, Linux 6.9.
const BACKING_CLOSE: libc::Ioctl = 0x4004_e502;

/// Closes a backing id of the connection `device`. Files that are open with it stay so.
pub(crate) fn close(device: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    // SAFETY: the request reads one u32 from the pointer, which is valid for the call.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE, &raw const id) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
