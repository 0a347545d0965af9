//! Bytes of an answer.
//!
//! Invariant: a [`Reply`] is one buffer for the life of its thread; the header comes first and the
//! payload behind it, so an answer is one write and nothing is moved. What does not fit is an
//! error before anything is written, never a short answer.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use cowl_core::tree::{FileType, Rdev};

use super::buffer::Buffer;
use super::negotiate::MAX_WRITE;
use super::wire;
use crate::overlay::{Attr, DirEntry, Entry, Statfs};

/// How long the kernel may believe an entry, its absence, or attributes, in seconds: for good (136
/// years). All changes come as requests.
pub(super) const FOR_GOOD: u64 = 1 << 32;

const HEADER: usize = size_of::<wire::OutHeader>();
/// The longest payload is a READ of the greatest size.
const CAPACITY: usize = HEADER + MAX_WRITE as usize;

/// An answer in the making.
#[derive(Debug)]
pub(super) struct Reply {
    buffer: Buffer,
    /// How far `buffer` is filled.
    length: usize,
}

impl Reply {
    /// Room for the longest answer.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            buffer: Buffer::new(CAPACITY)?,
            length: HEADER,
        })
    }

    /// The memory behind it; between answers it may be given back.
    pub(super) fn buffer(&mut self) -> &mut Buffer {
        &mut self.buffer
    }

    /// Starts over.
    pub(super) fn clear(&mut self) {
        self.length = HEADER;
    }

    /// Adds a struct to the payload.
    pub(super) fn put(&mut self, it: &(impl IntoBytes + Immutable)) -> Result<(), Errno> {
        self.put_bytes(it.as_bytes())
    }

    /// Adds bytes to the payload.
    pub(super) fn put_bytes(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        let end = self.length + bytes.len();
        self.buffer
            .bytes()
            .get_mut(self.length..end)
            .ok_or(Errno::RANGE)?
            .copy_from_slice(bytes);
        self.length = end;
        Ok(())
    }

    /// Room for `size` bytes of payload; [`filled`](Self::filled) says how many of them count.
    pub(super) fn room(&mut self, size: u32) -> Result<&mut [u8], Errno> {
        let size = usize::try_from(size).map_err(|_beyond_usize| Errno::INVAL)?;
        self.buffer
            .bytes()
            .get_mut(self.length..self.length + size)
            .ok_or(Errno::INVAL)
    }

    /// The first `count` bytes of the room are payload.
    pub(super) fn filled(&mut self, count: usize) {
        self.length = (self.length + count).min(CAPACITY);
    }

    /// Bytes of payload.
    pub(super) fn payload(&self) -> usize {
        self.length - HEADER
    }

    /// Adds a directory's entry if it fits in `limit` bytes of payload; a plain one, or one with
    /// its node.
    pub(super) fn put_entry(
        &mut self,
        entry: &DirEntry<'_>,
        limit: usize,
        plus: bool,
    ) -> Result<bool, Errno> {
        let node = if plus { size_of::<wire::EntryOut>() } else { 0 };
        let unpadded = node + size_of::<wire::Dirent>() + entry.name.len();
        let padded = unpadded.next_multiple_of(size_of::<u64>());
        if self.payload() + padded > limit {
            return Ok(false);
        }
        if plus {
            // Without a node (of `.` and `..`) the kernel takes the name alone.
            self.put(&entry.entry.as_ref().map(entry_out).unwrap_or_default())?;
        }
        let namelen = u32::try_from(entry.name.len()).map_err(|_beyond_u32| Errno::NAMETOOLONG)?;
        let kind = entry.file_type.dirent_type().into();
        self.put(&wire::Dirent {
            ino: entry.ino,
            off: entry.cookie,
            namelen,
            kind,
        })?;
        self.put_bytes(entry.name)?;
        self.put_bytes([0; 7].get(..padded - unpadded).ok_or(Errno::IO)?)?;
        Ok(true)
    }

    /// Sends the answer: the payload, or an error without one.
    pub(super) fn send(
        &mut self,
        device: BorrowedFd<'_>,
        unique: u64,
        outcome: Result<(), Errno>,
    ) -> io::Result<()> {
        let error = match outcome {
            Ok(()) => 0,
            Err(errno) => {
                self.clear();
                -errno.raw_os_error()
            }
        };
        let len = u32::try_from(self.length).map_err(io::Error::other)?;
        let header = wire::OutHeader { len, error, unique };
        if let Some(room) = self.buffer.bytes().get_mut(..HEADER) {
            room.copy_from_slice(header.as_bytes());
        }
        let whole = self
            .buffer
            .filled(self.length)
            .ok_or(io::ErrorKind::InvalidData)?;
        // The kernel takes an answer whole or not at all.
        rustix::io::retry_on_intr(|| rustix::io::write(device, whole))?;
        Ok(())
    }
}

