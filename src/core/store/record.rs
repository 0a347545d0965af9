//! The store's JSON files: each has a `version`, and a limit that holds for writing as for reading.
//!
//! Invariant: what [`encode`] gives, [`decode`] takes. So no command writes a record that the next one cannot read.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StoreError;

/// Layers of one image at most. Docker takes 127; trees of 500 layers are tested to mount as fast as of one.
pub const MAX_LAYERS: usize = 1000;
/// Bytes of a record at most: thousands of layers with their blobs.
pub(super) const LIMIT: u64 = 4 * 1024 * 1024;

/// A kind of record, and the version of it that this build writes and reads.
pub(super) trait Versioned: Serialize + DeserializeOwned {
    const VERSION: u32;
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

#[derive(Serialize)]
struct WithVersion<'r, T> {
    version: u32,
    #[serde(flatten)]
    record: &'r T,
}

/// The text of a record, as people read it. `path` is where it will be, for messages.
pub(super) fn encode<T: Versioned>(record: &T, path: &Path) -> Result<Vec<u8>, StoreError> {
    let version = T::VERSION;
    let bytes = super::to_json(&WithVersion { version, record }, path)?;
    if bytes.len() as u64 > LIMIT {
        return Err(StoreError::TooLarge {
            path: path.to_owned(),
            limit: LIMIT,
        });
    }
    Ok(bytes)
}

/// The record in a file's bytes.
pub(super) fn decode<T: Versioned>(bytes: &[u8], path: &Path) -> Result<T, StoreError> {
    let malformed = |error: serde_json::Error| StoreError::malformed(path, error.to_string());
    let VersionOnly { version } = serde_json::from_slice(bytes).map_err(malformed)?;
    if version != T::VERSION {
        let known = T::VERSION;
        return Err(StoreError::malformed(
            path,
            format!("it is a record of version {version}, this cowl reads version {known}"),
        ));
    }
    serde_json::from_slice(bytes).map_err(malformed)
}
