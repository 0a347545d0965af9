//! How a file of the tree gets into the upper: its metadata, by themselves (for chmod, chown, times, attributes, rename, link); its bytes
//! come with the first write, see [`super::content`].
//!
//! A file is made in `work/tmp`, given everything, marked, and renamed into place, which is the one step that counts. Times of the
//! directory above are put back: nothing visible happened to it.

use std::os::fd::AsFd;

use cowl_core::tree::{FileType, Node, Rdev, TreeIno};
use cowl_core::upper::Upper;
use cowl_core::upper::marks::{self, FileMark, Mark, Namespace, escape};
use cowl_core::upper::scan::{is_null_device, stored_type};
use cowl_core::upper::spot::{Spot, times};
use rustix::fs::{Mode, OFlags, RenameFlags, XattrFlags};

use super::event::Event;
use super::state::{Home, Under, Unsynced, UpperFile};
use super::types::{Attr, Errno, NodeId};
use super::{Overlay, new_file};

const SET_ID: u32 = 0o6000;

/// Where a file is to be put.
enum Destination {
    Name { dir: NodeId, name: Vec<u8> },
    Index(TreeIno),
    Orphan(u64),
}

impl Overlay {
    /// Gives a node a file in the upper, with all its metadata and, if it is a regular file, a mark for its bytes. A directory comes with its
    /// parents.
    ///
    /// # Locking
    /// Guards the node and the directory it is in for a few system calls each; the caller may hold no guard.
    pub(super) fn copy_up(&self, id: NodeId) -> Result<(), Errno> {
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

    /// A directory with its upper part, which is read: ready for names to be changed in it.
    pub(super) fn copy_up_dir(&self, dir: NodeId) -> Result<(), Errno> {
        self.writable()?;
        self.copy_up(dir)?;
        self.ensure_read(dir)
    }

    /// The directory whose upper part a node's file will be put in. None: it goes into the work directory.
    fn dir_to_copy_into(&self, id: NodeId) -> Result<Option<NodeId>, Errno> {
        let record = self.lower.node(id.tree().ok_or(Errno::STALE)?)?;
        let gone = self.is_gone(id);
        if gone && record.file_type == FileType::Directory {
            return Err(Errno::NOENT);
        }
        if self.is_lost(id) {
            return Err(Errno::STALE);
        }
        if gone || has_more_names(&record) {
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

    /// Whether a node's own bytes were removed with its last name: nobody had it open.
    pub(super) fn is_lost(&self, id: NodeId) -> bool {
        let state = self.state.read();
        state.node(id).is_some_and(super::state::Node::lost)
    }

    fn copy_up_one(&self, id: NodeId, dir: Option<NodeId>) -> Result<(), Errno> {
        let upper = self.writable()?;
        let guarded: Vec<NodeId> = dir.into_iter().chain([id]).collect();
        let _guard = self.busy.lock(&guarded);
        // What was true before the guard may have changed: someone else copied it, or removed it.
        if self.in_upper(id) || self.dir_to_copy_into(id)? != dir {
            return Ok(());
        }
        let node = id.tree().ok_or(Errno::STALE)?;
        let record = self.lower.node(node)?;
        let into = match dir {
            Some(_) => {
                let (dir, name) = self.name_of(id)?;
                Destination::Name { dir, name }
            }
            None if self.is_gone(id) => Destination::Orphan(upper.new_number()),
            None => Destination::Index(node),
        };
        let temporary = upper.new_name();
        let staged = Spot::new(upper.tmp(), &temporary);
        let file = self
            .stage_copy(upper, staged, id, node, &record, &into)
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
                discard(staged, record.file_type);
                Err(error)
            }
        }
    }

    fn copied(&self, id: NodeId, node: TreeIno, record: &Node, file: UpperFile, into: Destination) {
        let file_type = record.file_type;
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
                // A tree file that was never moved is at its name in the tree.
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

    /// Makes the file in `work/tmp` with everything but its place.
    fn stage_copy(
        &self,
        upper: &Upper,
        staged: Spot<'_>,
        id: NodeId,
        node: TreeIno,
        record: &Node,
        into: &Destination,
    ) -> Result<UpperFile, Errno> {
        let mut file = UpperFile {
            device: is_null_device(record),
            metadata_only: record.object.is_some(),
            unsynced: Unsynced {
                inode: true,
                name: true,
            },
            ..new_file(0)
        };
        let creator = crate::sys::identity::own()?;
        self.create_like(staged, node, record)?;
        match into {
            Destination::Name { .. } => {}
            Destination::Orphan(number) => file.home = Home::Orphan(*number),
            Destination::Index(node) => {
                file.home = Home::Index(*node);
                file.link_delta =
                    i32::try_from(record.nlink).map_err(|_beyond_i32| Errno::OVERFLOW)?;
            }
        }
        if upper.namespace().marks(stored_type(record)) {
            self.write_mark(staged, &file.mark(Some(node)))?;
        }
        self.apply_metadata(staged, node, Some(creator))?;
        if let Some(attr) = self.gone_attr(id) {
            staged.utimens(&times(attr.atime, attr.mtime))?;
        }
        file.host = staged.stat()?.stx_ino;
        Ok(file)
    }

    fn create_like(&self, staged: Spot<'_>, node: TreeIno, record: &Node) -> Result<(), Errno> {
        // Set-id bits come once the owner is right.
        let mode = Mode::from_raw_mode(record.mode & !SET_ID);
        match record.file_type {
            FileType::Directory => rustix::fs::mkdirat(staged.dir, staged.name, mode),
            FileType::Symlink => {
                rustix::fs::symlinkat(self.lower.symlink_target(node)?, staged.dir, staged.name)
            }
            FileType::Regular => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = rustix::fs::openat(staged.dir, staged.name, flags, mode)?;
                rustix::fs::ftruncate(&file, record.size)
            }
            _ if is_null_device(record) => rustix::fs::mknodat(
                staged.dir,
                staged.name,
                rustix::fs::FileType::RegularFile,
                mode,
                0,
            ),
            special => make_special(staged, special, mode, record.rdev),
        }
    }

    /// Gives a file owner, permissions, attributes and times of a node of the tree. One that was just
    /// made by `creator` has its permissions but for set-id bits.
    pub(super) fn apply_metadata(
        &self,
        spot: Spot<'_>,
        node: TreeIno,
        creator: Option<(u32, u32)>,
    ) -> Result<(), Errno> {
        let record = self.lower.node(node)?;
        let space = self.writable()?.namespace();
        if creator != Some((record.uid, record.gid)) {
            spot.chown(Some(record.uid), Some(record.gid))?;
        }
        if record.file_type != FileType::Symlink && (creator.is_none() || record.mode & SET_ID != 0)
        {
            spot.chmod(record.mode)?;
        }
        for (name, value) in self.lower.xattrs(node)? {
            match spot.set_xattr(&escape(name), value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(errno @ (Errno::OPNOTSUPP | Errno::PERM)) if !must_be_copied(name, space) => {
                    tracing::debug!(name = %name.escape_ascii(), %errno, "an attribute cannot be kept by the upper");
                }
                Err(errno) => return Err(errno),
            }
        }
        spot.utimens(&times(record.mtime, record.mtime))
    }

    /// Writes what a file was copied up from.
    pub(super) fn write_mark(&self, spot: Spot<'_>, mark: &FileMark) -> Result<(), Errno> {
        spot.set_mark(self.writable()?.namespace(), Mark::File, &mark.encode())
    }

    fn install_copy(
        &self,
        upper: &Upper,
        staged: Spot<'_>,
        into: &Destination,
    ) -> Result<(), Errno> {
        match into {
            Destination::Name { dir, name } => {
                self.mark_impure(*dir)?;
                let place = self.place_in(*dir, name)?;
                self.preserving_times(*dir, || staged.rename(place.spot(), RenameFlags::NOREPLACE))
            }
            Destination::Index(node) => staged.rename(
                Spot::new(upper.index(), &Upper::index_name(*node)),
                RenameFlags::NOREPLACE,
            ),
            Destination::Orphan(number) => staged.rename(
                Spot::new(upper.orphans(), number.to_string().as_bytes()),
                RenameFlags::NOREPLACE,
            ),
        }
    }

    /// Says on a directory that files in it bear marks. Before the first of them is there. The caller guards it.
    pub(super) fn mark_impure(&self, dir: NodeId) -> Result<(), Errno> {
        if self.state.read().dir(dir).is_some_and(|table| table.impure) {
            return Ok(());
        }
        let fd = self.dir_fd(dir)?;
        Spot::new(fd.as_fd(), b".").set_mark(
            self.writable()?.namespace(),
            Mark::Impure,
            marks::YES,
        )?;
        self.commit(|_| [Event::Impure { dir }]);
        Ok(())
    }

    /// Does something to a directory of the upper that nobody shall see in its times. The caller guards it.
    fn preserving_times(
        &self,
        dir: NodeId,
        change: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let fd = self.dir_fd(dir)?;
        let before = self.attr_guarded(dir)?;
        let _mask = self.masked.mask(dir, before);
        change()?;
        Spot::new(fd.as_fd(), b".").utimens(&times(before.atime, before.mtime))
    }
}

/// Makes a device, a pipe or a socket.
pub(super) fn make_special(
    staged: Spot<'_>,
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

/// A file of several names is found through the index, whichever of them was used.
fn has_more_names(record: &Node) -> bool {
    record.file_type != FileType::Directory && record.nlink > 1
}

/// As overlayfs: a copy without its ACL or its capabilities would be another file; `trusted.` cannot be written, nor read, without
/// privilege.
fn must_be_copied(name: &[u8], space: Namespace) -> bool {
    name.starts_with(b"system.posix_acl_")
        || name == b"security.capability"
        || (space == Namespace::Trusted && name.starts_with(b"security."))
}

/// Removes what a failed copy-up left in `work/tmp`; what stays goes at the next mount.
fn discard(staged: Spot<'_>, file_type: FileType) {
    let removed = if file_type == FileType::Directory {
        staged.rmdir()
    } else {
        staged.unlink()
    };
    if let Err(errno) = removed
        && errno != Errno::NOENT
    {
        tracing::warn!(name = %staged.name.escape_ascii(), %errno, "work/tmp keeps a file until the next mount");
    }
}
