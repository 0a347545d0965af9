//! The in-memory state beyond the tree: which nodes have an upper file and where, the names in the
//! upper's directories, open files, and lookup counts.
//!
//! Invariant: only [`State::apply`] changes it, and an [`Event`] is a plain value for a change that
//! is already on disk. So a log of events is a state. No operation here does I/O; the overlay keeps
//! the lock around it for table work only.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::ops::Bound;

use cowl_core::digest::ObjectId;
use cowl_core::tree::{FileType, TreeIno};
use cowl_core::upper::marks::{FileMark, Saved};

use super::event::Event;
use super::lookups::TreeLookups;
use super::opens::{OpenFile, Opens, Serving};
use super::types::{Attr, HandleId, NodeId};

/// Cookies of names that the tree does not have; those of the tree's names are below 2^33.
pub(super) const FIRST_OWN_COOKIE: u64 = 1 << 62;

/// A name in a directory.
pub(super) type Name = Box<[u8]>;

/// Everything that was changed.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Of nodes of the tree, changed or not; those of others are with their entries.
    tree_lookups: TreeLookups,
    nodes: HashMap<NodeId, Node>,
    dirs: HashMap<NodeId, Dir>,
    /// Host inode to node: how a hard link is known again in another directory. Directories are not in it.
    hosts: HashMap<u64, NodeId>,
    /// Nodes of the tree that go by another id since their content changed under a passthrough reader.
    renumbered: HashMap<TreeIno, NodeId>,
    /// Nodes whose file in `work/index` has marks that make no sense.
    damaged: HashSet<NodeId>,
    /// Open for writing in passthrough, or once so and perhaps mapped still: their attributes change without a request.
    written_past: HashSet<NodeId>,
    born: u64,
    opens: Opens,
    has_shrunk: bool,
}

/// A table that has room for so many entries is not made smaller.
const SMALL: usize = 256;

/// A node that has a file in the upper, or no name any more.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) file_type: FileType,
    /// The tree's node that `st_ino`, and a directory's children, come from.
    pub(super) origin: Option<TreeIno>,
    pub(super) upper: Option<UpperFile>,
    /// Names of this node in the upper's directories, as far as those were read.
    names: Vec<(NodeId, Name)>,
    /// Lookups that the kernel has not given back, of a node that no tree has.
    lookups: u64,
    /// Without a name: what `stat` shows where no file is kept for it.
    gone: Option<Attr>,
    /// Its own bytes went with its file: the tree does not speak for it.
    lost: bool,
    /// The id that took over, see [`Event::Renumbered`].
    successor: Option<NodeId>,
}

/// A node's file in the upper.
#[derive(Clone, Debug)]
pub(super) struct UpperFile {
    /// The host's inode number.
    pub(super) host: u64,
    pub(super) home: Home,
    /// The content is the origin's object, up to the length of this file.
    pub(super) metadata_only: bool,
    /// The content is being copied up; what is saved in the mark meanwhile.
    pub(super) copying: Option<Saved>,
    /// A directory that shows nothing of the tree.
    pub(super) opaque: bool,
    /// A character device 0:0, kept as an empty regular file.
    pub(super) device: bool,
    /// What to add to the host's link count, see [`FileMark::link_delta`].
    pub(super) link_delta: i32,
    pub(super) unsynced: Unsynced,
}

/// What a power cut could still undo of a file that was copied up.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Unsynced {
    /// Its attributes and marks.
    pub(super) inode: bool,
    /// Its name.
    pub(super) name: bool,
}

impl UpperFile {
    /// What its mark says.
    pub(super) fn mark(&self, origin: Option<TreeIno>) -> FileMark {
        FileMark {
            origin,
            metadata_only: self.metadata_only,
            device: self.device,
            link_delta: matches!(self.home, Home::Index(_)).then_some(self.link_delta),
            copying: self.copying.clone(),
        }
    }
}

/// Where a node's file is found.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Home {
    /// At the first of its names.
    Named,
    /// `work/index`.
    Index(TreeIno),
    /// `work/orphans`, under this number.
    Orphan(u64),
}

