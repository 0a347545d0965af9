//! Format 2 as Rust structs. The byte diagrams are in FORMAT.md; sizes are asserted here.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(super) const MAGIC: [u8; 8] = *b"cowltree";
pub(super) const VERSION: u16 = 2;
/// The rule by which nodes got their numbers; marks in uppers are only as good as it.
pub(super) const NUMBERING: u16 = 1;
pub(super) const KIND_LAYER: u8 = 1;
pub(super) const KIND_MERGED: u8 = 2;

/// "No object", "no extended attributes".
pub(super) const NONE: u32 = u32::MAX;
/// Sections begin at multiples of this: a cache line, which is also a node.
pub(super) const ALIGN: usize = 64;
pub(super) const DIGEST_LEN: usize = 32;
/// More sections than this are no tree: bounds what opening hashes.
pub(super) const MAX_SECTIONS: u32 = 32;

/// Directories below one another. Twice what fits into a PATH_MAX; the limit is there for loops
/// made of bad bytes.
pub(super) const MAX_DEPTH: usize = 4096;
/// NAME_MAX.
pub(super) const MAX_NAME: usize = 255;
/// PATH_MAX without its NUL: the longest target that symlink(2) takes.
pub(super) const MAX_SYMLINK: usize = 4095;
/// XATTR_NAME_MAX.
pub(super) const MAX_XATTR_NAME: usize = 255;
/// XATTR_SIZE_MAX.
pub(super) const MAX_XATTR_VALUE: usize = 65536;
pub(super) const NANOS_PER_SEC: u32 = 1_000_000_000;

pub(super) const NODE_ELF: u32 = 1;
pub(super) const NODE_IMPLIED: u32 = 2;
pub(super) const NODE_OPAQUE: u32 = 4;

pub(super) const DIRENT_NODE: u8 = 0;
pub(super) const DIRENT_WHITEOUT: u8 = 1;
pub(super) const DIRENT_LINK: u8 = 2;

/// The sections of format 2, in their order in the file.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Section {
    Nodes = 1,
    Dirents = 2,
    InverseIndex = 3,
    InverseList = 4,
    Links = 5,
    Names = 6,
    Xattrs = 7,
    Objects = 8,
}

impl Section {
    pub(super) const ALL: [Self; 8] = [
        Self::Nodes,
        Self::Dirents,
        Self::InverseIndex,
        Self::InverseList,
        Self::Links,
        Self::Names,
        Self::Xattrs,
        Self::Objects,
    ];

    /// Bytes of one record.
    pub(super) const fn record(self) -> usize {
        match self {
            Self::Nodes => size_of::<RawNode>(),
            Self::Dirents => size_of::<RawDirent>(),
            Self::InverseIndex | Self::InverseList => size_of::<U32>(),
            Self::Links => size_of::<RawLink>(),
            Self::Names | Self::Xattrs => 1,
            Self::Objects => size_of::<RawObject>(),
        }
    }
}

#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    pub(super) magic: [u8; 8],
    pub(super) version: U16,
    pub(super) numbering: U16,
    pub(super) kind: u8,
    pub(super) reserved: [u8; 3],
    pub(super) compat: U64,
    pub(super) incompat: U64,
    pub(super) nodes: U32,
    pub(super) dirents: U32,
    pub(super) objects: U32,
    pub(super) sections: U32,
    pub(super) length: U64,
    pub(super) reserved_too: [u8; 8],
    /// The SHA-256 that names the layer or the stack: its DiffID or ChainID.
    pub(super) owner: [u8; 32],
}

#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawSection {
    pub(super) id: U32,
    pub(super) record: U32,
    pub(super) offset: U64,
    pub(super) length: U64,
}

/// `data` by type: regular = object or [`NONE`], 0; directory = first name, number of names;
/// symbolic link = offset and length in the names; device = major, minor; else 0, 0.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawNode {
    pub(super) mode: U32,
    pub(super) uid: U32,
    pub(super) gid: U32,
    pub(super) nlink: U32,
    pub(super) size: U64,
    pub(super) mtime_secs: I64,
    pub(super) mtime_nanos: U32,
    pub(super) flags: U32,
    pub(super) data: [U32; 2],
    pub(super) xattr_offset: U32,
    pub(super) xattr_length: U32,
    pub(super) reserved: [u8; 8],
}

/// `target` by `flags`: [`DIRENT_NODE`] = node; [`DIRENT_WHITEOUT`] = 0; [`DIRENT_LINK`] = index
/// into the links.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawDirent {
    pub(super) target: U32,
    pub(super) parent: U32,
    pub(super) name_offset: U32,
    pub(super) name_length: U16,
    pub(super) file_type: u8,
    pub(super) flags: u8,
}

/// A path in the layers below, in the names heap.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawLink {
    pub(super) offset: U32,
    pub(super) length: U32,
}

#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawObject {
    pub(super) id: [u8; 32],
    pub(super) size: U64,
}

const _: () = assert!(size_of::<RawHeader>() == 96);
const _: () = assert!(size_of::<RawSection>() == 24);
const _: () = assert!(size_of::<RawNode>() == 64);
const _: () = assert!(size_of::<RawDirent>() == 16);
const _: () = assert!(size_of::<RawObject>() == 40);

/// Where the sections of a file with `sections` of them may begin at the earliest.
pub(super) const fn header_length(sections: usize) -> usize {
    size_of::<RawHeader>() + sections * size_of::<RawSection>() + DIGEST_LEN
}

/// A name that a directory can hold and a lookup can ask for.
pub(super) fn valid_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= MAX_NAME
        && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// A symbolic link's target that symlink(2) would take.
pub(super) fn valid_symlink(target: &[u8]) -> bool {
    !target.is_empty() && target.len() <= MAX_SYMLINK && !target.contains(&0)
}
