//! Limits as files of cgroups: which controller, which file and which value on each version.
//!
//! Memory with swap is an order of writes and stands in [`super`]; every other limit is a row of
//! [`settings`]. Callers: [`super::ContainerCgroups`], and an engine that wants to know beforehand
//! what a host can't enforce ([`discard_unsupported`]).

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::directory::Directory;
use super::hierarchy::mounted_hierarchies;
use super::layout::Layout;
use super::unified;
use crate::sandbox::{DeviceWeight, Limits, Throttle, ThrottleKind};

/// What one limit writes. Of several files with the same purpose the first that exists is taken.
pub(super) struct Setting {
    /// On version 1, and on version 2.
    pub(super) controllers: [&'static str; 2],
    /// Docker's words for a host that can't enforce it.
    pub(super) discarded: &'static str,
    /// Files and value on version 1, and on version 2; none if the version has no such limit.
    pub(super) writes: [Option<(Vec<&'static str>, String)>; 2],
}

const MEMORY: &str = "Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded.";
const SWAP: &str = "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.";
const RESERVATION: &str = "Your kernel does not support memory soft limit capabilities or the cgroup is not mounted. Limitation discarded.";
const SWAPPINESS: &str = "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.";
const PIDS: &str = "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.";
const SHARES: &str =
    "Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.";
const QUOTA: &str = "Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.";
const CPUSET: &str =
    "Your kernel does not support cpuset or the cgroup is not mounted. CPUset discarded.";
const WEIGHT: &str =
    "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.";

const DEVICE_WEIGHT: &str = "Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded.";

/// Docker's words for a host that can't let processes wait at the limit of memory.
pub const NO_OOM_KILL_DISABLE: &str =
    "Your kernel does not support OomKillDisable. OomKillDisable discarded.";

/// Period of the scheduler's quota in microseconds, where none is given.
const PERIOD: u64 = 100_000;

/// The rows of the limits that are given, but for memory and swap.
pub(super) fn settings(limits: &Limits) -> Vec<Setting> {
    let mut settings = memory_and_pids(limits);
    settings.extend(processors(limits));
    settings.extend(block_devices(limits));
    settings
}

/// A row of one controller, with one file on each version.
fn row(
    controller: &'static str,
    discarded: &'static str,
    [legacy, unified]: [(&'static str, String); 2],
) -> Setting {
    Setting {
        controllers: [controller; 2],
        discarded,
        writes: [
            Some((vec![legacy.0], legacy.1)),
            Some((vec![unified.0], unified.1)),
        ],
    }
}

fn memory_and_pids(limits: &Limits) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(bytes) = limits.memory_reservation {
        let value = bytes.to_string();
        let writes = [
            ("memory.soft_limit_in_bytes", value.clone()),
            ("memory.low", value),
        ];
        settings.push(row("memory", RESERVATION, writes));
    }
    if let Some(percent) = limits.memory_swappiness {
        settings.push(Setting {
            controllers: ["memory"; 2],
            discarded: SWAPPINESS,
            writes: [Some((vec!["memory.swappiness"], percent.to_string())), None],
        });
    }
    if let Some(tasks) = limits.pids {
        let write = ("pids.max", unless_none(tasks, "max"));
        settings.push(row("pids", PIDS, [write.clone(), write]));
    }
    settings
}

fn processors(limits: &Limits) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(shares) = limits.cpu_shares {
        // The kernel's own bounds of version 1, mapped as by runc.
        let weight = 1 + shares.clamp(2, 262_144).saturating_sub(2) * 9999 / 262_142;
        let writes = [
            ("cpu.shares", shares.to_string()),
            ("cpu.weight", weight.to_string()),
        ];
        settings.push(row("cpu", SHARES, writes));
    }
    if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
        let period = limits.cpu_period.unwrap_or(PERIOD);
        let quota = limits.cpu_quota.map(|quota| unless_none(quota, "-1"));
        let shown = limits
            .cpu_quota
            .map_or("max".to_owned(), |quota| unless_none(quota, "max"));
        let unified = ("cpu.max", format!("{shown} {period}"));
        // The period first: a quota must fit it.
        let first = ("cpu.cfs_period_us", period.to_string());
        settings.push(row("cpu", QUOTA, [first, unified.clone()]));
        if let Some(quota) = quota {
            settings.push(row("cpu", QUOTA, [("cpu.cfs_quota_us", quota), unified]));
        }
    }
    for (list, file) in [
        (&limits.cpuset_cpus, "cpuset.cpus"),
        (&limits.cpuset_mems, "cpuset.mems"),
    ] {
        if let Some(list) = list {
            let write = (file, list.clone());
            settings.push(row("cpuset", CPUSET, [write.clone(), write]));
        }
    }
    settings
}

/// A number as the kernel reads it; `u64::MAX` is no limit.
fn unless_none(number: u64, none: &str) -> String {
    match number {
        u64::MAX => none.to_owned(),
        number => number.to_string(),
    }
}

fn block_devices(limits: &Limits) -> Vec<Setting> {
    let weight = limits.blkio_weight.map(|weight| {
        let value = weight.to_string();
        Setting {
            controllers: ["blkio", "io"],
            discarded: WEIGHT,
            writes: [
                Some((vec!["blkio.weight", "blkio.bfq.weight"], value.clone())),
                Some((vec!["io.bfq.weight", "io.weight"], value)),
            ],
        }
    });
    let throttles = limits.blkio_throttle.iter().map(|throttle| Setting {
        controllers: ["blkio", "io"],
        discarded: throttle_discarded(throttle.kind),
        writes: throttle_writes(throttle),
    });
    weight.into_iter().chain(throttles).collect()
}

/// The row of one device's weight. Only the scheduler BFQ has such weights.
pub(super) fn device_weight(device: &DeviceWeight) -> Setting {
    let DeviceWeight {
        major,
        minor,
        weight,
    } = device;
    let value = format!("{major}:{minor} {weight}");
    Setting {
        controllers: ["blkio", "io"],
        discarded: DEVICE_WEIGHT,
        writes: [
            Some((vec!["blkio.bfq.weight_device"], value.clone())),
            Some((vec!["io.bfq.weight"], value)),
        ],
    }
}

fn throttle_writes(throttle: &Throttle) -> [Option<(Vec<&'static str>, String)>; 2] {
    let (legacy, unified) = match throttle.kind {
        ThrottleKind::ReadBytes => ("blkio.throttle.read_bps_device", "rbps"),
        ThrottleKind::WriteBytes => ("blkio.throttle.write_bps_device", "wbps"),
        ThrottleKind::Reads => ("blkio.throttle.read_iops_device", "riops"),
        ThrottleKind::Writes => ("blkio.throttle.write_iops_device", "wiops"),
    };
    let Throttle {
        major, minor, rate, ..
    } = throttle;
    [
        Some((vec![legacy], format!("{major}:{minor} {rate}"))),
        Some((vec!["io.max"], format!("{major}:{minor} {unified}={rate}"))),
    ]
}

fn throttle_discarded(kind: ThrottleKind) -> &'static str {
    match kind {
        ThrottleKind::ReadBytes => {
            "Your kernel does not support BPS Block I/O read limit or the cgroup is not mounted. Block I/O BPS read limit discarded."
        }
        ThrottleKind::WriteBytes => {
            "Your kernel does not support BPS Block I/O write limit or the cgroup is not mounted. Block I/O BPS write limit discarded."
        }
        ThrottleKind::Reads => {
            "Your kernel does not support IOPS Block read limit or the cgroup is not mounted. Block I/O IOPS read limit discarded."
        }
        ThrottleKind::Writes => {
            "Your kernel does not support IOPS Block write limit or the cgroup is not mounted. Block I/O IOPS write limit discarded."
        }
    }
}

impl Setting {
    /// Writes it into the cgroup of its controller; ENOENT if this version or kernel has no such
    /// limit.
    pub(super) fn write(&self, made: &Directory, version: Version) -> io::Result<()> {
        let [legacy, unified] = &self.writes;
        let write = match version {
            Version::Legacy => legacy,
            Version::Unified => unified,
        };
        let (files, value) = write.as_ref().ok_or(Errno::NOENT)?;
        for file in files {
            if made.write_if_present(file, value)? {
                return Ok(());
            }
        }
        Err(Errno::NOENT.into())
    }

    fn is_supported(&self, layout: &Layout) -> bool {
        let [legacy, unified] = self.controllers;
        let [on_legacy, on_unified] = &self.writes;
        match available(layout, legacy, unified) {
            Some((Version::Legacy, base)) => has_file(&base, on_legacy.as_ref()),
            Some((Version::Unified, base)) => has_file(&base, on_unified.as_ref()),
            None => false,
        }
    }

    pub(super) fn controller(&self, version: Version) -> &'static str {
        let [legacy, unified] = self.controllers;
        match version {
            Version::Legacy => legacy,
            Version::Unified => unified,
        }
    }
}

/// Of a cgroup hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Legacy,
    Unified,
}

