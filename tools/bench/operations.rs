//! The operations that `cowl-bench ops` counts. Each prepares what it needs, uncounted, and returns
//! the work to count.
//!
//! Names of lower files are new to the kernel, unless the operation says that they are known; files
//! in the upper were created before.

use std::fs::create_dir;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{
    Gid, Mode, OFlags, Uid, chmod, chown, fsync, ftruncate, getxattr, link, lstat, mkdir, open,
    rename, rmdir, symlink, unlink,
};
use rustix::io::{Errno, read, write};

use crate::base;
use crate::calls::BLOCK;
use crate::command::{program, run};

type Work = Box<dyn FnOnce() -> Result<()>>;

/// A named operation.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) title: &'static str,
    /// It is run once, however often the others are.
    pub(crate) is_once: bool,
    /// Prepares; returns the work.
    pub(crate) prepare: fn(&Site) -> Result<Work>,
}

const fn each(title: &'static str, prepare: fn(&Site) -> Result<Work>) -> Operation {
    Operation {
        title,
        is_once: false,
        prepare,
    }
}

/// All of them, in the table's order.
pub(crate) const OPERATIONS: [Operation; 21] = [
    each("lookup, lower file", lookup),
    each("stat, absent name", absent),
    each("stat, known name", stat_known),
    each("open + read + close, known file", read_known),
    each("create", create),
    each("mkdir", make_directory),
    each("write 4 KiB", write_block),
    each("append, lower file", append_lower),
    each("chmod, lower file", chmod_lower),
    each("chown, lower file", chown_lower),
    each("getxattr", get_attribute),
    each("rename", rename_file),
    each("rename, directory", rename_directory),
    each("unlink, upper file", unlink_upper),
    each("unlink, lower file", unlink_lower),
    each("rmdir", remove_directory),
    Operation {
        title: "ls -l of 1,000",
        is_once: true,
        prepare: list,
    },
    each("symlink", make_symlink),
    each("link", make_link),
    each("truncate", truncate_upper),
    each("fsync", sync),
];

const LOWER: [&str; 6] = ["looked", "known", "appended", "chmod", "chown", "unlinked"];
const LISTED: u32 = 1_000;

/// Creates the lower.
pub(crate) fn make_base(base: &Path, times: u32) -> Result<()> {
    for directory in [base, &base.join("dir"), &base.join("many")] {
        create_dir(directory).context("the lower")?;
    }
    for number in 0..times {
        for name in LOWER {
            base::write(&base.join(format!("dir/{name}-{number}")), &[b'l'; BLOCK])?;
        }
    }
    (0..LISTED).try_for_each(|number| base::write(&base.join(format!("many/{number:04}")), b""))
}

/// Where a system is mounted.
#[derive(Debug)]
pub(crate) struct Site {
    directory: PathBuf,
    times: u32,
}

impl Site {
    /// Copies up the directory that the operations use.
    pub(crate) fn new(mount: &Path, times: u32) -> Result<Self> {
        let site = Self {
            directory: mount.join("dir"),
            times,
        };
        site.files("kept")?;
        Ok(site)
    }

    fn names(&self, name: &str) -> Vec<PathBuf> {
        let path = |number| self.directory.join(format!("{name}-{number}"));
        (0..self.times).map(path).collect()
    }

    /// New files of a block in the upper.
    fn files(&self, name: &str) -> Result<Vec<PathBuf>> {
        let paths = self.names(name);
        for path in &paths {
            base::write(path, &[b'u'; BLOCK])?;
        }
        Ok(paths)
    }

    fn directories(&self, name: &str) -> Result<Vec<PathBuf>> {
        let paths = self.names(name);
        for path in &paths {
            create_dir(path).with_context(|| path.display().to_string())?;
        }
        Ok(paths)
    }
}

