//! The directory that holds everything: objects, trees, blobs, tags, leases, and the locks between processes.
//!
//! Invariant: **what has its final name is complete, durable and never changed again**; only tags are replaced. So a
//! reader needs no lock, a SIGKILL or a power cut leaves the old state or the new, and healing is writing anew.
//!
//! ```text
//! <root>/                      mode 0700
//!   format.json                version and features (format.rs)
//!   lock                       empty; flock: shared by whoever adds or relies on things, exclusive by gc
//!   objects/ab/cdef...         a file's content by its BLAKE3, 0444; the empty content has none
//!   layers/<diff-id hex>/      tree-v2 (with whiteouts), layer.json, perhaps recipe-v1 (layer.rs)
//!   merged/<chain-id hex>.tree-v2   a stack's merged tree: a cache, the same bytes each time it is rebuilt (layer.rs)
//!   blobs/sha256/<hex>         manifests, configurations, compressed layers as they came, 0444
//!   refs/<name>-<hash>.json    tags (tags.rs)
//!   pins/<name>.json           what containers, mounts, loads and builds keep (pins.rs); tags and pins are all gc starts from
//!   containers/ volumes/       the engine's; nothing here looks into them
//!   tmp/<random>/              one transaction each, flock'ed by its owner (transaction.rs)
//!   trash/<random>/            what gc took out and is deleting (gc.rs)
//!   mountd.log[.old]           what the processes of mounts had to say (log.rs)
//! ```
//!
//! # Publishing
//! A transaction writes under `tmp/`, tags included, then: `syncfs` -> rename everything into place, objects first ->
//! `syncfs` -> rename the tags -> `fsync` of `refs/`. The first `syncfs` makes every content durable *before* it gets the
//! name by which others trust it, and an error of it aborts. Therefore no name in `objects/` ever stands for bytes that
//! a power cut can take away, and there is no "written since the last sync" window after an unclean shutdown: what such
//! a window would hold is still in `tmp/` and is thrown away. The second `syncfs` makes the names durable before a tag
//! relies on them; it also covers objects that this transaction found present but whose publisher had not synced yet.
//! (Before Linux 5.8 `syncfs` reports no write-back errors; there, `check --deep` is what finds them.)
//!
//! # Locking
//! Level 1: `lock`. Shared while things get their places, while a pin appears, and while [`Store::check`] looks; exclusive
//! by [`Store::gc`]. It is never held while input is awaited: how a transaction is safe from gc without it stands at the
//! head of transaction.rs.
//! Level 2: the flock of `refs/`, exclusive while tags change.
//! Level 3: the flock of one directory in `tmp/` or one file in `pins/`: held means alive.
//! flock on NFS is a lease of the server's, which works between hosts but not over a server's restart.
//!
//! Called by `image` and `layer` (adding) and by the engine (everything else). A mount worker never opens a store: it is
//! handed descriptors.

mod check;
mod dir;
mod error;
mod format;
mod gc;
mod layer;
mod log;
mod pins;
mod record;
mod reference;
mod remove;
mod roots;
mod tags;
mod transaction;
mod usage;
mod writer;

#[cfg(test)]
mod tests;

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;

use crate::digest::{ObjectId, Sha256Digest};

pub use self::check::{CheckReport, Problem};
pub use self::error::StoreError;
pub use self::gc::GcReport;
pub use self::layer::{LayerInfo, MergedTree};
pub use self::pins::Lease;
pub use self::record::MAX_LAYERS;
pub use self::reference::{Reference, ReferenceError};
pub use self::remove::remove_tree;
pub use self::tags::{Descriptor, Platform, Tag, TagList, TaggedImage, TaggedLayer};
pub use self::transaction::{Transaction, Trust};
pub use self::usage::{Count, Usage};
pub use self::writer::{Added, BlobWriter, ObjectWriter, Outcome};

use self::dir::{Dir, PRIVATE};
use self::format::Format;

