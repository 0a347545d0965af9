//! Adding things to the store: everything is written into one private directory of `tmp/` and appears at once.
//!
//! Invariant: until [`Transaction::publish`] nothing outside that directory changes; a transaction that is dropped, or
//! whose process dies, leaves the store as it was. A dead one's directory is removed by the next [`Store::begin`] or gc:
//! its flock is free, and the flock of `tmp/` itself keeps a directory that was just made, and is not locked yet, from
//! being taken for a dead one.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::dir::{Dir, PRIVATE, PUBLISHED};
use super::{
    BlobWriter, Locked, ObjectWriter, Outcome, RefRecord, Store, StoreError, object_name,
    random_name, remove_tree,
};
use crate::digest::{ChainId, DiffId, ObjectHasher, ObjectId, Sha256Digest};

/// How much an object that is already there is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trust {
    /// Its size must be right: what has its name is durable (see the head of the module).
    #[default]
    Size,
    /// It is hashed, so that one that rotted on the disk is found and replaced.
    Hash,
}

/// An addition in the making. May be used from several threads.
#[derive(Debug)]
pub struct Transaction<'s> {
    pub(super) store: &'s Store,
    pub(super) dir: Dir,
    name: String,
    trust: Trust,
    /// Opened before the first write: `syncfs` on it reports every write-back error since then (Linux 5.8).
    sync: OwnedFd,
    pub(super) staged: Mutex<Staged>,
    serial: AtomicU64,
    /// Last, so that the directory is gone before gc may run.
    _lock: Locked,
}

/// What waits in the directory, by kind. Level of its lock: below everything, no I/O under it.
#[derive(Debug, Default)]
pub(super) struct Staged {
    pub(super) objects: BTreeSet<ObjectId>,
    pub(super) blobs: BTreeSet<Sha256Digest>,
    pub(super) layers: BTreeSet<DiffId>,
    pub(super) merged: BTreeSet<ChainId>,
}

impl Store {
    /// Begins an addition, trusting what is there by its size.
    ///
    /// Locking: holds the store's lock shared until published or dropped; waits while gc runs.
    pub fn begin(&self) -> Result<Transaction<'_>, StoreError> {
        self.begin_with(Trust::Size)
    }

    /// Begins an addition; says how much what is there is trusted.
    pub fn begin_with(&self, trust: Trust) -> Result<Transaction<'_>, StoreError> {
        self.check_writable()?;
        let lock = self.lock_shared()?;
        self.remove_dead_transactions()?;
        let name = random_name()?;
        let dir = {
            let _making = self.lock_tmp(FlockOperation::LockShared)?;
            self.tmp.make(&name, Mode::RWXU)?;
            let dir = self.tmp.sub(&name)?;
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
            sync,
            staged: Mutex::default(),
            serial: AtomicU64::new(0),
            _lock: lock,
        })
    }

    /// Removes what dead transactions left; the number of them. The caller holds the store's lock in either way.
    pub(super) fn remove_dead_transactions(&self) -> Result<u64, StoreError> {
        let names = self.tmp.names()?;
        if names.is_empty() {
            return Ok(0);
        }
        let mut dead = Vec::new();
        {
            // Exclusive, so that no directory is between being made and being locked.
            let _looking = self.lock_tmp(FlockOperation::LockExclusive)?;
            for name in names {
                let Some(meta) = self.tmp.stat(&name)? else {
                    continue;
                };
                if meta.file_type != FileType::Directory {
                    // Only the making of a store writes here directly, under the exclusive lock that we exclude.
                    dead.push((name, None));
                } else if let Some(dir) = self.tmp.sub_if_there(&name)?
                    && try_flock(&dir)?
                {
                    dead.push((name, Some(dir)));
                }
            }
        }
        let mut count = 0;
        for (name, _flocked) in dead {
            remove_tree(&self.tmp, &name)?;
            count += 1;
        }
        Ok(count)
    }

    /// A file for what must be read twice, an archive from a pipe for instance. It has no name, so it ends with its descriptor.
    ///
    /// Locking: none beyond the call.
    pub fn scratch(&self) -> Result<File, StoreError> {
        self.check_writable()?;
        // A lone file in tmp/ is taken for a left-over; the lock keeps it until it is ours alone.
        let _making = self.lock_tmp(FlockOperation::LockShared)?;
        let name = random_name()?;
        let file = self.tmp.create(&name, PRIVATE)?;
        self.tmp.remove(&name)?;
        Ok(file)
    }

    /// The error of a write to [`Store::scratch`].
    pub fn scratch_error(&self, source: io::Error) -> StoreError {
        StoreError::io("copy the archive to", self.tmp.path(), source)
    }

    fn lock_tmp(&self, operation: FlockOperation) -> Result<Dir, StoreError> {
        let tmp = self.root.sub("tmp")?;
        flock(&tmp, operation)?;
        Ok(tmp)
    }
}

fn flock(dir: &Dir, operation: FlockOperation) -> Result<(), StoreError> {
    rustix::io::retry_on_intr(|| rustix::fs::flock(dir, operation))
        .map_err(|errno| StoreError::io("lock", dir.path(), errno))
}

/// Whether the lock was free and is now ours.
pub(super) fn try_flock(dir: &Dir) -> Result<bool, StoreError> {
    match rustix::fs::flock(dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(StoreError::io("lock", dir.path(), errno)),
    }
}

