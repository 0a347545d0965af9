//! Archives that were never imported, read into a scratch store.
//!
//! The scratch store is in a directory of its own below TMPDIR, removed at the end and on signals.
//! That directory is locked (flock) while its process lives: the next run removes what a killed one
//! left. Nothing else in TMPDIR is touched: such a directory has 16 hexadecimal digits in its name,
//! and contains nothing but the store.

use std::ffi::OsStr;
use std::fs::{File, symlink_metadata};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use cowl_core::image::{
    self, ImageError, LoadOptions, Loaded, Watch, is_named_as_archive, split_platform,
};
use cowl_core::store::{Store, remove_tree};
use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::cleanup;
use crate::show::lossy;

const PREFIX: &str = "cowl-dedup-";
/// The only entry of a scratch directory.
const STORE: &str = "store";
/// The name of standard input in messages.
const INPUT: &str = "standard input";

/// The scratch store's directory, locked.
#[derive(Debug)]
pub(crate) struct Scratch {
    above: File,
    name: String,
    #[expect(dead_code, reason = "held for its flock")]
    lock: File,
}

impl Scratch {
    pub(crate) fn shown(&self) -> String {
        temporary().join(&self.name).display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A thread may still create files, so a removal may have to be repeated. It ends, since
        // nothing can be created in a removed directory.
        for _ in 0..1000 {
            if remove_tree(&self.above, &self.name).is_ok() {
                return;
            }
        }
    }
}

/// An archive, and optionally one of its images; in skopeo's syntax, `PATH:IMAGE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Named<'a> {
    pub(crate) path: &'a Path,
    /// A name, a tag or a prefix of an id; None: every image.
    pub(crate) image: Option<&'a str>,
}

impl<'a> Named<'a> {
    /// Parses an argument: an archive if it is `-`, a path, or a file name with an archive's
    /// extension.
    pub(crate) fn of(argument: &'a OsStr) -> Option<Self> {
        let bytes = argument.as_bytes();
        let is_path = ["-", ".", ".."].iter().any(|path| argument == *path)
            || ["/", "./", "../"]
                .iter()
                .any(|start| bytes.starts_with(start.as_bytes()));
        let named = Self::split(argument);
        let is_named = is_named_as_archive(&named.path.to_string_lossy());
        (is_path || is_named && exists(named.path)).then_some(named)
    }

    /// A path may contain colons too: the longest existing path is taken.
    fn split(argument: &'a OsStr) -> Self {
        let whole = Self {
            path: Path::new(argument),
            image: None,
        };
        if exists(whole.path) {
            return whole;
        }
        let bytes = argument.as_bytes();
        let colons = (0..bytes.len())
            .rev()
            .filter(|at| bytes.get(*at) == Some(&b':'));
        let splits = colons.filter_map(|at| {
            let (path, image) = bytes.split_at_checked(at)?;
            let image = std::str::from_utf8(image.strip_prefix(b":")?).ok()?;
            Some((Path::new(OsStr::from_bytes(path)), image))
        });
        let mut splits = splits.filter(|(path, image)| !image.is_empty() && exists(path));
        splits.next().map_or(whole, |(path, image)| Self {
            path,
            image: Some(image),
        })
    }

    pub(crate) fn is_input(&self) -> bool {
        self.path == Path::new("-")
    }

    /// Whether the image is given with its platform.
    pub(crate) fn is_of_platform(&self) -> bool {
        let image = self.image.and_then(split_platform);
        image.is_some()
    }

    /// Its name in messages and reports.
    pub(crate) fn shown(&self) -> String {
        if self.is_input() {
            return INPUT.to_owned();
        }
        lossy(self.path.as_os_str().as_bytes())
    }
}

/// Whether an argument is `-:IMAGE`, one image of standard input, which is not supported.
pub(crate) fn is_of_input(argument: &OsStr) -> bool {
    argument.as_bytes().starts_with(b"-:")
}

fn exists(path: &Path) -> bool {
    symlink_metadata(path).is_ok()
}

/// Creates a store to read archives into.
pub(crate) fn scratch_store() -> Result<Store> {
    let making = "making a scratch store";
    let made = cleanup::hold_scratch(new_scratch).and_then(|path| {
        let store = Store::open_or_create_scratch(&path).map_err(ImageError::from);
        store.map_err(|error| if_full(error, "an archive"))
    });
    made.context(making)
}

