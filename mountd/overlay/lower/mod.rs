//! The lower: what the upper covers. Read-only.
//!
//! Its nodes are numbered ([`LowerIno`]), and a number stays a node's for the life of the mount.
//! Every method may do I/O, so none is called under the state's lock.

mod dirs;
mod tree;

use std::borrow::Cow;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use cowl_core::tree::{FileType, Rdev, Tree, TreeIno};
use cowl_core::upper::marks::Origin;
use cowl_core::upper::scan::{OriginNode, Origins};
use cowl_core::upper::spelling::Spelling;

use super::types::{Attr, Errno, LowerIno, NodeId, Statfs};
use crate::journal::Journal;
pub use dirs::Layers;

use dirs::DirsLower;
use tree::TreeLower;

/// Where a mount's unchanged files come from.
#[derive(Debug)]
pub(super) enum Lower {
    /// A merged tree and the store's objects.
    Tree(TreeLower),
    /// A stack of plain directories.
    Dirs(DirsLower),
}

/// A node of the lower.
#[derive(Copy, Clone, Debug)]
pub(super) struct LowerNode {
    /// The attributes to show until it is copied up.
    pub(super) attr: Attr,
    /// A regular file that is not empty.
    pub(super) has_content: bool,
    /// The content begins as an ELF file does.
    pub(super) elf: bool,
}

impl LowerNode {
    pub(super) fn file_type(&self) -> FileType {
        self.attr.file_type
    }

    /// Whether this is a character device 0:0, which the upper would read as a whiteout.
    pub(super) fn is_null_device(&self) -> bool {
        self.attr.file_type == FileType::CharDevice && self.attr.rdev == Rdev::default()
    }

    /// The type of its file in the upper.
    pub(super) fn stored_type(&self) -> FileType {
        if self.is_null_device() {
            FileType::Regular
        } else {
            self.attr.file_type
        }
    }

    /// Whether it is a hard link: its copy goes into the index, where each of its names finds it.
    pub(super) fn has_more_names(&self) -> bool {
        self.attr.file_type != FileType::Directory && self.attr.nlink > 1
    }
}

/// What is at a name of the lower.
#[derive(Copy, Clone, Debug)]
pub(super) struct Child {
    pub(super) node: LowerIno,
    pub(super) file_type: FileType,
}

/// A name in a directory of the lower.
#[derive(Copy, Clone, Debug)]
pub(super) struct ChildName<'n> {
    /// Its place among the directory's names.
    pub(super) position: u32,
    pub(super) name: &'n [u8],
    pub(super) child: Child,
}

impl Lower {
    pub(super) fn of_tree(tree: Tree, objects: OwnedFd) -> Lower {
        Lower::Tree(TreeLower::new(tree, objects))
    }

    /// `upper`: the upper's root, if there is one.
    pub(super) fn of_layers(
        layers: Layers,
        upper: Option<&OwnedFd>,
        journal: Option<Arc<Journal>>,
    ) -> Result<Lower, Errno> {
        DirsLower::new(layers, upper, journal).map(Lower::Dirs)
    }

    /// The version of a tree's numbering, which an upper must have been written over.
    pub(super) fn numbering(&self) -> u16 {
        match self {
            Lower::Tree(tree) => tree.numbering(),
            Lower::Dirs(_) => 0,
        }
    }

    /// How many nodes there can be.
    pub(super) fn most_nodes(&self) -> u32 {
        match self {
            Lower::Tree(tree) => tree.node_count(),
            Lower::Dirs(_) => dirs::MOST_NODES,
        }
    }

    /// A node with its attributes; ESTALE for a number that was never given out.
    pub(super) fn node(&self, node: LowerIno) -> Result<LowerNode, Errno> {
        match self {
            Lower::Tree(tree) => tree.node(node),
            Lower::Dirs(dirs) => dirs.node(node),
        }
    }

    /// `st_ino` of a node.
    pub(super) fn ino(&self, node: LowerIno) -> u64 {
        match self {
            Lower::Tree(_) => NodeId::of_lower(node).0,
            Lower::Dirs(dirs) => dirs.ino(node),
        }
    }

    /// `st_ino` of a file created in the upper, whose inode on the host this is.
    pub(super) fn ino_of_host(&self, host: u64) -> u64 {
        match self {
            Lower::Tree(_) => tree::ino_of_host(host),
            Lower::Dirs(_) => host,
        }
    }

    pub(super) fn lookup(&self, dir: LowerIno, name: &[u8]) -> Result<Option<Child>, Errno> {
        match self {
            Lower::Tree(tree) => tree.lookup(dir, name),
            Lower::Dirs(dirs) => dirs.lookup(dir, name),
        }
    }

    /// The number of names in a directory.
    pub(super) fn child_count(&self, dir: LowerIno) -> Result<u32, Errno> {
        match self {
            Lower::Tree(tree) => tree.child_count(dir),
            Lower::Dirs(dirs) => dirs.child_count(dir),
        }
    }

