//! Docker's `Resources`: the limits of a container, in `HostConfig` and in an update.

use super::{is_default, or_default};
use serde::{Deserialize, Serialize};

/// Docker's `Resources`. 0, an empty string and None set nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Resources {
    /// Memory limit in bytes.
    #[serde(deserialize_with = "or_default")]
    pub memory: i64,
    /// Limit of memory and swap together, in bytes; -1 for no limit.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub memory_swap: i64,
    /// Soft limit in bytes, down to which memory is reclaimed when the host is short of it.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub memory_reservation: i64,
    /// Swappiness: 0 to 100, or -1 for the host's.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub memory_swappiness: Option<i64>,
    /// At the memory limit processes wait instead of being killed.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub oom_kill_disable: Option<bool>,
    /// Limit of processes and threads; -1 for no limit.
    #[serde(deserialize_with = "or_default")]
    pub pids_limit: Option<i64>,
    /// CPU limit in billionths of a CPU.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub nano_cpus: i64,
    /// Relative CPU weight; the default is 1024.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub cpu_shares: i64,
    /// The quota's period in microseconds.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub cpu_period: i64,
    /// CPU time per period in microseconds.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub cpu_quota: i64,
    /// CPUs that it may use: `0-2,4`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub cpuset_cpus: String,
    /// NUMA nodes whose memory it may use.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub cpuset_mems: String,
    /// Block I/O weight: 10 to 1000.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub blkio_weight: u16,
    /// Block I/O weights of single devices.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub blkio_weight_device: Vec<WeightDevice>,
    /// Bytes read per second.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub blkio_device_read_bps: Vec<ThrottleDevice>,
    /// Bytes written per second.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub blkio_device_write_bps: Vec<ThrottleDevice>,
    /// Reads per second.
    #[serde(
        rename = "BlkioDeviceReadIOps",
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    pub blkio_device_read_iops: Vec<ThrottleDevice>,
    /// Writes per second.
    #[serde(
        rename = "BlkioDeviceWriteIOps",
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    pub blkio_device_write_iops: Vec<ThrottleDevice>,
    /// The parent of its cgroups, in each hierarchy.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub cgroup_parent: String,
}

/// Docker's `WeightDevice`: a block device of the host and its I/O weight.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct WeightDevice {
    /// Of the device's node.
    #[serde(deserialize_with = "or_default")]
    pub path: String,
    /// 10 to 1000; 0 for the default.
    #[serde(deserialize_with = "or_default")]
    pub weight: u16,
}

/// Docker's `ThrottleDevice`: a block device of the host and a rate per second.
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
