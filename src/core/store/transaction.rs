//! Transactions: everything is written to a private directory in `tmp/`, then renamed into place.
//!
//! Invariant: a transaction that waits for input holds no lock. Until it publishes, it changes
//! nothing outside its directory, and everything it found present is still safe from gc:
//! * an existing object gets a second hard link in the transaction's directory. Publishing renames
//!   that link into place, whether or not gc removed the first one (rename between two links to
//!   one file does nothing);
//! * an existing layer is added to the transaction's pin *before* it is checked. An earlier gc has
//!   ended by then (the pin is created under the store's lock); a later gc reads the pin;
//! * layers and blobs published before the tags are added to the pin first.
//!
//! A dropped transaction, or one whose process dies, leaves only layers that were published early
//! ([`PUBLISH_EARLY`]). No tag names them, so the next gc frees them, unless the same load is
//! repeated first and continues from them. The next [`Store::begin`] or gc removes the directory
//! of a dead transaction: its flock is free. The flock of `tmp/` itself protects a new directory
//! that is not locked yet.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::dir::{LinkOutcome, PRIVATE, PUBLISHED, StoreDir};
use super::pins::HeldPin;
use super::{
    BlobWriter, ObjectWriter, Outcome, Store, StoreError, object_name, random_name, remove_tree,
};
use crate::digest::{ChainId, DiffId, ObjectHasher, ObjectId, ObjectIds, Sha256Digest};

/// How an existing object is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trust {
    /// By size: published objects are durable (see the module documentation).
    #[default]
    Size,
    /// By hash: finds and replaces objects that the disk corrupted.
    Hash,
}

/// A name in `tmp/` or `trash/` that no process uses; a directory that can be opened is locked.
pub(super) type Dead = (Box<OsStr>, Option<StoreDir>);

/// A new name in `tmp/`, whose lock keeps cleanups from it. Drop removes a file that still has it.
#[derive(Debug)]
pub(super) struct Temporary {
    pub(super) dir: StoreDir,
    pub(super) name: String,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.dir.remove(&self.name).is_err() {
            // Nothing can be reported here. The next begin or gc removes the file.
        }
    }
}

/// New bytes after which complete layers are published, so that an interrupted large load
/// continues from them. A smaller load costs two `syncfs` in total, whatever its number of layers.
const PUBLISH_EARLY: u64 = 64 << 20;

/// A running addition to the store. Threads may share it until it is published; those that add
/// layers use a [`Stage`](super::Stage) each.
#[derive(Debug)]
pub struct Transaction<'s> {
    pub(super) store: &'s Store,
    pub(super) dir: StoreDir,
    name: String,
    pub(super) trust: Trust,
    /// [`PUBLISH_EARLY`].
    pub(super) publish_early_after: u64,
    /// Opened before the first write: `syncfs` on it reports every write-back error since then
    /// (Linux 5.8).
    pub(super) sync: OwnedFd,
    pub(super) staged: Mutex<Staged>,
    pub(super) pinned: Mutex<Pinned>,
    /// The directories of its stages, once it has any.
    pub(super) stages: OnceLock<Vec<StoreDir>>,
    serial: AtomicU64,
}

/// Tells the stages of a transaction apart; 0 is the transaction itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StageNumber(pub(super) u64);

impl StageNumber {
    const NONE: Self = Self(0);
}

/// Staged files by kind.
#[derive(Debug, Default)]
pub(super) struct Staged {
    pub(super) objects: StagedObjects,
    pub(super) blobs: BTreeSet<Sha256Digest>,
    pub(super) layers: BTreeSet<DiffId>,
    pub(super) merged: BTreeSet<ChainId>,
    /// Bytes of new contents.
    pub(super) bytes: u64,
}

/// Which stage has each object.
#[derive(Debug, Default)]
pub(super) struct StagedObjects {
    ids: ObjectIds,
    /// By the numbers of the ids.
    stages: Vec<StageNumber>,
}

impl StagedObjects {
    fn stage(&self, id: ObjectId) -> Option<StageNumber> {
        let number = self.ids.number(id)?;
        self.stages.get(number as usize).copied()
    }

