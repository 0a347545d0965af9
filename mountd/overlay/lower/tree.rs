//! A lower that is a merged tree for names and attributes, and the store's objects for content.

use std::borrow::Cow;
use std::fs::File;
use std::os::fd::OwnedFd;

use cowl_core::digest::ObjectId;
use cowl_core::tree::{Dirent, FileType, Node, Target, Tree, TreeError, TreeIno};
use rustix::fs::{Mode, OFlags};

use super::{Child, ChildName, LowerNode, statfs_of};
use crate::overlay::types::{Attr, Errno, LowerIno, NodeId, Statfs};

/// Base of `st_ino` of files created in the upper: above every tree node, the low bits are the
/// host's inode number.
const UPPER_INO: u64 = 1 << 40;

/// The tree and the objects below the upper.
#[derive(Debug)]
pub(in crate::overlay) struct TreeLower {
    tree: Tree,
    objects: OwnedFd,
}

/// A damaged tree is EIO, as a bad disk is.
#[expect(clippy::needless_pass_by_value, reason = "an argument of map_err")]
fn broken(error: TreeError) -> Errno {
    if let TreeError::NotADirectory(_) = error {
        return Errno::NOTDIR;
    }
    tracing::error!(%error, "cannot read the tree");
    Errno::IO
}

/// The tree's number of a node.
fn number(node: LowerIno) -> TreeIno {
    TreeIno(node.0)
}

/// `st_ino` of a file created in the upper.
pub(super) const fn ino_of_host(host: u64) -> u64 {
    UPPER_INO | host
}

impl TreeLower {
    pub(super) fn new(tree: Tree, objects: OwnedFd) -> Self {
        Self { tree, objects }
    }

    pub(super) fn numbering(&self) -> u16 {
        self.tree.numbering()
    }

    pub(super) fn node_count(&self) -> u32 {
        self.tree.node_count()
    }

    fn record(&self, node: LowerIno) -> Result<Node, Errno> {
        if node.0 >= self.tree.node_count() {
            return Err(Errno::STALE); // an id that was never given out
        }
        self.tree.node(number(node)).map_err(broken)
    }

    pub(super) fn node(&self, node: LowerIno) -> Result<LowerNode, Errno> {
        let record = self.record(node)?;
        Ok(LowerNode {
            attr: attr_of(node, &record),
            has_content: record.object.is_some(),
            elf: record.elf,
        })
    }

    pub(super) fn lookup(&self, dir: LowerIno, name: &[u8]) -> Result<Option<Child>, Errno> {
        self.tree
            .lookup(number(dir), name)
            .map_err(broken)?
            .map(|dirent| child_of(&dirent))
            .transpose()
    }

    pub(super) fn child_count(&self, dir: LowerIno) -> Result<u32, Errno> {
        self.tree.child_count(number(dir)).map_err(broken)
    }

    pub(super) fn subdir_count(&self, dir: LowerIno) -> Result<u32, Errno> {
        self.tree.subdir_count(number(dir)).map_err(broken)
    }

    pub(super) fn each_child(
        &self,
        dir: LowerIno,
        from: u32,
        visit: &mut dyn FnMut(ChildName<'_>) -> bool,
    ) -> Result<(), Errno> {
        for position in from.. {
            let Some(dirent) = self.tree.child(number(dir), position).map_err(broken)? else {
                break;
            };
            let child = child_of(&dirent)?;
            let name = dirent.name;
            if !visit(ChildName {
                position,
                name,
                child,
            }) {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn name_of(&self, node: LowerIno) -> Result<Option<(LowerIno, Vec<u8>)>, Errno> {
        let first = self.tree.names_of(number(node)).map_err(broken)?.next();
        first
            .map(|dirent| {
                dirent
                    .map(|dirent| (LowerIno(dirent.parent.0), dirent.name.to_vec()))
                    .map_err(broken)
            })
            .transpose()
    }

    pub(super) fn symlink_target(&self, node: LowerIno) -> Result<&[u8], Errno> {
        self.tree.symlink_target(number(node)).map_err(broken)
    }

    pub(super) fn xattr(&self, node: LowerIno, name: &[u8]) -> Result<Option<&[u8]>, Errno> {
        self.tree.xattr(number(node), name).map_err(broken)
    }

    pub(super) fn xattr_names(&self, node: LowerIno) -> Result<Vec<Cow<'_, [u8]>>, Errno> {
        self.tree
            .xattrs(number(node))
            .map_err(broken)?
            .map(|xattr| Ok(Cow::Borrowed(xattr.map_err(broken)?.0)))
            .collect()
    }

    pub(super) fn open_content(&self, node: LowerIno) -> Result<Option<File>, Errno> {
        self.record(node)?
            .object
            .map(|object| self.open_object(self.tree.object_id(object).map_err(broken)?))
            .transpose()
    }

    fn open_object(&self, object: ObjectId) -> Result<File, Errno> {
        let hex = object.to_string();
        let (shard, rest) = hex.split_at_checked(2).ok_or(Errno::IO)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(
            &self.objects,
            format!("{shard}/{rest}"),
            flags,
            Mode::empty(),
        ) {
            Ok(file) => Ok(File::from(file)),
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => Err(errno),
            Err(errno) => {
                tracing::error!(%object, %errno, "cannot open an object of the store");
                Err(Errno::IO)
            }
        }
    }

    pub(super) fn statfs(&self) -> Result<Statfs, Errno> {
        statfs_of(&self.objects)
    }
}

fn child_of(dirent: &Dirent<'_>) -> Result<Child, Errno> {
    if let (Target::Node(node), Some(file_type)) = (dirent.target, dirent.file_type) {
        let node = LowerIno(node.0);
        return Ok(Child { node, file_type });
    }
    tracing::error!(
        dirent = dirent.index,
        "the merged tree has a whiteout or a link into another layer"
    );
    Err(Errno::IO)
}

/// The attributes of a node that was not copied up.
fn attr_of(node: LowerIno, record: &Node) -> Attr {
    Attr {
        ino: NodeId::of_lower(node).0,
        size: record.size,
        blocks: record.size.div_ceil(512),
        atime: record.mtime,
        mtime: record.mtime,
        ctime: record.mtime,
        file_type: record.file_type,
        // As on Linux, whatever the tar says: the copied-up link would show this, too.
        mode: if record.file_type == FileType::Symlink {
            0o777
        } else {
            record.mode
        },
        nlink: record.nlink,
        uid: record.uid,
        gid: record.gid,
        rdev: record.rdev,
        blksize: 4096,
    }
}
