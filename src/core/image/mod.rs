//! Images: reads and writes OCI and Docker archives and keeps their documents byte for byte.
//!
//! Invariants: digests are of bytes as received, so documents are never re-encoded; no tag of an
//! archive is published before every digest is checked and all layers merge; an image's id is the
//! SHA-256 of its configuration in every form of archive.
//!
//! ```text
//! documents  the JSON, leniently              archive  files of a directory or a tar by name
//! input      a file, or a copy of a stream    index    where in a tar each name is
//! oci        OCI layout  -> candidates        docker   docker-archive -> candidates
//! load       candidates  -> record           parts    streams -> layers, several at a time
//! platform   names of platforms              choice   which of an archive's images are loaded
//! commit     the configuration of an image on top of another
//! rootfs     a root file system's tar -> an image
//! repair     what a check found damaged, again from archives and blobs
//! save       store -> an OCI layout and docker-archive in one
//! source     a layer's part as it is read    budget   memory of the layers that load at a time
//! watch      how far it is                   absent   what an archive has, and what it lacks
//! ```
//!
//! Called by the engine. This module knows formats only, not how images are run or listed.

mod absent;
mod archive;
mod budget;
mod choice;
mod commit;
mod docker;
mod documents;
mod error;
mod index;
mod input;
mod load;
mod oci;
mod parts;
mod platform;
mod repair;
mod rootfs;
mod save;
mod source;
mod watch;

#[cfg(test)]
mod tests;

pub use self::absent::{Absent, AbsentImage};
pub use self::archive::is_named_as_archive;
pub use self::choice::split_platform;
pub use self::commit::{ChangeError, ConfigChange, NewImage, new_config};
pub use self::documents::{HistoryEntry, ImageConfig, ProcessConfig, RootFs};
pub use self::error::{ImageError, SaveError};
pub use self::load::{LoadOptions, Loaded, load, load_file, load_with};
pub use self::oci::foreign_platform;
pub use self::platform::{PlatformError, PlatformName};
pub use self::repair::{Repaired, repair};
pub use self::rootfs::{ImportOptions, import_rootfs};
pub use self::save::{Selected, check_save, restore_layer, save};
pub use self::watch::{Step, Watch};
pub use crate::store::{Reference, ReferenceError};

use crate::digest::Sha256Digest;
use crate::store::Platform;

/// Limit of a manifest or index: registries accept 4 MiB.
const DOCUMENT_LIMIT: u64 = 4 << 20;
/// Limit of a configuration, far above real ones.
const CONFIG_LIMIT: u64 = 16 << 20;

/// Limit of the images of an archive: every one is compared with the others.
const MAX_IMAGES: usize = 4096;

/// The images of an archive that share one name, or one untagged image.
struct Candidate {
    names: Vec<Reference>,
    /// The index that lists the images, if there is one.
    index: Option<Vec<u8>>,
    /// At least one, each for another platform; one that runs on this host comes first.
    images: Vec<CandidateImage>,
    /// What the index lists, too, and the archive does not have.
    absent: Vec<AbsentImage>,
}

/// The image of one platform.
struct CandidateImage {
    /// As an index says; None: as the configuration does.
    platform: Option<Platform>,
    config: Vec<u8>,
    /// None if there was none.
    manifest: Option<Vec<u8>>,
    /// Lowest first.
    layers: Vec<LayerPart>,
}

/// A layer's part of an archive, with its expected size and digest.
#[derive(Clone)]
struct LayerPart {
    name: String,
    digest: Option<Sha256Digest>,
    size: Option<u64>,
}

/// Checks a part's digest.
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
