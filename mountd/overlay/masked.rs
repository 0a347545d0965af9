//! Changes that nobody is to see: what copying a file up does to the times of its directory, and copying its bytes to its own times,
//! length and set-id bits, until they are put back.
//!
//! Invariant: attributes that are read while such a change is under way show what was there before it. The kernel keeps what it is told
//! for good, so a glimpse of the change would stay.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::types::{Attr, NodeId};

/// Level 4: its lock is held for table work only.
#[derive(Debug, Default)]
pub(super) struct MaskedAttrs {
    /// Changes started so far.
    started: AtomicU64,
    /// Those under way, by node, with what was there before.
    masks: Mutex<HashMap<NodeId, Attr>>,
}

/// A change under way; it has been put back when this is dropped. Begun and dropped by who guards the node.
#[derive(Debug)]
pub(super) struct AttrMask<'m> {
    masked: &'m MaskedAttrs,
    node: NodeId,
}

/// Taken before attributes are read, to tell afterwards what they are worth.
#[derive(Debug)]
pub(super) struct Snapshot {
    started: u64,
    before: Option<Attr>,
}

impl MaskedAttrs {
    /// A change begins; `before` is what shows until it is over.
    pub(super) fn mask(&self, node: NodeId, before: Attr) -> AttrMask<'_> {
        let mut table = self.masks.lock();
        self.started.fetch_add(1, Ordering::SeqCst);
        table.insert(node, before);
        AttrMask { masked: self, node }
    }

    /// Whether there is one of this node.
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

    /// What attributes show that were read since the snapshot. None: a change may have started and ended meanwhile.
    pub(super) fn apply(&self, snapshot: &Snapshot, read: Attr) -> Option<Attr> {
        if snapshot.before.is_none() && self.started.load(Ordering::SeqCst) != snapshot.started {
            return None;
        }
        Some(snapshot.apply_guarded(read))
    }
}

impl Snapshot {
    /// The same for who guards the node, so that none of its changes begins or ends meanwhile.
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
