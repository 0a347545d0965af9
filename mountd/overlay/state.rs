//! The in-memory state beyond the tree: which nodes have an upper file and where, the names in the
//! upper's directories, open files, and lookup counts.
//!
//! Invariant: only [`State::apply`] changes it, and an [`Event`] is a plain value for a change that
//! is already on disk. So a log of events is a state. No operation here does I/O; the overlay keeps
//! the lock around it for table work only.

mod journaled;

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use cowl_core::tree::FileType;

use super::dir::{Dir, Name, Target, Under};
use super::event::Event;
use super::lookups::LowerLookups;
use super::node::{Home, Node, UpperFile};
use super::opens::{OpenFile, Opens, Serving};
use super::record::Inherited;
use super::types::{Attr, HandleId, LowerIno, NodeId};
use crate::journal::{Journal, Table};
use journaled::note_lookups;

/// Everything that was changed.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Of nodes of the lower, changed or not; those of others are with their entries.
    lower_lookups: LowerLookups,
    nodes: HashMap<NodeId, Node>,
    dirs: HashMap<NodeId, Dir>,
    /// Host inode to node: how a hard link is known again in another directory. Directories are not
    /// in it.
    hosts: HashMap<u64, NodeId>,
    /// Nodes of the lower that go by another id since their content changed under a passthrough
    /// reader.
    renumbered: HashMap<LowerIno, NodeId>,
    /// Nodes whose file in `work/index` has marks that make no sense.
    damaged: HashSet<NodeId>,
    /// Open for writing in passthrough, or once so and perhaps mapped still: their attributes
    /// change without a request.
    written_past: HashSet<NodeId>,
    created: u64,
    opens: Opens,
    has_shrunk: bool,
    /// State for a successor that the upper does not have.
    journal: Option<Arc<Journal>>,
    /// A dead worker's state, until its nodes are found.
    inherited: Inherited,
}

/// A table that has room for so many entries is not made smaller.
const SMALL: usize = 256;

impl State {
    /// Nothing is changed yet; `counted` nodes of the lower have their lookups counted.
    pub(super) fn new(counted: u32) -> State {
        State {
            lower_lookups: LowerLookups::new(counted),
            ..State::default()
        }
    }

    /// Whether a table has become much smaller since this was asked last.
    pub(super) fn take_has_shrunk(&mut self) -> bool {
        std::mem::take(&mut self.has_shrunk)
    }

    /// Entries of all tables, and how many they have room for.
    #[cfg(test)]
    pub(super) fn size(&self) -> (usize, usize) {
        let (nodes, hosts) = (&self.nodes, &self.hosts);
        let rest = self.dirs.len() + self.renumbered.len() + self.written_past.len();
        let room = nodes.capacity() + hosts.capacity() + self.written_past.capacity();
        (nodes.len() + hosts.len() + rest, room)
    }

    /// Lookups of nodes of the lower.
    pub(super) fn lower_lookups(&self) -> &LowerLookups {
        &self.lower_lookups
    }

    /// Whether the kernel may know a node.
    pub(super) fn is_looked_up(&self, id: NodeId) -> bool {
        match id.lower() {
            Some(node) => self.lower_lookups.is_known(node),
            None => self.node(id).is_some_and(|node| node.lookups > 0),
        }
    }

    /// Whether the kernel may be writing to a file without telling.
    pub(super) fn is_written_past(&self, id: NodeId) -> bool {
        self.written_past.contains(&id)
    }

    /// The id that a node of the lower goes by.
    pub(super) fn id_of(&self, node: LowerIno) -> NodeId {
        self.renumbered
            .get(&node)
            .copied()
            .unwrap_or(NodeId::of_lower(node))
    }

