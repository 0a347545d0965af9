//! The operations of the random programs: each done on the overlay and on the plain directory.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use cowl_core::tree::{FileType, Rdev, Timestamp};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};

use super::super::*;
use super::model::{Both, World, owners, random_path};
use super::{ROOT_CALLER, parent_and_name};

impl World {
    pub(super) fn make(&mut self) {
        let path = random_path(&mut self.random);
        let Some((plain, name)) = self.plain_parent(&path) else {
            return;
        };
        let Ok((dir, ours)) = parent_and_name(self.overlay(), &path) else {
            panic!("{path}: {}", self.last())
        };
        let mode = self.random.pick(&[0o644, 0o755, 0o600, 0o2755]);
        let raw = Mode::from_raw_mode(mode);
        let choice = self.random.below(5);
        let o = self.overlay();
        let c = &ROOT_CALLER;
        let mknod = |kind| rustix::fs::mknodat(&plain, name, kind, raw, 0);
        let (what, ours, theirs) = match choice {
            0 => (
                "mkdir",
                o.mkdir(dir, ours, mode & 0o1777, 0, c).map(drop),
                rustix::fs::mkdirat(&plain, name, Mode::from_raw_mode(mode & 0o1777)),
            ),
            1 => (
                "symlink",
                o.symlink(dir, ours, b"f0", c).map(drop),
                rustix::fs::symlinkat("f0", &plain, name),
            ),
            2 => (
                "fifo",
                o.mknod(dir, ours, FileType::Fifo, mode, Rdev::default(), 0, c)
                    .map(drop),
                mknod(rustix::fs::FileType::Fifo),
            ),
            3 => (
                "null",
                o.mknod(dir, ours, FileType::CharDevice, mode, Rdev::default(), 0, c)
                    .map(drop),
                mknod(rustix::fs::FileType::CharacterDevice),
            ),
            _ => (
                "file",
                o.mknod(dir, ours, FileType::Regular, mode, Rdev::default(), 0, c)
                    .map(drop),
                mknod(rustix::fs::FileType::RegularFile),
            ),
        };
        self.same(&format!("{what} {path}"), ours, theirs);
    }

    pub(super) fn remove(&mut self) {
        // Keep some files: removed ones are not used again.
        let path = if self.there.len() > 12 {
            self.path()
        } else {
            random_path(&mut self.random)
        };
        let Some((plain, name)) = self.plain_parent(&path) else {
            return;
        };
        let (dir, ours) = parent_and_name(self.overlay(), &path).unwrap();
        if self.random.below(2) == 0 {
            let result = self.overlay().unlink(dir, ours);
            self.same(
                &format!("unlink {path}"),
                result,
                rustix::fs::unlinkat(&plain, name, AtFlags::empty()),
            );
        } else {
            let result = self.overlay().rmdir(dir, ours);
            self.same(
                &format!("rmdir {path}"),
                result,
                rustix::fs::unlinkat(&plain, name, AtFlags::REMOVEDIR),
            );
        }
    }

    pub(super) fn rename(&mut self) {
        let to = if self.there.len() > 12 && self.random.below(2) == 0 {
            self.path()
        } else {
            random_path(&mut self.random)
        };
        let from = self.path();
        let (Some((plain, name)), Some((new_plain, new_name))) =
            (self.plain_parent(&from), self.plain_parent(&to))
        else {
            return;
        };
        // The kernel answers these without a request.
        if to.starts_with(&format!("{from}/")) || from.starts_with(&format!("{to}/")) {
            return;
        }
        let (dir, ours) = parent_and_name(self.overlay(), &from).unwrap();
        let (new_dir, new_ours) = parent_and_name(self.overlay(), &to).unwrap();
        let (mode, flags) = match self.random.below(6) {
            0 => (RenameMode::NoReplace, RenameFlags::NOREPLACE),
            1 | 2 => (RenameMode::Exchange, RenameFlags::EXCHANGE),
            _ => (RenameMode::Replace, RenameFlags::empty()),
        };
        let result = self.overlay().rename(dir, ours, new_dir, new_ours, mode);
        if result == Err(Errno::XDEV) && self.overlay().keeps_lower_directories() {
            self.log.push(format!("rename {from} {to}: {result:?}"));
            return; // a directory that merges with a lower one
        }
        let theirs = rustix::fs::renameat_with(&plain, name, &new_plain, new_name, flags);
        self.same(&format!("rename {mode:?} {from} {to}"), result, theirs);
    }

