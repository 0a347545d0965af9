//! Files of the host, as the other side of a copy.

use super::Files;
use crate::engine::error::{Context, Error, Result};
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

/// Most symbolic links followed in a row (the kernel's limit, path_resolution(7)).
const MAX_LINKS: u8 = 40;

impl Files {
    /// The files below a directory of the host.
    pub(super) fn of_host(directory: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, directory, flags, Mode::empty())
            .context(|| directory.display().to_string())?;
        Ok(Self {
            root,
            config: None,
            needle: String::new(),
            at_rest: None,
        })
    }
}

/// A file of the host to be copied.
pub(super) struct Source {
    /// The directory that holds it.
    pub(super) parent: PathBuf,
    /// Its name there; `.` for the directory itself.
    pub(super) name: String,
    /// Name of the copy.
    pub(super) top: String,
    pub(super) is_directory: bool,
}

impl Source {
    pub(super) fn find(path: &str, follow_link: bool) -> Result<Self> {
        let (parent, name) = super::split(path);
        if name == "." {
            let found = Path::new(path).metadata().context(|| path.to_owned())?;
            return Ok(Self {
                parent: path.into(),
                name,
                top: top_of(path)?,
                is_directory: found.is_dir(),
            });
        }
        if !follow_link {
            let found = Path::new(path).symlink_metadata();
            return Ok(Self {
                parent: parent.into(),
                top: name.clone(),
                name,
                is_directory: found.context(|| path.to_owned())?.is_dir(),
            });
        }
        let file = Path::new(path).canonicalize().context(|| path.to_owned())?;
        let found = file.metadata().context(|| path.to_owned())?;
        let (parent, at) = super::split(&file.to_string_lossy());
        Ok(Self {
            parent: parent.into(),
            name: at,
            top: name,
            is_directory: found.is_dir(),
        })
    }
}

/// The name of a directory's copy; empty if the path asks for the directory's contents.
fn top_of(path: &str) -> Result<String> {
    Ok(match super::name_of(path).as_str() {
        "/" => ".".to_owned(),
        ".." => {
            let whole = Path::new(path).canonicalize().context(|| path.to_owned())?;
            super::split(&whole.to_string_lossy()).1
        }
        name => name.to_owned(),
    })
}

/// The path on the host to copy to, with links at its end followed, and what exists there.
pub(super) fn destination(path: &str) -> Result<(String, Option<Metadata>)> {
    let invalid = |why: String| Error::invalid(format!("invalid output path: {why}"));
    let mut at = path.to_owned();
    for _ in 0..MAX_LINKS {
        let (parent, name) = super::split(&at);
        if name != "." && matches!(Path::new(&parent).try_exists(), Ok(false)) {
            return Err(invalid(format!("directory \"{parent}\" does not exist")));
        }
        let link = match Path::new(&at).symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok((at, None)),
            found => found.context(|| at.clone())?.is_symlink(),
        };
        if !link {
            let there = Path::new(&at).metadata().context(|| at.clone())?;
            let kind = there.file_type();
            if kind.is_block_device() || kind.is_char_device() {
                return Err(invalid(format!(
                    "\"{path}\" must be a directory or a regular file: got a device"
                )));
            }
            return Ok((at, Some(there)));
        }
        let target = std::fs::read_link(&at).context(|| at.clone())?;
        at = super::beside(&at, &target.to_string_lossy());
    }
    Err(Error::from(rustix::io::Errno::LOOP).context(path.to_owned()))
}
