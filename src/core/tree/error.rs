//! Errors of reading a tree.

use std::io;

use super::types::TreeIno;

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