    pub(super) fn link(&mut self) {
        let (from, to) = (self.path(), random_path(&mut self.random));
        let (Some((plain, name)), Some((new_plain, new_name))) =
            (self.plain_parent(&from), self.plain_parent(&to))
        else {
            return;
        };
        let theirs = rustix::fs::linkat(&plain, name, &new_plain, new_name, AtFlags::empty());
        let (dir, new) = parent_and_name(self.overlay(), &to).unwrap();
        let ours = self.find(&from).and_then(|entry| {
            // As the kernel: whether the new name is taken comes first, then whether a directory
            // is linked.
            self.overlay().link(entry.id, dir, new).map(drop)
        });
        self.same(&format!("link {from} {to}"), ours, theirs);
    }

    pub(super) fn attributes(&mut self) {
        let path = self.path();
        let Some((plain, name)) = self.plain_parent(&path) else {
            return;
        };
        let entry = self.find(&path);
        let Ok(entry) = entry else { return };
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let mut set = SetAttr::default();
        let theirs = match self.random.below(3) {
            0 if entry.attr.file_type == FileType::Symlink => return,
            0 => {
                let mode = self.random.pick(&[0o644, 0o700, 0o4755, 0o2711]);
                set.mode = Some(mode);
                rustix::fs::chmodat(&plain, name, Mode::from_raw_mode(mode), AtFlags::empty())
            }
            1 => {
                let (uid, gid) = if owners() {
                    (self.random.below(3), self.random.below(3))
                } else {
                    (0, 0)
                };
                let (uid, gid) = (u32::try_from(uid).unwrap(), u32::try_from(gid).unwrap());
                (set.uid, set.gid) = (Some(uid), Some(gid));
                let (uid, gid) = (
                    rustix::fs::Uid::from_raw(uid),
                    rustix::fs::Gid::from_raw(gid),
                );
                rustix::fs::chownat(&plain, name, Some(uid), Some(gid), nofollow)
            }
            _ => {
                let time = Timestamp {
                    secs: i64::try_from(self.random.below(1_000_000_000)).unwrap() - 1000,
                    nanos: 5,
                };
                (set.atime, set.mtime) = (Some(SetTime::At(time)), Some(SetTime::At(time)));
                rustix::fs::utimensat(
                    &plain,
                    name,
                    &cowl_core::upper::name_at::times(time, time),
                    nofollow,
                )
            }
        };
        let ours = self.overlay().setattr(entry.id, &set).map(drop);
        self.same(&format!("setattr {path} {set:?}"), ours, theirs);
    }

    pub(super) fn truncate(&mut self, path: &str) {
        let Some((plain, name)) = self.plain_parent(path) else {
            return;
        };
        let Ok(entry) = self.find(path) else { return };
        if entry.attr.file_type != FileType::Regular {
            return;
        }
        let size = self.random.below(20);
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let theirs = rustix::fs::openat(&plain, name, flags, Mode::empty())
            .and_then(|file| rustix::fs::ftruncate(file, size));
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        let ours = self.retry(path, |overlay, id| overlay.setattr(id, &set).map(drop));
        self.same(&format!("truncate {path} {size}"), ours, theirs);
    }

    /// As the kernel: after ESTALE the name is looked up again, once.
    fn retry<T>(
        &self,
        path: &str,
        f: impl Fn(&Overlay, NodeId) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match self
            .find(path)
            .and_then(|entry| f(self.overlay(), entry.id))
        {
            Err(Errno::STALE) => self
                .find(path)
                .and_then(|entry| f(self.overlay(), entry.id)),
            other => other,
        }
    }

    pub(super) fn xattr(&mut self) {
        let path = self.path();
        let Some((plain, name)) = self.plain_parent(&path) else {
            return;
        };
        let Ok(entry) = self.find(&path) else { return };
        if !matches!(
            entry.attr.file_type,
            FileType::Regular | FileType::Directory
        ) {
            return;
        }
        let host = format!(
            "/proc/self/fd/{}/{name}",
            std::os::fd::AsRawFd::as_raw_fd(&plain.as_fd())
        );
        let attribute = self
            .random
            .pick(&["user.x", "user.y", "user.overlay.opaque"]);
        let (ours, theirs) = if self.random.below(3) == 0 {
            (
                self.overlay().removexattr(entry.id, attribute.as_bytes()),
                rustix::fs::lremovexattr(host, attribute),
            )
        } else {
            let value = self.random.pick(&["y", "", "something"]).as_bytes();
            let (create, replace) =
                self.random
                    .pick(&[(false, false), (true, false), (false, true)]);
            let mut flags = rustix::fs::XattrFlags::empty();
            flags.set(rustix::fs::XattrFlags::CREATE, create);
            flags.set(rustix::fs::XattrFlags::REPLACE, replace);
            let ours = XattrFlags {
                create,
                replace,
                kill_sgid: false,
            };
            (
                self.overlay()
                    .setxattr(entry.id, attribute.as_bytes(), value, ours),
                rustix::fs::lsetxattr(host, attribute, value, flags),
            )
        };
        self.same(&format!("xattr {path} {attribute}"), ours, theirs);
    }

