//! Layers: a tar stream becomes a tree and objects; a tree becomes a tar.
//!
//! Callers: `image` (archives), the engine (`import`), later `build` and `registry`.
//! [`decompress`] undoes the compression, [`import`] does the rest; [`export()`] is the way out.
//! Nothing of a layer is ever laid out as directories: a path in an archive becomes components in
//! a tree, a symbolic link is data, and the only files that are written are objects, whose names
//! are hashes. No entry can reach the host; one that tries is refused by name all the same.
//!
//! Invariants
//! * The digest returned is the SHA-256 of every byte of the uncompressed stream, padding and
//!   whatever follows the end marker included: the diffID of image-spec's config.md.
//! * A layer means one thing or is refused: where readers of tar are known to disagree (sizes,
//!   names, numbers, the end), the archive is refused by name rather than read in one of the ways.
//! * Memory is bounded by [`Limits`], not by what the archive says.
//!
//! What is honoured: ustar, V7, GNU and star headers; PAX records path, linkpath, size, uid, gid,
//! mtime, `SCHILY.xattr.*`, `LIBARCHIVE.xattr.*` and `GNU.sparse.*`; GNU long names, base-256
//! numbers and sparse files in all four spellings. What is ignored, as Docker does: global PAX
//! headers, names of owners, atime and ctime, ACLs and SELinux labels as text (as `SCHILY.xattr.*`
//! they are kept), bookkeeping of aufs. Symbolic links always have mode 0777, as Linux has it. A
//! 0:0 device is a device.

mod ahead;
mod decompress;
mod entry;
mod entry_header;
mod error;
mod export;
#[doc(hidden)]
pub mod fuzz;
mod header;
mod import;
mod path;
mod pax;
mod reader;
mod recipe;
mod sink;
mod sparse;
mod stop;
mod stream;
#[cfg(test)]
mod tests;
mod unpack;
mod upper;

pub use decompress::{Compression, DecompressError, Decompressed, decompress};
pub(crate) use entry_header::{member_header, padding};
pub use error::{EntryFault, HeaderFault, ImportError, Role, TypeName};
pub use export::{ExportError, ExportStats, ObjectSource, export};
pub use import::{import, import_until};
pub use recipe::{RestoreError, restore};
pub use sink::{HashOnly, ObjectSink, ObjectWrite, ReadSeek, StoredObject};
pub use stop::{Stop, StoppableReader};
pub use unpack::{UnpackError, Unpacked, unpack};
pub use upper::{FromUpperError, UpperLayer, from_upper};

use crate::digest::DiffId;

/// What import accepts at most. The defaults are far above real layers and far below what would
/// hurt a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of a name as the archive spells it: Linux's PATH_MAX.
    pub path_bytes: usize,
    /// Components of a name.
    pub depth: usize,
    /// Bytes of all extended headers of one entry, names and attributes included.
    pub extended_bytes: u64,
    /// Extents of one sparse file.
    pub sparse_extents: usize,
    /// Bytes of names, link targets and extended attributes of all entries, with a surcharge for
    /// each node: about what the tree in the making holds in memory.
    pub metadata_bytes: u64,
    /// Bytes of all contents, holes of sparse files included.
    pub content_bytes: u64,
    /// Bytes of the holes of sparse files, which cost no stream but are hashed: half a minute of
    /// it.
    pub hole_bytes: u64,
    /// Bytes of the uncompressed stream.
    pub stream_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 4_000_000,
            path_bytes: 4096,
            depth: 1024,
            extended_bytes: 1 << 20,
            sparse_extents: 1_000_000,
            metadata_bytes: 1 << 30,
            content_bytes: 1 << 40,
            hole_bytes: 64 << 30,
            stream_bytes: 1 << 40,
        }
    }
}

/// A layer that was read to its end.
#[derive(Debug)]
pub struct ImportedLayer {
    /// The digest of the whole uncompressed stream; the caller compares it with what the image's
    /// config promises.
    pub diff_id: DiffId,
    /// The layer's tree, ready to be stored.
    pub tree_bytes: Vec<u8>,
    /// How to give its tar back, ready to be stored beside the tree; [`restore()`] reads it.
    pub recipe: Vec<u8>,
    /// What was in it.
    pub stats: ImportStats,
}

/// Counts over one import.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportStats {
    /// Entries of the archive, whiteouts included.
    pub entries: u64,
    /// Regular files.
    pub files: u64,
    /// Hard links.
    pub hard_links: u64,
    /// Whiteouts and opaque marks.
    pub whiteouts: u64,
    /// Entries of aufs's bookkeeping that were skipped.
    pub skipped: u64,
    /// Bytes of all regular files.
    pub content_bytes: u64,
    /// Bytes of the holes of sparse files.
    pub hole_bytes: u64,
    /// Bytes of the uncompressed stream.
    pub stream_bytes: u64,
}