    /// The number of directories in a directory.
    pub(super) fn subdir_count(&self, dir: LowerIno) -> Result<u32, Errno> {
        match self {
            Lower::Tree(tree) => tree.subdir_count(dir),
            Lower::Dirs(dirs) => dirs.subdir_count(dir),
        }
    }

    /// Passes the names of a directory to `visit`, from a position on, until it returns false.
    pub(super) fn each_child(
        &self,
        dir: LowerIno,
        from: u32,
        visit: &mut dyn FnMut(ChildName<'_>) -> bool,
    ) -> Result<(), Errno> {
        match self {
            Lower::Tree(tree) => tree.each_child(dir, from, visit),
            Lower::Dirs(dirs) => dirs.each_child(dir, from, visit),
        }
    }

    /// A name of a node, and its directory; None for the root.
    pub(super) fn name_of(&self, node: LowerIno) -> Result<Option<(LowerIno, Vec<u8>)>, Errno> {
        match self {
            Lower::Tree(tree) => tree.name_of(node),
            Lower::Dirs(dirs) => dirs.name_of(node),
        }
    }

    pub(super) fn symlink_target(&self, node: LowerIno) -> Result<Cow<'_, [u8]>, Errno> {
        match self {
            Lower::Tree(tree) => tree.symlink_target(node).map(Cow::Borrowed),
            Lower::Dirs(dirs) => dirs.symlink_target(node).map(Cow::Owned),
        }
    }

    pub(super) fn xattr(
        &self,
        node: LowerIno,
        name: &[u8],
    ) -> Result<Option<Cow<'_, [u8]>>, Errno> {
        match self {
            Lower::Tree(tree) => Ok(tree.xattr(node, name)?.map(Cow::Borrowed)),
            Lower::Dirs(dirs) => Ok(dirs.xattr(node, name)?.map(Cow::Owned)),
        }
    }

    /// The names of all attributes, as they are shown.
    pub(super) fn xattr_names(&self, node: LowerIno) -> Result<Vec<Cow<'_, [u8]>>, Errno> {
        match self {
            Lower::Tree(tree) => tree.xattr_names(node),
            Lower::Dirs(dirs) => {
                let names = dirs.xattr_names(node)?;
                Ok(names.into_iter().map(Cow::Owned).collect())
            }
        }
    }

    /// Opens the content of a regular file for reading; None: it is empty, and has no file.
    pub(super) fn open_content(&self, node: LowerIno) -> Result<Option<File>, Errno> {
        match self {
            Lower::Tree(tree) => tree.open_content(node),
            Lower::Dirs(dirs) => dirs.open_content(node).map(Some),
        }
    }

    /// What a mark says of a file that was copied up from a node.
    pub(super) fn origin_of(&self, node: LowerIno) -> Result<Origin, Errno> {
        match self {
            Lower::Tree(_) => Ok(Origin::Node(TreeIno(node.0))),
            Lower::Dirs(dirs) => dirs.path(node).map(Origin::Path),
        }
    }

    pub(super) fn statfs(&self) -> Result<Statfs, Errno> {
        match self {
            Lower::Tree(tree) => tree.statfs(),
            Lower::Dirs(dirs) => dirs.statfs(),
        }
    }

    fn checked(&self, node: LowerIno) -> Result<OriginNode<LowerIno>, Errno> {
        let found = self.node(node)?;
        Ok(OriginNode {
            node,
            stored_type: found.stored_type(),
            null_device: found.is_null_device(),
            has_content: found.has_content,
        })
    }
}

impl Origins for Lower {
    type Node = LowerIno;

    fn spelling(&self) -> Spelling {
        match self {
            Lower::Tree(_) => Spelling::Tree,
            Lower::Dirs(_) => Spelling::Plain,
        }
    }

    fn origin(&self, origin: &Origin) -> Result<Option<OriginNode<LowerIno>>, Errno> {
        let node = match (self, origin) {
            (Lower::Tree(_), Origin::Node(node)) => Some(LowerIno(node.0)),
            (Lower::Dirs(dirs), Origin::Path(path)) => dirs.find(path)?,
            (Lower::Tree(_), Origin::Path(_)) | (Lower::Dirs(_), Origin::Node(_)) => None,
        };
        match node.map(|node| self.checked(node)) {
            None | Some(Err(Errno::STALE)) => Ok(None),
            Some(found) => found.map(Some),
        }
    }

    fn child(&self, dir: LowerIno, name: &[u8]) -> Result<Option<OriginNode<LowerIno>>, Errno> {
        let child = self.lookup(dir, name)?;
        child.map(|child| self.checked(child.node)).transpose()
    }
}

/// The file system that a descriptor is on.
pub(super) fn statfs_of(fd: &impl std::os::fd::AsFd) -> Result<Statfs, Errno> {
    let host = rustix::fs::fstatvfs(fd)?;
    Ok(Statfs {
        block_size: host.f_frsize,
        blocks: host.f_blocks,
        blocks_free: host.f_bfree,
        blocks_available: host.f_bavail,
        files: host.f_files,
        files_free: host.f_ffree,
        name_max: 255,
    })
}
