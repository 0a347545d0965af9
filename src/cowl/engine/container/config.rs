//! `config.json`: a container's configuration. `rename` and `update` replace the whole file.
//!
//! A pin of the same id keeps its layers in the store.

use crate::engine::CGROUP_PARENT;
use crate::engine::docker::{ContainerConfig, HostConfig};
use cowl_core::digest::{DiffId, ImageId, Sha256Digest};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The format of `config.json` that this program writes.
pub const VERSION: u32 = 2;

/// A container's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// [`VERSION`].
    pub version: u32,
    /// 64 hex digits.
    pub id: String,
    /// Unique among the containers of a store.
    pub name: String,
    /// When it was created.
    pub created: Timestamp,
    /// The image of [`ContainerConfig::image`] at that time.
    pub image_id: ImageId,
    /// The layers below the container's upper, bottom first.
    pub layers: Vec<DiffId>,
    /// What the client asked for.
    pub asked: ContainerConfig,
    /// The request, completed from the image's configuration.
    pub config: ContainerConfig,
    /// What the client asked of the host.
    pub host: HostConfig,
    /// In mount order: parents first.
    pub mounts: Vec<Mount>,
}

/// A mount of a container: a volume, a host path or a tmpfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What is mounted.
    pub source: MountSource,
    /// Absolute path in the container.
    pub destination: String,
    /// Mounted read-only.
    pub read_only: bool,
    /// The mount's options as the client wrote them.
    #[serde(default)]
    pub mode: String,
    /// For [`MountSource::Bind`].
    #[serde(default)]
    pub bind: BindMode,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountSource {
    /// A volume of the store.
    Volume {
        /// Its name.
        name: String,
        /// Created for this container and removed with it (`rm -v`, `--rm`).
        anonymous: bool,
        /// A new volume starts empty, not with a copy of the image's files there.
        no_copy: bool,
        /// The path in the volume that is mounted; empty for all of it.
        #[serde(default)]
        subpath: String,
    },
    /// A path of the host, absolute.
    Bind(PathBuf),
    /// A file system in memory.
    Tmpfs {
        /// Docker's options of `--tmpfs`, checked.
        options: Vec<String>,
        /// It was requested by `--mount`, so `inspect` lists it as a mount.
        listed: bool,
    },
}

/// How a path of the host is mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindMode {
    /// Mount propagation in Docker's terms; empty for `rprivate`.
    pub propagation: String,
    /// Does not include the mounts below it.
    pub non_recursive: bool,
    /// The mounts below a read-only mount stay writable.
    pub writable_below: bool,
}

impl Config {
    /// A placeholder for a configuration that cannot be read.
    pub(super) fn unknown(id: &str) -> Self {
        Self {
            version: VERSION,
            id: id.to_owned(),
            name: String::new(),
            created: Timestamp::UNIX_EPOCH,
            image_id: ImageId(Sha256Digest::from_bytes([0; 32])),
            layers: Vec::new(),
            asked: ContainerConfig::default(),
            config: ContainerConfig::default(),
            host: HostConfig::default(),
            mounts: Vec::new(),
        }
    }

    /// The parent of its cgroups, in each hierarchy.
    pub fn cgroup_parent(&self) -> String {
        match self.host.resources.cgroup_parent.trim_start_matches('/') {
            "" => CGROUP_PARENT.to_owned(),
            parent => format!("/{parent}"),
        }
    }

    /// Names of the volumes it uses.
    pub fn volumes(&self) -> impl Iterator<Item = &str> {
        self.mounts.iter().filter_map(|mount| match &mount.source {
            MountSource::Volume { name, .. } => Some(name.as_str()),
            MountSource::Bind(_) | MountSource::Tmpfs { .. } => None,
        })
    }

    /// Names of the volumes that belong to it alone.
    pub fn anonymous_volumes(&self) -> impl Iterator<Item = &str> {
        self.mounts.iter().filter_map(|mount| match &mount.source {
            MountSource::Volume {
                name,
                anonymous: true,
                ..
            } => Some(name.as_str()),
            _ => None,
        })
    }
}
