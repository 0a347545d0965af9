//! What keeper and worker have in common: at the entry a clean process with a socket as descriptor 0, and later one that is apart.
//!
//! Invariant: nothing else of the process that started us is left open but standard error, which is the log.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::sys;

/// Drops what was inherited and takes the socket off descriptor 0.
pub fn begin() -> io::Result<OwnedFd> {
    sys::descriptors::close_inherited()?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let stdin = io::stdin();
    let socket = stdin.as_fd().try_clone_to_owned()?;
    if !rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&socket)?.st_mode).is_socket() {
        return Err(io::Error::other(
            "descriptor 0 is no socket: this command is for cowl, which hands it one",
        ));
    }
    rustix::stdio::dup2_stdin(&null)?;
    // Modes come from the clients, who have umasks of their own.
    rustix::process::umask(Mode::empty());
    rustix::thread::set_name(c"cowl-mountd")?;
    Ok(socket)
}

/// Leaves the mount namespace of whoever started us, so that it can end while the mount lives. Afterwards no program can be started.
pub(crate) fn seclude() {
    if let Err(error) = sys::namespace::leave() {
        tracing::warn!(%error, "this process stays among its caller's mounts, and may keep them from ending");
    }
}
