//! Types shared by `overlay` and its callers. None is a kernel struct: `fuse` translates.

use std::fs::File;
use std::sync::Arc;

use cowl_core::tree::{FileType, Rdev, Timestamp};

/// The error of every overlay operation, as the system call returns it.
pub type Errno = rustix::io::Errno;

/// The number of a node of the lower: of a tree, its number there. The root is 0.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct LowerIno(pub u32);

impl LowerIno {
    /// The root directory.
    pub const ROOT: LowerIno = LowerIno(0);
}

/// The FUSE node id. It is never reused while the mount lives.
///
/// The id of a lower node is its number plus one, so the root is 1 and no table is needed; nodes
/// created in the upper count up from 2^32 + 1. `st_ino` is a number of its own ([`Attr::ino`]).
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct NodeId(pub u64);

/// The highest id of a lower node; ids above it belong to nodes created in the upper.
const LAST_LOWER_ID: u64 = 1 << 32;

impl NodeId {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(1);
    /// The first id of a node created in the upper.
    pub(super) const FIRST_CREATED: NodeId = NodeId(LAST_LOWER_ID + 1);

    /// The id of a lower node.
    pub const fn of_lower(node: LowerIno) -> NodeId {
        // Widening; `From` is not const.
        NodeId(node.0 as u64 + 1)
    }

    /// The lower node with this id, if it is one.
    pub fn lower(self) -> Option<LowerIno> {
        u32::try_from(self.0.checked_sub(1)?).ok().map(LowerIno)
    }
}

/// An open file, from [`Overlay::open`](super::Overlay::open) or a creation to
/// [`Overlay::release`](super::Overlay::release).
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct HandleId(pub u64);

/// The ids that a new file gets, in the user namespace of the worker. The kernel has checked
/// permissions (`default_permissions`) before it sent the request.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Caller {
    /// File system user id of the calling thread.
    pub uid: u32,
    /// File system group id of the calling thread.
    pub gid: u32,
}

/// What `stat` shows.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Attr {
    /// `st_ino`: the lower's number of the node (kept when it is copied up), 2^40 | host
    /// inode for one created in the upper.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Space taken, in units of 512 bytes.
    pub blocks: u64,
    /// Last access; of a node of a tree: `mtime`, never updated.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode; of a node of a tree: `mtime`.
    pub ctime: Timestamp,
    /// Type.
    pub file_type: FileType,
    /// Permission bits, with set-uid, set-gid and sticky (07777).
    pub mode: u32,
    /// Number of names; of a directory: 2 + subdirectories, or 1 where the host does not count.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, of a device.
    pub rdev: Rdev,
    /// Preferred size of a request.
    pub blksize: u32,
}

/// A name's node, counted as looked up once.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// The node.
    pub id: NodeId,
    /// Its attributes.
    pub attr: Attr,
    /// Whether the attributes change by requests only, so that the kernel may cache them; see
    /// [`Overlay::settle`](super::Overlay::settle).
    pub settled: bool,
}

/// A time to set.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum SetTime {
    /// The current time, from the clock that the host uses for files.
    Now,
    /// This moment.
    At(Timestamp),
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub struct SetAttr {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the content.
    pub mtime: Option<SetTime>,
    /// Drop set-uid, set-gid (of a file its group may execute) and `security.capability` first:
    /// `FATTR_KILL_SUIDGID`, or a request that sets nothing at all, which is how the kernel asks
    /// for just this.
    pub kill_priv: bool,
}

impl SetAttr {
    /// Whether nothing but times changes.
    pub(super) fn is_times_only(&self) -> bool {
        let times = SetAttr {
            atime: self.atime,
            mtime: self.mtime,
            ..SetAttr::default()
        };
        *self == times
    }
}

/// How a file is to be opened. `O_APPEND` is not here: the kernel turns it into offsets.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub struct OpenFlags {
    /// For writing (`O_WRONLY`, `O_RDWR`).
    pub write: bool,
    /// Truncate to zero bytes (`O_TRUNC`), also when opened for reading only.
    pub truncate: bool,
    /// Each write is durable when it returns (`O_DSYNC`, `O_SYNC`).
    pub sync: bool,
    /// With `truncate`: drop privileges of the file as [`SetAttr::kill_priv`] does
    /// (`FUSE_OPEN_KILL_SUIDGID`).
    pub kill_priv: bool,
}

