//! Backing ids: which host file the kernel reads and writes in place of asking us, one id a node.
//!
//! Rules of the kernel: all opens of an inode that are alive at one time carry the same id, else
//! EIO; an id keeps its file open in the kernel until it is closed. Invariant: a node has at most
//! one id here; an id with opens stays, idle ones are kept for the next open and given back oldest
//! first beyond [`MAX_IDLE`], or when their node is forgotten or its content moved to the other
//! side.
//!
//! A worker's successor finds the ids in the journal, an entry each:
//!
//! ```text
//!   0    1      2
//!  +----+------+-----------------------------------------------+
//!  | id | node | 0: lower, 1: upper file, 2: about to be closed |
//!  +----+------+-----------------------------------------------+
//! ```
//! An entry is written before the kernel is told of its id in an answer, says under the table's
//! lock that the id is about to be closed, and is freed after that. So a node has at most one entry
//! of another kind, and no open file has an id without an entry, whose registration a kill cut off.
//!
//! Lock: `table`, under which the journal's is taken; never held over a system call.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use fuser::BackingId;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::journal::{ENTRY, Journal, Table as JournalTable};
use crate::lru::Lru;
use crate::overlay::{NodeId, Side};
use crate::sys;

/// Idle ids kept: each holds one open file in the kernel, and saves the next open of its node two
/// system calls.
const MAX_IDLE: usize = 2048;

/// The kernel numbers ids one after another (`fuse_backing_id_alloc` in fs/fuse/passthrough.c,
/// since Linux 6.18 backing.c). So many around the last one that was written down may have been
/// registered by threads that were killed before they wrote theirs.
const RECENT: u32 = 1024;

/// The ids of a connection.
#[derive(Debug)]
pub(super) struct BackingIds {
    registrar: Registrar,
    table: Mutex<Table>,
    journal: Option<Arc<Journal>>,
}

#[derive(Debug)]
struct Table {
    journal: Option<Arc<Journal>>,
    open: HashMap<NodeId, OpenId>,
    /// Ids of nodes without opens.
    idle: Lru<NodeId, Id>,
}

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct Id {
    number: u32,
    side: Side,
    /// Its entry in the journal, if there is one.
    entry: Option<u32>,
}

#[derive(Debug)]
struct OpenId {
    /// None: a dead worker counted opens for which it did not come to register one.
    id: Option<Id>,
    opens: u32,
    /// The kernel forgot the node while a RELEASE was still under way.
    forgotten: bool,
}

impl BackingIds {
    /// None yet, or those of dead workers that `journal` has. `opens`: how often each node is open
    /// in passthrough. Other ids of dead workers are closed.
    pub(super) fn new(
        device: BorrowedFd<'_>,
        journal: Option<Arc<Journal>>,
        opens: &HashMap<NodeId, u32>,
    ) -> io::Result<Self> {
        let ids = Self {
            registrar: Registrar::new()?,
            table: Mutex::new(Table::new(journal.clone())),
            journal,
        };
        if let Some(journal) = ids.journal.as_ref().filter(|it| it.is_inherited()) {
            ids.take_over(device, journal, opens);
        }
        Ok(ids)
    }

    fn take_over(&self, device: BorrowedFd<'_>, journal: &Journal, opens: &HashMap<NodeId, u32>) {
        let mut table = self.table.lock();
        for (node, opens) in opens {
            table.inherit(*node, *opens);
        }
        for (entry, words) in journal.inherited(JournalTable::BackingIds) {
            let used = read(entry, words).is_some_and(|(node, id)| table.inherit_id(node, id));
            if !used {
                if let Ok(number) = u32::try_from(words[0]) {
                    close_if_any(device, number);
                }
                journal.clear(JournalTable::BackingIds, entry);
            }
        }
        let kept = table.numbers();
        let last = journal.last_backing_id();
        for number in last.saturating_sub(RECENT).max(1)..=last.saturating_add(RECENT) {
            if !kept.contains(&number) {
                close_if_any(device, number);
            }
        }
    }

    /// The id for one more open of `node`, whose content is on `side`, in the file that `open`
    /// gives; every call that succeeds is undone by a [`release`].
    ///
    /// [`release`]: Self::release
    pub(super) fn acquire(
        &self,
        device: BorrowedFd<'_>,
        node: NodeId,
        open: impl FnOnce() -> Result<Arc<File>, Errno>,
        side: Side,
    ) -> io::Result<u32> {
        let (known, stale) = self.table.lock().reuse(node, side)?;
        self.close_all(device, stale);
        if let Some(id) = known {
            return Ok(id);
        }
        let number = self.registrar.register(device, &*open()?)?;
        let (used, surplus) = {
            let mut table = self.table.lock();
            // Its entry is written before another thread can answer with this id.
            table.insert(node, side, number)?
        };
        self.close_all(device, surplus);
        Ok(used)
    }

