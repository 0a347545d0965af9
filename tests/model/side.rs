//! One side of the comparison: runs an operation below a directory and returns, as a line, what the
//! caller saw.
//!
//! It changes root to the directory meanwhile, so that links with `..` never lead to other
//! programs' files.

use std::os::fd::OwnedFd;
use std::path::Path as FsPath;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::fs::{
    Access, AtFlags, CWD, Dev, FallocateFlags, FileType, Gid as RawGid, Mode, OFlags, RenameFlags,
    StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid as RawUid, XattrFlags, accessat,
    chmodat, chownat, copy_file_range, fallocate, fchmod, fsync, ftruncate, linkat, makedev,
    mkdirat, mknodat, openat, readlinkat, renameat_with, statx, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, pread, pwrite, write};
use rustix::process::{chroot, fchdir, umask};

use crate::operation::{Allocation, Operation, Path, Renaming, SLOTS, Slot, Special, Time};
use crate::seen::{Seen, listing, read_all, sorted, status};

/// A directory under test, and the files that are open on it.
pub(crate) struct Side {
    root: OwnedFd,
    slots: [Option<OwnedFd>; SLOTS],
}

impl Side {
    pub(crate) fn new(root: &FsPath) -> Self {
        Self {
            root: openat(
                CWD,
                root,
                OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .unwrap(),
            slots: [const { None }; SLOTS],
        }
    }

    /// Whether `file` got set-id bits while it may already have been open: then passthrough writes
    /// bypass the worker.
    fn may_go_past_us(&self, file: &OwnedFd) -> Result<bool, Errno> {
        Ok(self.slots.iter().any(Option::is_some) && has_set_id(file)?)
    }

    /// Runs it with the file system ids of user and group `who`.
    pub(crate) fn carry_out(&mut self, who: u32, operation: &Operation) -> Seen {
        let _outside = Outside::entering(&self.root);
        let (old_group, old_user) = (setfsgid(Gid::from_raw(who)), setfsuid(Uid::from_raw(who)));
        let seen = self
            .contents(operation)
            .or_else(|| self.names(operation))
            .or_else(|| self.attributes(operation))
            .or_else(|| Self::xattrs(operation))
            .unwrap_or_else(|| self.open_files(operation));
        setfsuid(old_user);
        setfsgid(old_group);
        seen
    }

    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        openat(
            &self.root,
            &*path.0,
            flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY,
            Mode::empty(),
        )
    }

    fn contents(&self, operation: &Operation) -> Option<Seen> {
        Some(match operation {
            Operation::Create {
                path,
                mode,
                exclusive,
                umask,
            } => masked(*umask, || {
                let flags = if *exclusive {
                    OFlags::EXCL
                } else {
                    OFlags::empty()
                };
                openat(
                    &self.root,
                    &*path.0,
                    flags | OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
                    Mode::from_raw_mode(*mode),
                )
                .map(drop)
            }),
            Operation::Write {
                path,
                offset,
                length,
                seed,
            } => self.open(path, OFlags::WRONLY).and_then(|file| {
                if self.may_go_past_us(&file)? {
                    return Ok(String::new());
                }
                pwrite(file, &bytes(*length, *seed), *offset).map(number)
            }),
            Operation::Append { path, length, seed } => self
                .open(path, OFlags::WRONLY | OFlags::APPEND)
                .and_then(|file| {
                    if self.may_go_past_us(&file)? {
                        return Ok(String::new());
                    }
                    write(file, &bytes(*length, *seed)).map(number)
                }),
            Operation::OpenTruncated { path } => {
                self.open(path, OFlags::WRONLY | OFlags::TRUNC).map(nothing)
            }
            Operation::Truncate { path, length } => self
                .open(path, OFlags::WRONLY)
                .and_then(|file| ftruncate(file, *length))
                .map(nothing),
            Operation::Read {
                path,
                offset,
                length,
            } => self
                .open(path, OFlags::RDONLY)
                .and_then(|file| read_all(&file, *offset, *length)),
            Operation::CopyRange { from, to, length } => self.copy_range(from, to, *length),
            Operation::Fallocate {
                path,
                allocation,
                offset,
                length,
            } => {
                let flags = match allocation {
                    Allocation::Grow => FallocateFlags::empty(),
                    Allocation::KeepSize => FallocateFlags::KEEP_SIZE,
                    Allocation::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    Allocation::ZeroRange => FallocateFlags::ZERO_RANGE,
                };
                self.open(path, OFlags::RDWR)
                    .and_then(|file| fallocate(file, flags, *offset, *length))
                    .map(nothing)
            }
            Operation::Tmpfile {
                directory,
                length,
                seed,
                link,
            } => self.tmpfile(directory, &bytes(*length, *seed), link.as_ref()),
            _ => return None,
        })
    }

