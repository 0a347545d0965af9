//! Chooses how an open file is served: by requests through the kernel's cache, or in passthrough.
//!
//! The kernel allows one backing file per inode at a time, and no cached open beside a passthrough
//! one (it answers EIO). So the choice ([`Serving`]) belongs to the node: the first open makes it,
//! further opens share it until the last release. Opening is done under the node's guard.
//!
//! | type | concept |
//! |---|---|
//! | [`IoMode`](super::IoMode) | of a mount: passthrough, cached or writeback |
//! | [`Serving`] | of an open node: cached, or passthrough of which file |
//! | [`OpenMode`] | the reply to one open |
//! | [`Side`] | of an opened host file: lower or upper |
//! | [`RealFile`](super::files::RealFile) | an opened host file with its side |
//! | [`Content`](super::content::Content) | of a copied-up node: whether its content was copied up too |

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::OFlags;

use super::Overlay;
use super::event::Event;
use super::files::RealFile;
use super::opens::{OpenFile, Serving};
use super::types::{Attr, Backing, Errno, HandleId, NodeId, OpenMode, Opened, Side};
use crate::journal::Intent;

/// Lower files of at least this many bytes, and all ELF files, are served in passthrough: mounts
/// then share their page cache. Smaller ones are cached, so that a reader sees later writes. The
/// differences are in `docs/posix.md`.
const LARGE: u64 = 1 << 20;

const SET_ID: u32 = 0o6000;

impl Overlay {
    /// How a node is served, if it is open.
    pub(super) fn serving(&self, id: NodeId) -> Option<Serving> {
        self.state.read().opens().serving(id)
    }

    /// The open file of a handle.
    pub(super) fn open_file(&self, handle: HandleId) -> Result<OpenFile, Errno> {
        self.state.read().opens().file(handle).ok_or(Errno::BADF)
    }

    /// Whether a node's attributes may change without a request: in passthrough the kernel writes
    /// to the file itself, and sends nothing for a write through a shared mapping. The kernel must
    /// not cache these attributes.
    pub fn is_written_in_passthrough(&self, id: NodeId) -> bool {
        self.io_mode.has_handles() && self.state.read().is_written_past(id)
    }

    /// Checks whether that has ended: the file is closed, and neither a mapping nor a backing id
    /// holds it open.
    pub fn settle(&self, id: NodeId) -> bool {
        let _guard = self.busy.lock(&[id]);
        if self.serving(id).is_some() {
            return false;
        }
        // A descriptor of ours would count as a writer.
        self.files.forget(id);
        let writers = self
            .place_of(id)
            .and_then(|place| place.open(OFlags::RDONLY))
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

    /// Whether a file that loses its last name must become an orphan. Without handles the kernel
    /// does not report opens.
    pub(super) fn may_be_open(&self, id: NodeId) -> bool {
        !self.io_mode.has_handles() || self.serving(id).is_some()
    }

    /// Registers an open and returns how it is served. `new`: the file was just created, with this
    /// mode, and is open already. The caller guards the node.
    pub(super) fn register_open(
        &self,
        id: NodeId,
        write: bool,
        new: Option<(u32, Arc<File>)>,
    ) -> Result<Opened, Errno> {
        if !self.io_mode.has_handles() {
            if let Some((_, file)) = new {
                self.files.put(id, true, RealFile::upper(file));
            }
            return Ok(Opened {
                handle: HandleId(0),
                mode: OpenMode::Cached,
                unsettles: false,
            });
        }
        let serving = match (self.serving(id), &new) {
            (Some(serving), _) => serving,
            (None, Some((mode, _))) if mode & SET_ID != 0 => Serving::Cached,
            (None, Some(_)) => Serving::Upper,
            (None, None) => self.choose_serving(id)?,
        };
        let side = match serving {
            Serving::Cached => None,
            Serving::Lower => Some(Side::Lower),
            Serving::Upper => Some(Side::Upper),
        };
        let is_new = new.is_some();
        let file = new.map(|(_, file)| file);
        let mode = side.map_or(OpenMode::Cached, |side| {
            OpenMode::Passthrough(Backing { file, side })
        });
        let file = OpenFile { node: id, write };
        let (mut handle, mut unsettles) = (HandleId(0), false);
        self.commit(|state| {
            handle = state.opens().next_handle();
            // All handles of a new file are its maker's.
            if !is_new {
                self.intend(Intent::Open { handle: handle.0 });
            }
            unsettles = write && serving == Serving::Upper && !state.is_written_past(id);
            [Event::Opened {
                handle,
                file,
                serving,
            }]
        });
        Ok(Opened {
            handle,
            mode,
            unsettles,
        })
    }

    fn choose_serving(&self, id: NodeId) -> Result<Serving, Errno> {
        let attr = self.attr_guarded(id)?;
        if self.owns_content(id) {
            let cached = attr.mode & SET_ID != 0 || self.has_capability(id)?;
            return Ok(if cached {
                Serving::Cached
            } else {
                Serving::Upper
            });
        }
        let passed = attr.nlink == 1 && self.passthrough_pays(id, &attr)?;
        Ok(if passed {
            Serving::Lower
        } else {
            Serving::Cached
        })
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

    /// Gives a node's names a new id: its content changes while the kernel reads the object under
    /// the old one. The caller guards it.
    pub(super) fn renumber(&self, id: NodeId) -> Result<(), Errno> {
        if !self.in_upper(id) {
            return Err(Errno::STALE);
        }
        self.commit(|state| {
            [Event::Renumbered {
                from: id,
                to: state.next_created(),
            }]
        });
        Ok(())
    }
}