    /// Undoes one [`acquire`](Self::acquire).
    pub(super) fn release(&self, device: BorrowedFd<'_>, node: NodeId) {
        let evicted = self.table.lock().release(node);
        self.close_all(device, evicted);
    }

    /// Closes the id of `node` if the node is not open.
    pub(super) fn drop_idle(&self, device: BorrowedFd<'_>, node: NodeId) {
        let dropped = self.table.lock().drop_idle(node);
        self.close_all(device, dropped);
    }

    /// The kernel forgot `node`: an idle id would only keep its file from being freed.
    pub(super) fn forget(&self, device: BorrowedFd<'_>, node: NodeId) {
        let dropped = self.table.lock().forget(node);
        self.close_all(device, dropped);
    }

    fn close_all(&self, device: BorrowedFd<'_>, ids: impl IntoIterator<Item = Id>) {
        for id in ids {
            if let Err(error) = sys::backing::close(device, id.number) {
                tracing::warn!(id = id.number, %error, "a backing id could not be closed");
            }
            if let (Some(journal), Some(entry)) = (&self.journal, id.entry) {
                journal.clear(JournalTable::BackingIds, entry);
            }
        }
    }
}

impl Table {
    fn new(journal: Option<Arc<Journal>>) -> Self {
        Self {
            journal,
            open: HashMap::new(),
            idle: Lru::new(MAX_IDLE),
        }
    }

    /// Counts an open on the id that `node` has for `side`, if any; and an id that became useless.
    fn reuse(&mut self, node: NodeId, side: Side) -> io::Result<(Option<u32>, Option<Id>)> {
        if let Some(open) = self.open.get_mut(&node)
            && let Some(id) = open.id
        {
            if id.side != side {
                // The overlay answers ESTALE before it comes to this; the kernel would refuse the
                // open.
                return Err(Errno::IO.into());
            }
            open.opens += 1;
            open.forgotten = false;
            return Ok((Some(id.number), None));
        }
        match self.idle.remove(node) {
            Some(id) if id.side == side => {
                self.enter(node, id);
                Ok((Some(id.number), None))
            }
            stale => Ok((None, self.leaving(stale))),
        }
    }

    /// Enters a fresh id with one open, unless another thread was faster: then its id is used, and
    /// ours given back.
    fn insert(&mut self, node: NodeId, side: Side, number: u32) -> io::Result<(u32, Option<Id>)> {
        let (theirs, stale) = self.reuse(node, side)?;
        let mut id = Id {
            number,
            side,
            entry: None,
        };
        if let Some(theirs) = theirs {
            return Ok((theirs, Some(id)));
        }
        if let Some(journal) = &self.journal {
            journal.set_last_backing_id(number);
            let words = words(node, side, number);
            id.entry = journal.write(JournalTable::BackingIds, None, &words);
        }
        self.enter(node, id);
        Ok((number, stale))
    }

    /// An id that is about to be closed: a successor is not to use it.
    fn leaving(&self, id: Option<Id>) -> Option<Id> {
        if let (Some(journal), Some(entry)) = (&self.journal, id.and_then(|id| id.entry)) {
            journal.set_entry_word(JournalTable::BackingIds, entry, HOW, CLOSING);
        }
        id
    }

    /// Counts a dead worker's opens of a node. The kernel may have forgotten it since.
    fn inherit(&mut self, node: NodeId, opens: u32) {
        let open = OpenId {
            id: None,
            opens,
            forgotten: true,
        };
        self.open.insert(node, open);
    }

    /// Gives a node's inherited opens their id; false: it is not open.
    fn inherit_id(&mut self, node: NodeId, id: Id) -> bool {
        let open = self.open.get_mut(&node);
        open.map(|open| open.id = Some(id)).is_some()
    }

    /// Of all ids of open nodes.
    fn numbers(&self) -> HashSet<u32> {
        let ids = self.open.values().filter_map(|open| open.id);
        ids.map(|id| id.number).collect()
    }

    fn drop_idle(&mut self, node: NodeId) -> Option<Id> {
        let idle = self.idle.remove(node);
        self.leaving(idle)
    }

