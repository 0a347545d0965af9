//! `cp`: files of a container as a tar, out and in.
//!
//! A running container's files are reached through its monitor, with all its mounts. A stopped
//! container is mounted for the copy, with its volumes and bind mounts. Whatever the container does
//! meanwhile, nothing outside its root is reached: a path is resolved by the kernel inside the root
//! (`RESOLVE_IN_ROOT`, openat2(2)), and its last component is opened without following a link.

pub mod copy;
mod host;
mod literal;
mod read;
mod write;
mod xattr;

use super::Engine;
use super::container::config::Config;
use super::container::state::Status;
use super::container::{Container, PendingContainer};
use super::error::{Context, Error, Result};
use super::mount::Mounted;
use super::mounts::Mounts;
use cowl_launch::at_rest;
use cowl_sys::open::openat2;
use jiff::Timestamp;
use rustix::fs::{AtFlags, FileType, OFlags, ResolveFlags, Stat, readlinkat, statat};
use rustix::io::Errno;
use serde::Serialize;
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Component, Path};

pub use write::Extraction;

/// A container's files, or those below a directory of the host.
#[derive(Debug)]
pub struct Files {
    root: OwnedFd,
    /// None for files of the host.
    config: Option<Config>,
    /// The container as the caller named it.
    needle: String,
    at_rest: Option<AtRest>,
}

/// The mounts of a stopped container.
#[derive(Debug)]
struct AtRest {
    mounted: Mounted,
    /// Keeps the container's other mounts while it is open.
    namespace: OwnedFd,
    /// Locks of volumes that are file systems.
    locks: Vec<OwnedFd>,
    /// Keeps others from starting or removing the container.
    pending: PendingContainer,
}

/// What is at a path of a container, as Docker's `ContainerPathStat`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PathStat {
    /// The last component of the path.
    pub name: String,
    /// In bytes.
    pub size: i64,
    /// As Go's `os.FileMode` has it.
    pub mode: u32,
    /// RFC 3339.
    pub mtime: String,
    /// Of a symbolic link.
    pub link_target: String,
}

/// The last component of a path in the directory that holds it.
struct Place {
    parent: OwnedFd,
    /// `.` for the directory itself.
    name: String,
}

impl Engine {
    /// Opens the files of a container. The caller ends with [`Engine::close_files`].
    pub fn open_files(&self, needle: &str) -> Result<Files> {
        let container = self.containers.find(needle)?;
        let config = Some(container.config.clone());
        let needle = needle.to_owned();
        if let Some(control) = self.control(&container)? {
            return Ok(Files {
                root: control.root()?,
                config,
                needle,
                at_rest: None,
            });
        }
        super::host::require_mounts("cp")?;
        let pending = self.take_at_rest(container)?;
        let mounted = self.mount_root(&pending)?;
        let attached = self.attach_mounts(&pending.container, &mounted);
        let (root, namespace, locks) = match attached {
            Ok(attached) => attached,
            Err(error) => {
                mounted.discard(&self.store)?;
                return Err(error);
            }
        };
        Ok(Files {
            root,
            config,
            needle,
            at_rest: Some(AtRest {
                mounted,
                namespace,
                locks,
                pending,
            }),
        })
    }

    /// Mounts a stopped container's volumes and bind mounts, as dockerd does for a copy. Returns
    /// the root, the mount namespace and the volumes' locks.
    fn attach_mounts(
        &self,
        container: &Container,
        mounted: &Mounted,
    ) -> Result<(OwnedFd, OwnedFd, Vec<OwnedFd>)> {
        let Mounts {
            planned,
            descriptors,
            locks,
        } = self.mounts_at_rest(container, mounted.root.as_fd())?;
        let namespace = at_rest::attach_all(mounted.root.as_fd(), &planned, descriptors)
            .context(|| format!("container {}", container.config.name))?;
        let root = mounted.root.try_clone().context(|| "copying the mount")?;
        Ok((root, namespace, locks))
    }

    fn take_at_rest(&self, container: Container) -> Result<PendingContainer> {
        let lock = self.containers.take(&container)?;
        let status = container.status()?;
        if matches!(status, Status::Running | Status::Paused) {
            // Started since.
            let id = &container.config.id;
            return Err(Error::conflict(format!("container {id} is being started")));
        }
        if status.is_orphaned() {
            container.kill_locked()?;
        }
        self.ready(container, lock)
    }

    /// Unmounts what [`Engine::open_files`] mounted of a stopped container, and releases its locks.
    pub fn close_files(&self, files: Files) -> Result<()> {
        let Files { root, at_rest, .. } = files;
        drop(root);
        let Some(AtRest {
            mounted,
            namespace,
            locks,
            pending,
        }) = at_rest
        else {
            return Ok(());
        };
        drop(namespace);
        mounted.discard(&self.store)?;
        drop((locks, pending));
        Ok(())
    }
}

