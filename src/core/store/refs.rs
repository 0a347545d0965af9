//! Tags: one small JSON file each in `refs/`, replaced atomically.
//!
//! Invariant: a record names everything its image keeps alive, so gc needs to decode nothing of OCI. The file's name is
//! the canonical reference with `/` as `%2F` (`docker.io%2Flibrary%2Fapp:latest.json`), or `sha256:<hex>.json` for an
//! image without a name.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use serde::{Deserialize, Serialize};

use super::{Reference, Store, StoreError};
use crate::digest::{DiffId, ImageId, Sha256Digest};

const SUFFIX: &str = ".json";
/// A record of 500 layers is 80 kB.
const LIMIT: u64 = 4 * 1024 * 1024;
const NAME_MAX: usize = 255;

/// A tag and what it keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefRecord {
    /// The image's name. None: it has none and goes by its id.
    pub reference: Option<Reference>,
    /// The configuration's digest.
    pub image: ImageId,
    /// The OCI or Docker manifest as it came. None: the image came without one.
    pub manifest: Option<Sha256Digest>,
    /// Its layers, lowest first.
    pub layers: Vec<DiffId>,
    /// All that it keeps in `blobs/`: configuration, manifest, compressed layers.
    pub blobs: Vec<Sha256Digest>,
}

impl RefRecord {
    /// The file this record lives in.
    pub(super) fn file_name(&self) -> Result<String, StoreError> {
        file_name(self.reference.as_ref(), self.image)
    }
}

fn file_name(reference: Option<&Reference>, image: ImageId) -> Result<String, StoreError> {
    let Some(reference) = reference else {
        return Ok(format!("{image}{SUFFIX}"));
    };
    let name = format!("{}{SUFFIX}", reference.canonical().replace('/', "%2F"));
    if name.len() > NAME_MAX {
        return Err(StoreError::Name {
            name: reference.to_string(),
            reason: "too long for a file name",
        });
    }
    Ok(name)
}

impl Store {
    /// All tags, sorted by name.
    pub fn refs(&self) -> Result<Vec<RefRecord>, StoreError> {
        let mut records = Vec::new();
        for name in self.refs.names()? {
            // Gone since the listing: untagged meanwhile.
            records.extend(self.read_ref(&name)?);
        }
        Ok(records)
    }

    pub(super) fn read_ref(&self, name: &OsStr) -> Result<Option<RefRecord>, StoreError> {
        let Some(bytes) = self.refs.read(name, LIMIT)? else {
            return Ok(None);
        };
        let malformed = |reason| StoreError::malformed(self.refs.join(name), reason);
        let record: RefRecord =
            serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        let own = record.file_name()?;
        if OsStr::new(&own) != name {
            return Err(malformed(format!("it speaks of {own}")));
        }
        Ok(Some(record))
    }

    /// The tag of this name.
    pub fn find_ref(&self, reference: &Reference) -> Result<Option<RefRecord>, StoreError> {
        match file_name(Some(reference), ImageId(Sha256Digest::of(b""))) {
            Ok(name) => self.read_ref(OsStr::new(&name)),
            Err(_) => Ok(None),
        }
    }

    /// Gives an image one more name, or moves a name to it: `record` with another reference.
    ///
    /// Locking: holds the store's lock shared, so what was found present stays until the tag keeps it.
    pub fn tag(&self, record: &RefRecord) -> Result<(), StoreError> {
        let transaction = self.begin()?;
        self.check_present(&record.layers, &record.blobs)?;
        transaction.publish(std::slice::from_ref(record))
    }

    /// Removes a tag; false when there was none. Durable when it returns; gc then removes what nothing else keeps.
    pub fn untag(&self, record: &RefRecord) -> Result<bool, StoreError> {
        self.check_writable()?;
        let removed = self.refs.remove(record.file_name()?)?;
        self.refs.sync()?;
        Ok(removed)
    }

    /// Records by id of the images whose last name `refs` gives to others: a name that moves takes no image away.
    pub(super) fn displaced(&self, refs: &[RefRecord]) -> Result<Vec<RefRecord>, StoreError> {
        let moves = |record: &RefRecord| {
            record.reference.is_some() && refs.iter().any(|new| new.reference == record.reference)
        };
        let (moving, staying): (Vec<_>, Vec<_>) = self.refs()?.into_iter().partition(moves);
        let is_kept = |image| {
            staying
                .iter()
                .chain(refs)
                .any(|record| record.image == image)
        };
        let displaced: BTreeMap<ImageId, RefRecord> = moving
            .into_iter()
            .filter(|record| !is_kept(record.image))
            .map(|record| {
                let reference = None;
                (
                    record.image,
                    RefRecord {
                        reference,
                        ..record
                    },
                )
            })
            .collect();
        Ok(displaced.into_values().collect())
    }

    /// Refuses when a layer or a blob is missing. The caller holds the store's lock.
    pub(super) fn check_present(
        &self,
        layers: &[DiffId],
        blobs: &[Sha256Digest],
    ) -> Result<(), StoreError> {
        for diff in layers {
            self.layers
                .stat(diff.0.hex())?
                .ok_or(StoreError::NoLayer(*diff))?;
        }
        for blob in blobs {
            self.blobs
                .stat(blob.hex())?
                .ok_or(StoreError::NoBlob(*blob))?;
        }
        Ok(())
    }
}
