//! Where a container's cgroups are in each hierarchy, and their directories.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::directory::{self, Directory};
use super::error::{CgroupError, io_error};
use super::layout::{self, Layout};

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

#[derive(Debug)]
pub(super) struct LegacyCgroup {
    pub(super) directory: Directory,
    pub(super) view: LegacyView,
    /// `cgroup.procs`, opened before it is needed.
    pub(super) procs: File,
    /// `tasks`, the same for threads.
    pub(super) tasks: File,
}

impl LegacyCgroup {
    pub(super) fn create(mounted: &layout::Legacy, relative: &Path) -> Result<Self, CgroupError> {
        let directory = make(&mounted.mount_point, relative)?;
        let open = |file| {
            let path = directory.path().join(file);
            let opened = OpenOptions::new().write(true).open(&path);
            opened.map_err(|source| io_error("open", &path, source))
        };
        let (procs, tasks) = (open("cgroup.procs")?, open("tasks")?);
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
            tasks,
        })
    }
}

/// Gives each level of a cpuset of version 1 what its parent has, where it has nothing yet:
/// without, no process can be moved there.
pub(super) fn inherit_cpuset(mount_point: &Path, relative: &Path) -> Result<(), CgroupError> {
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
pub(super) fn make(base: &Path, relative: &Path) -> Result<Directory, CgroupError> {
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
pub(super) fn make_parents(root: &Path, relative: &Path) -> Result<(), CgroupError> {
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
pub(super) fn mounted_hierarchies() -> Result<Layout, CgroupError> {
    let path = Path::new("/proc/self/mountinfo");
    let mountinfo = std::fs::read(path).map_err(|source| io_error("read", path, source))?;
    Ok(Layout::parse(&mountinfo))
}

/// `parent`/`id` without the leading slash. Only plain names, so that it can't leave the hierarchy.
pub(super) fn relative_path(parent: &str, id: &str) -> Result<PathBuf, CgroupError> {
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
}
