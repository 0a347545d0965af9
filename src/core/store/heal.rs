//! Healing: what a check found damaged is made again, from the store itself or from another one.
//! `image::repair` does the same from archives and blobs.
//!
//! Invariant: nothing becomes part of the store that has not the digest its name says, and nothing
//! that is whole is replaced. What cannot be healed stays as it is: the next check names it.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::Mode;

use super::check::{CheckReport, Damage, Problem};
use super::layer::RECIPE_LIMIT;
use super::transaction::copy;
use super::{
    DIRECTORIES, ROOTS, Store, StoreError, Tag, Transaction, Trust, create_fan_outs, object_name,
};
use crate::digest::{ChainId, DiffId, ObjectId, Sha256Digest};
use crate::recipe::Recipe;

impl Store {
    /// Repairs what needs nothing but the store: modes, missing directories, records of layers.
    pub fn repair_from_store(&self, found: &CheckReport) -> Result<(), StoreError> {
        self.check_writable()?;
        for problem in &found.problems {
            if let Problem::Mode { path, expected, .. } = problem {
                rustix::fs::chmod(path, Mode::from_raw_mode(*expected))
                    .map_err(|errno| StoreError::io("set the mode of", path, errno))?;
            }
        }
        for name in DIRECTORIES {
            if !ROOTS.contains(&name) && self.root.stat(name)?.is_none() {
                self.directory(name)?;
            }
        }
        if let Ok(objects) = self.objects() {
            create_fan_outs(objects)?;
        }
        self.heal_from(self, &found.damage)
    }

    /// Heals layers, blobs and tags with those of another store.
    pub fn heal_from(&self, other: &Self, damage: &Damage) -> Result<(), StoreError> {
        self.check_writable()?;
        for diff in &damage.layers {
            self.heal_layer(other, *diff, damage)?;
        }
        for digest in &damage.blobs {
            self.heal_blob(other, *digest)?;
        }
        for name in &damage.tags {
            if let Ok(Some(tag)) = other.read_tag(name) {
                self.heal_tag(other, &tag, damage)?;
            }
        }
        Ok(())
    }

    /// Makes the merged trees again that are damaged, where their layers are whole.
    pub fn heal_merged(&self, damage: &Damage) -> Result<(), StoreError> {
        if damage.merged.is_empty() {
            return Ok(());
        }
        let (roots, _unreadable) = self.roots()?;
        for layers in roots.iter().flat_map(|root| &root.stacks) {
            if !damage.merged.contains(&ChainId::of(layers)) {
                continue;
            }
            let transaction = self.begin()?;
            if transaction.put_merged(layers).is_ok() {
                transaction.publish(&[])?;
            }
        }
        Ok(())
    }

    /// Whether the layer is whole now.
    fn heal_layer(&self, other: &Self, diff: DiffId, damage: &Damage) -> Result<bool, StoreError> {
        let transaction = self.begin_with(Trust::Hash)?;
        match self.stage_layer_of(other, diff, damage, &transaction) {
            Ok(true) => transaction.publish(&[]).map(|()| true),
            Err(error @ StoreError::NoSpace { .. }) => Err(error),
            // The other store has no such layer, or a damaged one.
            Ok(false) | Err(_) => Ok(false),
        }
    }

    /// Takes a layer of another store, with the objects that are damaged or missing here. False if
    /// the other has not all of it.
    fn stage_layer_of(
        &self,
        other: &Self,
        diff: DiffId,
        damage: &Damage,
        transaction: &Transaction<'_>,
    ) -> Result<bool, StoreError> {
        let Some(objects) = other.objects_kept_by(diff)? else {
            return Ok(false);
        };
        transaction.keep_layers(&[diff])?;
        for id in objects {
            let is_here = self.objects()?.stat(object_name(id))?.is_some();
            if (damage.objects.contains(&id) || !is_here) && !take_object(other, id, transaction)? {
                return Ok(false);
            }
        }
        let Some(tree) = other.layer_tree(diff)? else {
            return Ok(false);
        };
        let Some(file) = other.layer_recipe(diff)? else {
            return Ok(false);
        };
        let path = other.layers()?.join(diff.0.hex());
        let mut recipe = Vec::new();
        file.take(RECIPE_LIMIT)
            .read_to_end(&mut recipe)
            .map_err(|source| StoreError::io("read", path, source))?;
        let of_record = other.layer_info(diff).ok().flatten();
        let of_recipe = || Some(Recipe::open(&recipe).ok()?.tar_bytes());
        let Some(tar_size) = of_record.map(|info| info.tar_size).or_else(of_recipe) else {
            return Ok(false);
        };
        transaction.put_layer(diff, tree.into_bytes(), tar_size, &recipe)?;
        Ok(true)
    }

    fn heal_blob(&self, other: &Self, digest: Sha256Digest) -> Result<(), StoreError> {
        match other.open_blob(digest) {
            Ok(file) => self.heal_blob_from(file, &other.blob_path(digest), digest),
            Err(_unreadable) => Ok(()),
        }
    }

    /// Takes a blob from a file at this path. One that has other bytes changes nothing.
    pub fn heal_blob_from(
        &self,
        mut file: File,
        path: &Path,
        digest: Sha256Digest,
    ) -> Result<(), StoreError> {
        let transaction = self.begin_with(Trust::Hash)?;
        let mut writer = transaction.blob_writer()?;
        copy(&mut file, &mut writer).map_err(|source| StoreError::io("copy", path, source))?;
        if writer.finish()?.0 == digest {
            transaction.publish(&[])?;
        }
        Ok(())
    }

    /// Takes the tag of a name whose own tag cannot be read, and what it needs.
    fn heal_tag(&self, other: &Self, tag: &Tag, damage: &Damage) -> Result<(), StoreError> {
        for diff in tag.layers() {
            if self.layer_tree(diff).ok().flatten().is_none() {
                self.heal_layer(other, diff, damage)?;
            }
        }
        for blob in tag.blobs() {
            if self.open_blob(blob).is_err() {
                self.heal_blob(other, blob)?;
            }
        }
        match self.tag(tag) {
            Err(StoreError::NoLayer(_) | StoreError::NoBlob(_)) => Ok(()),
            tagged => tagged,
        }
    }
}

/// Copies an object of another store; false if it has none with this digest.
fn take_object(
    other: &Store,
    id: ObjectId,
    transaction: &Transaction<'_>,
) -> Result<bool, StoreError> {
    let Ok(mut file) = other.open_object(id) else {
        return Ok(false);
    };
    let mut writer = transaction.object_writer();
    copy(&mut file, &mut writer)
        .map_err(|source: io::Error| StoreError::io("copy", other.object_path(id), source))?;
    Ok(writer.finish()?.id == id)
}
