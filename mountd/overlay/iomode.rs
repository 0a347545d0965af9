//! Chooses how an open file is served: by requests through the kernel's cache, or in passthrough.
//!
//! The kernel allows one backing file per inode at a time, and no cached open beside a passthrough
//! one (it answers EIO). So the choice ([`Serving`]) belongs to the node: the first open makes it,
//! further opens share it until the last release. Opening is done under the node's guard.
//!
//! | type | concept |
//! |---|---|
//! | [`IoMode`] | of a mount: passthrough or cached |
//! | [`Serving`] | of an open node: cached, or passthrough of which file |
//! | [`OpenMode`] | the reply to one open |
//! | [`Side`] | of an opened host file: lower or upper |
//! | [`RealFile`] | an opened host file with its side |
//! | [`Content`] | of a copied-up node: whether its content was copied up too |

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::Mutex;

use super::content::Content;
use super::event::Event;
use super::opens::{OpenFile, Serving};
use super::types::{Attr, Backing, Errno, HandleId, NodeId, OpenMode, Opened, Side};
use super::{IoMode, Overlay};

/// Lower files of at least this many bytes, and all ELF files, are served in passthrough: mounts
/// then share their page cache. Smaller ones are cached, so that a reader sees later writes. The
/// differences are in `docs/posix.md`.
const LARGE: u64 = 1 << 20;

const SET_ID: u32 = 0o6000;

/// The host files of open handles. Level 4: its lock is held for table work only.
#[derive(Debug, Default)]
pub(super) struct HandleFiles {
    files: Mutex<HashMap<HandleId, RealFile>>,
}

/// An opened host file that holds a node's bytes (overlayfs's real file), and the side it is on.
#[derive(Clone, Debug)]
pub(super) struct RealFile {
    pub(super) side: Side,
    /// None: an empty lower file, which has no object.
    pub(super) file: Option<Arc<File>>,
}

impl HandleFiles {
    pub(super) fn get(&self, handle: HandleId) -> Option<RealFile> {
        self.files.lock().get(&handle).cloned()
    }

    /// The upper's file that a handle has open.
    pub(super) fn upper_file(&self, handle: HandleId) -> Option<Arc<File>> {
        let real = self.get(handle)?;
        real.file.filter(|_| real.side == Side::Upper)
    }

    pub(super) fn put(&self, handle: HandleId, real: RealFile) {
        self.files.lock().insert(handle, real);
    }

    pub(super) fn forget(&self, handle: HandleId) {
        self.files.lock().remove(&handle);
    }
}

impl Overlay {
    /// How a node is served, if it is open.
    pub(super) fn serving(&self, id: NodeId) -> Option<Serving> {
        self.state.read().opens().serving(id)
    }

    /// An open file and its host file.
    pub(super) fn open_file(&self, handle: HandleId) -> Result<(OpenFile, RealFile), Errno> {
        let file = self.state.read().opens().file(handle).ok_or(Errno::BADF)?;
        let real = self.handles.get(handle).ok_or(Errno::BADF)?;
        Ok((file, real))
    }

    /// Whether a node's attributes may change without a request: in passthrough the kernel writes
    /// to the file itself, and sends nothing for a write through a shared mapping. The kernel must
    /// not cache these attributes.
    pub fn is_written_in_passthrough(&self, id: NodeId) -> bool {
        self.io_mode == IoMode::Passthrough && self.state.read().is_written_past(id)
    }

    /// Checks whether that has ended: the file is closed, and neither a mapping nor a backing id
    /// holds it open.
    pub fn settle(&self, id: NodeId) -> bool {
        let _guard = self.busy.lock(&[id]);
        if self.serving(id).is_some() {
            return false;
        }
        let writers = self
            .place_of(id)
            .and_then(|place| place.open(rustix::fs::OFlags::RDONLY))
            .map_err(std::io::Error::from)
            .and_then(|file| crate::sys::lease::has_writers(file.as_fd()));
        match writers {
            Ok(false) => {
                self.commit(|_| [Event::Settled { node: id }]);
                true
            }
            Ok(true) => false,
            // The attributes stay uncached.
            Err(error) => {
                tracing::debug!(node = id.0, %error, "cannot tell whether a file is still mapped");
                false
            }
        }
    }

