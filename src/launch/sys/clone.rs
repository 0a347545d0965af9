//! `clone3`, `unshare` of one namespace, `_exit`.

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::Pid;

use super::checked;

/// linux/sched.h; libc's is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The process that a clone returned in.
#[derive(Debug)]
pub(crate) enum Cloned {
    /// In the new process.
    Child,
    /// In the caller, with the new process.
    Parent { pid: Pid, pidfd: OwnedFd },
}

/// New namespaces of a process; its mount namespace is another matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NewNamespaces {
    pub(crate) mount: bool,
    pub(crate) pid: bool,
    pub(crate) uts: bool,
    pub(crate) ipc: bool,
    pub(crate) net: bool,
}

/// Clones a process into new namespaces, and into the version 2 cgroup if one is given.
///
/// For a process with one thread: the child has a copy of its memory and descriptors, but no other
/// thread to release a lock.
pub(crate) fn clone_process(
    new: NewNamespaces,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Cloned, Errno> {
    clone_with(new, cgroup, Relation::Child)
}

/// The same, with the caller's parent as parent.
pub(crate) fn clone_sibling(
    new: NewNamespaces,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Cloned, Errno> {
    clone_with(new, cgroup, Relation::Sibling)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Relation {
    Child,
    Sibling,
}

fn clone_with(
    new: NewNamespaces,
    cgroup: Option<BorrowedFd<'_>>,
    relation: Relation,
) -> Result<Cloned, Errno> {
    let namespaces = [
        (new.mount, libc::CLONE_NEWNS),
        (new.pid, libc::CLONE_NEWPID),
        (new.uts, libc::CLONE_NEWUTS),
        (new.ipc, libc::CLONE_NEWIPC),
        (new.net, libc::CLONE_NEWNET),
    ]
    .into_iter()
    .filter(|(wanted, _)| *wanted)
    .fold(0, |flags, (_, flag)| flags | flag);
    let mut flags = u64::from((namespaces | libc::CLONE_PIDFD).cast_unsigned());
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is a struct of integers, for which zero is a value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    if let Some(cgroup) = cgroup {
        flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    arguments.flags = flags;
    arguments.pidfd = (&raw mut pidfd).addr() as u64;
    match relation {
        Relation::Child => arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned()),
        // It has the exit signal of the caller (clone(2)).
        Relation::Sibling => {
            arguments.flags |= u64::from(libc::CLONE_PARENT.cast_unsigned());
        }
    }
    // SAFETY: the arguments live during the call, their pidfd points at a live integer, and without
    // CLONE_VM and a stack the child returns from this call on a copy of this stack, as after fork.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    let returned = checked(returned)?;
    let Some(pid) = i32::try_from(returned).ok().and_then(Pid::from_raw) else {
        return Ok(Cloned::Child);
    };
    // SAFETY: the kernel has just made this descriptor for us (CLONE_PIDFD), close-on-exec.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid, pidfd })
}

/// Enters a new cgroup namespace, rooted at the current cgroups.
pub(crate) fn unshare_cgroup_namespace() -> Result<(), Errno> {
    // SAFETY: unsafe since CLONE_FILES could take descriptors away from under others; this flag
    // touches no descriptor.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }
}

/// Gives the calling thread a root and a working directory of its own.
pub(crate) fn unshare_directories() -> Result<(), Errno> {
    // SAFETY: unsafe since CLONE_FILES could take descriptors away from under others; this flag
    // touches no descriptor.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }
}

/// Moves the calling thread to a copy of its mount namespace, with a root and a working directory of
/// its own.
pub(crate) fn unshare_mounts() -> Result<(), Errno> {
    // SAFETY: unsafe since CLONE_FILES could take descriptors away from under others; this flag
    // touches no descriptor.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
}

/// Ends the process without exit handlers, which belong to the process it was cloned from.
pub(crate) fn exit_now(status: u8) -> ! {
    // SAFETY: always allowed; nothing runs after it.
    unsafe { libc::_exit(i32::from(status)) }
}
