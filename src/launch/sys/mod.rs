//! The system calls that neither rustix nor nix has, and the pieces of theirs that are unsafe; the only unsafe code of the crate.
//!
//! One function is one system call. All but [`exec::Vectors::new`] are free of allocation and locks, so that they may be used between clone
//! and exec. Floor: Linux 5.12 (`mount_setattr`); an older kernel answers ENOSYS, which is reported as it is.
#![expect(unsafe_code, reason = "system calls without a safe wrapper elsewhere")]

pub(crate) mod bpf;
pub(crate) mod clone;
pub(crate) mod exec;
pub(crate) mod keyring;
pub(crate) mod mount;
pub(crate) mod net;
pub(crate) mod seccomp;
pub(crate) mod signal;

use rustix::io::Errno;

/// The result of a raw system call made through libc, whose errors are in the calling thread's errno.
fn checked(returned: libc::c_long) -> Result<libc::c_long, Errno> {
    if returned < 0 {
        Err(last_errno())
    } else {
        Ok(returned)
    }
}

fn last_errno() -> Errno {
    // A system call that failed has set it, so there is always a number.
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}
