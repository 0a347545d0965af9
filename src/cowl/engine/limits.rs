//! Limits: which of Docker's `Resources` are refused, which this host cannot enforce, and which are
//! passed to the launcher.

use super::docker::{Resources, ThrottleDevice, WeightDevice};
use super::error::{Context as _, Error, Result};
use cowl_launch::cgroup::{
    NO_OOM_KILL_DISABLE, can_disable_oom_killer, discard_device_weights, discard_unsupported,
};
use cowl_launch::sandbox::{DeviceWeight, Limits, Throttle, ThrottleKind};
use rustix::fs::FileType;

/// moby's `linuxMinMemory`.
const MIN_MEMORY: i64 = 6 << 20;
/// The kernel's bounds for a CPU quota's period, in microseconds.
const PERIODS: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;
const DEFAULT_PERIOD: i64 = 100_000;
const BILLION: i64 = 1_000_000_000;

const OOM_KILLER_WITHOUT_LIMIT: &str = "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.";

/// Refuses what no host can enforce, with dockerd's texts (moby, `daemon/daemon_unix.go`,
/// `verifyPlatformContainerResources`). `update`: the container has limits already.
pub(super) fn check(asked: &Resources, update: bool) -> Result<()> {
    memory(asked, update)
        .and_then(|()| processors(asked))
        .and_then(|()| block_devices(asked))
        .and_then(|()| cgroup_parent(&asked.cgroup_parent))
}

fn refuse<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::invalid(text))
}

fn memory(asked: &Resources, update: bool) -> Result<()> {
    let Resources {
        memory,
        memory_swap: swap,
        memory_reservation: reservation,
        ..
    } = *asked;
    if memory != 0 && memory < MIN_MEMORY {
        return refuse("Minimum memory limit allowed is 6MB");
    }
    if swap < -1 {
        return refuse(format!(
            "invalid memory swap limit ({swap}): it is -1, 0 or a size"
        ));
    }
    if memory > 0 && swap > 0 && swap < memory {
        return refuse("Minimum memoryswap limit should be larger than memory limit, see usage");
    }
    if memory == 0 && swap > 0 && !update {
        return refuse(
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        );
    }
    if let Some(percent) = asked.memory_swappiness
        && !(-1..=100).contains(&percent)
    {
        return refuse(format!(
            "Invalid value: {percent}, valid memory swappiness range is 0-100"
        ));
    }
    if reservation != 0 && reservation < MIN_MEMORY {
        return refuse("Minimum memory reservation allowed is 6MB");
    }
    if memory > 0 && reservation > memory {
        return refuse(
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        );
    }
    Ok(())
}

fn processors(asked: &Resources) -> Result<()> {
    let Resources {
        nano_cpus,
        cpu_period: period,
        cpu_quota: quota,
        cpu_shares: shares,
        ..
    } = *asked;
    for (other, name) in [(period, "Period"), (quota, "Quota")] {
        if nano_cpus > 0 && other > 0 {
            return refuse(format!(
                "Conflicting options: Nano CPUs and CPU {name} cannot both be set"
            ));
        }
    }
    // The host is asked only for what the request names: that takes a dozen system calls each.
    if nano_cpus != 0 {
        let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let most = i64::try_from(available)
            .unwrap_or(i64::MAX)
            .saturating_mul(BILLION);
        if nano_cpus < 0 || nano_cpus > most {
            return refuse(format!(
                "Range of CPUs is from 0.01 to {available}.00, as there are only {available} CPUs available"
            ));
        }
    }
    if shares < 0 {
        return refuse(format!(
            "invalid CPU shares ({shares}): value must be a positive integer"
        ));
    }
    if period != 0 && !PERIODS.contains(&period) {
        return refuse(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        );
    }
    if quota > 0 && quota < *PERIODS.start() {
        return refuse("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    for (list, what, have, file) in [
        (
            &asked.cpuset_cpus,
            "cpuset cpus",
            "CPUs",
            "/sys/devices/system/cpu/online",
        ),
        (
            &asked.cpuset_mems,
            "cpuset mems",
            "memory nodes",
            "/sys/devices/system/node/online",
        ),
    ] {
        if list.is_empty() {
            continue;
        }
        let Some(wanted) = ranges(list) else {
            return refuse(format!("Invalid value {list} for {what}"));
        };
        // A kernel without NUMA has one node and lacks the file.
        let online = std::fs::read_to_string(file).unwrap_or_else(|_missing| "0".to_owned());
        let online = online.trim();
        let there = ranges(online).unwrap_or_default();
        let is_there = |one: u32| there.iter().any(|range| range.contains(&one));
        if !wanted.into_iter().flatten().all(is_there) {
            return refuse(format!(
                "Requested {have} are not available - requested {list}, available: {online}"
            ));
        }
    }
    Ok(())
}

/// Parses a list like `0-2,4`; None if it is malformed.
fn ranges(list: &str) -> Option<Vec<std::ops::RangeInclusive<u32>>> {
    /// More than any machine has, so that no list is long.
    const MAX: u32 = 1 << 16;
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number < MAX);
    let range = |text: &str| match text.split_once('-') {
        Some((first, last)) => {
            Some(number(first)?..=number(last)?).filter(|range| !range.is_empty())
        }
        None => number(text).map(|one| one..=one),
    };
    list.split(',')
        .filter(|_| !list.is_empty())
        .map(range)
        .collect()
}