impl Files {
    /// What is at a path. A link at its end is not followed, unless the path ends in a slash.
    pub fn stat(&self, path: &str) -> Result<PathStat> {
        let place = self.place(path)?;
        let stat = self.stat_of(&place, path)?;
        let link = if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            let link = readlinkat(&place.parent, &*place.name, Vec::new());
            link.map_err(|errno| self.failed(errno, path))?
                .to_string_lossy()
                .into_owned()
        } else {
            String::new()
        };
        let mtime = Timestamp::new(
            stat.st_mtime,
            i32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        );
        Ok(PathStat {
            name: name_of(path),
            size: stat.st_size,
            mode: go_mode(stat.st_mode),
            mtime: mtime.unwrap_or_default().to_string(),
            link_target: link,
        })
    }

    fn stat_of(&self, place: &Place, path: &str) -> Result<Stat> {
        statat(&place.parent, &*place.name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| self.failed(errno, path))
    }

    /// Finds a path inside the root.
    fn place(&self, path: &str) -> Result<Place> {
        if path.is_empty() && self.config.is_some() {
            return Err(Error::invalid("bad parameter: path cannot be empty"));
        }
        let whole = path.trim_start_matches('/');
        let is_directory = whole.is_empty() || whole.ends_with('/') || last(whole) == ".";
        let (above, name) = match whole.rsplit_once('/') {
            _ if is_directory => (whole, "."),
            _ if last(whole) == ".." => (whole, "."),
            Some((above, name)) => (above, name),
            None => ("", whole),
        };
        Ok(Place {
            parent: self
                .directory(above)
                .map_err(|errno| self.failed(errno, path))?,
            name: name.to_owned(),
        })
    }

    /// Opens a directory inside the root.
    fn directory(&self, path: impl AsRef<Path>) -> Result<OwnedFd, Errno> {
        let path = path.as_ref();
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.root, path, flags, resolve)
    }

    /// Refuses to write to a path that the container was asked to have read-only (moby,
    /// `daemon/archive_unix.go`).
    fn check_writable(&self, path: &str) -> Result<()> {
        let Some(config) = &self.config else {
            return Ok(());
        };
        let path = components(path);
        let around = config.mounts.iter().filter_map(|mount| {
            let destination = components(&mount.destination);
            let length = destination.len();
            path.starts_with(&destination).then_some((length, mount))
        });
        match around.max_by_key(|(length, _)| *length) {
            Some((_, mount)) if mount.read_only => {
                Err(Error::invalid("mounted volume is marked read-only"))
            }
            None if config.host.readonly_rootfs => {
                Err(Error::invalid("container rootfs is marked read-only"))
            }
            _ => Ok(()),
        }
    }

    /// Docker's text for an errno.
    fn failed(&self, errno: Errno, path: &str) -> Error {
        match errno {
            errno if self.config.is_none() => Error::from(errno).context(path.to_owned()),
            Errno::NOENT | Errno::NOTDIR => Error::not_found(format!(
                "Could not find the file {path} in container {}",
                self.needle
            )),
            errno => Error::from(errno).context(format!("{path} in container {}", self.needle)),
        }
    }
}

/// The components of a path, normalised: without `.` and empty ones, and with `..` resolved.
fn components(path: &(impl AsRef<OsStr> + ?Sized)) -> Vec<&OsStr> {
    let mut all = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => all.push(name),
            Component::ParentDir => drop(all.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    all
}

fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// The directory that holds a path, and its last component: `.` for a directory itself.
fn split(path: &str) -> (String, String) {
    if matches!(last(path), "" | "." | "..") {
        return (path.to_owned(), ".".to_owned());
    }
    let (parent, name) = match path.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some((parent, name)) => (parent, name),
        None => (".", path),
    };
    (parent.to_owned(), name.to_owned())
}

/// The path that a link at `path` leads to.
fn beside(path: &str, target: &str) -> String {
    if target.starts_with('/') {
        return target.to_owned();
    }
    format!("{}/{target}", split(path).0)
}

/// Go's `filepath.Base`.
fn name_of(path: &str) -> String {
    match last(path.trim_end_matches('/')) {
        "" => "/".to_owned(),
        name => name.to_owned(),
    }
}

/// Go's `os.FileMode`: the permissions, and bits of its own (package io/fs).
fn go_mode(mode: u32) -> u32 {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => 1 << 31,
        FileType::Symlink => 1 << 27,
        FileType::BlockDevice => 1 << 26,
        FileType::CharacterDevice => 1 << 26 | 1 << 21,
        FileType::Fifo => 1 << 25,
        FileType::Socket => 1 << 24,
        _ => 0,
    };
    let bit = |set: u32, go: u32| if mode & set == 0 { 0 } else { go };
    mode & 0o777 | kind | bit(0o4000, 1 << 23) | bit(0o2000, 1 << 22) | bit(0o1000, 1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_mode_matches_gos_file_mode() {
        // From recordings of dockerd: a sticky directory, a file, a directory.
        for (mode, expected) in [
            (0o041_777, 2_148_532_735),
            (0o100_644, 420),
            (0o040_755, 2_147_484_141),
        ] {
            assert_eq!(go_mode(mode), expected, "{mode:o}");
        }
    }

    #[test]
    fn name_of_matches_gos_filepath_base() {
        for (path, expected) in [("/", "/"), ("/a/b", "b"), ("/a/b/", "b"), ("/a/.", ".")] {
            assert_eq!(name_of(path), expected, "{path}");
        }
        assert_eq!(components("/a/./b//../c/"), ["a", "c"]);
        for (path, parent, name) in [
            ("/a/b", "/a", "b"),
            ("/a", "/", "a"),
            ("a", ".", "a"),
            ("/a/", "/a/", "."),
            ("a/..", "a/..", "."),
        ] {
            assert_eq!(split(path), (parent.to_owned(), name.to_owned()), "{path}");
        }
        assert_eq!(beside("/a/b", "c"), "/a/c");
        assert_eq!(beside("/a/b", "/c"), "/c");
    }
}