    /// An object that is there already stays as it is.
    fn insert(&mut self, id: ObjectId, stage: StageNumber) -> Result<(), StoreError> {
        let (_, is_new) = self.ids.insert(id).ok_or(StoreError::TooManyObjects)?;
        if is_new {
            self.stages.push(stage);
        }
        Ok(())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ObjectId, StageNumber)> {
        self.ids.iter().zip(self.stages.iter().copied())
    }
}

/// The layers and blobs of the transaction's pin, and the pin, once it has any.
#[derive(Debug, Default)]
pub(super) struct Pinned {
    pub(super) layers: BTreeSet<DiffId>,
    pub(super) blobs: BTreeSet<Sha256Digest>,
    pub(super) held: Option<HeldPin>,
}

impl Store {
    /// Begins a transaction that checks existing objects by size.
    pub fn begin(&self) -> Result<Transaction<'_>, StoreError> {
        self.begin_with(Trust::Size)
    }

    /// Begins a transaction.
    ///
    /// Locking: between calls the transaction holds only its own directory's flock.
    pub fn begin_with(&self, trust: Trust) -> Result<Transaction<'_>, StoreError> {
        self.check_writable()?;
        self.remove_dead_transactions()?;
        let name = random_name()?;
        let dir = {
            let _making = self.lock_tmp(FlockOperation::LockShared)?;
            self.tmp()?.create_dir(&name, Mode::RWXU)?;
            let dir = self.tmp()?.open_dir(&name)?;
            flock(&dir, FlockOperation::LockExclusive)?;
            dir
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let sync = rustix::fs::openat(&self.root, ".", flags, Mode::empty())
            .map_err(|errno| StoreError::io("open", self.root.path(), errno))?;
        Ok(Transaction {
            store: self,
            dir,
            name,
            trust,
            publish_early_after: PUBLISH_EARLY,
            sync,
            staged: Mutex::default(),
            pinned: Mutex::default(),
            stages: OnceLock::new(),
            serial: AtomicU64::new(0),
        })
    }

    /// Removes the directories of dead transactions; returns their number.
    pub(super) fn remove_dead_transactions(&self) -> Result<u64, StoreError> {
        let mut count = 0;
        for (name, _flocked) in self.dead_transactions()? {
            remove_tree(self.tmp()?, &name)?;
            count += 1;
        }
        Ok(count)
    }

    /// The directories of dead transactions, each locked, and foreign files beside them.
    pub(super) fn dead_transactions(&self) -> Result<Vec<Dead>, StoreError> {
        let mut dead = Vec::new();
        let names = self.tmp()?.names()?;
        if names.is_empty() {
            return Ok(dead);
        }
        // Exclusive: no directory is between mkdir and flock.
        let _looking = self.lock_tmp(FlockOperation::LockExclusive)?;
        for name in names {
            let Some(meta) = self.tmp()?.stat(&name)? else {
                continue;
            };
            if meta.file_type != FileType::Directory {
                // A plain file here is a leftover of an interrupted store creation.
                dead.push((name, None));
                continue;
            }
            match self.tmp()?.open_dir_if_exists(&name) {
                Ok(Some(dir)) if try_flock(&dir)? => dead.push((name, Some(dir))),
                Ok(_) => {}
                // A live one is readable.
                Err(error) if error.errno() == Some(Errno::ACCESS) => dead.push((name, None)),
                Err(error) => return Err(error),
            }
        }
        Ok(dead)
    }

    /// An unnamed temporary file for input that must be read twice, such as an archive from a
    /// pipe.
    ///
    /// Locking: holds none after the call.
    pub fn scratch(&self) -> Result<File, StoreError> {
        self.check_writable()?;
        // Cleanup removes plain files in tmp/; the lock protects this one until it is unlinked.
        let _making = self.lock_tmp(FlockOperation::LockShared)?;
        let name = random_name()?;
        let file = self.tmp()?.create(&name, PRIVATE)?;
        self.tmp()?.remove(&name)?;
        Ok(file)
    }

    /// A place for a small file on its way into another directory of the store.
    ///
    /// Locking: shares that of `tmp/` until it is dropped. A caller that waits for the store's lock
    /// takes that first.
    pub(super) fn temporary(&self) -> Result<Temporary, StoreError> {
        Ok(Temporary {
            dir: self.lock_tmp(FlockOperation::LockShared)?,
            name: random_name()?,
        })
    }

    /// Converts a write error of [`Store::scratch`].
    pub fn scratch_error(&self, source: io::Error) -> StoreError {
        StoreError::io("copy the archive to", self.root.join("tmp"), source)
    }

    fn lock_tmp(&self, operation: FlockOperation) -> Result<StoreDir, StoreError> {
        let tmp = self.root.open_dir("tmp")?;
        flock(&tmp, operation)?;
        Ok(tmp)
    }
}