/// Explains a full disk while reading an archive: the scratch store did not fit, so neither
/// removing images nor another store helps.
fn if_full(error: ImageError, archive: &str) -> anyhow::Error {
    if error.is_full() {
        let below = temporary();
        let below = below.display();
        return anyhow!(
            "no space left: {archive} is unpacked below {below}; free some there, or set TMPDIR to a \
             directory of a larger disk"
        );
    }
    error.into()
}

/// Reads an archive, or the selected image of it, into a store, its contents only if requested;
/// returns its images.
pub(crate) fn load(
    store: &Store,
    archive: Named<'_>,
    with_contents: bool,
    watch: &dyn Watch,
) -> Result<Vec<Loaded>> {
    let options = LoadOptions {
        image: archive.image,
        only_trees: !with_contents,
        watch: Some(watch),
        ..LoadOptions::default()
    };
    let name = archive.shown();
    let loaded = if archive.is_input() {
        let input = std::io::stdin().as_fd().try_clone_to_owned();
        let input = File::from(input.context(INPUT)?);
        image::load_file(store, input, Path::new(INPUT), &options)
    } else {
        image::load_with(store, archive.path, &options)
    };
    loaded.map_err(|error| {
        let error = if_full(error, &name);
        // Some errors contain the archive's path already.
        let path = archive.path.display().to_string();
        let is_named = [&name, &path]
            .iter()
            .any(|name| error.to_string().contains(*name));
        if is_named { error } else { error.context(name) }
    })
}

/// The directory for scratch stores: TMPDIR, or /tmp if that is unset or empty.
fn temporary() -> PathBuf {
    let named = std::env::var_os("TMPDIR").filter(|name| !name.is_empty());
    named.map_or_else(|| PathBuf::from("/tmp"), PathBuf::from)
}

fn new_scratch() -> Result<(Scratch, PathBuf)> {
    let temporary = temporary();
    let unusable = || {
        let temporary = temporary.display();
        format!("{temporary} (set TMPDIR to a directory that can be written to)")
    };
    let above = File::open(&temporary).with_context(unusable)?;
    remove_dead(&above, &temporary);
    loop {
        let random = getrandom::u64().context("a random name")?;
        let name = format!("{PREFIX}{random:016x}");
        match rustix::fs::mkdirat(&above, &name, Mode::RWXU) {
            Err(rustix::io::Errno::EXIST) => continue,
            made => made.with_context(unusable)?,
        }
        // None: another run removed it as stale before it was locked.
        if let Some(lock) = lock(&above, &name) {
            let path = temporary.join(&name).join(STORE);
            return Ok((Scratch { above, name, lock }, path));
        }
    }
}

/// Locks a scratch directory; None if its process is alive, or it is gone or another user's.
fn lock(above: &File, name: &str) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = File::from(rustix::fs::openat(above, name, flags, Mode::empty()).ok()?);
    rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).ok()?;
    let meta = rustix::fs::fstat(&dir).ok()?;
    (meta.st_nlink > 0 && meta.st_uid == rustix::process::geteuid().as_raw()).then_some(dir)
}

/// Removes what killed runs left.
fn remove_dead(above: &File, temporary: &Path) {
    let Ok(entries) = std::fs::read_dir(temporary) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if let Some(name) = name.to_str().filter(|name| is_scratch_name(name))
            && let Some(dir) = lock(above, name)
            && has_only_a_store(&dir)
            && remove_tree(above, name).is_err()
        {
            // The next run tries again.
        }
    }
}

fn is_scratch_name(name: &str) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let digits = name.strip_prefix(PREFIX);
    digits.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(is_digit))
}

/// Whether a directory contains at most a scratch store.
fn has_only_a_store(dir: &File) -> bool {
    let Ok(entries) = rustix::fs::Dir::read_from(dir) else {
        return false;
    };
    let is_its_own = |entry: rustix::fs::DirEntry| {
        matches!(entry.file_name().to_bytes(), b"." | b".." | b"store")
    };
    entries.into_iter().all(|entry| entry.is_ok_and(is_its_own))
}