/// Takes out the limits that this host can't enforce, and gives Docker's words for each.
///
/// It looks at what is mounted and writable, and at files of a cgroup that is there already.
pub fn discard_unsupported(limits: &mut Limits) -> io::Result<Vec<&'static str>> {
    let layout = mounted_hierarchies().map_err(|error| io::Error::other(error.to_string()))?;
    let mut said = Vec::new();
    let mut check = |supported: bool, text| {
        if !supported && !said.contains(&text) {
            said.push(text);
        }
        supported
    };
    let memory = available(&layout, "memory", "memory");
    if limits.memory.is_some() && !check(memory.is_some(), MEMORY) {
        (limits.memory, limits.memory_swap) = (None, None);
    }
    if limits.memory_swap.is_some() && !check(counts_swap(&layout), SWAP) {
        limits.memory_swap = None;
    }
    let mut keep = |part: Limits| {
        settings(&part)
            .iter()
            .all(|setting| check(setting.is_supported(&layout), setting.discarded))
    };
    macro_rules! discard {
        ($($field:ident)*) => {$(
            let part = Limits { $field: limits.$field.clone(), ..Limits::default() };
            if !keep(part) {
                limits.$field = Default::default();
            }
        )*};
    }
    discard! {
        memory_reservation memory_swappiness pids cpu_shares cpu_quota cpu_period cpuset_cpus
        cpuset_mems blkio_weight blkio_throttle
    }
    Ok(said)
}

