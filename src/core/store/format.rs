//! `format.json`: which format a store has, so that an older cowl never misreads a newer store.
//!
//! The rule of ext4 and composefs: an unknown feature in `incompat` forbids any use, one in
//! `ro-compat` forbids changes, one in `compat` forbids nothing. An unknown version forbids any
//! use.

use serde::{Deserialize, Serialize};

use super::StoreError;
use super::dir::StoreDir;

pub(super) const NAME: &str = "format.json";
/// The format this build writes.
pub(super) const VERSION: u32 = 2;
const LIMIT: u64 = 64 * 1024;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Format {
    pub(super) version: u32,
    #[serde(default)]
    pub(super) compat: Vec<String>,
    #[serde(default, rename = "ro-compat")]
    pub(super) ro_compat: Vec<String>,
    #[serde(default)]
    pub(super) incompat: Vec<String>,
}

impl Format {
    /// A new store: version 2 has no optional features.
    pub(super) const fn current() -> Self {
        Self {
            version: VERSION,
            compat: Vec::new(),
            ro_compat: Vec::new(),
            incompat: Vec::new(),
        }
    }

    /// Reads and checks the file; `None` if it does not exist. A returned `Format` proves that the
    /// store may be read.
    pub(super) fn read(root: &StoreDir) -> Result<Option<Self>, StoreError> {
        let Some(bytes) = root.read(NAME, LIMIT)? else {
            return Ok(None);
        };
        let path = root.join(NAME);
        let format: Self = serde_json::from_slice(&bytes)
            .map_err(|error| StoreError::malformed(&path, error.to_string()))?;
        if format.version != VERSION {
            return Err(StoreError::Version {
                path,
                found: format.version,
                known: VERSION,
            });
        }
        if !format.incompat.is_empty() {
            return Err(StoreError::Features {
                path,
                features: format.incompat,
                readable: false,
            });
        }
        Ok(Some(format))
    }
}
