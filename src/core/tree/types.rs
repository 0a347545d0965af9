//! The values of a tree's interface. They hide the format from the overlay and the importer.

use crate::digest::ObjectId;

/// The number of a node in one tree: dense, breadth-first, the root is 0. The mount shows it as
/// `st_ino`, plus one.
#[derive(Debug, Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct TreeIno(pub u32);

impl TreeIno {
    /// The root directory of every tree.
    pub const ROOT: Self = Self(0);
}

/// What a tree describes.
#[derive(Debug, Copy, Clone, Eq, PartialEq)]
pub enum TreeKind {
    /// One layer: has whiteouts, opaque marks, implied directories and links into the layers
    /// below.
    Layer,
    /// A whole stack folded into one, without any of these.
    Merged,
}

/// The type of a file, as the upper four bits of `st_mode`.
#[derive(Debug, Copy, Clone, Eq, PartialEq, Hash)]
pub enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl FileType {
    /// The type's bits in `st_mode` (`S_IFMT`).
    pub const fn to_mode_bits(self) -> u32 {
        (self.dirent_type() as u32) << 12
    }

    /// The type that a `st_mode` carries; permission bits are ignored.
    pub const fn from_mode_bits(mode: u32) -> Option<Self> {
        Self::from_dirent_type((mode >> 12 & 0xf) as u8)
    }

    /// The type as `getdents` says it (`DT_*`), which on Linux is `S_IFMT` shifted down by twelve.
    pub const fn dirent_type(self) -> u8 {
        match self {
            Self::Fifo => 1,
            Self::CharDevice => 2,
            Self::Directory => 4,
            Self::BlockDevice => 6,
            Self::Regular => 8,
            Self::Symlink => 10,
            Self::Socket => 12,
        }
    }

    pub(super) const fn from_dirent_type(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::Fifo,
            2 => Self::CharDevice,
            4 => Self::Directory,
            6 => Self::BlockDevice,
            8 => Self::Regular,
            10 => Self::Symlink,
            12 => Self::Socket,
            _ => return None,
        })
    }
}

/// A point in time: seconds since 1970 (negative before) and nanoseconds within that second, below
/// 1,000,000,000.
#[derive(Debug, Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Default)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub secs: i64,
    /// The rest.
    pub nanos: u32,
}

/// A device's number.
#[derive(Debug, Copy, Clone, Eq, PartialEq, Hash, Default)]
pub struct Rdev {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

/// The place of an object's id in [`Tree::object_id`](super::Tree::object_id)'s array.
#[derive(Debug, Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct ObjectRef(pub u32);

/// The attributes of a file.
#[derive(Debug, Copy, Clone, Eq, PartialEq)]
pub struct Node {
    /// What kind of file.
    pub file_type: FileType,
    /// Permission bits with set-id and sticky, 07777 at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names of the file in this tree; for a directory 2 and its subdirectories.
    pub nlink: u32,
    /// Bytes of content; of a symbolic link its target's length; else 0.
    pub size: u64,
    /// Last change of the content, and of everything else, since nothing below changes.
    pub mtime: Timestamp,
    /// The device's number, 0:0 for what is none.
    pub rdev: Rdev,
    /// The content begins as an ELF file does.
    pub elf: bool,
    /// Layer trees: a directory that the tar never named, made as another's parent. Its attributes
    /// are those below.
    pub implied: bool,
    /// Layer trees: a directory whose namesake's children in the layers below are hidden.
    pub opaque: bool,
    /// Where the content is. None: not a regular file, or an empty one.
    pub object: Option<ObjectRef>,
}

/// The target of a name.
#[derive(Debug, Copy, Clone, Eq, PartialEq)]
pub enum Target {
    /// A file of this tree.
    Node(TreeIno),
    /// Layer trees: the name is deleted from the layers below.
    Whiteout,
    /// Layer trees: a hard link to a path of the layers below;
    /// [`Tree::link_target`](super::Tree::link_target) has it.
    LinkBelow,
}

/// One name in one directory.
#[derive(Debug, Copy, Clone, Eq, PartialEq)]
pub struct Dirent<'t> {
    /// Its number among all names of the tree.
    pub index: u32,
    /// The directory it is in.
    pub parent: TreeIno,
    /// The name: any bytes but `/` and NUL, 255 at most.
    pub name: &'t [u8],
    /// What it stands for.
    pub target: Target,
    /// The type of the target if that is a node.
    pub file_type: Option<FileType>,
}

/// What a tar says about any kind of entry.
#[derive(Debug, Clone, Eq, PartialEq, Default)]
pub struct Meta {
    /// Only the bits of 07777 are taken: old tars also put the type here.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change.
    pub mtime: Timestamp,
    /// Extended attributes with their prefixes, in any order; of two with one name the later
    /// holds.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a tar says about one kind of entry.
#[derive(Debug, Clone, Eq, PartialEq)]
pub enum Kind {
    /// A regular file. It has an object exactly if it has bytes.
    Regular {
        /// Bytes of content.
        size: u64,
        /// The content's name.
        object: Option<ObjectId>,
        /// The content begins as an ELF file does.
        elf: bool,
    },
    /// A directory.
    Directory,
    /// A symbolic link with its target: not empty, no NUL, 4095 bytes at most.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(Rdev),
    /// A block device.
    BlockDevice(Rdev),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}
