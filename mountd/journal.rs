//! What a worker's successor needs and the upper does not say: memory that outlives the worker.
//!
//! Keeper and worker of a mount hold a sealed memfd called `cowl-journal`; a worker writes to it by
//! plain stores, so what it wrote is there however it ends. All is in words of 64 bits:
//!
//! ```text
//!   0      512       +1024 slots   +2^24 nodes   +2^26 counts   +2^24 listings
//!   +------+---------+-------------+-------------+--------------+---
//!   | head | slots,  | nodes,      | lookups of  | listings,    |
//!   |      | 8 words | 8 words     | lower nodes | 2 words      |
//!   +------+---------+-------------+-------------+--------------+---
//!            +2^20 open files   +2^20 backing ids
//!   ---+----------------------+-------------------+-----------------------------+
//!      | open files, 8 words  | backing ids,      | requests, 1 MiB and 64 KiB  |
//!      |                      | 8 words           | each                        |
//!   ---+----------------------+-------------------+-----------------------------+
//!   head      magic, what INIT agreed (0: nothing), ids given to new nodes, whether a table ran
//!             over, whether the worker died by itself, listings, the last handle and the last
//!             backing id given, entries ever used of nodes, open files and backing ids
//!   slot      intent (0: none), its two numbers, deaths
//!   node      id (0: free), then what `overlay::record` says
//!   open      handle (0: free), then what `overlay::opens` says
//!   backing   id (0: free), then what `fuse::backing` says
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
mod table;

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, SealFlags};

use crate::sys::shared::SharedWords;

pub(crate) use slot::{LONGEST_REQUEST, MAPPED, Slot};
pub(crate) use table::{ENTRY, Table};

use table::Used;

const MAGIC: u64 = u64::from_ne_bytes(*b"COWLJRN4");
const NAME: &str = "cowl-journal";

const AGREED: usize = 1;
const CREATED: usize = 2;
const OVERRUN: usize = 3;
const CRASHED: usize = 4;
const LISTED: usize = 5;
const LAST_HANDLE: usize = 6;
const LAST_BACKING_ID: usize = 7;
const NODES_END: usize = 8;
const OPENS_END: usize = 9;
const BACKING_IDS_END: usize = 10;
/// A page, so that chunks of nodes are pages.
const HEAD: usize = 512;

/// For each thread, and for each request that a dead worker left.
pub(crate) const SLOTS: usize = 1024;
/// Words of a slot.
const SLOT: usize = 8;
const INTENT: usize = 0;
const DEATHS: usize = 3;

const NODES: usize = 1 << 24;
const FIRST_NODE: usize = HEAD + SLOTS * SLOT;

/// Nodes of the lower whose lookups are counted, four of them in a word.
const COUNTED: usize = 1 << 26;
const PER_WORD: usize = 4;
const FIRST_COUNT: usize = FIRST_NODE + NODES * ENTRY;

/// Words of a listing.
const LISTING: usize = 2;
const LISTINGS: usize = 1 << 24;
const FIRST_LISTING: usize = FIRST_COUNT + COUNTED / PER_WORD;

const OPENS: usize = 1 << 20;
const FIRST_OPEN: usize = FIRST_LISTING + LISTINGS * LISTING;

const BACKING_IDS: usize = 1 << 20;
const FIRST_BACKING_ID: usize = FIRST_OPEN + OPENS * ENTRY;

const WORDS: NonZeroUsize = NonZeroUsize::new(FIRST_BACKING_ID + BACKING_IDS * ENTRY).unwrap();
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
    /// A file is opened in passthrough, with this handle.
    Open { handle: u64 },
}

impl Intent {
    fn words(self) -> [u64; 3] {
        match self {
            Self::CopyUp { node, host } => [1, node, host],
            Self::Remove { node } => [2, node, 0],
            Self::Exchange { from, to } => [3, from, to],
            Self::Unnamed { number } => [4, number, 0],
            Self::Xattr { existed } => [5, existed.into(), 0],
            Self::Open { handle } => [6, handle, 0],
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
            6 => Self::Open { handle: one },
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
    used: Used,
    is_inherited: bool,
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
            used: Used::default(),
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

    /// The last handle given to an open file.
    pub(crate) fn last_handle(&self) -> u64 {
        self.get(LAST_HANDLE)
    }

    pub(crate) fn set_last_handle(&self, handle: u64) {
        self.set(LAST_HANDLE, handle);
    }

    /// The last backing id that the kernel gave; 0: none.
    pub(crate) fn last_backing_id(&self) -> u32 {
        u32::try_from(self.get(LAST_BACKING_ID)).unwrap_or(0)
    }

    pub(crate) fn set_last_backing_id(&self, id: u32) {
        self.set(LAST_BACKING_ID, id.into());
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
}

fn lane(counts: u64, shift: u32) -> u16 {
    let [low, high, ..] = (counts >> shift).to_le_bytes();
    u16::from_le_bytes([low, high])
}

fn entry_of_slot(number: usize) -> usize {
    HEAD + number * SLOT
}

fn entry_of_listing(number: u64) -> Option<usize> {
    let number = usize::try_from(number).ok()?;
    (number < LISTINGS).then_some(FIRST_LISTING + number * LISTING)
}

#[cfg(test)]
mod tests;
