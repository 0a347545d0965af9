//! One kind of system call in a loop, with nothing else between the calls: names are built before
//! the clock starts.
//!
//! Files in a directory are called 0, 1, 2, ... A call that fails ends the row.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{Mode, OFlags, chmod, open, rename, stat, unlink};
use rustix::io::{Errno, pwrite, read, write};

use crate::base::{Noise, OPENED};

pub(crate) const BLOCK: usize = 4096;
const MEBIBYTE: usize = 1 << 20;

/// A loop of a given number of calls over the files of a directory.
pub(crate) type Loop = fn(&Path, u32) -> Result<Duration>;

/// Paths of `count` files, of which `distinct` are different.
fn names(directory: &Path, count: u32, distinct: u32, suffix: &str) -> Result<Vec<CString>> {
    (0..count)
        .map(|number| {
            let path = directory.join(format!("{}{suffix}", number % distinct));
            CString::new(path.as_os_str().as_bytes()).context("a NUL in a path")
        })
        .collect()
}

fn timed(
    what: &str,
    paths: &[CString],
    call: impl Fn(&CString) -> Result<(), Errno>,
) -> Result<Duration> {
    let begin = Instant::now();
    for path in paths {
        call(path).with_context(|| format!("{what} {}", path.to_string_lossy()))?;
    }
    Ok(begin.elapsed())
}

/// Fails unless a call transferred all bytes.
fn whole(moved: usize, wanted: usize) -> Result<(), Errno> {
    if moved == wanted {
        Ok(())
    } else {
        Err(Errno::IO)
    }
}

fn created(path: &CString) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    open(path, flags, Mode::from_raw_mode(0o644))
}

pub(crate) fn stats(directory: &Path, count: u32) -> Result<Duration> {
    let paths = names(directory, count, count, "")?;
    timed("stat", &paths, |path| stat(path).map(drop))
}

pub(crate) fn misses(directory: &Path, count: u32) -> Result<Duration> {
    let paths = names(directory, count, OPENED, ".absent")?;
    timed("stat of a missing name", &paths, |path| match stat(path) {
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(Errno::EXIST),
    })
}

pub(crate) fn opens(directory: &Path, count: u32) -> Result<Duration> {
    let paths = names(directory, count, OPENED, "")?;
    timed("open", &paths, |path| {
        open(path, OFlags::RDONLY, Mode::empty()).map(drop)
    })
}

pub(crate) fn reads(directory: &Path, count: u32) -> Result<Duration> {
    let paths = names(directory, count, OPENED, "")?;
    timed("read", &paths, |path| {
        let mut block = [0; BLOCK];
        let file = open(path, OFlags::RDONLY, Mode::empty())?;
        whole(read(&file, &mut block)?, BLOCK)
    })
}

pub(crate) fn creates(directory: &Path, count: u32) -> Result<Duration> {
    let paths = names(directory, count, count, "")?;
    timed("create", &paths, |path| created(path).map(drop))
}

pub(crate) fn fills(directory: &Path, count: u32) -> Result<Duration> {
    let paths = names(directory, count, count, "")?;
    timed("create and write", &paths, |path| {
        let file = created(path)?;
        whole(write(&file, &[b'x'; BLOCK])?, BLOCK)
    })
}

pub(crate) fn appends(directory: &Path, count: u32) -> Result<Duration> {
    let paths = names(directory, count, count, "")?;
    timed("append", &paths, |path| {
        let file = open(path, OFlags::WRONLY | OFlags::APPEND, Mode::empty())?;
        whole(write(&file, b"x")?, 1)
    })
}

pub(crate) fn renames(directory: &Path, count: u32) -> Result<Duration> {
    let old = names(directory, count, count, "")?;
    let new = names(directory, count, count, ".new")?;
    let begin = Instant::now();
    for (old, new) in old.iter().zip(&new) {
        rename(old, new).with_context(|| format!("rename {}", old.to_string_lossy()))?;
    }
    Ok(begin.elapsed())
}

pub(crate) fn unlinks(directory: &Path, count: u32) -> Result<Duration> {
    let paths = names(directory, count, count, "")?;
    timed("unlink", &paths, |path| unlink(path))
}

pub(crate) fn chmods(directory: &Path, count: u32) -> Result<Duration> {
    let paths = names(directory, count, count, "")?;
    timed("chmod", &paths, |path| {
        chmod(path, Mode::from_raw_mode(0o600))
    })
}

fn opened(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE;
    open(path, flags, Mode::from_raw_mode(0o644))
        .with_context(|| format!("open {}", path.display()))
}

fn writes(path: &Path, count: u32, size: usize) -> Result<Duration> {
    let content = vec![b'x'; size];
    let begin = Instant::now();
    let file = opened(path)?;
    for _ in 0..count {
        let written = write(&file, &content).context("write")?;
        ensure!(written == size, "write: {written} bytes of {size}");
    }
    drop(file);
    Ok(begin.elapsed())
}

/// Of a new file.
pub(crate) fn large_writes(path: &Path, count: u32) -> Result<Duration> {
    writes(path, count, MEBIBYTE)
}

/// Of a new file.
pub(crate) fn small_writes(path: &Path, count: u32) -> Result<Duration> {
    writes(path, count, BLOCK)
}

/// Writes the first `count` blocks of a file, in a fixed random order.
pub(crate) fn random_writes(path: &Path, count: u32) -> Result<Duration> {
    let mut noise = Noise::new(1);
    let block = u64::try_from(BLOCK)?;
    let places: Vec<u64> = (0..count)
        .map(|_| noise.next() % u64::from(count) * block)
        .collect();
    let begin = Instant::now();
    let file = opened(path)?;
    for place in places {
        let written = pwrite(&file, &[b'x'; BLOCK], place).context("pwrite")?;
        ensure!(written == BLOCK, "pwrite: {written} bytes");
    }
    drop(file);
    Ok(begin.elapsed())
}
