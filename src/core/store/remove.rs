//! Removes a directory tree of any content, such as a container's upper.
//!
//! Everything is reached by a descriptor and a single name. No symbolic link is followed and no
//! mount is entered (openat2 with RESOLVE_NO_XDEV): a mount point fails the removal and stays.
//! Depth and path length are unlimited: one descriptor is open at a time, and each `..` is checked
//! against the inode it must lead to. Directories that their owner cannot read are made readable.
//! Used for transactions and the trash here, and by the engine for containers and volumes.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use cowl_sys::open::openat2;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::StoreError;
use super::dir::is_dot;

/// One directory on the path from the root of the removal.
struct Level {
    name: CString,
    /// Identity of the directory, checked when `..` leads back to it.
    device: u64,
    inode: u64,
    /// Subdirectories that are still to be removed.
    pending: Vec<CString>,
}

/// Removes `name` in `parent`, a file or a whole directory. False if there was none.
///
/// Not atomic: rename it away first if others can see it. Stops at the first entry that cannot be
/// removed (a mount point, an immutable file); the error's `path` is relative to `parent`.
pub fn remove_tree(parent: impl AsFd, name: impl AsRef<OsStr>) -> Result<bool, StoreError> {
    let parent = parent.as_fd();
    let name = name.as_ref();
    let invalid = StoreError::Name {
        name: name.to_string_lossy().into_owned(),
        reason: "not a single file name",
    };
    let Ok(first) = CString::new(name.as_bytes()) else {
        return Err(invalid);
    };
    if name.is_empty() || name.as_bytes().contains(&b'/') || is_dot(&first) {
        return Err(invalid);
    }
    match fs::unlinkat(parent, first.as_c_str(), AtFlags::empty()) {
        Ok(()) => return Ok(true),
        Err(Errno::NOENT) => return Ok(false),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(StoreError::io("remove", name, errno)),
    }
    Walk {
        parent,
        levels: Vec::new(),
    }
    .run(first)?;
    Ok(true)
}

struct Walk<'p> {
    parent: BorrowedFd<'p>,
    levels: Vec<Level>,
}

impl Walk<'_> {
    fn run(mut self, first: CString) -> Result<(), StoreError> {
        let mut current = self.enter(None, first)?;
        loop {
            let next = self.levels.last_mut().and_then(|level| level.pending.pop());
            if let Some(name) = next {
                current = self.enter(Some(current.as_fd()), name)?;
                continue;
            }
            let Some(done) = self.levels.pop() else {
                return Ok(());
            };
            let above = match self.levels.last() {
                Some(level) => Some(self.back_to(&current, level)?),
                None => None,
            };
            let holder = above.as_ref().map_or(self.parent, AsFd::as_fd);
            fs::unlinkat(holder, done.name.as_c_str(), AtFlags::REMOVEDIR)
                .map_err(|errno| self.error("remove", Some(&done.name), errno))?;
            match above {
                Some(above) => current = above,
                None => return Ok(()),
            }
        }
    }

    /// Opens a directory, removes its files and pushes it with its pending subdirectories.
    fn enter(
        &mut self,
        holder: Option<BorrowedFd<'_>>,
        name: CString,
    ) -> Result<OwnedFd, StoreError> {
        let fd = open_child(holder.unwrap_or(self.parent), &name)
            .map_err(|errno| self.error("open", Some(&name), errno))?;
        let stat = fs::fstat(&fd).map_err(|errno| self.error("stat", Some(&name), errno))?;
        self.levels.push(Level {
            name,
            device: stat.st_dev,
            inode: stat.st_ino,
            pending: Vec::new(),
        });
        // Listed completely before anything is removed: some file systems skip names when entries
        // vanish during readdir.
        let mut pending = Vec::new();
        for (name, file_type) in self.list(&fd)? {
            if file_type == FileType::Directory {
                pending.push(name);
                continue;
            }
            match fs::unlinkat(&fd, name.as_c_str(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR) => pending.push(name),
                Err(errno) => return Err(self.error("remove", Some(&name), errno)),
            }
        }
        if let Some(level) = self.levels.last_mut() {
            level.pending = pending;
        }
        Ok(fd)
    }

    fn list(&self, fd: &OwnedFd) -> Result<Vec<(CString, FileType)>, StoreError> {
        let failed = |errno| self.error("list", None, errno);
        let mut entries = Vec::new();
        for entry in fs::Dir::read_from(fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !is_dot(entry.file_name()) {
                entries.push((entry.file_name().to_owned(), entry.file_type()));
            }
        }
        Ok(entries)
    }

    /// Opens the parent directory and checks that it is the one recorded in `level`.
    fn back_to(&self, current: &OwnedFd, level: &Level) -> Result<OwnedFd, StoreError> {
        let failed = |errno| self.error("go back to", None, errno);
        let above = fs::openat(current, c"..", OPEN_DIR, Mode::empty()).map_err(failed)?;
        let stat = fs::fstat(&above).map_err(failed)?;
        if (stat.st_dev, stat.st_ino) == (level.device, level.inode) {
            Ok(above)
        } else {
            Err(failed(Errno::STALE))
        }
    }

    fn error(&self, doing: &'static str, name: Option<&CStr>, errno: Errno) -> StoreError {
        let names = self
            .levels
            .iter()
            .map(|level| level.name.as_c_str())
            .chain(name);
        let path: PathBuf = names
            .map(|name| OsString::from(OsStr::from_bytes(name.to_bytes())))
            .collect();
        StoreError::io(doing, path, errno)
    }
}

const OPEN_DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens a subdirectory so that its entries can be listed and removed.
fn open_child(holder: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_XDEV
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS;
    let fd = match openat2(holder, name, OPEN_DIR, resolve) {
        Err(Errno::ACCESS) => {
            // The owner may not read it. chmod through an O_PATH descriptor: by name it would
            // follow a symlink that replaced the directory.
            let path = openat2(
                holder,
                name,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW,
                resolve,
            )?;
            fs::chmod(format!("/proc/self/fd/{}", path.as_raw_fd()), Mode::RWXU)?;
            openat2(holder, name, OPEN_DIR, resolve)?
        }
        other => other?,
    };
    let mode = Mode::from_raw_mode(fs::fstat(&fd)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        fs::fchmod(&fd, mode | Mode::RWXU)?;
    }
    Ok(fd)
}
