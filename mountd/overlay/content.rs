//! How the bytes of a copied-up file get into the upper: into its file there, while its mark still says that the object has them. They
//! are made durable, and then the mark goes, which is the one step that counts. Until then readers are served from the object.
//!
//! No guard is held while bytes are copied: the file can be read, looked at, renamed and removed meanwhile. Who wants to change it waits.

use std::fs::File;

use cowl_core::digest::ObjectId;
use cowl_core::sys::copy::copy_data;
use cowl_core::upper::marks::Mark;
use cowl_core::upper::spot::times;
use rustix::fs::{Mode, OFlags, XattrFlags};

use super::Overlay;
use super::busy::Guard;
use super::event::Event;
use super::state::Content;
use super::types::{Attr, Errno, NodeId};

const SET_ID: u32 = 0o6000;

const CAPABILITY: &[u8] = b"security.capability";

/// A file whose bytes are about to come, and what copying them must not change.
struct Filling {
    object: ObjectId,
    file: File,
    before: Attr,
    /// The host takes it from a file whenever that is written, as it does set-id bits outside of the initial user namespace.
    capability: Option<Vec<u8>>,
}

impl Overlay {
    /// Where the bytes of a node are that has a file in the upper.
    pub(super) fn content_of(&self, id: NodeId) -> Option<Content> {
        let state = self.state.read();
        Some(state.node(id)?.upper.as_ref()?.content)
    }

    /// Whether a node's bytes are in the upper. They stay there.
    pub(super) fn owns_content(&self, id: NodeId) -> bool {
        self.content_of(id) == Some(Content::Own)
    }

    /// Waits until nobody copies a file's bytes, and keeps it so.
    ///
    /// # Locking
    /// Outermost: before any guard.
    pub(super) fn unfilled(&self, id: NodeId) -> Guard<'_> {
        self.filling.lock(&[id])
    }

    /// Takes the first `keep` bytes of a file's content into the upper, or all if there are fewer; nothing happens if the upper has them.
    /// On an error (a full disk) the file is as it was. The node has its file in the upper.
    ///
    /// # Locking
    /// Guards the node for a few system calls before and after; the caller may hold no guard.
    pub(super) fn own_content(&self, id: NodeId, keep: u64) -> Result<(), Errno> {
        if self.owns_content(id) {
            return Ok(());
        }
        let _alone = self.unfilled(id);
        let (filling, under_way) = {
            let _guard = self.busy.lock(&[id]);
            let Some(filling) = self.prepare_filling(id)? else {
                return Ok(());
            };
            let under_way = self.unseen.begin(id, filling.before);
            (filling, under_way)
        };
        let filled = filling.fill(&self.lower, keep);
        let _guard = self.busy.lock(&[id]);
        let done = self.finish_filling(id, &filling, filled);
        drop(under_way);
        done
    }

    /// None: somebody else was faster. The caller guards the node.
    fn prepare_filling(&self, id: NodeId) -> Result<Option<Filling>, Errno> {
        let object = match self.content_of(id) {
            Some(Content::Object(object)) => object,
            Some(Content::Own) => return Ok(None),
            None => return Err(Errno::STALE),
        };
        let place = self.place_of(id)?;
        Ok(Some(Filling {
            object,
            file: place.open(OFlags::WRONLY)?,
            before: self.attr_guarded(id)?,
            capability: place.spot().xattr(CAPABILITY)?,
        }))
    }

    /// The caller guards the node, which may have been renamed meanwhile, or be gone.
    fn finish_filling(
        &self,
        id: NodeId,
        filling: &Filling,
        filled: Result<(), Errno>,
    ) -> Result<(), Errno> {
        if self.content_of(id).is_none() {
            return Err(Errno::STALE); // removed, and with it what was copied
        }
        let space = self.writable()?.namespace();
        let owned = filled
            .and_then(|()| filling.restore_privileges())
            .and_then(|()| self.place_of(id)?.spot().clear_mark(space, Mark::Data));
        if let Err(error) = owned {
            filling.undo();
            return Err(error);
        }
        self.commit(|_| [Event::Owned { node: id }]);
        // Nobody wrote yet: whoever copied up for a change of the length will have new times anyway.
        filling.restore_times()
    }
}

impl Filling {
    fn fill(&self, lower: &super::lower::Lower, keep: u64) -> Result<(), Errno> {
        match keep.min(self.before.size) {
            0 => rustix::fs::ftruncate(&self.file, 0)?,
            keep => {
                copy_data(lower.open_object(self.object)?, &self.file, keep)?;
            }
        }
        // Without it a power cut could leave the file without mark and without bytes.
        rustix::fs::fdatasync(&self.file)
    }

    /// A copy is no write by anyone. Should the worker stop in the midst of one, less privilege stays, never more.
    fn restore_privileges(&self) -> Result<(), Errno> {
        if self.before.mode & SET_ID != 0 {
            rustix::fs::fchmod(&self.file, Mode::from_raw_mode(self.before.mode))?;
        }
        match &self.capability {
            Some(value) => {
                rustix::fs::fsetxattr(&self.file, CAPABILITY, value, XattrFlags::empty())
            }
            None => Ok(()),
        }
    }

    fn restore_times(&self) -> Result<(), Errno> {
        rustix::fs::futimens(&self.file, &times(self.before.atime, self.before.mtime))
    }

    /// Gives the blocks of a copy that failed back. The mark is still there, so whatever happens here the content is the object's.
    fn undo(&self) {
        let undone = rustix::fs::ftruncate(&self.file, 0)
            .and_then(|()| rustix::fs::ftruncate(&self.file, self.before.size))
            .and_then(|()| self.restore_privileges())
            .and_then(|()| self.restore_times());
        if let Err(errno) = undone {
            tracing::warn!(object = %self.object, %errno, "what a failed copy-up left cannot be taken back");
        }
    }
}
