//! Paths inside a container's root, where an image or a process may have put symlinks to anywhere.
//!
//! Every path is looked up with `openat2` below the root's descriptor: `RESOLVE_IN_ROOT` follows
//! symlinks as the container sees them and can't leave the root, `RESOLVE_NO_MAGICLINKS` refuses
//! those of /proc. The result is a descriptor and used as one: no path is looked up twice. No
//! function but [`InRoot::new`] allocates.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use cowl_sys::open::openat2;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat};
use rustix::io::Errno;

/// A path whose missing components can be created without allocation.
#[derive(Debug)]
pub(crate) struct InRoot {
    /// Each component's name and the path up to it: (`bin`, `usr/bin`).
    components: Vec<(CString, CString)>,
}

/// The kind of file to create for a missing path. Everything but a directory counts as a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// The kind of an open file.
pub(crate) fn kind_of(descriptor: BorrowedFd<'_>) -> Result<Kind, Errno> {
    Ok(match FileType::from_raw_mode(fstat(descriptor)?.st_mode) {
        FileType::Directory => Kind::Directory,
        _ => Kind::File,
    })
}

impl InRoot {
    /// Takes an absolute path. `.` and `..` are resolved by name, as Docker does with options.
    /// `None` if it has a NUL byte.
    pub(crate) fn new(path: &[u8]) -> Option<Self> {
        let mut names: Vec<&[u8]> = Vec::new();
        for name in path.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." => drop(names.pop()),
                name => names.push(name),
            }
        }
        let mut components = Vec::with_capacity(names.len());
        let mut prefix = Vec::new();
        for name in names {
            if !prefix.is_empty() {
                prefix.push(b'/');
            }
            prefix.extend_from_slice(name);
            components.push((CString::new(name).ok()?, CString::new(prefix.clone()).ok()?));
        }
        Some(Self { components })
    }

    pub(crate) fn is_root(&self) -> bool {
        self.components.is_empty()
    }

    /// The directory that the path is in, and its name there; none of the root.
    pub(crate) fn split_last(&self) -> Option<(Self, CString)> {
        let ((name, _), parents) = self.components.split_last()?;
        let components = parents.to_vec();
        Some((Self { components }, name.clone()))
    }

    /// Opens the path.
    pub(crate) fn open(&self, root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        open_in_root(
            root,
            self.components.last().map_or(c".", |(_, path)| path),
            OFlags::PATH,
        )
    }

    /// Opens the directory, created if missing. A symlink on the way is refused: it could redirect
    /// the mount of /proc, and so what the launcher writes there (CVE-2019-16884, CVE-2019-19921).
    pub(crate) fn open_or_create_real(&self, root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        let mut parent: Option<OwnedFd> = None;
        for (name, _) in &self.components {
            let directory = parent.as_ref().map_or(root, |parent| parent.as_fd());
            parent = Some(real_directory(directory, name)?);
        }
        parent.ok_or(Errno::NOENT)
    }

    /// Opens the path, or creates it component by component: directories with mode 0755, a file
    /// with 0644.
    pub(crate) fn open_or_create(
        &self,
        root: BorrowedFd<'_>,
        kind: Kind,
    ) -> Result<OwnedFd, Errno> {
        match self.open(root) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let mut parent: Option<OwnedFd> = None;
        for (position, (name, path)) in self.components.iter().enumerate() {
            let found = match open_in_root(root, path, OFlags::PATH) {
                Err(Errno::NOENT) => {
                    let last = position + 1 == self.components.len();
                    let directory = parent.as_ref().map_or(root, |parent| parent.as_fd());
                    create(directory, name, if last { kind } else { Kind::Directory })?;
                    open_in_root(root, path, OFlags::PATH)?
                }
                other => other?,
            };
            parent = Some(found);
        }
        parent.ok_or(Errno::NOENT)
    }
}

