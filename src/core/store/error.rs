//! Errors of the store, each with the path or the id concerned.
//!
//! A message does not repeat its source's: callers print the chain (`{:#}`).

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::digest::{DiffId, ObjectId, Sha256Digest};
use crate::tree::{MergeError, TreeError};

/// An error of the store. Messages are one line and name the file or id; callers add the
/// operation.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// The verb: "open", "write", "rename", ...
        doing: &'static str,
        /// Its operand.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// The disk or the quota is full. The partial file is removed.
    #[error("cannot {doing} {}: no space left; free some (`cowl rmi` an image) or use another --root", .path.display())]
    NoSpace {
        /// The verb.
        doing: &'static str,
        /// The file that did not fit.
        path: PathBuf,
        /// ENOSPC or EDQUOT.
        errno: Errno,
    },
    /// One transaction would have as many objects as 32 bits can number.
    #[error("an addition to the store has at most {} contents", u32::MAX)]
    TooManyObjects,
    /// There is no store at this path.
    #[error("there is no cowl store at {}; cowl load and cowl import make one", .path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// The store belongs to another user, and to this one would belong what this process adds.
    #[error("the store {} belongs to user {owner}, who could not read what another user adds; run cowl as that user (sudo -u '#{owner}' cowl ...) or use a store of your own with --root DIR", .path.display())]
    OtherOwner {
        /// The store.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
    },
    /// The directory is not empty and not a store.
    #[error("{} is not a cowl store and not empty (it holds {entry:?}); give an empty or a new directory", .path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// One entry that does not belong to a store.
        entry: String,
    },
    /// The store has a format version that this build does not read.
    #[error("{} has store format {found}, this cowl has {known}: {}", .path.display(),
        if found > known { "use a newer cowl" } else { "use a new --root and load the images again" })]
    Version {
        /// format.json.
        path: PathBuf,
        /// The version of the store.
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
    /// A file of the store has wrong content.
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
        /// The file that was not written.
        path: PathBuf,
        /// The limit, for writing as for reading.
        limit: u64,
    },
    /// An invalid tag.
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
    /// The layers of an image cannot be merged.
    #[error("the layers do not stack")]
    Merge(#[from] MergeError),
    /// A layer is missing.
    #[error("layer {0} is not in the store; load its image again")]
    NoLayer(DiffId),
    /// An object is missing.
    #[error("object {0} is not in the store; load its image again")]
    NoObject(ObjectId),
    /// A blob is missing.
    #[error("blob {0} is not in the store; load its image again")]
    NoBlob(Sha256Digest),
    /// The bytes of a blob do not match its digest.
    #[error("{what} {expected}: its bytes have digest {found}")]
    Digest {
        /// "blob" or the file.
        what: String,
        /// The expected digest.
        expected: Sha256Digest,
        /// The computed digest.
        found: Sha256Digest,
    },
    /// A string cannot be used as a file name.
    #[error("{name:?} cannot be used as a name here: {reason}")]
    Name {
        /// The text.
        name: String,
        /// The reason.
        reason: &'static str,
    },
}

impl StoreError {
    /// Converts an error of a system call on `path`; a full disk gets its own variant. A
    /// [`StoreError`] that travelled through an [`io::Write`] is returned unchanged.
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

    /// The errno of the failed system call, if there was one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Io { source, .. } => Errno::from_io_error(source),
            Self::NoSpace { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// For implementors of [`io::Write`]: `get_ref` gives the [`StoreError`] back.
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
