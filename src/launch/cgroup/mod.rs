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
mod layout;
mod limits;
mod unified;

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::Pid;

use crate::sandbox::{DeviceRule, Limits};
use directory::Directory;
use layout::Layout;
pub use limits::discard_unsupported;
use limits::{Setting, Version, settings};

/// Why a container has no cgroups.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No controller can enforce a limit that was asked for.
    #[error("a {what} limit needs the {controller} cgroup controller, which is not available here")]
    NoController {
        /// What was to be limited.
        what: &'static str,
        /// The controller that would enforce it.
        controller: &'static str,
        /// Why it is not available, if it is mounted.
        source: Option<io::Error>,
    },
    /// In Docker's words: this host can't enforce a limit.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A step failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The name could leave the hierarchy.
    #[error("{0:?} is not the name of a cgroup")]
    BadName(String),
}

/// How a hierarchy is shown inside the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// Nothing: the container has no cgroup of its own.
    None,
    /// A version 2 mount at /sys/fs/cgroup.
    Unified,
    /// A tmpfs with one version 1 mount per entry.
    Legacy(Vec<LegacyView>),
}

/// One version 1 hierarchy inside the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LegacyView {
    /// Directory below /sys/fs/cgroup, as on the host: `memory`, `cpu,cpuacct`.
    pub(crate) name: String,
    /// Controllers mounted together in it.
    pub(crate) controllers: Vec<String>,
    /// The container's cgroup in it, on the host.
    pub(crate) directory: PathBuf,
}

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

#[derive(Debug)]
struct LegacyCgroup {
    directory: Directory,
    view: LegacyView,
    /// `cgroup.procs`, opened before it is needed.
    procs: File,
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
    /// Creates the cgroups, sets the limits and, if there are some, the device rules.
    ///
    /// A hierarchy that can't be written is left out unless a limit needs it.
    pub(crate) fn create(
        parent: &str,
        id: &str,
        limits: &Limits,
        devices: Option<&[DeviceRule]>,
    ) -> Result<Self, CgroupError> {
        let relative = relative_path(parent, id)?;
        let layout = mounted_hierarchies()?;
        let mut made = Self {
            legacy: Vec::new(),
            unified: None,
            memory: None,
            devices_restricted: false,
            relative: relative.clone(),
        };
        for controller in Controller::ALL {
            if controller == Controller::Devices && devices.is_none() {
                continue;
            }
            let outcome = made
                .ensure(&layout, controller, &relative)
                .and_then(|()| made.configure(controller, limits, devices.unwrap_or_default()));
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

    fn configure(
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
    fn enforce(&mut self, layout: &Layout, setting: &Setting) -> Result<(), CgroupError> {
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

    /// Moves the container's processes into the cgroup that was just created for a controller, until
    /// none is left behind.
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

    /// Moves the process into its version 1 cgroups.
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

impl LegacyCgroup {
    fn create(mounted: &layout::Legacy, relative: &Path) -> Result<Self, CgroupError> {
        let directory = make(&mounted.mount_point, relative)?;
        let path = mounted.mount_point.join(relative).join("cgroup.procs");
        let procs = OpenOptions::new()
            .write(true)
            .open(&path)
            .map_err(|source| io_error("open", &path, source))?;
        let name = mounted.mount_point.file_name().map_or_else(
            || mounted.controllers.join(","),
            |name| name.to_string_lossy().into_owned(),
        );
        Ok(Self {
            directory,
            view: LegacyView {
                name,
                controllers: mounted.controllers.clone(),
                directory: mounted.mount_point.join(relative),
            },
            procs,
        })
    }
}

/// Limits memory, and memory with swap: without a limit of both to the same value, so that a process
/// that allocates more is killed instead of swapped.
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

/// Gives each level of a cpuset of version 1 what its parent has, where it has nothing yet: without,
/// no process can be moved there.
fn inherit_cpuset(mount_point: &Path, relative: &Path) -> Result<(), CgroupError> {
    let mut parent = mount_point.to_owned();
    for component in relative.components() {
        let level = parent.join(component);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let path = level.join(file);
            let failed = |source| io_error("set up", &path, source);
            if directory::read(&path).map_err(failed)?.trim().is_empty() {
                let of_parent = directory::read(&parent.join(file)).map_err(failed)?;
                directory::write(&path, of_parent.trim()).map_err(failed)?;
            }
        }
        parent = level;
    }
    Ok(())
}

/// Creates the container's cgroup below `base`. The levels above it exist after the first
/// container.
fn make(base: &Path, relative: &Path) -> Result<Directory, CgroupError> {
    let path = base.join(relative);
    let made = match Directory::create(path.clone()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_parents(base, relative)?;
            Directory::create(path.clone())
        }
        other => other,
    };
    made.map_err(|source| io_error("create", &path, source))
}

/// Creates every level above the last.
fn make_parents(root: &Path, relative: &Path) -> Result<(), CgroupError> {
    let mut path = root.to_owned();
    for component in relative.parent().into_iter().flat_map(Path::components) {
        path.push(component);
        match directory::make_directory(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error("create", &path, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Reads the mount table as bytes: mount points need not be UTF-8.
fn mounted_hierarchies() -> Result<Layout, CgroupError> {
    let path = Path::new("/proc/self/mountinfo");
    let mountinfo = std::fs::read(path).map_err(|source| io_error("read", path, source))?;
    Ok(Layout::parse(&mountinfo))
}

/// `parent`/`id` without the leading slash. Only plain names, so that it can't leave the hierarchy.
fn relative_path(parent: &str, id: &str) -> Result<PathBuf, CgroupError> {
    let components: Vec<&str> = parent
        .split('/')
        .filter(|name| !name.is_empty())
        .chain([id])
        .collect();
    let plain =
        |name: &&str| !matches!(*name, "" | "." | "..") && !name.contains(['/', '\0', '\n']);
    if !parent.starts_with('/') || !components.iter().all(plain) {
        return Err(CgroupError::BadName(format!("{parent}/{id}")));
    }
    Ok(components.iter().collect())
}

/// Whether the host refuses the cgroup, as opposed to a step that failed.
fn is_refusal(error: &CgroupError) -> bool {
    let CgroupError::Io { source, .. } = error else {
        return false;
    };
    let refusals = [
        Errno::ACCESS,
        Errno::PERM,
        Errno::ROFS,
        Errno::NOENT,
        Errno::NOSYS,
        Errno::OPNOTSUPP,
    ];
    Errno::from_io_error(source).is_some_and(|errno| refusals.contains(&errno))
}

fn unavailable(what: &'static str, controller: Controller, error: CgroupError) -> CgroupError {
    let source = if let CgroupError::Io { source, .. } = error {
        Some(source)
    } else {
        None
    };
    CgroupError::NoController {
        what,
        controller: controller.name(),
        source,
    }
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> CgroupError {
    CgroupError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_path_refuses_names_that_leave_the_hierarchy() {
        assert_eq!(
            relative_path("/cowl", "abc").unwrap(),
            Path::new("cowl/abc")
        );
        assert_eq!(relative_path("/a//b/", "c").unwrap(), Path::new("a/b/c"));
        for (parent, id) in [
            ("cowl", "a"),
            ("/cowl", ""),
            ("/cowl", ".."),
            ("/../x", "a"),
            ("/cowl", "a/b"),
            ("/cowl", "a\nb"),
        ] {
            assert!(relative_path(parent, id).is_err(), "{parent} {id}");
        }
    }

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
