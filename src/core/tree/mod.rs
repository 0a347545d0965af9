//! The index file: what a layer, or a stack of layers, looks like as a directory tree.
//!
//! A tree is mapped and never parsed; file contents are objects of the store, named in here. Invariant: one input gives
//! one sequence of bytes, node numbers included, and no bytes make the reader panic or loop. The importer builds layers
//! with [`LayerBuilder`], the store keeps them and their [`merge()`], the overlay reads.
//!
//! Opening checks the header, so it costs the same for ten files and for a million; what a lookup touches it checks
//! itself; [`Tree::verify`] checks the rest. Whoever maps a file promises that it doesn't change
//! ([`map_published`](crate::sys::mmap::map_published)).
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
mod reader;
mod stack;
mod types;
mod verify;
mod writer;
mod xattr;

pub use builder::{BuildError, LayerBuilder};
pub use error::TreeError;
pub use merge::{MergeError, merge};
pub use reader::{Tree, Xattr};
pub use types::{
    Dirent, FileType, Kind, Meta, Node, ObjectRef, Rdev, Target, Timestamp, TreeIno, TreeKind,
};
pub use writer::WriteError;
pub use xattr::XattrError;

#[cfg(test)]
mod tests;
