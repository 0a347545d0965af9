//! Requests on files: OPEN, CREATE's open, LSEEK and COPY_FILE_RANGE, and the flags of these.

use std::sync::Arc;

use rustix::io::Errno;

use super::decode::CopyRange;
use super::dispatch::{Dispatcher, put_size};
use super::notify;
use super::reply::{self, Reply};
use super::wire::{self, fopen};
use crate::overlay::{CopyEnd, Entry, HandleId, NodeId, OpenFlags, OpenMode, Opened, Seek};

impl Dispatcher<'_> {
    pub(super) fn open(
        &self,
        node: NodeId,
        flags: u32,
        kill_priv: bool,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        if self.skip_open {
            return Err(Errno::NOSYS);
        }
        let opened = self
            .overlay
            .open(node, open_flags(flags, kill_priv))
            .inspect_err(|errno| self.note_stale(node, *errno))?;
        let open = self.open_out(node, &opened)?;
        if opened.unsettles {
            self.invalidate_attributes(node);
        }
        reply.put(&open)
    }

    pub(super) fn created(
        &self,
        entry: &Entry,
        opened: &Opened,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let open = self
            .open_out(entry.id, opened)
            .inspect_err(|_| self.overlay.forget(entry.id, 1))?;
        reply.put(&wire::CreateOut {
            entry: reply::entry_out(entry),
            open,
        })
    }

    /// The answer to an open; on an error the handle is released again.
    fn open_out(&self, node: NodeId, opened: &Opened) -> Result<wire::OpenOut, Errno> {
        let fh = opened.handle.0;
        match &opened.mode {
            OpenMode::Cached => Ok(wire::OpenOut {
                fh,
                open_flags: fopen::KEEP_CACHE,
                backing_id: 0,
            }),
            // Together with KEEP_CACHE the kernel refuses the open: there is no cache of ours.
            OpenMode::Passthrough(backing) => {
                let open = || match &backing.file {
                    Some(file) => Ok(Arc::clone(file)),
                    None => self.overlay.backing_file(node),
                };
                match self.backing.acquire(self.device, node, open, backing.side) {
                    Ok(backing_id) => Ok(wire::OpenOut {
                        fh,
                        open_flags: fopen::PASSTHROUGH,
                        backing_id,
                    }),
                    Err(error) => {
                        tracing::error!(node = node.0, %error, "a file cannot be handed to the kernel");
                        self.overlay.release(node, opened.handle)?;
                        Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
                    }
                }
            }
        }
    }

    pub(super) fn release(&self, node: NodeId, handle: u64) -> Result<(), Errno> {
        self.backing.release(self.device, node);
        handle_of(handle).map_or(Ok(()), |handle| self.overlay.release(node, handle))
    }

    pub(super) fn lseek(
        &self,
        node: NodeId,
        handle: u64,
        offset: u64,
        whence: u32,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        if self.skip_seek {
            return Err(Errno::NOSYS);
        }
        let (handle, seek) = (handle_of(handle), seek(whence)?);
        let seek_once = || self.overlay.lseek(node, handle, offset, seek);
        let mut found = seek_once();
        if self.skip_open && self.is_beside_a_hole(node, offset, seek, found)? {
            self.write_back(node);
            found = seek_once();
        }
        reply.put(&wire::LseekOut { offset: found? })
    }

    /// Whether an answer to `LSEEK` tells of a hole. Where the kernel caches pages, it may hold
    /// some that were written through a shared mapping, and does not write them back before it
    /// asks.
    fn is_beside_a_hole(
        &self,
        node: NodeId,
        offset: u64,
        seek: Seek,
        found: Result<u64, Errno>,
    ) -> Result<bool, Errno> {
        if !self.overlay.is_writable() {
            return Ok(false);
        }
        Ok(match (seek, found) {
            (Seek::Data, Ok(data)) => data != offset,
            (Seek::Data, Err(errno)) => errno == Errno::NXIO,
            (Seek::Hole, Ok(hole)) => hole < self.overlay.getattr(node)?.size,
            (Seek::Hole, Err(_)) => false,
        })
    }

    /// Has the kernel write a node's dirty pages to us, and drop them. The requests come while this
    /// waits, so the caller holds no lock.
    fn write_back(&self, node: NodeId) {
        if let Err(error) = notify::write_back(self.device, node) {
            tracing::warn!(node = node.0, %error, "data in a mapping may be taken for a hole");
        }
    }

    pub(super) fn copy_file_range(
        &self,
        node: NodeId,
        range: &CopyRange,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        if range.flags != 0 {
            return Err(Errno::INVAL);
        }
        let from = CopyEnd {
            node,
            handle: handle_of(range.handle_in),
            offset: range.offset_in,
        };
        let to = CopyEnd {
            node: NodeId(range.node_out),
            handle: handle_of(range.handle_out),
            offset: range.offset_out,
        };
        put_size(self.overlay.copy_file_range(from, to, range.length)?, reply)
    }
}

/// A file that was never opened, since OPEN was answered ENOSYS, has handle 0; the overlay gives
/// no such handle.
pub(super) fn handle_of(handle: u64) -> Option<HandleId> {
    (handle != 0).then_some(HandleId(handle))
}

/// Calls `write` until all of `data` is written, or nothing more can be and it says why.
pub(super) fn write_whole(
    data: &[u8],
    offset: u64,
    write: impl Fn(&[u8], u64) -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    let mut written = 0;
    while let Some(rest) = data.get(written..).filter(|rest| !rest.is_empty()) {
        written += write(rest, offset.saturating_add(written as u64))?;
    }
    Ok(written)
}

pub(super) fn open_flags(flags: u32, kill_priv: bool) -> OpenFlags {
    use rustix::fs::OFlags;
    let flags = OFlags::from_bits_retain(flags);
    OpenFlags {
        write: flags.intersects(OFlags::WRONLY | OFlags::RDWR),
        truncate: flags.contains(OFlags::TRUNC),
        sync: flags.contains(OFlags::DSYNC),
        kill_priv,
    }
}

fn seek(whence: u32) -> Result<Seek, Errno> {
    match i32::try_from(whence) {
        Ok(libc::SEEK_DATA) => Ok(Seek::Data),
        Ok(libc::SEEK_HOLE) => Ok(Seek::Hole),
        // The kernel does the others by itself.
        _ => Err(Errno::INVAL),
    }
}
