//! Copy-up of metadata, before chmod, chown, utimens, setxattr, rename and link. Content comes at
//! the first write, see [`super::content`].
//!
//! The file is created in `work/tmp` with its metadata and mark, then renamed into place; that
//! rename is the commit. The times of its directory are restored, since a copy-up changes nothing
//! visible.

use std::os::fd::AsFd;

use cowl_core::tree::{FileType, Rdev};
use cowl_core::upper::Upper;
use cowl_core::upper::marks::{self, Mark, Namespace, escape};
use cowl_core::upper::name_at::{NameAt, times};
use cowl_core::upper::scan::Origins;
use cowl_core::upper::spelling::Spelling;
use rustix::fs::{Mode, OFlags, XattrFlags};

use super::dir::Under;
use super::event::Event;
use super::lower::LowerNode;
use super::node::{Home, Unsynced, UpperFile};
use super::types::{Attr, Errno, LowerIno, NodeId};
use super::{Overlay, new_file};
use crate::journal::Intent;

const SET_ID: u32 = 0o6000;

/// Where a copied-up file goes.
pub(super) enum Destination {
    Name { dir: NodeId, name: Vec<u8> },
    Index(u64),
    Orphan(u64),
}

impl Overlay {
    /// Copies a node's metadata up, after its parents. A regular file's content stays in the
    /// lower, as its mark says.
    ///
    /// # Locking
    /// Guards the node and its directory for a few system calls each; the caller must hold no
    /// guard.
    pub(super) fn copy_up(&self, id: NodeId) -> Result<(), Errno> {
        if self.copies_whole() {
            self.copy_up_to_write(id, u64::MAX)
        } else {
            self.copy_up_metadata(id)
        }
    }

    /// Whether the upper must show every content to those that do not know our marks. Over plain
    /// directories and with marks in `user.`, the kernel's overlayfs and fuse-overlayfs would take
    /// a file without its content, and a renamed directory, for what it looks like.
    pub(super) fn copies_whole(&self) -> bool {
        !self.rules.metacopy.unwrap_or_else(|| self.marks_are_read())
    }

    /// Whether a directory that merges with one of the lower cannot be renamed.
    pub(super) fn keeps_lower_directories(&self) -> bool {
        !self
            .rules
            .redirect_dir
            .unwrap_or_else(|| self.marks_are_read())
    }

    fn marks_are_read(&self) -> bool {
        self.upper.as_ref().is_none_or(|upper| {
            upper.spelling() == Spelling::Tree
                || upper.mark_store().namespace() == Some(Namespace::Trusted)
        })
    }

    pub(super) fn copy_up_metadata(&self, id: NodeId) -> Result<(), Errno> {
        let mut below = vec![id];
        while let Some(next) = below.last().copied() {
            if self.in_upper(next) {
                below.pop();
                continue;
            }
            let Some(dir) = self.dir_to_copy_into(next)? else {
                self.copy_up_one(next, None)?;
                continue;
            };
            if self.in_upper(dir) {
                self.ensure_read(dir)?;
                self.copy_up_one(next, Some(dir))?;
            } else {
                below.push(dir);
            }
        }
        Ok(())
    }

    /// Copies a directory up and reads its upper part, so that names can be changed in it.
    pub(super) fn copy_up_dir(&self, dir: NodeId) -> Result<(), Errno> {
        self.writable()?;
        self.copy_up(dir)?;
        self.ensure_read(dir)
    }

    /// The directory that a node is copied into. None: it goes into `work/index` or
    /// `work/orphans`.
    pub(super) fn dir_to_copy_into(&self, id: NodeId) -> Result<Option<NodeId>, Errno> {
        let record = self.lower.node(id.lower().ok_or(Errno::STALE)?)?;
        let gone = self.is_gone(id);
        if gone && record.file_type() == FileType::Directory {
            return Err(Errno::NOENT);
        }
        if self.is_lost(id) {
            return Err(Errno::STALE);
        }
        if gone || record.has_more_names() {
            return Ok(None);
        }
        self.name_of(id).map(|(dir, _)| Some(dir))
    }

    /// Whether a node has no name any more.
    pub(super) fn is_gone(&self, id: NodeId) -> bool {
        self.gone_attr(id).is_some()
    }

    /// The attributes of a node that has no name any more.
    fn gone_attr(&self, id: NodeId) -> Option<Attr> {
        self.state.read().node(id)?.gone().copied()
    }

    /// Whether a node's content was removed with its last name, since it was not open.
    pub(super) fn is_lost(&self, id: NodeId) -> bool {
        let state = self.state.read();
        state.node(id).is_some_and(super::node::Node::lost)
    }