    fn names(&self, operation: &Operation) -> Option<Seen> {
        let root = &self.root;
        Some(match operation {
            Operation::Unlink { path } => unlinkat(root, &*path.0, AtFlags::empty()).map(nothing),
            Operation::Rmdir { path } => unlinkat(root, &*path.0, AtFlags::REMOVEDIR).map(nothing),
            Operation::Mkdir { path, mode, umask } => masked(*umask, || {
                mkdirat(root, &*path.0, Mode::from_raw_mode(*mode))
            }),
            Operation::Symlink { target, path } => {
                symlinkat(&*target.0, root, &*path.0).map(nothing)
            }
            Operation::Link { from, to } => {
                linkat(root, &*from.0, root, &*to.0, AtFlags::empty()).map(nothing)
            }
            Operation::Mknod {
                path,
                special,
                mode,
                umask,
            } => masked(*umask, || {
                let (kind, device) = node(*special);
                mknodat(root, &*path.0, kind, Mode::from_raw_mode(*mode), device)
            }),
            Operation::Rename { from, to, renaming } => {
                let flags = match renaming {
                    Renaming::Replace => RenameFlags::empty(),
                    Renaming::NoReplace => RenameFlags::NOREPLACE,
                    Renaming::Exchange => RenameFlags::EXCHANGE,
                };
                renameat_with(root, &*from.0, root, &*to.0, flags).map(nothing)
            }
            Operation::Readlink { path } => readlinkat(root, &*path.0, Vec::new())
                .map(|target| target.to_bytes().escape_ascii().to_string()),
            Operation::Readdir { path } => self
                .open(path, OFlags::RDONLY | OFlags::DIRECTORY)
                .and_then(|directory| listing(&directory)),
            Operation::SyncDirectory { path } => self
                .open(path, OFlags::RDONLY | OFlags::DIRECTORY)
                .and_then(fsync)
                .map(nothing),
            _ => return None,
        })
    }

    fn attributes(&self, operation: &Operation) -> Option<Seen> {
        let root = &self.root;
        let links = |follow: &bool| {
            if *follow {
                AtFlags::empty()
            } else {
                AtFlags::SYMLINK_NOFOLLOW
            }
        };
        Some(match operation {
            Operation::Chmod { path, mode } => {
                chmodat(root, &*path.0, Mode::from_raw_mode(*mode), AtFlags::empty()).map(nothing)
            }
            Operation::Chown {
                path,
                uid,
                gid,
                follow,
            } => chownat(
                root,
                &*path.0,
                uid.map(RawUid::from_raw),
                gid.map(RawGid::from_raw),
                links(follow),
            )
            .map(nothing),
            Operation::Times {
                path,
                modified,
                follow,
            } => {
                let last_modification = match *modified {
                    Time::At(tv_sec, tv_nsec) => Timespec { tv_sec, tv_nsec },
                    Time::Now => Timespec {
                        tv_sec: 0,
                        tv_nsec: UTIME_NOW,
                    },
                    Time::Omit => Timespec {
                        tv_sec: 0,
                        tv_nsec: UTIME_OMIT,
                    },
                };
                let last_access = Timespec {
                    tv_sec: 1_000,
                    tv_nsec: 1,
                };
                utimensat(
                    root,
                    &*path.0,
                    &Timestamps {
                        last_access,
                        last_modification,
                    },
                    links(follow),
                )
                .map(nothing)
            }
            Operation::Stat { path } => status(root, &path.0),
            Operation::Access { path, mode } => accessat(
                root,
                &*path.0,
                Access::from_bits_truncate(u32::from(*mode)),
                AtFlags::EACCESS,
            )
            .map(nothing),
            _ => return None,
        })
    }

    fn xattrs(operation: &Operation) -> Option<Seen> {
        Some(match operation {
            Operation::SetXattr {
                path,
                name,
                value,
                create,
                replace,
            } => {
                let mut flags = XattrFlags::empty();
                flags.set(XattrFlags::CREATE, *create);
                flags.set(XattrFlags::REPLACE, *replace);
                rustix::fs::lsetxattr(&*path.0, *name, value, flags).map(nothing)
            }
            Operation::RemoveXattr { path, name } => {
                rustix::fs::lremovexattr(&*path.0, *name).map(nothing)
            }
            Operation::GetXattr { path, name } => {
                let mut buffer = [0; 4096];
                rustix::fs::lgetxattr(&*path.0, *name, &mut buffer)
                    .map(|n| buffer[..n].escape_ascii().to_string())
            }
            Operation::ListXattr { path } => {
                let mut buffer = [0; 4096];
                rustix::fs::llistxattr(&*path.0, &mut buffer).map(|n| sorted(&buffer[..n]))
            }
            _ => return None,
        })
    }

