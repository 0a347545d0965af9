//! What the state tells the journal, and takes from it after a worker's death.
//!
//! Invariant: the entry of a node is written in the same step as the node, before the kernel is
//! told of it, and freed with it.

use std::sync::Arc;

use cowl_core::tree::FileType;

use super::super::lookups::LowerLookups;
use super::super::node::Node;
use super::super::record::{self, Inherited};
use super::super::types::{Attr, LowerIno, NodeId};
use super::State;
use crate::journal::Journal;

impl State {
    /// The same, written down for a successor. If `journal` has an earlier worker's nodes, they
    /// keep their ids and lookups as they are found in the upper, until [`Event::TakenOver`].
    pub(in super::super) fn journaled(journal: Arc<Journal>) -> State {
        let inherited = Inherited::read(&journal);
        State {
            lower_lookups: LowerLookups::journaled(Arc::clone(&journal)),
            created: journal.created(),
            journal: Some(journal),
            inherited,
            ..State::default()
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
            node.entry = journal.write_node(node.entry, &record::words(id, node));
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
        let Some(journal) = &self.journal else { return };
        for (id, entry) in inherited.entries() {
            if !self.nodes.contains_key(&id) {
                journal.clear_node(entry);
            }
        }
    }
}

pub(super) fn note_lookups(journal: Option<&Journal>, node: &Node) {
    if let (Some(journal), Some(entry)) = (journal, node.entry) {
        journal.set_node_word(entry, record::LOOKUPS, node.lookups);
    }
}
