//! Making controllers available in a version 2 hierarchy (admin-guide/cgroup-v2.rst).

use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Access, CWD, accessat};
use rustix::io::Errno;

use super::directory;
use super::error::{CgroupError, io_error};
use super::hierarchy::make_parents;

/// The child that takes the processes of a cgroup whose other children get controllers.
const LEAF: &str = "cowl-leaf";

/// The base of our cgroups below a version 2 mount: its root if that is writable, else our own
/// cgroup, which a service manager may have delegated to us.
pub(super) fn base(mount_point: &Path) -> PathBuf {
    if writable(mount_point) {
        return mount_point.to_owned();
    }
    let own = directory::read(Path::new("/proc/self/cgroup"))
        .ok()
        .and_then(|text| own_cgroup(&text));
    own.map(|own| mount_point.join(own))
        .filter(|path| writable(path))
        .unwrap_or_else(|| mount_point.to_owned())
}

pub(super) fn writable(path: &Path) -> bool {
    writable_path(&path.join("cgroup.subtree_control"))
}

/// Whether cgroups can be made in a directory.
pub(super) fn writable_directory(path: &Path) -> bool {
    writable_path(path)
}

fn writable_path(path: &Path) -> bool {
    accessat(CWD, path, Access::WRITE_OK, rustix::fs::AtFlags::EACCESS).is_ok()
}

/// Our cgroup, from the version 2 line of /proc/self/cgroup, without the leading slash; none if it
/// is outside of our cgroup namespace. If an earlier container moved us into a leaf
/// ([`empty_into_leaf`]), the parent of that leaf.
fn own_cgroup(text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let path = Path::new(path);
    let path = if path.ends_with(LEAF) {
        path.parent()?
    } else {
        path
    };
    let plain = path
        .components()
        .all(|name| matches!(name, Component::Normal(_)));
    plain.then(|| path.to_owned())
}

/// Enables the controller in every level from the base down to the parent of `relative`.
pub(super) fn enable(base: &Path, relative: &Path, controller: &str) -> Result<(), CgroupError> {
    make_parents(base, relative)?;
    let parent = relative.parent().unwrap_or(Path::new(""));
    let mut level = base.to_owned();
    for component in std::iter::once(None).chain(parent.components().map(Some)) {
        level.extend(component);
        let control = level.join("cgroup.subtree_control");
        let enable = || directory::write(&control, &format!("+{controller}"));
        match enable() {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => {
                empty_into_leaf(&level)?;
                enable().map_err(|source| io_error("write", &control, source))?;
            }
            other => other.map_err(|source| io_error("write", &control, source))?,
        }
    }
    Ok(())
}

/// Moves the processes of a cgroup into a child of it. Except for the root, a cgroup that
/// distributes controllers to its children may hold no processes ("No Internal Process
/// Constraint"). Needed inside a container or a delegated unit.
fn empty_into_leaf(level: &Path) -> Result<(), CgroupError> {
    let leaf = level.join(LEAF);
    match directory::make_directory(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(io_error("create", &leaf, error));
        }
        _ => {}
    }
    let (from, to) = (level.join("cgroup.procs"), leaf.join("cgroup.procs"));
    let processes = directory::read(&from).map_err(|source| io_error("read", &from, source))?;
    for process in processes.lines() {
        match directory::write(&to, process) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => {}
            other => other.map_err(|source| io_error("write", &to, source))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cgroup_is_the_version_2_line() {
        let hybrid = "4:memory:/a\n1:name=systemd:/b\n0::/user.slice/x.scope\n";
        assert_eq!(own_cgroup(hybrid), Some("user.slice/x.scope".into()));
        assert_eq!(own_cgroup("0::/\n"), Some("".into()));
        assert_eq!(own_cgroup("0::/a/b/cowl-leaf\n"), Some("a/b".into()));
        assert_eq!(own_cgroup("0::/../outside\n"), None);
        assert_eq!(own_cgroup("4:memory:/a\n"), None);
    }

    /// Plain directories instead of a hierarchy: the files hold what the kernel would have got.
    #[test]
    fn enable_writes_subtree_control_from_the_base_down() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("a/b")).unwrap();
        for level in ["", "a", "a/b"] {
            std::fs::write(root.path().join(level).join("cgroup.subtree_control"), "").unwrap();
        }
        enable(root.path(), Path::new("a/b/c"), "pids").unwrap();
        for level in ["", "a", "a/b"] {
            let control = root.path().join(level).join("cgroup.subtree_control");
            assert_eq!(std::fs::read_to_string(control).unwrap(), "+pids");
        }
        assert!(!root.path().join("a/b/c").try_exists().unwrap());
        assert_eq!(base(root.path()), root.path());
    }
}
