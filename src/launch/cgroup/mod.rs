//! The cgroups of a container: limits, device rules, the count of OOM kills, and removal.
//!
//! A container has one cgroup in each hierarchy that has a controller it needs (memory, pids,
//! devices), at the same path in each. They are created before the process. [`ContainerCgroups`]
//! removes them when dropped, so they go on every way out. Their parent stays, as Docker's does: an
//! administrator's limits on it hold for the next container too. On version 1 the process is moved
//! in; on version 2 it is cloned into its cgroup (CLONE_INTO_CGROUP). Caller: [`crate::monitor`].

mod counters;
mod devices;
mod directory;
mod enforce;
mod error;
mod hierarchy;
mod layout;
mod limits;
mod unified;

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::Pid;

use crate::sandbox::Sandbox;
use directory::Directory;
pub use error::CgroupError;
use error::{io_error, is_refusal, unavailable};
use hierarchy::{LegacyCgroup, inherit_cpuset, make, mounted_hierarchies, relative_path};
pub(crate) use hierarchy::{LegacyView, View};
use layout::Layout;
use limits::settings;
pub use limits::{
    NO_OOM_KILL_DISABLE, can_disable_oom_killer, discard_device_weights, discard_unsupported,
};

/// The cgroups of one container. Dropping it kills what is left in them and removes them.
#[derive(Debug)]
pub(crate) struct ContainerCgroups {
    legacy: Vec<LegacyCgroup>,
    unified: Option<(Directory, OwnedFd)>,
    memory: Option<MemoryAt>,
    devices_restricted: bool,
    /// Where they are in each hierarchy.
    relative: PathBuf,
}

#[derive(Clone, Copy, Debug)]
enum MemoryAt {
    Legacy(usize),
    Unified,
}

/// A controller that containers use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Controller {
    Memory,
    Pids,
    Devices,
}

impl Controller {
    const ALL: [Self; 3] = [Self::Memory, Self::Pids, Self::Devices];

    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Devices => "devices",
        }
    }
}

impl ContainerCgroups {
    /// Creates a sandbox's cgroups and sets its limits; with `restrict_devices` its device rules.
    ///
    /// A hierarchy that can't be written is left out unless a limit needs it.
    pub(crate) fn create(sandbox: &Sandbox, restrict_devices: bool) -> Result<Self, CgroupError> {
        let limits = &sandbox.limits;
        let relative = relative_path(&sandbox.cgroup_parent, &sandbox.id)?;
        let layout = mounted_hierarchies()?;
        let mut made = Self {
            legacy: Vec::new(),
            unified: None,
            memory: None,
            devices_restricted: false,
            relative: relative.clone(),
        };
        for controller in Controller::ALL {
            if controller == Controller::Devices && !restrict_devices {
                continue;
            }
            let outcome = made
                .ensure(&layout, controller, &relative)
                .and_then(|()| made.configure(controller, limits, &sandbox.device_rules));
            match outcome {
                Ok(()) => made.note(controller),
                Err(error) if is_refusal(&error) => {
                    match (controller, limits.memory, limits.pids) {
                        (Controller::Memory, Some(_), _) => {
                            return Err(unavailable("memory", controller, error));
                        }
                        (Controller::Pids, _, Some(_)) => {
                            return Err(unavailable("process", controller, error));
                        }
                        _ => {}
                    }
                }
                Err(error) => return Err(error),
            }
        }
        made.ensure_freezer(&layout, &relative);
        for setting in settings(limits) {
            made.enforce(&layout, &setting)?;
        }
        for device in &sandbox.device_weights {
            made.enforce(&layout, &limits::device_weight(device))?;
        }
        if sandbox.oom_kill_disable {
            made.disable_oom_killer()?;
        }
        Ok(made)
    }

    /// A cgroup to freeze and to count processor time in: version 2, else the version 1 controllers.
    /// Where there is none, a container can't be paused.
    fn ensure_freezer(&mut self, layout: &Layout, relative: &Path) {
        if let Some(root) = &layout.unified {
            let made = self.ensure_unified(&unified::base(root), relative);
            // Not writable.
            drop(made);
            return;
        }
        for controller in ["freezer", "cpuacct"] {
            if let Some(mounted) = layout.legacy_of(controller) {
                drop(self.ensure_legacy(mounted, relative));
            }
        }
    }

    fn ensure_legacy(
        &mut self,
        mounted: &layout::Legacy,
        relative: &Path,
    ) -> Result<(), CgroupError> {
        let made = |made: &LegacyCgroup| made.view.controllers == mounted.controllers;
        if !self.legacy.iter().any(made) {
            let created = LegacyCgroup::create(mounted, relative)?;
            if mounted.controllers.iter().any(|name| name == "cpuset") {
                inherit_cpuset(&mounted.mount_point, relative)?;
            }
            self.legacy.push(created);
        }
        Ok(())
    }

    fn ensure_unified(&mut self, base: &Path, relative: &Path) -> Result<(), CgroupError> {
        if self.unified.is_none() {
            let directory = make(base, relative)?;
            let descriptor = directory
                .open()
                .map_err(|source| io_error("open", &base.join(relative), source))?;
            self.unified = Some((directory, descriptor));
        }
        Ok(())
    }

    /// Creates the cgroup in the hierarchy of this controller, unless it exists.
    fn ensure(
        &mut self,
        layout: &Layout,
        controller: Controller,
        relative: &Path,
    ) -> Result<(), CgroupError> {
        if let Some(mounted) = layout.legacy_of(controller.name()) {
            return self.ensure_legacy(mounted, relative);
        }
        let Some(root) = &layout.unified else {
            return Err(io_error(
                "find the hierarchy of",
                Path::new(controller.name()),
                Errno::NOENT.into(),
            ));
        };
        let base = unified::base(root);
        if controller != Controller::Devices {
            unified::enable(&base, relative, controller.name())?;
        }
        self.ensure_unified(&base, relative)
    }

