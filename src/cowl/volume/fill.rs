//! Copies a directory of an image into a new volume: owner, mode, times, xattrs, hard links,
//! devices and holes included. In a user namespace, files of unmapped ids become the caller's.
//!
//! Used by `Volume::prepare`. The source path, with its symlinks, is resolved inside the
//! container's root.

use crate::engine::error::{Context, Error, Result};
use cowl_core::sys::copy::copy_data_checked;
use cowl_sys::open::openat2;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{
    self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, Timespec, Timestamps,
    XattrFlags,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Copies the directory `path` of `root` into the empty directory `to`. Does nothing if `path` is
/// missing. Fails with EINTR once `interrupt` is readable.
pub(super) fn copy_tree(
    root: impl AsFd,
    path: &str,
    to: OwnedFd,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let relative = path.trim_start_matches('/');
    let from = match openat2(&root, relative, READ | OFlags::DIRECTORY, inside) {
        Ok(from) => from,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(errno) => return Err(Error::from(errno).context(format!("opening {path}"))),
    };
    let mut copier = Copier {
        top: to,
        links: HashMap::new(),
        interrupt,
    };
    let top = copier.top.try_clone()?;
    copier
        .directory(&from, &top, Path::new(""))
        .map_err(|(at, error)| error.context(Path::new(path).join(at).display().to_string()))
}

const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

struct Copier<'i> {
    top: OwnedFd,
    /// The copy's first name, by inode, of files with several hard links.
    links: HashMap<u64, PathBuf>,
    interrupt: Option<BorrowedFd<'i>>,
}

/// A result whose error carries the path below the source.
type At<T> = std::result::Result<T, (PathBuf, Error)>;

impl Copier<'_> {
    fn directory(&mut self, from: &OwnedFd, to: &OwnedFd, path: &Path) -> At<()> {
        let here = |error: Error| (path.to_owned(), error);
        for entry in fs::Dir::read_from(from).map_err(|errno| here(errno.into()))? {
            let entry = entry.map_err(|errno| here(errno.into()))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let below = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            self.entry(from, to, name, &below)?;
        }
        let stat = stat(from, c"").map_err(here)?;
        apply_metadata(from.as_fd(), to.as_fd(), &stat).map_err(here)
    }

    fn entry(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr, path: &Path) -> At<()> {
        let here = |error: Error| (path.to_owned(), error);
        self.check().map_err(|errno| here(errno.into()))?;
        let stat = stat(from, name).map_err(here)?;
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        if kind == FileType::Directory {
            let source = fs::openat(
                from,
                name,
                READ | OFlags::DIRECTORY | OFlags::NOFOLLOW,
                Mode::empty(),
            )
            .map_err(|errno| here(errno.into()))?;
            let copy = make_directory(to, name).map_err(here)?;
            return self.directory(&source, &copy, path);
        }
        if stat.stx_nlink > 1 {
            if let Some(first) = self.links.get(&stat.stx_ino) {
                return fs::linkat(&self.top, first, to, name, AtFlags::empty())
                    .map_err(|errno| here(errno.into()));
            }
            self.links.insert(stat.stx_ino, path.to_owned());
        }
        self.copy_file(from, to, name, &stat, kind).map_err(here)
    }

    /// EINTR once the interrupt is readable.
    fn check(&self) -> Result<(), Errno> {
        let Some(interrupt) = self.interrupt else {
            return Ok(());
        };
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut asked = [PollFd::from_borrowed_fd(interrupt, PollFlags::IN)];
        match rustix::io::retry_on_intr(|| poll(&mut asked, Some(&at_once)))? {
            0 => Ok(()),
            _ => Err(Errno::INTR),
        }
    }

    /// Copies anything but a directory.
    fn copy_file(
        &self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CStr,
        stat: &Statx,
        kind: FileType,
    ) -> Result<()> {
        match kind {
            FileType::RegularFile => {
                let source = fs::openat(from, name, READ | OFlags::NOFOLLOW, Mode::empty())?;
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let copy = fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
                copy_data_checked(&source, &copy, stat.stx_size, &|_| self.check())?;
                return apply_metadata(source.as_fd(), copy.as_fd(), stat);
            }
            FileType::Symlink => fs::symlinkat(fs::readlinkat(from, name, Vec::new())?, to, name)?,
            _ => fs::mknodat(
                to,
                name,
                kind,
                Mode::RUSR | Mode::WUSR,
                fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
            )?,
        }
        let path_only = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let source = fs::openat(from, name, path_only, Mode::empty())?;
        let copy = fs::openat(to, name, path_only, Mode::empty())?;
        apply_metadata(source.as_fd(), copy.as_fd(), stat)
    }
}

fn make_directory(to: &OwnedFd, name: &CStr) -> Result<OwnedFd> {
    fs::mkdirat(to, name, Mode::RWXU)?;
    Ok(fs::openat(
        to,
        name,
        READ | OFlags::DIRECTORY | OFlags::NOFOLLOW,
        Mode::empty(),
    )?)
}

