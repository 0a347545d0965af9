//! System calls that rustix and nix lack or call unsafe: the only unsafe code of this crate.
//!
//! One function is one system call. All but [`exec::StringArray::new`] neither allocate nor lock,
//! so that they may be called between clone and exec. Minimum: Linux 5.12 (`mount_setattr`); on an
//! older kernel the caller reports ENOSYS.
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

/// Result of a raw system call made through libc, with its error from errno.
fn checked(returned: libc::c_long) -> Result<libc::c_long, Errno> {
    if returned < 0 {
        Err(last_errno())
    } else {
        Ok(returned)
    }
}

fn last_errno() -> Errno {
    // A failed system call has set it.
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}
