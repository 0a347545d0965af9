//! Errors of loading and saving an archive. A message names the part of the archive; the caller
//! names the archive.

use std::error::Error as _;
use std::io;

use crate::digest::{DiffId, DigestError, Sha256Digest};
use crate::layer::{DecompressError, ImportError, RestoreError};
use crate::recipe::RecipeError;
use crate::store::{ReferenceError, StoreError};
use crate::tree::TreeError;

/// An error of loading or importing an image. A message does not repeat its source's.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The archive or a part of it cannot be read.
    #[error("cannot read {name}")]
    Read {
        /// The archive, or its part.
        name: String,
        /// What the system says.
        source: io::Error,
    },
    /// The archive is compressed with something that is not supported.
    #[error("cannot read {name}")]
    Decompress {
        /// The archive, or its part.
        name: String,
        /// Which it is.
        source: DecompressError,
    },
    /// It is neither a docker-archive nor an OCI layout.
    #[error(
        "{name} is not an image archive ({what}); cowl load takes what `docker save` and `skopeo copy` write, cowl import the tar of a root file system"
    )]
    NotAnArchive {
        /// The archive.
        name: String,
        /// What it is instead.
        what: String,
    },
    /// The archive ends too early.
    #[error("{name} is cut off: {what}")]
    Truncated {
        /// The archive.
        name: String,
        /// Where.
        what: String,
    },
    /// A part that the archive refers to is missing.
    #[error("the archive has no {name}, which {needed_by} needs")]
    Missing {
        /// The part.
        name: String,
        /// The document or the image that refers to it.
        needed_by: String,
    },
    /// A document is not valid.
    #[error("{name} of the archive is not what it should be")]
    Json {
        /// The document.
        name: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A document could be read as two things.
    #[error("{name} of the archive is refused: {what}")]
    Confused {
        /// The document.
        name: String,
        /// Which two.
        what: String,
    },
    /// Not an image, or of an unsupported kind.
    #[error("{name} of the archive: {what}")]
    Unsupported {
        /// The part.
        name: String,
        /// What it is.
        what: String,
    },
    /// A digest of another algorithm, or none at all.
    #[error("the archive names a blob by {digest:?}")]
    BadDigest {
        /// The text.
        digest: String,
        /// What is wrong with it.
        source: DigestError,
    },
    /// A part's digest differs from the one in its name or descriptor.
    #[error("{name} of the archive is damaged: it should have digest {expected} and has {found}")]
    Digest {
        /// The part.
        name: String,
        /// The promise.
        expected: Sha256Digest,
        /// The bytes.
        found: Sha256Digest,
    },
    /// A part's size differs from its descriptor's.
    #[error("{name} of the archive is damaged: it should have {expected} bytes and has {found}")]
    Size {
        /// The part.
        name: String,
        /// The promise.
        expected: u64,
        /// The bytes.
        found: u64,
    },
    /// The archive omits a layer that the store does not have either.
    #[error("the archive leaves out layer {number} ({diff_id}), and the store does not have it")]
    LeftOut {
        /// Counted from 1, lowest first.
        number: usize,
        /// The layer.
        diff_id: DiffId,
    },
    /// More layers than the store records.
    #[error("the image has {found} layers; more than {limit} are not supported")]
    TooManyLayers {
        /// Of this image.
        found: usize,
        /// What the store takes.
        limit: usize,
    },
    /// The configuration and the manifest list different numbers of layers.
    #[error("the image's configuration names {config} layers, its manifest {manifest}")]
    LayerCount {
        /// Of the configuration.
        config: usize,
        /// Of the manifest.
        manifest: usize,
    },
    /// A layer's DiffID differs from the configuration's.
    #[error(
        "layer {number} is not the one the image was made of: its tar has digest {found}, the configuration says {expected}"
    )]
    DiffId {
        /// Counted from 1, lowest first.
        number: usize,
        /// The promise.
        expected: DiffId,
        /// The bytes.
        found: DiffId,
    },
    /// A layer could not be imported.
    #[error("layer {number} ({name})")]
    Layer {
        /// Counted from 1, lowest first.
        number: usize,
        /// The part of the archive.
        name: String,
        /// Why.
        source: ImportError,
    },
    /// The root file system's tar could not be imported.
    #[error(transparent)]
    Import(ImportError),
    /// No image of an index is for what was asked for.
    #[error("the archive has no image for {wanted}, only for {available}")]
    Platform {
        /// What was asked for, or what runs here.
        wanted: String,
        /// The index's.
        available: String,
    },
    /// What was asked for by name is not there, or is several images.
    #[error("{}: {available}", if *.several { format!("{wanted:?} is several images of the archive") }
        else { format!("the archive has no image {wanted:?}, only these") })]
    NoImage {
        /// As it was asked for.
        wanted: String,
        /// It is ambiguous.
        several: bool,
        /// Those that it may be, or all that there are.
        available: String,
    },
    /// An image's name in the archive is none.
    #[error("the archive names an image badly")]
    Name(#[from] ReferenceError),
    /// The system has no thread to read the archive on.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// An archive of no images.
    #[error("the archive holds no image")]
    Empty,
}

impl ImageError {
    /// Whether the disk or the quota of the store is full.
    pub fn is_full(&self) -> bool {
        let of_store = |error: &StoreError| matches!(error, StoreError::NoSpace { .. });
        // What is transparent is not its own source.
        if let Self::Store(error) = self {
            return of_store(error);
        }
        let mut next = self.source();
        while let Some(error) = next {
            let kind = error.downcast_ref().map(io::Error::kind);
            let is_full = kind.is_some_and(|kind| {
                matches!(
                    kind,
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                )
            });
            if is_full || error.downcast_ref().is_some_and(of_store) {
                return true;
            }
            next = error.source();
        }
        false
    }
}

/// Why images were not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A kept document cannot be read.
    #[error(transparent)]
    Document(#[from] ImageError),
    /// The archive cannot be written.
    #[error("cannot write the archive")]
    Write(#[from] io::Error),
    /// A layer has neither a blob nor a recipe.
    #[error("layer {0} has no recipe: load its image again")]
    NoRecipe(DiffId),
    /// A layer's tree is damaged.
    #[error("the tree of layer {diff_id} cannot be read: load its image again")]
    Tree {
        /// The layer.
        diff_id: DiffId,
        /// What is wrong with it.
        source: TreeError,
    },
    /// A layer's recipe is damaged.
    #[error("the recipe of layer {diff_id} cannot be read: load its image again")]
    Recipe {
        /// The layer.
        diff_id: DiffId,
        /// What is wrong with it.
        source: RecipeError,
    },
    /// A layer's tar cannot be restored.
    #[error("layer {diff_id}")]
    Restore {
        /// The layer.
        diff_id: DiffId,
        /// Why not.
        source: RestoreError,
    },
    /// A part of another size than the store's record says.
    #[error("{what} should have {expected} bytes and has {found}: load its image again")]
    Size {
        /// The part.
        what: String,
        /// As recorded.
        expected: u64,
        /// As found.
        found: u64,
    },
    /// A blob is damaged.
    #[error("blob {expected} is damaged, its bytes have digest {found}: load its image again")]
    Damaged {
        /// Its name.
        expected: Sha256Digest,
        /// The digest of its bytes.
        found: Sha256Digest,
    },
}
