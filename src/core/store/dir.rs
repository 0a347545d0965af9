//! [`StoreDir`]: an open directory of the store. Every file of the store is reached from one by a
//! plain name.
//!
//! Invariant: no call here follows a symbolic link in the last component or leaves the directory,
//! and every error names the full path. Used by the other files of this module only.

use std::ffi::{CStr, OsStr};
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RawDir, RenameFlags, StatxFlags};
use rustix::io::Errno;
use rustix::process::Uid;

use super::StoreError;

/// Objects, trees and blobs are never changed after they are published.
pub(super) const PUBLISHED: Mode = Mode::RUSR.union(Mode::RGRP).union(Mode::ROTH);
/// JSON files that are replaced as a whole.
pub(super) const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Bytes of names that one call lists.
const LISTING: usize = 64 * 1024;

/// Bytes of most records: they are read by one call, and another one that finds the end.
const RECORD: usize = 4096;

/// The attributes of a name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) file_type: FileType,
    pub(super) size: u64,
    /// 512-byte units of disk space.
    pub(super) blocks: u64,
    /// Permission bits, `07777`.
    pub(super) mode: u32,
    /// Hard links.
    pub(super) links: u32,
    pub(super) stamp: Stamp,
}

/// Tells a file from the one that replaces it under the same name, even if that gets its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Stamp {
    pub(super) inode: u64,
    changed: (i64, u32),
}

impl Stamp {
    /// The ctime since 1970.
    pub(super) fn changed_at(self) -> Duration {
        let (seconds, nanoseconds) = self.changed;
        Duration::new(seconds.try_into().unwrap_or_default(), nanoseconds)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanoseconds) = self.changed;
        write!(f, "{} {seconds}.{nanoseconds:09}", self.inode)
    }
}

/// The result of [`StoreDir::link`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkOutcome {
    Linked,
    /// The source does not exist.
    NotFound,
    /// The file system or the file does not allow another hard link.
    Unsupported,
}

#[derive(Debug)]
pub(super) struct StoreDir {
    fd: OwnedFd,
    path: PathBuf,
    /// Whether a published file gets the mode that it is created with, since umask and default ACL
    /// take nothing. Learned from the first: a chmod of each would show in an import.
    keeps_modes: OnceLock<bool>,
    /// Whether what is written is made durable, here and in the directories opened from here.
    durable: bool,
}

impl AsFd for StoreDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const OPEN_DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

