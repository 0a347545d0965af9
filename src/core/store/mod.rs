//! The store: a directory of objects, trees, blobs, tags and pins, with the locks between
//! processes.
//!
//! Invariant: **a file with its final name is complete, durable and never changes**; only tags are
//! replaced. So readers need no lock, a SIGKILL or a power cut leaves the old state or the new
//! one, and healing rewrites a file.
//!
//! ```text
//! <root>/                      mode 0700
//!   format.json                version and features (format.rs)
//!   lock                       empty; flock: shared to publish, pin and check, exclusive for gc
//!   objects/ab/cdef...         a file's content by its BLAKE3, 0444; the empty content has none
//!   layers/<diff-id hex>/      tree-v2 (with whiteouts), layer.json, recipe-v2 (layer.rs)
//!   merged/<chain-id hex>.tree-v2   a stack's merged tree: a deterministic cache (layer.rs)
//!   blobs/sha256/<hex>         manifests, configs, compressed layers as received, 0444
//!   refs/<name>-<hash>.json    tags (tags.rs)
//!   pins/<name>.json           kept by containers, mounts and loads (pins.rs); gc's other roots
//!   containers/ names/ volumes/   the engine's; not read here
//!   tmp/<random>/              one transaction, flock'ed by its process (transaction.rs)
//!   trash/<random>/            files that gc is deleting (gc)
//!   clean.json                   what the last gc that found no garbage saw (gc/clean.rs)
//!   mountd.log[.old]           messages of mount processes (log.rs)
//!   events[.old]               what happened; the engine's
//! ```
//!
//! # Publishing
//! A transaction writes under `tmp/`, tags included, then: `syncfs` -> rename everything into
//! place, objects first -> `syncfs` -> rename the tags -> `fsync` of `refs/`. The first `syncfs`
//! makes every content durable *before* it gets its final name; its error aborts the publish. So a
//! power cut never damages a file in `objects/`: unsynced bytes are still in `tmp/`, which is
//! discarded. The second `syncfs` makes the names durable before a tag relies on them, including
//! objects that another transaction published but has not synced yet. (Before Linux 5.8 `syncfs`
//! reports no write-back errors; `check --deep` finds them.)
//!
//! # Locking
//! * Level 0: the flock of `trash/`, exclusive for [`Store::gc`]: one runs at a time.
//! * Level 1: `lock`. Shared to publish, to create a pin and for a [`Store::check`] that met a gc;
//!   exclusive for each slice of a gc. It is never held while waiting for input: transaction.rs
//!   says how a transaction is safe from gc without it.
//! * Level 2: the flock of `refs/`, exclusive while tags change.
//! * Level 3: the flock of one directory in `tmp/` or one file in `pins/`: locked means alive.
//!
//! On NFS, flock works between hosts but does not survive a restart of the server.
//!
//! `image` and `layer` add to the store; the engine does everything else. A mount worker never
//! opens a store: it receives descriptors.

mod check;
mod dir;
mod error;
mod format;
mod gc;
mod heal;
mod layer;
mod log;
mod parallel;
mod pins;
mod publish;
mod record;
mod reference;
mod remove;
mod roots;
mod stage;
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
use std::sync::OnceLock;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;

use crate::digest::{ObjectId, Sha256Digest};

pub use self::check::{CheckReport, Damage, Problem};
pub use self::error::StoreError;
pub use self::gc::GcReport;
pub use self::layer::{LayerInfo, MergedTree};
pub use self::pins::{Lease, PinLife};
pub use self::record::MAX_LAYERS;
pub use self::reference::{Reference, ReferenceError};
pub use self::remove::remove_tree;
pub use self::stage::{Stage, StageWriter, Staged};
pub use self::tags::{Descriptor, Platform, Tag, TagList, TaggedImage, TaggedLayer};
pub use self::transaction::{Transaction, Trust};
pub use self::usage::{Count, ObjectUsage, Usage};
pub use self::writer::{Added, BlobWriter, ObjectWriter, Outcome};

use self::dir::{PRIVATE, StoreDir};
use self::format::Format;

/// The directories of a store, parents first.
const DIRECTORIES: [&str; 12] = [
    "objects",
    "layers",
    "merged",
    "blobs",
    "blobs/sha256",
    "refs",
    "containers",
    "names",
    "volumes",
    "pins",
    "trash",
    "tmp",
];
const LOCK: &str = "lock";
/// The engine's file of the newest events, in the root; not read here.
pub const EVENTS: &str = "events";
/// The events before those.
pub const OLD_EVENTS: &str = "events.old";
/// Only the owner may read the store: images can contain secrets.
const ROOT_MODE: Mode = Mode::RWXU;

/// Those that hold tags and pins. A missing one is never made again: empty, it would let gc free
/// everything.
const ROOTS: [&str; 2] = ["refs", "pins"];

