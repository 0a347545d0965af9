//! What a client has attached as a program's standard input, and what the program has not taken
//! yet.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;

use super::poller::{Key, Poller};

/// See the module.
#[derive(Debug)]
pub(super) struct Input {
    descriptor: OwnedFd,
    /// None while the program takes nothing.
    pub(super) key: Option<Key>,
    /// Read, but not taken by the program yet.
    pending: Vec<u8>,
    ended: bool,
}

/// How much of what was read the program has taken.
pub(super) enum Pumped {
    All,
    Blocked,
    /// It has closed its end.
    Refused,
}

impl Input {
    /// EINVAL for what can't be waited for: neither a pipe nor a socket.
    pub(super) fn new(descriptor: OwnedFd) -> Result<Self, Errno> {
        let kind = FileType::from_raw_mode(fstat(&descriptor)?.st_mode);
        if !matches!(kind, FileType::Fifo | FileType::Socket) {
            return Err(Errno::INVAL);
        }
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        Ok(Self {
            descriptor,
            key: None,
            pending: Vec::new(),
            ended: false,
        })
    }

    /// Whether nothing more comes from it.
    pub(super) fn is_done(&self) -> bool {
        self.ended && self.pending.is_empty()
    }

    /// Waits for more of it, or no longer.
    pub(super) fn poll(&mut self, wanted: bool, poller: &mut Poller) -> Result<(), Errno> {
        poller.wait_for_input(wanted, &mut self.key, self.descriptor.as_fd())
    }

    /// Reads once and writes what the program takes.
    pub(super) fn pump(&mut self, target: &OwnedFd) -> Result<Pumped, Errno> {
        if self.pending.is_empty() && !self.ended {
            let mut chunk = [0; 4 << 10];
            let read = rustix::io::retry_on_intr(|| rustix::io::read(&self.descriptor, &mut chunk));
            match read {
                Ok(0) => self.ended = true,
                Ok(length) => self
                    .pending
                    .extend_from_slice(chunk.get(..length).unwrap_or_default()),
                Err(Errno::AGAIN) => {}
                // A client whose end can't be read is as good as gone.
                Err(_errno) => self.ended = true,
            }
        }
        while !self.pending.is_empty() {
            match rustix::io::retry_on_intr(|| rustix::io::write(target, &self.pending)) {
                Ok(written) => drop(self.pending.drain(..written.min(self.pending.len()))),
                Err(Errno::AGAIN) => return Ok(Pumped::Blocked),
                // EPIPE of a pipe, EIO of a terminal.
                Err(Errno::PIPE | Errno::IO) => return Ok(Pumped::Refused),
                Err(errno) => return Err(errno),
            }
        }
        Ok(Pumped::All)
    }
}
