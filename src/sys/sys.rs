//! The system calls of [`crate::startup`] that rustix lacks, or calls unsafe.
#![expect(unsafe_code, reason = "system calls without a safe wrapper elsewhere")]

use rustix::io::Errno;

/// The kernel's `struct sigaction` without its mask: handler, flags, restorer; and room for the mask.
type Action = [usize; 8];
/// Bytes of the kernel's signal set.
const SET_BYTES: usize = 8;
/// Highest signal number.
const SIGNALS: i32 = 64;

fn checked(returned: libc::c_long) -> Result<(), Errno> {
    if returned < 0 {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
    } else {
        Ok(())
    }
}

/// Closes every descriptor from `first` on (close_range(2), Linux 5.9).
pub(crate) fn close_from(first: u32) -> Result<(), Errno> {
    // SAFETY: called before this process has opened or wrapped any of these.
    checked(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0_u32) })
}

/// Gives every ignored signal but SIGPIPE its default action. Handlers are this program's own: exec has removed all others.
/// Raw, since the C library keeps the first real-time signals for itself.
pub(crate) fn unignore_signals() -> Result<(), Errno> {
    const DEFAULT: Action = [0; 8];
    let none = std::ptr::null::<usize>();
    for number in (1..=SIGNALS).filter(|number| *number != libc::SIGPIPE) {
        let mut now: Action = [0; 8];
        let into = now.as_mut_ptr();
        // SAFETY: the kernel writes one sigaction, for which there is room, and reads none.
        checked(unsafe { libc::syscall(libc::SYS_rt_sigaction, number, none, into, SET_BYTES) })?;
        if now.first() != Some(&libc::SIG_IGN) {
            continue;
        }
        let from = DEFAULT.as_ptr();
        let nowhere = std::ptr::null_mut::<usize>();
        // SAFETY: the kernel reads one sigaction, which is not larger than the constant; the default action runs no code of ours.
        checked(unsafe {
            libc::syscall(libc::SYS_rt_sigaction, number, from, nowhere, SET_BYTES)
        })?;
    }
    Ok(())
}

/// Unblocks every signal in the calling thread.
pub(crate) fn unblock_signals() -> Result<(), Errno> {
    let none = 0_u64;
    let nowhere = std::ptr::null_mut::<u64>();
    // SAFETY: the kernel reads one signal set of the size given.
    checked(unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            nowhere,
            SET_BYTES,
        )
    })
}
