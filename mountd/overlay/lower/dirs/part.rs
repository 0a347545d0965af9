//! A directory of one layer, found by descriptor.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::lru::Lru;
use crate::overlay::places::walk;
use crate::overlay::types::Errno;

/// Descriptors of directories that are kept, beside those of the layers.
const CACHED: usize = 512;

/// A directory of a layer.
#[derive(Debug)]
pub(super) struct Part {
    number: u32,
    /// The layer's place in the stack; 0 is the top.
    pub(super) layer: u16,
    parent: Option<Arc<Part>>,
    name: Arc<[u8]>,
}

/// The layers, and descriptors of directories in them.
#[derive(Debug)]
pub(super) struct Parts {
    roots: Vec<Arc<OwnedFd>>,
    next: AtomicU32,
    cache: Mutex<Lru<u32, Arc<OwnedFd>>>,
}

impl Parts {
    pub(super) fn new(roots: Vec<OwnedFd>) -> Self {
        Self {
            roots: roots.into_iter().map(Arc::new).collect(),
            next: AtomicU32::new(0),
            cache: Mutex::new(Lru::new(CACHED)),
        }
    }

    /// The number of layers.
    pub(super) fn layers(&self) -> u16 {
        u16::try_from(self.roots.len()).unwrap_or(u16::MAX)
    }

    /// The root directory of a layer.
    pub(super) fn root(&self, layer: u16) -> Arc<Part> {
        self.part(layer, None, Arc::from(&b"."[..]))
    }

    /// A directory in a directory.
    pub(super) fn below(&self, parent: &Arc<Part>, name: &Arc<[u8]>) -> Arc<Part> {
        self.part(parent.layer, Some(Arc::clone(parent)), Arc::clone(name))
    }

    fn part(&self, layer: u16, parent: Option<Arc<Part>>, name: Arc<[u8]>) -> Arc<Part> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Arc::new(Part {
            number,
            layer,
            parent,
            name,
        })
    }

    /// A descriptor (`O_PATH`) of a directory. The path to it crosses no mount and follows no link.
    pub(super) fn open(&self, part: &Arc<Part>) -> Result<Arc<OwnedFd>, Errno> {
        let mut names = Vec::new();
        let mut at = part;
        let from = loop {
            let Some(parent) = &at.parent else {
                break Arc::clone(self.roots.get(usize::from(at.layer)).ok_or(Errno::IO)?);
            };
            let cached = self.cache.lock().get(at.number).map(Arc::clone);
            if let Some(open) = cached {
                break open;
            }
            names.push(at.name.to_vec());
            at = parent;
        };
        if names.is_empty() {
            return Ok(from);
        }
        names.reverse();
        let open = Arc::new(walk(from.as_fd(), &names)?);
        let dropped = self.cache.lock().insert(part.number, Arc::clone(&open));
        // Close the evicted descriptor without the lock.
        drop(dropped);
        Ok(open)
    }
}
