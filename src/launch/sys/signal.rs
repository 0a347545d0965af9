//! Signals: dispositions between clone and exec, ended children, sending by number.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;
use rustix::process::{Pid, WaitIdOptions};

/// The kernel's `struct sigaction` has at most four words; all zero is SIG_DFL.
const DEFAULT: [u64; 4] = [0; 4];
/// Bytes of the kernel's signal set.
const SET_BYTES: usize = 8;

/// Sets every signal to its default, since an ignored signal (SIGPIPE, by Rust's start-up) would
/// stay ignored in the program. A raw call, since the C library reserves the first real-time
/// signals.
pub(crate) fn reset_dispositions() -> Result<(), Errno> {
    for number in 1..=64 {
        if matches!(number, libc::SIGKILL | libc::SIGSTOP) {
            continue;
        }
        // SAFETY: the kernel reads one sigaction, which is not larger than the constant; the
        // default disposition runs no code of ours.
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

/// A child that has ended, by `waitid(P_ALL)`; WNOWAIT leaves it waitable. rustix's `waitid` does
/// not give the pid.
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
        // SAFETY: waitid has filled in the fields of a SIGCHLD, or left the zeros that say that no
        // child has ended.
        Ok(_) => Ok(Pid::from_raw(unsafe { information.si_pid() })),
    }
}

/// Waits for any signal, all of which are blocked, and takes it. nix's `SigSet::wait` has no
/// real-time signals.
pub(crate) fn wait_for_any() -> Result<i32, Errno> {
    let all = u64::MAX;
    // SAFETY: the kernel reads a signal set of the size given, and writes no information.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_rt_sigtimedwait,
            &raw const all,
            std::ptr::null_mut::<libc::siginfo_t>(),
            std::ptr::null::<libc::timespec>(),
            SET_BYTES,
        )
    };
    super::checked(returned).and_then(|number| i32::try_from(number).map_err(|_range| Errno::RANGE))
}

/// Sends a signal by number. rustix's `pidfd_send_signal` has no real-time signals.
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