    /// Remembers where memory is counted, and that devices are restricted.
    fn note(&mut self, controller: Controller) {
        match controller {
            Controller::Memory => {
                let has =
                    |made: &LegacyCgroup| made.view.controllers.iter().any(|name| name == "memory");
                let position = self.legacy.iter().position(has);
                self.memory = Some(position.map_or(MemoryAt::Unified, MemoryAt::Legacy));
            }
            Controller::Devices => self.devices_restricted = true,
            Controller::Pids => {}
        }
    }

    /// The version 1 cgroup that has this controller.
    fn legacy_of(&self, controller: &str) -> Option<&Directory> {
        let has =
            |made: &&LegacyCgroup| made.view.controllers.iter().any(|name| name == controller);
        self.legacy.iter().find(has).map(|made| &made.directory)
    }

    /// The cgroup of a controller that was asked for.
    fn directory_of(&self, controller: &str) -> Option<&Directory> {
        let unified = || self.unified.as_ref().map(|(made, _)| made);
        self.legacy_of(controller).or_else(unified)
    }

    /// Any cgroup: all have the same processes.
    fn any(&self) -> Option<&Directory> {
        let unified = self.unified.as_ref().map(|(made, _)| made);
        unified.or_else(|| self.legacy.first().map(|made| &made.directory))
    }

    /// Whether the kernel enforces the device rules.
    pub(crate) fn devices_restricted(&self) -> bool {
        self.devices_restricted
    }

    /// The version 2 cgroup to clone the process into.
    pub(crate) fn clone_into(&self) -> Option<BorrowedFd<'_>> {
        self.unified
            .as_ref()
            .map(|(_, descriptor)| descriptor.as_fd())
    }

    /// Moves the calling process, which has one thread, into its version 1 cgroups. Allocates
    /// nothing.
    ///
    /// The kernel moves a thread that moves itself at once. Any other move waits until no process
    /// forks or exits, a grace period of RCU (`cgroup_threadgroup_rwsem`): milliseconds.
    pub(crate) fn enter(&self) -> Result<(), Errno> {
        self.legacy
            .iter()
            .try_for_each(|made| rustix::io::write(&made.tasks, b"0").map(drop))
    }

    /// Moves another process into its version 1 cgroups.
    pub(crate) fn attach(&mut self, pid: Pid) -> io::Result<()> {
        let text = pid.as_raw_nonzero().to_string();
        self.legacy
            .iter_mut()
            .try_for_each(|made| made.procs.write_all(text.as_bytes()))
    }

    /// What the container sees at /sys/fs/cgroup.
    pub(crate) fn view(&self) -> View {
        if !self.legacy.is_empty() {
            return View::Legacy(self.legacy.iter().map(|made| made.view.clone()).collect());
        }
        if self.unified.is_some() {
            View::Unified
        } else {
            View::None
        }
    }

    /// Whether the OOM killer has killed a process of the container.
    pub(crate) fn oom_killed(&self) -> io::Result<bool> {
        let count = match (self.memory, &self.unified) {
            (Some(MemoryAt::Legacy(position)), _) => {
                self.legacy.get(position).map_or(Ok(0), |made| {
                    made.directory
                        .read_counter("memory.oom_control", "oom_kill")
                })
            }
            (Some(MemoryAt::Unified), Some((made, _))) => {
                made.read_counter("memory.events", "oom_kill")
            }
            _ => Ok(0),
        };
        Ok(count? > 0)
    }

    /// Removes the cgroups. Tries each, and gives the first error.
    pub(crate) fn remove(&mut self) -> io::Result<()> {
        let unified = self.unified.take().map(|(directory, _)| directory);
        let legacy = std::mem::take(&mut self.legacy)
            .into_iter()
            .map(|made| made.directory);
        let mut outcome = Ok(());
        for directory in legacy.chain(unified) {
            outcome = outcome.and(directory.remove());
        }
        outcome
    }
}

impl Drop for ContainerCgroups {
    fn drop(&mut self) {
        // Only after another error, which is the one to report. The next start removes what stays,
        // by its name.
        drop(self.remove());
    }
}

/// Removes the cgroups that a killed monitor left, and kills the processes in them.
///
/// Call it only when no monitor runs ([`crate::status::is_running`]).
pub fn remove_leftovers(parent: &str, id: &str) -> Result<(), CgroupError> {
    let relative = relative_path(parent, id)?;
    let layout = mounted_hierarchies()?;
    let legacy = layout
        .legacy
        .iter()
        .map(|mounted| mounted.mount_point.clone());
    legacy
        .chain(layout.unified.as_deref().map(unified::base))
        .map(|base| base.join(&relative))
        .try_for_each(|path| {
            Directory::existing(path.clone())
                .remove()
                .map_err(|source| io_error("remove", &path, source))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_controller_refuses_limits_only() {
        let mut made = ContainerCgroups {
            legacy: Vec::new(),
            unified: None,
            memory: None,
            devices_restricted: false,
            relative: PathBuf::from("cowl/x"),
        };
        let error = made
            .ensure(&Layout::default(), Controller::Memory, Path::new("cowl/x"))
            .unwrap_err();
        assert!(is_refusal(&error));
        assert_eq!(
            unavailable("memory", Controller::Memory, error).to_string(),
            "a memory limit needs the memory cgroup controller, which is not available here"
        );
    }
}
