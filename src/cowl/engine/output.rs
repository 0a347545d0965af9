//! Output files of commands: a regular file is replaced atomically once it is complete. A pipe or a
//! device is written to directly.

use super::error::{Context, Error, Result};
use super::mountpoint::canonical;
use super::new_id;
use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Only the user may read it: images can contain secrets.
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

/// A file being written.
#[derive(Debug)]
pub(super) struct OutputFile {
    file: File,
    place: Option<Place>,
}

/// The final place of the file.
#[derive(Debug)]
struct Place {
    dir: OwnedFd,
    name: OsString,
    /// Its temporary name; None on file systems with O_TMPFILE.
    temporary: Option<OsString>,
}

impl OutputFile {
    /// Opens the file at `path`. Refuses a terminal.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let what = || format!("writing {}", path.display());
        match fs::stat(path) {
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                // If the path is a symbolic link, beside the file it leads to.
                FileType::RegularFile => Self::beside(&target(path)?),
                FileType::Directory => Err(Errno::ISDIR.into()),
                _ => Self::direct(path),
            },
            Err(Errno::NOENT) => Self::beside(path),
            Err(errno) => Err(errno.into()),
        }
        .context(what)
    }

    fn direct(path: &Path) -> Result<Self> {
        let file = std::fs::OpenOptions::new().write(true).open(path)?;
        if file.is_terminal() {
            return Err(Error::invalid("it is a terminal"));
        }
        Ok(Self { file, place: None })
    }

    fn beside(path: &Path) -> Result<Self> {
        let name = path.file_name().ok_or(Errno::ISDIR)?.to_owned();
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = fs::open(parent, flags, Mode::empty())?;
        let unnamed = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let (file, temporary) = match fs::openat(&dir, ".", unnamed, PRIVATE) {
            Ok(file) => (file, None),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {
                let temporary = beside_name(&name)?;
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let file = fs::openat(&dir, &temporary, flags, PRIVATE)?;
                (file, Some(temporary))
            }
            Err(errno) => return Err(errno.into()),
        };
        Ok(Self {
            file: File::from(file),
            place: Some(Place {
                dir,
                name,
                temporary,
            }),
        })
    }

    /// Makes the file durable and gives it its name.
    pub(super) fn finish(mut self) -> Result<()> {
        let Some(place) = &mut self.place else {
            return Ok(());
        };
        self.file.sync_all()?;
        let temporary = match place.temporary.take() {
            Some(temporary) => temporary,
            None => match link(&self.file, &place.dir, &place.name) {
                Ok(()) => return Ok(()),
                // link(2) does not replace a file: link it under a temporary name, then rename
                // that.
                Err(Errno::EXIST) => {
                    let temporary = beside_name(&place.name)?;
                    link(&self.file, &place.dir, &temporary)?;
                    temporary
                }
                Err(errno) => return Err(errno.into()),
            },
        };
        let renamed = fs::renameat(&place.dir, &temporary, &place.dir, &place.name);
        // After an error it still exists: drop removes it.
        place.temporary = renamed.is_err().then_some(temporary);
        Ok(renamed?)
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if let Some(Place {
            dir,
            temporary: Some(temporary),
            ..
        }) = &self.place
            && fs::unlinkat(dir, temporary, AtFlags::empty()).is_err()
        {
            // It may be gone; the error that ended the command is already reported.
        }
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Gives an unnamed file a name.
fn link(file: &File, dir: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    fs::linkat(CWD, path, dir, name, AtFlags::SYMLINK_FOLLOW)
}

/// The path that `path` leads to through symbolic links.
fn target(path: &Path) -> Result<PathBuf> {
    let file = fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    canonical(&file)
}

/// A hidden temporary name derived from `name`, truncated to a valid file name.
fn beside_name(name: &OsStr) -> Result<OsString> {
    let shown: String = name.to_string_lossy().chars().take(40).collect();
    let id = new_id()?;
    Ok(format!(".{shown}.{}", super::short(&id)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<OsString> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let temp = tempfile::tempdir().unwrap();
        let (path, link) = (temp.path().join("out"), temp.path().join("link"));
        let mut output = OutputFile::create(&path).unwrap();
        output.write_all(b"half").unwrap();
        assert!(!path.exists());
        drop(output);
        assert!(names(temp.path()).is_empty());

        std::os::unix::fs::symlink("out", &link).unwrap();
        for content in ["one", "two"] {
            let mut output = OutputFile::create(&path).unwrap();
            output.write_all(content.as_bytes()).unwrap();
            output.finish().unwrap();
            assert_eq!(std::fs::read_to_string(&link).unwrap(), content);
        }
        let mut output = OutputFile::create(&link).unwrap();
        output.write_all(b"three").unwrap();
        drop(OutputFile::create(&path).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        output.finish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three");
        assert!(link.is_symlink());
        assert_eq!(names(temp.path()).len(), 2);
    }

    #[test]
    fn a_directory_is_refused_and_a_device_is_written_to() {
        let temp = tempfile::tempdir().unwrap();
        assert!(OutputFile::create(temp.path()).is_err());
        assert!(OutputFile::create(&temp.path().join("none/out")).is_err());
        let mut output = OutputFile::create(Path::new("/dev/null")).unwrap();
        output.write_all(b"gone").unwrap();
        output.finish().unwrap();
    }
}
