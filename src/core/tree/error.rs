//! Errors of reading and of building a tree.

use std::io;

use bstr::BString;

use super::builder::MAX_FOLLOWED;
use super::format::MAX_DEPTH;
use super::types::TreeIno;
use super::writer::WriteError;
use super::xattr::XattrError;

/// Why a tree or a part of it cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The file could not be mapped.
    #[error("mapping the tree: {0}")]
    Io(#[from] io::Error),
    /// The magic is not a tree's.
    #[error("not a tree (no \"cowltree\" at its beginning)")]
    Magic,
    /// A version this code does not know.
    #[error("tree format version {0} is not supported")]
    Version(u16),
    /// Features without which the tree would be misread.
    #[error("the tree needs features that are not supported (flags {0:#x})")]
    Features(u64),
    /// The file ends early or goes on too long.
    #[error("the tree is {found} bytes long, {expected} were written")]
    Length {
        /// The length in the header.
        expected: u64,
        /// The length of the file.
        found: u64,
    },
    /// The digest of the header does not match.
    #[error("the tree's header is damaged")]
    HeaderDigest,
    /// The digest of the file does not match.
    #[error("the tree is damaged: its digest is wrong")]
    Digest,
    /// A record contradicts the format.
    #[error("the tree is damaged: {what} (record {at})")]
    Corrupt {
        /// What is wrong.
        what: &'static str,
        /// Which node, name, link or section.
        at: u32,
    },
    /// The tree has no such node.
    #[error("the tree has no node {}", .0.0)]
    NoSuchNode(TreeIno),
    /// The node is not a directory.
    #[error("node {} is not a directory", .0.0)]
    NotADirectory(TreeIno),
    /// The node is not a symbolic link.
    #[error("node {} is not a symbolic link", .0.0)]
    NotASymlink(TreeIno),
    /// The name is not a link into the layers below.
    #[error("name {0} is not a link into the layers below")]
    NotALink(u32),
}

impl TreeError {
    /// Whether the tree may well be whole, and only too new to be read here.
    pub const fn is_of_newer_format(&self) -> bool {
        matches!(self, Self::Version(_) | Self::Features(_))
    }
}

pub(super) const fn corrupt(what: &'static str, at: u32) -> TreeError {
    TreeError::Corrupt { what, at }
}

/// Why an entry is refused. Each error names the entry by its path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A component of the path is not a file name.
    #[error(
        "{path:?}: {name:?} is not a file name (1 to 255 bytes, no slash, no NUL, not . or ..)"
    )]
    Name {
        /// The entry.
        path: BString,
        /// The component.
        name: BString,
    },
    /// More components than a tree may nest.
    #[error("{path:?}: more than {MAX_DEPTH} directories deep")]
    TooDeep {
        /// The entry.
        path: BString,
    },
    /// The entry would have to be reached through a file or a symbolic link of the same layer.
    #[error("{path:?}: {ancestor:?} is not a directory in this layer")]
    Ancestor {
        /// The entry.
        path: BString,
        /// The file or symbolic link.
        ancestor: BString,
    },
    /// The root can only be a directory, and can't be deleted.
    #[error("the root of a layer can only be a directory")]
    Root,
    /// A hard link to a directory.
    #[error("{path:?}: a hard link to the directory {target:?}")]
    LinkToDirectory {
        /// The link.
        path: BString,
        /// The target.
        target: BString,
    },
    /// A hard link whose target would have to be reached through a file or a symbolic link of the
    /// same layer.
    #[error(
        "{path:?}: a hard link to {target:?}, but {ancestor:?} is not a directory in this layer"
    )]
    LinkThrough {
        /// The link.
        path: BString,
        /// The target.
        target: BString,
        /// The file or symbolic link.
        ancestor: BString,
    },
    /// A symbolic link that symlink(2) would refuse.
    #[error("{path:?}: a symbolic link's target has 1 to 4095 bytes and no NUL")]
    SymlinkTarget {
        /// The link.
        path: BString,
    },
    /// Too many symbolic links.
    #[error(
        "{path:?}: the layer's paths lead through symbolic links more than {MAX_FOLLOWED} steps in all"
    )]
    TooManySteps {
        /// The entry.
        path: BString,
    },
    /// Nanoseconds of 1,000,000,000 or more.
    #[error("{path:?}: a time with {nanos} nanoseconds")]
    Time {
        /// The entry.
        path: BString,
        /// The value.
        nanos: u32,
    },
    /// A regular file has an object exactly if it has bytes, and not more than a file offset can
    /// say.
    #[error("{path:?}: a file of {size} bytes {} an object", if *.object { "with" } else { "without" })]
    Content {
        /// The entry.
        path: BString,
        /// The value.
        size: u64,
        /// Whether an object was given.
        object: bool,
    },
    /// Extended attributes that Linux could not hold.
    #[error("{path:?}: {source}")]
    Xattr {
        /// The entry.
        path: BString,
        /// What is wrong with them.
        source: XattrError,
    },
    /// The layer is too large, or contradicts itself.
    #[error("{0}")]
    Write(#[from] WriteError),
}
