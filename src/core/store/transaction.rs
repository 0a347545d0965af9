//! Adding things to the store: all is written into one private directory of `tmp/` and then renamed into place.
//!
//! Invariant: nothing that waits for input holds a lock. Until its publish a transaction changes nothing outside its
//! directory, and what it found present is safe from gc all the same:
//! * a content that is there already gets a second hard link in the transaction's directory. When the links are renamed into
//!   place, the content has its name whether gc took the first one meanwhile or not (rename of two links to one file does
//!   nothing);
//! * a layer that is there already is named by the transaction's pin *before* it is looked at. A gc that began earlier has
//!   ended by then (the pin is made under the store's lock), one that begins later reads the pin;
//! * what was placed before the tags are is named by the pin before it is placed.
//!
//! A transaction that is dropped, or whose process dies, leaves no trace but layers that were published early
//! ([`PUBLISH_EARLY`]): no tag names them, so the next gc frees them, unless the same load finds them first and goes on from
//! there. The directory of a dead one is removed by the next [`Store::begin`] or gc: its flock is free, and the flock of
//! `tmp/` itself keeps a directory that was just made, and is not locked yet, from being taken for a dead one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::dir::{Dir, Linked, PRIVATE, PUBLISHED};
use super::pins::HeldPin;
use super::{
    BlobWriter, ObjectWriter, Outcome, Store, StoreError, Tag, object_name, random_name,
    remove_tree,
};
use crate::digest::{ChainId, DiffId, ObjectHasher, ObjectId, Sha256Digest};

/// How much an object that is already there is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trust {
    /// Its size must be right: what has its name is durable (see the module's head).
    #[default]
    Size,
    /// It is hashed, so that one that rotted on the disk is found and replaced.
    Hash,
}

/// Bytes of contents after which the layers that are complete are published, so that a long pull or load that is
/// interrupted need not begin anew. Smaller ones cost two `syncfs` in all, however many layers they have.
const PUBLISH_EARLY: u64 = 64 << 20;

/// An addition in the making. One thread's: it is not `Sync`.
#[derive(Debug)]
pub struct Transaction<'s> {
    pub(super) store: &'s Store,
    pub(super) dir: Dir,
    name: String,
    pub(super) trust: Trust,
    /// Opened before the first write: `syncfs` on it reports every write-back error since then (Linux 5.8).
    sync: OwnedFd,
    pub(super) staged: RefCell<Staged>,
    pub(super) pinned: RefCell<Pinned>,
    serial: Cell<u64>,
}

/// What waits in the directory, by kind.
#[derive(Debug, Default)]
pub(super) struct Staged {
    pub(super) objects: BTreeSet<ObjectId>,
    pub(super) blobs: BTreeSet<Sha256Digest>,
    pub(super) layers: BTreeSet<DiffId>,
    pub(super) merged: BTreeSet<ChainId>,
    /// Bytes of new contents.
    bytes: u64,
}

/// What the transaction's pin names, and the pin, once it names anything.
#[derive(Debug, Default)]
pub(super) struct Pinned {
    pub(super) layers: BTreeSet<DiffId>,
    pub(super) blobs: BTreeSet<Sha256Digest>,
    pub(super) held: Option<HeldPin>,
}

impl Store {
    /// Begins an addition, trusting what is there by its size.
    pub fn begin(&self) -> Result<Transaction<'_>, StoreError> {
        self.begin_with(Trust::Size)
    }

    /// Begins an addition; says how much what is there is trusted.
    ///
    /// Locking: none is held between two calls of the transaction but its own directory's.
    pub fn begin_with(&self, trust: Trust) -> Result<Transaction<'_>, StoreError> {
        self.check_writable()?;
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
            staged: RefCell::default(),
            pinned: RefCell::default(),
            serial: Cell::new(0),
        })
    }

    /// Removes what dead transactions left; the number of them.
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
                    // Only the making of a store writes here directly, before there is one to be opened.
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