/// Whether the kernel waits for the answer of the request `unique`.
///
/// An answer to the request's INTERRUPT tells: one without an error changes nothing, and the kernel
/// refuses it (ENOENT) if there is no such request any more. A connection that has ended waits for
/// none, as the next read says.
pub(super) fn is_awaited(device: BorrowedFd<'_>, unique: u64) -> io::Result<bool> {
    let header = wire::OutHeader {
        len: u32::try_from(HEADER).map_err(io::Error::other)?,
        error: 0,
        unique: unique | wire::UNIQUE_INTERRUPT,
    };
    match rustix::io::retry_on_intr(|| rustix::io::write(device, header.as_bytes())) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NODEV | Errno::NOTCONN | Errno::PERM) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// `dev_t` as the protocol has it: the kernel's `new_encode_dev`.
pub(super) const fn encode_rdev(rdev: Rdev) -> u32 {
    (rdev.minor & 0xff) | (rdev.major << 8) | ((rdev.minor & !0xff) << 12)
}

/// The inverse of [`encode_rdev`].
pub(super) const fn decode_rdev(rdev: u32) -> Rdev {
    Rdev {
        major: (rdev >> 8) & 0xfff,
        minor: (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00),
    }
}

fn attr_body(attr: &Attr) -> wire::AttrBody {
    let rdev = match attr.file_type {
        FileType::CharDevice | FileType::BlockDevice => encode_rdev(attr.rdev),
        _ => 0,
    };
    wire::AttrBody {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime.secs,
        mtime: attr.mtime.secs,
        ctime: attr.ctime.secs,
        atimensec: attr.atime.nanos,
        mtimensec: attr.mtime.nanos,
        ctimensec: attr.ctime.nanos,
        mode: attr.file_type.to_mode_bits() | attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// A name's node.
pub(super) fn entry_out(entry: &Entry) -> wire::EntryOut {
    wire::EntryOut {
        nodeid: entry.id.0,
        // Ids are never used twice, so the generation never changes.
        generation: 0,
        entry_valid: FOR_GOOD,
        attr_valid: if entry.settled { FOR_GOOD } else { 0 },
        entry_valid_nsec: 0,
        attr_valid_nsec: 0,
        attr: attr_body(&entry.attr),
    }
}

/// A name that is not there, which the kernel may remember.
pub(super) fn absent() -> wire::EntryOut {
    wire::EntryOut {
        entry_valid: FOR_GOOD,
        ..wire::EntryOut::default()
    }
}

/// A node's attributes, to be believed for `valid` seconds.
pub(super) fn attr_out(attr: &Attr, valid: u64) -> wire::AttrOut {
    wire::AttrOut {
        attr_valid: valid,
        attr_valid_nsec: 0,
        dummy: 0,
        attr: attr_body(attr),
    }
}

/// A filesystem's sizes; what exceeds 32 bits is said as the greatest.
pub(super) fn statfs_out(statfs: &Statfs) -> wire::StatfsOut {
    let block = u32::try_from(statfs.block_size).unwrap_or(u32::MAX);
    wire::StatfsOut {
        blocks: statfs.blocks,
        bfree: statfs.blocks_free,
        bavail: statfs.blocks_available,
        files: statfs.files,
        ffree: statfs.files_free,
        bsize: block,
        namelen: u32::try_from(statfs.name_max).unwrap_or(u32::MAX),
        frsize: block,
        padding: 0,
        spare: [0; 6],
    }
}

#[cfg(test)]
mod tests;
