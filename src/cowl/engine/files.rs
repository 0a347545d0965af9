//! Small files of the engine, below directory descriptors: locks, and JSON files that are replaced
//! atomically.
//!
//! Used by `container` and `volume`. Objects and trees belong to the store.

use super::error::{Context, Error, Result};
use cowl_core::store::remove_tree;
use cowl_core::sys::lock::lock;
use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Serialize, de::DeserializeOwned};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Largest JSON file the engine reads; it writes none that large.
const JSON_LIMIT: u64 = 4 << 20;

/// Opens a directory.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd> {
    Ok(fs::open(
        path,
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Opens a directory below `dir`; refuses a symlink.
pub(crate) fn open_dir_at(dir: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    fs::openat(
        dir,
        name,
        OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Opens the directory `name` below `dir`; creates it with exactly this mode if it is missing.
pub(crate) fn ensure_dir_at(dir: impl AsFd, name: &str, mode: u32) -> Result<OwnedFd> {
    let mode = Mode::from_raw_mode(mode);
    let made = match fs::mkdirat(&dir, name, mode) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => {
            return Err(Error::from(errno).context(format!("creating directory {name}")));
        }
    };
    let opened = open_dir_at(dir, name).context(|| format!("opening directory {name}"))?;
    if made {
        fs::fchmod(&opened, mode).context(|| format!("setting the mode of directory {name}"))?;
    }
    Ok(opened)
}

/// A directory of the store that is opened, or created, at its first use: damage to it fails only
/// the commands that need it.
#[derive(Debug)]
pub(crate) struct LazyDir {
    root: PathBuf,
    name: &'static str,
    dir: OnceLock<OwnedFd>,
}

impl LazyDir {
    /// The directory `name` of the store at `root`.
    pub(crate) fn new(root: &Path, name: &'static str) -> Self {
        Self {
            root: root.to_owned(),
            name,
            dir: OnceLock::new(),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.root.join(self.name)
    }

    /// Opens it.
    pub(crate) fn get(&self) -> Result<&OwnedFd> {
        if let Some(dir) = self.dir.get() {
            return Ok(dir);
        }
        let dir = open_dir(&self.root)
            .and_then(|store| ensure_dir_at(store, self.name, 0o700))
            .context(|| format!("cannot use {}", self.path().display()))?;
        Ok(self.dir.get_or_init(|| dir))
    }

    /// Opens it; None if it is not a directory.
    pub(crate) fn unless_damaged(&self) -> Result<Option<&OwnedFd>> {
        let path = self.path();
        match fs::statat(fs::CWD, &path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => Ok(None),
            Ok(_) | Err(Errno::NOENT) => self.get().map(Some),
            Err(errno) => Err(Error::from(errno).context(format!("looking at {}", path.display()))),
        }
    }
}

/// The names in a directory, in no order. Skips names that are not UTF-8: the engine writes none.
pub(crate) fn names(dir: impl AsFd) -> Result<Vec<String>> {
    // A new open file description, which has its own position in the directory.
    let own = fs::openat(
        dir,
        ".",
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut names = Vec::new();
    for entry in fs::Dir::new(own)? {
        if let Ok(name) = entry?.file_name().to_str()
            && !matches!(name, "." | "..")
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Removes the entries of `dir` whose names begin with `prefix`; calls `before` on each directory
/// first.
///
/// The directory's lock serialises removals; the second one waits and finds it gone.
pub(crate) fn purge(
    dir: impl AsFd,
    prefix: &str,
    before: impl Fn(&OwnedFd) -> Result<()>,
) -> Result<()> {
    let removing = |name: &str| format!("removing {name}");
    for name in names(&dir)?.iter().filter(|name| name.starts_with(prefix)) {
        let directory = match open_dir_at(&dir, name) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => continue,
            // Not a directory.
            Err(Errno::NOTDIR | Errno::LOOP) => {
                remove_tree(&dir, name).context(|| removing(name))?;
                continue;
            }
            Err(errno) => return Err(Error::from(errno).context(removing(name))),
        };
        let _alone = lock_dir(&directory)?;
        before(&directory)?;
        remove_tree(&dir, name).context(|| removing(name))?;
    }
    Ok(())
}

/// What is found in the place of a file of the engine.
enum Found {
    Missing,
    /// A symlink, FIFO, socket or device.
    Damaged,
    /// A file or directory.
    Opened(File),
}

/// Opens a file without following a symlink or waiting for the writer of a FIFO.
fn open_file_at(dir: impl AsFd, name: &str) -> Result<Found, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match fs::openat(dir, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(Found::Missing),
        // A symlink, a socket.
        Err(Errno::LOOP | Errno::NXIO) => return Ok(Found::Damaged),
        Err(errno) => return Err(errno),
    };
    Ok(match FileType::from_raw_mode(fs::fstat(&file)?.st_mode) {
        FileType::RegularFile | FileType::Directory => Found::Opened(File::from(file)),
        _ => Found::Damaged,
    })
}

fn not_a_file(name: &str) -> Error {
    Error::failed(format!("{name} is damaged: not a regular file"))
}

/// Reads a JSON file; `None` if it is missing.
pub(crate) fn read_json<T: DeserializeOwned>(dir: impl AsFd, name: &str) -> Result<Option<T>> {
    let file = match open_file_at(dir, name).context(|| format!("opening {name}"))? {
        Found::Opened(file) => file,
        Found::Missing => return Ok(None),
        Found::Damaged => return Err(not_a_file(name)),
    };
    let mut text = Vec::new();
    file.take(JSON_LIMIT)
        .read_to_end(&mut text)
        .context(|| format!("reading {name}"))?;
    serde_json::from_slice(&text)
        .map(Some)
        .context(|| format!("{name} is damaged"))
}

/// Replaces a JSON file atomically and durably: write, fsync, rename, fsync of the directory.
pub(crate) fn write_json<T: Serialize>(dir: impl AsFd, name: &str, value: &T) -> Result<()> {
    replace_json(dir, name, value, true)
}

/// Replaces a JSON file atomically. A power cut may leave it empty or torn.
pub(crate) fn write_json_unsynced<T: Serialize>(
    dir: impl AsFd,
    name: &str,
    value: &T,
) -> Result<()> {
    replace_json(dir, name, value, false)
}

fn replace_json<T: Serialize>(dir: impl AsFd, name: &str, value: &T, durable: bool) -> Result<()> {
    let temporary = format!(".{name}.new");
    let written = write_new(dir.as_fd(), &temporary, value).and_then(|file| {
        if durable {
            file.sync_all()?;
        }
        fs::renameat(&dir, &temporary, &dir, name)?;
        if durable {
            fs::fsync(&dir)?;
        }
        Ok(())
    });
    if let Err(error) = written {
        // Report the first error; a leftover is removed with the directory.
        return match fs::unlinkat(&dir, &temporary, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Err(error),
            Err(second) => {
                Err(error.context(format!("removing {temporary} failed too ({second})")))
            }
        }
        .context(|| format!("writing {name}"));
    }
    Ok(())
}

fn write_new<T: Serialize>(dir: impl AsFd, name: &str, value: &T) -> Result<File> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Left by a killed command; or a FIFO, and opening that would wait for a reader.
    match fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut file = File::from(fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(&text)?;
    Ok(file)
}

/// Takes the lock of a directory, waiting for it; dropping the result releases it.
pub(crate) fn lock_dir(dir: impl AsFd) -> Result<OwnedFd> {
    lock_dir_until(dir, None)
}

/// [`lock_dir`] whose wait ends with EINTR once `interrupt` is readable.
pub(crate) fn lock_dir_until(dir: impl AsFd, interrupt: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    // A new open file description, which owns the lock.
    let own = open_dir_at(dir, ".")?;
    lock(&own, FlockOperation::LockExclusive, interrupt)?;
    Ok(own)
}

/// Takes the lock of a file, which is created if it is missing, waiting for it; dropping the result
/// releases it.
pub(crate) fn lock_file(dir: impl AsFd, name: &str) -> Result<OwnedFd> {
    lock_file_until(dir, name, None)
}

/// [`lock_file`] whose wait fails once `interrupt` is readable.
pub(crate) fn lock_file_until(
    dir: impl AsFd,
    name: &str,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))
        .context(|| format!("opening lock {name}"))?;
    lock(&file, FlockOperation::LockExclusive, interrupt)?;
    Ok(file)
}

/// Whether the lock `name` (`.` for the directory's own) is held exclusively. Tries a shared lock,
/// so that concurrent checks do not conflict. A damaged lock ([`check_lock`]) is free.
pub(crate) fn is_locked(dir: impl AsFd, name: &str) -> Result<bool> {
    let file = match open_file_at(dir, name).context(|| format!("opening lock {name}"))? {
        Found::Opened(file) => file,
        Found::Missing | Found::Damaged => return Ok(false),
    };
    match fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(Error::from(errno).context(format!("trying lock {name}"))),
    }
}

/// Waits until the lock `name` is not held exclusively; returns at once if the file is missing or
/// damaged.
pub(crate) fn wait_unlocked(dir: impl AsFd, name: &str) -> Result<()> {
    match open_file_at(dir, name).context(|| format!("opening lock {name}"))? {
        Found::Opened(file) => Ok(lock(file, FlockOperation::LockShared, None)?),
        Found::Missing | Found::Damaged => Ok(()),
    }
}

/// Fails if the file at `name` cannot be a lock of the engine.
pub(crate) fn check_lock(dir: impl AsFd, name: &str) -> Result<()> {
    match open_file_at(dir, name).context(|| format!("opening lock {name}"))? {
        Found::Opened(_) | Found::Missing => Ok(()),
        Found::Damaged => Err(not_a_file(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_json_replaces_the_file_and_leaves_no_temporary() {
        let temp = tempfile::tempdir().unwrap();
        let dir = open_dir(temp.path()).unwrap();
        assert_eq!(read_json::<Vec<u32>>(&dir, "x.json").unwrap(), None);
        write_json(&dir, "x.json", &vec![1, 2]).unwrap();
        write_json(&dir, "x.json", &vec![3]).unwrap();
        assert_eq!(
            read_json::<Vec<u32>>(&dir, "x.json").unwrap(),
            Some(vec![3])
        );
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
        std::fs::write(temp.path().join("x.json"), "[1").unwrap();
        assert!(
            read_json::<Vec<u32>>(&dir, "x.json")
                .unwrap_err()
                .to_string()
                .starts_with("x.json is damaged")
        );
    }

    #[test]
    fn is_locked_while_the_lock_is_held() {
        let temp = tempfile::tempdir().unwrap();
        let dir = open_dir(temp.path()).unwrap();
        assert!(!is_locked(&dir, ".").unwrap());
        let held = lock_dir(&dir).unwrap();
        assert!(is_locked(&dir, ".").unwrap());
        drop(held);
        assert!(!is_locked(&dir, ".").unwrap());
        wait_unlocked(&dir, ".").unwrap();
        wait_unlocked(&dir, "missing").unwrap();
    }
}