/// The half of the overlay that an opened host file belongs to.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum Side {
    /// An object of the store, shared and never written.
    Lower,
    /// A file of the upper.
    Upper,
}

/// The backing file of a passthrough open: the kernel reads and writes it directly.
#[derive(Clone, Debug)]
pub struct Backing {
    /// The file to register, where it is open already; else
    /// [`Overlay::backing_file`](super::Overlay::backing_file) opens it. All opens of a node that
    /// are alive at one time carry the same inode.
    pub file: Option<Arc<File>>,
    /// A node's backing id is valid only while its side is the same.
    pub side: Side,
}

/// The reply to one open: how the kernel serves this handle. All opens of a node that are alive at
/// one time have the same mode.
#[derive(Clone, Debug)]
pub enum OpenMode {
    /// By READ and WRITE requests, through the mount's page cache, which is kept over opens
    /// (`FOPEN_KEEP_CACHE`).
    Cached,
    /// From the backing file (`FOPEN_PASSTHROUGH`).
    Passthrough(Backing),
}

/// An opened file.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The argument of `release`; 0 where files have no handles
    /// ([`IoMode::has_handles`](super::IoMode::has_handles)).
    pub handle: HandleId,
    /// How to serve it.
    pub mode: OpenMode,
    /// From now on its attributes change without a request: the kernel must drop its cached ones.
    pub unsettles: bool,
}

/// An entry of a directory.
#[derive(Copy, Clone, Debug)]
pub struct DirEntry<'n> {
    /// Its name; `.` and `..` come first.
    pub name: &'n [u8],
    /// `d_ino`.
    pub ino: u64,
    /// Type.
    pub file_type: FileType,
    /// The cookie that continues after this entry.
    pub cookie: u64,
    /// When asked for with attributes: the node, counted as looked up if the entry is taken. Never
    /// there for `.` and `..`.
    pub entry: Option<Entry>,
}

/// Flags of `renameat2`.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub enum RenameMode {
    /// Replace what is at the new name.
    #[default]
    Replace,
    /// Fail with EEXIST if there is something.
    NoReplace,
    /// Exchange the two.
    Exchange,
}

impl RenameMode {
    /// From the bits of `renameat2(2)`. `RENAME_WHITEOUT` is for file systems below an overlay:
    /// EINVAL, as is what is unknown.
    pub fn from_bits(bits: u32) -> Result<RenameMode, Errno> {
        match bits {
            0 => Ok(RenameMode::Replace),
            1 => Ok(RenameMode::NoReplace),
            2 => Ok(RenameMode::Exchange),
            _ => Err(Errno::INVAL),
        }
    }
}

/// Flags of `setxattr`.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub struct XattrFlags {
    /// Fail with EEXIST if it is there (`XATTR_CREATE`).
    pub create: bool,
    /// Fail with ENODATA if it is not (`XATTR_REPLACE`).
    pub replace: bool,
    /// Setting this ACL clears set-gid (`FUSE_SETXATTR_ACL_KILL_SGID`).
    pub kill_sgid: bool,
}

/// One end of a copy.
#[derive(Copy, Clone, Debug)]
pub struct CopyEnd {
    /// The file.
    pub node: NodeId,
    /// The handle it was opened with, if files have handles.
    pub handle: Option<HandleId>,
    /// The first byte.
    pub offset: u64,
}

/// Where `lseek` looks from its offset.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Seek {
    /// The next byte that is stored (`SEEK_DATA`).
    Data,
    /// The next that is not (`SEEK_HOLE`).
    Hole,
}

/// What `statfs` shows.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Statfs {
    /// Size of a block in bytes; the counts below are in it.
    pub block_size: u64,
    /// All blocks.
    pub blocks: u64,
    /// Free ones.
    pub blocks_free: u64,
    /// Free ones for those without privilege.
    pub blocks_available: u64,
    /// All inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Longest name in bytes.
    pub name_max: u64,
}
