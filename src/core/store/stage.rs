//! The objects of one layer on their way into a transaction.
//!
//! Layers of a transaction may be added by several threads at a time, each in a stage of its own.
//! Small contents are written by threads of the stage, since creating a file takes much longer
//! than hashing what is in it.
//!
//! Invariants
//! * What is published early belongs to complete layers, which the pin keeps from gc: objects
//!   count as the transaction's only from [`Stage::put_layer`] on.
//! * A content is claimed before it is written, so each file of a stage has one writer.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::thread::{self, Builder};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::{Condvar, Mutex};
use rustix::fs::Mode;

use super::dir::{LinkOutcome, PUBLISHED, StoreDir};
use super::transaction::{StageNumber, Transaction};
use super::writer::{Content, ContentWriter};
use super::{LayerInfo, StoreError, object_name};
use crate::digest::{DiffId, ObjectId, ObjectIds};

/// Threads that write small contents.
const WRITERS: usize = 2;

/// Contents that wait to be written. Each is small ([`super::writer::IN_MEMORY`]).
const QUEUE: usize = 32;

/// Directories of a transaction that its stages spread their objects over: files are created in
/// several at a time.
const DIRECTORIES: usize = 8;

/// One layer's objects. Threads may share it.
#[derive(Debug)]
pub struct Stage<'t> {
    objects: &'t Objects<'t>,
    queue: Sender<Waiting>,
}

/// A small content that is claimed, and not written yet.
#[derive(Debug)]
struct Waiting {
    id: ObjectId,
    content: Vec<u8>,
}

#[derive(Debug)]
struct Objects<'t> {
    transaction: &'t Transaction<'t>,
    number: StageNumber,
    state: Mutex<State>,
    settled: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Claimed contents, until they are settled: then the layer's tree and recipe have their ids.
    claimed: ObjectIds,
    /// Contents that are the transaction's by another stage.
    foreign: HashSet<ObjectId>,
    /// Bytes of those that the store lacked.
    bytes: u64,
    /// How many are not written yet.
    waiting: usize,
    /// The first failure of a writer.
    error: Option<StoreError>,
}

/// A content of a layer. Empty contents have no object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Staged {
    /// Its BLAKE3.
    pub id: ObjectId,
    /// Whether it starts with the ELF magic.
    pub elf: bool,
}

impl Transaction<'_> {
    /// Gives `work` a stage for one layer. What it does not complete by [`Stage::put_layer`] is
    /// discarded with the transaction.
    pub fn stage<T>(&self, work: impl FnOnce(&Stage<'_>) -> T) -> io::Result<T> {
        self.stage_directories(DIRECTORIES)?;
        let (queue, waiting) = bounded(QUEUE);
        let objects = Objects {
            transaction: self,
            number: self.new_stage(),
            state: Mutex::default(),
            settled: Condvar::new(),
        };
        thread::scope(|scope| {
            for _ in 0..WRITERS {
                let waiting = waiting.clone();
                Builder::new().spawn_scoped(scope, || objects.write_all(waiting))?;
            }
            drop(waiting);
            // Dropped with its queue at the end, which ends the writers.
            let stage = Stage {
                objects: &objects,
                queue,
            };
            Ok(work(&stage))
        })
    }
}

impl Stage<'_> {
    /// A writer for one content.
    pub fn object_writer(&self) -> StageWriter<'_> {
        StageWriter {
            stage: self,
            content: ContentWriter::new(self.objects.transaction),
        }
    }

    /// Waits until all contents are written; the error of the first that was not. No more may
    /// follow: what the stage needs to take each once is freed.
    pub fn settle(&self) -> Result<(), StoreError> {
        let Objects { state, settled, .. } = self.objects;
        let mut state = state.lock();
        settled.wait_while(&mut state, |state| state.waiting > 0);
        state.claimed = ObjectIds::default();
        state.error.take().map_or(Ok(()), Err)
    }

    /// Opens a content that was settled.
    pub fn open_object(&self, id: ObjectId) -> Result<File, StoreError> {
        let transaction = self.objects.transaction;
        let (dir, name) = transaction.staged_object(self.objects.number, id)?;
        match dir.open(&name)? {
            Some(file) => Ok(file),
            None => transaction.open_object(id),
        }
    }

    /// Forgets a content that was settled and that the layer does not need after all: neither its
    /// tree nor its recipe has it.
    pub fn discard_object(&self, id: ObjectId) -> Result<(), StoreError> {
        let transaction = self.objects.transaction;
        let (dir, name) = transaction.staged_object(self.objects.number, id)?;
        dir.remove(&name)?;
        Ok(())
    }

    /// Completes the layer (see [`Transaction::put_layer`]): the objects that its tree and recipe
    /// need are the transaction's.
    pub fn put_layer(
        &self,
        diff: DiffId,
        tree: Vec<u8>,
        tar_size: u64,
        recipe: &[u8],
    ) -> Result<LayerInfo, StoreError> {
        self.settle()?;
        let State { foreign, bytes, .. } = std::mem::take(&mut *self.objects.state.lock());
        let Objects {
            transaction,
            number,
            ..
        } = self.objects;
        transaction.put_layer_with(diff, tree, tar_size, recipe, |tree, own| {
            let ids = tree.object_ids().chain(own.iter().copied());
            transaction.adopt(*number, ids.filter(|id| !foreign.contains(id)), bytes)
        })
    }

    /// False if the content is claimed already, or the transaction's.
    fn claim(&self, id: ObjectId) -> Result<bool, StoreError> {
        let known = self.objects.transaction.has_staged(id);
        let mut state = self.objects.state.lock();
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        if known || state.foreign.contains(&id) {
            if state.claimed.number(id).is_none() {
                state.foreign.insert(id);
            }
            return Ok(false);
        }
        let claimed = state.claimed.insert(id);
        let (_, is_new) = claimed.ok_or(StoreError::TooManyObjects)?;
        Ok(is_new)
    }
}

