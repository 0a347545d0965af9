//! What a worker's successor needs and the upper does not say: memory that outlives the worker.
//!
//! Keeper and worker of a mount hold a sealed memfd called `cowl-journal`; a worker writes to it by
//! plain stores, so what it wrote is there however it ends. All is in words of 64 bits:
//!
//! ```text
//!   0      512       +1024 slots   +2^24 nodes   +2^26 counts   +2^24 listings
//!   +------+---------+-------------+-------------+--------------+---------------------------+
//!   | head | slots,  | nodes,      | lookups of  | listings,    | requests, 1 MiB and       |
//!   |      | 8 words | 8 words     | lower nodes | 2 words      | 64 KiB each               |
//!   +------+---------+-------------+-------------+--------------+---------------------------+
//!   head      magic, what INIT agreed (0: nothing), ids given to new nodes, whether a table ran
//!             over, whether the worker died by itself, entries of nodes ever used, listings
//!   slot      intent (0: none), its two numbers, deaths
//!   node      id (0: free), then what `overlay::record` says
//!   lookups   16 bits a node, saturated at the greatest
//!   listing   directory of a plain lower, and how many new nodes it gave (32 bits each); a digest
//!             of its names and their nodes
//!   request   the bytes that a thread read from the connection (first word 0: none)
//! ```
//!
//! Invariants: the word that says that an entry is used is written last and cleared first, so an
//! entry that a kill cut off does not count. A thread reads requests into its [`Slot`], so a
//! request is in the journal from when the kernel gives it away until its answer is with the
//! kernel, with what the worker intended.

mod slot;

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate};

use crate::sys::shared::SharedWords;

pub(crate) use slot::{LONGEST_REQUEST, MAPPED, Slot};

const MAGIC: u64 = u64::from_ne_bytes(*b"COWLJRN3");
const NAME: &str = "cowl-journal";

const AGREED: usize = 1;
const CREATED: usize = 2;
const OVERRUN: usize = 3;
const CRASHED: usize = 4;
const END: usize = 5;
const LISTED: usize = 6;
/// A page, so that chunks of nodes are pages.
const HEAD: usize = 512;

/// For each thread, and for each request that a dead worker left.
pub(crate) const SLOTS: usize = 1024;
/// Words of a slot.
const SLOT: usize = 8;
const INTENT: usize = 0;
const DEATHS: usize = 3;

/// Words of a node.
pub(crate) const NODE: usize = 8;
const NODES: usize = 1 << 24;
const FIRST_NODE: usize = HEAD + SLOTS * SLOT;

/// Entries of nodes in 4 KiB, which are freed together.
const NODES_PER_CHUNK: usize = u64::BITS as usize;
/// Chunks without an entry in use that are kept: freeing takes a system call each.
const EMPTY_CHUNKS: usize = 64;

/// Nodes of the lower whose lookups are counted, four of them in a word.
const COUNTED: usize = 1 << 26;
const PER_WORD: usize = 4;
const FIRST_COUNT: usize = FIRST_NODE + NODES * NODE;

/// Words of a listing.
const LISTING: usize = 2;
const LISTINGS: usize = 1 << 24;
const FIRST_LISTING: usize = FIRST_COUNT + COUNTED / PER_WORD;

const WORDS: NonZeroUsize = NonZeroUsize::new(FIRST_LISTING + LISTINGS * LISTING).unwrap();
/// Requests begin at pages, also where those have 64 KiB.
const PAGE: usize = 64 << 10;
const FIRST_REQUEST: usize = (WORDS.get() * size_of::<u64>()).next_multiple_of(PAGE);
const REQUEST: usize = LONGEST_REQUEST.next_multiple_of(PAGE);
const BYTES: usize = FIRST_REQUEST + SLOTS * REQUEST;

