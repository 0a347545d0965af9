//! Copy-up of a file's content, in one of two ways. The content is durable before anything shows
//! it.
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

use cowl_core::sys::copy::{copy_data, copy_data_to_sync};
use cowl_core::tree::{FileType, Timestamp};
use cowl_core::upper::marks::{FileMark, Saved};
use cowl_core::upper::name_at::{NameAt, times};
use cowl_core::upper::scan::Marks;
use rustix::fs::{Mode, OFlags, XattrFlags};

use super::Overlay;
use super::busy::Guard;
use super::copyup::{Destination, discard};
use super::event::Event;
use super::node::UpperFile;
use super::types::{Attr, Errno, LowerIno, NodeId};

/// Up to this many bytes a file is copied whole before it is in the upper. To copy so many again
/// costs about as much as the one sync that either way takes.
const SMALL: u64 = 256 << 10;

pub(super) const SET_ID: u32 = 0o6000;

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

    /// Fills a new file with the first `keep` bytes of a lower file's content, durably.
    pub(super) fn copy_content(
        &self,
        node: LowerIno,
        file: impl AsFd,
        keep: u64,
    ) -> Result<(), Errno> {
        let keep = keep.min(self.lower.node(node)?.attr.size);
        if keep == 0 {
            return Ok(());
        }
        let content = self.lower.open_content(node)?.ok_or(Errno::IO)?;
        self.copy_to_sync(content, &file, keep)?;
        self.sync_content(file)
    }

    /// Copies content that [`sync_content`](Self::sync_content) makes durable next.
    fn copy_to_sync(&self, from: File, to: impl AsFd, keep: u64) -> Result<(), Errno> {
        if self.rules.volatile {
            copy_data(from, to, keep)?;
        } else {
            copy_data_to_sync(from, to, keep)?;
        }
        Ok(())
    }

    /// A power cut must not leave a file, or a mark, without the content.
    fn sync_content(&self, file: impl AsFd) -> Result<(), Errno> {
        if self.rules.volatile {
            return Ok(());
        }
        rustix::fs::fdatasync(file)
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
            .run(self, keep)
            .and_then(|()| self.sync_content(&copy.file));
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
        result: Result<(), Errno>,
    ) -> Result<(), Errno> {
        let Some((_, origin, file)) = self.upper_node(id) else {
            return Err(Errno::STALE); // removed, with the copied content
        };
        let file = UpperFile {
            metadata_only: false,
            copying: None,
            ..file
        };
        let copied = result
            .and_then(|()| copy.restore_attributes())
            .and_then(|()| {
                self.write_mark(
                    self.place_of(id)?.name_at(),
                    FileType::Regular,
                    &file,
                    origin,
                )
            });
        if let Err(error) = copied {
            let undone = copy.undo().and_then(|()| self.save_attributes(id, None));
            if let Err(errno) = undone {
                tracing::warn!(%errno, "cannot undo a failed copy-up; the next mount will");
            }
            return Err(error);
        }
        self.commit(|_| [Event::ContentCopied { node: id }]);
        Ok(())
    }

    /// Undoes a copy of content that a crash interrupted. The caller guards the file.
    pub(super) fn undo_copying(
        &self,
        name_at: NameAt<'_>,
        marks: &Marks<LowerIno>,
        saved: &Saved,
    ) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(
            name_at.dir,
            name_at.name,
            flags,
            Mode::empty(),
        )?);
        let atime = super::attrs::timestamp(name_at.stat()?.stx_atime);
        undo(&file, atime, saved)?;
        let upper = self.writable()?;
        let origin = marks.origin.map(|node| self.lower.origin_of(node));
        let mark = FileMark {
            origin: origin.transpose()?,
            metadata_only: marks.metadata_only,
            device: marks.device,
            link_delta: marks.link_delta,
            copying: None,
        };
        upper
            .spelling()
            .write(name_at, upper.mark_store(), FileType::Regular, &mark)
    }
}

impl ContentCopy {
    fn run(&self, overlay: &Overlay, keep: u64) -> Result<(), Errno> {
        match keep.min(self.before.size) {
            0 => rustix::fs::ftruncate(&self.file, 0)?,
            keep => {
                let content = overlay.lower.open_content(self.origin)?;
                overlay.copy_to_sync(content.ok_or(Errno::IO)?, &self.file, keep)?;
                if keep < self.before.size {
                    rustix::fs::ftruncate(&self.file, keep)?;
                }
            }
        }
        Ok(())
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
