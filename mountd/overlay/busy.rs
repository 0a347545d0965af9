//! Guards of nodes, which serialize changes so that no table lock is held over I/O.
//!
//! A thread takes a set of guards at once, and only if it holds none of the same or a later level;
//! so threads cannot deadlock. Attribute reads take no guard: they stat the host file, then
//! re-check the state.

use std::cell::Cell;
use std::collections::HashSet;

use parking_lot::{Condvar, Mutex};

use super::types::NodeId;

thread_local! {
    /// The latest level of which this thread holds guards. A second set of the same level could
    /// deadlock with another thread.
    static LEVEL: Cell<Option<Level>> = const { Cell::new(None) };
}

/// Guard levels, in the order in which they are taken.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub(super) enum Level {
    /// A copy-up of a file's content, however long it takes.
    ContentCopy,
    /// A change of nodes or their names, for a few system calls.
    Change,
}

#[derive(Debug)]
pub(super) struct Busy {
    level: Level,
    held: Mutex<HashSet<NodeId>>,
    freed: Condvar,
}

/// Guarded nodes, released on drop.
#[derive(Debug)]
pub(super) struct Guard<'b> {
    busy: &'b Busy,
    nodes: Vec<NodeId>,
    outer: Option<Level>,
}

impl Busy {
    pub(super) fn new(level: Level) -> Busy {
        Busy {
            level,
            held: Mutex::default(),
            freed: Condvar::new(),
        }
    }

    /// Waits until none of the nodes is guarded, then guards them all.
    pub(super) fn lock(&self, nodes: &[NodeId]) -> Guard<'_> {
        let outer = LEVEL.replace(Some(self.level));
        debug_assert!(outer < Some(self.level), "guards are taken all at once");
        let mut nodes = nodes.to_vec();
        nodes.sort_unstable();
        nodes.dedup();
        let mut held = self.held.lock();
        while nodes.iter().any(|node| held.contains(node)) {
            self.freed.wait(&mut held);
        }
        held.extend(&nodes);
        Guard {
            busy: self,
            nodes,
            outer,
        }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let mut held = self.busy.held.lock();
        for node in &self.nodes {
            held.remove(node);
        }
        drop(held);
        LEVEL.set(self.outer);
        self.busy.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn lock_excludes_overlapping_sets_without_deadlock() {
        let busy = Busy::new(Level::Change);
        let inside = [const { AtomicU32::new(0) }; 4];
        std::thread::scope(|scope| {
            for thread in 0..4_usize {
                let (busy, inside) = (&busy, &inside);
                scope.spawn(move || {
                    for round in 0..2000_usize {
                        let pair = [(thread + round) % 4, (thread * 3 + round / 2) % 4];
                        let guard = busy.lock(&pair.map(|index| NodeId(index as u64)));
                        for index in pair {
                            let before = inside[index].fetch_add(1, Ordering::SeqCst);
                            assert!(before == 0 || pair[0] == pair[1]);
                        }
                        for index in pair {
                            inside[index].fetch_sub(1, Ordering::SeqCst);
                        }
                        drop(guard);
                    }
                });
            }
        });
    }
}
