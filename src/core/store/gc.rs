//! Removing what nothing keeps: mark from the roots, move the rest to `trash/`, delete it.
//!
//! Invariant: under the exclusive lock, what is not reachable from a tag or a live pin belongs to no one. Things go
//! in the order merged trees, layers, objects, blobs: a gc that is killed leaves no tree in place whose objects it took,
//! and what it moved is deleted by the next. While a tag or pin cannot be read nothing is swept, and while a layer that is
//! kept cannot be read no object is, since what they keep is unknown.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};

use rustix::fs::{FileType, Mode};

use super::dir::Dir;
use super::layer::{TREE, TREE_SUFFIX, open_layer, read_recipe_objects};
use super::roots::Reachable;
use super::transaction::try_flock;
use super::usage::Count;
use super::{Store, StoreError, from_hex, random_name, remove_tree};
use crate::digest::{ChainId, DiffId, ObjectId};

/// What a gc removed.
#[derive(Debug, Default)]
pub struct GcReport {
    /// Contents.
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
    /// What could not be read, so that what it keeps was not freed.
    pub damaged: Vec<StoreError>,
}

impl GcReport {
    /// Bytes freed, as `du --apparent-size` counts.
    pub fn bytes(&self) -> u64 {
        self.objects.bytes + self.layers.bytes + self.merged.bytes + self.blobs.bytes
    }
}

/// One gc's directory in the trash, flock'ed: whoever has it deletes it.
struct Trash {
    dir: Dir,
    name: Box<OsStr>,
    moved: u64,
}

impl Trash {
    /// Moves a file or a directory out of the way. A full disk may have no room for one more name; there it is deleted at
    /// once, which is what makes room.
    fn take(&mut self, from: &Dir, name: &OsStr) -> Result<(), StoreError> {
        self.moved += 1;
        match from.rename(name, &self.dir, self.moved.to_string()) {
            Err(StoreError::NoSpace { .. }) => remove_tree(from, name).map(drop),
            moved => moved,
        }
    }
}

impl Store {
    /// Removes what no tag and no live pin keeps.
    ///
    /// Locking: holds the store's lock exclusively while it marks and moves; deleting happens after.
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
                // A root that was removed without a sync could come back after a power cut, and then must find its things.
                rustix::fs::syncfs(&self.root)
                    .map_err(|errno| StoreError::io("sync", self.root(), errno))?;
                let mut own = self.new_trash()?;
                let swept = self.sweep(&reachable, objects.as_ref(), &mut own, &mut report);
                trash.push(own);
                swept
            } else {
                Ok(())
            };
            (trash, swept)
        };
        // What was moved goes also where not all could be.
        for Trash { name, .. } in &trash {
            remove_tree(&self.trash, name)?;
        }
        swept.map(|()| report)
    }

    /// The objects of all reachable layers; None when one of the layers can't be read.
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
                // A load that is on its way has not come to it.
                Ok(None) if !reachable.complete.contains(diff) => {}
                Ok(None) => damaged.push(StoreError::NoLayer(*diff)),
                Err(error) => damaged.push(error),
            }
        }
        (damaged.len() == before).then_some(objects)
    }

    fn objects_kept_by(&self, diff: DiffId) -> Result<Option<Vec<ObjectId>>, StoreError> {
        let Some(dir) = self.layers.sub_if_there(diff.0.hex())? else {
            return Ok(None);
        };
        let tree = open_layer(&dir, diff)?.ok_or(StoreError::NoLayer(diff))?;
        // As a whole: a damaged tree could hide an object that an image needs.
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
            &self.merged,
            |name| chain(name).is_some_and(|id| !reachable.chains.contains(&id)),
            trash,
            &mut report.merged,
        )?;
        let layer = |name: &str| from_hex(name).map(DiffId);
        sweep_dir(
            &self.layers,
            |name| layer(name).is_some_and(|id| !reachable.layers.contains(&id)),
            trash,
            &mut report.layers,
        )?;
        if let Some(objects) = objects {
            for fan_out in self.fan_outs()? {
                let dir = self.objects.sub(&fan_out)?;
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
            &self.blobs,
            |name| from_hex(name).is_some_and(|id| !reachable.blobs.contains(&id)),
            trash,
            &mut report.blobs,
        )
    }

    /// What killed ones left. The caller holds the exclusive lock, so none is between being made and being flock'ed.
    fn dead_trash(&self) -> Result<Vec<Trash>, StoreError> {
        let mut dead = Vec::new();
        for name in self.trash.names()? {
            if let Some(dir) = self.trash.sub_if_there(&name)?
                && try_flock(&dir)?
            {
                let moved = 0;
                dead.push(Trash { dir, name, moved });
            }
        }
        Ok(dead)
    }

    /// A new directory in the trash. The caller holds the exclusive lock.
    fn new_trash(&self) -> Result<Trash, StoreError> {
        let name = random_name()?;
        self.trash.make(&name, Mode::RWXU)?;
        let dir = self.trash.sub(&name)?;
        try_flock(&dir)?;
        Ok(Trash {
            dir,
            name: OsString::from(name).into(),
            moved: 0,
        })
    }
}

/// Moves what is ours and not kept. A stray name is left alone: `check` reports it, its owner knows what it is.
fn sweep_dir(
    dir: &Dir,
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
            FileType::Directory => dir.sub(&name)?.stat(TREE)?.map_or(0, |tree| tree.size),
            _ => meta.size,
        };
        trash.take(dir, &name)?;
        count.add(bytes);
    }
    Ok(())
}