/// Takes out the weights of devices that this host can't enforce, and gives Docker's words for them.
///
/// The kernel refuses those of a device whose scheduler is not BFQ, and of partitions.
pub fn discard_device_weights(weights: &mut Vec<DeviceWeight>) -> io::Result<Option<&'static str>> {
    if weights.is_empty() {
        return Ok(None);
    }
    let layout = mounted_hierarchies().map_err(|error| io::Error::other(error.to_string()))?;
    let asked = weights.len();
    weights.retain(|device| {
        let DeviceWeight { major, minor, .. } = device;
        let file = format!("/sys/dev/block/{major}:{minor}/queue/scheduler");
        // A partition, and a device that is gone, have none.
        let schedulers = std::fs::read_to_string(file).unwrap_or_default();
        schedulers.contains("[bfq]") && device_weight(device).is_supported(&layout)
    });
    Ok((weights.len() < asked).then_some(DEVICE_WEIGHT))
}

/// The version that has this controller for us, and the directory that our cgroups are below.
fn available(layout: &Layout, legacy: &str, unified: &str) -> Option<(Version, PathBuf)> {
    if let Some(mounted) = layout.legacy_of(legacy) {
        let base = mounted.mount_point.clone();
        return unified::writable_directory(&base).then_some((Version::Legacy, base));
    }
    let base = unified::base(layout.unified.as_deref()?);
    let controllers = std::fs::read_to_string(base.join("cgroup.controllers")).ok()?;
    let has = controllers.split_whitespace().any(|name| name == unified);
    (has && unified::writable(&base)).then_some((Version::Unified, base))
}

