//! A name in a directory of the upper, and the `*at` system calls on it. None follows a symbolic
//! link or leaves the directory.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{
    AtFlags, FileType as HostType, Mode, RenameFlags, Statx, StatxFlags, Timestamps, XattrFlags,
};
use rustix::io::{Errno, Result};

use super::marks::{Mark, MarkStore};
use crate::tree::Timestamp;

/// A directory descriptor and a name, the arguments of an `*at` call. It stays valid if the
/// directory or its ancestors are renamed.
#[derive(Copy, Clone, Debug)]
pub struct NameAt<'a> {
    /// The directory; may be an `O_PATH` descriptor.
    pub dir: BorrowedFd<'a>,
    /// One component, or `.` for the directory itself.
    pub name: &'a [u8],
}

impl<'a> NameAt<'a> {
    /// A name in a directory.
    pub const fn new(dir: BorrowedFd<'a>, name: &'a [u8]) -> Self {
        Self { dir, name }
    }

    /// The attributes.
    pub fn stat(self) -> Result<Statx> {
        rustix::fs::statx(
            self.dir,
            self.name,
            AtFlags::SYMLINK_NOFOLLOW,
            StatxFlags::BASIC_STATS,
        )
    }

    /// Whether a file is here.
    pub fn exists(self) -> Result<bool> {
        match self.stat() {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    // There is no getxattrat before 6.13, and an O_PATH descriptor answers no fgetxattr. A path
    // through the descriptor in /proc reaches every type of file, devices and symbolic links too,
    // and opens nothing.
    fn proc_path(self) -> Vec<u8> {
        let mut path = format!("/proc/self/fd/{}/", self.dir.as_raw_fd()).into_bytes();
        path.extend_from_slice(self.name);
        path
    }

    /// The value of an extended attribute under its stored name; None if there is none, or if this
    /// file can have none.
    pub fn xattr(self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let path = self.proc_path();
        read_growing(256, |buffer| {
            rustix::fs::lgetxattr(path.as_slice(), name, buffer)
        })
    }

    /// The stored names of all extended attributes, each ended by a NUL; empty if this file can
    /// have none.
    pub fn xattr_names(self) -> Result<Vec<u8>> {
        let path = self.proc_path();
        Ok(read_growing(1024, |buffer| {
            rustix::fs::llistxattr(path.as_slice(), buffer)
        })?
        .unwrap_or_default())
    }

    /// Sets an extended attribute under its stored name.
    pub fn set_xattr(self, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        rustix::fs::lsetxattr(self.proc_path(), name, value, flags)
    }

    /// Removes an extended attribute; ENODATA if there is none.
    pub fn remove_xattr(self, name: &[u8]) -> Result<()> {
        rustix::fs::lremovexattr(self.proc_path(), name)
    }

    /// The bytes of a mark.
    pub fn mark(self, store: &MarkStore, mark: Mark) -> Result<Option<Vec<u8>>> {
        match store {
            MarkStore::Xattrs(space) => self.xattr(mark.name(*space).as_bytes()),
            MarkStore::Links(links) => links.read(self, mark),
        }
    }

    /// Writes a mark.
    pub fn set_mark(self, store: &MarkStore, mark: Mark, value: &[u8]) -> Result<()> {
        match store {
            MarkStore::Xattrs(space) => {
                self.set_xattr(mark.name(*space).as_bytes(), value, XattrFlags::empty())
            }
            MarkStore::Links(links) => links.write(self, mark, value),
        }
    }

    /// Removes a mark if it is there.
    pub fn clear_mark(self, store: &MarkStore, mark: Mark) -> Result<()> {
        match store {
            MarkStore::Links(links) => links.remove(self, mark),
            MarkStore::Xattrs(space) => match self.remove_xattr(mark.name(*space).as_bytes()) {
                Ok(()) | Err(Errno::NODATA) => Ok(()),
                Err(error) => Err(error),
            },
        }
    }

    /// Hides the name below: a character device 0:0, as overlayfs spells it. EEXIST if something
    /// is here.
    pub fn make_whiteout(self) -> Result<()> {
        rustix::fs::mknodat(
            self.dir,
            self.name,
            HostType::CharacterDevice,
            Mode::empty(),
            0,
        )
    }

    /// Changes owner and group; the host clears set-id bits and capabilities, as Linux does at
    /// every chown.
    pub fn chown(self, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let uid = uid.map(rustix::fs::Uid::from_raw);
        let gid = gid.map(rustix::fs::Gid::from_raw);
        rustix::fs::chownat(self.dir, self.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Sets permission bits. Not of a symbolic link, which has none.
    pub fn chmod(self, mode: u32) -> Result<()> {
        // fchmodat follows symbolic links; callers have checked the type, and only this worker
        // writes to the upper.
        rustix::fs::chmodat(
            self.dir,
            self.name,
            Mode::from_raw_mode(mode & 0o7777),
            AtFlags::empty(),
        )
    }

    /// Sets both times; a nanosecond field may be `UTIME_NOW` or `UTIME_OMIT`.
    pub fn utimens(self, times: &Timestamps) -> Result<()> {
        rustix::fs::utimensat(self.dir, self.name, times, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Removes the file; EISDIR if it is a directory.
    pub fn unlink(self) -> Result<()> {
        rustix::fs::unlinkat(self.dir, self.name, AtFlags::empty())
    }

    /// Removes the empty directory.
    pub fn rmdir(self) -> Result<()> {
        rustix::fs::unlinkat(self.dir, self.name, AtFlags::REMOVEDIR)
    }

    /// Gives the file another name, `to`.
    pub fn link(self, to: NameAt<'_>) -> Result<()> {
        rustix::fs::linkat(self.dir, self.name, to.dir, to.name, AtFlags::empty())
    }

    /// Renames to `to`.
    pub fn rename(self, to: NameAt<'_>, flags: RenameFlags) -> Result<()> {
        if flags.is_empty() {
            return rustix::fs::renameat(self.dir, self.name, to.dir, to.name);
        }
        rustix::fs::renameat_with(self.dir, self.name, to.dir, to.name, flags)
    }

    /// Renames to a name that nothing has; EEXIST if something has. The caller keeps others from
    /// that name: a file system without `RENAME_NOREPLACE` (NFS) is asked before.
    pub fn rename_new(self, to: NameAt<'_>) -> Result<()> {
        match self.rename(to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL) if to.exists()? => Err(Errno::EXIST),
            Err(Errno::INVAL) => self.rename(to, RenameFlags::empty()),
            renamed => renamed,
        }
    }
}

/// Reads into a buffer that grows until the value fits. None: no such attribute, or no attributes
/// on such a file.
fn read_growing(
    first: usize,
    read: impl Fn(&mut [u8]) -> Result<usize>,
) -> Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; first];
    loop {
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(Some(buffer));
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Both times, for utimensat.
pub fn times(atime: Timestamp, mtime: Timestamp) -> Timestamps {
    let spec = |time: Timestamp| rustix::fs::Timespec {
        tv_sec: time.secs,
        tv_nsec: i64::from(time.nanos),
    };
    Timestamps {
        last_access: spec(atime),
        last_modification: spec(mtime),
    }
}

/// Whether a host file is a whiteout.
pub fn is_whiteout(stat: &Statx) -> bool {
    HostType::from_raw_mode(u32::from(stat.stx_mode)) == HostType::CharacterDevice
        && (stat.stx_rdev_major, stat.stx_rdev_minor) == (0, 0)
}
