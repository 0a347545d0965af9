//! The engine's side of holding changes back: a mount's files stay as they are while it reads the
//! upper.
//!
//! The socket has a name in a directory that only the mount's owner can enter. Invariant: changes
//! wait no longer than the engine's connection is open, so one that is killed leaves no client
//! waiting.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen as listen_on,
    socket_with,
};

use super::codec::HandoverError;
use super::message::{ChangesHeld, HoldChanges, IoMode, Message};
use super::socket::{receive, send};

/// Engines that wait while another has changes held.
const BACKLOG: i32 = 128;

/// A mount whose changes are held back until this is dropped.
#[derive(Debug)]
pub struct Hold {
    socket: OwnedFd,
    io_mode: IoMode,
}

/// A listening socket ([`Role::Control`](super::Role::Control)), in place of any other of this
/// name.
pub fn listen(directory: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, HandoverError> {
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let socket = socket()?;
    bind(&socket, &address(directory, name)?)?;
    listen_on(&socket, BACKLOG)?;
    Ok(socket)
}

fn socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// By the descriptor: the directory's path may be longer than an address can be.
fn address(directory: BorrowedFd<'_>, name: &str) -> Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

impl Hold {
    /// Has the worker that answers on a [socket](listen) hold changes back, and waits until those
    /// under way are done. The caller makes no change through the mount while it has this.
    ///
    /// # Errors
    /// [`HandoverError::Closed`]: no worker answers, or it has given up on a change that takes
    /// long.
    pub fn begin(directory: BorrowedFd<'_>, name: &str) -> Result<Self, HandoverError> {
        let socket = socket()?;
        let address = address(directory, name)?;
        match retry_on_intr(|| connect(&socket, &address)) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::CONNREFUSED) => return Err(HandoverError::Closed),
            Err(errno) => return Err(errno.into()),
        }
        let io_mode = ask(socket.as_fd())?;
        Ok(Self { socket, io_mode })
    }

    /// What passes the worker by, and so is not held: in [`IoMode::Cached`] writes through shared
    /// mappings; in [`IoMode::Writeback`] everything that is written to files; in
    /// [`IoMode::Passthrough`] that to files that are open.
    pub fn io_mode(&self) -> IoMode {
        self.io_mode
    }

    /// Whether changes by requests have waited since [`begin`](Self::begin).
    ///
    /// # Errors
    /// [`HandoverError::Closed`]: the worker was killed, or has ended the hold.
    pub fn confirm(&self) -> Result<(), HandoverError> {
        ask(self.socket.as_fd()).map(drop)
    }
}

fn ask(socket: BorrowedFd<'_>) -> Result<IoMode, HandoverError> {
    send(socket, &Message::HoldChanges(HoldChanges), &[])?;
    match receive(socket)? {
        (Message::ChangesHeld(ChangesHeld { io_mode }), _) => Ok(io_mode),
        (other, _) => Err(HandoverError::Unexpected(other.name())),
    }
}