/// The directories of a store, parents first.
const DIRECTORIES: [&str; 11] = [
    "objects",
    "layers",
    "merged",
    "blobs",
    "blobs/sha256",
    "refs",
    "containers",
    "volumes",
    "pins",
    "trash",
    "tmp",
];
const LOCK: &str = "lock";
/// The store is its owner's alone: objects are content of images, some of them secret.
const ROOT_MODE: Mode = Mode::RWXU;

/// An open store. Cheap to keep, may be shared between threads.
#[derive(Debug)]
pub struct Store {
    root: Dir,
    objects: Dir,
    layers: Dir,
    merged: Dir,
    blobs: Dir,
    refs: Dir,
    pins: Dir,
    trash: Dir,
    tmp: Dir,
    format: Format,
    interrupt: Option<OwnedFd>,
}

/// A flock on the store's lock file; goes with the descriptor.
#[derive(Debug)]
struct Locked(#[expect(dead_code, reason = "held for its flock")] File);

impl Store {
    /// Opens the store at `root`, or makes one there when the directory is missing or empty.
    pub fn open_or_create(root: &Path) -> Result<Self, StoreError> {
        let path =
            std::path::absolute(root).map_err(|source| StoreError::io("find", root, source))?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|source| match source.kind() {
                // Something else is there.
                ErrorKind::AlreadyExists => StoreError::io("use", &path, ErrorKind::NotADirectory),
                _ => StoreError::io("make", &path, source),
            })?;
        let dir = Dir::open_root(&path)?;
        if Format::read(&dir)?.is_none() {
            create(&dir)?;
        }
        Self::from_root(dir)
    }

    /// Opens the store at `root`; [`StoreError::NotFound`] when there is none.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let path =
            std::path::absolute(root).map_err(|source| StoreError::io("find", root, source))?;
        Self::from_root(Dir::open_root(&path)?)
    }

    fn from_root(root: Dir) -> Result<Self, StoreError> {
        let Some(format) = Format::read(&root)? else {
            return Err(StoreError::NotFound {
                path: root.path().to_owned(),
            });
        };
        Ok(Self {
            objects: root.sub("objects")?,
            layers: root.sub("layers")?,
            merged: root.sub("merged")?,
            blobs: root.sub("blobs")?.sub("sha256")?,
            refs: root.sub("refs")?,
            pins: root.sub("pins")?,
            trash: root.sub("trash")?,
            tmp: root.sub("tmp")?,
            root,
            format,
            interrupt: None,
        })
    }

    /// From now on a wait for the store's lock ends with an error (EINTR) once `interrupt` is readable.
    pub fn set_interrupt(&mut self, interrupt: OwnedFd) {
        self.interrupt = Some(interrupt);
    }

    /// The store's directory, absolute.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Where the engine keeps containers, one directory each.
    pub fn containers_path(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// Where the engine keeps volumes, one directory each.
    pub fn volumes_path(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// File of an object, for who counts or shows it; whoever reads it opens it by [`Store::open_object`].
    pub fn object_path(&self, id: ObjectId) -> PathBuf {
        self.objects.join(object_name(id))
    }

    /// A descriptor of `objects/`, to be handed to a mount.
    pub fn objects_dir(&self) -> Result<OwnedFd, StoreError> {
        self.objects
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| StoreError::io("open", self.objects.path(), source))
    }

    /// Opens an object for reading.
    pub fn open_object(&self, id: ObjectId) -> Result<File, StoreError> {
        self.objects
            .open(object_name(id))?
            .ok_or(StoreError::NoObject(id))
    }

    /// A blob of at most `limit` bytes, its digest checked.
    pub fn read_blob(&self, digest: Sha256Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let bytes = self
            .blobs
            .read(digest.hex(), limit)?
            .ok_or(StoreError::NoBlob(digest))?;
        let found = Sha256Digest::of(&bytes);
        if found != digest {
            return Err(StoreError::Digest {
                what: self.blobs.join(digest.hex()).display().to_string(),
                expected: digest,
                found,
            });
        }
        Ok(bytes)
    }

    /// Opens a blob for reading; its digest is not checked.
    pub fn open_blob(&self, digest: Sha256Digest) -> Result<File, StoreError> {
        self.blobs
            .open(digest.hex())?
            .ok_or(StoreError::NoBlob(digest))
    }

    /// Refuses when the store has features that only let us read.
    fn check_writable(&self) -> Result<(), StoreError> {
        if self.format.ro_compat.is_empty() {
            return Ok(());
        }
        Err(StoreError::Features {
            path: self.root.join(format::NAME),
            features: self.format.ro_compat.clone(),
            readable: true,
        })
    }

    fn lock_shared(&self) -> Result<Locked, StoreError> {
        self.lock(FlockOperation::LockShared)
    }

    fn lock_exclusive(&self) -> Result<Locked, StoreError> {
        self.lock(FlockOperation::LockExclusive)
    }

    fn lock(&self, operation: FlockOperation) -> Result<Locked, StoreError> {
        lock(
            &self.root,
            operation,
            self.interrupt.as_ref().map(OwnedFd::as_fd),
        )
    }
}

