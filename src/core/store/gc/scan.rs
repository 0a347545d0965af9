//! Scanning: every file of the store that nothing reaches, with its size.
//!
//! Foreign names are not the store's to remove: `check` reports them.

use std::ffi::OsStr;

use data_encoding::HEXLOWER;
use rustix::fs::FileType;

use super::super::dir::{Meta, StoreDir};
use super::super::layer::TREE_SUFFIX;
use super::super::parallel::in_parallel;
use super::super::pins::PinKind;
use super::super::{Store, StoreError};
use super::disk::Disk;
use super::mark::Marked;
use crate::digest::{ChainId, DiffId, ObjectId, Sha256Digest};

/// A file that gc may remove.
#[derive(Debug, Clone)]
pub(super) enum What {
    /// A pin that no process holds, by its file name.
    Pin(Box<OsStr>),
    Merged(ChainId),
    Layer(DiffId),
    Object(ObjectId),
    Blob(Sha256Digest),
}

/// Something to remove, and what that frees.
#[derive(Debug)]
pub(super) struct Garbage {
    pub(super) what: What,
    /// Lengths of its files.
    pub(super) bytes: u64,
    /// Disk space.
    pub(super) disk: u64,
}

/// A file with the attributes of all its parts.
type Found = (What, Vec<Meta>);

impl Store {
    /// Everything that is not marked, in the order of the sweep.
    pub(super) fn scan(
        &self,
        marked: &Marked,
        disk: &mut Disk,
    ) -> Result<Vec<Garbage>, StoreError> {
        let chain =
            |name: &str| Sha256Digest::from_hex(name.strip_suffix(TREE_SUFFIX)?).map(ChainId);
        let mut found = self.stale_pins(marked)?;
        let merged = |name: &str| chain(name).map(What::Merged);
        found.extend(unmarked(self.merged_trees()?, marked, merged)?);
        let layer = |name: &str| Some(What::Layer(DiffId(Sha256Digest::from_hex(name)?)));
        found.extend(unmarked(self.layers()?, marked, layer)?);
        if marked.knows_objects() {
            let objects = in_parallel(&self.fan_outs()?, |fan_out| {
                let dir = self.objects()?.open_dir(fan_out)?;
                unmarked(&dir, marked, |name| {
                    object_id(fan_out, name).map(What::Object)
                })
            });
            for objects in objects {
                found.extend(objects?);
            }
        }
        let blob = |name: &str| Sha256Digest::from_hex(name).map(What::Blob);
        found.extend(unmarked(self.blobs()?, marked, blob)?);
        let weighed = |(what, parts): Found| Garbage {
            what,
            bytes: files(&parts).map(|meta| meta.size).sum(),
            disk: parts.iter().map(|meta| disk.of(meta)).sum(),
        };
        Ok(found.into_iter().map(weighed).collect())
    }

    /// Pins that are not live, and those that count as removed.
    fn stale_pins(&self, marked: &Marked) -> Result<Vec<Found>, StoreError> {
        let mut stale = Vec::new();
        let pins = self.pin_files()?;
        for name in pins.names()? {
            let is_stale = match PinKind::of(&name) {
                Some(kind) => marked.is_dropped(&name) || !self.is_pin_live(&name, kind)?,
                None => false,
            };
            if is_stale {
                let parts = pins.stat(&name)?.into_iter().collect();
                stale.push((What::Pin(name), parts));
            }
        }
        Ok(stale)
    }
}

/// The store's files in one directory that nothing reaches.
fn unmarked(
    dir: &StoreDir,
    marked: &Marked,
    parse: impl Fn(&str) -> Option<What>,
) -> Result<Vec<Found>, StoreError> {
    let parse = |name: &OsStr| name.to_str().and_then(&parse);
    // Most of what there is, is marked: only what is not is sorted and looked at.
    let garbage = |name: &OsStr| parse(name).is_some_and(|what| marked.is_garbage(&what));
    let mut found = Vec::new();
    for name in dir.names_that(garbage)? {
        if let Some(what) = parse(&name)
            && let Some(meta) = dir.stat(&name)?
        {
            found.push((what, parts(dir, &name, meta)?));
        }
    }
    Ok(found)
}

/// A file, or a layer's directory with its files.
fn parts(dir: &StoreDir, name: &OsStr, meta: Meta) -> Result<Vec<Meta>, StoreError> {
    let mut parts = vec![meta];
    if meta.file_type == FileType::Directory
        && let Some(below) = dir.open_dir_if_exists(name)?
    {
        for name in below.names()? {
            parts.extend(below.stat(&name)?);
        }
    }
    Ok(parts)
}

fn files(parts: &[Meta]) -> impl Iterator<Item = &Meta> {
    parts
        .iter()
        .filter(|meta| meta.file_type == FileType::RegularFile)
}

/// The object of this name in this fan-out directory.
fn object_id(fan_out: &str, name: &str) -> Option<ObjectId> {
    let mut digits = [0; 64];
    let (first, rest) = digits.split_at_mut(2);
    if (fan_out.len(), name.len()) != (first.len(), rest.len()) {
        return None;
    }
    first.copy_from_slice(fan_out.as_bytes());
    rest.copy_from_slice(name.as_bytes());
    let mut bytes = [0; 32];
    HEXLOWER.decode_mut(&digits, &mut bytes).ok()?;
    Some(ObjectId::from_bytes(bytes))
}
