//! The store's JSON files: each has a `version`, and one size limit for writing and reading.
//!
//! Invariant: [`decode`] accepts whatever [`encode`] writes: no command writes a record that the
//! next cannot read.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StoreError;

/// The maximum number of layers of an image. Docker allows 127; 500 layers are tested to mount as
/// fast as one.
pub const MAX_LAYERS: usize = 1000;
/// The maximum size of a record: thousands of layers with their blobs.
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

/// Encodes a record as pretty-printed JSON. `path` is its destination, for messages.
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

/// Decodes a record; `path` is its file, for messages.
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
