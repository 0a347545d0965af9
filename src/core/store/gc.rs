//! `gc`: marks from the roots, moves everything unreachable to `trash/`, deletes it.
//!
//! Invariant: under the exclusive lock, anything not reachable from a tag or a live pin is
//! garbage. The sweep takes merged trees, layers, objects, blobs in this order: a killed gc leaves
//! no tree whose objects are gone, and the next gc deletes what it moved. An unreadable tag or pin
//! stops the whole sweep, an unreadable reachable layer the sweep of objects: what they reference
//! is unknown.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use super::dir::StoreDir;
use super::layer::{TREE, TREE_SUFFIX, open_layer, read_recipe_objects};
use super::roots::Reachable;
use super::transaction::try_flock;
use super::usage::Count;
use super::{Store, StoreError, from_hex, random_name, remove_tree};
use crate::digest::{ChainId, DiffId, ObjectId};

/// The result of [`Store::gc`].
#[derive(Debug, Default)]
pub struct GcReport {
    /// Objects removed.
    pub objects: Count,
    /// Layers; the bytes are their trees'.
    pub layers: Count,
    /// Cached merged trees.
    pub merged: Count,
    /// Manifests, configurations, compressed layers.
    pub blobs: Count,
    /// Pins of mounts and loads that are gone.
    pub pins: u64,
    /// Directories of transactions that died.
    pub transactions: u64,
    /// Tags, pins and layers that could not be read, which limited the sweep.
    pub damaged: Vec<StoreError>,
}

impl GcReport {
    /// Bytes freed, as `du --apparent-size` counts.
    pub fn bytes(&self) -> u64 {
        self.objects.bytes + self.layers.bytes + self.merged.bytes + self.blobs.bytes
    }
}

/// One gc's directory in the trash. The holder of its flock deletes it.
struct Trash {
    dir: StoreDir,
    name: Box<OsStr>,
    moved: u64,
}

/// What is to be deleted in `trash/`, locked if it is a directory that can be opened.
type Dead = (Box<OsStr>, Option<StoreDir>);

impl Trash {
    /// Moves a file or a directory into the trash. If a full disk has no space for the new name,
    /// deletes it at once.
    fn take(&mut self, from: &StoreDir, name: &OsStr) -> Result<(), StoreError> {
        self.moved += 1;
        match from.rename(name, &self.dir, self.moved.to_string()) {
            Err(StoreError::NoSpace { .. }) => remove_tree(from, name).map(drop),
            moved => moved,
        }
    }
}

impl Store {
    /// Removes everything that no tag and no live pin reaches.
    ///
    /// Locking: holds the store's lock exclusively while it marks and moves, not while it deletes.
    pub fn gc(&self) -> Result<GcReport, StoreError> {
        self.check_writable()?;
        let mut report = GcReport::default();
        let (trash, swept) = {
            let _lock = self.lock_exclusive()?;
            let mut trash = self.dead_trash()?;
            report.transactions = self.remove_dead_transactions()?;
            report.pins = self.remove_stale_pins()?;
            let (roots, damaged) = self.roots()?;
            report.damaged = damaged;
            let swept = if report.damaged.is_empty() {
                let reachable = Reachable::of(&roots);
                let objects = self.mark(&reachable, &mut report.damaged);
                // A root removed without a sync can reappear after a power cut: its files must
                // still exist then.
                rustix::fs::syncfs(&self.root)
                    .map_err(|errno| StoreError::io("sync", self.root(), errno))?;
                let mut own = self.new_trash()?;
                let swept = self.sweep(&reachable, objects.as_ref(), &mut own, &mut report);
                trash.push((own.name, Some(own.dir)));
                swept
            } else {
                Ok(())
            };
            (trash, swept)
        };
        // Delete what was moved even if the sweep failed.
        for (name, _locked) in &trash {
            remove_tree(self.trash()?, name)?;
        }
        swept.map(|()| report)
    }

