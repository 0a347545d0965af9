//! Copying out of a container: a path as a tar.

use super::literal::Literal;
use super::{Files, Place, components, name_of, xattr};
use crate::engine::error::{Context, Result};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, major, minor, openat, readlinkat, statat,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

/// A directory that is being read.
struct Level {
    directory: OwnedFd,
    entries: Dir,
    device: u64,
    /// Its path in the archive.
    path: PathBuf,
}

struct Writer<W: Write> {
    tar: Literal<W>,
    /// The first names of files with several.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Files {
    /// Writes a path as a tar, whose names begin with the path's last component. A mount below it
    /// that the container's request does not name, as /proc, is written as an empty directory.
    pub fn read(&self, path: &str, out: impl Write) -> Result<()> {
        let top = match name_of(path).as_str() {
            "/" | ".." => ".".to_owned(),
            name => name.to_owned(),
        };
        self.read_as(path, &top, out)
    }

    /// [`Files::read`] with `top` in place of the last component.
    pub(super) fn read_as(&self, path: &str, top: &str, out: impl Write) -> Result<()> {
        let place = self.place(path)?;
        let stat = self.stat_of(&place, path)?;
        let read = self.read_place(path, &place, &stat, Path::new(top), out);
        read.context(|| format!("reading {path}"))
    }

    fn read_place(
        &self,
        path: &str,
        place: &Place,
        stat: &Stat,
        top: &Path,
        out: impl Write,
    ) -> io::Result<()> {
        let mut writer = Writer {
            tar: Literal(Builder::new(out)),
            links: HashMap::new(),
        };
        let name = CString::new(place.name.as_str())?;
        let first = writer.entry(place.parent.as_fd(), &name, stat, top.to_owned())?;
        let mut levels: Vec<Level> = first.into_iter().collect();
        while let Some(level) = levels.last_mut() {
            match writer.next(level, |below| self.is_mount(path, top, below))? {
                Some(Below::Directory(below)) => levels.push(below),
                Some(Below::Other) => {}
                None => drop(levels.pop()),
            }
        }
        writer.tar.0.into_inner()?.flush()
    }

    /// Whether a path in the archive is a mount of the container's request. On the host, every
    /// mount counts.
    fn is_mount(&self, path: &str, top: &Path, below: &Path) -> bool {
        let Some(config) = &self.config else {
            return true;
        };
        let below = below.strip_prefix(top).unwrap_or(below);
        let mut place = components(path);
        place.extend(components(below));
        let mut mounts = config.mounts.iter();
        mounts.any(|mount| components(&mount.destination) == place)
    }
}

enum Below {
    Directory(Level),
    Other,
}

impl<W: Write> Writer<W> {
    /// Writes the next entry of a directory; None at its end.
    fn next(
        &mut self,
        level: &mut Level,
        is_mount: impl FnOnce(&Path) -> bool,
    ) -> io::Result<Option<Below>> {
        let name = loop {
            let Some(entry) = level.entries.read() else {
                return Ok(None);
            };
            let name = entry?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                break name;
            }
        };
        let directory = level.directory.as_fd();
        let stat = match statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            // Removed since.
            Err(Errno::NOENT) => return Ok(Some(Below::Other)),
            stat => stat?,
        };
        let path = level.path.join(OsStr::from_bytes(name.to_bytes()));
        let below = match self.entry(directory, &name, &stat, path) {
            // Removed since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(Below::Other)),
            below => below?,
        };
        Ok(Some(match below {
            Some(below) if below.device == level.device || is_mount(&below.path) => {
                Below::Directory(below)
            }
            _ => Below::Other,
        }))
    }

    /// Writes an entry. Returns it if it is a directory to be read.
    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CString,
        stat: &Stat,
        path: PathBuf,
    ) -> io::Result<Option<Level>> {
        let mut header = Header::new_gnu();
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(0);
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory || stat.st_nlink < 2 {
            return self.file(parent, name, (kind, stat.st_rdev), header, path);
        }
        let file = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&file) {
            header.set_entry_type(EntryType::Link);
            self.tar.append_link(&mut header, path, first)?;
            return Ok(None);
        }
        self.file(parent, name, (kind, stat.st_rdev), header, path.clone())?;
        // A tar has no sockets, so no link to one.
        if kind != FileType::Socket {
            self.links.insert(file, path);
        }
        Ok(None)
    }

    /// Writes a file under its first name; `device` is its device number. Returns it if it is a
    /// directory to be read.
    fn file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CString,
        (kind, device): (FileType, u64),
        mut header: Header,
        path: PathBuf,
    ) -> io::Result<Option<Level>> {
        match kind {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let content = openat(parent, name, flags, Mode::empty())?;
                let now = fstat(&content)?;
                if FileType::from_raw_mode(now.st_mode) != FileType::RegularFile {
                    return Err(io::Error::other("a file became something else meanwhile"));
                }
                self.xattrs(content.as_fd())?;
                let size = u64::try_from(now.st_size).unwrap_or(0);
                header.set_size(size);
                let content = Exactly {
                    file: File::from(content),
                    left: size,
                };
                self.tar.append_data(&mut header, path, content)?;
            }
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let directory = openat(parent, name, flags, Mode::empty())?;
                self.xattrs(directory.as_fd())?;
                header.set_entry_type(EntryType::Directory);
                // With a trailing slash, as tar and Docker write it.
                self.tar
                    .append_data(&mut header, path.join(""), io::empty())?;
                return Ok(Some(Level {
                    entries: Dir::read_from(&directory)?,
                    device: fstat(&directory)?.st_dev,
                    directory,
                    path,
                }));
            }
            FileType::Symlink => {
                header.set_entry_type(EntryType::Symlink);
                let target = readlinkat(parent, name, Vec::new())?;
                let target = OsStr::from_bytes(target.to_bytes());
                self.tar.append_link(&mut header, path, target)?;
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                header.set_entry_type(if kind == FileType::BlockDevice {
                    EntryType::Block
                } else {
                    EntryType::Char
                });
                header.set_device_major(major(device))?;
                header.set_device_minor(minor(device))?;
                self.tar.append_data(&mut header, path, io::empty())?;
            }
            FileType::Fifo => {
                header.set_entry_type(EntryType::Fifo);
                self.tar.append_data(&mut header, path, io::empty())?;
            }
            // A tar has no sockets, and Docker leaves them out too.
            _ => {}
        }
        Ok(None)
    }

    /// Writes the attributes of a file, for the entry that follows.
    fn xattrs(&mut self, file: BorrowedFd<'_>) -> io::Result<()> {
        let all = xattr::read(file)?;
        let records = all
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_slice()));
        // Without records it writes no header.
        self.tar.append_pax_extensions(records)
    }
}

/// Reads exactly this many bytes of a file, even if it changes meanwhile: zeros where it became
/// shorter.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let length = most.min(buffer.len());
        let buffer = buffer.get_mut(..length).unwrap_or_default();
        let read = match self.file.read(buffer)? {
            0 => {
                buffer.fill(0);
                buffer.len()
            }
            read => read,
        };
        self.left -= read as u64;
        Ok(read)
    }
}