pub(super) fn flock(dir: &Dir, operation: FlockOperation) -> Result<(), StoreError> {
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
        Ok(writer.finish()?.0)
    }

    /// The name of its directory in `tmp/`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Makes all of it visible, then points the tags at it. See the module's head for why in this order. An image whose last
    /// name goes to another one stays, by its id; one without a name gets no tag while a name keeps it.
    ///
    /// After an error before the first tag, nothing refers to what may already have its place, and gc removes it.
    ///
    /// Locking: holds the store's lock shared while things get their places.
    pub fn publish(self, tags: &[Tag]) -> Result<(), StoreError> {
        // Written first of all: what is refused, or does not fit on the disk, fails before anything moves.
        let staged = self.stage_tags(tags)?;
        self.sync_all()?;
        let _lock = self.store.lock_shared()?;
        self.place()?;
        // Also for what was found present: its publisher may not have come to its own second sync yet.
        self.sync_all()?;
        if tags.is_empty() {
            return Ok(());
        }
        self.publish_tags(&staged)
    }

    /// Publishes the layers that are complete if that much was written; the pin keeps them and their blobs.
    pub(super) fn publish_early(&self) -> Result<(), StoreError> {
        let (layers, blobs) = {
            let staged = self.staged.borrow();
            if staged.bytes < PUBLISH_EARLY {
                return Ok(());
            }
            let layers: Vec<_> = staged.layers.iter().copied().collect();
            let blobs: Vec<_> = staged.blobs.iter().copied().collect();
            (layers, blobs)
        };
        self.extend_pin(&layers, &blobs)?;
        self.sync_all()?;
        let _lock = self.store.lock_shared()?;
        self.place()
    }

    /// Renames all that is staged to where it belongs; what others refer to goes first. The caller holds the store's lock.
    fn place(&self) -> Result<(), StoreError> {
        let staged = self.staged.take();
        let store = self.store;
        for id in &staged.objects {
            let (from, to) = (id.to_string(), object_name(*id));
            self.put(&from, &store.objects, &to)?;
        }
        for diff in &staged.layers {
            self.publish_layer(*diff)?;
        }
        for chain in &staged.merged {
            let name = super::layer::merged_name(*chain);
            self.put(&name, &store.merged, &name)?;
        }
        for digest in &staged.blobs {
            let name = digest.hex();
            self.put(&name, &store.blobs, &name)?;
        }
        Ok(())
    }

    /// Renames a file into place. A directory that stands there is damage, and makes room.
    fn put(&self, from: &str, to: &Dir, name: &str) -> Result<(), StoreError> {
        match self.dir.rename(from, to, name) {
            Err(error) if error.errno() == Some(Errno::ISDIR) => {
                to.rename(name, &self.dir, self.temporary())?;
                self.dir.rename(from, to, name)
            }
            done => done,
        }
    }

    fn sync_all(&self) -> Result<(), StoreError> {
        rustix::fs::syncfs(&self.sync)
            .map_err(|errno| StoreError::io("sync", self.store.root.path(), errno))
    }

    /// A new name in the transaction's directory.
    pub(super) fn temporary(&self) -> String {
        let number = self.serial.get();
        self.serial.set(number + 1);
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

    /// Reads a content that this transaction was given, wherever it is.
    pub fn open_object(&self, id: ObjectId) -> Result<File, StoreError> {
        match self.dir.open(id.to_string())? {
            Some(file) => Ok(file),
            None => self.store.open_object(id),
        }
    }

    /// Takes a new content back: nothing of the layer that brought it needs it.
    pub fn discard_object(&self, id: ObjectId) -> Result<(), StoreError> {
        self.staged.borrow_mut().objects.remove(&id);
        self.discard(&id.to_string())
    }

    /// Gives a complete content its name in the transaction, by `place`, unless the store or the transaction has it.
    pub(super) fn stage_object(
        &self,
        id: ObjectId,
        size: u64,
        place: impl FnOnce(&Dir, &str) -> Result<(), StoreError>,
    ) -> Result<Outcome, StoreError> {
        if self.staged.borrow().objects.contains(&id) {
            return Ok(Outcome::AlreadyPresent);
        }
        let name = id.to_string();
        let outcome = match self.store.objects.link(object_name(id), &self.dir, &name)? {
            Linked::Absent | Linked::Unsupported => Outcome::Added,
            Linked::Done if self.is_sound(&name, id, size)? => {
                self.staged.borrow_mut().objects.insert(id);
                return Ok(Outcome::AlreadyPresent);
            }
            Linked::Done => {
                self.discard(&name)?;
                Outcome::Healed
            }
        };
        place(&self.dir, &name)?;
        let mut staged = self.staged.borrow_mut();
        staged.objects.insert(id);
        staged.bytes = staged.bytes.saturating_add(size);
        Ok(outcome)
    }

    /// Whether the transaction's own link of an object is what it should be, as far as it has to be looked at.
    fn is_sound(&self, name: &str, id: ObjectId, size: u64) -> Result<bool, StoreError> {
        let regular =
            |meta: super::dir::Meta| meta.file_type == FileType::RegularFile && meta.size == size;
        if !self.dir.stat(name)?.is_some_and(regular) {
            return Ok(false);
        }
        match self.trust {
            Trust::Size => Ok(true),
            Trust::Hash => hash(&self.dir, name).map(|found| found == Some(id)),
        }
    }

    pub(super) fn stage_blob(&self, digest: Sha256Digest, stream: &str) -> Result<(), StoreError> {
        if !self.staged.borrow_mut().blobs.insert(digest) {
            return self.discard(stream);
        }
        self.dir.rename(stream, &self.dir, digest.hex())
    }

    /// Whether the store or this transaction has a blob of this size, which then stays: there is no need to write it again.
    /// With [`Trust::Hash`] it is read and hashed.
    pub fn has_blob(&self, digest: Sha256Digest, size: u64) -> Result<bool, StoreError> {
        if self.staged.borrow().blobs.contains(&digest) {
            return Ok(true);
        }
        let name = digest.hex();
        if self.store.blobs.link(&name, &self.dir, &name)? != Linked::Done {
            return Ok(false);
        }
        let right =
            |meta: super::dir::Meta| meta.file_type == FileType::RegularFile && meta.size == size;
        let sound = self.dir.stat(&name)?.is_some_and(right)
            && (self.trust == Trust::Size || self.store.hash_blob(digest)? == digest);
        if sound {
            self.staged.borrow_mut().blobs.insert(digest);
        } else {
            self.discard(&name)?;
        }
        Ok(sound)
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
        hash(&self.objects, &object_name(id))?.ok_or(StoreError::NoObject(id))
    }
}

fn hash(dir: &Dir, name: &str) -> Result<Option<ObjectId>, StoreError> {
    let Some(mut file) = dir.open(name)? else {
        return Ok(None);
    };
    let mut hasher = ObjectHasher::new();
    copy(&mut file, &mut hasher)
        .map_err(|source| StoreError::io("read", dir.join(name), source))?;
    Ok(Some(hasher.finish()))
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