thread_local! {
    /// The slot of the request that this thread answers.
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The memory as the keeper makes it. It takes pages as it fills.
pub(crate) fn create() -> io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let memory = File::from(memory);
    memory.set_len(u64::try_from(BYTES).map_err(io::Error::other)?)?;
    memory.write_all_at(&MAGIC.to_ne_bytes(), 0)?;
    rustix::fs::fcntl_add_seals(
        &memory,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(memory.into())
}

/// Whether a successor can serve on after the worker that wrote to `memory`.
pub(crate) fn allows_a_successor(memory: &OwnedFd) -> io::Result<bool> {
    let word = |index| -> io::Result<u64> {
        let mut bytes = [0; 8];
        let read = rustix::io::pread(memory, &mut bytes, (index * size_of::<u64>()) as u64)?;
        if read != bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(u64::from_ne_bytes(bytes))
    };
    Ok(word(AGREED)? != 0 && word(OVERRUN)? == 0)
}

/// Notes that the worker died by what it did, not by another process's SIGKILL: a request may be
/// to blame.
pub(crate) fn note_crash(memory: &OwnedFd) -> io::Result<()> {
    let at = (CRASHED * size_of::<u64>()) as u64;
    rustix::io::pwrite(memory, &1_u64.to_ne_bytes(), at)?;
    Ok(())
}

/// What a request is about to do that a successor could not tell from the upper.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Intent {
    /// A node gets an upper file with this host inode, which may be unable to bear a mark.
    CopyUp { node: u64, host: u64 },
    /// A node loses a name.
    Remove { node: u64 },
    /// The files with these host inodes are exchanged.
    Exchange { from: u64, to: u64 },
    /// An unnamed file becomes the orphan of this number.
    Unnamed { number: u64 },
    /// An attribute is set or removed that was there before, or was not.
    Xattr { existed: bool },
}

impl Intent {
    fn words(self) -> [u64; 3] {
        match self {
            Self::CopyUp { node, host } => [1, node, host],
            Self::Remove { node } => [2, node, 0],
            Self::Exchange { from, to } => [3, from, to],
            Self::Unnamed { number } => [4, number, 0],
            Self::Xattr { existed } => [5, existed.into(), 0],
        }
    }

    fn of(words: [u64; 3]) -> Option<Self> {
        let [kind, one, other] = words;
        Some(match kind {
            1 => Self::CopyUp {
                node: one,
                host: other,
            },
            2 => Self::Remove { node: one },
            3 => Self::Exchange {
                from: one,
                to: other,
            },
            4 => Self::Unnamed { number: one },
            5 => Self::Xattr { existed: one != 0 },
            _ => return None,
        })
    }
}

/// That the names of a directory of a plain lower were numbered.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) struct Listing {
    pub(crate) dir: u32,
    /// How many new nodes there were among its names.
    pub(crate) added: u32,
    /// Of all names and their nodes.
    pub(crate) digest: u64,
}

/// The memory as a worker uses it.
#[derive(Debug)]
pub(crate) struct Journal {
    memory: OwnedFd,
    words: SharedWords,
    /// Slots that no thread has.
    idle: Mutex<Vec<usize>>,
    nodes: Mutex<Entries>,
    is_inherited: bool,
}

/// Which entries of the table of nodes are in use.
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

    /// A free entry, which is in use then.
    fn take_free(&mut self) -> Option<u32> {
        let rest = self.chunks.iter().skip(self.first_free);
        let full = rest.take_while(|used| **used == u64::MAX).count();
        self.first_free += full;
        let used = self.chunks.get(self.first_free).copied().unwrap_or(0);
        let first = u32::try_from(self.first_free * NODES_PER_CHUNK).ok()?;
        let number = first + used.trailing_ones();
        entry_of_node(number)?;
        self.take(number);
        Some(number)
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
    let chunk = number as usize / NODES_PER_CHUNK;
    (chunk, 1 << (number % u64::BITS))
}

