//! The roots of gc: tags and pins, each with its layers and blobs.
//!
//! Invariant: a root that cannot be read is an error, never "keeps nothing".

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;

use super::pins::PinKind;
use super::tags::is_tag_file;
use super::{Store, StoreError};
use crate::digest::{ChainId, DiffId, Sha256Digest};

/// One root: its file and what it keeps.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    /// The image's name or id, or what a pin says of its owner.
    pub(super) name: String,
    pub(super) layers: Vec<DiffId>,
    pub(super) stacks: Vec<Vec<DiffId>>,
    pub(super) blobs: Vec<Sha256Digest>,
    /// A running load's: its layers and blobs may be missing.
    pub(super) pending: bool,
}

/// Everything reachable from the roots.
#[derive(Debug, Default)]
pub(super) struct Reachable {
    pub(super) layers: BTreeSet<DiffId>,
    /// Those of `layers` that must exist.
    pub(super) complete: BTreeSet<DiffId>,
    pub(super) chains: BTreeSet<ChainId>,
    pub(super) blobs: BTreeSet<Sha256Digest>,
}

impl Reachable {
    pub(super) fn of(roots: &[Root]) -> Self {
        let mut reachable = Self::default();
        for root in roots {
            reachable.add(root);
        }
        reachable
    }

    pub(super) fn add(&mut self, root: &Root) {
        self.layers.extend(&root.layers);
        if !root.pending {
            self.complete.extend(&root.layers);
        }
        let chains = root.stacks.iter().map(|layers| ChainId::of(layers));
        self.chains.extend(chains);
        self.blobs.extend(&root.blobs);
    }
}

impl Store {
    /// All roots, and an error for each unreadable one. The caller holds the store's lock.
    pub(super) fn roots(&self) -> Result<(Vec<Root>, Vec<StoreError>), StoreError> {
        let mut roots = Vec::new();
        let mut errors = Vec::new();
        let mut keep = |root: Result<Option<Root>, StoreError>| match root {
            Ok(root) => roots.extend(root),
            Err(error) => errors.push(error),
        };
        for name in self.refs()?.names()? {
            if is_tag_file(&name) {
                keep(self.tag_root(&name));
            }
        }
        for name in self.pin_files()?.names()? {
            if let Some(kind) = PinKind::of(&name) {
                keep(self.pin_root(&name, kind));
            }
        }
        Ok((roots, errors))
    }

    pub(super) fn tag_root(&self, name: &OsStr) -> Result<Option<Root>, StoreError> {
        let tag = self.read_tag(name)?;
        let refs = self.refs()?;
        Ok(tag.map(|tag| Root {
            path: refs.join(name),
            name: tag.title(),
            layers: tag.layers().collect(),
            stacks: tag
                .images
                .iter()
                .map(super::TaggedImage::diff_ids)
                .collect(),
            blobs: tag.blobs().collect(),
            pending: false,
        }))
    }

    pub(super) fn pin_root(&self, name: &OsStr, kind: PinKind) -> Result<Option<Root>, StoreError> {
        let pin = self.read_pin(name, kind)?;
        let pins = self.pin_files()?;
        Ok(pin.map(|pin| Root {
            path: pins.join(name),
            name: pin.owner,
            stacks: vec![pin.layers.clone()],
            layers: pin.layers,
            blobs: pin.blobs,
            pending: kind == PinKind::Load,
        }))
    }
}
