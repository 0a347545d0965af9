//! The worker's thread that engines can ask, over a listening socket that the keeper holds, to hold
//! changes back.
//!
//! Only root and the worker's user are answered, one at a time: the others wait until the
//! connection before theirs is closed. Invariant: changes wait no longer than a connection is open,
//! and no longer than [`LIMIT`]. If a worker dies, its connections are closed with it; those that
//! still wait are its successor's.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::Builder;
use std::time::{Duration, Instant};

use cowl_core::handover::{
    ChangesHeld, HandoverError, HoldChanges, IoMode, Message, receive, send,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::geteuid;

use crate::fuse::ChangeGate;

/// How long a client may take to say what it wants.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// How long changes are held back: an engine that reads contents takes as long as to copy them, and
/// one that is stopped must not stop the container for good.
const LIMIT: Duration = Duration::from_mins(10);
/// The pause after an error that leaves the client in the queue.
const SHORTAGE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Starts the thread.
pub(crate) fn start(listener: OwnedFd, gate: Arc<ChangeGate>, io_mode: IoMode) -> io::Result<()> {
    let control = Control {
        listener,
        gate,
        held: Message::ChangesHeld(ChangesHeld { io_mode }),
    };
    let thread = Builder::new().name("control".to_owned());
    thread.spawn(move || control.serve()).map(drop)
}

struct Control {
    listener: OwnedFd,
    gate: Arc<ChangeGate>,
    held: Message,
}

impl Control {
    fn serve(&self) {
        loop {
            match accept_with(&self.listener, SocketFlags::CLOEXEC) {
                Ok(client) => self.answer(&client),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS)) => {
                    tracing::warn!(%error, "an engine waits to be answered");
                    if let Err(error) = poll(&mut [], Some(&SHORTAGE)) {
                        tracing::warn!(%error, "a pause is cut short");
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "engines are not answered any more");
                    return;
                }
            }
        }
    }

    fn answer(&self, client: &OwnedFd) {
        match self.hold(client) {
            Ok(()) | Err(HandoverError::Closed) => {}
            Err(error) => tracing::warn!(%error, "an engine's request to hold changes back"),
        }
    }

    /// Holds changes back until the client closes its connection.
    fn hold(&self, client: &OwnedFd) -> Result<(), HandoverError> {
        let peer = socket_peercred(client)?;
        if !peer.uid.is_root() && peer.uid != geteuid() {
            return Ok(());
        }
        if !next_request(client, Instant::now() + FIRST_WORD)? {
            return Ok(());
        }
        let end = Instant::now() + LIMIT;
        let is_wanted = || Instant::now() < end && !is_closed(client);
        let Some(closed) = self.gate.close(is_wanted) else {
            return Ok(());
        };
        loop {
            send(client.as_fd(), &self.held, &[])?;
            if !next_request(client, end)? || !closed.is_closed() {
                return Ok(());
            }
        }
    }
}

/// Waits for a request; false if none comes in time.
fn next_request(client: &OwnedFd, end: Instant) -> Result<bool, HandoverError> {
    let mut readable = [PollFd::new(client, PollFlags::IN)];
    let left = end.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).map_err(|_too_long| Errno::INVAL)?;
    match poll(&mut readable, Some(&left)) {
        Ok(0) => return Ok(false),
        Ok(_) => {}
        Err(Errno::INTR) => return next_request(client, end),
        Err(errno) => return Err(errno.into()),
    }
    match receive(client.as_fd())? {
        (Message::HoldChanges(HoldChanges), _) => Ok(true),
        (other, _) => Err(HandoverError::Unexpected(other.name())),
    }
}

/// Whether the other end is closed. No event is asked for: only that is reported.
fn is_closed(client: &OwnedFd) -> bool {
    let mut closed = [PollFd::new(client, PollFlags::empty())];
    let now = Timespec::default();
    !matches!(poll(&mut closed, Some(&now)), Ok(0) | Err(Errno::INTR))
}