    fn open_plain(&self, path: &str, write: bool) -> Option<File> {
        let (plain, name) = self.plain_parent(path)?;
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::openat(&plain, name, flags, Mode::empty()).ok()?);
        file.metadata().unwrap().is_file().then_some(file)
    }

    pub(super) fn write(&mut self) {
        let path = self.path();
        let Some(plain) = self.open_plain(&path, true) else {
            return;
        };
        let offset = self.random.below(12);
        let byte = self.random.byte();
        let data = [byte; 5];
        plain.write_all_at(&data, offset).unwrap();
        let ours = if self.io_mode == IoMode::Cached {
            self.find(&path).and_then(|entry| {
                self.overlay()
                    .write(entry.id, None, offset, &data, false)
                    .map(drop)
            })
        } else {
            let flags = OpenFlags {
                write: true,
                ..OpenFlags::default()
            };
            self.retry(&path, |overlay, id| {
                let opened = overlay.open(id, flags)?;
                let written = overlay.write(id, Some(opened.handle), offset, &data, false);
                overlay.release(id, opened.handle)?;
                written.map(drop)
            })
        };
        self.same(&format!("write {path} {offset} {byte}"), ours, Ok(()));
    }

    pub(super) fn open(&mut self) {
        if self.io_mode == IoMode::Cached || self.open.len() > 5 {
            return;
        }
        let path = self.path();
        let write = self.random.below(2) == 0;
        let Some(plain) = self.open_plain(&path, write) else {
            return;
        };
        let flags = OpenFlags {
            write,
            ..OpenFlags::default()
        };
        let (id, opened) = self
            .retry(&path, |overlay, id| {
                overlay.open(id, flags).map(|opened| (id, opened))
            })
            .unwrap();
        self.log.push(format!("open {path} {write}"));
        if let OpenMode::Passthrough(Backing {
            side: Side::Lower, ..
        }) = opened.mode
        {
            // Keeps reading the object after a write, a documented difference (docs/posix.md).
            self.overlay().release(id, opened.handle).unwrap();
            return;
        }
        self.open.push(Both {
            id,
            handle: opened.handle,
            plain,
        });
    }

    pub(super) fn use_open(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let index = self.random.index(self.open.len());
        if self.random.below(3) == 0 {
            let both = self.open.swap_remove(index);
            self.overlay().release(both.id, both.handle).unwrap();
            self.log.push(format!("close {index}"));
            return;
        }
        let both = &self.open[index];
        let theirs = both.plain.write_all_at(b"open", 3).is_ok();
        let ours = self
            .overlay()
            .write(both.id, Some(both.handle), 3, b"open", false)
            .is_ok();
        assert_eq!(ours, theirs, "{}", self.last());
        let meta = both.plain.metadata().unwrap();
        let attr = self.overlay().getattr(both.id).unwrap();
        assert_eq!(
            (attr.size, u64::from(attr.nlink), attr.mode),
            (meta.len(), meta.nlink(), meta.mode() & 0o7777),
            "{}",
            self.last()
        );
        self.log.push(format!("write to open {index}"));
    }

    pub(super) fn unnamed(&mut self) {
        let path = self.path();
        let Some((plain, name)) = self.plain_parent(&path) else {
            return;
        };
        let (dir, ours_name) = parent_and_name(self.overlay(), &path).unwrap();
        let flags = OFlags::TMPFILE | OFlags::RDWR;
        let theirs = rustix::fs::openat(&plain, ".", flags, Mode::from_raw_mode(0o640)).unwrap();
        let write = OpenFlags {
            write: true,
            ..OpenFlags::default()
        };
        let (entry, opened) = self
            .overlay()
            .tmpfile(dir, 0o640, 0, write, &ROOT_CALLER)
            .unwrap();
        let ours = self.overlay().link(entry.id, dir, ours_name).map(drop);
        let host = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&theirs));
        let theirs =
            rustix::fs::linkat(rustix::fs::CWD, host, &plain, name, AtFlags::SYMLINK_FOLLOW);
        if self.io_mode == IoMode::Passthrough {
            self.overlay().release(entry.id, opened.handle).unwrap();
        }
        let lookups = 1 + u64::from(ours.is_ok());
        self.overlay().forget(entry.id, lookups);
        self.same(&format!("unnamed {path}"), ours, theirs);
    }
}
