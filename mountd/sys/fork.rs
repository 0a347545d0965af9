//! A process that goes on where its parent is: it executes no program, so it needs none to be
//! within reach.
#![expect(unsafe_code, reason = "fork(2) has no safe wrapper")]

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use rustix::process::Pid;

/// The only descriptor of the child but the standard ones.
const SOCKET: libc::c_int = 3;

/// Starts a process that calls `life` with its own copy of `owned` and exits with 0 if that says
/// true, else with 1. `owned` comes back for this process.
///
/// For a process of one thread: another's locks would stay locked in the child.
#[expect(
    clippy::exit,
    reason = "the child has no frames of its own to return to"
)]
pub(crate) fn start_with<T>(owned: T, life: impl FnOnce(T) -> bool) -> io::Result<(T, Pid)> {
    // SAFETY: this process has one thread, so the child's copy of its memory is as consistent as
    // its own.
    let forked = unsafe { libc::fork() };
    match forked {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let succeeded = life(owned);
            // Not by returning: the values of the frames above are the parent's.
            std::process::exit(i32::from(!succeeded))
        }
        child => {
            let child = Pid::from_raw(child).ok_or(io::ErrorKind::InvalidData)?;
            Ok((owned, child))
        }
    }
}

/// As [`start_with`], with `socket` as the only descriptor but the standard ones.
pub(crate) fn start(socket: OwnedFd, life: impl FnOnce(OwnedFd) -> bool) -> io::Result<Pid> {
    let (_socket, child) = start_with(socket, |socket| alone_with(socket).is_ok_and(life))?;
    Ok(child)
}

/// Closes all other descriptors.
fn alone_with(socket: OwnedFd) -> io::Result<OwnedFd> {
    let socket = socket.into_raw_fd();
    if socket != SOCKET {
        // SAFETY: what was open there belongs to values of the parent's frames, which this process
        // never returns to.
        let moved = unsafe { libc::dup3(socket, SOCKET, libc::O_CLOEXEC) };
        if moved == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: as above.
    let closed = unsafe { libc::close_range(4, libc::c_uint::MAX, 0) };
    if closed == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(SOCKET) })
}