/// Waits for the store's lock; each call has a descriptor, and so a lock, of its own.
fn lock(
    root: &Dir,
    operation: FlockOperation,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<Locked, StoreError> {
    let failed = |doing, errno| StoreError::io(doing, root.join(LOCK), errno);
    let file = root
        .open(LOCK)?
        .ok_or_else(|| failed("open", Errno::NOENT))?;
    crate::sys::lock::lock(&file, operation, interrupt).map_err(|errno| failed("lock", errno))?;
    Ok(Locked(file))
}

/// Path of an object below `objects/`: two digits of fan-out, since 65,536 names in a directory are fine and 10 million not.
fn object_name(id: ObjectId) -> String {
    let mut name = id.to_string();
    name.insert(2, '/');
    name
}

/// The digest that a file name of 64 hex digits stands for.
fn from_hex(name: &str) -> Option<Sha256Digest> {
    format!("sha256:{name}").parse().ok()
}

/// Makes an empty store. May be killed anywhere and run again, and may run twice at once: `format.json` comes last, under
/// the exclusive lock, and is what makes it a store.
fn create(root: &Dir) -> Result<(), StoreError> {
    for name in root.names()? {
        let name = name.to_string_lossy();
        if name != LOCK && !DIRECTORIES.contains(&&*name) {
            return Err(StoreError::NotAStore {
                path: root.path().to_owned(),
                entry: name.into_owned(),
            });
        }
    }
    rustix::fs::fchmod(root, ROOT_MODE)
        .map_err(|errno| StoreError::io("set the mode of", root.path(), errno))?;
    for name in DIRECTORIES {
        root.make(name, ROOT_MODE)?;
    }
    let objects = root.sub("objects")?;
    for fan_out in 0..=u8::MAX {
        objects.make(&format!("{fan_out:02x}"), ROOT_MODE)?;
    }
    match root.create(LOCK, PRIVATE) {
        Ok(_) => {}
        Err(error) if error.errno() == Some(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let _lock = lock(root, FlockOperation::LockExclusive, None)?;
    if Format::read(root)?.is_some() {
        return Ok(());
    }
    rustix::fs::syncfs(root).map_err(|errno| StoreError::io("sync", root.path(), errno))?;
    root.replace(
        format::NAME,
        &to_json(&Format::current(), &root.join(format::NAME))?,
        &root.sub("tmp")?,
        &random_name()?,
    )
}

/// JSON as people read it, with a newline at the end.
fn to_json(value: &impl serde::Serialize, path: &Path) -> Result<Vec<u8>, StoreError> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| StoreError::malformed(path, error.to_string()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Length of a [`random_name`].
const RANDOM_NAME: usize = 16;

/// 16 hex digits that no other process picks.
fn random_name() -> Result<String, StoreError> {
    let number = getrandom::u64().map_err(|error| {
        StoreError::io(
            "get random bytes from",
            "/dev/urandom",
            std::io::Error::other(error),
        )
    })?;
    Ok(format!("{number:016x}"))
}
