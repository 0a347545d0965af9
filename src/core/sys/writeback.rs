//! Starting to write a file's dirty pages to the disk.
#![expect(unsafe_code, reason = "rustix has no sync_file_range(2)")]

use std::os::fd::AsRawFd as _;

use rustix::fd::AsFd;
use rustix::io::{Errno, Result};

/// Has the dirty pages of `length` bytes from `start` on written, without waiting for the disk.
///
/// It makes nothing durable, and says nothing of writes that fail later: a sync does.
///
/// # Errors
/// What the host says; EINVAL for more than an `i64` holds.
pub fn start_writeback(file: impl AsFd, start: u64, length: u64) -> Result<()> {
    let offset = |number: u64| i64::try_from(number).map_err(|_beyond_i64| Errno::INVAL);
    let (start, length) = (offset(start)?, offset(length)?);
    let file = file.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed, so it is open, and the call gets no pointer.
    match unsafe { libc::sync_file_range(file, start, length, libc::SYNC_FILE_RANGE_WRITE) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