/// The upper's part of a directory, read from it once.
#[derive(Debug)]
pub(super) struct Dir {
    slots: BTreeMap<Name, Slot>,
    /// The visible names that the tree does not have, in the order in which they are listed.
    by_cookie: BTreeMap<u64, Name>,
    /// Directories among the visible names.
    pub(super) subdirs: u32,
    /// Visible names.
    pub(super) visible: u64,
    /// Files in it bear marks.
    pub(super) impure: bool,
}

/// A name that the upper's directory holds.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Slot {
    pub(super) target: Target,
    pub(super) under: Under,
    /// Of a name that is listed by itself, not in the place of the tree's.
    cookie: Option<u64>,
}

/// What the upper says about a name.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Target {
    Whiteout,
    /// A file of which no marks were read yet.
    Unread {
        file_type: FileType,
        host: u64,
    },
    Node(NodeId, FileType),
}

/// What the tree has under a name of the upper.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Under {
    Nothing,
    File,
    Directory,
}

impl State {
    /// Nothing is changed yet; `counted` nodes of the tree have their lookups counted.
    pub(super) fn new(counted: u32) -> State {
        State {
            tree_lookups: TreeLookups::new(counted),
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

    /// Lookups of nodes of the tree.
    pub(super) fn tree_lookups(&self) -> &TreeLookups {
        &self.tree_lookups
    }

    /// Whether the kernel may know a node.
    pub(super) fn is_looked_up(&self, id: NodeId) -> bool {
        match id.tree() {
            Some(node) => self.tree_lookups.is_known(node),
            None => self.node(id).is_some_and(|node| node.lookups > 0),
        }
    }

    /// Whether the kernel may be writing to a file without telling.
    pub(super) fn is_written_past(&self, id: NodeId) -> bool {
        self.written_past.contains(&id)
    }

    /// The id that a node of the tree goes by.
    pub(super) fn id_of(&self, node: TreeIno) -> NodeId {
        self.renumbered
            .get(&node)
            .copied()
            .unwrap_or(NodeId::of_tree(node))
    }

    /// The node that a file of the upper is. None: another file is that node already, so one of the two marks is forged.
    pub(super) fn node_of_file(
        &self,
        host: u64,
        file_type: FileType,
        origin: Option<TreeIno>,
    ) -> Option<NodeId> {
        let linked = self.hosts.get(&host).copied();
        if let Some(id) = linked.filter(|_| file_type != FileType::Directory) {
            return Some(id);
        }
        let Some(origin) = origin else {
            return Some(self.next_born());
        };
        let id = self.id_of(origin);
        let other = self.node(id).and_then(|node| node.upper.as_ref());
        other.is_none_or(|file| file.host == host).then_some(id)
    }

    /// Whether a node's marks make no sense.
    pub(super) fn is_damaged(&self, id: NodeId) -> bool {
        self.damaged.contains(&id)
    }

    pub(super) fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub(super) fn dir(&self, id: NodeId) -> Option<&Dir> {
        self.dirs.get(&id)
    }

    /// Which files are open.
    pub(super) fn opens(&self) -> &Opens {
        &self.opens
    }

    /// The id that the next node born in the upper will have. Ids of events already made count.
    pub(super) fn next_born(&self) -> NodeId {
        NodeId(NodeId::FIRST_BORN.0 + self.born)
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
        let mut table = Dir {
            slots: BTreeMap::new(),
            by_cookie: BTreeMap::new(),
            subdirs,
            visible,
            impure,
        };
        // Of sorted names a map is built as a whole, without a search for each.
        let slots = names.into_iter().map(|(name, target, under)| {
            let slot = table.new_slot(&name, target, under);
            if let Target::Node(id, _) = target
                && let Some(node) = self.nodes.get_mut(&id)
            {
                node.names.push((dir, name.clone()));
                node.gone = None;
            }
            (name, slot)
        });
        let slots = slots.collect();
        table.slots = slots;
        self.dirs.insert(dir, table);
    }

    fn marks_read(
        &mut self,
        dir: NodeId,
        name: Name,
        node: NodeId,
        origin: Option<TreeIno>,
        file_type: FileType,
        file: UpperFile,
    ) {
        let Some(under) = self.dir(dir).and_then(|table| table.slot(&name)) else {
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
        origin: Option<TreeIno>,
        file: UpperFile,
    ) {
        if id >= self.next_born() {
            self.born = id.0 - NodeId::FIRST_BORN.0 + 1;
        }
        if file_type != FileType::Directory {
            self.hosts.insert(file.host, id);
        }
        let node = self.nodes.entry(id).or_insert(Node::new(file_type, origin));
        node.upper = Some(file);
    }

    fn put(&mut self, dir: NodeId, name: Name, target: Target, under: Under) {
        self.take(dir, &name);
        let Some(table) = self.dirs.get_mut(&dir) else {
            return;
        };
        let slot = table.new_slot(&name, target, under);
        table.slots.insert(name.clone(), slot);
        if let Target::Node(id, _) = target
            && let Some(node) = self.nodes.get_mut(&id)
        {
            node.names.push((dir, name));
            node.gone = None;
        }
    }

    fn take(&mut self, dir: NodeId, name: &[u8]) {
        let Some(table) = self.dirs.get_mut(&dir) else {
            return;
        };
        let Some(slot) = table.slots.remove(name) else {
            return;
        };
        if let Some(cookie) = slot.cookie {
            table.by_cookie.remove(&cookie);
        }
        table.count(slot, Sign::Remove);
        if let Target::Node(id, _) = slot.target
            && let Some(node) = self.nodes.get_mut(&id)
        {
            node.names
                .retain(|(of, known)| !(*of == dir && **known == *name));
        }
    }

    fn gone(&mut self, id: NodeId, file_type: FileType, origin: Option<TreeIno>, attr: Attr) {
        if let Some(table) = self.dirs.remove(&id) {
            self.has_shrunk |= table.slots.len() > SMALL || shrink(&mut self.dirs);
        }
        let node = self.nodes.entry(id).or_insert(Node::new(file_type, origin));
        node.gone = Some(attr);
        let kept = node
            .upper
            .as_ref()
            .is_some_and(|file| matches!(file.home, Home::Orphan(_)));
        if kept {
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
        self.tidy(id);
    }

    fn opened(&mut self, handle: HandleId, file: OpenFile, serving: Serving) {
        if file.write && serving == Serving::Upper {
            self.written_past.insert(file.node);
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
        self.has_shrunk |= shrink_set(&mut self.written_past);
    }

    fn looked(&mut self, id: NodeId) {
        if let Some(node) = id.tree() {
            self.tree_lookups.add(node);
        } else if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups += 1;
        }
    }

    fn forgotten(&mut self, id: NodeId, count: u64) {
        if let Some(node) = id.tree() {
            self.tree_lookups.subtract(node, count);
        } else if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups = node.lookups.saturating_sub(count);
        }
        self.tidy(id);
    }

    /// A node that nothing leads to is not kept: it has no name, no file, and the kernel doesn't know it. A node of the tree is kept only
    /// when it was removed, and needs to be only as long as the kernel could ask for it, since without it the tree would speak for it again.
    /// What is known of one that took over from a node of the tree goes back to that.
    fn tidy(&mut self, id: NodeId) {
        let dead = self.nodes.get(&id).is_some_and(|node| {
            node.upper.is_none()
                && node.names.is_empty()
                && node.successor.is_none()
                && (id.tree().is_none() || node.gone.is_some())
        });
        if !dead || self.is_looked_up(id) || self.opens.serving(id).is_some() {
            return;
        }
        let Some(node) = self.nodes.remove(&id) else {
            return;
        };
        self.written_past.remove(&id);
        self.has_shrunk |= shrink(&mut self.nodes) | shrink_set(&mut self.written_past);
        let Some(origin) = node
            .origin
            .filter(|origin| self.renumbered.get(origin) == Some(&id))
        else {
            return;
        };
        self.renumbered.remove(&origin);
        let first_id = NodeId::of_tree(origin);
        if let Some(first) = self.nodes.get_mut(&first_id) {
            first.successor = None;
            first.gone = node.gone;
            first.lost = node.lost;
        }
        self.tidy(first_id);
    }

    fn renumber(&mut self, from: NodeId, to: NodeId) {
        if to >= self.next_born() {
            self.born = to.0 - NodeId::FIRST_BORN.0 + 1;
        }
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
            if let Some(slot) = self
                .dirs
                .get_mut(dir)
                .and_then(|dir| dir.slots.get_mut(name))
            {
                slot.target = Target::Node(to, new.file_type);
            }
        }
        if let Some(origin) = new.origin {
            self.renumbered.insert(origin, to);
        }
        self.nodes.insert(to, new);
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

#[derive(Copy, Clone)]
enum Sign {
    Add,
    Remove,
}

impl Node {
    fn new(file_type: FileType, origin: Option<TreeIno>) -> Node {
        Node {
            file_type,
            origin,
            upper: None,
            names: Vec::new(),
            lookups: 0,
            gone: None,
            lost: false,
            successor: None,
        }
    }

    /// A name under which the upper has it, among those that are known.
    pub(super) fn name(&self) -> Option<(NodeId, &[u8])> {
        self.names.first().map(|(dir, name)| (*dir, &**name))
    }

    /// How many names the upper is known to have for it.
    pub(super) fn known_names(&self) -> usize {
        self.names.len()
    }

    /// What `stat` shows once the last name is gone, if it is.
    pub(super) fn gone(&self) -> Option<&Attr> {
        self.gone.as_ref()
    }

    /// Whether its bytes are nowhere any more.
    pub(super) fn lost(&self) -> bool {
        self.lost
    }

    /// The id that this node goes by now, if not by the one it was found under.
    pub(super) fn successor(&self) -> Option<NodeId> {
        self.successor
    }
}

impl Dir {
    pub(super) fn slot(&self, name: &[u8]) -> Option<Slot> {
        self.slots.get(name).copied()
    }

    /// Names that the tree does not have, behind a cookie.
    pub(super) fn own_names_behind(
        &self,
        cookie: u64,
    ) -> impl Iterator<Item = (u64, &[u8], Target)> {
        let behind = (Bound::Excluded(cookie), Bound::Unbounded);
        self.by_cookie.range(behind).filter_map(|(cookie, name)| {
            let slot = self.slots.get(name)?;
            Some((*cookie, &**name, slot.target))
        })
    }

    /// A cookie that depends on the name alone, unless another name has it: a name that is replaced, or moved away and back, keeps its place.
    fn free_cookie(&self, name: &[u8]) -> u64 {
        const WITHIN: u64 = FIRST_OWN_COOKIE - 1;
        let hash = ObjectId::of(name);
        let hash = hash.as_bytes().first_chunk().copied().unwrap_or_default();
        let mut cookie = u64::from_le_bytes(hash);
        loop {
            cookie = FIRST_OWN_COOKIE | (cookie & WITHIN);
            if !self.by_cookie.contains_key(&cookie) {
                return cookie;
            }
            cookie += 1;
        }
    }

    /// The slot of a name that the table does not have yet, counted and with its cookie.
    fn new_slot(&mut self, name: &Name, target: Target, under: Under) -> Slot {
        let cookie = match (target, under) {
            (Target::Whiteout, _) | (_, Under::File | Under::Directory) => None,
            _ => Some(self.free_cookie(name)),
        };
        let slot = Slot {
            target,
            under,
            cookie,
        };
        self.count(slot, Sign::Add);
        if let Some(cookie) = cookie {
            self.by_cookie.insert(cookie, name.clone());
        }
        slot
    }

    /// How many names the upper holds, whiteouts among them.
    pub(super) fn held(&self) -> usize {
        self.slots.len()
    }

    fn count(&mut self, slot: Slot, sign: Sign) {
        let own = match slot.target {
            Target::Whiteout => Under::Nothing,
            Target::Node(_, file_type) | Target::Unread { file_type, .. } => match file_type {
                FileType::Directory => Under::Directory,
                _ => Under::File,
            },
        };
        let (more, less) = match sign {
            Sign::Add => (own, slot.under),
            Sign::Remove => (slot.under, own),
        };
        self.visible += u64::from(more != Under::Nothing);
        self.visible = self
            .visible
            .saturating_sub(u64::from(less != Under::Nothing));
        self.subdirs += u32::from(more == Under::Directory);
        self.subdirs = self
            .subdirs
            .saturating_sub(u32::from(less == Under::Directory));
    }
}
