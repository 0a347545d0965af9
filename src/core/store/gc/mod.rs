//! `gc`: marks from the roots, moves everything unreachable to `trash/`, deletes it.
//!
//! Invariant: what a slice moves is reachable from no tag and no live pin. A gc marks and scans
//! without the store's lock; a slice takes it exclusively, and moves at most [`sweep::SLICE`] files
//! after it has seen that each root, and each layer that a running load may replace, is still the
//! one that was marked. What is new is marked first, without the lock. So a start waits for one
//! slice at most, however much there is to mark or to free.
//!
//! The sweep takes merged trees, layers, objects, blobs in this order: a layer that can still be
//! pinned has its objects, a killed gc leaves no tree whose objects are gone, and the next gc
//! deletes what it moved. An unreadable tag or pin stops the whole sweep, an unreadable reachable
//! layer the sweep of objects: what they reference is unknown.
//!
//! A moved file is gone for an import that begins later: that writes it again. One that began
//! earlier has a link of its own, and brings the file back when it publishes (transaction.rs).
//!
//! If all is as a gc saw it that found nothing to free, neither marking nor scanning is needed
//! ([`clean`]).
//!
//! ```text
//! mark    roots -> reachable layers, objects, blobs     scan   all files -> garbage, with sizes
//! sweep   garbage -> trash/, in slices                  disk   disk space, each inode once
//! ```

mod clean;
mod disk;
mod mark;
mod scan;
mod sweep;

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;

pub(super) use self::clean::{CLEAN, SETTLED};
use self::disk::Disk;
use self::mark::{Marked, is_dropped};
use self::scan::Garbage;
pub(super) use self::sweep::Sweep;
use super::dir::StoreDir;
use super::transaction::{Dead, try_flock};
use super::usage::Count;
use super::{Store, StoreError, random_name, remove_tree};

/// The result of [`Store::gc`], or what one would do.
#[derive(Debug, Default)]
pub struct GcReport {
    /// Objects removed.
    pub objects: Count,
    /// Layers; the bytes are their trees', recipes' and records'.
    pub layers: Count,
    /// Cached merged trees.
    pub merged: Count,
    /// Manifests, configurations, compressed layers.
    pub blobs: Count,
    /// Pins of mounts and loads that are gone.
    pub pins: u64,
    /// What loads and gcs that died left in `tmp/` and `trash/`.
    pub leftovers: u64,
    /// The disk space of all that, as `du` counts: directories too, and nothing for a file that
    /// has another link.
    pub disk: u64,
    /// Tags, pins and layers that could not be read, which limited the sweep.
    pub damaged: Vec<StoreError>,
}

impl GcReport {
    /// Bytes freed, as `du --apparent-size` counts.
    pub fn bytes(&self) -> u64 {
        self.objects.bytes + self.layers.bytes + self.merged.bytes + self.blobs.bytes
    }
}

/// What a gc found.
pub(super) struct Plan {
    marked: Marked,
    /// In the order of the sweep.
    garbage: Vec<Garbage>,
    /// Of what died: leftovers, and their disk space.
    report: GcReport,
}

#[cfg(test)]
impl Plan {
    /// These marks with the garbage that they leave by now.
    pub(super) fn scanned_again(mut self, store: &Store) -> Self {
        self.garbage = store.scan(&self.marked, &mut Disk::default()).unwrap();
        self
    }
}

impl Store {
    /// Removes everything that no tag and no live pin reaches.
    ///
    /// Locking: one gc runs at a time. It holds the store's lock exclusively for a slice of at most
    /// [`sweep::SLICE`] moves, and not at all if there is nothing to free.
    pub fn gc(&self) -> Result<GcReport, StoreError> {
        self.check_writable()?;
        let (dead, report) = {
            let _alone = self.lock_gc()?;
            let mut dead = self.dead_trash()?;
            let report = self.collect(&mut dead);
            (dead, report)
        };
        // Also if the sweep failed half-way: a later gc would have to find it.
        for (name, _locked) in &dead {
            remove_tree(self.trash()?, name)?;
        }
        report
    }

    /// What [`Store::gc`] would free now, were these pins gone.
    pub fn gc_plan(&self, dropped_pins: &[String]) -> Result<GcReport, StoreError> {
        let _alone = self.lock_gc()?;
        let dead = self.dead_trash()?;
        if self.is_known_clean(|pin| is_dropped(pin, dropped_pins)) {
            return self.leftovers(&dead, &mut Disk::default());
        }
        let Plan {
            marked,
            garbage,
            mut report,
        } = self.plan(&dead, dropped_pins)?;
        for item in garbage {
            report.count(&item);
        }
        report.damaged = marked.into_damaged();
        Ok(report)
    }

