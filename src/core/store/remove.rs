//! Removing a directory with all that is in it, whatever a container left there.
//!
//! Everything is reached by descriptors and single names: no symbolic link is followed, no mount is entered (openat2 with
//! RESOLVE_NO_XDEV; what is mounted over makes it fail and stays), depth and path length don't matter (one descriptor is
//! held, the way back up is checked against the inode it came from), and directories that their owner closed to himself
//! are opened again. Called for transactions and trash here, for containers and volumes by the engine.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use cowl_sys::open::openat2;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::StoreError;
use super::dir::is_dot;

/// One directory on the way down.
struct Level {
    name: CString,
    /// Identity of the directory, to know it again from below.
    device: u64,
    inode: u64,
    /// Subdirectories that are still to be removed.
    pending: Vec<CString>,
}

/// Removes `name` in `parent`, a file or a whole directory. False when there is nothing of that name.
///
/// Not atomic: rename it away first if others could look. Fails, leaving the rest, at the first thing that can't be
/// removed (a mount point, an immutable file); `path` of the error is relative to `parent`.
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

    /// Opens a directory, removes its files and puts it with its subdirectories on the way.
    fn enter(
        &mut self,
        holder: Option<BorrowedFd<'_>>,
        name: CString,
    ) -> Result<OwnedFd, StoreError> {
        let fd = open_child(holder.unwrap_or(self.parent), &name)
            .map_err(|errno| self.error("open", Some(&name), errno))?;
        let stat = fs::fstat(&fd).map_err(|errno| self.error("look at", Some(&name), errno))?;
        self.levels.push(Level {
            name,
            device: stat.st_dev,
            inode: stat.st_ino,
            pending: Vec::new(),
        });
        // Listed to the end before anything goes: some file systems skip names when entries vanish under the reader.
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

    /// The directory above, and proof that it is the one we came down through.
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
            // Its owner may not read it. By an O_PATH descriptor, since chmod by name would follow a link put there since.
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
