//! Signal dispositions between clone and exec.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;
use rustix::process::{Pid, WaitIdOptions};

/// The kernel's `struct sigaction` is four words at most here, and all zero is the default disposition.
const DEFAULT: [u64; 4] = [0; 4];
/// Bytes of the kernel's signal set.
const SET_BYTES: usize = 8;

/// Sets every signal to its default: what the monitor ignores (Rust's start-up ignores SIGPIPE) or was made to ignore would stay ignored in
/// the program. Raw, since the C library keeps the first real-time signals for itself.
pub(crate) fn reset_dispositions() -> Result<(), Errno> {
    for number in 1..=64 {
        if matches!(number, libc::SIGKILL | libc::SIGSTOP) {
            continue;
        }
        // SAFETY: the kernel reads one sigaction, which is not larger than the constant; the default disposition runs no code of ours.
        let returned = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                number,
                DEFAULT.as_ptr(),
                std::ptr::null::<u64>(),
                SET_BYTES,
            )
        };
        super::checked(returned)?;
    }
    Ok(())
}

/// A child that has ended, whoever it is; it stays to be waited for if the options say so. rustix's `waitid` keeps the pid to itself.
pub(crate) fn ended_child(options: WaitIdOptions) -> Result<Option<Pid>, Errno> {
    // SAFETY: siginfo_t is made of integers and pointers, for which zero is a value.
    let mut information: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one siginfo_t, which lives during the call.
    let returned = unsafe {
        libc::waitid(
            libc::P_ALL,
            0,
            &raw mut information,
            options.bits().cast_signed(),
        )
    };
    match super::checked(libc::c_long::from(returned)) {
        Err(Errno::CHILD) => Ok(None),
        Err(errno) => Err(errno),
        // SAFETY: waitid has filled in the fields of a SIGCHLD, or left the zeros that say that no child has ended.
        Ok(_) => Ok(Pid::from_raw(unsafe { information.si_pid() })),
    }
}

/// Sends a signal by number, real-time ones included, which rustix's `pidfd_send_signal` can't name.
pub(crate) fn send(pidfd: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
    let information = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: without a siginfo_t the kernel reads no memory of ours.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            number,
            information,
            0,
        )
    };
    super::checked(returned).map(drop)
}
