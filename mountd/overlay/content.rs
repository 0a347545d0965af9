//! Copy-up of a file's content, in one of two ways. Before anything shows the content it is durable,
//! or the file's mark says that it is not ([`torn`]).
//!
//! A small file that is not in the upper yet is copied whole in `work/tmp`, then renamed into place
//! as a copy of metadata is; that rename is the commit. A change of the file meanwhile comes
//! first, and the copy is thrown away.
//!
//! Any other is copied into its upper file. Until that ends, the file's mark says `metadata only`
//! and reads come from the lower; the write of the mark is the commit. No node guard is held
//! during the copy, so the file can be read, renamed and removed; changes of its attributes wait.

use std::fs::File;
use std::os::fd::AsFd;

use cowl_core::sys::copy::{Copied, copy_data};
use cowl_core::tree::{FileType, Timestamp};
use cowl_core::upper::marks::{FileMark, Saved};
use cowl_core::upper::name_at::{NameAt, times};
use cowl_core::upper::scan::Marks;
use cowl_core::upper::torn;
use rustix::fs::{Mode, OFlags, XattrFlags};

use super::Overlay;
use super::attrs::timestamp;
use super::busy::Guard;
use super::copyup::{Destination, discard};
use super::event::Event;
use super::lookup::upper_file;
use super::lower::Lower;
use super::node::UpperFile;
use super::types::{Attr, Errno, LowerIno, NodeId};

/// Up to this many bytes a file is copied whole before it is in the upper. To copy so many again
/// costs about as much as a sync.
const SMALL: u64 = 256 << 10;

const SET_ID: u32 = 0o6000;

const CAPABILITY: &[u8] = b"security.capability";

/// Where the content of a copied-up node is.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Content {
    /// In its upper file.
    Upper,
    /// In this lower node's, up to the length of the upper file.
    Lower(LowerIno),
}

/// A running copy-up of a file's content, with the attributes that it must restore.
struct ContentCopy {
    origin: LowerIno,
    file: File,
    before: Attr,
    saved: Saved,
}

impl Overlay {
    /// Where the content of a copied-up node is; None for a node without an upper file.
    pub(super) fn locate_content(&self, id: NodeId) -> Result<Option<Content>, Errno> {
        let Some((_, origin, file)) = self.upper_node(id) else {
            return Ok(None);
        };
        if !file.metadata_only {
            return Ok(Some(Content::Upper));
        }
        Ok(Some(Content::Lower(origin.ok_or(Errno::IO)?)))
    }

    /// Whether a node's content is in the upper. It never moves back.
    pub(super) fn owns_content(&self, id: NodeId) -> bool {
        let state = self.state.read();
        let file = state.node(id).and_then(|node| node.upper.as_ref());
        file.is_some_and(|file| !file.metadata_only)
    }

