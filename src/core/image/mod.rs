//! Images: archives of OCI and Docker come in, with all their documents as they came.
//!
//! Invariants: a digest is always of bytes as received, so documents are read and never written
//! again; nothing of an archive is in the store before every digest in it was checked and all its
//! layers stack; an image is the SHA-256 of its configuration, whatever it came in.
//!
//! ```text
//! documents  the JSON, leniently              archive  files of a directory or a tar by name
//! input      a file, or a copy of a stream    index    where in a tar each name is
//! oci        OCI layout  -> candidates        docker   docker-archive -> candidates
//! load       candidates  -> store            parts    layers -> store
//! rootfs     a root file system's tar -> an image
//! ```
//!
//! Called by the engine. Formats only: what an image is *for* (running, listing) is not known
//! here.

mod archive;
mod docker;
mod documents;
mod error;
mod index;
mod input;
mod load;
mod oci;
mod parts;
mod rootfs;

#[cfg(test)]
mod tests;

pub use self::documents::{HistoryEntry, ImageConfig, ProcessConfig, RootFs};
pub use self::error::ImageError;
pub use self::load::{Loaded, load, load_file, load_with};
pub use self::rootfs::import_rootfs;
pub use crate::store::{Reference, ReferenceError};

use crate::digest::Sha256Digest;

/// Manifests and indexes: what registries take is 4 MiB.
const DOCUMENT_LIMIT: u64 = 4 << 20;
/// Configurations: far above any real one.
const CONFIG_LIMIT: u64 = 16 << 20;

/// What an archive has under one name, or under none.
struct Candidate {
    names: Vec<Reference>,
    /// What the images were found by, if that was an index.
    index: Option<Vec<u8>>,
    /// At least one. Of several, each for another platform, the first is the one that runs here.
    images: Vec<CandidateImage>,
}

/// The image of one platform.
struct CandidateImage {
    config: Vec<u8>,
    /// None: it came without one.
    manifest: Option<Vec<u8>>,
    /// Lowest first.
    layers: Vec<LayerPart>,
}

/// Where an archive has a layer, and what is promised of it as it lies there.
#[derive(Clone)]
struct LayerPart {
    name: String,
    digest: Option<Sha256Digest>,
    size: Option<u64>,
}

/// A part's bytes are what its digest says.
fn check_digest(name: &str, bytes: &[u8], expected: Sha256Digest) -> Result<(), ImageError> {
    let found = Sha256Digest::of(bytes);
    if found == expected {
        Ok(())
    } else {
        Err(ImageError::Digest {
            name: name.to_owned(),
            expected,
            found,
        })
    }
}
