//! Random operations on an overlay and, with ordinary system calls, on a plain directory made from
//! the same tree: every operation must give the same errno, and the trees must look the same in
//! everything a program can see. In between the overlay is dropped and opened again on the same
//! upper.
//!
//! `COWL_TEST_SEED` moves the seeds, `COWL_TEST_SCALE` makes the programs more; a failure prints
//! the command that runs its program again. By default it is a hundred thousand steps in all, over
//! two I/O modes with and without privilege.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use cowl_tests::random::Random;
use cowl_tests::sample::seeds;
use rustix::fs::{OFlags, ResolveFlags};

use super::super::*;
use super::view::{assert_same, of_directory, of_overlay};
use super::{Fixture, ItemKind, parent_and_name};

/// What is below the upper.
#[derive(Copy, Clone, Debug)]
pub(super) enum Over {
    Tree,
    Layers,
}

/// Steps on one tree: what is special about it is used up after some time.
const ROUND: u64 = 250;

/// A path of up to three names, of few that there are.
pub(super) fn random_path(random: &mut Random) -> String {
    let depth = 1 + random.below(3);
    let mut path = String::new();
    for level in 0..depth {
        if level > 0 {
            path.push('/');
        }
        let dir = level + 1 < depth || random.below(3) == 0;
        path.push_str(if dir {
            random.pick(&["d0", "d1", "d2"])
        } else {
            random.pick(&["f0", "f1", "f2", "f3"])
        });
    }
    path
}

/// A file that is open on both sides.
pub(super) struct Both {
    pub(super) id: NodeId,
    pub(super) handle: HandleId,
    pub(super) plain: File,
}

pub(super) struct World {
    pub(super) fixture: Fixture,
    pub(super) overlay: Option<Overlay>,
    pub(super) plain: OwnedFd,
    pub(super) open: Vec<Both>,
    pub(super) log: Vec<String>,
    pub(super) random: Random,
    pub(super) io_mode: IoMode,
    /// Paths that were there at the last check.
    pub(super) there: Vec<String>,
}

fn lower(over: Over) -> Fixture {
    let big = vec![3_u8; 1 << 20];
    let mut items: Vec<super::Item<'_>> = vec![
        ("d0", 0o755, ItemKind::Dir, &[]),
        ("d0/d1", 0o750, ItemKind::Dir, &[("user.d", b"dir")]),
        ("d0/d1/f0", 0o644, ItemKind::File(b"d0 d1 f0"), &[]),
        ("d0/d1/f1", 0o755, ItemKind::File(b"\x7fELF program"), &[]),
        ("d0/d2", 0o755, ItemKind::Dir, &[]),
        (
            "d0/f0",
            0o644,
            ItemKind::File(b"first"),
            &[("user.x", b"1")],
        ),
        ("d0/f1", 0o600, ItemKind::Symlink("../f0"), &[]),
        ("d0/f2", 0o644, ItemKind::File(b""), &[]),
        ("d1", 0o2775, ItemKind::Dir, &[]),
        ("d1/d0", 0o755, ItemKind::Dir, &[]),
        ("d1/d0/f3", 0o600, ItemKind::Fifo, &[]),
        ("d1/f0", 0o644, ItemKind::Link("d0/f0"), &[]),
        ("d1/f1", 0o644, ItemKind::Link("d0/f0"), &[]),
        ("d1/f2", 0o644, ItemKind::Device(0, 0), &[]),
        ("d2", 0o755, ItemKind::Dir, &[]),
        ("f0", 0o644, ItemKind::File(b"at the root"), &[]),
        ("f1", 0o644, ItemKind::File(&big), &[]),
        ("f2", 0o777, ItemKind::Symlink("d0/d1/f0"), &[]),
        ("f3", 0o4755, ItemKind::File(b"set-id"), &[]),
    ];
    match over {
        Over::Tree => Fixture::new(&items),
        Over::Layers => {
            // In a layer it is a whiteout.
            items.retain(|(_, _, kind, _)| !matches!(kind, ItemKind::Device(0, 0)));
            Fixture::over_layers(&items)
        }
    }
}

