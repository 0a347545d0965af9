//! Random operations on an overlay and, with ordinary system calls, on a plain directory made from the same tree: every operation must give
//! the same errno, and the trees must look the same in everything a program can see. In between the overlay is dropped and opened again on
//! the same upper.
//!
//! `COWL_MODEL_STEPS` and `COWL_MODEL_SEED` set how long and which; a failure prints both.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use cowl_core::tree::{FileType, Rdev, Timestamp};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, ResolveFlags};

use super::super::*;
use super::seen::{assert_same, of_directory, of_overlay};
use super::{Fixture, Made, ROOT_CALLER, parent_and_name};

/// Steps on one tree: what is special about it is used up after some time.
const ROUND: u64 = 250;

struct Rng(u64);

impl Rng {
    // splitmix64
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    fn path(&mut self) -> String {
        let depth = 1 + self.below(3);
        let mut path = String::new();
        for level in 0..depth {
            if level > 0 {
                path.push('/');
            }
            let dir = level + 1 < depth || self.below(3) == 0;
            path.push_str(if dir {
                self.pick(&["d0", "d1", "d2"])
            } else {
                self.pick(&["f0", "f1", "f2", "f3"])
            });
        }
        path
    }
}

/// A file that is open on both sides.
struct Both {
    id: NodeId,
    handle: HandleId,
    plain: File,
}

struct World {
    fixture: Fixture,
    overlay: Option<Overlay>,
    plain: OwnedFd,
    open: Vec<Both>,
    log: Vec<String>,
    rng: Rng,
    profile: Profile,
    /// Paths that were there at the last check.
    there: Vec<String>,
}

fn tree() -> Fixture {
    let big = vec![3_u8; 1 << 20];
    Fixture::new(&[
        ("d0", 0o755, Made::Dir, &[]),
        ("d0/d1", 0o750, Made::Dir, &[("user.d", b"dir")]),
        ("d0/d1/f0", 0o644, Made::File(b"d0 d1 f0"), &[]),
        ("d0/d1/f1", 0o755, Made::File(b"\x7fELF program"), &[]),
        ("d0/d2", 0o755, Made::Dir, &[]),
        ("d0/f0", 0o644, Made::File(b"first"), &[("user.x", b"1")]),
        ("d0/f1", 0o600, Made::Symlink("../f0"), &[]),
        ("d0/f2", 0o644, Made::File(b""), &[]),
        ("d1", 0o2775, Made::Dir, &[]),
        ("d1/d0", 0o755, Made::Dir, &[]),
        ("d1/d0/f3", 0o600, Made::Fifo, &[]),
        ("d1/f0", 0o644, Made::Link("d0/f0"), &[]),
        ("d1/f1", 0o644, Made::Link("d0/f0"), &[]),
        ("d1/f2", 0o644, Made::Device(0, 0), &[]),
        ("d2", 0o755, Made::Dir, &[]),
        ("f0", 0o644, Made::File(b"at the root"), &[]),
        ("f1", 0o644, Made::File(&big), &[]),
        ("f2", 0o777, Made::Symlink("d0/d1/f0"), &[]),
        ("f3", 0o4755, Made::File(b"set-id"), &[]),
    ])
}

impl World {
    fn new(seed: u64, profile: Profile) -> World {
        let fixture = tree();
        let plain = File::open(fixture.path("plain")).unwrap().into();
        let overlay = Some(fixture.open_with(profile, true).unwrap());
        World {
            fixture,
            overlay,
            plain,
            open: Vec::new(),
            log: Vec::new(),
            there: Vec::new(),
            rng: Rng(seed),
            profile,
        }
    }

    fn overlay(&self) -> &Overlay {
        self.overlay.as_ref().unwrap()
    }

