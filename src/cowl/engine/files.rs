//! Small files of the engine, by directory descriptor: JSON written so that a reader sees the old or the new, and locks.
//!
//! Called by `container` and `volume`. The big things (objects, trees) belong to the store.

use super::error::{Context, Error, Result};
use cowl_core::store::remove_tree;
use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Serialize, de::DeserializeOwned};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// No JSON file of the engine is larger; what is, was not written by it.
const JSON_LIMIT: u64 = 4 << 20;

/// Opens a directory.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd> {
    Ok(fs::open(
        path,
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Opens a directory below `dir`; a symlink in its place is refused.
pub(crate) fn open_dir_at(dir: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    fs::openat(
        dir,
        name,
        OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Makes the directory `name` below `dir` if it isn't there, with exactly this mode whatever the umask, and opens it.
pub(crate) fn ensure_dir_at(dir: impl AsFd, name: &str, mode: u32) -> Result<OwnedFd> {
    let mode = Mode::from_raw_mode(mode);
    let made = match fs::mkdirat(&dir, name, mode) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => {
            return Err(Error::from(errno).context(format!("making the directory {name}")));
        }
    };
    let opened = open_dir_at(dir, name).context(|| format!("opening the directory {name}"))?;
    if made {
        fs::fchmod(&opened, mode)
            .context(|| format!("setting the mode of the directory {name}"))?;
    }
    Ok(opened)
}

/// The names in a directory, without those that aren't UTF-8 (none of ours), in no order.
pub(crate) fn names(dir: impl AsFd) -> Result<Vec<String>> {
    // A descriptor of its own: the position in a directory belongs to the open file.
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

/// Removes the directories below `dir` whose names begin with `prefix`, each after `before` has seen it.
///
/// One remover at a time for each, since two would trip over each other's removals; whoever comes second waits and finds it gone.
pub(crate) fn purge(
    dir: impl AsFd,
    prefix: &str,
    before: impl Fn(&OwnedFd) -> Result<()>,
) -> Result<()> {
    let removing = |name: &str| format!("removing {name}");
    for name in names(&dir)?.iter().filter(|name| name.starts_with(prefix)) {
        let doomed = match open_dir_at(&dir, name) {
            Ok(doomed) => doomed,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(Error::from(errno).context(removing(name))),
        };
        let _alone = lock_dir(&doomed)?;
        before(&doomed)?;
        remove_tree(&dir, name).context(|| removing(name))?;
    }
    Ok(())
}

/// Reads a JSON file; `None` if it isn't there.
pub(crate) fn read_json<T: DeserializeOwned>(dir: impl AsFd, name: &str) -> Result<Option<T>> {
    let file = match fs::openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(Error::from(errno).context(format!("opening {name}"))),
    };
    let mut text = Vec::new();
    file.take(JSON_LIMIT)
        .read_to_end(&mut text)
        .context(|| format!("reading {name}"))?;
    serde_json::from_slice(&text)
        .map(Some)
        .context(|| format!("{name} is damaged"))
}

/// Replaces a JSON file: written beside it, synced, renamed over it, directory synced.
pub(crate) fn write_json<T: Serialize>(dir: impl AsFd, name: &str, value: &T) -> Result<()> {
    let temporary = format!(".{name}.new");
    let written = write_new(dir.as_fd(), &temporary, value).and_then(|()| {
        fs::renameat(&dir, &temporary, &dir, name)?;
        fs::fsync(&dir)?;
        Ok(())
    });
    if let Err(error) = written {
        // The first error is the one to tell; what remains is removed with the directory.
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

fn write_new<T: Serialize>(dir: impl AsFd, name: &str, value: &T) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(&text)?;
    file.sync_all()?;
    Ok(())
}

/// Locks a directory itself, waiting for it. The lock lives as long as what is returned.
pub(crate) fn lock_dir(dir: impl AsFd) -> Result<OwnedFd> {
    // A descriptor of its own: the lock belongs to the open file.
    let own = open_dir_at(dir, ".")?;
    wait_for(&own, FlockOperation::LockExclusive)?;
    Ok(own)
}

/// A signal that is caught doesn't end the wait.
fn wait_for(file: impl AsFd, operation: FlockOperation) -> Result<()> {
    loop {
        match fs::flock(&file, operation) {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Whether somebody else holds the lock `name` (`.` is the directory's own) exclusively. Asked with a shared lock on a descriptor of its own, so that askers never stand in each other's way.
pub(crate) fn is_locked(dir: impl AsFd, name: &str) -> Result<bool> {
    let file = match fs::openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(Error::from(errno).context(format!("opening the lock {name}"))),
    };
    match fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(Error::from(errno).context(format!("asking for the lock {name}"))),
    }
}

/// Waits until nobody holds the lock `name` exclusively; at once if there is no such file.
pub(crate) fn wait_unlocked(dir: impl AsFd, name: &str) -> Result<()> {
    match fs::openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(file) => wait_for(file, FlockOperation::LockShared),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::from(errno).context(format!("opening the lock {name}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_file_is_replaced_whole_and_leaves_no_temporary() {
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
    fn a_lock_is_seen_while_held_and_not_after() {
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