    /// The node that a file of the upper is. None: another file is that node already, so one of the
    /// two marks is forged.
    pub(super) fn node_of_file(
        &self,
        host: u64,
        file_type: FileType,
        origin: Option<LowerIno>,
    ) -> Option<NodeId> {
        let linked = self.hosts.get(&host).copied();
        if let Some(id) = linked.filter(|_| file_type != FileType::Directory) {
            return Some(id);
        }
        if let Some(id) = self.inherited.node_of(host) {
            return Some(id);
        }
        let Some(origin) = origin else {
            return Some(self.next_created());
        };
        let id = self.id_of(origin);
        let other = self.node(id).and_then(|node| node.upper.as_ref());
        other.is_none_or(|file| file.host == host).then_some(id)
    }

    /// Whether a file of the upper is a node already, by whichever of its names. Not for
    /// directories.
    pub(super) fn knows_file(&self, host: u64) -> bool {
        self.hosts.contains_key(&host)
    }

    /// Whether a node's marks make no sense.
    pub(super) fn is_damaged(&self, id: NodeId) -> bool {
        self.damaged.contains(&id)
    }

    pub(super) fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// The node whose file is there, if any; a search through all.
    pub(super) fn node_at(&self, home: Home) -> Option<NodeId> {
        let mut nodes = self.nodes.iter();
        let is_there = |node: &Node| node.upper.as_ref().is_some_and(|file| file.home == home);
        nodes.find(|(_, node)| is_there(node)).map(|(id, _)| *id)
    }

    pub(super) fn dir(&self, id: NodeId) -> Option<&Dir> {
        self.dirs.get(&id)
    }

    /// Which files are open.
    pub(super) fn opens(&self) -> &Opens {
        &self.opens
    }

    /// The id that the next node created in the upper will have. Ids of events already made count.
    pub(super) fn next_created(&self) -> NodeId {
        NodeId(NodeId::FIRST_CREATED.0 + self.created)
    }

    /// Takes over something that has happened.
    pub(super) fn apply(&mut self, event: Event) {
        match event {
            Event::DirRead {
                dir,
                subdirs,
                visible,
                impure,
                names,
            } => self.listed(dir, subdirs, visible, impure, names),
            Event::MarksRead {
                dir,
                name,
                node,
                origin,
                file_type,
                file,
            } => self.marks_read(dir, name, node, origin, file_type, file),
            Event::Damaged { node } => {
                self.damaged.insert(node);
            }
            Event::Impure { dir } => self.with_dir(dir, |dir| dir.impure = true),
            Event::Copied {
                node,
                file_type,
                origin,
                file,
            } => self.copied(node, file_type, origin, file),
            Event::Named {
                dir,
                name,
                node,
                file_type,
                under,
            } => {
                self.put(dir, name, Target::Node(node, file_type), under);
            }
            Event::Hidden { dir, name, under } => self.put(dir, name, Target::Whiteout, under),
            Event::Unnamed { dir, name } => self.take(dir, &name),
            Event::Moved { node, home } => self.with_file(node, |file| file.home = home),
            Event::Gone {
                node,
                file_type,
                origin,
                attr,
            } => self.gone(node, file_type, origin, attr),
            Event::Vanished {
                node,
                file_type,
                origin,
                attr,
                lost,
            } => self.vanished(node, file_type, origin, attr, lost),
            Event::TakenOver => self.taken_over(),
            Event::Dropped { node } => self.dropped(node),
            Event::Copying { node, saved } => self.with_file(node, |file| file.copying = saved),
            Event::ContentCopied { node } => self.with_file(node, |file| {
                file.metadata_only = false;
                file.copying = None;
                file.unsynced.inode = true;
            }),
            Event::Opaque { node } => self.with_file(node, |file| file.opaque = true),
            Event::Nlink { node, delta } => self.with_file(node, |file| file.link_delta = delta),
            Event::InodeSynced { node } => {
                self.with_file(node, |file| file.unsynced.inode = false);
            }
            Event::NameSynced { node } => self.with_file(node, |file| file.unsynced.name = false),
            Event::Renumbered { from, to } => self.renumber(from, to),
            Event::Opened {
                handle,
                file,
                serving,
            } => self.opened(handle, file, serving),
            Event::Released { handle } => self.released(handle),
            Event::Settled { node } => self.settled(node),
            Event::Looked { node } => self.looked(node),
            Event::Forgotten { node, count } => self.forgotten(node, count),
        }
    }

