//! Recipes: how to give back the exact tar of a layer. The format, and no more; `FORMAT.md` beside
//! this file has the bytes.
//!
//! Invariants
//! * The ids of objects that the layer's tree has not are a flat array behind a fixed header, so
//!   [`own_object_ids`] unpacks nothing. The tree's own are named by their numbers.
//! * No bytes make a reader panic, loop, or hold more than one piece of a literal in memory.
//!
//! `layer` writes recipes while it imports and reads them to restore a tar; `store` publishes them
//! and asks for their objects.

mod instructions;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use self::instructions::Instruction;
pub use self::reader::{Instructions, Recipe, own_object_ids};
pub use self::writer::{Recorder, Recording, canonical};

/// The name of the file in a layer's directory.
pub const FILE_NAME: &str = "recipe-v2";

const MAGIC: [u8; 8] = *b"cowlrcpe";
const VERSION: u16 = 2;
const HEADER_LEN: usize = 96;
const ID_LEN: usize = 32;
const DIGEST_LEN: usize = 32;

/// How a recipe gives the tar back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The frozen writer of tars makes it from the tree.
    Canonical,
    /// The instructions hold what is in no object.
    Split,
}

impl Kind {
    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Canonical),
            2 => Some(Self::Split),
            _ => None,
        }
    }

    const fn byte(self) -> u8 {
        match self {
            Self::Canonical => 1,
            Self::Split => 2,
        }
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U16,
    kind: u8,
    zeros: [u8; 5],
    compatible: U64,
    incompatible: U64,
    diff_id: [u8; 32],
    tar_bytes: U64,
    own_objects: U32,
    tree_objects: U32,
    packed_bytes: U64,
    unpacked_bytes: U64,
}

/// Why a recipe cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// Other bytes than a recipe's at the beginning.
    #[error("not a recipe (no \"cowlrcpe\" at its beginning)")]
    Magic,
    /// The file could not be mapped.
    #[error("mapping the recipe")]
    Map(#[source] std::io::Error),
    /// A version this code does not know.
    #[error("recipe format version {0} is not supported")]
    Version(u16),
    /// A kind this code does not know.
    #[error("recipe kind {0} is not supported")]
    Kind(u8),
    /// Features without which the recipe would be misread.
    #[error("the recipe needs features that are not supported (flags {0:#x})")]
    Features(u64),
    /// The file ends early or goes on too long.
    #[error("the recipe is {found} bytes long, {expected} were written")]
    Length {
        /// What the header says.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// The file is not what was written.
    #[error("the recipe is damaged: its digest is wrong")]
    Digest,
    /// The file has another DiffID.
    #[error("it is the recipe of another layer")]
    OtherLayer,
    /// The file counts other objects than the layer's tree has.
    #[error("it numbers the objects of another tree")]
    OtherTree,
    /// The file contradicts the format.
    #[error("the recipe is damaged: {0}")]
    Corrupt(&'static str),
    /// The instructions cannot be unpacked.
    #[error("the recipe's instructions cannot be unpacked")]
    Unpack(#[source] std::io::Error),
}
