//! What the journal has of a node: all that a worker's successor could not tell from the upper.
//!
//! Names, marks and contents are read from the upper again. Not there are the ids that the kernel
//! knows files by, how often it looked them up, and nodes that have no name any more.
//!
//! ```text
//!   0    1            2         3                             4          5      6           7
//!  +----+------------+---------+-----------------------------+----------+------+-----------+--------+
//!  | id | host inode | lookups | flags, type and mode, nlink | uid, gid | size | mtime, ns | st_ino |
//!  +----+------------+---------+-----------------------------+----------+------+-----------+--------+
//! ```
//! The host inode is 0 without an upper file. Mode and all that follows are of a node without name
//! and file: what `stat` shows of it. A node that goes by another id has that one in place of owner
//! and group.

use std::collections::HashMap;
use std::sync::Arc;

use cowl_core::tree::{FileType, Rdev, Timestamp};

use super::node::Node;
use super::types::{Attr, LowerIno, NodeId};
use crate::journal::{ENTRY, Intent, Journal, Table};

/// The word of the lookups, which change more often than the rest.
pub(super) const LOOKUPS: usize = 2;

/// It has a file in the upper.
const KEPT: u64 = 1;
/// It has no name.
const GONE: u64 = 1 << 1;
/// Its own bytes went with its file.
const LOST: u64 = 1 << 2;
/// It may be written in passthrough.
const WRITTEN_PAST: u64 = 1 << 3;
/// Another id took over.
const SUCCEEDED: u64 = 1 << 4;

/// The words of a node. `written_past`: see [`State`](super::state::State).
pub(super) fn words(id: NodeId, node: &Node, written_past: bool) -> [u64; ENTRY] {
    let flag = |is: bool, flag| if is { flag } else { 0 };
    let flags = flag(node.upper.is_some(), KEPT)
        | flag(node.gone.is_some(), GONE)
        | flag(node.lost, LOST)
        | flag(written_past, WRITTEN_PAST)
        | flag(node.successor.is_some() && node.gone.is_none(), SUCCEEDED);
    let mode = node.file_type.to_mode_bits();
    let Some(attr) = node.gone.as_ref().filter(|_| node.upper.is_none()) else {
        let host = node.upper.as_ref().map_or(0, |file| file.host);
        return [
            id.0,
            host,
            node.lookups,
            flags | u64::from(mode) << 16,
            node.successor.map_or(0, |successor| successor.0),
            0,
            0,
            0,
        ];
    };
    [
        id.0,
        0,
        node.lookups,
        flags | u64::from(mode | attr.mode) << 16 | u64::from(attr.nlink) << 32,
        u64::from(attr.uid) | u64::from(attr.gid) << 32,
        attr.size,
        nanoseconds(attr.mtime).cast_unsigned(),
        attr.ino,
    ]
}

/// Since 1970; of a time more than 292 years from then, the farthest that there is.
fn nanoseconds(time: Timestamp) -> i64 {
    time.secs
        .saturating_mul(NANOSECONDS)
        .saturating_add(time.nanos.into())
}

const NANOSECONDS: i64 = 1_000_000_000;

/// What a dead worker told of a node.
#[derive(Copy, Clone, Debug)]
pub(super) struct Record {
    entry: u32,
    pub(super) id: NodeId,
    /// The host's inode of its upper file, if it had one.
    pub(super) host: Option<u64>,
    lookups: u64,
    pub(super) file_type: FileType,
    /// It has no name; what `stat` showed if it had no upper file either.
    pub(super) gone: bool,
    pub(super) lost: bool,
    /// It may be written in passthrough.
    pub(super) written_past: bool,
    /// The id that took over.
    pub(super) successor: Option<NodeId>,
    /// What to show of it if it has no file.
    pub(super) attr: Attr,
}

