//! The lower: what the upper covers. Read-only.
//!
//! Its nodes are numbered ([`LowerIno`]), and a number stays a node's for the life of the mount.
//! Every method may do I/O, so none is called under the state's lock.

mod tree;

use std::borrow::Cow;
use std::fs::File;
use std::os::fd::OwnedFd;

use cowl_core::tree::{FileType, Rdev, Tree, TreeIno};
use cowl_core::upper::scan::{OriginNode, Origins};

use super::types::{Attr, Errno, LowerIno, NodeId, Statfs};
use tree::TreeLower;

/// Where a mount's unchanged files come from.
#[derive(Debug)]
pub(super) enum Lower {
    /// A merged tree and the store's objects.
    Tree(TreeLower),
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

/// An extended attribute: its name and value.
pub(super) type Xattr<'x> = (Cow<'x, [u8]>, Cow<'x, [u8]>);

impl Lower {
    pub(super) fn of_tree(tree: Tree, objects: OwnedFd) -> Lower {
        Lower::Tree(TreeLower::new(tree, objects))
    }

    /// Its version, if an upper must be over the same.
    pub(super) fn numbering(&self) -> u16 {
        match self {
            Lower::Tree(tree) => tree.numbering(),
        }
    }

    /// How many nodes there can be.
    pub(super) fn most_nodes(&self) -> u32 {
        match self {
            Lower::Tree(tree) => tree.node_count(),
        }
    }

    /// A node with its attributes; ESTALE for a number that was never given out.
    pub(super) fn node(&self, node: LowerIno) -> Result<LowerNode, Errno> {
        match self {
            Lower::Tree(tree) => tree.node(node),
        }
    }

    /// `st_ino` of a node.
    pub(super) fn ino(&self, node: LowerIno) -> u64 {
        match self {
            Lower::Tree(_) => NodeId::of_lower(node).0,
        }
    }

    /// `st_ino` of a file created in the upper, whose inode on the host this is.
    pub(super) fn ino_of_host(&self, host: u64) -> u64 {
        match self {
            Lower::Tree(_) => tree::ino_of_host(host),
        }
    }

    pub(super) fn lookup(&self, dir: LowerIno, name: &[u8]) -> Result<Option<Child>, Errno> {
        match self {
            Lower::Tree(tree) => tree.lookup(dir, name),
        }
    }

    /// The number of names in a directory.
    pub(super) fn child_count(&self, dir: LowerIno) -> Result<u32, Errno> {
        match self {
            Lower::Tree(tree) => tree.child_count(dir),
        }
    }

    /// The number of directories in a directory.
    pub(super) fn subdir_count(&self, dir: LowerIno) -> Result<u32, Errno> {
        match self {
            Lower::Tree(tree) => tree.subdir_count(dir),
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
        }
    }

    /// A name of a node, and its directory; None for the root.
    pub(super) fn name_of(&self, node: LowerIno) -> Result<Option<(LowerIno, Vec<u8>)>, Errno> {
        match self {
            Lower::Tree(tree) => tree.name_of(node),
        }
    }

    pub(super) fn symlink_target(&self, node: LowerIno) -> Result<Cow<'_, [u8]>, Errno> {
        match self {
            Lower::Tree(tree) => tree.symlink_target(node).map(Cow::Borrowed),
        }
    }

    pub(super) fn xattr(
        &self,
        node: LowerIno,
        name: &[u8],
    ) -> Result<Option<Cow<'_, [u8]>>, Errno> {
        match self {
            Lower::Tree(tree) => Ok(tree.xattr(node, name)?.map(Cow::Borrowed)),
        }
    }

    /// All attributes, by the names that they are shown under.
    pub(super) fn xattrs(&self, node: LowerIno) -> Result<Vec<Xattr<'_>>, Errno> {
        match self {
            Lower::Tree(tree) => tree.xattrs(node),
        }
    }

    /// Opens the content of a regular file for reading; None: it is empty, and has no file.
    pub(super) fn open_content(&self, node: LowerIno) -> Result<Option<File>, Errno> {
        match self {
            Lower::Tree(tree) => tree.open_content(node),
        }
    }

    pub(super) fn statfs(&self) -> Result<Statfs, Errno> {
        match self {
            Lower::Tree(tree) => tree.statfs(),
        }
    }
}

impl Origins for Lower {
    type Node = LowerIno;

    fn origin(&self, origin: TreeIno) -> Result<Option<OriginNode<LowerIno>>, Errno> {
        let node = LowerIno(origin.0);
        match self.node(node) {
            Ok(found) => Ok(Some(OriginNode {
                node,
                stored_type: found.stored_type(),
                null_device: found.is_null_device(),
                has_content: found.has_content,
            })),
            Err(Errno::STALE) => Ok(None),
            Err(error) => Err(error),
        }
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
