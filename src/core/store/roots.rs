//! What keeps things alive: tags, containers and held leases, each naming its layers and blobs.
//!
//! Invariant: a root that cannot be read is an error, never "keeps nothing".

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;

use rustix::fs::FileType;
use serde::Deserialize;

use super::{Store, StoreError};
use crate::digest::{ChainId, DiffId, Sha256Digest};

const CONFIG: &str = "config.json";
const LIMIT: u64 = 16 * 1024 * 1024;

/// One root: the file that says it, and what it keeps.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    /// Lowest first.
    pub(super) layers: Vec<DiffId>,
    pub(super) blobs: Vec<Sha256Digest>,
}

/// The two fields of a container's `config.json` that this module reads. The engine writes the file before it lets go of
/// the lease it mounted with.
#[derive(Deserialize)]
struct Container {
    layers: Vec<DiffId>,
    #[serde(default)]
    blobs: Vec<Sha256Digest>,
}

/// All that is kept.
#[derive(Debug, Default)]
pub(super) struct Reachable {
    pub(super) layers: BTreeSet<DiffId>,
    pub(super) chains: BTreeSet<ChainId>,
    pub(super) blobs: BTreeSet<Sha256Digest>,
}

impl Reachable {
    pub(super) fn of(roots: &[Root]) -> Self {
        let mut reachable = Self::default();
        for root in roots {
            reachable.layers.extend(&root.layers);
            reachable.chains.extend(ChainId::of(&root.layers));
            reachable.blobs.extend(&root.blobs);
        }
        reachable
    }
}

impl Store {
    /// Every root there is, or the error of each that cannot be read. The caller holds the store's lock.
    pub(super) fn roots(&self) -> Result<(Vec<Root>, Vec<StoreError>), StoreError> {
        let mut roots = Vec::new();
        let mut errors = Vec::new();
        let mut keep = |root: Result<Option<Root>, StoreError>| match root {
            Ok(root) => roots.extend(root),
            Err(error) => errors.push(error),
        };
        for name in self.refs.names()? {
            keep(self.ref_root(&name));
        }
        for name in self.containers.names()? {
            keep(self.container_root(&name));
        }
        for name in self.leases.names()? {
            keep(self.lease_root(&name));
        }
        Ok((roots, errors))
    }

    fn ref_root(&self, name: &OsStr) -> Result<Option<Root>, StoreError> {
        let record = self.read_ref(name)?;
        Ok(record.map(|record| Root {
            path: self.refs.join(name),
            layers: record.layers,
            blobs: record.blobs,
        }))
    }

    /// A container without a configuration is being made (its lease keeps its image) or being removed.
    fn container_root(&self, name: &OsStr) -> Result<Option<Root>, StoreError> {
        if self
            .containers
            .stat(name)?
            .is_none_or(|meta| meta.file_type != FileType::Directory)
        {
            return Ok(None);
        }
        let Some(dir) = self.containers.sub_if_there(name)? else {
            return Ok(None);
        };
        let Some(bytes) = dir.read(CONFIG, LIMIT)? else {
            return Ok(None);
        };
        let path = dir.join(CONFIG);
        let container: Container = serde_json::from_slice(&bytes)
            .map_err(|error| StoreError::malformed(&path, error.to_string()))?;
        Ok(Some(Root {
            path,
            layers: container.layers,
            blobs: container.blobs,
        }))
    }

    fn lease_root(&self, name: &OsStr) -> Result<Option<Root>, StoreError> {
        let lease = self.held_lease(name)?;
        Ok(lease.map(|lease| Root {
            path: self.leases.join(name),
            layers: lease.layers,
            blobs: Vec::new(),
        }))
    }
}