impl Objects<'_> {
    /// Writes what comes until the queue is closed; after a failure nothing more.
    fn write_all(&self, queue: Receiver<Waiting>) {
        for Waiting { id, content } in queue {
            let failed = self.state.lock().error.is_some();
            let written = if failed {
                Ok(())
            } else {
                self.place(id, content.len() as u64, |dir, name| {
                    dir.create_with(name, PUBLISHED, &content).map(drop)
                })
                .map(drop)
            };
            let mut state = self.state.lock();
            if let Err(error) = written {
                state.error.get_or_insert(error);
            }
            state.waiting = state.waiting.saturating_sub(1);
            if state.waiting == 0 {
                self.settled.notify_all();
            }
        }
    }

    /// Places a claimed content, by `place` if the store lacks it; whether it did.
    fn place(
        &self,
        id: ObjectId,
        size: u64,
        place: impl FnOnce(&StoreDir, &str) -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        let (dir, name) = self.transaction.staged_object(self.number, id)?;
        let objects = self.transaction.store.objects()?;
        if objects.link(object_name(id), dir, &name)? == LinkOutcome::Linked {
            if self.transaction.is_sound(dir, &name, id, size)? {
                return Ok(false);
            }
            dir.remove(&name)?;
        }
        place(dir, &name)?;
        let mut state = self.state.lock();
        state.bytes = state.bytes.saturating_add(size);
        Ok(true)
    }
}

/// Writes one content of a layer. Dropped before [`StageWriter::finish`], its bytes are discarded
/// with the transaction.
#[derive(Debug)]
pub struct StageWriter<'t> {
    stage: &'t Stage<'t>,
    content: ContentWriter<'t>,
}

impl StageWriter<'_> {
    /// Ends the content. A small one may be written later: [`Stage::settle`] tells how that went.
    pub fn finish(self) -> Result<Staged, StoreError> {
        let Self { stage, content } = self;
        let (id, size, elf, content) = content.finish();
        let staged = Staged { id, elf };
        match content {
            Content::Memory(_) if size == 0 => {}
            Content::Memory(content) => {
                if stage.claim(id)? {
                    stage.objects.state.lock().waiting += 1;
                    // The writers end after the queue is closed.
                    let _closed = stage.queue.send(Waiting { id, content });
                }
            }
            Content::File(stream) => {
                let transaction = stage.objects.transaction;
                let new = stage.claim(id)?
                    && stage.objects.place(id, size, |dir, name| {
                        transaction.dir.rename(&stream, dir, name)
                    })?;
                if !new {
                    transaction.discard(&stream)?;
                }
            }
        }
        Ok(staged)
    }

    /// Appends a hole of `length` zeros.
    pub fn zeros(&mut self, length: u64) -> io::Result<()> {
        self.content.zeros(length)
    }
}

impl io::Write for StageWriter<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.content.write(piece)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transaction<'_> {
    /// Makes the directories of the stages.
    fn stage_directories(&self, count: usize) -> Result<(), StoreError> {
        if self.stages.get().is_some() {
            return Ok(());
        }
        let directories = (0..count)
            .map(|number| {
                let name = format!("objects-{number}");
                self.dir.create_dir(&name, Mode::RWXU)?;
                self.dir.open_dir(&name)
            })
            .collect::<Result<Vec<_>, _>>()?;
        // Another thread may have been first, with the same directories.
        self.stages.get_or_init(|| directories);
        Ok(())
    }

    /// Where a stage's object is, and its name there.
    pub(super) fn staged_object(
        &self,
        number: StageNumber,
        id: ObjectId,
    ) -> Result<(&StoreDir, String), StoreError> {
        let StageNumber(stage) = number;
        if stage == 0 {
            return Ok((&self.dir, id.to_string()));
        }
        let [first, ..] = id.as_bytes();
        let directories = self.stages.get().map(Vec::as_slice).unwrap_or_default();
        let dir = directories
            .get(usize::from(*first) % directories.len().max(1))
            .ok_or(StoreError::NoObject(id))?;
        Ok((dir, format!("{id}-{stage}")))
    }
}