/// Work that makes a call on each path.
#[expect(
    clippy::unnecessary_wraps,
    reason = "it is what most operations end with"
)]
fn on_each(
    paths: Vec<PathBuf>,
    call: impl Fn(&Path) -> Result<(), Errno> + 'static,
) -> Result<Work> {
    Ok(Box::new(move || {
        for path in &paths {
            call(path).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }))
}

fn lookup(site: &Site) -> Result<Work> {
    on_each(site.names("looked"), |path| lstat(path).map(drop))
}

fn absent(site: &Site) -> Result<Work> {
    on_each(site.names("absent"), |path| match lstat(path) {
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(Errno::EXIST),
    })
}

fn stat_known(site: &Site) -> Result<Work> {
    let paths = site.names("kept");
    for path in &paths {
        lstat(path).with_context(|| path.display().to_string())?;
    }
    on_each(paths, |path| lstat(path).map(drop))
}

fn read_block(path: &Path) -> Result<(), Errno> {
    let file = open(path, OFlags::RDONLY, Mode::empty())?;
    let length = read(&file, &mut [0; BLOCK])?;
    if length == BLOCK {
        Ok(())
    } else {
        Err(Errno::IO)
    }
}

/// Reads twice before: after a read the kernel drops the atime it knew, and asks for it once.
fn read_known(site: &Site) -> Result<Work> {
    let paths = site.names("known");
    for path in paths.iter().chain(&paths) {
        read_block(path).with_context(|| path.display().to_string())?;
    }
    on_each(paths, read_block)
}

fn create(site: &Site) -> Result<Work> {
    on_each(site.names("created"), |path| {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        open(path, flags, Mode::from_raw_mode(0o644)).map(drop)
    })
}

fn make_directory(site: &Site) -> Result<Work> {
    on_each(site.names("made"), |path| {
        mkdir(path, Mode::from_raw_mode(0o755))
    })
}

/// One file. Its close is counted too: that is when the kernel writes back cached writes.
fn write_block(site: &Site) -> Result<Work> {
    let path = site.directory.join("written");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let file = open(&path, flags, Mode::from_raw_mode(0o644)).context("written")?;
    let times = site.times;
    Ok(Box::new(move || {
        for _ in 0..times {
            let written = write(&file, &[b'w'; BLOCK]).context("write")?;
            ensure!(written == BLOCK, "write: {written} bytes");
        }
        drop(file);
        Ok(())
    }))
}

fn append_lower(site: &Site) -> Result<Work> {
    on_each(site.names("appended"), |path| {
        let file = open(path, OFlags::WRONLY | OFlags::APPEND, Mode::empty())?;
        write(&file, b"x").map(drop)
    })
}

fn chmod_lower(site: &Site) -> Result<Work> {
    on_each(site.names("chmod"), |path| {
        chmod(path, Mode::from_raw_mode(0o600))
    })
}

/// To its current owner: a user namespace may map no other.
fn chown_lower(site: &Site) -> Result<Work> {
    on_each(site.names("chown"), |path| {
        chown(path, Some(Uid::ROOT), Some(Gid::ROOT))
    })
}

fn get_attribute(site: &Site) -> Result<Work> {
    on_each(site.names("kept"), |path| {
        match getxattr(path, "user.none", &mut [0; 16]) {
            // OPNOTSUPP: a file system without extended attributes.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(Errno::EXIST),
        }
    })
}

fn rename_each(paths: Vec<PathBuf>) -> Result<Work> {
    on_each(paths, |path| rename(path, path.with_extension("new")))
}

fn rename_file(site: &Site) -> Result<Work> {
    rename_each(site.files("renamed")?)
}

fn rename_directory(site: &Site) -> Result<Work> {
    rename_each(site.directories("moved")?)
}

fn unlink_upper(site: &Site) -> Result<Work> {
    on_each(site.files("removed")?, |path| unlink(path))
}

fn unlink_lower(site: &Site) -> Result<Work> {
    on_each(site.names("unlinked"), |path| unlink(path))
}

fn remove_directory(site: &Site) -> Result<Work> {
    on_each(site.directories("emptied")?, |path| rmdir(path))
}

/// Lists a directory of the lower that has not been read.
fn list(site: &Site) -> Result<Work> {
    let Some(mount) = site.directory.parent() else {
        bail!("the mount point has no name");
    };
    let many = mount.join("many");
    Ok(Box::new(move || {
        let said = run(program("ls", ["-l"]).arg(&many))?;
        // The first line is the total.
        let listed = said.lines().count().saturating_sub(1);
        ensure!(u32::try_from(listed) == Ok(LISTED), "ls -l: {listed} lines");
        Ok(())
    }))
}

fn make_symlink(site: &Site) -> Result<Work> {
    on_each(site.names("symlink"), |path| symlink("target", path))
}

fn make_link(site: &Site) -> Result<Work> {
    let paths = site.files("linked")?;
    on_each(paths, |path| link(path, path.with_extension("link")))
}

/// Open files in the upper.
fn opened(site: &Site, name: &str) -> Result<Vec<OwnedFd>> {
    let open = |path: &PathBuf| {
        let opened = open(path, OFlags::RDWR, Mode::empty());
        opened.with_context(|| path.display().to_string())
    };
    site.files(name)?.iter().map(open).collect()
}

/// Truncates open files.
fn truncate_upper(site: &Site) -> Result<Work> {
    let files = opened(site, "truncated")?;
    Ok(Box::new(move || {
        let mut all = files.iter();
        all.try_for_each(|file| ftruncate(file, 1).context("ftruncate"))
    }))
}

/// Syncs open files that were written to.
fn sync(site: &Site) -> Result<Work> {
    let files = opened(site, "synced")?;
    Ok(Box::new(move || {
        files
            .iter()
            .try_for_each(|file| fsync(file).context("fsync"))
    }))
}