impl Transaction<'_> {
    /// Takes one file's content.
    pub fn object_writer(&self) -> ObjectWriter<'_> {
        ObjectWriter::new(self)
    }

    /// Takes a blob of unknown size.
    pub fn blob_writer(&self) -> Result<BlobWriter<'_>, StoreError> {
        BlobWriter::new(self)
    }

    /// Adds a blob that is in memory: a manifest or a configuration.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Sha256Digest, StoreError> {
        let mut writer = self.blob_writer()?;
        io::Write::write_all(&mut writer, bytes)
            .map_err(|source| StoreError::io("write a blob in", self.dir.path(), source))?;
        writer.finish()
    }

    /// Makes all of it visible, then points the tags at it. See the head of the module for why in this order. An image whose last name
    /// goes to another one stays, by its id.
    ///
    /// After an error before the first tag, nothing refers to what may already have its place, and gc removes it.
    pub fn publish(self, refs: &[RefRecord]) -> Result<(), StoreError> {
        // Written first of all: what is refused, or does not fit on the disk, fails before anything moves.
        let mut tags = Vec::with_capacity(refs.len());
        for record in self.store.displaced(refs)?.iter().chain(refs) {
            let name = record.file_name()?;
            let temporary = self.temporary();
            self.dir.create_with(
                &temporary,
                PRIVATE,
                &super::to_json(record, &self.store.refs.join(&name))?,
            )?;
            tags.push((temporary, name));
        }
        self.sync_all()?;
        self.place()?;
        // Also for what was found present: its publisher may not have come to its own second sync yet.
        self.sync_all()?;
        for (temporary, name) in &tags {
            self.dir.rename(temporary, &self.store.refs, name)?;
        }
        if tags.is_empty() {
            Ok(())
        } else {
            self.store.refs.sync()
        }
    }

    /// Renames all that is staged to where it belongs; what others refer to goes first.
    fn place(&self) -> Result<(), StoreError> {
        let staged = std::mem::take(&mut *self.staged.lock());
        for id in &staged.objects {
            self.dir
                .rename(id.to_string(), &self.store.objects, object_name(*id))?;
        }
        for diff in &staged.layers {
            self.publish_layer(*diff)?;
        }
        for chain in &staged.merged {
            let name = super::layer::merged_name(*chain);
            self.dir.rename(&name, &self.store.merged, &name)?;
        }
        for digest in &staged.blobs {
            self.dir
                .rename(digest.hex(), &self.store.blobs, digest.hex())?;
        }
        Ok(())
    }

    fn sync_all(&self) -> Result<(), StoreError> {
        rustix::fs::syncfs(&self.sync)
            .map_err(|errno| StoreError::io("sync", self.store.root.path(), errno))
    }

    /// A new name in the transaction's directory.
    pub(super) fn temporary(&self) -> String {
        format!("stream-{}", self.serial.fetch_add(1, Ordering::Relaxed))
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

    /// Reads a content that this transaction was given, wherever it is.
    pub fn open_object(&self, id: ObjectId) -> Result<File, StoreError> {
        match self.dir.open(id.to_string())? {
            Some(file) => Ok(file),
            None => self.store.open_object(id),
        }
    }

    /// Takes a new content back: nothing of the layer that brought it needs it.
    pub fn discard_object(&self, id: ObjectId) -> Result<(), StoreError> {
        self.staged.lock().objects.remove(&id);
        self.discard(&id.to_string())
    }

    /// Gives a complete content its name in the transaction, by `place`, unless it is there already.
    ///
    /// Two threads with the same content may both place it: the same bytes, and a rename over them, do no harm.
    pub(super) fn stage_object(
        &self,
        id: ObjectId,
        size: u64,
        place: impl FnOnce(&Dir, &str) -> Result<(), StoreError>,
    ) -> Result<Outcome, StoreError> {
        if self.staged.lock().objects.contains(&id) {
            return Ok(Outcome::AlreadyPresent);
        }
        let outcome = match self.store.objects.stat(object_name(id))? {
            None => Outcome::Added,
            Some(there)
                if there.file_type == FileType::RegularFile
                    && there.size == size
                    && self.trusted(id)? =>
            {
                return Ok(Outcome::AlreadyPresent);
            }
            Some(_) => Outcome::Healed,
        };
        place(&self.dir, &id.to_string())?;
        self.staged.lock().objects.insert(id);
        Ok(outcome)
    }

    fn trusted(&self, id: ObjectId) -> Result<bool, StoreError> {
        match self.trust {
            Trust::Size => Ok(true),
            Trust::Hash => Ok(self.store.hash_object(id)? == id),
        }
    }

    pub(super) fn stage_blob(
        &self,
        digest: Sha256Digest,
        size: u64,
        stream: &str,
    ) -> Result<(), StoreError> {
        let there = self.store.blobs.stat(digest.hex())?;
        let present =
            there.is_some_and(|meta| meta.file_type == FileType::RegularFile && meta.size == size);
        if present && self.trust == Trust::Size || self.staged.lock().blobs.contains(&digest) {
            return self.discard(stream);
        }
        self.dir.rename(stream, &self.dir, digest.hex())?;
        self.staged.lock().blobs.insert(digest);
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if remove_tree(&self.store.tmp, &self.name).is_err() {
            // Nothing can be told from here, and nothing is lost: the flock goes free, the next begin or gc tries again.
        }
    }
}

impl Store {
    /// The BLAKE3 of an object as it is on the disk.
    pub(super) fn hash_object(&self, id: ObjectId) -> Result<ObjectId, StoreError> {
        let mut file = self.open_object(id)?;
        let mut hasher = ObjectHasher::new();
        copy(&mut file, &mut hasher)
            .map_err(|source| StoreError::io("read", self.objects.join(object_name(id)), source))?;
        Ok(hasher.finish())
    }
}

/// Like [`io::copy`], in pieces that BLAKE3 is fast with; the number of bytes.
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
