//! Open files, by handle and by node. Part of the state, so plain values: descriptors are kept in
//! [`super::iomode`] and can be reopened from these.

use std::collections::HashMap;

use super::types::{HandleId, NodeId};

/// How all opens of a node are served, from its first open to its last release.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Serving {
    /// By requests to the worker, through the kernel's cache.
    Cached,
    /// In passthrough, from the object.
    Lower,
    /// In passthrough, from the upper file.
    Upper,
}

/// An open file.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct OpenFile {
    pub(super) node: NodeId,
    pub(super) write: bool,
}

/// The tables of open files.
#[derive(Debug, Default)]
pub(super) struct Opens {
    last: u64,
    files: HashMap<HandleId, OpenFile>,
    nodes: HashMap<NodeId, OpenNode>,
}

#[derive(Debug)]
struct OpenNode {
    count: u64,
    serving: Serving,
}

impl Opens {
    /// How a node is served, if it is open.
    pub(super) fn serving(&self, node: NodeId) -> Option<Serving> {
        self.nodes.get(&node).map(|open| open.serving)
    }

    pub(super) fn file(&self, handle: HandleId) -> Option<OpenFile> {
        self.files.get(&handle).copied()
    }

    /// The handle that the next file opened will have.
    pub(super) fn next_handle(&self) -> HandleId {
        HandleId(self.last + 1)
    }

    pub(super) fn opened(&mut self, handle: HandleId, file: OpenFile, serving: Serving) {
        self.last = self.last.max(handle.0);
        self.files.insert(handle, file);
        let closed = OpenNode { count: 0, serving };
        self.nodes.entry(file.node).or_insert(closed).count += 1;
    }

    pub(super) fn released(&mut self, handle: HandleId) -> Option<OpenFile> {
        let file = self.files.remove(&handle)?;
        if let Some(open) = self.nodes.get_mut(&file.node) {
            open.count -= 1;
            if open.count == 0 {
                self.nodes.remove(&file.node);
            }
        }
        Some(file)
    }
}