    fn with_dir(&mut self, dir: NodeId, change: impl FnOnce(&mut Dir)) {
        if let Some(dir) = self.dirs.get_mut(&dir) {
            change(dir);
        }
    }

    fn with_file(&mut self, node: NodeId, change: impl FnOnce(&mut UpperFile)) {
        if let Some(file) = self
            .nodes
            .get_mut(&node)
            .and_then(|node| node.upper.as_mut())
        {
            change(file);
        }
    }

    fn listed(
        &mut self,
        dir: NodeId,
        subdirs: u32,
        visible: u64,
        impure: bool,
        mut names: Vec<(Name, Target, Under)>,
    ) {
        names.sort_unstable_by(|(one, ..), (other, ..)| one.cmp(other));
        names.dedup_by(|(next, ..), (name, ..)| next == name);
        for (name, target, _) in &names {
            if let Target::Node(id, _) = target
                && let Some(node) = self.nodes.get_mut(id)
            {
                node.names.push((dir, name.clone()));
                node.gone = None;
                self.note(*id);
            }
        }
        let table = Dir::of_sorted(names, subdirs, visible, impure);
        self.dirs.insert(dir, table);
    }

    fn marks_read(
        &mut self,
        dir: NodeId,
        name: Name,
        node: NodeId,
        origin: Option<LowerIno>,
        file_type: FileType,
        file: UpperFile,
    ) {
        let Some(under) = self.dir(dir).and_then(|table| table.dirent(&name)) else {
            return;
        };
        if self
            .nodes
            .get(&node)
            .is_none_or(|node| node.upper.is_none())
        {
            self.copied(node, file_type, origin, file);
        }
        self.put(dir, name, Target::Node(node, file_type), under.under);
    }

    fn copied(
        &mut self,
        id: NodeId,
        file_type: FileType,
        origin: Option<LowerIno>,
        file: UpperFile,
    ) {
        self.count_created(id);
        if file_type != FileType::Directory {
            self.hosts.insert(file.host, id);
        }
        self.node_or_new(id, file_type, origin).upper = Some(file);
        self.note(id);
    }

    fn put(&mut self, dir: NodeId, name: Name, target: Target, under: Under) {
        self.take(dir, &name);
        let Some(table) = self.dirs.get_mut(&dir) else {
            return;
        };
        table.put(name.clone(), target, under);
        if let Target::Node(id, _) = target
            && let Some(node) = self.nodes.get_mut(&id)
        {
            node.names.push((dir, name));
            if node.gone.take().is_some() {
                self.note(id);
            }
        }
    }

    fn take(&mut self, dir: NodeId, name: &[u8]) {
        let Some(dirent) = self.dirs.get_mut(&dir).and_then(|table| table.take(name)) else {
            return;
        };
        if let Target::Node(id, _) = dirent.target
            && let Some(node) = self.nodes.get_mut(&id)
        {
            node.names
                .retain(|(of, known)| !(*of == dir && **known == *name));
        }
    }

    fn gone(&mut self, id: NodeId, file_type: FileType, origin: Option<LowerIno>, attr: Attr) {
        if let Some(table) = self.dirs.remove(&id) {
            self.has_shrunk |= table.held() > SMALL || shrink(&mut self.dirs);
        }
        let node = self.node_or_new(id, file_type, origin);
        node.gone = Some(attr);
        let kept = node
            .upper
            .as_ref()
            .is_some_and(|file| matches!(file.home, Home::Orphan(_)));
        if kept {
            self.note(id);
            self.tidy(id);
        } else {
            self.dropped(id);
        }
    }

