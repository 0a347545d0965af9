//! A container's cgroups: limits, device rules, the count of out-of-memory kills, and their end.
//!
//! The container has one cgroup per hierarchy that has a controller it needs (memory, pids, devices), all of the same path. They are made
//! before the process and removed after it on every way out, since [`ContainerCgroups`] removes them when dropped. Their parent stays, as
//! Docker's does: limits that an administrator has put on it are for the next container too. On version 1 the process is moved in; on version
//! 2 it is born there. Caller: [`crate::monitor`].

mod devices;
mod directory;
mod layout;
mod unified;

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::Pid;

use crate::plan::Limits;
use directory::Directory;
use layout::Layout;

/// Why a container has no cgroups.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A limit was asked for that nothing here can enforce.
    #[error("a {what} limit needs the {controller} cgroup controller, which is not available here")]
    NoController {
        /// What was to be limited.
        what: &'static str,
        /// What would do it.
        controller: &'static str,
        /// Why it is not available, if it is mounted.
        source: Option<io::Error>,
    },
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
    /// Not a path that can be below a hierarchy's root.
    #[error("{0:?} is not the name of a cgroup")]
    BadName(String),
}

/// How a hierarchy is shown inside the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// Nothing: there is no cgroup of its own.
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
}

/// The cgroups of one container. Dropped, they are removed, with whatever is left in them ended.
#[derive(Debug)]
pub(crate) struct ContainerCgroups {
    legacy: Vec<LegacyCgroup>,
    unified: Option<(Directory, OwnedFd)>,
    memory: Option<MemoryAt>,
    devices_restricted: bool,
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

/// What a controller is needed for.
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
    /// Makes the cgroups and sets the limits. `restrict_devices`: also say which devices may be opened.
    ///
    /// Where a hierarchy can't be written and no limit needs it, the container does without.
    pub(crate) fn create(
        parent: &str,
        id: &str,
        limits: &Limits,
        restrict_devices: bool,
    ) -> Result<Self, CgroupError> {
        let relative = relative_path(parent, id)?;
        let layout = mounted_hierarchies()?;
        let mut made = Self {
            legacy: Vec::new(),
            unified: None,
            memory: None,
            devices_restricted: false,
        };
        for controller in Controller::ALL {
            if controller == Controller::Devices && !restrict_devices {
                continue;
            }
            let outcome = made
                .add(&layout, controller, &relative)
                .and_then(|()| made.configure(controller, limits));
            match outcome {
                Ok(()) => {}
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
        Ok(made)
    }

    /// Has the container's cgroup in the hierarchy of this controller made, if it isn't yet.
    fn add(
        &mut self,
        layout: &Layout,
        controller: Controller,
        relative: &Path,
    ) -> Result<(), CgroupError> {
        if let Some(mounted) = layout.legacy_of(controller.name()) {
            if self
                .legacy
                .iter()
                .all(|made| made.view.controllers != mounted.controllers)
            {
                self.legacy.push(LegacyCgroup::create(mounted, relative)?);
            }
            return Ok(());
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
        if self.unified.is_none() {
            let directory = make(&base, relative)?;
            let descriptor = directory
                .open()
                .map_err(|source| io_error("open", &base.join(relative), source))?;
            self.unified = Some((directory, descriptor));
        }
        Ok(())
    }

    fn configure(&mut self, controller: Controller, limits: &Limits) -> Result<(), CgroupError> {
        let position = self.legacy.iter().position(|made| {
            made.view
                .controllers
                .iter()
                .any(|name| name == controller.name())
        });
        let legacy = position.and_then(|position| self.legacy.get(position));
        let result = match (controller, legacy, &self.unified) {
            (Controller::Memory, Some(made), _) => {
                self.memory = position.map(MemoryAt::Legacy);
                limits
                    .memory
                    .map_or(Ok(()), |bytes| limit_legacy_memory(&made.directory, bytes))
            }
            (Controller::Memory, None, Some((made, _))) => {
                self.memory = Some(MemoryAt::Unified);
                limits
                    .memory
                    .map_or(Ok(()), |bytes| limit_unified_memory(made, bytes))
            }
            (
                Controller::Pids,
                Some(LegacyCgroup {
                    directory: made, ..
                }),
                _,
            )
            | (Controller::Pids, None, Some((made, _))) => limits
                .pids
                .map_or(Ok(()), |tasks| made.write("pids.max", &tasks.to_string())),
            (Controller::Devices, Some(made), _) => restrict_legacy(&made.directory),
            (Controller::Devices, None, Some((_, descriptor))) => {
                restrict_unified(descriptor.as_fd())
            }
            (_, None, None) => Err(Errno::NOENT.into()),
        };
        result.map_err(|source| {
            io_error("set up the cgroup of", Path::new(controller.name()), source)
        })?;
        self.devices_restricted |= controller == Controller::Devices;
        Ok(())
    }

    /// Whether the kernel keeps the container from devices that it may not open.
    pub(crate) fn devices_restricted(&self) -> bool {
        self.devices_restricted
    }

    /// The cgroup that the process is to be born in.
    pub(crate) fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        self.unified
            .as_ref()
            .map(|(_, descriptor)| descriptor.as_fd())
    }

    /// Moves the process into those it wasn't born in.
    pub(crate) fn attach(&mut self, pid: Pid) -> io::Result<()> {
        let text = pid.as_raw_nonzero().to_string();
        self.legacy
            .iter_mut()
            .try_for_each(|made| made.procs.write_all(text.as_bytes()))
    }

    /// What the container is to see.
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

    /// Whether the kernel killed a process of the container for want of memory.
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

    /// Removes the cgroups; tries each even if one can't be removed.
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
        // Only on a way out that has an error to report already; what can't be removed now is found by its name at the next start.
        drop(self.remove());
    }
}

/// Removes the cgroups that a monitor had to leave since it was killed, ending what is left in them.
///
/// To be called only when no monitor runs ([`crate::status::is_running`]).
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
            },
            procs,
        })
    }
}