impl Record {
    fn read(entry: u32, words: [u64; ENTRY]) -> Option<Record> {
        let [id, host, lookups, what, owner, size, mtime, ino] = words;
        let half = |word: u64, shift: u32| u32::try_from(word >> shift & 0xffff_ffff).ok();
        let mode = half(what >> 16 & 0xffff, 0)?;
        let file_type = FileType::from_mode_bits(mode)?;
        let mtime = mtime.cast_signed();
        let time = Timestamp {
            secs: mtime.div_euclid(NANOSECONDS),
            nanos: u32::try_from(mtime.rem_euclid(NANOSECONDS)).ok()?,
        };
        let kept = what & KEPT != 0 && host != 0;
        Some(Record {
            entry,
            id: NodeId(id),
            host: kept.then_some(host),
            lookups,
            file_type,
            gone: what & GONE != 0,
            lost: what & LOST != 0,
            written_past: what & WRITTEN_PAST != 0,
            successor: (what & SUCCEEDED != 0).then_some(NodeId(owner)),
            attr: Attr {
                ino,
                size,
                blocks: size.div_ceil(512),
                atime: time,
                mtime: time,
                ctime: time,
                file_type,
                mode: mode & 0o7777,
                nlink: half(what, 32)?,
                uid: half(owner, 0)?,
                gid: half(owner, 32)?,
                rdev: Rdev::default(),
                blksize: 4096,
            },
        })
    }
}

/// What a dead worker told.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    records: HashMap<NodeId, Record>,
    /// Nodes with a file in the upper, by the host's inode.
    hosts: HashMap<u64, NodeId>,
    /// Nodes of the lower, by the id that took over from theirs.
    origins: HashMap<NodeId, LowerIno>,
}

impl Inherited {
    /// Of two nodes that had the same host inode one after the other, the one that was being
    /// removed comes first.
    pub(super) fn read(journal: &Arc<Journal>) -> Inherited {
        let nodes = journal.inherited(Table::Nodes).into_iter();
        let records: HashMap<NodeId, Record> = nodes
            .filter_map(|(entry, words)| Record::read(entry, words))
            .map(|record| (record.id, record))
            .collect();
        let intents = journal.intents();
        let removed = |id: NodeId| intents.contains(&Intent::Remove { node: id.0 });
        let mut by_host: Vec<_> = records
            .values()
            .filter_map(|record| Some((!removed(record.id), record.id, record.host?)))
            .collect();
        by_host.sort_unstable();
        let mut hosts = HashMap::new();
        for intent in &intents {
            if let Intent::CopyUp { node, host } = intent {
                let node = NodeId(*node);
                let successor = records.get(&node).and_then(|record| record.successor);
                hosts.insert(*host, successor.unwrap_or(node));
            }
        }
        hosts.extend(by_host.into_iter().map(|(_, id, host)| (host, id)));
        let origins = records
            .values()
            .filter_map(|record| Some((record.successor?, record.id.lower()?)))
            .collect();
        Inherited {
            records,
            hosts,
            origins,
        }
    }

    /// The node of the lower that went by this id.
    pub(super) fn origin_of(&self, id: NodeId) -> Option<LowerIno> {
        id.lower().or_else(|| self.origins.get(&id).copied())
    }

    /// The node that a file of the upper was.
    pub(super) fn node_of(&self, host: u64) -> Option<NodeId> {
        self.hosts.get(&host).copied()
    }

    /// Whether the dead worker knew a node, beyond what the lower says.
    pub(super) fn knows(&self, id: NodeId) -> bool {
        self.records.contains_key(&id)
    }

    pub(super) fn records(&self) -> impl Iterator<Item = Record> {
        self.records.values().copied()
    }

    /// A node is no more, nor its entry.
    pub(super) fn forget(&mut self, id: NodeId) {
        self.records.remove(&id);
    }

    /// Nodes and their entries in the journal.
    pub(super) fn entries(&self) -> impl Iterator<Item = (NodeId, u32)> {
        self.records
            .values()
            .map(|record| (record.id, record.entry))
    }

    /// A node without a file or a name, with what is inherited for it.
    pub(super) fn node(&self, id: NodeId, file_type: FileType, origin: Option<LowerIno>) -> Node {
        let record = self.records.get(&id);
        Node {
            lookups: record.map_or(0, |record| record.lookups),
            entry: record.map(|record| record.entry),
            successor: record.and_then(|record| record.successor),
            ..Node::new(file_type, origin)
        }
    }
}