    fn copy_up_one(&self, id: NodeId, dir: Option<NodeId>) -> Result<(), Errno> {
        let upper = self.writable()?;
        let guarded: Vec<NodeId> = dir.into_iter().chain([id]).collect();
        let _guard = self.busy.lock(&guarded);
        // Another thread may have copied up or removed it before the guard was taken.
        if self.in_upper(id) || self.dir_to_copy_into(id)? != dir {
            return Ok(());
        }
        let node = id.lower().ok_or(Errno::STALE)?;
        let record = self.lower.node(node)?;
        let into = match dir {
            Some(_) => {
                let (dir, name) = self.name_of(id)?;
                Destination::Name { dir, name }
            }
            None if self.is_gone(id) => Destination::Orphan(upper.new_number()),
            None => Destination::Index(match self.lower.spelling() {
                Spelling::Tree => u64::from(node.0),
                Spelling::Plain => upper.new_link_number(),
            }),
        };
        let temporary = upper.new_name();
        let staged = NameAt::new(upper.tmp(), &temporary);
        let file = self
            .stage_copy(staged, id, node, &record, &into, None)
            .and_then(|file| {
                self.install_copy(upper, staged, &into)?;
                Ok(file)
            });
        match file {
            Ok(file) => {
                self.copied(id, node, &record, file, into);
                Ok(())
            }
            Err(error) => {
                discard(staged, record.file_type());
                Err(error)
            }
        }
    }

    pub(super) fn copied(
        &self,
        id: NodeId,
        node: LowerIno,
        record: &LowerNode,
        file: UpperFile,
        into: Destination,
    ) {
        let file_type = record.file_type();
        self.commit(|state| {
            let mut events = vec![Event::Copied {
                node: id,
                file_type,
                origin: Some(node),
                file,
            }];
            if let Destination::Name { dir, name } = into {
                let under = if file_type == FileType::Directory {
                    Under::Directory
                } else {
                    Under::File
                };
                // The copy takes the place of the node's name in the lower.
                debug_assert!(state.dir(dir).is_some());
                events.push(Event::Named {
                    dir,
                    name: name.into(),
                    node: id,
                    file_type,
                    under,
                });
            }
            events
        });
    }

    /// Creates the copy in `work/tmp`, with metadata and mark, and with the first bytes of its
    /// content if `keep` says how many.
    pub(super) fn stage_copy(
        &self,
        staged: NameAt<'_>,
        id: NodeId,
        node: LowerIno,
        record: &LowerNode,
        into: &Destination,
        keep: Option<u64>,
    ) -> Result<UpperFile, Errno> {
        let mut file = UpperFile {
            device: record.is_null_device(),
            metadata_only: record.has_content && keep.is_none(),
            unsynced: Unsynced {
                inode: true,
                name: true,
            },
            ..new_file(0)
        };
        let upper = self.writable()?;
        let creator = crate::sys::identity::own()?;
        self.create_like(staged, node, record, keep)?;
        upper.mark_new(staged)?;
        match into {
            Destination::Name { .. } => {}
            Destination::Orphan(number) => file.home = Home::Orphan(*number),
            Destination::Index(number) => {
                file.home = Home::Index(*number);
                file.link_delta =
                    i32::try_from(record.attr.nlink).map_err(|_beyond_i32| Errno::OVERFLOW)?;
            }
        }
        self.write_mark(staged, record.stored_type(), &file, Some(node))?;
        if let Destination::Index(_) = into
            && file.metadata_only
            && upper.spelling() == Spelling::Plain
        {
            // It has names that are not its origin's path.
            let origin = self.lower.origin_of(node)?;
            upper
                .spelling()
                .write_redirect(staged, upper.mark_store(), origin)?;
        }
        self.apply_metadata(staged, node, Some(creator))?;
        if let Some(attr) = self.gone_attr(id) {
            staged.utimens(&times(attr.atime, attr.mtime))?;
        }
        file.host = staged.stat()?.stx_ino;
        self.intend(Intent::CopyUp {
            node: id.0,
            host: file.host,
        });
        Ok(file)
    }