/// Applies owner, mode, xattrs and times. Owner first, since chown clears set-id bits; times last,
/// since all else changes them.
fn apply_metadata(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Statx) -> Result<()> {
    let (uid, gid) = (
        fs::Uid::from_raw(stat.stx_uid),
        fs::Gid::from_raw(stat.stx_gid),
    );
    let mut mode = Mode::from_raw_mode(stat.stx_mode.into());
    match fs::chownat(to, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH) {
        // The user namespace does not map the ids: the copy stays the caller's, without set-id
        // bits.
        Err(Errno::INVAL) => mode.remove(Mode::SUID | Mode::SGID),
        other => other.context(|| "setting the owner")?,
    }
    if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::Symlink {
        fs::chmod(by_descriptor(to), mode).context(|| "setting the mode")?;
    }
    copy_xattrs(from, to).context(|| "copying extended attributes")?;
    let time = |at: fs::StatxTimestamp| Timespec {
        tv_sec: at.tv_sec,
        tv_nsec: at.tv_nsec.into(),
    };
    let times = Timestamps {
        last_access: time(stat.stx_atime),
        last_modification: time(stat.stx_mtime),
    };
    fs::utimensat(to, c"", &times, AtFlags::EMPTY_PATH).context(|| "setting the times")
}

fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let (source, target) = (by_descriptor(from), by_descriptor(to));
    let list = match grown(|buffer| fs::listxattr(&source, spare_capacity(buffer))) {
        Ok(list) => list,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    for name in list.split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name)?;
        let value = grown(|buffer| fs::getxattr(&source, name, spare_capacity(buffer)))?;
        fs::setxattr(&target, name, &value, XattrFlags::empty())
            .context(|| name.to_string_lossy().into_owned())?;
    }
    Ok(())
}

/// Calls `read` with a growing buffer until the answer fits (the kernel's limit is 64 KiB).
fn grown(
    mut read: impl FnMut(&mut Vec<u8>) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = Vec::with_capacity(1024);
    loop {
        match read(&mut buffer) {
            Err(Errno::RANGE) if buffer.capacity() < 1 << 17 => {
                buffer.reserve(buffer.capacity() * 2);
            }
            Err(errno) => return Err(errno),
            Ok(_) => return Ok(buffer),
        }
    }
}

/// A path to an open file, for calls that do not accept O_PATH descriptors.
fn by_descriptor(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default()
}

fn stat(dir: &OwnedFd, name: &CStr) -> Result<Statx> {
    Ok(fs::statx(
        dir,
        name,
        AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH,
        StatxFlags::BASIC_STATS,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::files::open_dir;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn copy_tree_keeps_modes_times_links_and_xattrs() {
        let image = tempfile::tempdir().unwrap();
        let srv = image.path().join("srv");
        std::fs::create_dir_all(srv.join("deep/er")).unwrap();
        std::fs::write(srv.join("deep/file"), vec![7; 100_000]).unwrap();
        std::fs::hard_link(srv.join("deep/file"), srv.join("again")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", srv.join("link")).unwrap();
        std::fs::set_permissions(
            srv.join("deep/file"),
            std::fs::Permissions::from_mode(0o6751),
        )
        .unwrap();
        std::fs::set_permissions(&srv, std::fs::Permissions::from_mode(0o1777)).unwrap();
        let xattr = fs::setxattr(srv.join("deep/file"), "user.x", b"1", XattrFlags::empty());
        // The path goes through a symlink that is absolute inside the root.
        std::os::unix::fs::symlink("/srv", image.path().join("data")).unwrap();

        let volume = tempfile::tempdir().unwrap();
        copy_tree(
            open_dir(image.path()).unwrap(),
            "/data",
            open_dir(volume.path()).unwrap(),
            None,
        )
        .unwrap();

        for path in ["", "deep", "deep/er", "deep/file", "again", "link"] {
            let (from, to) = (
                std::fs::symlink_metadata(srv.join(path)).unwrap(),
                std::fs::symlink_metadata(volume.path().join(path)).unwrap(),
            );
            let facts =
                |m: &std::fs::Metadata| (m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec());
            assert_eq!(facts(&from), facts(&to), "{path}");
        }
        assert_eq!(
            std::fs::read(volume.path().join("again")).unwrap(),
            vec![7; 100_000]
        );
        assert_eq!(
            std::fs::symlink_metadata(volume.path().join("again"))
                .unwrap()
                .nlink(),
            2
        );
        assert_eq!(
            std::fs::read_link(volume.path().join("link")).unwrap(),
            Path::new("/etc/passwd")
        );
        if xattr.is_ok() {
            let value = grown(|buffer| {
                fs::getxattr(
                    volume.path().join("again"),
                    "user.x",
                    spare_capacity(buffer),
                )
            })
            .unwrap();
            assert_eq!(value, b"1");
        }
    }

    #[test]
    fn copy_tree_of_a_missing_directory_copies_nothing() {
        let image = tempfile::tempdir().unwrap();
        std::fs::write(image.path().join("file"), "").unwrap();
        let volume = tempfile::tempdir().unwrap();
        for path in ["/missing", "/file", "/file/below"] {
            copy_tree(
                open_dir(image.path()).unwrap(),
                path,
                open_dir(volume.path()).unwrap(),
                None,
            )
            .unwrap();
        }
        assert_eq!(std::fs::read_dir(volume.path()).unwrap().count(), 0);
    }
}