    /// The objects of all reachable layers; None if a layer cannot be read.
    fn mark(
        &self,
        reachable: &Reachable,
        damaged: &mut Vec<StoreError>,
    ) -> Option<HashSet<ObjectId>> {
        let mut objects = HashSet::new();
        let before = damaged.len();
        for diff in &reachable.layers {
            match self.objects_kept_by(*diff) {
                Ok(Some(kept)) => objects.extend(kept),
                // A running load has not published it yet.
                Ok(None) if !reachable.complete.contains(diff) => {}
                Ok(None) => damaged.push(StoreError::NoLayer(*diff)),
                Err(error) => damaged.push(error),
            }
        }
        (damaged.len() == before).then_some(objects)
    }

    pub(super) fn objects_kept_by(
        &self,
        diff: DiffId,
    ) -> Result<Option<Vec<ObjectId>>, StoreError> {
        let Some(dir) = self.layers()?.open_dir_if_exists(diff.0.hex())? else {
            return Ok(None);
        };
        let tree = open_layer(&dir, diff)?.ok_or(StoreError::NoLayer(diff))?;
        // Verified as a whole: a damaged tree could hide an object that an image needs.
        tree.verify().map_err(|source| StoreError::Tree {
            path: dir.join(TREE),
            source,
        })?;
        let mut objects = read_recipe_objects(&dir, diff)?.unwrap_or_default();
        objects.extend(tree.object_ids());
        Ok(Some(objects))
    }

    fn sweep(
        &self,
        reachable: &Reachable,
        objects: Option<&HashSet<ObjectId>>,
        trash: &mut Trash,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        let chain = |name: &str| from_hex(name.strip_suffix(TREE_SUFFIX)?).map(ChainId);
        sweep_dir(
            self.merged_trees()?,
            |name| chain(name).is_some_and(|id| !reachable.chains.contains(&id)),
            trash,
            &mut report.merged,
        )?;
        let layer = |name: &str| from_hex(name).map(DiffId);
        sweep_dir(
            self.layers()?,
            |name| layer(name).is_some_and(|id| !reachable.layers.contains(&id)),
            trash,
            &mut report.layers,
        )?;
        if let Some(objects) = objects {
            for fan_out in self.fan_outs()? {
                let dir = self.objects()?.open_dir(&fan_out)?;
                let object = |name: &str| format!("{fan_out}{name}").parse().ok();
                sweep_dir(
                    &dir,
                    |name| object(name).is_some_and(|id| !objects.contains(&id)),
                    trash,
                    &mut report.objects,
                )?;
            }
        }
        sweep_dir(
            self.blobs()?,
            |name| from_hex(name).is_some_and(|id| !reachable.blobs.contains(&id)),
            trash,
            &mut report.blobs,
        )
    }

    /// What killed gcs left in the trash, and foreign files there. The caller holds the exclusive
    /// lock, so no directory is between mkdir and flock.
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

    /// A new directory in the trash. The caller holds the exclusive lock.
    fn new_trash(&self) -> Result<Trash, StoreError> {
        let name = random_name()?;
        self.trash()?.create_dir(&name, Mode::RWXU)?;
        let dir = self.trash()?.open_dir(&name)?;
        try_flock(&dir)?;
        Ok(Trash {
            dir,
            name: OsString::from(name).into(),
            moved: 0,
        })
    }
}

/// Moves the store's unreachable files of one directory. Foreign names stay: `check` reports them.
fn sweep_dir(
    dir: &StoreDir,
    unreachable: impl Fn(&str) -> bool,
    trash: &mut Trash,
    count: &mut Count,
) -> Result<(), StoreError> {
    for name in dir.names()? {
        if !name.to_str().is_some_and(&unreachable) {
            continue;
        }
        let Some(meta) = dir.stat(&name)? else {
            continue;
        };
        let bytes = match meta.file_type {
            FileType::Directory => dir.open_dir(&name)?.stat(TREE)?.map_or(0, |tree| tree.size),
            _ => meta.size,
        };
        trash.take(dir, &name)?;
        count.add(bytes);
    }
    Ok(())
}