impl StoreDir {
    /// Opens the store's root by the user's path, following symbolic links.
    pub(super) fn open_root(path: &Path) -> Result<Self, StoreError> {
        let fd = fs::open(path, OPEN_DIR, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT => StoreError::NotFound {
                path: path.to_owned(),
            },
            other => StoreError::io("open", path, other),
        })?;
        Ok(Self {
            fd,
            path: path.to_owned(),
            keeps_modes: OnceLock::new(),
            durable: true,
        })
    }

    /// The same directory, of which nothing is made durable from here on.
    pub(super) fn not_durable(self) -> Self {
        Self {
            durable: false,
            ..self
        }
    }

    /// Another descriptor of the same open directory.
    pub(super) fn try_clone(&self) -> Result<Self, StoreError> {
        let fd = self.fd.try_clone();
        Ok(Self {
            fd: fd.map_err(|source| StoreError::io("open", &self.path, source))?,
            path: self.path.clone(),
            keeps_modes: OnceLock::new(),
            durable: self.durable,
        })
    }

    /// The directory's owner.
    pub(super) fn owner(&self) -> Result<Uid, StoreError> {
        let stat =
            fs::fstat(&self.fd).map_err(|errno| StoreError::io("stat", &self.path, errno))?;
        Ok(Uid::from_raw(stat.st_uid))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn join(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.path.join(name.as_ref())
    }

    fn error(&self, doing: &'static str, name: impl AsRef<OsStr>, errno: Errno) -> StoreError {
        StoreError::io(doing, self.join(name), errno)
    }

    pub(super) fn open_dir(&self, name: impl AsRef<OsStr>) -> Result<Self, StoreError> {
        let name = name.as_ref();
        let fd = fs::openat(&self.fd, name, OPEN_DIR | OFlags::NOFOLLOW, Mode::empty())
            .map_err(|errno| self.error("open", name, errno))?;
        Ok(Self {
            fd,
            path: self.join(name),
            keeps_modes: OnceLock::new(),
            durable: self.durable,
        })
    }

    /// Like [`StoreDir::open_dir`], but None if the directory does not exist.
    pub(super) fn open_dir_if_exists(
        &self,
        name: impl AsRef<OsStr>,
    ) -> Result<Option<Self>, StoreError> {
        match self.open_dir(name) {
            Ok(dir) => Ok(Some(dir)),
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates a subdirectory unless it exists.
    pub(super) fn create_dir(&self, name: &str, mode: Mode) -> Result<(), StoreError> {
        match fs::mkdirat(&self.fd, name, mode) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(self.error("create", name, errno)),
        }
    }

    /// Creates a file with O_EXCL and opens it for writing.
    pub(super) fn create(&self, name: &str, mode: Mode) -> Result<File, StoreError> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(&self.fd, name, flags, mode)
            .map_err(|errno| self.error("create", name, errno))?;
        let is_kept = || fs::fstat(&fd).is_ok_and(|stat| Mode::from_raw_mode(stat.st_mode) == mode);
        if mode != PRIVATE && !*self.keeps_modes.get_or_init(is_kept) {
            // By descriptor: the umask does not apply.
            fs::fchmod(&fd, mode).map_err(|errno| self.error("set the mode of", name, errno))?;
        }
        Ok(File::from(fd))
    }

    /// Creates a file with this content. Not durable before a later sync.
    pub(super) fn create_with(
        &self,
        name: &str,
        mode: Mode,
        content: &[u8],
    ) -> Result<File, StoreError> {
        let mut file = self.create(name, mode)?;
        file.write_all(content)
            .map_err(|source| StoreError::io("write", self.join(name), source))?;
        Ok(file)
    }

    pub(super) fn open(&self, name: impl AsRef<OsStr>) -> Result<Option<File>, StoreError> {
        let name = name.as_ref();
        // NONBLOCK: opening a fifo must not hang; regular files ignore the flag.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(File::from(fd))),
            // NOTDIR: a damaged fan-out directory.
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(self.error("open", name, errno)),
        }
    }

    /// Reads a small file; more than `limit` bytes is an error.
    pub(super) fn read(
        &self,
        name: impl AsRef<OsStr>,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let name = name.as_ref();
        let Some(file) = self.open(name)? else {
            return Ok(None);
        };
        let mut bytes = Vec::with_capacity(RECORD);
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| StoreError::io("read", self.join(name), source))?;
        if bytes.len() as u64 > limit {
            return Err(StoreError::malformed(
                self.join(name),
                format!("larger than {limit} bytes"),
            ));
        }
        Ok(Some(bytes))
    }

    pub(super) fn stat(&self, name: impl AsRef<OsStr>) -> Result<Option<Meta>, StoreError> {
        let name = name.as_ref();
        let mask = StatxFlags::BASIC_STATS;
        match fs::statx(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW, mask) {
            Ok(stat) => Ok(Some(Meta {
                file_type: FileType::from_raw_mode(stat.stx_mode.into()),
                size: stat.stx_size,
                blocks: stat.stx_blocks,
                mode: u32::from(stat.stx_mode) & 0o7777,
                links: stat.stx_nlink,
                stamp: Stamp {
                    inode: stat.stx_ino,
                    changed: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
                },
            })),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(self.error("stat", name, errno)),
        }
    }

    /// Renames into another directory of the store, replacing an existing file.
    pub(super) fn rename(
        &self,
        from: impl AsRef<OsStr>,
        to: &Self,
        name: impl AsRef<OsStr>,
    ) -> Result<(), StoreError> {
        let (from, name) = (from.as_ref(), name.as_ref());
        fs::renameat(&self.fd, from, &to.fd, name)
            .map_err(|errno| to.error("rename a file to", name, errno))
    }

    /// Hard-links a file into another directory of the store.
    pub(super) fn link(
        &self,
        from: impl AsRef<OsStr>,
        to: &Self,
        name: impl AsRef<OsStr>,
    ) -> Result<LinkOutcome, StoreError> {
        let (from, name) = (from.as_ref(), name.as_ref());
        match fs::linkat(&self.fd, from, &to.fd, name, AtFlags::empty()) {
            // Files are named by digest: an existing name has the same content.
            Ok(()) | Err(Errno::EXIST) => Ok(LinkOutcome::Linked),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(LinkOutcome::NotFound),
            Err(Errno::PERM | Errno::ACCESS | Errno::MLINK | Errno::OPNOTSUPP | Errno::XDEV) => {
                Ok(LinkOutcome::Unsupported)
            }
            Err(errno) => Err(to.error("link a file to", name, errno)),
        }
    }

    /// Exchanges two names. False if one does not exist or the file system does not support it.
    pub(super) fn exchange(
        &self,
        own: impl AsRef<OsStr>,
        with: &Self,
        name: impl AsRef<OsStr>,
    ) -> Result<bool, StoreError> {
        let (own, name) = (own.as_ref(), name.as_ref());
        match fs::renameat_with(&self.fd, own, &with.fd, name, RenameFlags::EXCHANGE) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS) => Ok(false),
            Err(errno) => Err(with.error("rename a file to", name, errno)),
        }
    }

    /// Creates a symbolic link.
    pub(super) fn symlink(&self, target: &str, name: &str) -> Result<(), StoreError> {
        fs::symlinkat(target, &self.fd, name).map_err(|errno| self.error("create", name, errno))
    }

    /// Makes a file's content durable.
    pub(super) fn sync_file(&self, name: &str) -> Result<(), StoreError> {
        if !self.durable {
            return Ok(());
        }
        let file = self
            .open(name)?
            .ok_or_else(|| self.error("sync", name, Errno::NOENT))?;
        fs::fsync(&file).map_err(|errno| self.error("sync", name, errno))
    }

    /// Removes a file; false if there was none.
    pub(super) fn remove(&self, name: impl AsRef<OsStr>) -> Result<bool, StoreError> {
        let name = name.as_ref();
        match fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(self.error("remove", name, errno)),
        }
    }

    /// All names but `.` and `..`, sorted: reports are deterministic.
    pub(super) fn names(&self) -> Result<Vec<Box<OsStr>>, StoreError> {
        self.names_that(|_| true)
    }

    /// The names that `wanted` chooses, but `.` and `..`, sorted. The others cost no memory.
    pub(super) fn names_that(
        &self,
        wanted: impl Fn(&OsStr) -> bool,
    ) -> Result<Vec<Box<OsStr>>, StoreError> {
        let failed = |errno| StoreError::io("list", &self.path, errno);
        // A descriptor of its own: the offset belongs to one.
        let dir = fs::openat(&self.fd, ".", OPEN_DIR, Mode::empty()).map_err(failed)?;
        let mut buffer = Vec::with_capacity(LISTING);
        let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if !is_dot(entry.file_name()) && wanted(name) {
                names.push(name.into());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    pub(super) fn sync(&self) -> Result<(), StoreError> {
        if !self.durable {
            return Ok(());
        }
        fs::fsync(&self.fd).map_err(|errno| StoreError::io("sync", &self.path, errno))
    }

    /// Makes all of the file system durable. `since` is a descriptor of it: what could not be
    /// written since that was opened is an error.
    pub(super) fn sync_all(&self, since: impl AsFd) -> Result<(), StoreError> {
        if !self.durable {
            return Ok(());
        }
        fs::syncfs(since).map_err(|errno| StoreError::io("sync", &self.path, errno))
    }

    /// Replaces a small file atomically: writes and syncs `temporary` in `aside`, renames it, and
    /// syncs the directory.
    pub(super) fn replace(
        &self,
        name: &str,
        content: &[u8],
        aside: &Self,
        temporary: &str,
    ) -> Result<(), StoreError> {
        let file = aside.create_with(temporary, PRIVATE, content)?;
        if self.durable {
            fs::fsync(&file).map_err(|errno| aside.error("sync", temporary, errno))?;
        }
        aside.rename(temporary, self, name)?;
        self.sync()
    }
}

pub(super) fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}