    fn dropped(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id)
            && let Some(file) = node.upper.take()
        {
            node.lost = !file.metadata_only;
            self.hosts.remove(&file.host);
            self.has_shrunk |= shrink(&mut self.hosts);
        }
        self.note(id);
        self.tidy(id);
    }

    fn opened(&mut self, handle: HandleId, file: OpenFile, serving: Serving) {
        if file.write && serving == Serving::Upper && self.written_past.insert(file.node) {
            self.note(file.node);
        }
        self.opens.opened(handle, file, serving);
    }

    fn released(&mut self, handle: HandleId) {
        if let Some(file) = self.opens.released(handle) {
            self.tidy(file.node);
        }
    }

    fn settled(&mut self, id: NodeId) {
        self.written_past.remove(&id);
        self.note(id);
        self.has_shrunk |= shrink_set(&mut self.written_past);
    }

    fn looked(&mut self, id: NodeId) {
        if let Some(node) = id.lower() {
            self.lower_lookups.add(node);
        } else if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups += 1;
            note_lookups(self.journal.as_deref(), node);
        }
    }

    fn forgotten(&mut self, id: NodeId, count: u64) {
        if let Some(node) = id.lower() {
            self.lower_lookups.subtract(node, count);
        } else if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups = node.lookups.saturating_sub(count);
            note_lookups(self.journal.as_deref(), node);
        }
        self.tidy(id);
    }

    /// A node that nothing leads to is not kept: it has no name, no file, and the kernel doesn't
    /// know it. A node of the lower is kept only when it was removed, and needs to be only as long
    /// as the kernel could ask for it, since without it the lower would speak for it again. What is
    /// known of one that took over from a node of the lower goes back to that.
    fn tidy(&mut self, id: NodeId) {
        let dead = self.nodes.get(&id).is_some_and(|node| {
            node.upper.is_none()
                && node.names.is_empty()
                && node.successor.is_none()
                && (id.lower().is_none() || node.gone.is_some())
        });
        if !dead || self.is_looked_up(id) || self.opens.serving(id).is_some() {
            return;
        }
        let Some(node) = self.nodes.remove(&id) else {
            return;
        };
        let origin = node
            .origin
            .filter(|origin| self.renumbered.get(origin) == Some(&id));
        if let Some(origin) = origin {
            self.renumbered.remove(&origin);
            let first_id = NodeId::of_lower(origin);
            if let Some(first) = self.nodes.get_mut(&first_id) {
                first.successor = None;
                first.gone = node.gone;
                first.lost = node.lost;
            }
            // Before the entry of the id that it leads to is freed.
            self.note(first_id);
        }
        if let (Some(journal), Some(entry)) = (&self.journal, node.entry) {
            journal.clear(Table::Nodes, entry);
            self.inherited.forget(id);
        }
        self.written_past.remove(&id);
        self.has_shrunk |= shrink(&mut self.nodes) | shrink_set(&mut self.written_past);
        if let Some(origin) = origin {
            self.tidy(NodeId::of_lower(origin));
        }
    }

    fn renumber(&mut self, from: NodeId, to: NodeId) {
        self.count_created(to);
        let Some(old) = self.nodes.get_mut(&from) else {
            return;
        };
        old.successor = Some(to);
        let mut new = Node::new(old.file_type, old.origin);
        new.upper = old.upper.take();
        new.names = std::mem::take(&mut old.names);
        if let Some(file) = &new.upper {
            self.hosts.insert(file.host, to);
        }
        for (dir, name) in &new.names {
            if let Some(table) = self.dirs.get_mut(dir) {
                table.retarget(name, Target::Node(to, new.file_type));
            }
        }
        if let Some(origin) = new.origin {
            self.renumbered.insert(origin, to);
        }
        self.nodes.insert(to, new);
        // In this order: without an entry, the new id is that of the file whose origin is here.
        self.note(from);
        self.note(to);
    }
}

/// Gives back the room of a table of which three quarters are empty; whether it did.
fn shrink<K: Eq + Hash, V>(table: &mut HashMap<K, V>) -> bool {
    let sparse = table.capacity() > SMALL && table.len() < table.capacity() / 4;
    if sparse {
        table.shrink_to(table.len() * 2);
    }
    sparse
}

fn shrink_set<K: Eq + Hash>(table: &mut HashSet<K>) -> bool {
    let sparse = table.capacity() > SMALL && table.len() < table.capacity() / 4;
    if sparse {
        table.shrink_to(table.len() * 2);
    }
    sparse
}
