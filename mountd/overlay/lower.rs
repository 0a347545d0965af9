//! The lower: the merged tree for names and attributes, the store's objects for content.
//! Read-only.

use std::fs::File;
use std::os::fd::OwnedFd;

use cowl_core::digest::ObjectId;
use cowl_core::tree::{Dirent, FileType, Node, Target, Tree, TreeError, TreeIno, Xattr};
use rustix::fs::{Mode, OFlags};

use super::types::{Attr, Errno, NodeId, Statfs};

/// The tree and the objects below the upper.
#[derive(Debug)]
pub(super) struct Lower {
    tree: Tree,
    objects: OwnedFd,
}

/// A name of the tree.
#[derive(Copy, Clone, Debug)]
pub(super) struct Child<'t> {
    pub(super) node: TreeIno,
    pub(super) name: &'t [u8],
    pub(super) file_type: FileType,
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

impl Lower {
    pub(super) fn new(tree: Tree, objects: OwnedFd) -> Lower {
        Lower { tree, objects }
    }

    pub(super) fn numbering(&self) -> u16 {
        self.tree.numbering()
    }

    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }

    pub(super) fn node(&self, node: TreeIno) -> Result<Node, Errno> {
        if node.0 >= self.tree.node_count() {
            return Err(Errno::STALE); // an id that was never given out
        }
        self.tree.node(node).map_err(broken)
    }

    pub(super) fn attr(&self, node: TreeIno) -> Result<Attr, Errno> {
        self.node(node).map(|record| attr_of(node, &record))
    }

    pub(super) fn lookup(&self, dir: TreeIno, name: &[u8]) -> Result<Option<Child<'_>>, Errno> {
        self.tree
            .lookup(dir, name)
            .map_err(broken)?
            .map(child_of)
            .transpose()
    }

    pub(super) fn child_count(&self, dir: TreeIno) -> Result<u32, Errno> {
        self.tree.child_count(dir).map_err(broken)
    }

    pub(super) fn subdir_count(&self, dir: TreeIno) -> Result<u32, Errno> {
        self.tree.subdir_count(dir).map_err(broken)
    }

    /// The directory's child at a position of its sorted names.
    pub(super) fn child(&self, dir: TreeIno, position: u32) -> Result<Option<Child<'_>>, Errno> {
        self.tree
            .child(dir, position)
            .map_err(broken)?
            .map(child_of)
            .transpose()
    }

    /// The node's first name; None for the root.
    pub(super) fn name_of(&self, node: TreeIno) -> Result<Option<(TreeIno, &[u8])>, Errno> {
        let first = self.tree.names_of(node).map_err(broken)?.next();
        first
            .map(|dirent| {
                dirent
                    .map(|dirent| (dirent.parent, dirent.name))
                    .map_err(broken)
            })
            .transpose()
    }

    pub(super) fn symlink_target(&self, node: TreeIno) -> Result<&[u8], Errno> {
        self.tree.symlink_target(node).map_err(broken)
    }

    pub(super) fn xattr(&self, node: TreeIno, name: &[u8]) -> Result<Option<&[u8]>, Errno> {
        self.tree.xattr(node, name).map_err(broken)
    }

    pub(super) fn xattrs(&self, node: TreeIno) -> Result<Vec<Xattr<'_>>, Errno> {
        self.tree
            .xattrs(node)
            .map_err(broken)?
            .collect::<Result<_, _>>()
            .map_err(broken)
    }

    /// The object that holds a regular file's bytes; None for an empty file and for what is no
    /// file.
    pub(super) fn object(&self, node: &Node) -> Result<Option<ObjectId>, Errno> {
        node.object
            .map(|object| self.tree.object_id(object).map_err(broken))
            .transpose()
    }

    /// Opens an object for reading.
    pub(super) fn open_object(&self, object: ObjectId) -> Result<File, Errno> {
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

fn child_of(dirent: Dirent<'_>) -> Result<Child<'_>, Errno> {
    if let (Target::Node(node), Some(file_type)) = (dirent.target, dirent.file_type) {
        return Ok(Child {
            node,
            name: dirent.name,
            file_type,
        });
    }
    tracing::error!(
        dirent = dirent.index,
        "the merged tree has a whiteout or a link into another layer"
    );
    Err(Errno::IO)
}

/// The attributes of a tree node that was not copied up.
pub(super) fn attr_of(node: TreeIno, record: &Node) -> Attr {
    Attr {
        ino: NodeId::of_tree(node).0,
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
