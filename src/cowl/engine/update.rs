//! `update`: changes the limits and restart policy of a container, running or not.
//!
//! What the request leaves out stays. Rules and texts: moby, `container/container_unix.go`
//! (`UpdateContainer`).

use super::Engine;
use super::docker::{HostConfig, Resources, RestartPolicy};
use super::error::{Error, Result};
use super::limits;

/// The parameters of [`Engine::update`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UpdateRequest {
    /// Limits; 0, empty and None change nothing.
    pub resources: Resources,
    /// Empty changes nothing.
    pub restart_policy: RestartPolicy,
}

impl Engine {
    /// Changes a container's limits and restart policy. Returns warnings for what this host cannot
    /// enforce.
    pub fn update(&self, needle: &str, request: &UpdateRequest) -> Result<Vec<String>> {
        limits::check(&request.resources, true)?;
        check_fields(&request.resources)?;
        let guard = self.containers.guard()?;
        let mut container = self.containers.find(needle)?;
        let id = container.config.id.clone();
        let cannot = |error: Error| error.context(format!("Cannot update container {id}"));
        let mut host = container.config.host.clone();
        merge(&mut host, request).map_err(cannot)?;
        let (_, mut warnings) = limits::changeable(&request.resources)?;
        let control = self.control(&container)?;
        if let Some(control) = &control {
            let (limits, _) = limits::changeable(&changed(&request.resources, &host.resources))?;
            let said = control
                .update(&limits)
                .map_err(|error| cannot(error.into()))?;
            warnings.extend(said);
        }
        container.config.host = host;
        if control.is_none() && !request.restart_policy.name.is_empty() {
            // A new policy does not start a container that has already ended.
            self.suspend_restarts(&container)?;
        }
        self.containers.write_config(&guard, &container)?;
        self.tell_container(&container.config, "update", &[]);
        Ok(warnings)
    }
}

/// Refuses fields that can only be set at a container's creation.
fn check_fields(asked: &Resources) -> Result<()> {
    let default = Resources::default();
    let fixed = [
        (
            "MemorySwappiness",
            asked.memory_swappiness.is_some_and(|percent| percent != -1),
        ),
        ("OomKillDisable", asked.oom_kill_disable == Some(true)),
        ("CgroupParent", asked.cgroup_parent != default.cgroup_parent),
        ("BlkioWeightDevice", !asked.blkio_weight_device.is_empty()),
        (
            "BlkioDeviceReadBps",
            !asked.blkio_device_read_bps.is_empty(),
        ),
        (
            "BlkioDeviceWriteBps",
            !asked.blkio_device_write_bps.is_empty(),
        ),
        (
            "BlkioDeviceReadIOps",
            !asked.blkio_device_read_iops.is_empty(),
        ),
        (
            "BlkioDeviceWriteIOps",
            !asked.blkio_device_write_iops.is_empty(),
        ),
    ];
    match fixed.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(Error::invalid(format!("{name} can't be updated"))),
        None => Ok(()),
    }
}

fn merge(host: &mut HostConfig, request: &UpdateRequest) -> Result<()> {
    let (new, old) = (&request.resources, &mut host.resources);
    let conflict = |new: &str, old: &str| {
        Err(Error::conflict(format!(
            "Conflicting options: {new} cannot be updated as {old} has already been set"
        )))
    };
    for (own, name) in [(old.cpu_period, "CPU Period"), (old.cpu_quota, "CPU Quota")] {
        if new.nano_cpus > 0 && own > 0 {
            return conflict("Nano CPUs", name);
        }
    }
    for (own, name) in [(new.cpu_period, "CPU Period"), (new.cpu_quota, "CPU Quota")] {
        if own > 0 && old.nano_cpus > 0 {
            return conflict(name, "NanoCPUs");
        }
    }
    if old.memory_swap > 0 && new.memory > old.memory_swap && new.memory_swap == 0 {
        return Err(Error::conflict(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
        ));
    }
    let number = |old: &mut i64, new: i64| *old = if new == 0 { *old } else { new };
    number(&mut old.memory, new.memory);
    number(&mut old.memory_swap, new.memory_swap);
    number(&mut old.memory_reservation, new.memory_reservation);
    number(&mut old.nano_cpus, new.nano_cpus);
    number(&mut old.cpu_shares, new.cpu_shares);
    number(&mut old.cpu_period, new.cpu_period);
    number(&mut old.cpu_quota, new.cpu_quota);
    for (old, new) in [
        (&mut old.cpuset_cpus, &new.cpuset_cpus),
        (&mut old.cpuset_mems, &new.cpuset_mems),
    ] {
        if !new.is_empty() {
            old.clone_from(new);
        }
    }
    if new.blkio_weight != 0 {
        old.blkio_weight = new.blkio_weight;
    }
    // Docker keeps "unlimited" as 0.
    let pids = new.pids_limit.map(|limit| limit.max(0));
    old.pids_limit = pids.or(old.pids_limit);
    limits::adapt(old);
    limits::check(old, false)?;
    if !request.restart_policy.name.is_empty() {
        request.restart_policy.check(false)?;
        if host.auto_remove && request.restart_policy.is_set() {
            return Err(Error::conflict(
                "Restart policy cannot be updated because AutoRemove is enabled for the container",
            ));
        }
        host.restart_policy = request.restart_policy.clone();
    }
    Ok(())
}

/// The limits to pass to the monitor: limits that the kernel takes together are passed together.
fn changed(new: &Resources, merged: &Resources) -> Resources {
    let mut changed = new.clone();
    if new.memory != 0 || new.memory_swap != 0 {
        changed.memory = merged.memory;
        changed.memory_swap = merged.memory_swap;
    }
    if new.cpu_period != 0 || new.cpu_quota != 0 {
        changed.cpu_period = merged.cpu_period;
        changed.cpu_quota = merged.cpu_quota;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn merge_refuses_contradicting_limits_with_dockers_texts() {
        let table = [
            (
                json!({"CpuQuota": 5000}),
                json!({"NanoCpus": 1_000_000}),
                "Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set",
            ),
            (
                json!({"NanoCpus": 1_000_000}),
                json!({"CpuPeriod": 5000}),
                "Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set",
            ),
            (
                json!({"Memory": 8 << 20, "MemorySwap": 8 << 20}),
                json!({"Memory": 9 << 20}),
                "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
            ),
        ];
        for (old, new, text) in table {
            let mut host: HostConfig = serde_json::from_value(old).unwrap();
            let request = UpdateRequest {
                resources: serde_json::from_value(new).unwrap(),
                ..UpdateRequest::default()
            };
            assert_eq!(merge(&mut host, &request).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn merge_keeps_fields_that_are_not_given() {
        let old = json!({"Memory": 8 << 20, "CpuShares": 7, "PidsLimit": 3});
        let mut host: HostConfig = serde_json::from_value(old).unwrap();
        let request = UpdateRequest {
            resources: serde_json::from_value(json!({"CpuShares": 9})).unwrap(),
            ..UpdateRequest::default()
        };
        merge(&mut host, &request).unwrap();
        let kept = &host.resources;
        assert_eq!(
            (kept.memory, kept.cpu_shares, kept.pids_limit),
            (8 << 20, 9, Some(3))
        );
        check_fields(&serde_json::from_value(json!({"CgroupParent": "/x"})).unwrap()).unwrap_err();
    }
}
