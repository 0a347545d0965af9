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
pub(super) struct Unseen {
    /// Changes begun so far.
    begun: AtomicU64,
    /// Those under way, by node, with what was there before.
    before: Mutex<HashMap<NodeId, Attr>>,
}

/// A change under way; it has been put back when this is dropped. Begun and dropped by who guards the node.
#[derive(Debug)]
pub(super) struct UnderWay<'u> {
    unseen: &'u Unseen,
    node: NodeId,
}

/// Taken before attributes are read, to tell afterwards what they are worth.
#[derive(Debug)]
pub(super) struct Snapshot {
    begun: u64,
    before: Option<Attr>,
}

impl Unseen {
    /// A change begins; `before` is what shows until it is over.
    pub(super) fn begin(&self, node: NodeId, before: Attr) -> UnderWay<'_> {
        let mut table = self.before.lock();
        self.begun.fetch_add(1, Ordering::SeqCst);
        table.insert(node, before);
        UnderWay { unseen: self, node }
    }

    /// Whether there is one of this node.
    #[cfg(test)]
    pub(super) fn is_under_way(&self, node: NodeId) -> bool {
        self.before.lock().contains_key(&node)
    }

    pub(super) fn snapshot(&self, node: NodeId) -> Snapshot {
        let table = self.before.lock();
        Snapshot {
            begun: self.begun.load(Ordering::SeqCst),
            before: table.get(&node).copied(),
        }
    }

    /// What attributes show that were read since the snapshot. None: a change may have begun and ended meanwhile.
    pub(super) fn shown(&self, snapshot: &Snapshot, read: Attr) -> Option<Attr> {
        if snapshot.before.is_none() && self.begun.load(Ordering::SeqCst) != snapshot.begun {
            return None;
        }
        Some(snapshot.shown_to_guard(read))
    }
}

impl Snapshot {
    /// The same for who guards the node, so that none of its changes begins or ends meanwhile.
    pub(super) fn shown_to_guard(&self, read: Attr) -> Attr {
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

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.unseen.before.lock().remove(&self.node);
    }
}
