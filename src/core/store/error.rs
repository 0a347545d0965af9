//! What can go wrong in the store, each with the path or the id it went wrong with.
//!
//! A text does not repeat its source's: who prints an error prints the chain.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::digest::{DiffId, ObjectId, Sha256Digest};
use crate::tree::{MergeError, TreeError};

/// Why the store refused or failed. Texts are one line and name the thing; the caller says what it was doing.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// The verb: "open", "write", "rename", ...
        doing: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The disk or the quota is full. What was being written is removed again.
    #[error("cannot {doing} {}: no space left; free some (`cowl rmi` an image) or use another --root", .path.display())]
    NoSpace {
        /// The verb.
        doing: &'static str,
        /// The file that did not fit.
        path: PathBuf,
        /// ENOSPC or EDQUOT.
        errno: Errno,
    },
    /// There is no store at this path.
    #[error("{} holds no cowl store", .path.display())]
    NotFound {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The directory holds other things, so no store is made in it.
    #[error("{} is not a cowl store and not empty (it holds {entry:?}); give an empty or a new directory", .path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// One entry that does not belong to a store.
        entry: String,
    },
    /// Written by another cowl in a format that this one does not read.
    #[error("{} has store format {found}, this cowl has {known}: {}", .path.display(),
        if found > known { "use a newer cowl" } else { "use a new --root and load the images again" })]
    Version {
        /// format.json.
        path: PathBuf,
        /// The version in it.
        found: u32,
        /// The version of this build.
        known: u32,
    },
    /// The store uses features this cowl does not know.
    #[error("{} needs features this cowl does not know ({}): use a newer cowl{}", .path.display(), .features.join(", "),
        if *.readable { " to change it" } else { "" })]
    Features {
        /// format.json.
        path: PathBuf,
        /// Their names.
        features: Vec<String>,
        /// Whether reading the store is still safe (`ro-compat`).
        readable: bool,
    },
    /// A file of the store does not say what it should.
    #[error("{} is damaged: {reason}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A record would be larger than it may be.
    #[error("{} would be larger than {limit} bytes", .path.display())]
    TooLarge {
        /// The file that is not written.
        path: PathBuf,
        /// The limit, for writing as for reading.
        limit: u64,
    },
    /// A tag that no store takes.
    #[error("{name}: {reason}")]
    Refused {
        /// The tag.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tree file is damaged, or newer than this build.
    #[error("{} {}", .path.display(), if source.is_of_newer_format() { "was written by a newer cowl: use that" }
        else { "is damaged; load its image again to replace it" })]
    Tree {
        /// The tree file.
        path: PathBuf,
        /// What is wrong with it.
        source: TreeError,
    },
    /// The layers of an image do not fit on one another.
    #[error("the layers do not stack")]
    Merge(#[from] MergeError),
    /// A layer that is needed is not in the store.
    #[error("layer {0} is not in the store; load its image again")]
    NoLayer(DiffId),
    /// An object that is needed is not in the store.
    #[error("object {0} is not in the store; load its image again")]
    NoObject(ObjectId),
    /// A blob that is needed is not in the store.
    #[error("blob {0} is not in the store; load its image again")]
    NoBlob(Sha256Digest),
    /// The bytes of a blob are not what its digest says.
    #[error("{what} {expected}: its bytes have digest {found}")]
    Digest {
        /// "blob" or the file.
        what: String,
        /// What it should be.
        expected: Sha256Digest,
        /// What it is.
        found: Sha256Digest,
    },
    /// A text that should become a file name cannot be one.
    #[error("{name:?} cannot be used as a name here: {reason}")]
    Name {
        /// The text.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A stack of no layers has no tree.
    #[error("an image without layers has no files to mount")]
    NoLayers,
}

impl StoreError {
    /// An error of a system call on `path`; full disks get their own variant. One that is ours already, on its way
    /// through an [`io::Write`], stays as it is.
    pub(super) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        let path = path.into();
        match source.into().downcast::<Self>() {
            Ok(ours) => ours,
            Err(source) => match Errno::from_io_error(&source) {
                Some(errno @ (Errno::NOSPC | Errno::DQUOT)) => Self::NoSpace { doing, path, errno },
                _ => Self::Io {
                    doing,
                    path,
                    source,
                },
            },
        }
    }

    pub(super) fn malformed(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Malformed {
            path: path.as_ref().to_owned(),
            reason: reason.into(),
        }
    }

    /// The errno behind this error, if a system call is.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Io { source, .. } => Errno::from_io_error(source),
            Self::NoSpace { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// For writers that speak [`io::Write`]: the text and the error travel inside, [`StoreError`] comes out of `get_ref`.
impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::Io { source, .. } => source.kind(),
            StoreError::NoSpace { .. } => io::ErrorKind::StorageFull,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}
