//! Copying into a container: the files of a tar.
//!
//! Each entry's directory is looked up inside the container's root, so no link leads out of the
//! root, whenever it was created. A file that exists under an entry's name is replaced, never
//! followed.

use super::xattr::{self, Xattr};
use super::{Files, components};
use crate::engine::error::{Context, Error, Result};
use cowl_core::layer::decompress;
use cowl_core::store::remove_tree;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chmod, chownat, fchmod,
    fchown, linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Entry, EntryType};

/// How a tar is unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extraction {
    /// Never replace a directory by another kind of file, nor the other way round.
    pub keep_kinds: bool,
    /// Keep the tar's owners; else files belong to root in a container, and to the caller on the
    /// host.
    pub keep_owners: bool,
}

/// The attributes in an entry's header.
struct Attributes {
    owner: (Option<Uid>, Option<Gid>),
    mode: Mode,
    times: Timestamps,
    xattrs: Vec<Xattr>,
}

impl Files {
    /// Unpacks a tar, compressed or not, into a directory.
    pub fn write(&self, path: &str, tar: impl Read, how: Extraction) -> Result<()> {
        let tar = decompress(tar).context(|| "reading the tar")?;
        self.unpack(path, tar, how)
    }

    /// [`Files::write`] for a tar that is not compressed.
    pub(super) fn unpack(&self, path: &str, tar: impl Read, how: Extraction) -> Result<()> {
        self.check_writable(path)?;
        let base: PathBuf = components(path).into_iter().collect();
        match self.directory(path.trim_start_matches('/')) {
            Ok(_) => {}
            Err(Errno::NOTDIR) if self.stat(path).is_ok() => {
                return Err(Error::invalid("extraction point is not a directory"));
            }
            Err(errno) => return Err(self.failed(errno, path)),
        }
        let mut archive = Archive::new(tar);
        let entries = archive.entries().context(|| "reading the tar")?;
        // Their times are set last: creating files in them changes them.
        let mut directories = Vec::new();
        for entry in entries {
            let mut entry = entry.context(|| "reading the tar")?;
            let name = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
            let made = self.extract(&base, &name, &mut entry, how);
            if let Some(times) = made.map_err(|error| error.context(name.display().to_string()))? {
                directories.push((name, times));
            }
        }
        for (name, times) in directories.into_iter().rev() {
            let (parent, name) = self.parent(&base, &name)?;
            utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    /// The directory that holds an entry, made if it is missing, and the entry's own name.
    fn parent<'n>(&self, base: &Path, name: &'n Path) -> Result<(OwnedFd, &'n OsStr)> {
        if name.components().any(|part| part == Component::ParentDir) {
            return Err(Error::invalid(format!(
                "{}: it leads out of the archive",
                name.display()
            )));
        }
        let mut all = components(name);
        let last = all.pop().unwrap_or(OsStr::new("."));
        let mut path = base.to_owned();
        let mut directory = self
            .directory(&path)
            .map_err(|errno| self.failed(errno, &base.to_string_lossy()))?;
        for component in all {
            path.push(component);
            directory = match self.directory(&path) {
                Err(Errno::NOENT) => {
                    mkdirat(&directory, component, Mode::from_raw_mode(0o755))?;
                    self.directory(&path)?
                }
                opened => opened?,
            };
        }
        Ok((directory, last))
    }

    /// The owner of an entry's file: the entry's with `keep_owners`, else root in a container and
    /// the caller (None) on the host.
    fn owner(
        &self,
        entry: &Entry<'_, impl Read>,
        how: Extraction,
    ) -> Result<(Option<Uid>, Option<Gid>)> {
        let id = |id: io::Result<u64>| -> Result<u32> {
            let id = id.context(|| "reading an owner")?;
            u32::try_from(id).map_err(|_range| Error::invalid("an owner is too large"))
        };
        let header = entry.header();
        Ok(if how.keep_owners {
            let (uid, gid) = (id(header.uid())?, id(header.gid())?);
            (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        } else if self.config.is_none() {
            (None, None)
        } else {
            (Some(Uid::ROOT), Some(Gid::ROOT))
        })
    }

    /// Creates one file. Returns the times of a directory, to be set later.
    fn extract(
        &self,
        base: &Path,
        name: &Path,
        entry: &mut Entry<'_, impl Read>,
        how: Extraction,
    ) -> Result<Option<Timestamps>> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(None);
        }
        let xattrs = xattr::of_entry(entry)?;
        let attributes = attributes(entry, self.owner(entry, how)?, xattrs)?;
        let (parent, name) = self.parent(base, name)?;
        let parent = parent.as_fd();
        if kind == EntryType::Directory {
            // The target directory itself keeps its attributes (moby/go-archive, `Unpack`).
            if name == "." {
                return Ok(None);
            }
            return directory(parent, name, &attributes, how).map(Some);
        }
        make_room(parent, name, how)?;
        match kind {
            EntryType::Regular | EntryType::Continuous => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let made = openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?;
                let mut made = File::from(made);
                io::copy(entry, &mut made)?;
                fchown(&made, attributes.owner.0, attributes.owner.1)?;
                fchmod(&made, attributes.mode)?;
                xattr::write(made.as_fd(), &attributes.xattrs)?;
            }
            EntryType::Symlink => {
                let target = link_of(entry)?;
                symlinkat(target.as_slice(), parent, name)?;
                chown_link(parent, name, &attributes)?;
            }
            EntryType::Link => {
                let target = link_of(entry)?;
                let (of, first) = self.parent(base, Path::new(OsStr::from_bytes(&target)))?;
                linkat(&of, first, parent, name, AtFlags::empty())?;
                return Ok(None);
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                device(parent, name, entry, kind)?;
                chown_link(parent, name, &attributes)?;
                chmod_node(parent, name, attributes.mode)?;
            }
            _ => {
                return Err(Error::invalid(format!(
                    "{}: entries of type {:?} are not read here",
                    name.display(),
                    char::from(kind.as_byte())
                )));
            }
        }
        utimensat(parent, name, &attributes.times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(None)
    }
}

