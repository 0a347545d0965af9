//! What the state has of a node: its file in the upper, its names there, and how it was removed.

use cowl_core::tree::FileType;
use cowl_core::upper::marks::{FileMark, Origin, Saved};

use super::dir::Name;
use super::types::{Attr, LowerIno, NodeId};

/// A node that has a file in the upper, or no name any more.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) file_type: FileType,
    /// The lower node that `st_ino`, and a directory's children, come from.
    pub(super) origin: Option<LowerIno>,
    pub(super) upper: Option<UpperFile>,
    /// Names of this node in the upper's directories, as far as those were read.
    pub(super) names: Vec<(NodeId, Name)>,
    /// Lookups that the kernel has not given back, of a node created in the upper.
    pub(super) lookups: u64,
    /// Without a name: what `stat` shows where no file is kept for it.
    pub(super) gone: Option<Attr>,
    /// Its own bytes went with its file: the lower does not speak for it.
    pub(super) lost: bool,
    /// The id that took over, see [`Event::Renumbered`](super::event::Event::Renumbered).
    pub(super) successor: Option<NodeId>,
    /// Its entry in the journal, if there is one.
    pub(super) entry: Option<u32>,
}

/// A node's file in the upper.
#[derive(Clone, Debug)]
pub(super) struct UpperFile {
    /// The host's inode number.
    pub(super) host: u64,
    pub(super) home: Home,
    /// The content is the origin's, up to the length of this file.
    pub(super) metadata_only: bool,
    /// The content is being copied up; what is saved in the mark meanwhile.
    pub(super) copying: Option<Saved>,
    /// A directory that shows nothing of the lower.
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
    pub(super) fn mark(&self, origin: Option<Origin>) -> FileMark {
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
    /// `work/index`, under this number.
    Index(u64),
    /// `work/orphans`, under this number.
    Orphan(u64),
}

impl Node {
    pub(super) fn new(file_type: FileType, origin: Option<LowerIno>) -> Node {
        Node {
            file_type,
            origin,
            upper: None,
            names: Vec::new(),
            lookups: 0,
            gone: None,
            lost: false,
            successor: None,
            entry: None,
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
