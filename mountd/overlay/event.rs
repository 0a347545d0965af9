//! What can happen to the state: plain values, so that a log of them can be written, and read by another process.

use cowl_core::tree::{FileType, TreeIno};
use cowl_core::upper::marks::Saved;

use super::opens::{OpenFile, Serving};
use super::state::{Home, Name, Target, Under, UpperFile};
use super::types::{Attr, HandleId, NodeId};

/// Something that has happened on disk, or that the kernel has told.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A directory's upper part was read, or is new. `subdirs` and `visible` are the tree's part alone.
    DirRead {
        dir: NodeId,
        subdirs: u32,
        visible: u64,
        impure: bool,
        names: Vec<(Name, Target, Under)>,
    },
    /// The marks of a name that was only listed so far were read: it is this node's.
    MarksRead {
        dir: NodeId,
        name: Name,
        node: NodeId,
        origin: Option<TreeIno>,
        file_type: FileType,
        file: UpperFile,
    },
    /// The marks of a file in `work/index` contradict themselves or the tree: its node cannot be used.
    Damaged { node: NodeId },
    /// A directory of the upper now says that files in it bear marks.
    Impure { dir: NodeId },
    /// A node has its first file in the upper.
    Copied {
        node: NodeId,
        file_type: FileType,
        origin: Option<TreeIno>,
        file: UpperFile,
    },
    /// A name in the upper now is this node's, whatever it was before.
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
    /// The upper no longer has the name, and the tree never had.
    Unnamed { dir: NodeId, name: Name },
    /// A node's file is somewhere else, its names untouched.
    Moved { node: NodeId, home: Home },
    /// The node has no name left; `attr` is what `stat` shows from here on where no file is kept.
    Gone {
        node: NodeId,
        file_type: FileType,
        origin: Option<TreeIno>,
        attr: Attr,
    },
    /// The file that was kept for a node without a name was removed.
    Dropped { node: NodeId },
    /// The content is being copied up, with these attributes saved in the file's mark; None: that failed, and is undone.
    Copying { node: NodeId, saved: Option<Saved> },
    /// The content is in the upper's file now, and its mark says so.
    ContentCopied { node: NodeId },
    /// The directory shows nothing of the tree any more.
    Opaque { node: NodeId },
    /// The difference of link counts.
    Nlink { node: NodeId, delta: i32 },
    /// A file's attributes and marks will survive a power cut.
    InodeSynced { node: NodeId },
    /// So will its name.
    NameSynced { node: NodeId },
    /// A node's content changed under a passthrough reader: its names go by another id from here on.
    Renumbered { from: NodeId, to: NodeId },
    /// A file was opened; how all opens of its node are served.
    Opened {
        handle: HandleId,
        file: OpenFile,
        serving: Serving,
    },
    /// The kernel gave a handle back.
    Released { handle: HandleId },
    /// Nobody can write to the node's file but by opening it anew.
    Settled { node: NodeId },
    /// The kernel was told of the node.
    Looked { node: NodeId },
    /// The kernel gave lookups back.
    Forgotten { node: NodeId, count: u64 },
}

impl Event {
    /// A name shows nothing any more: whited out where the tree has something under it.
    pub(super) fn vacated(dir: NodeId, name: &[u8], under: Under) -> Event {
        let name = name.into();
        match under {
            Under::Nothing => Event::Unnamed { dir, name },
            under => Event::Hidden { dir, name, under },
        }
    }
}