fn block_devices(asked: &Resources) -> Result<()> {
    let devices = asked.blkio_weight_device.iter();
    let weights = devices.map(|device| device.weight);
    let mut weights = weights.chain([asked.blkio_weight]);
    if weights.any(|weight| weight != 0 && !(10..=1000).contains(&weight)) {
        return refuse("Range of blkio weight is from 10 to 1000");
    }
    weighed(asked)?;
    throttles(asked).map(drop)
}

/// Requires a path of plain names, with or without a leading slash.
fn cgroup_parent(parent: &str) -> Result<()> {
    let plain = |name: &str| !matches!(name, "." | "..") && !name.contains(['\0', '\n']);
    if parent.split('/').all(plain) {
        return Ok(());
    }
    refuse(format!("invalid cgroup parent: \"{parent}\""))
}

/// Fills in Docker's derived values: as much swap as memory (moby, `adaptContainerSettings`).
pub(super) fn adapt(asked: &mut Resources) {
    if asked.memory > 0 && asked.memory_swap == 0 {
        asked.memory_swap = asked.memory.saturating_mul(2);
    }
}

/// The limits that the launcher enforces for a new container, and Docker's warnings for those that
/// this host cannot enforce.
pub(super) fn supported(asked: &Resources) -> Result<(Limits, Vec<String>)> {
    // New cgroups have no limit to lift.
    let fresh = Resources {
        pids_limit: asked.pids_limit.filter(|limit| *limit > 0),
        cpu_quota: asked.cpu_quota.max(0),
        ..asked.clone()
    };
    changeable(&fresh)
}

/// [`supported`] for a container that already has limits.
pub(super) fn changeable(asked: &Resources) -> Result<(Limits, Vec<String>)> {
    let mut limits = limits(asked)?;
    if limits == Limits::default() && asked.oom_kill_disable != Some(true) {
        return Ok((limits, Vec::new()));
    }
    let failed = || "looking for control groups";
    let discarded = discard_unsupported(&mut limits).context(failed)?;
    let mut warnings: Vec<String> = discarded.into_iter().map(str::to_owned).collect();
    if asked.oom_kill_disable == Some(true) {
        if !can_disable_oom_killer().context(failed)? {
            warnings.push(NO_OOM_KILL_DISABLE.to_owned());
        } else if asked.memory == 0 {
            warnings.push(OOM_KILLER_WITHOUT_LIMIT.to_owned());
        }
    }
    Ok((limits, warnings))
}

/// The per-device I/O weights that the launcher enforces for a new container, and Docker's warning
/// for those that this host cannot enforce.
pub(super) fn device_weights(asked: &Resources) -> Result<(Vec<DeviceWeight>, Option<String>)> {
    let mut weights = weighed(asked)?;
    let discarded =
        discard_device_weights(&mut weights).context(|| "looking for control groups")?;
    Ok((weights, discarded.map(str::to_owned)))
}