/// Memory and swap together get the limit of memory alone, so that a process that allocates more dies, and doesn't swap instead.
fn limit_legacy_memory(made: &Directory, bytes: u64) -> io::Result<()> {
    made.write("memory.limit_in_bytes", &bytes.to_string())?;
    if !made.write_if_present("memory.memsw.limit_in_bytes", &bytes.to_string())? {
        // A kernel that doesn't account swap: with swappiness 0 a version 1 cgroup never swaps (admin-guide/cgroup-v1/memory.rst, 5.3).
        made.write("memory.swappiness", "0")?;
    }
    Ok(())
}

/// See [`limit_legacy_memory`]; a kernel without swap has no `memory.swap.max`.
fn limit_unified_memory(made: &Directory, bytes: u64) -> io::Result<()> {
    made.write("memory.max", &bytes.to_string())?;
    made.write_if_present("memory.swap.max", "0").map(drop)
}

fn restrict_legacy(made: &Directory) -> io::Result<()> {
    made.write("devices.deny", "a")?;
    made.write_lines("devices.allow", devices::legacy_lines())
}

fn restrict_unified(cgroup: BorrowedFd<'_>) -> io::Result<()> {
    let program = crate::sys::bpf::load_device_filter(&devices::filter())?;
    Ok(crate::sys::bpf::attach_device_filter(
        cgroup,
        program.as_fd(),
    )?)
}

/// Makes the container's cgroup below `base`; all above it is there but the first time.
fn make(base: &Path, relative: &Path) -> Result<Directory, CgroupError> {
    let path = base.join(relative);
    let made = match Directory::create(path.clone()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_parents(base, relative)?;
            Directory::create(path.clone())
        }
        other => other,
    };
    made.map_err(|source| io_error("make", &path, source))
}

/// Makes all above the last component.
fn make_parents(root: &Path, relative: &Path) -> Result<(), CgroupError> {
    let mut path = root.to_owned();
    for component in relative.parent().into_iter().flat_map(Path::components) {
        path.push(component);
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error("make", &path, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// As bytes: anyone's mount on a path that is not UTF-8 stands in this table too.
fn mounted_hierarchies() -> Result<Layout, CgroupError> {
    let path = Path::new("/proc/self/mountinfo");
    let mountinfo = std::fs::read(path).map_err(|source| io_error("read", path, source))?;
    Ok(Layout::parse(&mountinfo))
}

/// `parent`/`id` without the leading slash: only plain names, so that it can't leave the hierarchy.
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

/// The host doesn't let us, in contrast to a step that went wrong.
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
    fn a_name_cannot_leave_the_hierarchy() {
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
    fn a_controller_that_is_nowhere_refuses_limits_and_nothing_else() {
        let mut made = ContainerCgroups {
            legacy: Vec::new(),
            unified: None,
            memory: None,
            devices_restricted: false,
        };
        let error = made
            .add(&Layout::default(), Controller::Memory, Path::new("cowl/x"))
            .unwrap_err();
        assert!(is_refusal(&error));
        assert_eq!(
            unavailable("memory", Controller::Memory, error).to_string(),
            "a memory limit needs the memory cgroup controller, which is not available here"
        );
    }
}
