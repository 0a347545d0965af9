//! Writing limits and device rules into a container's cgroups, at its creation and later.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use rustix::io::Errno;

use super::directory::Directory;
use super::error::{CgroupError, io_error};
use super::hierarchy::{LegacyCgroup, mounted_hierarchies};
use super::layout::Layout;
use super::limits::{NO_OOM_KILL_DISABLE, Setting, Version, settings};
use super::{ContainerCgroups, Controller, devices, discard_unsupported, unified};
use crate::sandbox::{DeviceRule, Limits};

impl ContainerCgroups {
    pub(super) fn configure(
        &self,
        controller: Controller,
        limits: &Limits,
        rules: &[DeviceRule],
    ) -> Result<(), CgroupError> {
        let has = |made: &&LegacyCgroup| {
            made.view
                .controllers
                .iter()
                .any(|name| name == controller.name())
        };
        let legacy = self.legacy.iter().find(has);
        let result = match (controller, legacy, &self.unified) {
            (Controller::Memory, Some(made), _) => limits.memory.map_or(Ok(()), |bytes| {
                limit_legacy_memory(&made.directory, bytes, limits.memory_swap)
            }),
            (Controller::Memory, None, Some((made, _))) => limits.memory.map_or(Ok(()), |bytes| {
                limit_unified_memory(made, bytes, limits.memory_swap)
            }),
            // A row of the table.
            (Controller::Pids, Some(_), _) | (Controller::Pids, None, Some(_)) => Ok(()),
            (Controller::Devices, Some(made), _) => restrict_legacy(&made.directory, rules),
            (Controller::Devices, None, Some((_, descriptor))) => {
                restrict_unified(descriptor.as_fd(), rules)
            }
            (_, None, None) => Err(Errno::NOENT.into()),
        };
        result.map_err(|source| {
            io_error("set up the cgroup of", Path::new(controller.name()), source)
        })
    }

    /// Changes the limits that are given. Returns Docker's words for those that this host can't
    /// enforce, which stay as they are.
    pub(crate) fn update(&mut self, limits: &Limits) -> Result<Vec<String>, CgroupError> {
        let mut limits = limits.clone();
        let discarded = discard_unsupported(&mut limits)
            .map_err(|source| io_error("look at", Path::new("/proc/self/mountinfo"), source))?;
        if limits.memory.is_some() {
            self.configure(Controller::Memory, &limits, &[])?;
        }
        let layout = mounted_hierarchies()?;
        for setting in settings(&limits) {
            self.enforce(&layout, &setting)?;
        }
        Ok(discarded.into_iter().map(str::to_owned).collect())
    }

    /// Enforces one limit, in a cgroup that is created for it if need be.
    pub(super) fn enforce(
        &mut self,
        layout: &Layout,
        setting: &Setting,
    ) -> Result<(), CgroupError> {
        let name = setting.controller(Version::Legacy);
        let relative = self.relative.clone();
        let written = if let Some(mounted) = layout.legacy_of(name) {
            let known = self.legacy_of(name).is_some();
            self.ensure_legacy(mounted, &relative)?;
            if !known {
                self.move_in(name)?;
            }
            let made = self.legacy_of(name).ok_or(Errno::NOENT);
            made.map_err(io::Error::from)
                .and_then(|made| setting.write(made, Version::Legacy))
        } else {
            let Some(root) = &layout.unified else {
                return Err(CgroupError::Unsupported(setting.discarded));
            };
            let controller = setting.controller(Version::Unified);
            let base = unified::base(root);
            unified::enable(&base, &relative, controller)?;
            self.ensure_unified(&base, &relative)?;
            let made = self.unified.as_ref().ok_or(Errno::NOENT);
            made.map_err(io::Error::from)
                .and_then(|(made, _)| setting.write(made, Version::Unified))
        };
        written.map_err(|source| match Errno::from_io_error(&source) {
            Some(Errno::NOENT | Errno::OPNOTSUPP) => CgroupError::Unsupported(setting.discarded),
            _ => io_error("set the limits of", Path::new(name), source),
        })
    }

    /// Lets processes wait at the limit of memory instead of killing one: version 1 only.
    pub(super) fn disable_oom_killer(&self) -> Result<(), CgroupError> {
        let Some(made) = self.legacy_of("memory") else {
            return Err(CgroupError::Unsupported(NO_OOM_KILL_DISABLE));
        };
        made.write("memory.oom_control", "1")
            .map_err(|source| io_error("disable the OOM killer of", made.path(), source))
    }

    /// Moves the container's processes into the cgroup that was just created for a controller,
    /// until none is left behind.
    fn move_in(&mut self, controller: &str) -> Result<(), CgroupError> {
        let failed = |source| io_error("move the processes into", Path::new(controller), source);
        loop {
            let pids = self.pids().map_err(failed)?.unwrap_or_default();
            let Some(made) = self.legacy_of(controller) else {
                return Ok(());
            };
            let there = made.read("cgroup.procs").map_err(failed)?;
            let is_there = |pid: &u32| there.lines().any(|line| line == pid.to_string());
            let outside: Vec<u32> = pids.into_iter().filter(|pid| !is_there(pid)).collect();
            if outside.is_empty() {
                return Ok(());
            }
            for pid in outside {
                match made.write("cgroup.procs", &pid.to_string()) {
                    // It has ended.
                    Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => {}
                    other => other.map_err(failed)?,
                }
            }
        }
    }
}

/// Limits memory, and memory with swap: without a limit of both to the same value, so that a
/// process that allocates more is killed instead of swapped.
fn limit_legacy_memory(made: &Directory, bytes: u64, swap: Option<u64>) -> io::Result<()> {
    const MEMORY: &str = "memory.limit_in_bytes";
    const WITH_SWAP: &str = "memory.memsw.limit_in_bytes";
    let memory = bytes.to_string();
    let with_swap = match swap {
        None => memory.clone(),
        Some(u64::MAX) => "-1".to_owned(),
        Some(both) => both.to_string(),
    };
    match made.write(MEMORY, &memory) {
        // Above the limit of both together, which has to be raised first.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
            made.write(WITH_SWAP, &with_swap)?;
            made.write(MEMORY, &memory)?;
        }
        other => other?,
    }
    if !made.write_if_present(WITH_SWAP, &with_swap)? && swap.is_none() {
        // A kernel that doesn't account swap: with swappiness 0 a version 1 cgroup never swaps
        // (admin-guide/cgroup-v1/memory.rst, 5.3).
        made.write("memory.swappiness", "0")?;
    }
    Ok(())
}

/// See [`limit_legacy_memory`]; a kernel without swap has no `memory.swap.max`.
fn limit_unified_memory(made: &Directory, bytes: u64, swap: Option<u64>) -> io::Result<()> {
    made.write("memory.max", &bytes.to_string())?;
    let swap = match swap {
        None => "0".to_owned(),
        Some(u64::MAX) => "max".to_owned(),
        Some(both) => both.saturating_sub(bytes).to_string(),
    };
    made.write_if_present("memory.swap.max", &swap).map(drop)
}

fn restrict_legacy(made: &Directory, rules: &[DeviceRule]) -> io::Result<()> {
    made.write("devices.deny", "a")?;
    made.write_lines("devices.allow", devices::legacy_lines(rules))
}

fn restrict_unified(cgroup: BorrowedFd<'_>, rules: &[DeviceRule]) -> io::Result<()> {
    let program = crate::sys::bpf::load_device_filter(&devices::filter(rules))?;
    Ok(crate::sys::bpf::attach_device_filter(
        cgroup,
        program.as_fd(),
    )?)
}
