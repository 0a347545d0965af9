//! Docker's `Resources`: the limits of a container. A part of `HostConfig`, and of an update.

use super::{is_default, or_default};
use serde::{Deserialize, Serialize};

/// Docker's `Resources`. 0, an empty text and none ask for nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Resources {
    /// Bytes of memory.
    #[serde(deserialize_with = "or_default")]
    pub memory: i64,
    /// Bytes of memory and swap together; -1 for no limit.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub memory_swap: i64,
    /// Bytes that are left to it when the host is short of memory.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub memory_reservation: i64,
    /// How readily its memory is swapped: 0 to 100, or -1 for "as the host does".
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub memory_swappiness: Option<i64>,
    /// At the limit of memory its processes wait instead of being killed.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub oom_kill_disable: Option<bool>,
    /// Processes and threads; -1 for no limit.
    #[serde(deserialize_with = "or_default")]
    pub pids_limit: Option<i64>,
    /// Processors, in billionths of one.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub nano_cpus: i64,
    /// Weight of its processor time; 1024 is usual.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub cpu_shares: i64,
    /// Microseconds of a period of the quota.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub cpu_period: i64,
    /// Microseconds of processor time in a period.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub cpu_quota: i64,
    /// Processors that it may use: `0-2,4`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub cpuset_cpus: String,
    /// Memory nodes that it may use.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub cpuset_mems: String,
    /// Weight of its transfers of block devices: 10 to 1000.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub blkio_weight: u16,
    /// Weights of single block devices.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub blkio_weight_device: Vec<WeightDevice>,
    /// Bytes read in a second.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub blkio_device_read_bps: Vec<ThrottleDevice>,
    /// Bytes written in a second.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub blkio_device_write_bps: Vec<ThrottleDevice>,
    /// Reads in a second.
    #[serde(
        rename = "BlkioDeviceReadIOps",
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    pub blkio_device_read_iops: Vec<ThrottleDevice>,
    /// Writes in a second.
    #[serde(
        rename = "BlkioDeviceWriteIOps",
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    pub blkio_device_write_iops: Vec<ThrottleDevice>,
    /// The cgroup that its own are below, in each hierarchy.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub cgroup_parent: String,
}

/// Docker's `WeightDevice`: a block device of the host and the weight of transfers of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct WeightDevice {
    /// Of the device's node.
    #[serde(deserialize_with = "or_default")]
    pub path: String,
    /// 10 to 1000; 0 for the usual one.
    #[serde(deserialize_with = "or_default")]
    pub weight: u16,
}

/// Docker's `ThrottleDevice`: a block device of the host and what it may do in a second.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ThrottleDevice {
    /// Of the device's node.
    #[serde(deserialize_with = "or_default")]
    pub path: String,
    /// Bytes or operations.
    #[serde(deserialize_with = "or_default")]
    pub rate: u64,
}
