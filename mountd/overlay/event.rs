//! Events: the only changes of the state. They are plain values, so a log of them can be replayed
//! by another process.

use cowl_core::tree::FileType;
use cowl_core::upper::marks::Saved;

use super::dir::{Name, Target, Under};
use super::node::{Home, UpperFile};
use super::opens::{OpenFile, Serving};
use super::types::{Attr, HandleId, LowerIno, NodeId};

/// A change that is already on disk, or that the kernel reported.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A directory's upper part was read, or is new. `subdirs` and `visible` count the lower's part
    /// only.
    DirRead {
        dir: NodeId,
        subdirs: u32,
        visible: u64,
        impure: bool,
        names: Vec<(Name, Target, Under)>,
    },
    /// The marks of a listed name were read: it is this node.
    MarksRead {
        dir: NodeId,
        name: Name,
        node: NodeId,
        origin: Option<LowerIno>,
        file_type: FileType,
        file: UpperFile,
    },
    /// A file in `work/index` has invalid marks: every use of its node is EIO.
    Damaged { node: NodeId },
    /// A directory of the upper is marked impure.
    Impure { dir: NodeId },
    /// A node has an upper file now.
    Copied {
        node: NodeId,
        file_type: FileType,
        origin: Option<LowerIno>,
        file: UpperFile,
    },
    /// A name in the upper is this node now, whatever it was before.
    Named {
        dir: NodeId,
        name: Name,
        node: NodeId,
        file_type: FileType,
        under: Under,
    },
    /// A name is whited out.
    Hidden {
        dir: NodeId,
        name: Name,
        under: Under,
    },
    /// A name was removed that the lower does not have.
    Unnamed { dir: NodeId, name: Name },
    /// A node's file moved to another home; its names are unchanged.
    Moved { node: NodeId, home: Home },
    /// The node has no name left; `attr` is shown from now on if no file is kept for it.
    Gone {
        node: NodeId,
        file_type: FileType,
        origin: Option<LowerIno>,
        attr: Attr,
    },
    /// A worker's successor finds nothing in the upper of a node that the kernel knows. `lost`: it
    /// had a file there.
    Vanished {
        node: NodeId,
        file_type: FileType,
        origin: Option<LowerIno>,
        attr: Attr,
        lost: bool,
    },
    /// A worker's successor has found all that there is of the nodes that the kernel knows.
    TakenOver,
    /// An orphan's file was removed.
    Dropped { node: NodeId },
    /// The content is being copied up, with these attributes saved in the file's mark; None: that
    /// failed, and is undone.
    Copying { node: NodeId, saved: Option<Saved> },
    /// The content is in the upper file, and its mark says so.
    ContentCopied { node: NodeId },
    /// The directory is opaque now.
    Opaque { node: NodeId },
    /// The link delta changed, see `FileMark::link_delta`.
    Nlink { node: NodeId, delta: i32 },
    /// A file's attributes and marks are durable.
    InodeSynced { node: NodeId },
    /// A file's name is durable.
    NameSynced { node: NodeId },
    /// A node's content changed under a passthrough reader: its names have another id from now on.
    Renumbered { from: NodeId, to: NodeId },
    /// A file was opened; `serving` is that of its node.
    Opened {
        handle: HandleId,
        file: OpenFile,
        serving: Serving,
    },
    /// The kernel released a handle.
    Released { handle: HandleId },
    /// No descriptor or mapping that could write to the node's file is left.
    Settled { node: NodeId },
    /// The kernel looked the node up.
    Looked { node: NodeId },
    /// The kernel forgot `count` lookups.
    Forgotten { node: NodeId, count: u64 },
}

impl Event {
    /// A removed name: whited out if the lower has one under it.
    pub(super) fn vacated(dir: NodeId, name: &[u8], under: Under) -> Event {
        let name = name.into();
        match under {
            Under::Nothing => Event::Unnamed { dir, name },
            under => Event::Hidden { dir, name, under },
        }
    }
}
