//! Open files, by handle and by node. Part of the state, so plain values: descriptors are kept in
//! [`super::iomode`] and can be reopened from these.
//!
//! A worker's successor finds them in the journal, an entry each:
//!
//! ```text
//!   0        1      2
//!  +--------+------+--------------------------------------+
//!  | handle | node | 1: for writing; serving, from bit 1  |
//!  +--------+------+--------------------------------------+
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use super::types::{HandleId, NodeId};
use crate::journal::{ENTRY, Intent, Journal, Table};

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

impl Serving {
    fn to_bits(self) -> u64 {
        match self {
            Self::Cached => 0,
            Self::Lower => 1,
            Self::Upper => 2,
        }
    }

    fn of_bits(bits: u64) -> Option<Serving> {
        Some(match bits {
            0 => Self::Cached,
            1 => Self::Lower,
            2 => Self::Upper,
            _ => return None,
        })
    }
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
    files: HashMap<HandleId, Listed>,
    nodes: HashMap<NodeId, OpenNode>,
    journal: Option<Arc<Journal>>,
}

#[derive(Debug)]
struct Listed {
    file: OpenFile,
    /// Its entry in the journal, if there is one.
    entry: Option<u32>,
}

#[derive(Debug)]
struct OpenNode {
    count: u32,
    serving: Serving,
}

impl Opens {
    /// What dead workers had open; from here on written down for a successor.
    pub(super) fn journaled(journal: Arc<Journal>) -> Opens {
        // A handle is intended before it is counted as given.
        let intents = journal.intents().into_iter();
        let intended = intents.filter_map(|intent| match intent {
            Intent::Open { handle } => Some(handle),
            _ => None,
        });
        let mut opens = Opens {
            last: intended.fold(journal.last_handle(), u64::max),
            ..Opens::default()
        };
        for (entry, words) in journal.inherited(Table::Opens) {
            if let Some((handle, file, serving)) = read(words) {
                opens.list(handle, file, serving, Some(entry));
            }
        }
        opens.journal = Some(journal);
        opens
    }

    /// How a node is served, if it is open.
    pub(super) fn serving(&self, node: NodeId) -> Option<Serving> {
        self.nodes.get(&node).map(|open| open.serving)
    }

    pub(super) fn file(&self, handle: HandleId) -> Option<OpenFile> {
        self.files.get(&handle).map(|listed| listed.file)
    }

    /// The handles of a node; a search through all.
    pub(super) fn handles(&self, node: NodeId) -> Vec<HandleId> {
        let files = self.files.iter();
        let of_node = files.filter(|(_, listed)| listed.file.node == node);
        of_node.map(|(handle, _)| *handle).collect()
    }

    /// How often each node is open in passthrough.
    pub(super) fn in_passthrough(&self) -> HashMap<NodeId, u32> {
        let nodes = self.nodes.iter();
        let passed = nodes.filter(|(_, open)| open.serving != Serving::Cached);
        passed.map(|(node, open)| (*node, open.count)).collect()
    }

    /// The handle that the next file opened will have.
    pub(super) fn next_handle(&self) -> HandleId {
        HandleId(self.last + 1)
    }

    pub(super) fn opened(&mut self, handle: HandleId, file: OpenFile, serving: Serving) {
        self.last = self.last.max(handle.0);
        let entry = self.journal.as_ref().and_then(|journal| {
            journal.set_last_handle(self.last);
            journal.write(Table::Opens, None, &words(handle, file, serving))
        });
        self.list(handle, file, serving, entry);
    }

    fn list(&mut self, handle: HandleId, file: OpenFile, serving: Serving, entry: Option<u32>) {
        self.files.insert(handle, Listed { file, entry });
        let closed = OpenNode { count: 0, serving };
        self.nodes.entry(file.node).or_insert(closed).count += 1;
    }

    pub(super) fn released(&mut self, handle: HandleId) -> Option<OpenFile> {
        let Listed { file, entry } = self.files.remove(&handle)?;
        if let Some(open) = self.nodes.get_mut(&file.node) {
            open.count -= 1;
            if open.count == 0 {
                self.nodes.remove(&file.node);
            }
        }
        if let (Some(journal), Some(entry)) = (&self.journal, entry) {
            journal.clear(Table::Opens, entry);
        }
        Some(file)
    }
}

fn words(handle: HandleId, file: OpenFile, serving: Serving) -> [u64; ENTRY] {
    let how = u64::from(file.write) | serving.to_bits() << 1;
    [handle.0, file.node.0, how, 0, 0, 0, 0, 0]
}

fn read(words: [u64; ENTRY]) -> Option<(HandleId, OpenFile, Serving)> {
    let [handle, node, how, ..] = words;
    let file = OpenFile {
        node: NodeId(node),
        write: how & 1 != 0,
    };
    Some((HandleId(handle), file, Serving::of_bits(how >> 1)?))
}