/// Whether the OOM killer is to be disabled, and can be.
pub(super) fn disables_oom_killer(asked: &Resources) -> Result<bool> {
    Ok(asked.oom_kill_disable == Some(true)
        && can_disable_oom_killer().context(|| "looking for control groups")?)
}

fn limits(asked: &Resources) -> Result<Limits> {
    let limit = |asked: i64| u64::try_from(asked).ok().filter(|limit| *limit != 0);
    let or_none = |asked: i64| {
        if asked < 0 {
            Some(u64::MAX)
        } else {
            limit(asked)
        }
    };
    let list = |list: &String| (!list.is_empty()).then(|| list.clone());
    let (period, quota) = if asked.nano_cpus > 0 {
        let quota = i128::from(asked.nano_cpus) * i128::from(DEFAULT_PERIOD) / i128::from(BILLION);
        (limit(DEFAULT_PERIOD), u64::try_from(quota).ok())
    } else {
        (limit(asked.cpu_period), or_none(asked.cpu_quota))
    };
    Ok(Limits {
        memory: limit(asked.memory),
        memory_swap: match asked.memory_swap {
            -1 => Some(u64::MAX),
            swap => limit(swap),
        }
        .filter(|_| asked.memory > 0),
        memory_reservation: limit(asked.memory_reservation),
        memory_swappiness: asked
            .memory_swappiness
            .and_then(|percent| u64::try_from(percent).ok()),
        // Docker's "unlimited" is every number below 1.
        pids: asked.pids_limit.map(|most| {
            u64::try_from(most)
                .ok()
                .filter(|most| *most > 0)
                .unwrap_or(u64::MAX)
        }),
        cpu_shares: limit(asked.cpu_shares),
        cpu_quota: quota,
        cpu_period: period,
        cpuset_cpus: list(&asked.cpuset_cpus),
        cpuset_mems: list(&asked.cpuset_mems),
        blkio_weight: Some(asked.blkio_weight).filter(|weight| *weight != 0),
        blkio_throttle: throttles(asked)?,
    })
}

fn throttles(asked: &Resources) -> Result<Vec<Throttle>> {
    use ThrottleKind::{ReadBytes, Reads, WriteBytes, Writes};
    let lists = [
        (ReadBytes, &asked.blkio_device_read_bps),
        (WriteBytes, &asked.blkio_device_write_bps),
        (Reads, &asked.blkio_device_read_iops),
        (Writes, &asked.blkio_device_write_iops),
    ];
    let throttle = |kind| move |device: &ThrottleDevice| throttle(kind, device);
    lists
        .into_iter()
        .flat_map(|(kind, devices)| devices.iter().map(throttle(kind)))
        .collect()
}

fn throttle(kind: ThrottleKind, device: &ThrottleDevice) -> Result<Throttle> {
    let (major, minor) = block_device(&device.path)?;
    Ok(Throttle {
        kind,
        major,
        minor,
        rate: device.rate,
    })
}

fn weighed(asked: &Resources) -> Result<Vec<DeviceWeight>> {
    let devices = asked.blkio_weight_device.iter();
    let weighed = devices.filter(|device| device.weight != 0);
    weighed
        .map(|WeightDevice { path, weight }| {
            let (major, minor) = block_device(path)?;
            Ok(DeviceWeight {
                major,
                minor,
                weight: *weight,
            })
        })
        .collect()
}

