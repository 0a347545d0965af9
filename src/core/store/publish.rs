//! Publishing a transaction: what it staged gets its final names (see [`crate::store`] for the
//! order).

use rustix::fs::FileType;
use rustix::io::Errno;

use super::dir::StoreDir;
use super::transaction::Staged;
use super::{StoreError, Tag, Transaction, create_fan_outs, object_name};
use crate::digest::ObjectId;

impl Transaction<'_> {
    /// Publishes everything staged, then the tags (see [`crate::store`] for the order). An image
    /// that loses its last name stays by its id; an untagged image gets no record of its own while
    /// a name keeps it.
    ///
    /// After an error before the first tag, nothing refers to files already in place: gc removes
    /// them.
    ///
    /// Locking: holds the store's lock shared while it renames.
    pub fn publish(self, tags: &[Tag]) -> Result<(), StoreError> {
        // Tags are written first: an invalid tag or a full disk fails before anything moves.
        let staged = self.stage_tags(tags)?;
        self.sync_all()?;
        let _lock = self.store.lock_shared()?;
        self.place(&std::mem::take(&mut *self.staged.lock()))?;
        // Also for objects found present: their publisher may not have reached its second sync.
        self.sync_all()?;
        if tags.is_empty() {
            return Ok(());
        }
        self.publish_tags(&staged)
    }

    /// Publishes complete layers once [`PUBLISH_EARLY`] bytes were written; the pin keeps them and
    /// their blobs. What other threads stage meanwhile waits for the next time: it is not synced.
    pub(super) fn publish_early(&self) -> Result<(), StoreError> {
        let staged = {
            let mut staged = self.staged.lock();
            if staged.bytes < self.publish_early_after {
                return Ok(());
            }
            std::mem::take(&mut *staged)
        };
        let layers: Vec<_> = staged.layers.iter().copied().collect();
        let blobs: Vec<_> = staged.blobs.iter().copied().collect();
        self.extend_pin(&layers, &blobs)?;
        self.sync_all()?;
        let _lock = self.store.lock_shared()?;
        self.place(&staged)
    }

    /// Renames what was staged into place, referenced files first. The caller holds the store's
    /// lock.
    fn place(&self, staged: &Staged) -> Result<(), StoreError> {
        let store = self.store;
        // In order: files of one directory come one after the other.
        let mut objects: Vec<_> = staged.objects.iter().collect();
        objects.sort_unstable_by_key(|(id, _)| *id);
        self.heal_fan_outs(objects.iter().map(|(id, _)| *id))?;
        for (id, stage) in objects {
            let (dir, name) = self.staged_object(stage, id)?;
            self.put(dir, &name, store.objects()?, &object_name(id))?;
        }
        for diff in &staged.layers {
            self.publish_layer(*diff)?;
        }
        for chain in &staged.merged {
            let name = super::layer::merged_name(*chain);
            self.put(&self.dir, &name, store.merged_trees()?, &name)?;
        }
        for digest in &staged.blobs {
            let name = digest.hex();
            self.put(&self.dir, &name, store.blobs()?, &name)?;
        }
        Ok(())
    }

    /// Makes the directories of these objects again where they are missing. Anything else of their
    /// names is damage and is moved away.
    fn heal_fan_outs(&self, ids: impl Iterator<Item = ObjectId>) -> Result<(), StoreError> {
        let objects = self.store.objects()?;
        let mut last = String::new();
        for id in ids {
            let mut fan_out = id.to_string();
            fan_out.truncate(2);
            if fan_out == last {
                continue;
            }
            match objects.stat(&fan_out)?.map(|meta| meta.file_type) {
                Some(FileType::Directory) => {}
                None => create_fan_outs(objects)?,
                Some(_) => {
                    match objects.rename(&fan_out, &self.dir, self.temporary()) {
                        // Another transaction did so.
                        Err(error) if error.errno() == Some(Errno::NOENT) => {}
                        moved => moved?,
                    }
                    create_fan_outs(objects)?;
                }
            }
            last = fan_out;
        }
        Ok(())
    }

    /// Renames a file into place. A directory of that name is damage and is moved away.
    fn put(&self, dir: &StoreDir, from: &str, to: &StoreDir, name: &str) -> Result<(), StoreError> {
        match dir.rename(from, to, name) {
            Err(error) if error.errno() == Some(Errno::ISDIR) => {
                to.rename(name, &self.dir, self.temporary())?;
                dir.rename(from, to, name)
            }
            done => done,
        }
    }

    fn sync_all(&self) -> Result<(), StoreError> {
        self.store.root.sync_all(&self.sync)
    }
}
