//! `config.json`: what a container is. Written once when it is made, never changed.
//!
//! What it needs of the store is kept by a pin of the same id.

use crate::engine::process::Process;
use cowl_core::digest::{DiffId, ImageId, Sha256Digest};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The format of `config.json` that this program writes.
pub const VERSION: u32 = 1;

/// What a container is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// [`VERSION`].
    pub version: u32,
    /// 64 hex digits.
    pub id: String,
    /// Unique among the containers of a store.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// The image as the user named it.
    pub image: String,
    /// The image that name meant at that time.
    pub image_id: ImageId,
    /// The layers below the container's upper, bottom first.
    pub layers: Vec<DiffId>,
    /// Program, arguments, environment, user.
    pub process: Process,
    /// Of the container's own UTS namespace.
    pub hostname: String,
    /// It has a terminal of its own.
    pub tty: bool,
    /// Its standard input is the caller's, not /dev/null.
    pub open_stdin: bool,
    /// Limit in bytes.
    pub memory: Option<u64>,
    /// It may make any system call. Else, and where the file is older than this field, Docker's default profile holds.
    #[serde(default)]
    pub seccomp_unconfined: bool,
    /// Removed, with its anonymous volumes, when it is over.
    pub auto_remove: bool,
    /// In the order in which they are mounted: a parent before what is below it.
    pub mounts: Vec<Mount>,
}

/// A volume or a host path in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What is mounted.
    pub source: MountSource,
    /// Absolute path in the container.
    pub destination: String,
    /// Mounted read-only.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountSource {
    /// A volume of the store.
    Volume {
        /// Its name.
        name: String,
        /// Made for this container and removed with it (`rm -v`, `--rm`).
        anonymous: bool,
        /// A new volume begins empty instead of with what the image has there.
        no_copy: bool,
    },
    /// A path of the host, absolute.
    Bind(PathBuf),
}

impl Config {
    /// Stands for a configuration that cannot be read.
    pub(super) fn unknown(id: &str) -> Self {
        Self {
            version: VERSION,
            id: id.to_owned(),
            name: String::new(),
            created: Timestamp::UNIX_EPOCH,
            image: String::new(),
            image_id: ImageId(Sha256Digest::from_bytes([0; 32])),
            layers: Vec::new(),
            process: Process {
                argv: Vec::new(),
                env: Vec::new(),
                cwd: "/".to_owned(),
                user: String::new(),
            },
            hostname: String::new(),
            tty: false,
            open_stdin: false,
            memory: None,
            seccomp_unconfined: false,
            auto_remove: false,
            mounts: Vec::new(),
        }
    }

    /// Names of the volumes it uses.
    pub fn volumes(&self) -> impl Iterator<Item = &str> {
        self.mounts.iter().filter_map(|mount| match &mount.source {
            MountSource::Volume { name, .. } => Some(name.as_str()),
            MountSource::Bind(_) => None,
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