impl Journal {
    /// Maps memory made by [`create`], and takes over what a dead worker left.
    pub(crate) fn map(memory: BorrowedFd<'_>) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(memory)?;
        let size = rustix::fs::fstat(memory)?.st_size;
        if !seals.contains(SealFlags::SHRINK) || usize::try_from(size) != Ok(BYTES) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut journal = Self {
            memory: memory.try_clone_to_owned()?,
            is_inherited: false,
            words: SharedWords::map(memory, WORDS)?,
            idle: Mutex::new((0..SLOTS).rev().collect()),
            nodes: Mutex::default(),
        };
        if journal.get(0) != MAGIC {
            return Err(io::ErrorKind::InvalidData.into());
        }
        journal.is_inherited = journal.agreed().is_some();
        Ok(journal)
    }

    /// Whether a dead worker served before.
    pub(crate) fn is_inherited(&self) -> bool {
        self.is_inherited
    }

    fn word(&self, index: usize) -> Option<&AtomicU64> {
        self.words.words().get(index)
    }

    fn get(&self, index: usize) -> u64 {
        self.word(index)
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn set(&self, index: usize, value: u64) {
        if let Some(word) = self.word(index) {
            word.store(value, Ordering::Release);
        }
    }

    /// What INIT agreed, as [`set_agreed`](Self::set_agreed) was told; None: there was no worker
    /// before.
    pub(crate) fn agreed(&self) -> Option<u64> {
        Some(self.get(AGREED)).filter(|agreed| *agreed != 0)
    }

    /// From here on a successor can serve the connection. `agreed` is not 0.
    pub(crate) fn set_agreed(&self, agreed: u64) {
        self.set(AGREED, agreed);
    }

    /// How many ids were ever given to new nodes.
    pub(crate) fn created(&self) -> u64 {
        self.get(CREATED)
    }

    pub(crate) fn set_created(&self, created: u64) {
        self.set(CREATED, created);
    }

    /// Notes what the request that this thread answers is about to do.
    pub(crate) fn intend(&self, intent: Intent) {
        let Some(slot) = CURRENT.get() else { return };
        let entry = entry_of_slot(slot);
        let [kind, one, other] = intent.words();
        self.set(entry + INTENT, 0);
        self.set(entry + INTENT + 1, one);
        self.set(entry + INTENT + 2, other);
        self.set(entry + INTENT, kind);
    }

    fn intent_of(&self, slot: usize) -> Option<Intent> {
        let entry = entry_of_slot(slot);
        Intent::of([0, 1, 2].map(|word| self.get(entry + INTENT + word)))
    }

    /// What dead workers intended, whether it was answered or not.
    pub(crate) fn intents(&self) -> Vec<Intent> {
        let slots = 0..SLOTS;
        slots.filter_map(|slot| self.intent_of(slot)).collect()
    }

    /// Entries of nodes that dead workers left, with their numbers. They stay in use.
    pub(crate) fn inherited_nodes(&self) -> Vec<(u32, [u64; NODE])> {
        let mut nodes = self.nodes.lock();
        let mut inherited = Vec::new();
        for number in 0..u32::try_from(self.get(END)).unwrap_or(0) {
            let Some(start) = entry_of_node(number) else {
                break;
            };
            if self.get(start) != 0 {
                nodes.take(number);
                inherited.push((number, std::array::from_fn(|word| self.get(start + word))));
            }
        }
        inherited
    }

    /// Writes a node's words to its entry, or to a new one. None: there are no more.
    pub(crate) fn write_node(&self, entry: Option<u32>, words: &[u64; NODE]) -> Option<u32> {
        let number = entry.or_else(|| self.new_entry())?;
        let start = entry_of_node(number)?;
        // The flags say what the rest means, and the id that there is something.
        for offset in [7, 6, 5, 4, 2, 1, 3, 0] {
            self.set(start + offset, words.get(offset).copied().unwrap_or(0));
        }
        Some(number)
    }

    fn new_entry(&self) -> Option<u32> {
        let mut nodes = self.nodes.lock();
        let Some(number) = nodes.take_free() else {
            self.overrun();
            return None;
        };
        let end = u64::from(number) + 1;
        if end > self.get(END) {
            self.set(END, end);
        }
        Some(number)
    }

    fn overrun(&self) {
        if self.get(OVERRUN) == 0 {
            tracing::warn!("the journal is full: the mount does not outlive this worker");
        }
        self.set(OVERRUN, 1);
    }

    /// Notes a listing, after all that were noted before. The caller has one noted at a time, and
    /// tells nobody of the new nodes before.
    pub(crate) fn note_listing(&self, listing: Listing) {
        let listed = self.get(LISTED);
        let Some(start) = entry_of_listing(listed) else {
            return self.overrun();
        };
        let Listing { dir, added, digest } = listing;
        self.set(start, u64::from(dir) | u64::from(added) << u32::BITS);
        self.set(start + 1, digest);
        self.set(LISTED, listed + 1);
    }

    /// What dead workers listed, in order.
    pub(crate) fn listings(&self) -> impl Iterator<Item = Listing> {
        (0..self.get(LISTED))
            .map_while(entry_of_listing)
            .map(|start| {
                let first = self.get(start);
                let half = |word| u32::try_from(word & u64::from(u32::MAX)).unwrap_or_default();
                Listing {
                    dir: half(first),
                    added: half(first >> u32::BITS),
                    digest: self.get(start + 1),
                }
            })
    }

    /// Changes one word of a node's entry, but for the first.
    pub(crate) fn set_node_word(&self, entry: u32, word: usize, value: u64) {
        if let Some(start) = entry_of_node(entry) {
            self.set(start + word, value);
        }
    }

    /// Updates the lookup count of a lower node, if it is counted here.
    pub(crate) fn update_lookups(&self, node: u32, change: impl Fn(u16) -> u16) {
        let Some((word, shift)) = self.count_of(node) else {
            return;
        };
        let update = |counts: u64| {
            let count = change(lane(counts, shift));
            counts & !(0xffff << shift) | u64::from(count) << shift
        };
        word.update(Ordering::AcqRel, Ordering::Acquire, update);
    }

    /// How often a node of the lower was looked up; None: it is not counted here.
    pub(crate) fn lookups(&self, node: u32) -> Option<u16> {
        let (word, shift) = self.count_of(node)?;
        Some(lane(word.load(Ordering::Acquire), shift))
    }

    fn count_of(&self, node: u32) -> Option<(&AtomicU64, u32)> {
        let number = usize::try_from(node).ok().filter(|node| *node < COUNTED)?;
        let word = self.word(FIRST_COUNT + number / PER_WORD)?;
        Some((word, node % 4 * 16))
    }

    /// Frees a node's entry.
    pub(crate) fn clear_node(&self, entry: u32) {
        if let Some(start) = entry_of_node(entry) {
            self.set(start, 0);
            // Under the lock: no entry of a chunk is given out while it is freed.
            let mut nodes = self.nodes.lock();
            for chunk in nodes.give_back(entry) {
                self.free_chunk(chunk);
            }
        }
    }

    /// Gives a chunk's memory back. Its words are 0 then, as they are of free entries.
    fn free_chunk(&self, chunk: usize) {
        let words = FIRST_NODE + chunk * NODES_PER_CHUNK * NODE;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (start, length) = (
            words * size_of::<u64>(),
            NODES_PER_CHUNK * NODE * size_of::<u64>(),
        );
        if let Err(error) = fallocate(&self.memory, flags, start as u64, length as u64) {
            tracing::warn!(%error, "the journal keeps memory that it does not need");
        }
    }
}

fn lane(counts: u64, shift: u32) -> u16 {
    let [low, high, ..] = (counts >> shift).to_le_bytes();
    u16::from_le_bytes([low, high])
}

fn entry_of_slot(number: usize) -> usize {
    HEAD + number * SLOT
}

fn entry_of_node(number: u32) -> Option<usize> {
    let number = usize::try_from(number).ok()?;
    (number < NODES).then_some(FIRST_NODE + number * NODE)
}

fn entry_of_listing(number: u64) -> Option<usize> {
    let number = usize::try_from(number).ok()?;
    (number < LISTINGS).then_some(FIRST_LISTING + number * LISTING)
}

#[cfg(test)]
mod tests;
