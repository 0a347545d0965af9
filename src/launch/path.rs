//! Paths inside a container's root, which an image or a process may have filled with symlinks to anywhere.
//!
//! Every look-up goes through the kernel's `openat2` with the root's descriptor: `RESOLVE_IN_ROOT` follows symlinks as the container would
//! see them and can't leave the root, `RESOLVE_NO_MAGICLINKS` refuses the links of /proc. What is found is a descriptor, and is used as
//! one: a path is never looked up a second time. No function but [`InRoot::new`] allocates.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use cowl_sys::open::openat2;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat};
use rustix::io::Errno;

/// A path whose missing components can be made without allocation.
#[derive(Debug)]
pub(crate) struct InRoot {
    /// Each component with the path that ends in it: `usr`, `usr/bin`.
    components: Vec<(CString, CString)>,
}

/// What a path is made as where it is missing; whatever is no directory counts as a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// Which of the two is open here.
pub(crate) fn kind_of(descriptor: BorrowedFd<'_>) -> Result<Kind, Errno> {
    Ok(match FileType::from_raw_mode(fstat(descriptor)?.st_mode) {
        FileType::Directory => Kind::Directory,
        _ => Kind::File,
    })
}

impl InRoot {
    /// Takes an absolute path; `.` and `..` are resolved by name, as Docker does with what a user types. `None` if there is a NUL in it.
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

    /// Opens what is there.
    pub(crate) fn open(&self, root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        follow(
            root,
            self.components.last().map_or(c".", |(_, path)| path),
            OFlags::PATH,
        )
    }

    /// Opens what is there, or makes it: directories 0755, a file 0644, of the process's user, component by component.
    pub(crate) fn open_or_make(&self, root: BorrowedFd<'_>, kind: Kind) -> Result<OwnedFd, Errno> {
        match self.open(root) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let mut parent: Option<OwnedFd> = None;
        for (position, (name, path)) in self.components.iter().enumerate() {
            let found = match follow(root, path, OFlags::PATH) {
                Err(Errno::NOENT) => {
                    let last = position + 1 == self.components.len();
                    let directory = parent.as_ref().map_or(root, |parent| parent.as_fd());
                    make(directory, name, if last { kind } else { Kind::Directory })?;
                    follow(root, path, OFlags::PATH)?
                }
                other => other?,
            };
            parent = Some(found);
        }
        parent.ok_or(Errno::NOENT)
    }
}

/// Makes one name in a directory; if something is there by now, that is as good.
fn make(directory: BorrowedFd<'_>, name: &CStr, kind: Kind) -> Result<(), Errno> {
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

/// Opens a path as a process of the container would see it.
pub(crate) fn follow(root: BorrowedFd<'_>, path: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags, resolve)
}

/// Opens a path that has no symlink in it.
pub(crate) fn plain(root: BorrowedFd<'_>, path: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(root, path, flags, resolve)
}

/// A directory of this name directly in `parent`, made where missing. A symlink is refused: over it /proc could be mounted elsewhere, and
/// what a runtime then writes to it could be caught (CVE-2019-16884, CVE-2019-19921).
pub(crate) fn real_directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let open = || plain(parent, name, OFlags::PATH | OFlags::DIRECTORY);
    match open() {
        Err(Errno::NOENT) => {
            make(parent, name, Kind::Directory)?;
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

        fn make(&self, path: &str, kind: Kind) -> Result<u64, Errno> {
            let root = std::fs::File::open(self.directory.path()).unwrap();
            let made = InRoot::new(path.as_bytes())
                .unwrap()
                .open_or_make(root.as_fd(), kind)?;
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
    fn missing_components_are_made_inside() {
        let root = Root::new();
        let made = root.make("/a/./b/../c", Kind::Directory).unwrap();
        assert_eq!(made, root.inode("a/c"));
        assert_eq!(root.make("/a/c", Kind::File).unwrap(), made);
        root.make("/etc/hosts", Kind::File).unwrap();
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
    fn symlinks_stay_inside_the_root() {
        let root = Root::new();
        root.link(root.outside.path(), "absolute");
        root.link("../../../../../../../../etc", "dots");
        root.link("/dir", "inside");
        std::fs::create_dir(root.directory.path().join("dir")).unwrap();
        // The absolute target does not exist below the root, and a dangling link is not made into anything.
        assert_eq!(
            root.make("/absolute/data", Kind::Directory),
            Err(Errno::NOENT)
        );
        assert_eq!(root.make("/dots/data", Kind::Directory), Err(Errno::NOENT));
        assert_eq!(
            root.make("/inside/data", Kind::Directory).unwrap(),
            root.inode("dir/data")
        );
        root.assert_nothing_outside();
    }

    #[test]
    fn magic_links_are_refused() {
        let root = Root::new();
        let outside = std::fs::File::open(root.outside.path()).unwrap();
        let proc = std::fs::File::open("/proc").unwrap();
        let path = format!("self/fd/{}/x", std::os::fd::AsRawFd::as_raw_fd(&outside));
        assert_eq!(
            InRoot::new(path.as_bytes())
                .unwrap()
                .open_or_make(proc.as_fd(), Kind::Directory)
                .err(),
            Some(Errno::LOOP)
        );
        root.assert_nothing_outside();
    }

    #[test]
    fn a_symlinked_proc_or_dev_is_refused() {
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