impl World {
    fn new(seed: u64, over: Over, io_mode: IoMode) -> World {
        let fixture = lower(over);
        let plain = File::open(fixture.path("plain")).unwrap().into();
        let overlay = Some(fixture.open_with(io_mode, true).unwrap());
        World {
            fixture,
            overlay,
            plain,
            open: Vec::new(),
            log: Vec::new(),
            there: Vec::new(),
            random: Random::new(seed),
            io_mode,
        }
    }

    pub(super) fn overlay(&self) -> &Overlay {
        self.overlay.as_ref().unwrap()
    }

    /// The directory of a path on the plain side, if it is one without symbolic links.
    pub(super) fn plain_parent<'p>(&self, path: &'p str) -> Option<(OwnedFd, &'p str)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or((".", path));
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let dir =
            cowl_sys::open::openat2(&self.plain, dir, flags, ResolveFlags::NO_SYMLINKS).ok()?;
        Some((dir, name))
    }

    /// What `lookup` finds, as the kernel does before most calls.
    pub(super) fn find(&self, path: &str) -> Result<Entry, Errno> {
        let (dir, name) = parent_and_name(self.overlay(), path)?;
        self.overlay().lookup(dir, name)?.ok_or(Errno::NOENT)
    }

    /// One that is there, or anything.
    pub(super) fn path(&mut self) -> String {
        if self.there.is_empty() || self.random.below(3) == 0 {
            return random_path(&mut self.random);
        }
        self.random.pick(&self.there)
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

    pub(super) fn last(&self) -> String {
        self.log
            .iter()
            .rev()
            .take(12)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    }

    pub(super) fn same(&mut self, what: &str, ours: Result<(), Errno>, theirs: Result<(), Errno>) {
        self.log.push(format!("{what}: {theirs:?}"));
        assert_eq!(ours, theirs, "{}", self.last());
    }

    /// What the layers of a plain lower look like.
    fn lowers(&self) -> Vec<super::view::Tree> {
        let layers = ["lower0", "lower1"].map(|name| self.fixture.path(name));
        let layers = layers.iter().filter(|layer| layer.exists());
        layers.map(|layer| of_directory(layer)).collect()
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
        self.overlay = Some(self.fixture.open_with(self.io_mode, true).unwrap());
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
        match self.random.below(100) {
            0..=13 => self.make(),
            14..=27 => self.remove(),
            28..=47 => self.rename(),
            48..=55 => self.link(),
            56..=71 => self.attributes(),
            72..=79 if !super::marks_are_links() => self.xattr(),
            72..=87 => self.write(),
            88..=92 => self.open(),
            93..=96 => self.use_open(),
            97 => self.unnamed(),
            _ => {
                let path = self.path();
                self.truncate(&path);
            }
        }
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

/// Steps that a test takes, before the scale.
const STEPS: u64 = 25_000;

fn run(over: Over, io_mode: IoMode) {
    for point in seeds(STEPS / ROUND) {
        let mut world = World::new(point.number(), over, io_mode);
        let before = world.lowers();
        world.check();
        for step in 1..=ROUND {
            world.step();
            if step % 7 == 0 {
                world.check();
            }
            if world.random.below(40) == 0 {
                world.remount();
                world.check();
            }
        }
        assert_eq!(world.lowers(), before, "a lower layer changed");
    }
}

#[test]
fn random_operations_match_a_plain_directory_with_handles() {
    run(Over::Tree, IoMode::Passthrough);
}

#[test]
fn random_operations_match_a_plain_directory_without_handles() {
    run(Over::Tree, IoMode::Cached);
}

#[test]
fn random_operations_match_a_plain_directory_over_layers_with_handles() {
    run(Over::Layers, IoMode::Passthrough);
}

#[test]
fn random_operations_match_a_plain_directory_over_layers_without_handles() {
    run(Over::Layers, IoMode::Cached);
}

#[test]
fn random_operations_match_a_plain_directory_where_whiteouts_are_files() {
    let tests = ["with_handles", "over_layers_without_handles"].map(|test| {
        format!("overlay::tests::model::random_operations_match_a_plain_directory_{test}")
    });
    super::run_on_overlayfs(&["--exact", &tests[0], &tests[1]]);
}

#[test]
fn random_operations_match_a_plain_directory_where_marks_are_links() {
    let tests = ["with_handles", "over_layers_without_handles"].map(|test| {
        format!("overlay::tests::model::random_operations_match_a_plain_directory_{test}")
    });
    super::run_on_ramfs(&["--exact", &tests[0], &tests[1]]);
}