    /// Whether a file that loses its last name must become an orphan. In the cached mode the
    /// kernel does not report opens.
    pub(super) fn may_be_open(&self, id: NodeId) -> bool {
        self.io_mode == IoMode::Cached || self.serving(id).is_some()
    }

    /// Registers an opened file and returns how it is served. `new` is the mode of a file just
    /// created. The caller guards the node.
    pub(super) fn register_open(
        &self,
        id: NodeId,
        write: bool,
        real: RealFile,
        new: Option<u32>,
    ) -> Result<Opened, Errno> {
        if self.io_mode == IoMode::Cached {
            return Ok(Opened {
                handle: HandleId(0),
                mode: OpenMode::Cached,
                unsettles: false,
            });
        }
        let serving = match self.serving(id) {
            Some(serving) => serving,
            None => self.choose_serving(id, &real, new)?,
        };
        let mode = match (serving, &real.file) {
            (Serving::Cached, _) | (_, None) => OpenMode::Cached,
            (_, Some(file)) => OpenMode::Passthrough(Backing {
                file: Arc::clone(file),
                side: real.side,
            }),
        };
        let file = OpenFile { node: id, write };
        let (mut handle, mut unsettles) = (HandleId(0), false);
        self.commit(|state| {
            handle = state.opens().next_handle();
            unsettles = write && serving == Serving::Upper && !state.is_written_past(id);
            [Event::Opened {
                handle,
                file,
                serving,
            }]
        });
        self.handles.put(handle, real);
        Ok(Opened {
            handle,
            mode,
            unsettles,
        })
    }

    fn choose_serving(
        &self,
        id: NodeId,
        real: &RealFile,
        new: Option<u32>,
    ) -> Result<Serving, Errno> {
        match real {
            RealFile { file: None, .. } => Ok(Serving::Cached),
            RealFile {
                side: Side::Upper, ..
            } => {
                let privileged = match new {
                    Some(mode) => mode & SET_ID != 0,
                    None => self.is_privileged(id)?,
                };
                Ok(if privileged {
                    Serving::Cached
                } else {
                    Serving::Upper
                })
            }
            RealFile {
                side: Side::Lower, ..
            } => {
                let attr = self.attr_guarded(id)?;
                Ok(if attr.nlink == 1 && self.passthrough_pays(id, &attr)? {
                    Serving::Lower
                } else {
                    Serving::Cached
                })
            }
        }
    }

    /// Whether a lower file is worth passthrough. A copied-up file that was truncated is shorter
    /// than its object, so it cannot be passed through.
    fn passthrough_pays(&self, id: NodeId, attr: &Attr) -> Result<bool, Errno> {
        let origin = self
            .state
            .read()
            .node(id)
            .map_or(id.lower(), |node| node.origin);
        let Some(origin) = origin else {
            return Ok(false);
        };
        let record = self.lower.node(origin)?;
        let size = record.attr.size;
        Ok(size == attr.size && (record.elf || size >= LARGE))
    }

    /// Opens the host file that holds a node's bytes. The caller guards the node.
    pub(super) fn open_real_file(&self, id: NodeId, write: bool) -> Result<RealFile, Errno> {
        let node = match self.locate_content(id)? {
            Some(Content::Upper) => {
                let access = if write {
                    rustix::fs::OFlags::RDWR
                } else {
                    rustix::fs::OFlags::RDONLY
                };
                let file = self.place_of(id)?.open(access)?;
                return Ok(RealFile {
                    side: Side::Upper,
                    file: Some(Arc::new(file)),
                });
            }
            Some(Content::Lower(origin)) => origin,
            None if self.is_lost(id) => return Err(Errno::STALE),
            None => id.lower().ok_or(Errno::STALE)?,
        };
        let file = self.lower.open_content(node)?;
        Ok(RealFile {
            side: Side::Lower,
            file: file.map(Arc::new),
        })
    }

    /// Gives a node's names a new id: its content changes while the kernel reads the object under
    /// the old one. The caller guards it.
    pub(super) fn renumber(&self, id: NodeId) -> Result<(), Errno> {
        if !self.in_upper(id) {
            return Err(Errno::STALE);
        }
        self.commit(|state| {
            [Event::Renumbered {
                from: id,
                to: state.next_born(),
            }]
        });
        Ok(())
    }
}