    fn open_files(&mut self, operation: &Operation) -> Seen {
        let file = |slot: &Slot| self.slots[*slot].as_ref().ok_or(Errno::BADF);
        match operation {
            Operation::Open {
                slot,
                path,
                write,
                append,
            } => {
                let mut flags = if *write { OFlags::RDWR } else { OFlags::RDONLY };
                flags.set(OFlags::APPEND, *append);
                self.slots[*slot] = None;
                let file = self.open(path, flags)?;
                if keeps(&file, *write)? {
                    self.slots[*slot] = Some(file);
                }
                Ok(String::new())
            }
            Operation::SlotWrite {
                slot,
                offset,
                length,
                seed,
            } => {
                let file = file(slot)?;
                if has_set_id(file)? {
                    return Ok(String::new());
                }
                pwrite(file, &bytes(*length, *seed), *offset).map(number)
            }
            Operation::SlotRead {
                slot,
                offset,
                length,
            } => read_all(file(slot)?, *offset, *length),
            Operation::SlotTruncate { slot, length } => {
                ftruncate(file(slot)?, *length).map(nothing)
            }
            Operation::SlotStat { slot } => status(file(slot)?, b""),
            Operation::SlotChmod { slot, mode } => {
                fchmod(file(slot)?, Mode::from_raw_mode(*mode)).map(nothing)
            }
            Operation::SlotSync { slot } => fsync(file(slot)?).map(nothing),
            Operation::SlotClose { slot } => {
                self.slots[*slot] = None;
                Ok(String::new())
            }
            other => panic!("{other:?} belongs to no group"),
        }
    }

    fn copy_range(&self, from: &Path, to: &Path, length: usize) -> Seen {
        // In this order: see `keeps`.
        let to = self.open(to, OFlags::WRONLY)?;
        let from = self.open(from, OFlags::RDONLY)?;
        let mut copied = 0;
        while copied < length {
            match copy_file_range(&from, None, &to, None, length - copied)? {
                0 => break,
                n => copied += n,
            }
        }
        Ok(number(copied))
    }

    fn tmpfile(&self, directory: &Path, content: &[u8], link: Option<&Path>) -> Seen {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(&self.root, &*directory.0, flags, Mode::from_raw_mode(0o640))?;
        let written = pwrite(&file, content, 0)?;
        let before = status(&file, b"")?;
        if let Some(name) = link {
            linkat(&file, "", &self.root, &*name.0, AtFlags::EMPTY_PATH)?;
        }
        Ok(format!("{written} {before} {}", status(&file, b"")?))
    }
}

/// The root and the working directory to return to.
struct Outside {
    root: OwnedFd,
    working: OwnedFd,
}

impl Outside {
    fn entering(root: &OwnedFd) -> Self {
        let open = |path| openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let outside = Self {
            root: open("/"),
            working: open("."),
        };
        fchdir(root).and_then(|()| chroot(".")).unwrap();
        outside
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        fchdir(&self.root)
            .and_then(|()| chroot("."))
            .and_then(|()| fchdir(&self.working))
            .unwrap();
    }
}

/// Whether a file may stay open while others write to it, which is not standard in two cases (each
/// has a test of its own): programs and big files of the lower that are open for reading go on
/// showing the image's content, and FUSE does not hear of what is written to a fifo, so its time
/// stays.
fn keeps(file: &OwnedFd, write: bool) -> Result<bool, Errno> {
    let status = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    if FileType::from_raw_mode(u32::from(status.stx_mode)) == FileType::Fifo {
        return Ok(false);
    }
    let mut magic = [0; 4];
    let regular = FileType::from_raw_mode(u32::from(status.stx_mode)) == FileType::RegularFile;
    let of_the_object = regular
        && !write
        && (status.stx_size >= 1 << 20 || pread(file, &mut magic, 0)? == 4 && &magic == b"\x7fELF");
    Ok(!of_the_object)
}

/// Not standard: a write that goes past us clears these bits for every user; see `non_standard`.
fn has_set_id(file: &OwnedFd) -> Result<bool, Errno> {
    let stat = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    Ok(u32::from(stat.stx_mode) & 0o6000 != 0)
}

fn nothing<T>(_: T) -> String {
    String::new()
}

fn number(n: usize) -> String {
    n.to_string()
}

fn masked(mask: u32, make: impl FnOnce() -> Result<(), Errno>) -> Seen {
    let old = umask(Mode::from_raw_mode(mask));
    let made = make();
    umask(old);
    made.map(nothing)
}

fn node(special: Special) -> (FileType, Dev) {
    match special {
        Special::Fifo => (FileType::Fifo, 0),
        Special::Socket => (FileType::Socket, 0),
        Special::Regular => (FileType::RegularFile, 0),
        Special::Char(major, minor) => (FileType::CharacterDevice, makedev(major, minor)),
        Special::Block(major, minor) => (FileType::BlockDevice, makedev(major, minor)),
    }
}

/// Bytes that identify their position.
fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|i| seed.wrapping_add(u8::try_from(i % 251).expect("below 251")))
        .collect()
}