    /// Marks, scans and sweeps. What is moved joins `dead`.
    fn collect(&self, dead: &mut Vec<Dead>) -> Result<GcReport, StoreError> {
        if self.is_known_clean(|_| false) {
            let report = self.leftovers(dead, &mut Disk::default());
            self.remove_dead_transactions()?;
            return report;
        }
        let before = self.before_marking()?;
        let plan = self.plan(dead, &[])?;
        self.remove_dead_transactions()?;
        if plan.garbage.is_empty() {
            // One that frees disk space says how much, to the byte: it writes nothing.
            if plan.report.leftovers == 0 && plan.marked.is_whole() {
                self.record_clean(before, &plan.marked)?;
            }
            let mut report = plan.report;
            report.damaged = plan.marked.into_damaged();
            return Ok(report);
        }
        // A root removed without a sync can reappear after a power cut: its files must still exist
        // then.
        rustix::fs::syncfs(&self.root)
            .map_err(|errno| StoreError::io("sync", self.root(), errno))?;
        let mut sweep = Sweep::new(self, plan)?;
        let swept = sweep.run();
        let (report, trash) = sweep.finish();
        dead.push(trash);
        swept.map(|()| report)
    }

    /// Marks and scans. `dead` is what is to be deleted in `trash/`; `dropped_pins` count as
    /// garbage.
    pub(super) fn plan(&self, dead: &[Dead], dropped_pins: &[String]) -> Result<Plan, StoreError> {
        let mut disk = Disk::default();
        let report = self.leftovers(dead, &mut disk)?;
        let mut marked = Marked::new(dropped_pins);
        let news = marked.news(self)?;
        marked.absorb(self, news)?;
        let garbage = self.scan(&marked, &mut disk)?;
        Ok(Plan {
            marked,
            garbage,
            report,
        })
    }

    /// What loads and gcs that died left.
    fn leftovers(&self, dead: &[Dead], disk: &mut Disk) -> Result<GcReport, StoreError> {
        let mut report = GcReport::default();
        for (dir, dead) in [
            (self.trash()?, dead),
            (self.tmp()?, &self.dead_transactions()?),
        ] {
            for (name, opened) in dead {
                report.leftovers += 1;
                report.disk += disk.below(dir, name, opened.as_ref())?;
            }
        }
        Ok(report)
    }

    /// The flock of `trash/`. One gc runs at a time: what is marked and not yet moved changes by no
    /// other.
    fn lock_gc(&self) -> Result<StoreDir, StoreError> {
        // A descriptor of its own: a lock belongs to one.
        self.trash()?;
        let trash = self.root.open_dir("trash")?;
        let interrupt = self.interrupt.as_ref().map(OwnedFd::as_fd);
        crate::sys::lock::lock(&trash, FlockOperation::LockExclusive, interrupt)
            .map_err(|errno| StoreError::io("lock", trash.path(), errno))?;
        Ok(trash)
    }

    /// What killed gcs left in the trash, and foreign files there. The caller holds gc's lock, so
    /// no directory is between mkdir and flock.
    fn dead_trash(&self) -> Result<Vec<Dead>, StoreError> {
        let trash = self.trash()?;
        let mut dead = Vec::new();
        for name in trash.names()? {
            match trash.open_dir_if_exists(&name) {
                Ok(Some(dir)) if try_flock(&dir)? => dead.push((name, Some(dir))),
                Ok(_) => {}
                // Not a directory, or one that a gc did not make: those are readable.
                Err(error)
                    if matches!(
                        error.errno(),
                        Some(Errno::NOTDIR | Errno::LOOP | Errno::ACCESS)
                    ) =>
                {
                    dead.push((name, None));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(dead)
    }

    /// A new, locked directory in the trash. The caller holds gc's lock.
    fn new_trash(&self) -> Result<(Box<OsStr>, StoreDir), StoreError> {
        let name = random_name()?;
        self.trash()?.create_dir(&name, Mode::RWXU)?;
        let dir = self.trash()?.open_dir(&name)?;
        try_flock(&dir)?;
        Ok((OsString::from(name).into(), dir))
    }
}
