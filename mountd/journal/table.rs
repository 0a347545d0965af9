//! Tables of the journal: entries of eight words, in use as long as the first one is not 0.
//!
//! An entry's first word is written last and cleared first, so an entry that a kill cut off does
//! not count.

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate};

use super::{
    BACKING_IDS, BACKING_IDS_END, FIRST_BACKING_ID, FIRST_NODE, FIRST_OPEN, Journal, NODES,
    NODES_END, OPENS, OPENS_END,
};

/// Words of an entry.
pub(crate) const ENTRY: usize = 8;

/// Entries in 4 KiB, which are freed together.
const PER_CHUNK: usize = u64::BITS as usize;
/// Chunks without an entry in use that are kept: freeing takes a system call each.
const EMPTY_CHUNKS: usize = 64;

/// Which table.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Table {
    /// Of nodes: the id, then what `overlay::record` says.
    Nodes,
    /// Of open files in passthrough: the handle, then what `overlay::opens` says.
    Opens,
    /// Of files that the kernel reads and writes itself: the id, then what `fuse::backing` says.
    BackingIds,
}

impl Table {
    /// Where its first entry is.
    const fn first(self) -> usize {
        match self {
            Self::Nodes => FIRST_NODE,
            Self::Opens => FIRST_OPEN,
            Self::BackingIds => FIRST_BACKING_ID,
        }
    }

    const fn capacity(self) -> usize {
        match self {
            Self::Nodes => NODES,
            Self::Opens => OPENS,
            Self::BackingIds => BACKING_IDS,
        }
    }

    /// The word of the head that has the number of entries ever used.
    const fn end(self) -> usize {
        match self {
            Self::Nodes => NODES_END,
            Self::Opens => OPENS_END,
            Self::BackingIds => BACKING_IDS_END,
        }
    }

    /// Where an entry is.
    pub(super) fn entry(self, number: u32) -> Option<usize> {
        let number = usize::try_from(number).ok()?;
        (number < self.capacity()).then_some(self.first() + number * ENTRY)
    }
}

/// Which entries of the tables are in use.
#[derive(Debug, Default)]
pub(super) struct Used {
    nodes: Mutex<Entries>,
    opens: Mutex<Entries>,
    backing_ids: Mutex<Entries>,
}

impl Used {
    fn of(&self, table: Table) -> &Mutex<Entries> {
        match table {
            Table::Nodes => &self.nodes,
            Table::Opens => &self.opens,
            Table::BackingIds => &self.backing_ids,
        }
    }
}

#[derive(Debug, Default)]
struct Entries {
    /// A bit an entry.
    chunks: Vec<u64>,
    /// No chunk before this one has a free entry.
    first_free: usize,
    /// Chunks that have memory and no entry in use.
    empty: Vec<usize>,
}

impl Entries {
    fn take(&mut self, number: u32) {
        let (chunk, bit) = chunk_of(number);
        if chunk >= self.chunks.len() {
            self.chunks.resize(chunk + 1, 0);
        }
        if let Some(used) = self.chunks.get_mut(chunk) {
            *used |= bit;
        }
    }

    /// The first free entry, which there may be no room for.
    fn first_free(&mut self) -> Option<u32> {
        let rest = self.chunks.iter().skip(self.first_free);
        let full = rest.take_while(|used| **used == u64::MAX).count();
        self.first_free += full;
        let used = self.chunks.get(self.first_free).copied().unwrap_or(0);
        let first = u32::try_from(self.first_free * PER_CHUNK).ok()?;
        Some(first + used.trailing_ones())
    }

    /// Frees an entry. The chunks whose memory is to be given back, if there are enough.
    fn give_back(&mut self, number: u32) -> Vec<usize> {
        let (chunk, bit) = chunk_of(number);
        let Some(used) = self.chunks.get_mut(chunk) else {
            return Vec::new();
        };
        *used &= !bit;
        self.first_free = self.first_free.min(chunk);
        if *used == 0 {
            self.empty.push(chunk);
        }
        if self.empty.len() < EMPTY_CHUNKS {
            return Vec::new();
        }
        let mut empty = std::mem::take(&mut self.empty);
        empty.retain(|chunk| self.chunks.get(*chunk) == Some(&0));
        empty.sort_unstable();
        empty.dedup();
        empty
    }
}

/// The chunk of an entry, and its bit there.
fn chunk_of(number: u32) -> (usize, u64) {
    let chunk = number as usize / PER_CHUNK;
    (chunk, 1 << (number % u64::BITS))
}

impl Journal {
    /// Entries that dead workers left, with their numbers. They stay in use.
    pub(crate) fn inherited(&self, table: Table) -> Vec<(u32, [u64; ENTRY])> {
        let mut used = self.used.of(table).lock();
        let mut inherited = Vec::new();
        for number in 0..u32::try_from(self.get(table.end())).unwrap_or(0) {
            let Some(start) = table.entry(number) else {
                break;
            };
            if self.get(start) != 0 {
                used.take(number);
                inherited.push((number, std::array::from_fn(|word| self.get(start + word))));
            }
        }
        inherited
    }

    /// Writes to an entry, or to a new one. None: there are no more.
    pub(crate) fn write(
        &self,
        table: Table,
        entry: Option<u32>,
        words: &[u64; ENTRY],
    ) -> Option<u32> {
        let number = entry.or_else(|| self.new_entry(table))?;
        let start = table.entry(number)?;
        // Of a node, the flags say what the rest means.
        for offset in [7, 6, 5, 4, 2, 1, 3, 0] {
            self.set(start + offset, words.get(offset).copied().unwrap_or(0));
        }
        Some(number)
    }

    fn new_entry(&self, table: Table) -> Option<u32> {
        let mut used = self.used.of(table).lock();
        let free = used.first_free();
        let Some(number) = free.filter(|number| table.entry(*number).is_some()) else {
            self.overrun();
            return None;
        };
        used.take(number);
        let end = u64::from(number) + 1;
        if end > self.get(table.end()) {
            self.set(table.end(), end);
        }
        Some(number)
    }

    /// Changes one word of an entry, but for the first.
    pub(crate) fn set_entry_word(&self, table: Table, entry: u32, word: usize, value: u64) {
        if let Some(start) = table.entry(entry) {
            self.set(start + word, value);
        }
    }

    /// Frees an entry.
    pub(crate) fn clear(&self, table: Table, entry: u32) {
        if let Some(start) = table.entry(entry) {
            self.set(start, 0);
            // Under the lock: no entry of a chunk is given out while it is freed.
            let mut used = self.used.of(table).lock();
            for chunk in used.give_back(entry) {
                self.free_chunk(table, chunk);
            }
        }
    }

    /// Gives a chunk's memory back. Its words are 0 then, as they are of free entries.
    fn free_chunk(&self, table: Table, chunk: usize) {
        let words = table.first() + chunk * PER_CHUNK * ENTRY;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (start, length) = (
            words * size_of::<u64>(),
            PER_CHUNK * ENTRY * size_of::<u64>(),
        );
        if let Err(error) = fallocate(&self.memory, flags, start as u64, length as u64) {
            tracing::warn!(%error, "the journal keeps memory that it does not need");
        }
    }
}