    /// Counts an open on an id that is new for a node.
    fn enter(&mut self, node: NodeId, id: Id) {
        let closed = OpenId {
            id: None,
            opens: 0,
            forgotten: false,
        };
        let open = self.open.entry(node).or_insert(closed);
        open.id = Some(id);
        open.opens += 1;
        open.forgotten = false;
    }

    /// Gives back an id that has to go for the one that became idle.
    fn release(&mut self, node: NodeId) -> Option<Id> {
        // Not open here: this open went another way.
        let open = self.open.get_mut(&node)?;
        open.opens -= 1;
        if open.opens > 0 {
            return None;
        }
        let OpenId { id, forgotten, .. } = self.open.remove(&node)?;
        let surplus = if forgotten {
            id
        } else {
            self.idle.insert(node, id?)
        };
        self.leaving(surplus)
    }

    fn forget(&mut self, node: NodeId) -> Option<Id> {
        if let Some(open) = self.open.get_mut(&node) {
            open.forgotten = true;
        }
        self.drop_idle(node)
    }
}

/// The word of an entry that says how its id is used.
const HOW: usize = 2;
const LOWER: u64 = 0;
const UPPER: u64 = 1;
const CLOSING: u64 = 2;

fn words(node: NodeId, side: Side, number: u32) -> [u64; ENTRY] {
    let how = match side {
        Side::Lower => LOWER,
        Side::Upper => UPPER,
    };
    [number.into(), node.0, how, 0, 0, 0, 0, 0]
}

/// None: the id is about to be closed.
fn read(entry: u32, words: [u64; ENTRY]) -> Option<(NodeId, Id)> {
    let [number, node, how, ..] = words;
    let id = Id {
        number: u32::try_from(number).ok()?,
        side: match how {
            LOWER => Side::Lower,
            UPPER => Side::Upper,
            _ => return None,
        },
        entry: Some(entry),
    };
    Some((NodeId(node), id))
}

/// Closes a dead worker's id, unless it did.
fn close_if_any(device: BorrowedFd<'_>, number: u32) {
    match sys::backing::close(device, number) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => {
            tracing::warn!(id = number, %error, "a dead worker's backing id could not be closed");
        }
    }
}

/// Registers files, as a thread of this process with all the capabilities it has between requests.
///
/// The kernel acts on a backing file with the capabilities its registrar had. Without `CAP_FSETID`
/// a write or fallocate clears set-uid and set-gid there by itself, as it must for every writer
/// but a privileged one; with it the bits would survive a stranger's write.
#[derive(Debug)]
struct Registrar {
    whole: CapabilitySets,
    less: CapabilitySets,
}

impl Registrar {
    fn new() -> io::Result<Self> {
        let whole = capabilities(None)?;
        let mut less = whole;
        less.effective.remove(CapabilitySet::FSETID);
        Ok(Self { whole, less })
    }

    /// The id of `file`, an `O_PATH` descriptor or a readable one.
    fn register(&self, device: BorrowedFd<'_>, file: impl AsFd) -> io::Result<u32> {
        set_capabilities(None, self.less)?;
        let id = BackingId::create_raw(device, file);
        set_capabilities(None, self.whole)?;
        id
    }
}

