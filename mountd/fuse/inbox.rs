//! What a thread reads requests into.
//!
//! Invariant: of a journaled connection a request is in its thread's slot from when the kernel
//! gives it away until [`clear`](Inbox::clear), so a successor finds it there.

use std::io;

use super::buffer::{Buffer, KEPT};
use super::decode::{Header, Malformed};
use crate::journal::{MAPPED, Slot};

/// Room for one request.
#[derive(Debug)]
pub(super) struct Inbox {
    memory: Memory,
    /// Bytes of the request that is here.
    length: usize,
    /// Whether a dead worker had read it.
    is_left: bool,
}

#[derive(Debug)]
enum Memory {
    /// It ends with the process.
    Private(Buffer),
    /// It outlives the process.
    Journal {
        slot: Slot,
        /// How far it was ever filled since its memory was last given back.
        reached: usize,
    },
}

impl Inbox {
    /// For requests of at most `longest` bytes, which no successor answers.
    pub(super) fn private(longest: usize) -> io::Result<Self> {
        Buffer::new(longest).map(|buffer| Self {
            memory: Memory::Private(buffer),
            length: 0,
            is_left: false,
        })
    }

    /// For requests that a successor can answer.
    pub(super) fn journaled(slot: Slot) -> Self {
        Self {
            memory: Memory::Journal { slot, reached: 0 },
            length: 0,
            is_left: false,
        }
    }

    /// With the request that a dead worker left in `slot`; and its header.
    ///
    /// # Errors
    /// What is there is no request.
    pub(super) fn left(slot: Slot) -> Result<(Self, Header), Malformed> {
        let length = Header::length(slot.bytes())?;
        let mut inbox = Self::journaled(slot);
        inbox.fill(length);
        inbox.is_left = true;
        let header = Header::read(inbox.request())?;
        Ok((inbox, header))
    }

    /// All of it, for a request to be read into; [`fill`](Self::fill) says how much was.
    pub(super) fn room(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Private(buffer) => buffer.bytes(),
            Memory::Journal { slot, .. } => slot.bytes_mut(),
        }
    }

    /// A request of `length` bytes has been read.
    pub(super) fn fill(&mut self, length: usize) {
        self.length = length;
        match &mut self.memory {
            Memory::Private(buffer) => buffer.reach(length),
            Memory::Journal { slot, reached } => {
                *reached = length.max(*reached);
                slot.enter();
            }
        }
    }

    /// The request that is here.
    pub(super) fn request(&self) -> &[u8] {
        let bytes = match &self.memory {
            Memory::Private(buffer) => buffer.read(),
            Memory::Journal { slot, .. } => slot.bytes(),
        };
        bytes.get(..self.length).unwrap_or_default()
    }

    /// Whether a dead worker had read the request, and perhaps done it.
    pub(super) fn is_left(&self) -> bool {
        self.is_left
    }

    /// The part of the journal that it is, if it is.
    pub(super) fn slot(&self) -> Option<&Slot> {
        match &self.memory {
            Memory::Private(_) => None,
            Memory::Journal { slot, .. } => Some(slot),
        }
    }

    /// The request is answered.
    pub(super) fn clear(&mut self) {
        self.is_left = false;
        if let Memory::Journal { slot, .. } = &mut self.memory {
            slot.clear();
        }
    }

    /// Whether it holds memory that a pause should give back.
    pub(super) fn is_large(&self) -> bool {
        match &self.memory {
            Memory::Private(buffer) => buffer.is_large(),
            Memory::Journal { reached, .. } => *reached > KEPT,
        }
    }

    /// Frees the memory of one that [`is_large`](Self::is_large) and has no request.
    pub(super) fn give_back(&mut self) -> io::Result<()> {
        match &mut self.memory {
            Memory::Private(buffer) => buffer.give_back(),
            Memory::Journal { slot, reached } if *reached > KEPT => {
                slot.free_memory(MAPPED)?;
                *reached = 0;
                Ok(())
            }
            Memory::Journal { .. } => Ok(()),
        }
    }
}