    /// Waits for a running copy-up of a file's content, and prevents another.
    ///
    /// # Locking
    /// Outermost: before any guard.
    pub(super) fn lock_content(&self, id: NodeId) -> Guard<'_> {
        self.copying.lock(&[id])
    }

    /// Copies a file up with the first `keep` bytes of its content, or all if there are fewer.
    ///
    /// # Locking
    /// As [`copy_up_content`](Self::copy_up_content).
    pub(super) fn copy_up_to_write(&self, id: NodeId, keep: u64) -> Result<(), Errno> {
        if !self.in_upper(id) {
            self.copy_up_small(id, keep)?;
        }
        self.copy_up_metadata(id)?;
        self.copy_up_content(id, keep)
    }

    /// Copies a small file up whole; does nothing to one that is not small, has other names, or is
    /// in the upper by the time that the copy is complete.
    fn copy_up_small(&self, id: NodeId, keep: u64) -> Result<(), Errno> {
        let upper = self.writable()?;
        let node = id.lower().ok_or(Errno::STALE)?;
        let record = self.lower.node(node)?;
        if !record.has_content || keep.min(record.attr.size) > SMALL {
            return Ok(());
        }
        let Some(dir) = self.dir_to_copy_into(id)? else {
            return Ok(());
        };
        self.copy_up_dir(dir)?;
        let _alone = self.lock_content(id);
        if self.in_upper(id) {
            return Ok(());
        }
        let (dir, name) = self.name_of(id)?;
        let into = Destination::Name { dir, name };
        let temporary = upper.new_name();
        let staged = NameAt::new(upper.tmp(), &temporary);
        let copied = self
            .stage_copy(staged, id, node, &record, &into, Some(keep))
            .and_then(|file| {
                let _guard = self.busy.lock(&[dir, id]);
                let is_there = !self.in_upper(id)
                    && self.dir_to_copy_into(id)? == Some(dir)
                    && matches!(&into, Destination::Name { name, .. } if self.name_of(id)?.1 == *name);
                if is_there {
                    self.install_copy(upper, staged, &into)?;
                    self.copied(id, node, &record, file, into);
                }
                Ok(is_there)
            });
        if !matches!(copied, Ok(true)) {
            discard(staged, FileType::Regular);
        }
        copied.map(|_installed| ())
    }

    /// Fills a new file with the first `keep` bytes of a lower file's content. Returns whether its
    /// mark must say that they are not synced.
    pub(super) fn copy_content(
        &self,
        node: LowerIno,
        file: impl AsFd,
        keep: u64,
    ) -> Result<bool, Errno> {
        let size = self.lower.node(node)?.attr.size;
        let keep = keep.min(size);
        if keep == 0 {
            return Ok(false);
        }
        let content = self.lower.open_content(node)?.ok_or(Errno::IO)?;
        let copied = copy_data(content, &file, keep)?;
        self.sync_content(file, keep == size && copied == Copied::InBlocks)
    }

    /// A power cut must not leave a file, or a mark, without the content. So it is synced, unless
    /// what a power cut takes can be found and given back: then this returns true, and the file's
    /// mark must say so. `in_blocks`: all of it was copied, block by block.
    fn sync_content(&self, file: impl AsFd, in_blocks: bool) -> Result<bool, Errno> {
        if self.rules.volatile {
            return Ok(false);
        }
        if in_blocks && self.writable()?.shows_lost_blocks() {
            return Ok(true);
        }
        rustix::fs::fdatasync(file).map(|()| false)
    }

    /// Copies up the first `keep` bytes of a file's content, or all if there are fewer, and
    /// truncates the file there; does nothing if the content is in the upper already. On an error
    /// (a full disk) the file is unchanged. The node must have an upper file.
    ///
    /// # Locking
    /// Guards the node for a few system calls before and after; the caller may hold no guard.
    pub(super) fn copy_up_content(&self, id: NodeId, keep: u64) -> Result<(), Errno> {
        if self.owns_content(id) {
            return Ok(());
        }
        let _alone = self.lock_content(id);
        let (copy, mask) = {
            let _guard = self.busy.lock(&[id]);
            let Some(copy) = self.start_content_copy(id)? else {
                return Ok(());
            };
            let mask = self.masked.mask(id, copy.before);
            if keep > 0 {
                self.save_attributes(id, Some(&copy.saved))?;
            }
            (copy, mask)
        };
        let result = copy
            .run(&self.lower, keep)
            .and_then(|in_blocks| self.sync_content(&copy.file, in_blocks));
        let _guard = self.busy.lock(&[id]);
        let done = self.finish_content_copy(id, &copy, result);
        drop(mask);
        done
    }

    /// None: another thread has copied it up. The caller guards the node.
    fn start_content_copy(&self, id: NodeId) -> Result<Option<ContentCopy>, Errno> {
        let origin = match self.locate_content(id)? {
            Some(Content::Lower(origin)) => origin,
            Some(Content::Upper) => return Ok(None),
            None => return Err(Errno::STALE),
        };
        let place = self.place_of(id)?;
        let before = self.attr_guarded(id)?;
        Ok(Some(ContentCopy {
            origin,
            file: place.open(OFlags::WRONLY)?,
            before,
            saved: Saved {
                size: before.size,
                mtime: before.mtime,
                mode: before.mode,
                capability: place.name_at().xattr(CAPABILITY)?,
            },
        }))
    }

    /// Saves the attributes that the copy changes in the file's mark, or removes them. The caller
    /// guards the node.
    fn save_attributes(&self, id: NodeId, saved: Option<&Saved>) -> Result<(), Errno> {
        let Some((_, origin, mut file)) = self.upper_node(id) else {
            return Err(Errno::STALE);
        };
        file.copying = saved.cloned();
        self.write_mark(
            self.place_of(id)?.name_at(),
            FileType::Regular,
            &file,
            origin,
        )?;
        self.commit(|_| {
            [Event::Copying {
                node: id,
                saved: file.copying,
            }]
        });
        Ok(())
    }

    /// Commits the copy, or undoes it. The caller guards the node, which may have been renamed or
    /// removed since.
    fn finish_content_copy(
        &self,
        id: NodeId,
        copy: &ContentCopy,
        result: Result<bool, Errno>,
    ) -> Result<(), Errno> {
        let Some((_, origin, mut file)) = self.upper_node(id) else {
            return Err(Errno::STALE); // removed, with the copied content
        };
        file.metadata_only = false;
        file.copying = None;
        let copied = result.and_then(|unsynced| {
            file.unsynced.content = unsynced;
            copy.restore_attributes()?;
            let place = self.place_of(id)?;
            self.write_mark(place.name_at(), FileType::Regular, &file, origin)
        });
        if let Err(error) = copied {
            let undone = copy.undo().and_then(|()| self.save_attributes(id, None));
            if let Err(errno) = undone {
                tracing::warn!(%errno, "cannot undo a failed copy-up; the next mount will");
            }
            return Err(error);
        }
        let unsynced = file.unsynced.content;
        self.commit(|_| [Event::ContentCopied { node: id, unsynced }]);
        Ok(())
    }

    /// Writes into a file's mark that its content is synced. If a power cut undoes that, nothing is
    /// lost. The caller guards the node.
    pub(super) fn mark_synced(&self, id: NodeId) -> Result<(), Errno> {
        let Some((_, origin, mut file)) = self.upper_node(id) else {
            return Err(Errno::STALE);
        };
        if !file.unsynced.content {
            return Ok(());
        }
        file.unsynced.content = false;
        let place = self.place_of(id)?;
        self.write_mark(place.name_at(), FileType::Regular, &file, origin)
    }

    /// Ends what a crash left of a copy-up, and returns the state of the file. The caller guards
    /// it.
    pub(super) fn recover_copy(
        &self,
        name_at: NameAt<'_>,
        host: u64,
        marks: &Marks<LowerIno>,
    ) -> Result<UpperFile, Errno> {
        let mut file = upper_file(host, marks);
        if let Some(saved) = &marks.interrupted {
            self.undo_copying(name_at, marks, saved)?;
        }
        // A worker's successor finds what the dead one knew as it was.
        let is_known = self.state.read().inherited().node_of(host).is_some();
        if marks.unsynced && !is_known {
            self.mend_copy(name_at, marks)?;
            file.unsynced.content = false;
        }
        Ok(file)
    }

    /// Gives an unsynced copy the bytes that a power cut took, and syncs it.
    fn mend_copy(&self, name_at: NameAt<'_>, marks: &Marks<LowerIno>) -> Result<(), Errno> {
        let origin = marks.origin.ok_or(Errno::IO)?;
        let size = self.lower.node(origin)?.attr.size;
        let file = open(name_at, OFlags::RDWR)?;
        let lost = torn::lost(&file, size)?;
        if !lost.is_empty() {
            let content = self.lower.open_content(origin)?.ok_or(Errno::IO)?;
            let before = name_at.stat()?;
            let saved = Saved {
                size,
                mtime: timestamp(before.stx_mtime),
                mode: u32::from(before.stx_mode) & 0o7777,
                capability: name_at.xattr(CAPABILITY)?,
            };
            if torn::mend(&file, &content, &lost)? {
                tracing::warn!(name = %name_at.name.escape_ascii(), "a power cut took what was written to a file and not synced");
                restore(&file, timestamp(before.stx_atime), &saved)?;
            }
        }
        rustix::fs::fdatasync(&file)?;
        self.write_found_mark(name_at, marks)
    }

    /// Writes a file's mark as it was found, but for what a crash left.
    fn write_found_mark(&self, name_at: NameAt<'_>, marks: &Marks<LowerIno>) -> Result<(), Errno> {
        let upper = self.writable()?;
        let origin = marks.origin.map(|node| self.lower.origin_of(node));
        let mark = FileMark {
            origin: origin.transpose()?,
            metadata_only: marks.metadata_only,
            device: marks.device,
            link_delta: marks.link_delta,
            copying: None,
            unsynced: false,
        };
        upper
            .spelling()
            .write(name_at, upper.namespace(), FileType::Regular, &mark)
    }

    /// Undoes a copy of content that a crash interrupted. The caller guards the file.
    pub(super) fn undo_copying(
        &self,
        name_at: NameAt<'_>,
        marks: &Marks<LowerIno>,
        saved: &Saved,
    ) -> Result<(), Errno> {
        let file = open(name_at, OFlags::WRONLY)?;
        undo(&file, timestamp(name_at.stat()?.stx_atime), saved)?;
        self.write_found_mark(name_at, marks)
    }
}

