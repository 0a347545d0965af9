//! Reads the upper: whiteouts, and the meaning of a file's marks over the tree.
//!
//! Shared by lookup and readdir, and by diff and commit later. Invariant: marks are foreign bytes.
//! A mark that contradicts itself or the tree is an error of its name, never a panic and never a
//! guess.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;

use rustix::fs::FileType as HostType;
use rustix::io::Errno;

use super::each_entry;
use super::marks::{self, FileMark, Mark, Namespace, Saved, UnknownMark};
use super::spot::{Spot, is_whiteout};
use crate::tree::{FileType, Node, Rdev, Tree, TreeIno};

/// A name of an upper's directory, as it is listed.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Listed {
    /// The tree's file of this name is hidden.
    Whiteout,
    /// A file; its marks are still to be read.
    File {
        /// Of the host's file.
        file_type: FileType,
        /// Of the host.
        inode: u64,
    },
}

/// The decoded and checked marks of a file; `N` is a node of the lower.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Marks<N = TreeIno> {
    /// The type to show.
    pub file_type: FileType,
    /// The lower node that this was copied up from. A directory shows its children, unless it is
    /// opaque.
    pub origin: Option<N>,
    /// A directory that shows nothing of the tree.
    pub opaque: bool,
    /// The content is the origin's.
    pub metadata_only: bool,
    /// A character device 0:0, kept as an empty regular file.
    pub device: bool,
    /// See [`FileMark::link_delta`].
    pub link_delta: Option<i32>,
    /// A crash stopped the copy-up of the content: these attributes are to be restored.
    pub interrupted: Option<Saved>,
}

/// Why a file's marks cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// The host.
    #[error(transparent)]
    Host(#[from] Errno),
    /// Bytes of no known meaning.
    #[error(transparent)]
    Unknown(#[from] UnknownMark),
    /// The tree has no such node.
    #[error("its origin is node {}, which the image does not have", .0.0)]
    NoOrigin(TreeIno),
    /// The tree's node is of another type.
    #[error("its origin, node {}, is of another type", .0.0)]
    OtherType(TreeIno),
    /// The tree's node has no content.
    #[error("its content is that of node {}, which has none", .0.0)]
    NoContent(TreeIno),
    /// A mark that says what only a regular file can be.
    #[error("only a regular file can have this mark")]
    NotRegular,
    /// A type that Linux does not have.
    #[error("it has an unknown file type")]
    NoType,
}

/// Lists a directory of the upper without reading marks. Whiteouts that are links to one inode
/// cost one `statx` for all.
pub fn list(
    dir: BorrowedFd<'_>,
    mut f: impl FnMut(&[u8], Listed) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    let mut whiteouts = HashSet::new();
    each_entry(dir, |name, host_type, inode| {
        let host_type = match host_type {
            HostType::Unknown => {
                HostType::from_raw_mode(u32::from(Spot::new(dir, name).stat()?.stx_mode))
            }
            known => known,
        };
        if host_type == HostType::CharacterDevice {
            if !whiteouts.contains(&inode) && is_whiteout(&Spot::new(dir, name).stat()?) {
                whiteouts.insert(inode);
            }
            if whiteouts.contains(&inode) {
                return f(name, Listed::Whiteout);
            }
        }
        let file_type = file_type(host_type).ok_or(Errno::IO)?;
        f(name, Listed::File { file_type, inode })
    })
}

/// The type of a file of the host.
pub fn file_type(host: HostType) -> Option<FileType> {
    FileType::from_mode_bits(host.as_raw_mode())
}

/// Whether a directory's files bear marks.
pub fn is_impure(dir: BorrowedFd<'_>, space: Namespace) -> rustix::io::Result<bool> {
    Ok(Spot::new(dir, b".").mark(space, Mark::Impure)?.is_some())
}

/// Whether a directory is opaque.
pub fn is_opaque(dir: Spot<'_>, space: Namespace) -> rustix::io::Result<bool> {
    Ok(dir.mark(space, Mark::Opaque)?.as_deref() == Some(marks::YES))
}

/// The lower that marks refer to.
pub trait Origins {
    /// A node of it.
    type Node: Copy;

    /// The node that a mark names; None if there is none.
    fn origin(&self, origin: TreeIno) -> rustix::io::Result<Option<OriginNode<Self::Node>>>;
}

/// What a mark's claims are checked against.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct OriginNode<N> {
    /// The node.
    pub node: N,
    /// The type of its file in an upper.
    pub stored_type: FileType,
    /// It is a character device 0:0.
    pub null_device: bool,
    /// It is a regular file that is not empty.
    pub has_content: bool,
}

impl Origins for Tree {
    type Node = TreeIno;

    fn origin(&self, origin: TreeIno) -> rustix::io::Result<Option<OriginNode<TreeIno>>> {
        Ok(self.node(origin).ok().map(|record| OriginNode {
            node: origin,
            stored_type: stored_type(&record),
            null_device: is_null_device(&record),
            has_content: record.object.is_some(),
        }))
    }
}

/// Reads the marks of a file and checks them against the lower. `same_name` is the lower directory
/// of the same name, with which a directory merges; files in a directory that is not `impure` bear
/// none.
pub fn read_marks<L: Origins>(
    spot: Spot<'_>,
    host_type: FileType,
    space: Namespace,
    lower: &L,
    same_name: Option<L::Node>,
    impure: bool,
) -> Result<Marks<L::Node>, MarkError> {
    let directory = host_type == FileType::Directory;
    let opaque = directory && (impure || same_name.is_some()) && is_opaque(spot, space)?;
    let value = if impure && space.marks(host_type) {
        spot.mark(space, Mark::File)?
    } else {
        None
    };
    let mark = value
        .map(|value| FileMark::decode(&value))
        .transpose()?
        .unwrap_or_default();
    let origin = check(&mark, host_type, lower)?;
    Ok(Marks {
        file_type: if mark.device {
            FileType::CharDevice
        } else {
            host_type
        },
        origin: match origin {
            None if directory && !opaque => same_name,
            origin => origin,
        },
        opaque,
        metadata_only: mark.metadata_only,
        device: mark.device,
        link_delta: mark.link_delta,
        interrupted: mark.copying,
    })
}

fn check<L: Origins>(
    mark: &FileMark,
    host_type: FileType,
    lower: &L,
) -> Result<Option<L::Node>, MarkError> {
    if (mark.metadata_only || mark.device) && host_type != FileType::Regular {
        return Err(MarkError::NotRegular);
    }
    let Some(origin) = mark.origin else {
        return Ok(None);
    };
    let found = lower.origin(origin)?.ok_or(MarkError::NoOrigin(origin))?;
    if found.stored_type != host_type || found.null_device != mark.device {
        return Err(MarkError::OtherType(origin));
    }
    if mark.metadata_only && !found.has_content {
        return Err(MarkError::NoContent(origin));
    }
    Ok(Some(found.node))
}

/// Whether a node is a character device 0:0, which the upper would read as a whiteout.
pub fn is_null_device(record: &Node) -> bool {
    record.file_type == FileType::CharDevice && record.rdev == Rdev::default()
}

/// The type of a node's file in the upper.
pub fn stored_type(record: &Node) -> FileType {
    if is_null_device(record) {
        FileType::Regular
    } else {
        record.file_type
    }
}
