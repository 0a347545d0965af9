//! Backing ids: which host file the kernel reads and writes in place of asking us, one id a node.
//!
//! Rules of the kernel: all opens of an inode that are alive at one time carry the same id, else
//! EIO; an id keeps its file open in the kernel until it is closed. Invariant: a node has at most
//! one id here; an id with opens stays, idle ones are kept for the next open and given back oldest
//! first beyond [`MAX_IDLE`], or when their node is forgotten or its content moved to the other
//! side.
//!
//! Lock: `table`, a leaf, never held over a system call.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use fuser::BackingId;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::lru::Lru;
use crate::overlay::{NodeId, Side};
use crate::sys;

/// Idle ids kept: each holds one open file in the kernel, and saves the next open of its node two
/// system calls.
const MAX_IDLE: usize = 2048;

/// The ids of a connection.
#[derive(Debug)]
pub(super) struct BackingIds {
    registrar: Registrar,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    open: HashMap<NodeId, OpenId>,
    /// Ids of nodes without opens.
    idle: Lru<NodeId, Id>,
}

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct Id {
    number: u32,
    side: Side,
}

#[derive(Debug)]
struct OpenId {
    id: Id,
    opens: u32,
    /// The kernel forgot the node while a RELEASE was still under way.
    forgotten: bool,
}

impl BackingIds {
    /// None yet.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            registrar: Registrar::new()?,
            table: Mutex::new(Table::new()),
        })
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
        close_all(device, stale);
        if let Some(id) = known {
            return Ok(id);
        }
        let id = self.registrar.register(device, &*open()?)?;
        let (used, surplus) = self.table.lock().insert(node, side, id)?;
        close_all(device, surplus);
        Ok(used)
    }

    /// Undoes one [`acquire`](Self::acquire).
    pub(super) fn release(&self, device: BorrowedFd<'_>, node: NodeId) {
        let evicted = self.table.lock().release(node);
        close_all(device, evicted);
    }

    /// Closes the id of `node` if the node is not open.
    pub(super) fn drop_idle(&self, device: BorrowedFd<'_>, node: NodeId) {
        let dropped = self.table.lock().idle.remove(node).map(|id| id.number);
        close_all(device, dropped);
    }

    /// The kernel forgot `node`: an idle id would only keep its file from being freed.
    pub(super) fn forget(&self, device: BorrowedFd<'_>, node: NodeId) {
        let dropped = self.table.lock().forget(node);
        close_all(device, dropped);
    }
}

impl Table {
    fn new() -> Self {
        Self {
            open: HashMap::new(),
            idle: Lru::new(MAX_IDLE),
        }
    }

    /// Counts an open on the id that `node` has for `side`, if any; and an id that became useless.
    fn reuse(&mut self, node: NodeId, side: Side) -> io::Result<(Option<u32>, Option<u32>)> {
        if let Some(open) = self.open.get_mut(&node) {
            if open.id.side != side {
                // The overlay answers ESTALE before it comes to this; the kernel would refuse the
                // open.
                return Err(Errno::IO.into());
            }
            open.opens += 1;
            open.forgotten = false;
            return Ok((Some(open.id.number), None));
        }
        match self.idle.remove(node) {
            Some(id) if id.side == side => {
                self.enter(node, id);
                Ok((Some(id.number), None))
            }
            stale => Ok((None, stale.map(|id| id.number))),
        }
    }

    /// Enters a fresh id with one open, unless another thread was faster: then its id is used, and
    /// ours given back.
    fn insert(&mut self, node: NodeId, side: Side, number: u32) -> io::Result<(u32, Option<u32>)> {
        match self.reuse(node, side)? {
            (Some(theirs), _) => Ok((theirs, Some(number))),
            (None, stale) => {
                self.enter(node, Id { number, side });
                Ok((number, stale))
            }
        }
    }

    fn enter(&mut self, node: NodeId, id: Id) {
        let open = OpenId {
            id,
            opens: 1,
            forgotten: false,
        };
        self.open.insert(node, open);
    }

    /// Gives back an id that has to go for the one that became idle.
    fn release(&mut self, node: NodeId) -> Option<u32> {
        // Not open here: this open went another way.
        let open = self.open.get_mut(&node)?;
        open.opens -= 1;
        if open.opens > 0 {
            return None;
        }
        let OpenId { id, forgotten, .. } = self.open.remove(&node)?;
        if forgotten {
            return Some(id.number);
        }
        self.idle.insert(node, id).map(|oldest| oldest.number)
    }

    fn forget(&mut self, node: NodeId) -> Option<u32> {
        if let Some(open) = self.open.get_mut(&node) {
            open.forgotten = true;
        }
        self.idle.remove(node).map(|id| id.number)
    }
}

fn close_all(device: BorrowedFd<'_>, ids: impl IntoIterator<Item = u32>) {
    for id in ids {
        if let Err(error) = sys::backing::close(device, id) {
            tracing::warn!(id, %error, "a backing id could not be closed");
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

    #[test]
    fn opens_of_a_node_share_one_id() {
        let mut table = Table::new();
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
        let mut table = Table::new();
        table.insert(NODE, Side::Upper, 1).unwrap();
        assert_eq!(table.insert(NODE, Side::Upper, 2).unwrap(), (1, Some(2)));
        assert_eq!(table.open[&NODE].opens, 2);
    }

    #[test]
    fn id_of_the_other_side_is_closed_once_idle() {
        let mut table = Table::new();
        table.insert(NODE, Side::Lower, 1).unwrap();
        assert_eq!(
            table.reuse(NODE, Side::Upper).unwrap_err().raw_os_error(),
            Some(libc::EIO)
        );
        table.release(NODE);
        assert_eq!(table.reuse(NODE, Side::Upper).unwrap(), (None, Some(1)));
        assert_eq!((table.open.len(), table.idle.len()), (0, 0));
    }

    #[test]
    fn release_evicts_the_oldest_idle_id() {
        let mut table = Table::new();
        for node in 0..u32::try_from(MAX_IDLE).unwrap() + 2 {
            table
                .insert(NodeId(node.into()), Side::Lower, node)
                .unwrap();
        }
        let evicted: Vec<u32> = (0..MAX_IDLE + 2)
            .filter_map(|node| table.release(NodeId(node.try_into().unwrap())))
            .collect();
        assert_eq!(evicted, [0, 1]);
        assert_eq!((table.idle.len(), table.open.len()), (MAX_IDLE, 0));
    }

    #[test]
    fn forget_closes_the_id_of_a_closed_node() {
        let mut table = Table::new();
        table.insert(NODE, Side::Upper, 9).unwrap();
        table.release(NODE);
        assert_eq!(table.forget(NODE), Some(9));
        // The other order: another thread is still busy with the RELEASE.
        table.insert(NODE, Side::Upper, 10).unwrap();
        assert_eq!(table.forget(NODE), None);
        assert_eq!(table.release(NODE), Some(10));
        assert_eq!((table.open.len(), table.idle.len()), (0, 0));
    }
}