/// Whether files like `file` may back inodes of this connection.
pub(crate) fn probe(device: BorrowedFd<'_>, file: impl AsFd) -> io::Result<()> {
    let id = Registrar::new()?.register(device, file)?;
    sys::backing::close(device, id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(7);

    fn id(number: u32, side: Side) -> Id {
        let entry = None;
        Id {
            number,
            side,
            entry,
        }
    }

    #[test]
    fn opens_of_a_node_share_one_id() {
        let mut table = Table::new(None);
        assert_eq!(table.reuse(NODE, Side::Lower).unwrap(), (None, None));
        assert_eq!(table.insert(NODE, Side::Lower, 1).unwrap(), (1, None));
        assert_eq!(table.reuse(NODE, Side::Lower).unwrap(), (Some(1), None));
        assert_eq!(table.release(NODE), None);
        assert_eq!(table.release(NODE), None);
        assert_eq!(table.reuse(NODE, Side::Lower).unwrap(), (Some(1), None));
        assert_eq!(table.idle.len(), 0);
    }

    #[test]
    fn insert_returns_a_second_id_of_a_node() {
        let mut table = Table::new(None);
        table.insert(NODE, Side::Upper, 1).unwrap();
        assert_eq!(
            table.insert(NODE, Side::Upper, 2).unwrap(),
            (1, Some(id(2, Side::Upper)))
        );
        assert_eq!(table.open[&NODE].opens, 2);
    }

    #[test]
    fn id_of_the_other_side_is_closed_once_idle() {
        let mut table = Table::new(None);
        table.insert(NODE, Side::Lower, 1).unwrap();
        assert_eq!(
            table.reuse(NODE, Side::Upper).unwrap_err().raw_os_error(),
            Some(libc::EIO)
        );
        table.release(NODE);
        assert_eq!(
            table.reuse(NODE, Side::Upper).unwrap(),
            (None, Some(id(1, Side::Lower)))
        );
        assert_eq!((table.open.len(), table.idle.len()), (0, 0));
    }

    #[test]
    fn release_evicts_the_oldest_idle_id() {
        let mut table = Table::new(None);
        for node in 0..u32::try_from(MAX_IDLE).unwrap() + 2 {
            table
                .insert(NodeId(node.into()), Side::Lower, node)
                .unwrap();
        }
        let evicted: Vec<u32> = (0..MAX_IDLE + 2)
            .filter_map(|node| table.release(NodeId(node.try_into().unwrap())))
            .map(|id| id.number)
            .collect();
        assert_eq!(evicted, [0, 1]);
        assert_eq!((table.idle.len(), table.open.len()), (MAX_IDLE, 0));
    }

    #[test]
    fn inherited_id_is_that_of_further_opens_and_closed_with_the_last() {
        let mut table = Table::new(None);
        table.inherit(NODE, 2);
        assert!(table.inherit_id(NODE, id(3, Side::Upper)));
        assert!(table.numbers().contains(&3));
        assert_eq!(table.release(NODE), None);
        assert_eq!(table.release(NODE), Some(id(3, Side::Upper)));
        table.inherit(NODE, 1);
        assert!(table.inherit_id(NODE, id(4, Side::Upper)));
        assert_eq!(table.reuse(NODE, Side::Upper).unwrap(), (Some(4), None));
        assert_eq!(table.release(NODE), None);
        // The kernel has shown that it knows the node.
        assert_eq!(table.release(NODE), None);
        assert_eq!(table.idle.len(), 1);
    }

    #[test]
    fn inherited_opens_without_an_id_count_for_the_next_one() {
        let mut table = Table::new(None);
        table.inherit(NODE, 2);
        assert_eq!(table.release(NODE), None);
        assert_eq!(table.reuse(NODE, Side::Upper).unwrap(), (None, None));
        assert_eq!(table.insert(NODE, Side::Upper, 5).unwrap(), (5, None));
        assert_eq!(table.open[&NODE].opens, 2);
        assert_eq!(table.release(NODE), None);
        assert_eq!(table.reuse(NODE, Side::Upper).unwrap(), (Some(5), None));
        assert!(!table.inherit_id(NodeId(8), id(6, Side::Upper)));
    }

    #[test]
    fn id_that_leaves_the_table_is_marked_in_the_journal() {
        let memory = crate::journal::create().unwrap();
        let mapped = || Arc::new(Journal::map(memory.as_fd()).unwrap());
        let mut table = Table::new(Some(mapped()));
        table.insert(NODE, Side::Lower, 9).unwrap();
        let found = || {
            let entries = mapped().inherited(JournalTable::BackingIds).into_iter();
            entries
                .map(|(entry, words)| read(entry, words))
                .collect::<Vec<_>>()
        };
        let id = id(9, Side::Lower);
        let entry = Some(0);
        assert_eq!(found(), [Some((NODE, Id { entry, ..id }))]);
        table.release(NODE);
        assert_eq!(found(), [Some((NODE, Id { entry, ..id }))]);
        assert_eq!(table.drop_idle(NODE).map(|id| id.number), Some(9));
        assert_eq!(found(), [None]);
    }

    #[test]
    fn forget_closes_the_id_of_a_closed_node() {
        let mut table = Table::new(None);
        table.insert(NODE, Side::Upper, 9).unwrap();
        table.release(NODE);
        assert_eq!(table.forget(NODE), Some(id(9, Side::Upper)));
        // The other order: another thread is still busy with the RELEASE.
        table.insert(NODE, Side::Upper, 10).unwrap();
        assert_eq!(table.forget(NODE), None);
        assert_eq!(table.release(NODE), Some(id(10, Side::Upper)));
        assert_eq!((table.open.len(), table.idle.len()), (0, 0));
    }
}
