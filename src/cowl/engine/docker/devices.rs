//! Devices and resource limits of processes in a `HostConfig`.

use super::or_default;
use serde::{Deserialize, Serialize};

/// Docker's `DeviceMapping`: a device of the host in the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeviceMapping {
    /// A device node, or a directory of nodes.
    #[serde(deserialize_with = "or_default")]
    pub path_on_host: String,
    /// Path in the container; empty for the same path.
    #[serde(deserialize_with = "or_default")]
    pub path_in_container: String,
    /// Any of `r`, `w` and `m` (mknod); empty for all.
    #[serde(deserialize_with = "or_default")]
    pub cgroup_permissions: String,
}

/// Docker's `Ulimit`; -1 is unlimited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ulimit {
    /// As in limits.conf(5): `nofile`.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// The soft limit.
    #[serde(deserialize_with = "or_default")]
    pub soft: i64,
    /// The hard limit, up to which the program may raise it.
    #[serde(deserialize_with = "or_default")]
    pub hard: i64,
}