/// Creates one name in a directory. An existing file is left as it is.
fn create(directory: BorrowedFd<'_>, name: &CStr, kind: Kind) -> Result<(), Errno> {
    let made = match kind {
        Kind::Directory => mkdirat(directory, name, Mode::from_raw_mode(0o755)),
        Kind::File => {
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(directory, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match made {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Opens a path as a process of the container would.
pub(crate) fn open_in_root(
    root: BorrowedFd<'_>,
    path: &CStr,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags, resolve)
}

/// Opens a path without symlinks.
pub(crate) fn open_no_symlinks(
    root: BorrowedFd<'_>,
    path: &CStr,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(root, path, flags, resolve)
}

/// Opens the directory `name` of `parent`, created if missing. A symlink is refused.
fn real_directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let open = || open_no_symlinks(parent, name, OFlags::PATH | OFlags::DIRECTORY);
    match open() {
        Err(Errno::NOENT) => {
            create(parent, name, Kind::Directory)?;
            open()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    struct Root {
        directory: tempfile::TempDir,
        outside: tempfile::TempDir,
    }

    impl Root {
        fn new() -> Self {
            Self {
                directory: tempfile::tempdir().unwrap(),
                outside: tempfile::tempdir().unwrap(),
            }
        }

        fn link(&self, target: impl AsRef<std::path::Path>, name: &str) {
            symlink(target, self.directory.path().join(name)).unwrap();
        }

        fn create(&self, path: &str, kind: Kind) -> Result<u64, Errno> {
            let root = std::fs::File::open(self.directory.path()).unwrap();
            let made = InRoot::new(path.as_bytes())
                .unwrap()
                .open_or_create(root.as_fd(), kind)?;
            Ok(fstat(&made)?.st_ino)
        }

        fn inode(&self, path: &str) -> u64 {
            self.directory
                .path()
                .join(path)
                .symlink_metadata()
                .unwrap()
                .ino()
        }

        fn assert_nothing_outside(&self) {
            assert_eq!(std::fs::read_dir(self.outside.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn open_or_create_creates_missing_components_inside_the_root() {
        let root = Root::new();
        let made = root.create("/a/./b/../c", Kind::Directory).unwrap();
        assert_eq!(made, root.inode("a/c"));
        assert_eq!(root.create("/a/c", Kind::File).unwrap(), made);
        root.create("/etc/hosts", Kind::File).unwrap();
        assert!(
            root.directory
                .path()
                .join("etc/hosts")
                .symlink_metadata()
                .unwrap()
                .is_file()
        );
    }

    #[test]
    fn open_or_create_follows_symlinks_inside_the_root() {
        let root = Root::new();
        root.link(root.outside.path(), "absolute");
        root.link("../../../../../../../../etc", "dots");
        root.link("/dir", "inside");
        std::fs::create_dir(root.directory.path().join("dir")).unwrap();
        // The absolute target does not exist below the root, and a dangling link is not made into
        // anything.
        assert_eq!(
            root.create("/absolute/data", Kind::Directory),
            Err(Errno::NOENT)
        );
        assert_eq!(
            root.create("/dots/data", Kind::Directory),
            Err(Errno::NOENT)
        );
        assert_eq!(
            root.create("/inside/data", Kind::Directory).unwrap(),
            root.inode("dir/data")
        );
        root.assert_nothing_outside();
    }

    #[test]
    fn open_or_create_refuses_magic_links() {
        let root = Root::new();
        let outside = std::fs::File::open(root.outside.path()).unwrap();
        let proc = std::fs::File::open("/proc").unwrap();
        let path = format!("self/fd/{}/x", std::os::fd::AsRawFd::as_raw_fd(&outside));
        assert_eq!(
            InRoot::new(path.as_bytes())
                .unwrap()
                .open_or_create(proc.as_fd(), Kind::Directory)
                .err(),
            Some(Errno::LOOP)
        );
        root.assert_nothing_outside();
    }

    #[test]
    fn real_directory_refuses_symlinks() {
        let root = Root::new();
        root.link(root.outside.path(), "proc");
        root.link("tmp", "dev");
        let directory = std::fs::File::open(root.directory.path()).unwrap();
        assert_eq!(
            real_directory(directory.as_fd(), c"proc").err(),
            Some(Errno::LOOP)
        );
        assert_eq!(
            real_directory(directory.as_fd(), c"dev").err(),
            Some(Errno::LOOP)
        );
        real_directory(directory.as_fd(), c"sys").unwrap();
        std::fs::write(root.directory.path().join("file"), "").unwrap();
        assert_eq!(
            real_directory(directory.as_fd(), c"file").err(),
            Some(Errno::NOTDIR)
        );
    }
}
