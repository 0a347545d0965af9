//! `repair`: heals what a check finds, from the store itself, the compressed layers that it keeps,
//! and an archive, a layer's tar, a blob or another store.
//!
//! Invariant: the check that follows is the judge, so nothing is called healed that is not. A
//! source that is damaged itself, or has nothing of use, changes nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cowl_sys::stack::on_own_stack;

use super::archive::Archive;
use super::load::{LoadOptions, candidates, parse_config, plan, record};
use super::parts::{self, Wanted};
use super::{Candidate, CandidateImage, ImageError};
use crate::digest::{DiffId, Sha256Digest, Sha256Hasher};
use crate::layer::{self, Limits};
use crate::store::{CheckReport, Damage, Stage, Store, StoreError, Tag, Transaction, Trust};

/// What a repair did.
#[derive(Debug)]
pub struct Repaired {
    /// The damage that was there.
    pub before: CheckReport,
    /// What is left of it.
    pub after: CheckReport,
    /// Why a source was of no use.
    pub failed: Vec<ImageError>,
}

/// Checks the store, heals what it can, and checks again. Each of `from` is an archive as `load`
/// takes it, a layer's tar, plain or compressed, a blob of an image, or another store.
pub fn repair(store: &Store, deep: bool, from: &[PathBuf]) -> Result<Repaired, ImageError> {
    let before = store.check(deep)?;
    let mut failed = Vec::new();
    if before.problems.is_empty() {
        let after = CheckReport::default();
        return Ok(Repaired {
            before,
            after,
            failed,
        });
    }
    store.repair_from_store(&before)?;
    failed.extend(heal_from_blobs(store, &before.damage)?);
    for from in from {
        let healed = on_own_stack(|| heal_from(store, &before.damage, from));
        failed.extend(healed.map_err(ImageError::Thread)?.err());
    }
    store.heal_merged(&before.damage)?;
    let after = store.check(deep)?;
    Ok(Repaired {
        before,
        after,
        failed,
    })
}

/// Imports damaged layers again from the compressed layers in `blobs/`. An error for each that
/// cannot be used.
fn heal_from_blobs(store: &Store, damage: &Damage) -> Result<Vec<ImageError>, StoreError> {
    let tags = store.tags()?.tags;
    let images = tags.iter().flat_map(|tag| &tag.images);
    let blobs: BTreeMap<DiffId, Sha256Digest> = images
        .flat_map(|image| &image.layers)
        .filter_map(|layer| Some((layer.diff_id, layer.blob.as_ref()?.digest)))
        .filter(|(diff, blob)| damage.layers.contains(diff) && !damage.blobs.contains(blob))
        .collect();
    let mut failed = Vec::new();
    for (diff, digest) in blobs {
        let healed = store.open_blob(digest).map_err(ImageError::from);
        let healed = healed.and_then(|blob| {
            let name = format!("blob {digest}");
            heal_layer(store, &name, &blob, |found| found == diff)
        });
        match healed {
            Err(ImageError::Store(error @ StoreError::NoSpace { .. })) => return Err(error),
            healed => failed.extend(healed.err()),
        }
    }
    Ok(failed)
}

/// Heals from what is at this path.
fn heal_from(store: &Store, damage: &Damage, from: &Path) -> Result<(), ImageError> {
    let name = from.display().to_string();
    let open = || {
        File::open(from).map_err(|source| ImageError::Read {
            name: name.clone(),
            source,
        })
    };
    let file = open()?;
    let kind = file.metadata().map_err(|source| ImageError::Read {
        name: name.clone(),
        source,
    });
    let kind = kind?;
    let is_dir = kind.is_dir();
    if kind.is_file() && heal_blob(store, damage, from, open)? {
        return Ok(());
    }
    if is_dir {
        match Store::open(from) {
            Err(StoreError::NotFound { .. }) => {}
            other => return Ok(store.heal_from(&other?, damage)?),
        }
    }
    let archive = Archive::open(file, from, store, None)?;
    match candidates(&archive, from, &[]) {
        Ok(found) => heal_from_archive(store, damage, &archive, found.images),
        Err(ImageError::NotAnArchive { .. }) if !is_dir => {
            heal_layer(store, &name, &open()?, |found| {
                damage.layers.contains(&found)
            })
        }
        Err(error) => Err(error),
    }
}