impl ContentCopy {
    /// Returns whether all of the lower's content was copied, block by block.
    fn run(&self, lower: &Lower, keep: u64) -> Result<bool, Errno> {
        let keep = keep.min(self.before.size);
        if keep == 0 {
            rustix::fs::ftruncate(&self.file, 0)?;
            return Ok(false);
        }
        let content = lower.open_content(self.origin)?.ok_or(Errno::IO)?;
        let copied = copy_data(content, &self.file, keep)?;
        if keep < self.before.size {
            rustix::fs::ftruncate(&self.file, keep)?;
        }
        Ok(keep == lower.node(self.origin)?.attr.size && copied == Copied::InBlocks)
    }

    /// A copy-up must not change mtime, mode or capabilities.
    fn restore_attributes(&self) -> Result<(), Errno> {
        restore(&self.file, self.before.atime, &self.saved)
    }

    /// Frees the blocks of a failed copy. The mark is unchanged, so the content stays the lower's
    /// even if this fails.
    fn undo(&self) -> Result<(), Errno> {
        undo(&self.file, self.before.atime, &self.saved)
    }
}

fn open(name_at: NameAt<'_>, access: OFlags) -> Result<File, Errno> {
    let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(name_at.dir, name_at.name, flags, Mode::empty()).map(File::from)
}

/// Makes the file sparse again, with its saved attributes.
fn undo(file: &File, atime: Timestamp, saved: &Saved) -> Result<(), Errno> {
    rustix::fs::ftruncate(file, 0)?;
    rustix::fs::ftruncate(file, saved.size)?;
    restore(file, atime, saved)
}

/// Restores what the host changes at a write: mtime, the capability, and outside the initial user
/// namespace the set-id bits.
fn restore(file: &File, atime: Timestamp, saved: &Saved) -> Result<(), Errno> {
    if saved.mode & SET_ID != 0 {
        rustix::fs::fchmod(file, Mode::from_raw_mode(saved.mode))?;
    }
    if let Some(value) = &saved.capability {
        rustix::fs::fsetxattr(file, CAPABILITY, value, XattrFlags::empty())?;
    }
    rustix::fs::futimens(file, &times(atime, saved.mtime))
}
