//! The system calls of [`crate::startup`], [`crate::socket`] and [`crate::stdio`] that rustix lacks,
//! or calls unsafe, and those of the C library in [`crate::memory`].
#![expect(unsafe_code, reason = "system calls without a safe wrapper elsewhere")]

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

/// The kernel's `struct sigaction` without its mask: handler, flags, restorer; and room for the
/// mask.
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

static OUTPUT_CLOSED: AtomicBool = AtomicBool::new(false);

/// Runs before Rust's runtime opens `/dev/null` for closed streams.
extern "C" fn look_at_output() {
    // SAFETY: it reads the flags of a descriptor, if that is open.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    OUTPUT_CLOSED.store(flags < 0, Ordering::Relaxed);
}

// The C library calls each function of this section before `main`, in the only thread
// (System V ABI, "Initialization and Termination Functions"). This one takes none of the arguments
// that it is given, and needs nothing of Rust's runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK_AT_OUTPUT: extern "C" fn() = look_at_output;

/// Whether standard output was closed when the process began.
pub(crate) fn was_output_closed() -> bool {
    OUTPUT_CLOSED.load(Ordering::Relaxed)
}

/// `SIOCOUTQ` of a socket (unix(7) has only its opposite; `unix_ioctl` in net/unix/af_unix.c).
pub(crate) fn outgoing(socket: std::os::fd::BorrowedFd<'_>) -> Result<libc::c_int, Errno> {
    use std::os::fd::AsRawFd as _;
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int, and `bytes` is one that lives until the call is done.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) }.into())?;
    Ok(bytes)
}

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: i32) -> Result<(), Errno> {
    // SAFETY: called before this process has opened or wrapped any of these.
    let closed = checked(unsafe { libc::syscall(libc::SYS_close_range, first, i32::MAX, 0_u32) });
    match closed {
        Err(Errno::NOSYS) => close_one_by_one(first),
        other => other,
    }
}

/// Before Linux 5.9.
fn close_one_by_one(first: i32) -> Result<(), Errno> {
    let listed = || -> std::io::Result<Vec<i32>> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir("/proc/self/fd")? {
            let name = entry?.file_name();
            numbers.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
        }
        Ok(numbers)
    };
    let listed = listed().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    // The listing's own descriptor is closed already, so its number says nothing any more.
    for number in listed.into_iter().filter(|number| *number >= first) {
        // SAFETY: as above. The only error there can be is of a number that is not open.
        unsafe { libc::close(number) };
    }
    Ok(())
}

/// Ignores `signal`: what it stands for is an error of a system call.
pub(crate) fn ignore_signal(signal: i32) -> Result<(), Errno> {
    let mut ignore: Action = [0; 8];
    if let Some(handler) = ignore.first_mut() {
        *handler = libc::SIG_IGN;
    }
    let nowhere = std::ptr::null_mut::<usize>();
    // SAFETY: the kernel reads one sigaction, which is not larger than `ignore`; ignoring runs no
    // code of ours.
    checked(unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            ignore.as_ptr(),
            nowhere,
            SET_BYTES,
        )
    })
}

/// Gives every ignored signal but SIGPIPE its default action. Handlers are this program's own:
/// exec has removed all others. Raw, since the C library keeps the first real-time signals for
/// itself.
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
        // SAFETY: the kernel reads one sigaction, which is not larger than the constant; the
        // default action runs no code of ours.
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

/// Blocks from this size on are mapped alone, and free bytes beyond it at an arena's end unmapped.
#[cfg_attr(
    not(target_env = "gnu"),
    expect(unused_variables, reason = "other allocators have none")
)]
pub(crate) fn set_allocator_thresholds(bytes: i32) -> Result<(), Errno> {
    #[cfg(target_env = "gnu")]
    for parameter in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: the parameters are numbers; the allocator locks itself.
        if unsafe { libc::mallopt(parameter, bytes) } != 1 {
            return Err(Errno::INVAL);
        }
    }
    Ok(())
}

pub(crate) fn trim_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no argument is a pointer; the allocator locks itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::fs::File;
    use std::process::Command;

    use super::*;

    /// In a process of its own, since it closes what the other tests have open.
    #[test]
    fn close_from_closes_all_but_the_standard_streams_with_and_without_close_range() {
        const CHILD: &str = "COWL_TEST_CLOSE";
        if std::env::var_os(CHILD).is_none() {
            let own = std::env::current_exe().unwrap();
            let test = "sys::tests::close_from_closes_all_but_the_standard_streams_with_and_without_close_range";
            let mut command = Command::new(own);
            command.args(["--exact", test, "--test-threads=1"]);
            assert!(command.env(CHILD, "1").status().unwrap().success());
            return;
        }
        for close in [close_one_by_one, close_from] {
            let file = std::mem::ManuallyDrop::new(File::open("/dev/null").unwrap());
            close(3).unwrap();
            assert_eq!(rustix::io::fcntl_getfd(&*file), Err(Errno::BADF));
        }
    }
}