/// Whether the file is a damaged blob of the store, as a registry gives it, which is then healed,
/// and the damaged layer that it packs.
fn heal_blob(
    store: &Store,
    damage: &Damage,
    from: &Path,
    open: impl Fn() -> Result<File, ImageError>,
) -> Result<bool, ImageError> {
    if damage.blobs.is_empty() {
        return Ok(false);
    }
    let name = from.display().to_string();
    let mut hasher = Sha256Hasher::new();
    io::copy(&mut open()?, &mut hasher).map_err(|source| ImageError::Read {
        name: name.clone(),
        source,
    })?;
    let digest = hasher.finish();
    if !damage.blobs.contains(&digest) {
        return Ok(false);
    }
    store.heal_blob_from(open()?, from, digest)?;
    let tags = store.tags()?.tags;
    let images = tags.iter().flat_map(|tag| &tag.images);
    let packed = images.flat_map(|image| &image.layers).find(|layer| {
        let blob = layer.blob.as_ref();
        blob.is_some_and(|blob| blob.digest == digest)
    });
    if let Some(layer) = packed
        && damage.layers.contains(&layer.diff_id)
    {
        heal_layer(store, &name, &open()?, |found| found == layer.diff_id)?;
    }
    Ok(true)
}

/// Imports a layer again if it is one that is wanted.
fn heal_layer(
    store: &Store,
    name: &str,
    tar: impl Read + Send,
    is_wanted: impl FnOnce(DiffId) -> bool,
) -> Result<(), ImageError> {
    let transaction = store.begin_with(Trust::Hash)?;
    let stream = layer::decompress(tar).map_err(|source| ImageError::Decompress {
        name: name.to_owned(),
        source,
    })?;
    let import = |stage: &Stage<'_>| {
        let imported =
            layer::import(stream, stage, &Limits::default()).map_err(ImageError::Import)?;
        if !is_wanted(imported.diff_id) {
            return Err(ImageError::Unsupported {
                name: name.to_owned(),
                what: format!("it is layer {}, which is not damaged", imported.diff_id),
            });
        }
        stage.put_layer(
            imported.diff_id,
            imported.tree_bytes,
            imported.stats.stream_bytes,
            &imported.recipe,
        )?;
        Ok(())
    };
    transaction.stage(import).map_err(ImageError::Thread)??;
    Ok(transaction.publish(&[])?)
}

/// Heals from the images of an archive: only the parts that are damaged are read.
fn heal_from_archive(
    store: &Store,
    damage: &Damage,
    archive: &Archive,
    found: Vec<Candidate>,
) -> Result<(), ImageError> {
    let transaction = store.begin_with(Trust::Hash)?;
    let mut wanted: Vec<Wanted> = Vec::new();
    let mut planned = Vec::new();
    for candidate in found {
        if candidate.names.iter().any(|name| damage.has_tag(name)) {
            let whole = candidate.whole(archive)?;
            let image = plan(whole.map_err(|absent| absent.error())?)?;
            wanted.extend(image.layers());
            planned.push(image);
            continue;
        }
        for image in &candidate.images {
            wanted.extend(damaged_layers(damage, &candidate, image)?);
            for document in std::iter::once(&image.config).chain(&image.manifest) {
                put_damaged(damage, &transaction, document)?;
            }
        }
        if let Some(index) = &candidate.index {
            put_damaged(damage, &transaction, index)?;
        }
    }
    let diff_ids: Vec<_> = wanted.iter().map(|layer| layer.diff_id).collect();
    transaction.keep_layers(&diff_ids)?;
    let layers = parts::load(archive, &transaction, &wanted, &LoadOptions::default())?;
    let mut tags: Vec<Tag> = Vec::new();
    for image in planned {
        let mut named = record(&transaction, &layers, image)?.tags();
        let is_damaged = |tag: &Tag| {
            let name = tag.reference.as_ref();
            name.is_some_and(|name| damage.has_tag(name))
        };
        named.retain(is_damaged);
        tags.extend(named);
    }
    Ok(transaction.publish(&tags)?)
}

/// The layers of an image that are damaged, or whose blobs are.
fn damaged_layers(
    damage: &Damage,
    candidate: &Candidate,
    image: &CandidateImage,
) -> Result<Vec<Wanted>, ImageError> {
    let config = parse_config(&image.config, &candidate.names)?;
    let layers = image.layers.iter().zip(config.rootfs.diff_ids);
    let wanted = layers.enumerate().filter(|(_, (part, diff_id))| {
        // Without a digest the archive does not say which blob it would be.
        let may_be_blob = part.digest.map_or(!damage.blobs.is_empty(), |digest| {
            damage.blobs.contains(&digest)
        });
        may_be_blob || damage.layers.contains(diff_id)
    });
    let wanted = wanted.map(|(at, (part, diff_id))| Wanted {
        number: at + 1,
        part: part.clone(),
        diff_id,
    });
    Ok(wanted.collect())
}

fn put_damaged(
    damage: &Damage,
    transaction: &Transaction<'_>,
    document: &[u8],
) -> Result<(), ImageError> {
    if damage.blobs.contains(&Sha256Digest::of(document)) {
        transaction.put_blob(document)?;
    }
    Ok(())
}