/// Major and minor number of a block device of the host.
fn block_device(path: &str) -> Result<(u32, u32)> {
    let found = rustix::fs::stat(path).context(|| format!("device {path}"))?;
    if FileType::from_raw_mode(found.st_mode) != FileType::BlockDevice {
        return refuse(format!("{path} is not a block device"));
    }
    let device = found.st_rdev;
    Ok((rustix::fs::major(device), rustix::fs::minor(device)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused<const N: usize>(table: [(serde_json::Value, &str); N]) {
        for (asked, text) in table {
            let asked: Resources = serde_json::from_value(asked).unwrap();
            assert_eq!(check(&asked, false).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn check_refuses_wrong_block_device_limits() {
        refused([
            (
                json!({"BlkioWeight": 9}),
                "Range of blkio weight is from 10 to 1000",
            ),
            (
                json!({"BlkioWeightDevice": [{"Path": "/dev/null", "Weight": 1001}]}),
                "Range of blkio weight is from 10 to 1000",
            ),
            (
                json!({"BlkioWeightDevice": [{"Path": "/dev/null", "Weight": 10}]}),
                "/dev/null is not a block device",
            ),
            (
                json!({"BlkioDeviceReadBps": [{"Path": "/dev/null", "Rate": 1}]}),
                "/dev/null is not a block device",
            ),
        ]);
    }

    #[test]
    fn check_refuses_impossible_limits_with_dockers_texts() {
        let table = [
            (
                json!({"Memory": 1 << 20}),
                "Minimum memory limit allowed is 6MB",
            ),
            (
                json!({"Memory": 8 << 20, "MemorySwap": 7 << 20}),
                "Minimum memoryswap limit should be larger than memory limit, see usage",
            ),
            (
                json!({"MemorySwap": 7 << 20}),
                "You should always set the Memory limit when using Memoryswap limit, see usage",
            ),
            (
                json!({"MemorySwappiness": 101}),
                "Invalid value: 101, valid memory swappiness range is 0-100",
            ),
            (
                json!({"MemoryReservation": 1}),
                "Minimum memory reservation allowed is 6MB",
            ),
            (
                json!({"Memory": 8 << 20, "MemoryReservation": 9 << 20}),
                "Minimum memory limit can not be less than memory reservation limit, see usage",
            ),
            (
                json!({"NanoCpus": 1, "CpuQuota": 5000}),
                "Conflicting options: Nano CPUs and CPU Quota cannot both be set",
            ),
            (
                json!({"NanoCpus": 1, "CpuPeriod": 5000}),
                "Conflicting options: Nano CPUs and CPU Period cannot both be set",
            ),
            (
                json!({"CpuShares": -1}),
                "invalid CPU shares (-1): value must be a positive integer",
            ),
            (
                json!({"CpuPeriod": 1}),
                "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
            ),
            (
                json!({"CpuQuota": 1}),
                "CPU cfs quota can not be less than 1ms (i.e. 1000)",
            ),
            (
                json!({"CpusetCpus": "1-0"}),
                "Invalid value 1-0 for cpuset cpus",
            ),
            (
                json!({"CpusetMems": "a"}),
                "Invalid value a for cpuset mems",
            ),
            (
                json!({"CgroupParent": "/a/../b"}),
                "invalid cgroup parent: \"/a/../b\"",
            ),
        ];
        refused(table);
        let far: Resources = serde_json::from_value(json!({"CpusetCpus": "60000"})).unwrap();
        let refused = check(&far, false).unwrap_err().to_string();
        assert!(
            refused.starts_with("Requested CPUs are not available - requested 60000, available: 0"),
            "{refused}"
        );
    }

    #[test]
    fn limits_translates_dockers_resources() {
        let mut asked: Resources = serde_json::from_value(json!({
            "Memory": 8 << 20, "NanoCpus": 500_000_000, "PidsLimit": -1, "MemorySwappiness": -1,
            "CpusetCpus": "0", "BlkioWeight": 300,
        }))
        .unwrap();
        check(&asked, false).unwrap();
        adapt(&mut asked);
        assert_eq!(
            limits(&asked).unwrap(),
            Limits {
                memory: Some(8 << 20),
                memory_swap: Some(16 << 20),
                cpu_quota: Some(50_000),
                cpu_period: Some(100_000),
                cpuset_cpus: Some("0".to_owned()),
                blkio_weight: Some(300),
                pids: Some(u64::MAX),
                ..Limits::default()
            }
        );
        asked.memory_swap = -1;
        assert_eq!(limits(&asked).unwrap().memory_swap, Some(u64::MAX));
    }
}
