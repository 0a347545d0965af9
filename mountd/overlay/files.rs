//! Host files by node, opened when they are first needed and kept until others were needed more
//! recently: the kernel's handles and a client's open files hold none of ours.
//!
//! Invariant: a kept file is the one that holds the node's bytes, or its object while the content
//! was copied up since; [`Overlay::node_file`] tells the two apart.

use std::fs::File;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::OFlags;

use super::Overlay;
use super::content::Content;
use super::opens::Serving;
use super::types::{Errno, HandleId, NodeId, Side};
use crate::lru::Lru;

/// Files kept open.
const KEPT: usize = 128;

/// The kept files. Level 4: its lock is held for table work only.
#[derive(Debug)]
pub(super) struct NodeFiles {
    kept: Mutex<Lru<NodeId, KeptFile>>,
}

#[derive(Debug)]
struct KeptFile {
    real: RealFile,
    write: bool,
}

/// An opened host file that holds a node's bytes (overlayfs's real file), and the side it is on.
#[derive(Clone, Debug)]
pub(super) struct RealFile {
    pub(super) side: Side,
    /// None: an empty lower file, which has no object.
    pub(super) file: Option<Arc<File>>,
}

impl RealFile {
    /// A file of the upper.
    pub(super) fn upper(file: Arc<File>) -> Self {
        Self {
            side: Side::Upper,
            file: Some(file),
        }
    }
}

impl NodeFiles {
    pub(super) fn new() -> Self {
        Self {
            kept: Mutex::new(Lru::new(KEPT)),
        }
    }

    fn get(&self, id: NodeId, write: bool) -> Option<RealFile> {
        let mut kept = self.kept.lock();
        let file = kept.get(id).filter(|file| file.write || !write)?;
        Some(file.real.clone())
    }

    /// The upper's file of a node, if it is kept.
    pub(super) fn upper_file(&self, id: NodeId) -> Option<Arc<File>> {
        let real = self.get(id, false)?;
        real.file.filter(|_| real.side == Side::Upper)
    }

    pub(super) fn put(&self, id: NodeId, write: bool, real: RealFile) {
        let dropped = self.kept.lock().insert(id, KeptFile { real, write });
        // Closes a file without the lock, and frees it where it was its last use.
        drop(dropped);
    }

    pub(super) fn forget(&self, id: NodeId) {
        let dropped = self.kept.lock().remove(id);
        drop(dropped);
    }

    /// Closes all files, and keeps none until [`resume`](Self::resume).
    fn pause(&self) {
        let dropped = self.kept.lock().pause();
        // Close them without the lock.
        dropped.for_each(drop);
    }

    fn resume(&self) {
        self.kept.lock().resume();
    }
}

/// While it lives, no descriptor is kept only to save opening it again.
#[derive(Debug)]
pub struct NothingKept<'o>(&'o Overlay);

impl Drop for NothingKept<'_> {
    fn drop(&mut self) {
        self.0.files.resume();
        self.0.places.resume();
    }
}

impl Overlay {
    /// Closes the descriptors that are kept only to save opening them again: after EMFILE.
    /// Until the guard is dropped, other requests do not fill the table again.
    pub fn close_kept(&self) -> NothingKept<'_> {
        self.files.pause();
        self.places.pause();
        NothingKept(self)
    }

    /// The file to register for a node that is open in passthrough.
    pub fn backing_file(&self, id: NodeId) -> Result<Arc<File>, Errno> {
        let _guard = self.busy.lock(&[id]);
        self.open_real_file(id, false)?.file.ok_or(Errno::IO)
    }

    pub(super) fn file_to_read(
        &self,
        id: NodeId,
        handle: Option<HandleId>,
    ) -> Result<Option<Arc<File>>, Errno> {
        if let Some(handle) = handle {
            self.open_file(handle)?;
        }
        self.node_file(id, false).map(|real| real.file)
    }

    pub(super) fn file_to_write(
        &self,
        id: NodeId,
        handle: Option<HandleId>,
    ) -> Result<Arc<File>, Errno> {
        if let Some(handle) = handle
            && !self.open_file(handle)?.write
        {
            return Err(Errno::BADF);
        }
        if !self.owns_content(id) {
            self.copy_up_to_write(id, u64::MAX)?;
        }
        let real = self.node_file(id, true)?;
        real.file
            .filter(|_| real.side == Side::Upper)
            .ok_or(Errno::BADF)
    }

    fn node_file(&self, id: NodeId, write: bool) -> Result<RealFile, Errno> {
        if let Some(real) = self.files.get(id, write)
            && (real.side == Side::Upper || !self.owns_content(id))
        {
            return Ok(real);
        }
        let _guard = self.busy.lock(&[id]);
        let real = self.open_real_file(id, write)?;
        self.files.put(id, write, real.clone());
        Ok(real)
    }

    /// Opens the host file that holds a node's bytes. The caller guards the node.
    fn open_real_file(&self, id: NodeId, write: bool) -> Result<RealFile, Errno> {
        // All opens of such a node read the object, whatever became of its names since.
        let in_lower = self.serving(id) == Some(Serving::Lower);
        let content = if in_lower {
            None
        } else {
            self.locate_content(id)?
        };
        let node = match content {
            Some(Content::Upper) => {
                let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
                let file = self.place_of(id)?.open(access)?;
                return Ok(RealFile::upper(Arc::new(file)));
            }
            Some(Content::Lower(origin)) => origin,
            None if !in_lower && self.is_lost(id) => return Err(Errno::STALE),
            None => id.lower().ok_or(Errno::STALE)?,
        };
        let file = self.lower.open_content(node)?;
        Ok(RealFile {
            side: Side::Lower,
            file: file.map(Arc::new),
        })
    }
}