/// An open store. Threads may share it.
#[derive(Debug)]
pub struct Store {
    root: StoreDir,
    /// By their place in [`DIRECTORIES`], each opened at its first use: a damaged one stops only
    /// the commands that need it.
    directories: [OnceLock<StoreDir>; DIRECTORIES.len()],
    format: Format,
    interrupt: Option<OwnedFd>,
    /// [`gc::SETTLED`].
    settled_after: Duration,
}

/// A flock on the store's lock file; closing the descriptor releases it.
#[derive(Debug)]
struct Locked(#[expect(dead_code, reason = "held for its flock")] File);

impl Store {
    /// Opens the store at `root`, or creates one if the directory is missing or empty.
    pub fn open_or_create(root: &Path) -> Result<Self, StoreError> {
        Self::open_or_create_at(root, |dir| dir)
    }

    /// [`Store::open_or_create`] of a store that is not to outlive this process: nothing that is
    /// written by this handle waits for the disk.
    pub fn open_or_create_scratch(root: &Path) -> Result<Self, StoreError> {
        Self::open_or_create_at(root, StoreDir::not_durable)
    }

    fn open_or_create_at(
        root: &Path,
        opened: impl FnOnce(StoreDir) -> StoreDir,
    ) -> Result<Self, StoreError> {
        let path =
            std::path::absolute(root).map_err(|source| StoreError::io("find", root, source))?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|source| match source.kind() {
                // The path exists and is not a directory.
                ErrorKind::AlreadyExists => StoreError::io("use", &path, ErrorKind::NotADirectory),
                _ => StoreError::io("create", &path, source),
            })?;
        let dir = opened(StoreDir::open_root(&path)?);
        if Format::read(&dir)?.is_none() {
            create(&dir)?;
        }
        Self::from_root(dir)
    }

    /// Opens the store at `root`; [`StoreError::NotFound`] if there is none.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let path =
            std::path::absolute(root).map_err(|source| StoreError::io("find", root, source))?;
        Self::from_root(StoreDir::open_root(&path)?)
    }

    fn from_root(root: StoreDir) -> Result<Self, StoreError> {
        let Some(format) = Format::read(&root)? else {
            return Err(StoreError::NotFound {
                path: root.path().to_owned(),
            });
        };
        Ok(Self {
            root,
            directories: Default::default(),
            format,
            interrupt: None,
            settled_after: gc::SETTLED,
        })
    }

    /// Opens one of [`DIRECTORIES`] at its first use. A missing one is made again, but for
    /// [`ROOTS`].
    fn directory(&self, name: &'static str) -> Result<&StoreDir, StoreError> {
        let place = DIRECTORIES.iter().position(|known| *known == name);
        let Some(cell) = place.and_then(|place| self.directories.get(place)) else {
            return Err(StoreError::io("open", self.root.join(name), Errno::NOENT));
        };
        if let Some(dir) = cell.get() {
            return Ok(dir);
        }
        let (parent, last) = match name.rsplit_once('/') {
            Some((parent, last)) => (self.directory(parent)?, last),
            None => (&self.root, name),
        };
        let dir = match parent.open_dir_if_exists(last)? {
            None if !ROOTS.contains(&name) => {
                parent.create_dir(last, ROOT_MODE)?;
                parent.open_dir(last)?
            }
            Some(dir) => dir,
            None => return Err(StoreError::io("open", self.root.join(name), Errno::NOENT)),
        };
        Ok(cell.get_or_init(|| dir))
    }

    fn objects(&self) -> Result<&StoreDir, StoreError> {
        self.directory("objects")
    }

    fn layers(&self) -> Result<&StoreDir, StoreError> {
        self.directory("layers")
    }

    fn merged_trees(&self) -> Result<&StoreDir, StoreError> {
        self.directory("merged")
    }

    fn blobs(&self) -> Result<&StoreDir, StoreError> {
        self.directory("blobs/sha256")
    }

    fn refs(&self) -> Result<&StoreDir, StoreError> {
        self.directory("refs")
    }

    fn pin_files(&self) -> Result<&StoreDir, StoreError> {
        self.directory("pins")
    }

    fn trash(&self) -> Result<&StoreDir, StoreError> {
        self.directory("trash")
    }

    fn tmp(&self) -> Result<&StoreDir, StoreError> {
        self.directory("tmp")
    }

    /// Makes waits for the store's lock fail with EINTR once `interrupt` is readable.
    pub fn set_interrupt(&mut self, interrupt: OwnedFd) {
        self.interrupt = Some(interrupt);
    }

    /// The store's directory, absolute.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The engine's directory of containers.
    pub fn containers_path(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// The engine's directory of volumes.
    pub fn volumes_path(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// The path of an object, for display and statistics; [`Store::open_object`] opens it.
    pub fn object_path(&self, id: ObjectId) -> PathBuf {
        self.root.join("objects").join(object_name(id))
    }

    /// A descriptor of `objects/`, for a mount.
    pub fn objects_dir(&self) -> Result<OwnedFd, StoreError> {
        let objects = self.objects()?;
        objects
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| StoreError::io("open", objects.path(), source))
    }

    /// Opens an object for reading.
    pub fn open_object(&self, id: ObjectId) -> Result<File, StoreError> {
        self.objects()?
            .open(object_name(id))?
            .ok_or(StoreError::NoObject(id))
    }

    fn blob_path(&self, digest: Sha256Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Reads a blob of at most `limit` bytes and checks its digest.
    pub fn read_blob(&self, digest: Sha256Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let blobs = self.blobs()?;
        let bytes = blobs
            .read(digest.hex(), limit)?
            .ok_or(StoreError::NoBlob(digest))?;
        let found = Sha256Digest::of(&bytes);
        if found != digest {
            return Err(StoreError::Digest {
                what: blobs.join(digest.hex()).display().to_string(),
                expected: digest,
                found,
            });
        }
        Ok(bytes)
    }

    /// Opens a blob for reading; its digest is not checked.
    pub fn open_blob(&self, digest: Sha256Digest) -> Result<File, StoreError> {
        self.blobs()?
            .open(digest.hex())?
            .ok_or(StoreError::NoBlob(digest))
    }

    /// Refuses if an unknown `ro-compat` feature makes the store read-only, or if what this process
    /// adds would belong to another user than the store: its owner could not read it.
    pub fn check_writable(&self) -> Result<(), StoreError> {
        if self.format.ro_compat.is_empty() {
            return check_owner(&self.root, || self.root.open_dir("tmp"));
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

/// Waits for the store's lock. Each call opens the file again, so each lock is independent.
fn lock(
    root: &StoreDir,
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

/// Fails if files that this process creates belong to another user than the store. The file system
/// decides: one that gives every file the same owner is no obstacle. `aside` is where to try it.
fn check_owner(
    root: &StoreDir,
    aside: impl FnOnce() -> Result<StoreDir, StoreError>,
) -> Result<(), StoreError> {
    let owner = root.owner()?;
    if owner == rustix::process::geteuid() {
        return Ok(());
    }
    let (aside, name) = (aside()?, random_name()?);
    let same = match aside.create(&name, PRIVATE) {
        Ok(file) => {
            aside.remove(&name)?;
            let stat = rustix::fs::fstat(&file)
                .map_err(|errno| StoreError::io("stat", aside.join(&name), errno))?;
            stat.st_uid == owner.as_raw()
        }
        Err(error) if error.errno() == Some(Errno::ACCESS) => false,
        Err(error) => return Err(error),
    };
    if same {
        return Ok(());
    }
    Err(StoreError::OtherOwner {
        path: root.path().to_owned(),
        owner: owner.as_raw(),
    })
}

/// Path of an object below `objects/`. A fan-out of two hex digits keeps directories small.
fn object_name(id: ObjectId) -> String {
    let mut name = id.to_string();
    name.insert(2, '/');
    name
}

/// The names of the fan-out directories.
fn fan_out_names() -> impl Iterator<Item = String> {
    (0..=u8::MAX).map(|number| format!("{number:02x}"))
}

/// Creates the missing fan-out directories of `objects/`.
fn create_fan_outs(objects: &StoreDir) -> Result<(), StoreError> {
    fan_out_names().try_for_each(|name| objects.create_dir(&name, ROOT_MODE))
}

/// Creates an empty store. It may be killed at any point and run again, or run twice at once:
/// `format.json` is written last, under the exclusive lock, and makes the directory a store.
fn create(root: &StoreDir) -> Result<(), StoreError> {
    for name in root.names()? {
        let name = name.to_string_lossy();
        if name != LOCK && !DIRECTORIES.contains(&&*name) {
            return Err(StoreError::NotAStore {
                path: root.path().to_owned(),
                entry: name.into_owned(),
            });
        }
    }
    check_owner(root, || StoreDir::open_root(root.path()))?;
    rustix::fs::fchmod(root, ROOT_MODE)
        .map_err(|errno| StoreError::io("set the mode of", root.path(), errno))?;
    for name in DIRECTORIES {
        root.create_dir(name, ROOT_MODE)?;
    }
    let objects = root.open_dir("objects")?;
    create_fan_outs(&objects)?;
    match root.create(LOCK, PRIVATE) {
        Ok(_) => {}
        Err(error) if error.errno() == Some(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let _lock = lock(root, FlockOperation::LockExclusive, None)?;
    if Format::read(root)?.is_some() {
        return Ok(());
    }
    root.sync_all(root)?;
    root.replace(
        format::NAME,
        &to_json(&Format::current(), &root.join(format::NAME))?,
        &root.open_dir("tmp")?,
        &random_name()?,
    )
}

/// Pretty-printed JSON with a final newline.
fn to_json(value: &impl serde::Serialize, path: &Path) -> Result<Vec<u8>, StoreError> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| StoreError::malformed(path, error.to_string()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Length of a [`random_name`].
const RANDOM_NAME: usize = 16;

/// 16 random hex digits.
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
