//! Masks the side effects of copy-up in attributes: the times of the directory that a file is
//! copied into; the times, length and set-id bits of a file while its content is copied.
//!
//! Invariant: while a node is masked, its attributes are reported as they were before. The kernel
//! caches attributes for good, so a temporary value would never be corrected.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::types::{Attr, NodeId};

/// The masked nodes. Level 4: its lock is held for table work only.
#[derive(Debug, Default)]
pub(super) struct MaskedAttrs {
    /// Number of masks ever set.
    started: AtomicU64,
    /// Masked nodes, with the attributes to show.
    masks: Mutex<HashMap<NodeId, Attr>>,
}

/// A masked node; restore its attributes before dropping this. Set and dropped under the node's
/// guard.
#[derive(Debug)]
pub(super) struct AttrMask<'m> {
    masked: &'m MaskedAttrs,
    node: NodeId,
}

/// The mask of a node before its attributes were read, to apply to them afterwards.
#[derive(Debug)]
pub(super) struct Snapshot {
    started: u64,
    before: Option<Attr>,
}

impl MaskedAttrs {
    /// Shows `before` as the node's attributes until the mask is dropped.
    pub(super) fn mask(&self, node: NodeId, before: Attr) -> AttrMask<'_> {
        let mut table = self.masks.lock();
        self.started.fetch_add(1, Ordering::SeqCst);
        table.insert(node, before);
        AttrMask { masked: self, node }
    }

    /// Whether the node is masked.
    #[cfg(test)]
    pub(super) fn is_masked(&self, node: NodeId) -> bool {
        self.masks.lock().contains_key(&node)
    }

    pub(super) fn snapshot(&self, node: NodeId) -> Snapshot {
        let table = self.masks.lock();
        Snapshot {
            started: self.started.load(Ordering::SeqCst),
            before: table.get(&node).copied(),
        }
    }

    /// Applies the mask to attributes read after the snapshot. None: a mask may have come and gone
    /// in between, so read again.
    pub(super) fn apply(&self, snapshot: &Snapshot, read: Attr) -> Option<Attr> {
        if snapshot.before.is_none() && self.started.load(Ordering::SeqCst) != snapshot.started {
            return None;
        }
        Some(snapshot.apply_guarded(read))
    }
}

impl Snapshot {
    /// The same under the node's guard, where no mask of it can come or go.
    pub(super) fn apply_guarded(&self, read: Attr) -> Attr {
        let Some(before) = self.before else {
            return read;
        };
        Attr {
            size: before.size,
            blocks: before.blocks,
            atime: before.atime,
            mtime: before.mtime,
            mode: before.mode,
            ..read
        }
    }
}

impl Drop for AttrMask<'_> {
    fn drop(&mut self) {
        self.masked.masks.lock().remove(&self.node);
    }
}
