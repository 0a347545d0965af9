//! Descriptors that a careless parent left open.
#![expect(unsafe_code, reason = "close_range(2) closes what it does not own")]

use std::io;

/// Closes every descriptor from 3 on. Only for the very start of a process, where whatever is open there was not meant for it.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: called before this process has opened or wrapped any descriptor but the standard three.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
