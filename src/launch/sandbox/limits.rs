//! Resource limits of a container.

use bincode::{Decode, Encode};

/// Resource limits; `None` is no limit, and at a change of limits leaves what is.
///
/// A limit that the host's cgroups can't enforce is an error: an engine that wants to go on without
/// asks before ([`crate::cgroup::discard_unsupported`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of memory and swap together, at least those of memory; `u64::MAX` is no limit. If none
    /// is given and [`Limits::memory`] is, nothing is swapped.
    pub memory_swap: Option<u64>,
    /// Bytes that are left to it when the host is short of memory.
    pub memory_reservation: Option<u64>,
    /// How readily its memory is swapped, 0 to 100.
    pub memory_swappiness: Option<u64>,
    /// Tasks (processes and threads); `u64::MAX` is no limit.
    pub pids: Option<u64>,
    /// Weight of its processor time, 2 to 262144; 1024 is usual.
    pub cpu_shares: Option<u64>,
    /// Microseconds of processor time in a period; `u64::MAX` is no limit.
    pub cpu_quota: Option<u64>,
    /// Microseconds of a period; 100000 is usual.
    pub cpu_period: Option<u64>,
    /// Processors that it may use: `0-2,4`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that it may use.
    pub cpuset_mems: Option<String>,
    /// Weight of its transfers of block devices, 10 to 1000.
    pub blkio_weight: Option<u16>,
    /// Rates of single block devices.
    pub blkio_throttle: Vec<Throttle>,
}

/// The share of one block device's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DeviceWeight {
    /// Major number of the device.
    pub major: u32,
    /// Minor number of the device.
    pub minor: u32,
    /// 10 to 1000; 100 is usual.
    pub weight: u16,
}

/// A limit of transfers of one block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Throttle {
    /// What is limited.
    pub kind: ThrottleKind,
    /// Major number of the device.
    pub major: u32,
    /// Minor number of the device.
    pub minor: u32,
    /// Bytes or operations a second.
    pub rate: u64,
}

/// See [`Throttle::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ThrottleKind {
    /// Bytes read.
    ReadBytes,
    /// Bytes written.
    WriteBytes,
    /// Reads.
    Reads,
    /// Writes.
    Writes,
}
