//! A mount as `--mount` and the API's `HostConfig.Mounts` ask for it.

use super::{is_default, or_default};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Docker's `Mount` of a request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MountRequest {
    /// `volume`, `bind` or `tmpfs`.
    #[serde(rename = "Type", deserialize_with = "or_default")]
    pub kind: String,
    /// Volume or path of the host; empty for an anonymous volume.
    #[serde(deserialize_with = "or_default")]
    pub source: String,
    /// Path in the container.
    #[serde(deserialize_with = "or_default")]
    pub target: String,
    /// Mounted read-only.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// Of `bind`.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Option::is_none"
    )]
    pub bind_options: Option<BindOptions>,
    /// Of `volume`.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Option::is_none"
    )]
    pub volume_options: Option<VolumeOptions>,
    /// Of `tmpfs`.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Option::is_none"
    )]
    pub tmpfs_options: Option<TmpfsOptions>,
    /// Keys that this module does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Docker's `BindOptions`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BindOptions {
    /// A missing directory of the host is created.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub create_mountpoint: bool,
    /// Mount propagation: `[r]private`, `[r]slave`, `[r]shared`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub propagation: String,
    /// Does not include the mounts below it.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub non_recursive: bool,
    /// Read-only, but not the mounts below it.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub read_only_non_recursive: bool,
    /// Read-only with the mounts below it, or an error.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub read_only_force_recursive: bool,
    /// Keys that this module does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Docker's `VolumeOptions`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeOptions {
    /// A new volume starts empty, not with a copy of the image's files there.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub no_copy: bool,
    /// A path in the volume, instead of all of it.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub subpath: String,
    /// Labels of a new volume.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    /// Driver of a new volume, with its options.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Option::is_none"
    )]
    pub driver_config: Option<DriverConfig>,
    /// Keys that this module does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Docker's `Driver` of a volume.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DriverConfig {
    /// `local`, or empty.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub name: String,
    /// Its options, as for `volume create`.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub options: BTreeMap<String, String>,
    /// Keys that this module does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Docker's `TmpfsOptions`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TmpfsOptions {
    /// Size limit in bytes; 0 for half of the host's memory.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub size_bytes: i64,
    /// Permissions of its root; 0 for 1777.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub mode: u32,
    /// Further options: a flag, or a key and a value.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub options: Vec<Vec<String>>,
    /// Keys that this module does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}