/// Whether a cgroup has one of the files that a limit writes. A root lacks some that its children
/// have; where there is no child yet, only a start can tell.
fn has_file(base: &Path, write: Option<&(Vec<&'static str>, String)>) -> bool {
    let Some((files, _)) = write else {
        return false;
    };
    let has = |directory: &Path| {
        let there = |file: &&str| directory.join(file).try_exists().unwrap_or(false);
        files.iter().any(there)
    };
    let mut children = std::fs::read_dir(base)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .peekable();
    has(base) || children.peek().is_none() || children.any(|child| has(&child.path()))
}

/// Whether [`Sandbox::oom_kill_disable`](crate::sandbox::Sandbox::oom_kill_disable) can be had.
pub fn can_disable_oom_killer() -> io::Result<bool> {
    let layout = mounted_hierarchies().map_err(|error| io::Error::other(error.to_string()))?;
    let version = available(&layout, "memory", "memory").map(|(version, _)| version);
    Ok(version == Some(Version::Legacy))
}

fn counts_swap(layout: &Layout) -> bool {
    let file = match layout.legacy_of("memory") {
        Some(mounted) => mounted.mount_point.join("memory.memsw.limit_in_bytes"),
        // The root of version 2 has no such file; a kernel with swap counts it.
        None => Path::new("/proc/swaps").to_owned(),
    };
    // What can't be looked at is not there for us.
    file.try_exists().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(limits: &Limits) -> Vec<String> {
        let line = |write: &Option<(Vec<&'static str>, String)>| match write {
            Some((files, value)) => format!("{}={value}", files.join("|")),
            None => "-".to_owned(),
        };
        settings(limits)
            .iter()
            .map(|setting| {
                let [legacy, unified] = &setting.writes;
                format!("{} {}", line(legacy), line(unified))
            })
            .collect()
    }

    #[test]
    fn each_limit_has_its_file_on_both_versions() {
        let limits = Limits {
            memory_reservation: Some(7),
            memory_swappiness: Some(8),
            pids: Some(9),
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpuset_cpus: Some("0-1".to_owned()),
            cpuset_mems: Some("0".to_owned()),
            blkio_weight: Some(300),
            blkio_throttle: vec![Throttle {
                kind: ThrottleKind::WriteBytes,
                major: 8,
                minor: 1,
                rate: 4096,
            }],
            ..Limits::default()
        };
        assert_eq!(
            written(&limits),
            [
                "memory.soft_limit_in_bytes=7 memory.low=7",
                "memory.swappiness=8 -",
                "pids.max=9 pids.max=9",
                "cpu.shares=1024 cpu.weight=39",
                "cpu.cfs_period_us=100000 cpu.max=50000 100000",
                "cpu.cfs_quota_us=50000 cpu.max=50000 100000",
                "cpuset.cpus=0-1 cpuset.cpus=0-1",
                "cpuset.mems=0 cpuset.mems=0",
                "blkio.weight|blkio.bfq.weight=300 io.bfq.weight|io.weight=300",
                "blkio.throttle.write_bps_device=8:1 4096 io.max=8:1 wbps=4096",
            ]
        );
        assert!(written(&Limits::default()).is_empty());
        let device = device_weight(&DeviceWeight {
            major: 8,
            minor: 0,
            weight: 300,
        });
        let [legacy, unified] = device.writes.map(Option::unwrap);
        assert_eq!(
            legacy,
            (vec!["blkio.bfq.weight_device"], "8:0 300".to_owned())
        );
        assert_eq!(unified, (vec!["io.bfq.weight"], "8:0 300".to_owned()));
    }
}