pub(super) fn flock(dir: &StoreDir, operation: FlockOperation) -> Result<(), StoreError> {
    rustix::io::retry_on_intr(|| rustix::fs::flock(dir, operation))
        .map_err(|errno| StoreError::io("lock", dir.path(), errno))
}

/// Takes the lock if it is free.
pub(super) fn try_flock(dir: &StoreDir) -> Result<bool, StoreError> {
    match rustix::fs::flock(dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(StoreError::io("lock", dir.path(), errno)),
    }
}

impl Transaction<'_> {
    /// A writer for one object.
    pub fn object_writer(&self) -> ObjectWriter<'_> {
        ObjectWriter::new(self)
    }

    /// A writer for a blob of unknown size.
    pub fn blob_writer(&self) -> Result<BlobWriter<'_>, StoreError> {
        BlobWriter::new(self)
    }

    /// Adds a blob from memory: a manifest or a configuration.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Sha256Digest, StoreError> {
        let mut writer = self.blob_writer()?;
        io::Write::write_all(&mut writer, bytes)
            .map_err(|source| StoreError::io("write a blob in", self.dir.path(), source))?;
        Ok(writer.finish()?.0)
    }

    /// The name of its directory in `tmp/`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A new name in the transaction's directory.
    pub(super) fn temporary(&self) -> String {
        let number = self.serial.fetch_add(1, Ordering::Relaxed);
        format!("stream-{number}")
    }

    /// A new file in the transaction's directory.
    pub(super) fn stream(&self) -> Result<(File, String), StoreError> {
        let name = self.temporary();
        Ok((self.dir.create(&name, PUBLISHED)?, name))
    }

    pub(super) fn discard(&self, name: &str) -> Result<(), StoreError> {
        self.dir.remove(name)?;
        Ok(())
    }

    pub(super) fn write_error(&self, name: &str, source: io::Error) -> StoreError {
        StoreError::io("write", self.dir.join(name), source)
    }

    /// Opens an object of this transaction, staged or published.
    pub fn open_object(&self, id: ObjectId) -> Result<File, StoreError> {
        let stage = self.staged.lock().objects.stage(id);
        if let Some(stage) = stage {
            let (dir, name) = self.staged_object(stage, id)?;
            if let Some(file) = dir.open(name)? {
                return Ok(file);
            }
        }
        self.store.open_object(id)
    }

    pub(super) fn new_stage(&self) -> StageNumber {
        // Not 0, which is the transaction.
        StageNumber(1 + self.serial.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn has_staged(&self, id: ObjectId) -> bool {
        self.staged.lock().objects.stage(id).is_some()
    }

    /// Takes over the objects of a complete stage; one that it has already is the same.
    pub(super) fn adopt(
        &self,
        stage: StageNumber,
        objects: impl Iterator<Item = ObjectId>,
        bytes: u64,
    ) -> Result<(), StoreError> {
        let mut staged = self.staged.lock();
        for id in objects {
            staged.objects.insert(id, stage)?;
        }
        staged.bytes = staged.bytes.saturating_add(bytes);
        Ok(())
    }

    /// Stages a complete object, by `place`, unless the store or the transaction has it.
    pub(super) fn stage_object(
        &self,
        id: ObjectId,
        size: u64,
        place: impl FnOnce(&StoreDir, &str) -> Result<(), StoreError>,
    ) -> Result<Outcome, StoreError> {
        if self.has_staged(id) {
            return Ok(Outcome::AlreadyPresent);
        }
        let name = id.to_string();
        let outcome = match self
            .store
            .objects()?
            .link(object_name(id), &self.dir, &name)?
        {
            LinkOutcome::NotFound | LinkOutcome::Unsupported => Outcome::Added,
            LinkOutcome::Linked if self.is_sound(&self.dir, &name, id, size)? => {
                self.staged.lock().objects.insert(id, StageNumber::NONE)?;
                return Ok(Outcome::AlreadyPresent);
            }
            LinkOutcome::Linked => {
                self.discard(&name)?;
                Outcome::Healed
            }
        };
        place(&self.dir, &name)?;
        let mut staged = self.staged.lock();
        staged.objects.insert(id, StageNumber::NONE)?;
        staged.bytes = staged.bytes.saturating_add(size);
        Ok(outcome)
    }

    /// Whether the transaction's link of an object passes the check that [`Trust`] demands.
    pub(super) fn is_sound(
        &self,
        dir: &StoreDir,
        name: &str,
        id: ObjectId,
        size: u64,
    ) -> Result<bool, StoreError> {
        let regular =
            |meta: super::dir::Meta| meta.file_type == FileType::RegularFile && meta.size == size;
        if !dir.stat(name)?.is_some_and(regular) {
            return Ok(false);
        }
        match self.trust {
            Trust::Size => Ok(true),
            Trust::Hash => hash(dir, name).map(|found| found == Some(id)),
        }
    }

    pub(super) fn stage_blob(&self, digest: Sha256Digest, stream: &str) -> Result<(), StoreError> {
        if self.staged.lock().blobs.contains(&digest) {
            return self.discard(stream);
        }
        // Renamed first: what is staged may be published by another thread.
        self.dir.rename(stream, &self.dir, digest.hex())?;
        self.staged.lock().blobs.insert(digest);
        Ok(())
    }

    /// Whether the store or this transaction has a blob of this size; if so, the transaction keeps
    /// it. With [`Trust::Hash`] it is hashed.
    pub fn has_blob(&self, digest: Sha256Digest, size: u64) -> Result<bool, StoreError> {
        if self.staged.lock().blobs.contains(&digest) {
            return Ok(true);
        }
        let name = digest.hex();
        if self.store.blobs()?.link(&name, &self.dir, &name)? != LinkOutcome::Linked {
            return Ok(false);
        }
        let right =
            |meta: super::dir::Meta| meta.file_type == FileType::RegularFile && meta.size == size;
        let sound = self.dir.stat(&name)?.is_some_and(right)
            && (self.trust == Trust::Size || self.store.hash_blob(digest)? == digest);
        if sound {
            self.staged.lock().blobs.insert(digest);
        } else {
            self.discard(&name)?;
        }
        Ok(sound)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        let removed = self
            .store
            .tmp()
            .and_then(|tmp| remove_tree(tmp, &self.name));
        if removed.is_err() {
            // drop cannot report an error. The flock is released, so the next begin or gc removes
            // the directory.
        }
    }
}

impl Store {
    /// Hashes an object's file.
    pub(super) fn hash_object(&self, id: ObjectId) -> Result<ObjectId, StoreError> {
        hash(self.objects()?, &object_name(id))?.ok_or(StoreError::NoObject(id))
    }
}

fn hash(dir: &StoreDir, name: &str) -> Result<Option<ObjectId>, StoreError> {
    let Some(mut file) = dir.open(name)? else {
        return Ok(None);
    };
    let mut hasher = ObjectHasher::new();
    copy(&mut file, &mut hasher)
        .map_err(|source| StoreError::io("read", dir.join(name), source))?;
    Ok(Some(hasher.finish()))
}

/// Like [`io::copy`] with a buffer large enough for fast BLAKE3; returns the number of bytes.
pub(super) fn copy(from: &mut impl io::Read, to: &mut impl io::Write) -> io::Result<u64> {
    let mut buffer = vec![0; 128 * 1024];
    let mut total = 0;
    loop {
        let piece = match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(length) => buffer.get(..length).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(piece)?;
        total += piece.len() as u64;
    }
}
