//! Slots: each thread's part of the journal, which has the request that it answers.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use rustix::fs::{FallocateFlags, fallocate};

use super::{
    CRASHED, CURRENT, DEATHS, FIRST_REQUEST, INTENT, Intent, Journal, REQUEST, SLOTS, entry_of_slot,
};
use crate::sys::shared::OutlivingBytes;

/// Bytes of the longest request: a write of 1 MiB and its headers.
pub(crate) const LONGEST_REQUEST: usize = (1 << 20) + 4096;

/// Bytes that are always mapped. A thread that is killed while it reads a request takes it all the
/// same, but maps no page any more: its client would get EIO (`fuse_dev_do_read` in
/// fs/fuse/dev.c). Only longer requests meet with that, if they are the first so long in a slot.
pub(crate) const MAPPED: usize = 16 << 10;

/// A request that was under way at so many crashes of a worker is answered with EIO.
const FATAL: u64 = 2;

/// A thread's part of the journal. A request that is there when the worker dies is its successor's
/// to answer, unless the kernel has the answer.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(super) journal: Arc<Journal>,
    pub(super) number: usize,
    bytes: OutlivingBytes,
}

impl Journal {
    /// A slot that no thread has, without a request.
    pub(crate) fn free_slot(self: &Arc<Self>) -> io::Result<Slot> {
        let number = self.idle.lock().pop();
        let number =
            number.ok_or_else(|| io::Error::other("every slot of the journal is in use"))?;
        Slot::new(self, number)
    }

    /// The slots in which dead workers left a request, whether it was answered or not. No slot may
    /// have been given out before.
    pub(crate) fn left_slots(self: &Arc<Self>) -> io::Result<Vec<Slot>> {
        let mut left = Vec::new();
        for number in 0..SLOTS {
            let mut first = [0; size_of::<u64>()];
            rustix::io::pread(&self.memory, &mut first, offset_of(number))?;
            if first != [0; size_of::<u64>()] {
                left.push(number);
            }
        }
        self.idle.lock().retain(|number| !left.contains(number));
        let crashed = self.get(CRASHED);
        for number in &left {
            let deaths = entry_of_slot(*number) + DEATHS;
            self.set(deaths, self.get(deaths) + crashed);
        }
        self.set(CRASHED, 0);
        let slots = left.into_iter().map(|number| Slot::new(self, number));
        slots.collect()
    }
}

impl Slot {
    fn new(journal: &Arc<Journal>, number: usize) -> io::Result<Self> {
        let length = NonZeroUsize::new(LONGEST_REQUEST).ok_or(io::ErrorKind::InvalidData)?;
        let mut bytes = OutlivingBytes::map(journal.memory.as_fd(), offset_of(number), length)?;
        bytes.populate(MAPPED);
        Ok(Self {
            journal: Arc::clone(journal),
            number,
            bytes,
        })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.bytes()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes.bytes_mut()
    }

    /// What this thread intends from here on is that of the request in this slot.
    pub(crate) fn enter(&self) {
        CURRENT.set(Some(self.number));
    }

    /// What a dead worker intended.
    pub(crate) fn intent(&self) -> Option<Intent> {
        self.journal.intent_of(self.number)
    }

    /// Whether workers died of this request, as often as is tried.
    pub(crate) fn is_fatal(&self) -> bool {
        self.journal.get(entry_of_slot(self.number) + DEATHS) >= FATAL
    }

    /// Forgets the request, which is answered.
    pub(crate) fn clear(&mut self) {
        let entry = entry_of_slot(self.number);
        self.journal.set(entry + INTENT, 0);
        self.journal.set(entry + DEATHS, 0);
        // Last: a slot without a request has no intent, also if the worker is killed here.
        compiler_fence(Ordering::SeqCst);
        if let Some(first) = self.bytes_mut().first_chunk_mut() {
            *first = [0; size_of::<u64>()];
        }
    }

    /// Gives the memory of the bytes from `start` on back. They are 0 then.
    pub(crate) fn free_memory(&mut self, start: usize) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let memory = &self.journal.memory;
        let length = REQUEST.saturating_sub(start) as u64;
        fallocate(memory, flags, offset_of(self.number) + start as u64, length)?;
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.clear();
        if let Err(error) = self.free_memory(0) {
            tracing::warn!(%error, "the journal keeps memory that it does not need");
        }
        if CURRENT.get() == Some(self.number) {
            CURRENT.set(None);
        }
        self.journal.idle.lock().push(self.number);
    }
}

fn offset_of(number: usize) -> u64 {
    (FIRST_REQUEST + number * REQUEST) as u64
}
