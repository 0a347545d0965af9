//! Sweeping: moves garbage to the trash in slices, each under the store's exclusive lock.

use std::ffi::OsStr;

use super::super::dir::StoreDir;
use super::super::layer::merged_name;
use super::super::transaction::Dead;
use super::super::{Locked, Store, StoreError, object_name, remove_tree};
use super::mark::Marked;
use super::scan::{Garbage, What};
use super::{GcReport, Plan};
use crate::digest::ObjectId;

/// Removals per hold of the lock: a start waits for a few milliseconds at most.
pub(in super::super) const SLICE: usize = 256;

/// How often a slice marks news without the lock before it does with it: a stream of new images
/// must not starve gc.
const PATIENCE: u32 = 8;

/// A sweep at rest between two slices.
pub(in super::super) struct Sweep<'s> {
    store: &'s Store,
    marked: Marked,
    rest: std::vec::IntoIter<Garbage>,
    /// The directory of the last object, with its name.
    fan_out: Option<(String, StoreDir)>,
    trash: Trash,
    report: GcReport,
    /// [`SLICE`].
    pub(in super::super) slice: usize,
}

/// One gc's directory in the trash. The holder of its flock deletes it.
struct Trash {
    dir: StoreDir,
    name: Box<OsStr>,
    moved: u64,
}

impl Trash {
    /// Moves a file or a directory into the trash; false if there was none. If a full disk has no
    /// space for the new name, deletes it at once.
    fn take(&mut self, from: &StoreDir, name: impl AsRef<OsStr>) -> Result<bool, StoreError> {
        self.moved += 1;
        match from.rename(&name, &self.dir, self.moved.to_string()) {
            Ok(()) => Ok(true),
            Err(StoreError::NoSpace { .. }) => remove_tree(from, name),
            Err(_) if from.stat(&name)?.is_none() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl<'s> Sweep<'s> {
    pub(in super::super) fn new(store: &'s Store, plan: Plan) -> Result<Self, StoreError> {
        let (name, dir) = store.new_trash()?;
        Ok(Self {
            store,
            marked: plan.marked,
            rest: plan.garbage.into_iter(),
            fan_out: None,
            trash: Trash {
                dir,
                name,
                moved: 0,
            },
            report: plan.report,
            slice: SLICE,
        })
    }

    /// Moves all garbage.
    pub(super) fn run(&mut self) -> Result<(), StoreError> {
        while self.slice()? {}
        Ok(())
    }

    /// Moves the next garbage, as much as one slice may; false if no more is left.
    pub(in super::super) fn slice(&mut self) -> Result<bool, StoreError> {
        let _lock = self.lock_with_all_marked()?;
        for _ in 0..self.slice {
            let Some(garbage) = self.rest.next() else {
                return Ok(false);
            };
            // It may have been marked since the scan.
            if self.marked.is_garbage(&garbage.what) && self.take(&garbage.what)? {
                self.report.count(&garbage);
            }
        }
        Ok(!self.rest.as_slice().is_empty())
    }

    /// The store's exclusive lock, with everything marked that the roots reach now.
    fn lock_with_all_marked(&mut self) -> Result<Locked, StoreError> {
        for _ in 0..PATIENCE {
            let lock = self.store.lock_exclusive()?;
            let news = self.marked.news(self.store)?;
            if news.is_empty() {
                return Ok(lock);
            }
            drop(lock);
            self.marked.absorb(self.store, news)?;
        }
        let lock = self.store.lock_exclusive()?;
        let news = self.marked.news(self.store)?;
        self.marked.absorb(self.store, news)?;
        Ok(lock)
    }

    fn take(&mut self, what: &What) -> Result<bool, StoreError> {
        let store = self.store;
        match what {
            // A load may have replaced its pin by a new one of the same name.
            What::Pin(name) if store.is_pin_held(name)? => Ok(false),
            What::Pin(name) => remove_tree(store.pin_files()?, name),
            What::Merged(chain) => self.trash.take(store.merged_trees()?, merged_name(*chain)),
            What::Layer(diff) => self.trash.take(store.layers()?, diff.0.hex()),
            What::Object(id) => self.take_object(*id),
            What::Blob(digest) => self.trash.take(store.blobs()?, digest.hex()),
        }
    }

    fn take_object(&mut self, id: ObjectId) -> Result<bool, StoreError> {
        let name = object_name(id);
        let Some((fan_out, name)) = name.split_once('/') else {
            return Ok(false);
        };
        let dir = match self.fan_out.take() {
            Some((last, dir)) if last == fan_out => dir,
            _ => self.store.objects()?.open_dir(fan_out)?,
        };
        let taken = self.trash.take(&dir, name);
        self.fan_out = Some((fan_out.to_owned(), dir));
        taken
    }

    /// What was freed, and the directory with it, which is to be deleted.
    pub(in super::super) fn finish(self) -> (GcReport, Dead) {
        let mut report = self.report;
        report.damaged = self.marked.into_damaged();
        (report, (self.trash.name, Some(self.trash.dir)))
    }
}

impl GcReport {
    /// Counts one thing removed.
    pub(super) fn count(&mut self, garbage: &Garbage) {
        self.disk += garbage.disk;
        match garbage.what {
            What::Pin(_) => self.pins += 1,
            What::Merged(_) => self.merged.add(garbage.bytes),
            What::Layer(_) => self.layers.add(garbage.bytes),
            What::Object(_) => self.objects.add(garbage.bytes),
            What::Blob(_) => self.blobs.add(garbage.bytes),
        }
    }
}
