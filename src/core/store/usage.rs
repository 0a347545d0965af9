//! Counts and sizes of the store's files, for `info`.

use std::collections::BTreeMap;

use super::dir::StoreDir;
use super::tags::is_tag_file;
use super::{Store, StoreError};
use crate::digest::{DiffId, ObjectId};

/// Files of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// How many.
    pub number: u64,
    /// Total size in bytes, as `du --apparent-size` counts.
    pub bytes: u64,
}

impl Count {
    /// Adds one file.
    pub(super) fn add(&mut self, bytes: u64) {
        self.number += 1;
        self.bytes += bytes;
    }
}

/// The result of [`Store::object_usage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ObjectUsage {
    /// Files in `objects/`.
    pub objects: u64,
    /// Their lengths, as `du --apparent-size` of the files counts.
    pub bytes: u64,
    /// The disk space they take, in units of 512 bytes, as `stat` counts.
    pub blocks: u64,
}

impl std::ops::AddAssign for ObjectUsage {
    fn add_assign(&mut self, other: Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
        self.blocks += other.blocks;
    }
}

/// The result of [`Store::usage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Objects.
    pub objects: Count,
    /// Layers; the bytes are their trees'.
    pub layers: Count,
    /// Cached merged trees.
    pub merged: Count,
    /// Manifests, configurations, compressed layers.
    pub blobs: Count,
    /// Tags.
    pub tags: u64,
}

impl Store {
    /// Counts all files; O(files).
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut usage = Usage {
            tags: self.tag_count()?,
            ..Usage::default()
        };
        for fan_out in self.fan_outs()? {
            count_files(&self.objects()?.open_dir(&fan_out)?, &mut usage.objects)?;
        }
        count_files(self.merged_trees()?, &mut usage.merged)?;
        count_files(self.blobs()?, &mut usage.blobs)?;
        for name in self.layers()?.names()? {
            // A foreign name, or removed since the listing.
            let Ok(layer) = self.layers()?.open_dir(&name) else {
                continue;
            };
            if let Some(tree) = layer.stat(super::layer::TREE)? {
                usage.layers.add(tree.size);
            }
        }
        Ok(usage)
    }

    /// Lengths and disk space of all objects; O(objects).
    pub fn object_usage(&self) -> Result<ObjectUsage, StoreError> {
        let mut usage = ObjectUsage::default();
        for fan_out in self.fan_outs()? {
            let dir = self.objects()?.open_dir(&fan_out)?;
            for name in dir.names()? {
                // None: gc took it since the listing.
                if let Some(meta) = dir.stat(&name)? {
                    usage.objects += 1;
                    usage.bytes += meta.size;
                    usage.blocks += meta.blocks;
                }
            }
        }
        Ok(usage)
    }

    /// The fan-out directories of `objects/`; `check` reports other names.
    pub(super) fn fan_outs(&self) -> Result<Vec<String>, StoreError> {
        let mut names: Vec<String> = Vec::new();
        for name in self.objects()?.names()? {
            if let Some(name) = name.to_str().filter(|name| is_fan_out(name))
                && self.objects()?.open_dir(name).is_ok()
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// The number of tags, damaged ones included.
    pub(super) fn tag_count(&self) -> Result<u64, StoreError> {
        let names = self.refs()?.names()?;
        Ok(names.iter().filter(|name| is_tag_file(name)).count() as u64)
    }

    /// The distinct objects of some layers with their sizes, hidden files included.
    pub fn objects_of(&self, layers: &[DiffId]) -> Result<BTreeMap<ObjectId, u64>, StoreError> {
        let mut objects = BTreeMap::new();
        for diff in layers {
            let tree = self.layer_tree(*diff)?.ok_or(StoreError::NoLayer(*diff))?;
            objects.extend(tree.object_sizes());
        }
        Ok(objects)
    }
}

/// Two digits of a hash.
pub(super) fn is_fan_out(name: &str) -> bool {
    let digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    name.len() == 2 && name.bytes().all(digit)
}

fn count_files(dir: &StoreDir, count: &mut Count) -> Result<(), StoreError> {
    for name in dir.names()? {
        if let Some(meta) = dir.stat(&name)? {
            count.add(meta.size);
        }
    }
    Ok(())
}
