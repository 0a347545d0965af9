//! The tree: the index file of a layer, or of a stack of layers merged into one.
//!
//! A tree is mapped, never parsed. It refers to file contents, which are objects of the store.
//! Invariants: equal input gives equal bytes, node numbers included; no bytes make the reader
//! panic or loop. The importer builds trees with [`LayerBuilder`], the store keeps them and their
//! [`merge()`], the overlay reads them.
//!
//! Opening checks the header only, so it costs the same for ten files and for a million. Each
//! lookup checks what it touches; [`Tree::verify`] checks everything. A mapped file must not
//! change ([`map_published`](crate::sys::mmap::map_published)).
#![doc = include_str!("FORMAT.md")]

mod builder;
mod error;
mod format;
#[doc(hidden)]
pub mod fuzz;
mod header;
mod layer;
mod links;
mod merge;
mod names;
mod reader;
mod stack;
mod types;
mod verify;
mod writer;
mod xattr;

pub use builder::LayerBuilder;
pub use error::{BuildError, TreeError};
pub use layer::{ContentPlace, PlacedContents};
pub use merge::{MergeError, merge};
pub use reader::{Tree, Xattr};
pub use types::{
    Dirent, FileType, Kind, Meta, Node, ObjectRef, Rdev, Target, Timestamp, TreeIno, TreeKind,
};
pub use writer::WriteError;
pub use xattr::XattrError;

#[cfg(test)]
mod tests;
