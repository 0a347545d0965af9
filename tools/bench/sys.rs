//! The one system call without a safe wrapper: a fork into new namespaces.
#![expect(unsafe_code, reason = "a system call without a safe wrapper elsewhere")]

use nix::libc;
use rustix::io::Errno;
use rustix::process::Pid;

/// Namespaces of a container: mount, pid, uts, ipc, net and cgroup.
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP;

/// `fork` into new namespaces (`clone`(2)): the child's pid, or none in the child.
pub(crate) fn fork_into_namespaces() -> Result<Option<Pid>, Errno> {
    let flags = libc::c_long::from(NAMESPACES | libc::SIGCHLD);
    // SAFETY: without CLONE_VM, and with no stack given, it is a fork; this program has one thread,
    // so the child has no lock that another thread held. The pointers and the last argument are not
    // used.
    let returned = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if returned < 0 {
        // The failed call has set errno.
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL));
    }
    Ok(i32::try_from(returned).ok().and_then(Pid::from_raw))
}
