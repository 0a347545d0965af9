//! What is damaged, by kind, and which images, containers and mounts use it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::super::layer::TREE_SUFFIX;
use super::super::parallel::in_parallel;
use super::super::roots::Root;
use super::super::tags::{is_tag_file, tag_file};
use super::super::{Reference, Store};
use super::Problem;
use crate::digest::{ChainId, DiffId, ObjectId, Sha256Digest};

/// What a check found damaged or missing.
#[derive(Debug, Default)]
pub struct Damage {
    /// Contents of files.
    pub objects: BTreeSet<ObjectId>,
    /// Layers with a damaged file or a damaged object.
    pub layers: BTreeSet<DiffId>,
    /// Cached merged trees.
    pub merged: BTreeSet<ChainId>,
    /// Manifests, configurations, compressed layers.
    pub blobs: BTreeSet<Sha256Digest>,
    /// The names of tags' files.
    pub(in super::super) tags: BTreeSet<OsString>,
}

impl Damage {
    /// Whether the tag of this name cannot be read.
    pub fn has_tag(&self, reference: &Reference) -> bool {
        self.tags.contains(OsStr::new(&tag_file(reference)))
    }

    /// Adds the part that a path in the store belongs to.
    fn add(&mut self, path: &Path) {
        let names: Vec<&str> = path.iter().filter_map(OsStr::to_str).collect();
        match names.as_slice() {
            ["objects", fan_out, rest] => {
                self.objects
                    .extend(format!("{fan_out}{rest}").parse::<ObjectId>());
            }
            ["layers", name, ..] => self.layers.extend(Sha256Digest::from_hex(name).map(DiffId)),
            ["merged", name] => {
                let chain = name
                    .strip_suffix(TREE_SUFFIX)
                    .and_then(Sha256Digest::from_hex);
                self.merged.extend(chain.map(ChainId));
            }
            ["blobs", "sha256", name] => self.blobs.extend(Sha256Digest::from_hex(name)),
            ["refs", name] if is_tag_file(OsStr::new(name)) => {
                self.tags.insert(OsString::from(name));
            }
            _ => {}
        }
    }
}

impl Store {
    /// Sorts problems by what they are about. `readable`: `layers/` can be read; if not, all layers
    /// are damaged.
    pub(super) fn damage(&self, roots: &[Root], problems: &[Problem], readable: bool) -> Damage {
        let mut damage = Damage::default();
        for problem in problems {
            if let Problem::Damaged { path, .. } | Problem::Missing { path, .. } = problem
                && let Ok(path) = path.strip_prefix(self.root())
            {
                damage.add(path);
            }
        }
        let layers: BTreeSet<DiffId> = roots
            .iter()
            .flat_map(|root| &root.layers)
            .copied()
            .collect();
        if !readable {
            damage.layers.extend(layers);
        } else if !damage.objects.is_empty() {
            let layers: Vec<DiffId> = layers.into_iter().collect();
            let hurt = in_parallel(&layers, |diff| {
                let objects = self.objects_kept_by(*diff).ok().flatten();
                let mut objects = objects.into_iter().flatten();
                objects.any(|id| damage.objects.contains(&id))
            });
            let hurt = layers.into_iter().zip(hurt).filter(|(_, hurt)| *hurt);
            damage.layers.extend(hurt.map(|(diff, _)| diff));
        }
        damage
    }
}

/// The names of the roots that use what is damaged or missing.
pub(super) fn touched(roots: &[Root], damage: &Damage) -> Vec<String> {
    let mut touched = BTreeSet::new();
    for root in roots {
        let mut chains = root.stacks.iter().map(|layers| ChainId::of(layers));
        let hurt = root.blobs.iter().any(|blob| damage.blobs.contains(blob))
            || root.layers.iter().any(|diff| damage.layers.contains(diff))
            || chains.any(|chain| damage.merged.contains(&chain));
        if hurt {
            touched.insert(root.name.clone());
        }
    }
    touched.into_iter().collect()
}