    fn create_like(
        &self,
        staged: NameAt<'_>,
        node: LowerIno,
        record: &LowerNode,
        keep: Option<u64>,
    ) -> Result<(), Errno> {
        // chown clears set-id bits, so they are set after it.
        let mode = Mode::from_raw_mode(record.attr.mode & !SET_ID);
        match record.file_type() {
            FileType::Directory => rustix::fs::mkdirat(staged.dir, staged.name, mode),
            FileType::Symlink => {
                rustix::fs::symlinkat(&*self.lower.symlink_target(node)?, staged.dir, staged.name)
            }
            FileType::Regular => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = rustix::fs::openat(staged.dir, staged.name, flags, mode)?;
                match keep {
                    None => rustix::fs::ftruncate(&file, record.attr.size),
                    Some(keep) => self.copy_content(node, &file, keep),
                }
            }
            _ if record.is_null_device() => rustix::fs::mknodat(
                staged.dir,
                staged.name,
                rustix::fs::FileType::RegularFile,
                mode,
                0,
            ),
            special => make_special(staged, special, mode, record.attr.rdev),
        }
    }

    /// Applies owner, mode, xattrs and times of a lower node to a file. `creator`: the file was
    /// just created with these ids and the node's mode without set-id bits.
    pub(super) fn apply_metadata(
        &self,
        name_at: NameAt<'_>,
        node: LowerIno,
        creator: Option<(u32, u32)>,
    ) -> Result<(), Errno> {
        let Attr {
            uid,
            gid,
            mode,
            file_type,
            mtime,
            atime,
            ..
        } = self.lower.node(node)?.attr;
        let space = self.writable()?.mark_store().namespace();
        if creator != Some((uid, gid)) {
            match name_at.chown(Some(uid), Some(gid)) {
                // As in fuse-overlayfs: the owner is not shown.
                Err(Errno::PERM | Errno::INVAL) if self.rules.squashed => {}
                changed => changed?,
            }
        }
        if file_type != FileType::Symlink && (creator.is_none() || mode & SET_ID != 0) {
            name_at.chmod(mode)?;
        }
        for name in self.lower.xattr_names(node)? {
            let Some(value) = self.lower.xattr(node, &name)? else {
                continue;
            };
            match name_at.set_xattr(&escape(&name), &value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(errno @ (Errno::OPNOTSUPP | Errno::PERM)) if !must_be_copied(&name, space) => {
                    tracing::debug!(name = %name.escape_ascii(), %errno, "the upper cannot store an attribute; it is dropped");
                }
                Err(errno) => return Err(errno),
            }
        }
        name_at.utimens(&times(atime, mtime))
    }

    /// Writes a file's marks, if a file of its type on the host can bear them.
    pub(super) fn write_mark(
        &self,
        name_at: NameAt<'_>,
        stored: FileType,
        file: &UpperFile,
        origin: Option<LowerIno>,
    ) -> Result<(), Errno> {
        let upper = self.writable()?;
        if !upper.mark_store().marks(stored) {
            return Ok(());
        }
        let origin = origin.map(|node| self.lower.origin_of(node)).transpose()?;
        let mark = file.mark(origin);
        upper
            .spelling()
            .write(name_at, upper.mark_store(), stored, &mark)
    }

    pub(super) fn install_copy(
        &self,
        upper: &Upper,
        staged: NameAt<'_>,
        into: &Destination,
    ) -> Result<(), Errno> {
        match into {
            Destination::Name { dir, name } => {
                self.mark_impure(*dir)?;
                let place = self.place_in(*dir, name)?;
                self.preserving_times(*dir, || staged.rename_new(place.name_at()))
            }
            Destination::Index(number) => {
                if upper.spelling() == Spelling::Plain {
                    // An upper without a stamp is told from a new one by it (`Upper::open`).
                    NameAt::new(upper.root(), b".").set_mark(
                        upper.mark_store(),
                        Mark::Impure,
                        marks::YES,
                    )?;
                }
                staged.rename_new(NameAt::new(upper.index(), &Upper::index_name(*number)))
            }
            Destination::Orphan(number) => {
                staged.rename_new(NameAt::new(upper.orphans(), number.to_string().as_bytes()))
            }
        }
    }

    /// Marks a directory impure, before the first marked file is in it. The caller guards it.
    pub(super) fn mark_impure(&self, dir: NodeId) -> Result<(), Errno> {
        if self.state.read().dir(dir).is_some_and(|table| table.impure) {
            return Ok(());
        }
        let fd = self.dir_fd(dir)?;
        NameAt::new(fd.as_fd(), b".").set_mark(
            self.writable()?.mark_store(),
            Mark::Impure,
            marks::YES,
        )?;
        self.commit(|_| [Event::Impure { dir }]);
        Ok(())
    }

    /// Changes a directory of the upper without changing its times. The caller guards it.
    pub(super) fn preserving_times(
        &self,
        dir: NodeId,
        change: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let fd = self.dir_fd(dir)?;
        let before = self.attr_guarded(dir)?;
        let _mask = self.masked.mask(dir, before);
        change()?;
        NameAt::new(fd.as_fd(), b".").utimens(&times(before.atime, before.mtime))
    }
}

/// Creates a device, a pipe or a socket.
pub(super) fn make_special(
    staged: NameAt<'_>,
    file_type: FileType,
    mode: Mode,
    rdev: Rdev,
) -> Result<(), Errno> {
    let host = rustix::fs::FileType::from_raw_mode(file_type.to_mode_bits());
    rustix::fs::mknodat(
        staged.dir,
        staged.name,
        host,
        mode,
        rustix::fs::makedev(rdev.major, rdev.minor),
    )
}

/// Whether a copy-up fails if the upper cannot store this attribute: ACLs and `security.*`, as in
/// overlayfs. Without privilege, other `security.*` and `trusted.*` cannot be written, and where
/// there are no attributes a capability is dropped, as fuse-overlayfs does.
fn must_be_copied(name: &[u8], space: Option<Namespace>) -> bool {
    name.starts_with(b"system.posix_acl_")
        || (space.is_some() && name == b"security.capability")
        || (space == Some(Namespace::Trusted) && name.starts_with(b"security."))
}

/// Removes a failed copy from `work/tmp`; the next mount removes what remains.
pub(super) fn discard(staged: NameAt<'_>, file_type: FileType) {
    let removed = if file_type == FileType::Directory {
        staged.rmdir()
    } else {
        staged.unlink()
    };
    if let Err(errno) = removed
        && errno != Errno::NOENT
    {
        tracing::warn!(name = %staged.name.escape_ascii(), %errno, "cannot remove a file from work/tmp; the next mount will");
    }
}
