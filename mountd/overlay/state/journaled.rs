//! What the state tells the journal, and takes from it after a worker's death.
//!
//! Invariant: the entry of a node is written in the same step as the node, before the kernel is
//! told of it, and freed with it.

use std::sync::Arc;

use cowl_core::tree::FileType;

use super::super::lookups::LowerLookups;
use super::super::node::Node;
use super::super::opens::Opens;
use super::super::record::{self, Inherited};
use super::super::types::{Attr, LowerIno, NodeId};
use super::State;
use crate::journal::{Journal, Table};

impl State {
    /// The same, written down for a successor. If `journal` has an earlier worker's nodes, they
    /// keep their ids and lookups as they are found in the upper, until [`Event::TakenOver`].
    pub(in super::super) fn journaled(journal: Arc<Journal>) -> State {
        let mut state = State {
            lower_lookups: LowerLookups::journaled(Arc::clone(&journal)),
            created: journal.created(),
            opens: Opens::journaled(Arc::clone(&journal)),
            inherited: Inherited::read(&journal),
            journal: Some(journal),
            ..State::default()
        };
        state.take_over_passthrough();
        state
    }

    /// Nothing can be changed; open files are written down for a successor, or were by an earlier
    /// worker.
    pub(in super::super) fn read_only(journal: Arc<Journal>) -> State {
        State {
            opens: Opens::journaled(journal),
            ..State::new(0)
        }
    }

    /// Takes over which nodes go by another id, and which may be written without a request.
    fn take_over_passthrough(&mut self) {
        for record in self.inherited.records() {
            if record.written_past {
                self.written_past.insert(record.id);
            }
            if let (Some(successor), Some(origin)) = (record.successor, record.id.lower()) {
                let node = self
                    .inherited
                    .node(record.id, record.file_type, Some(origin));
                self.nodes.insert(record.id, node);
                self.renumbered.insert(origin, successor);
            }
        }
    }

    /// What a dead worker told.
    pub(in super::super) fn inherited(&self) -> &Inherited {
        &self.inherited
    }

    pub(super) fn count_created(&mut self, id: NodeId) {
        if id >= self.next_created() {
            self.created = id.0 - NodeId::FIRST_CREATED.0 + 1;
            if let Some(journal) = &self.journal {
                journal.set_created(self.created);
            }
        }
    }

    pub(super) fn node_or_new(
        &mut self,
        id: NodeId,
        file_type: FileType,
        origin: Option<LowerIno>,
    ) -> &mut Node {
        let inherited = &self.inherited;
        self.nodes
            .entry(id)
            .or_insert_with(|| inherited.node(id, file_type, origin))
    }

    /// Tells a successor what it must know of a node, also that it is no more.
    pub(super) fn note(&mut self, id: NodeId) {
        if let (Some(journal), Some(node)) = (&self.journal, self.nodes.get_mut(&id)) {
            let words = record::words(id, node, self.written_past.contains(&id));
            node.entry = journal.write(Table::Nodes, node.entry, &words);
        }
    }

    pub(super) fn vanished(
        &mut self,
        id: NodeId,
        file_type: FileType,
        origin: Option<LowerIno>,
        attr: Attr,
        lost: bool,
    ) {
        self.node_or_new(id, file_type, origin).lost = lost;
        self.gone(id, file_type, origin, attr);
    }

    pub(super) fn taken_over(&mut self) {
        let inherited = std::mem::take(&mut self.inherited);
        let nodes = &self.nodes;
        self.written_past.retain(|id| nodes.contains_key(id));
        let Some(journal) = &self.journal else { return };
        for (id, entry) in inherited.entries() {
            if !self.nodes.contains_key(&id) {
                journal.clear(Table::Nodes, entry);
            }
        }
    }
}

pub(super) fn note_lookups(journal: Option<&Journal>, node: &Node) {
    if let (Some(journal), Some(entry)) = (journal, node.entry) {
        journal.set_entry_word(Table::Nodes, entry, record::LOOKUPS, node.lookups);
    }
}
