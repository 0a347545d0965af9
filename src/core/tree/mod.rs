//! The index file: what a layer, or a stack of layers, looks like as a directory tree.
//!
//! A tree is mapped and never parsed; file contents are objects of the store, named in here. Invariant: one input gives
//! one sequence of bytes, node numbers included, and no bytes make the reader panic or loop. The importer builds layers
//! with [`LayerBuilder`]; the store keeps them; the overlay reads.

mod builder;
mod error;
mod format;
#[doc(hidden)]
pub mod fuzz;
mod header;
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
