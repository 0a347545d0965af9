//! Which images, containers and mounts use what is damaged.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::path::Path;

use super::super::layer::TREE_SUFFIX;
use super::super::roots::Root;
use super::super::{Store, from_hex};
use super::Problem;
use crate::digest::{ChainId, DiffId, ObjectId, Sha256Digest};

/// The parts of images that problems are about.
#[derive(Default)]
struct Parts {
    objects: HashSet<ObjectId>,
    layers: HashSet<DiffId>,
    merged: HashSet<ChainId>,
    blobs: HashSet<Sha256Digest>,
}

impl Parts {
    /// Adds the part that a path in the store belongs to.
    fn add(&mut self, path: &Path) {
        let names: Vec<&str> = path.iter().filter_map(OsStr::to_str).collect();
        match names.as_slice() {
            ["objects", fan_out, rest] => {
                self.objects
                    .extend(format!("{fan_out}{rest}").parse::<ObjectId>());
            }
            ["layers", name, ..] => self.layers.extend(from_hex(name).map(DiffId)),
            ["merged", name] => {
                let chain = name.strip_suffix(TREE_SUFFIX).and_then(from_hex);
                self.merged.extend(chain.map(ChainId));
            }
            ["blobs", "sha256", name] => self.blobs.extend(from_hex(name)),
            _ => {}
        }
    }
}

impl Store {
    /// The names of the roots that use what is damaged or missing. `readable`: `layers/` can be
    /// read; if not, all layers are damaged.
    pub(super) fn touched(
        &self,
        roots: &[Root],
        problems: &[Problem],
        readable: bool,
    ) -> Vec<String> {
        let mut parts = Parts::default();
        for problem in problems {
            if let Problem::Damaged { path, .. } | Problem::Missing { path, .. } = problem
                && let Ok(path) = path.strip_prefix(self.root())
            {
                parts.add(path);
            }
        }
        let mut layers: HashMap<DiffId, bool> = HashMap::new();
        let mut has_damaged_object = |diff: DiffId| {
            if !readable {
                return true;
            }
            if parts.objects.is_empty() {
                return false;
            }
            *layers.entry(diff).or_insert_with(|| {
                let objects = self.objects_kept_by(diff).ok().flatten();
                let mut objects = objects.into_iter().flatten();
                objects.any(|id| parts.objects.contains(&id))
            })
        };
        let mut touched = BTreeSet::new();
        for root in roots {
            let chains = || root.stacks.iter().filter_map(|layers| ChainId::of(layers));
            let damaged = root.blobs.iter().any(|blob| parts.blobs.contains(blob))
                || root.layers.iter().any(|diff| parts.layers.contains(diff))
                || chains().any(|chain| parts.merged.contains(&chain))
                || root.layers.iter().any(|diff| has_damaged_object(*diff));
            if damaged {
                touched.insert(root.name.clone());
            }
        }
        touched.into_iter().collect()
    }
}