fn attributes(
    entry: &Entry<'_, impl Read>,
    owner: (Option<Uid>, Option<Gid>),
    xattrs: Vec<Xattr>,
) -> Result<Attributes> {
    let header = entry.header();
    let seconds = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    Ok(Attributes {
        owner,
        mode: Mode::from_raw_mode(header.mode().context(|| "reading a mode")? & 0o7777),
        times: Timestamps {
            last_access: time,
            last_modification: time,
        },
        xattrs,
    })
}

fn link_of(entry: &Entry<'_, impl Read>) -> Result<Vec<u8>> {
    let name = entry.link_name_bytes();
    let name = name.ok_or_else(|| Error::invalid("a link without a target"))?;
    Ok(name.into_owned())
}

fn kind_at(parent: BorrowedFd<'_>, name: &OsStr) -> Result<Option<FileType>> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Removes what exists under the name of an entry that is not a directory.
fn make_room(parent: BorrowedFd<'_>, name: &OsStr, how: Extraction) -> Result<()> {
    match kind_at(parent, name)? {
        None => Ok(()),
        Some(FileType::Directory) if how.keep_kinds || name == "." => Err(Error::invalid(format!(
            "cannot overwrite directory \"{}\" with non-directory",
            name.display()
        ))),
        Some(FileType::Directory) => remove_tree(parent, name)
            .map(drop)
            .context(|| format!("removing {}", name.display())),
        Some(_) => Ok(unlinkat(parent, name, AtFlags::empty())?),
    }
}

fn directory(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    attributes: &Attributes,
    how: Extraction,
) -> Result<Timestamps> {
    match kind_at(parent, name)? {
        Some(FileType::Directory) => {}
        Some(_) if how.keep_kinds => {
            return Err(Error::invalid(format!(
                "cannot overwrite non-directory \"{}\" with directory",
                name.display()
            )));
        }
        there => {
            if there.is_some() {
                unlinkat(parent, name, AtFlags::empty())?;
            }
            mkdirat(parent, name, Mode::RWXU)?;
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(parent, name, flags, Mode::empty())?;
    fchown(&made, attributes.owner.0, attributes.owner.1)?;
    fchmod(&made, attributes.mode)?;
    xattr::write(made.as_fd(), &attributes.xattrs)?;
    Ok(attributes.times.clone())
}

fn device(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    entry: &Entry<'_, impl Read>,
    kind: EntryType,
) -> Result<()> {
    let header = entry.header();
    let number = |number: io::Result<Option<u32>>| -> Result<u32> {
        Ok(number.context(|| "reading a device number")?.unwrap_or(0))
    };
    let (kind, device) = match kind {
        EntryType::Fifo => (FileType::Fifo, 0),
        kind => {
            let device = makedev(
                number(header.device_major())?,
                number(header.device_minor())?,
            );
            if kind == EntryType::Char {
                (FileType::CharacterDevice, device)
            } else {
                (FileType::BlockDevice, device)
            }
        }
    };
    mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, device)?;
    Ok(())
}

/// Sets the mode of a node, which the umask has reduced. A link that has replaced it meanwhile is
/// not followed: it could lead out of the container.
fn chmod_node(parent: BorrowedFd<'_>, name: &OsStr, mode: Mode) -> Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = openat(parent, name, flags, Mode::empty())?;
    Ok(chmod(format!("/proc/self/fd/{}", node.as_raw_fd()), mode)?)
}

fn chown_link(parent: BorrowedFd<'_>, name: &OsStr, attributes: &Attributes) -> Result<()> {
    let (uid, gid) = attributes.owner;
    chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}