    /// The directory of a path on the plain side, if it is one without symbolic links.
    fn plain_parent<'p>(&self, path: &'p str) -> Option<(OwnedFd, &'p str)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or((".", path));
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let dir = rustix::fs::openat2(
            &self.plain,
            dir,
            flags,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS,
        )
        .ok()?;
        Some((dir, name))
    }

    /// What `lookup` finds, as the kernel does before most calls.
    fn find(&self, path: &str) -> Result<Entry, Errno> {
        let (dir, name) = parent_and_name(self.overlay(), path)?;
        self.overlay().lookup(dir, name)?.ok_or(Errno::NOENT)
    }

    /// One that is there, or anything.
    fn path(&mut self) -> String {
        if self.there.is_empty() || self.rng.below(3) == 0 {
            return self.rng.path();
        }
        let index = usize::try_from(self.rng.below(self.there.len() as u64)).unwrap();
        self.there[index].clone()
    }

    fn check(&mut self) {
        let plain = of_directory(&self.fixture.path("plain"));
        assert_same(&of_overlay(self.overlay()), &plain, &self.log);
        self.there = plain.into_keys().collect();
        for both in &self.open {
            let size = both.plain.metadata().unwrap().len();
            let mut theirs = vec![0; usize::try_from(size).unwrap()];
            both.plain.read_exact_at(&mut theirs, 0).unwrap();
            let mut ours = vec![0; theirs.len() + 1];
            let length = self
                .overlay()
                .read(both.id, Some(both.handle), 0, &mut ours)
                .unwrap();
            assert!(
                ours[..length] == theirs[..],
                "an open file reads otherwise; {}",
                self.last()
            );
        }
    }

    fn last(&self) -> String {
        self.log
            .iter()
            .rev()
            .take(12)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn same(&mut self, what: &str, ours: Result<(), Errno>, theirs: Result<(), Errno>) {
        self.log.push(format!("{what}: {theirs:?}"));
        assert_eq!(ours, theirs, "{}", self.last());
    }

    fn close_all(&mut self) {
        for both in std::mem::take(&mut self.open) {
            self.overlay().release(both.id, both.handle).unwrap();
        }
    }

    fn remount(&mut self) {
        self.close_all();
        self.log.push("remount".into());
        self.overlay = None;
        self.overlay = Some(self.fixture.open_with(self.profile, true).unwrap());
        assert_eq!(
            std::fs::read_dir(self.fixture.path("work/orphans"))
                .unwrap()
                .count(),
            0
        );
    }

    fn step(&mut self) {
        // The overlay leaves this thread's umask as its last request wanted it.
        crate::sys::identity::assume(own_uid(), own_gid(), 0).unwrap();
        match self.rng.below(100) {
            0..=13 => self.make(),
            14..=27 => self.remove(),
            28..=47 => self.rename(),
            48..=55 => self.link(),
            56..=71 => self.attributes(),
            72..=79 => self.xattr(),
            80..=87 => self.write(),
            88..=92 => self.open(),
            93..=96 => self.use_open(),
            97 => self.unnamed(),
            _ => {
                let path = self.path();
                self.truncate(&path);
            }
        }
    }

    fn make(&mut self) {
        let path = self.rng.path();
        let Some((plain, name)) = self.plain_parent(&path) else {
            return;
        };
        let Ok((dir, ours)) = parent_and_name(self.overlay(), &path) else {
            panic!("{path}: {}", self.last())
        };
        let mode = [0o644, 0o755, 0o600, 0o2755][usize::try_from(self.rng.below(4)).unwrap()];
        let raw = Mode::from_raw_mode(mode);
        let choice = self.rng.below(5);
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

    fn remove(&mut self) {
        // What is gone is not tried any more: let some stay.
        let path = if self.there.len() > 12 {
            self.path()
        } else {
            self.rng.path()
        };
        let Some((plain, name)) = self.plain_parent(&path) else {
            return;
        };
        let (dir, ours) = parent_and_name(self.overlay(), &path).unwrap();
        if self.rng.below(2) == 0 {
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

    fn rename(&mut self) {
        let to = if self.there.len() > 12 && self.rng.below(2) == 0 {
            self.path()
        } else {
            self.rng.path()
        };
        let from = self.path();
        let (Some((plain, name)), Some((new_plain, new_name))) =
            (self.plain_parent(&from), self.plain_parent(&to))
        else {
            return;
        };
        // The kernel itself answers for these, before a file system hears of it.
        if to.starts_with(&format!("{from}/")) || from.starts_with(&format!("{to}/")) {
            return;
        }
        let (dir, ours) = parent_and_name(self.overlay(), &from).unwrap();
        let (new_dir, new_ours) = parent_and_name(self.overlay(), &to).unwrap();
        let (mode, flags) = match self.rng.below(6) {
            0 => (RenameMode::NoReplace, RenameFlags::NOREPLACE),
            1 | 2 => (RenameMode::Exchange, RenameFlags::EXCHANGE),
            _ => (RenameMode::Replace, RenameFlags::empty()),
        };
        let result = self.overlay().rename(dir, ours, new_dir, new_ours, mode);
        let theirs = rustix::fs::renameat_with(&plain, name, &new_plain, new_name, flags);
        self.same(&format!("rename {mode:?} {from} {to}"), result, theirs);
    }

    fn link(&mut self) {
        let (from, to) = (self.path(), self.rng.path());
        let (Some((plain, name)), Some((new_plain, new_name))) =
            (self.plain_parent(&from), self.plain_parent(&to))
        else {
            return;
        };
        let theirs = rustix::fs::linkat(&plain, name, &new_plain, new_name, AtFlags::empty());
        let (dir, new) = parent_and_name(self.overlay(), &to).unwrap();
        let ours = self.find(&from).and_then(|entry| {
            // As the kernel: whether the new name is taken comes first, then whether a directory is linked.
            self.overlay().link(entry.id, dir, new).map(drop)
        });
        self.same(&format!("link {from} {to}"), ours, theirs);
    }

    fn attributes(&mut self) {
        let path = self.path();
        let Some((plain, name)) = self.plain_parent(&path) else {
            return;
        };
        let entry = self.find(&path);
        let Ok(entry) = entry else { return };
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let mut set = SetAttr::default();
        let theirs = match self.rng.below(3) {
            0 if entry.attr.file_type == FileType::Symlink => return,
            0 => {
                let mode =
                    [0o644, 0o700, 0o4755, 0o2711][usize::try_from(self.rng.below(4)).unwrap()];
                set.mode = Some(mode);
                rustix::fs::chmodat(&plain, name, Mode::from_raw_mode(mode), AtFlags::empty())
            }
            1 => {
                let (uid, gid) = if owners() {
                    (self.rng.below(3), self.rng.below(3))
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
                    secs: i64::try_from(self.rng.below(1_000_000_000)).unwrap() - 1000,
                    nanos: 5,
                };
                (set.atime, set.mtime) = (Some(SetTime::At(time)), Some(SetTime::At(time)));
                rustix::fs::utimensat(
                    &plain,
                    name,
                    &cowl_core::upper::spot::times(time, time),
                    nofollow,
                )
            }
        };
        let ours = self.overlay().setattr(entry.id, None, &set).map(drop);
        self.same(&format!("setattr {path} {set:?}"), ours, theirs);
    }

    fn truncate(&mut self, path: &str) {
        let Some((plain, name)) = self.plain_parent(path) else {
            return;
        };
        let Ok(entry) = self.find(path) else { return };
        if entry.attr.file_type != FileType::Regular {
            return;
        }
        let size = self.rng.below(20);
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let theirs = rustix::fs::openat(&plain, name, flags, Mode::empty())
            .and_then(|file| rustix::fs::ftruncate(file, size));
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        let ours = self.retry(path, |overlay, id| {
            overlay.setattr(id, None, &set).map(drop)
        });
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

    fn xattr(&mut self) {
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
        let attribute = self.rng.pick(&["user.x", "user.y", "user.overlay.opaque"]);
        let (ours, theirs) = if self.rng.below(3) == 0 {
            (
                self.overlay().removexattr(entry.id, attribute.as_bytes()),
                rustix::fs::lremovexattr(host, attribute),
            )
        } else {
            let value = self.rng.pick(&["y", "", "something"]).as_bytes();
            let (create, replace) = [(false, false), (true, false), (false, true)]
                [usize::try_from(self.rng.below(3)).unwrap()];
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

    fn write(&mut self) {
        let path = self.path();
        let Some(plain) = self.open_plain(&path, true) else {
            return;
        };
        let offset = self.rng.below(12);
        let byte = u8::try_from(self.rng.below(256)).unwrap();
        let data = [byte; 5];
        plain.write_all_at(&data, offset).unwrap();
        let ours = if self.profile == Profile::Cached {
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

    fn open(&mut self) {
        if self.profile == Profile::Cached || self.open.len() > 5 {
            return;
        }
        let path = self.path();
        let write = self.rng.below(2) == 0;
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
            // Keeps what it opened when the file is written, which is on the list of what we do otherwise.
            self.overlay().release(id, opened.handle).unwrap();
            return;
        }
        self.open.push(Both {
            id,
            handle: opened.handle,
            plain,
        });
    }

    fn use_open(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let index = usize::try_from(self.rng.below(self.open.len() as u64)).unwrap();
        if self.rng.below(3) == 0 {
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
        let attr = self.overlay().getattr(both.id, Some(both.handle)).unwrap();
        assert_eq!(
            (attr.size, u64::from(attr.nlink), attr.mode),
            (meta.len(), meta.nlink(), meta.mode() & 0o7777),
            "{}",
            self.last()
        );
        self.log.push(format!("write to open {index}"));
    }

    fn unnamed(&mut self) {
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
        if self.profile == Profile::Passthrough {
            self.overlay().release(entry.id, opened.handle).unwrap();
        }
        let lookups = 1 + u64::from(ours.is_ok());
        self.overlay().forget(entry.id, lookups);
        self.same(&format!("unnamed {path}"), ours, theirs);
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn own_gid() -> u32 {
    rustix::process::getegid().as_raw()
}

/// Whether files can be given away here: not in a user namespace of one id.
pub(super) fn owners() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    rustix::process::geteuid().is_root() && map.split_whitespace().nth(2) != Some("1")
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

fn run(profile: Profile, default_seed: u64) {
    let (steps, seed) = (
        setting("COWL_MODEL_STEPS", 2000),
        setting("COWL_MODEL_SEED", default_seed),
    );
    for round in 0..steps.div_ceil(ROUND) {
        println!("COWL_MODEL_SEED={}", seed + round);
        let mut world = World::new(seed + round, profile);
        world.check();
        for step in 1..=ROUND.min(steps) {
            world.step();
            if step % 7 == 0 || steps < 100 {
                world.check();
            }
            if world.rng.below(40) == 0 {
                world.remount();
                world.check();
            }
        }
    }
}

#[test]
fn random_operations_are_those_of_a_plain_directory_with_handles() {
    run(Profile::Passthrough, 1);
}

#[test]
fn random_operations_are_those_of_a_plain_directory_without_handles() {
    run(Profile::Cached, 1000);
}
