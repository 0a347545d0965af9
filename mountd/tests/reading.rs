//! A read-only mount of a tree, by keeper and worker: what it shows, what it costs, and how it
//! ends.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::verbose_file_reads,
    reason = "a test stops at the first surprise and builds its inputs with plain std::fs"
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use common::{Image, Mount, modes, noise};
use cowl_core::handover::{IoMode, IoModeChoice};

#[test]
fn mount_shows_the_tree() {
    let image = Image::of(&[
        ("etc/motd", b"hello\n"),
        ("usr/empty", b""),
        ("usr/share/big", &noise(3 << 20)),
    ]);
    for choice in modes() {
        let mount = image.mount(choice);
        assert_eq!(fs::read(mount.path("etc/motd")).unwrap(), b"hello\n");
        assert_eq!(fs::read(mount.path("usr/empty")).unwrap(), b"");
        assert_eq!(
            fs::read(mount.path("usr/share/big")).unwrap(),
            noise(3 << 20)
        );
        let stat = fs::symlink_metadata(mount.path("etc/motd")).unwrap();
        assert_eq!(
            (stat.mode(), stat.size(), stat.mtime(), stat.mtime_nsec()),
            (0o100_644, 6, 1_700_000_000, 123_456_789)
        );
        let mut names: Vec<_> = fs::read_dir(mount.path("usr"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["empty", "share"]);
        assert_eq!(
            fs::read(mount.path("usr/nothing")).unwrap_err().kind(),
            std::io::ErrorKind::NotFound
        );
        assert!(mount.unmount().success());
    }
    assert_eq!(
        image.log().matches("unmounted").count(),
        modes().len(),
        "{}",
        image.log()
    );
}

#[test]
fn warm_calls_cost_no_request() {
    let big = noise(4 << 20);
    let image = Image::of(&[("a/b/c", b"x"), ("a/big", &big)]);
    for choice in modes() {
        let mount = image.mount(choice);
        let work = || {
            fs::symlink_metadata(mount.path("a/b/c")).unwrap();
            assert!(fs::symlink_metadata(mount.path("a/absent")).is_err());
            assert!(
                fs::read_dir(mount.path("a"))
                    .unwrap()
                    .all(|entry| entry.is_ok())
            );
        };
        work();
        let before = mount.requests();
        (0..100).for_each(|_| work());
        assert_eq!(mount.requests() - before, 0, "{choice:?}");

        fs::read(mount.path("a/b/c")).unwrap();
        // A RELEASE may come late, so it is left out; there is one for each OPEN.
        let asked = || {
            let counts = mount.counts();
            let of = |name| {
                counts
                    .iter()
                    .filter(|(kind, _)| *kind == name)
                    .map(|(_, count)| count)
                    .sum::<u64>()
            };
            let all: u64 = counts.iter().map(|(_, count)| count).sum();
            (of("OPEN"), all - of("OPEN") - of("RELEASE"))
        };
        let (opens, others) = asked();
        (0..100).for_each(|_| drop(fs::read(mount.path("a/b/c")).unwrap()));
        let expected = match mount.io_mode {
            IoMode::Passthrough => 100,
            IoMode::Cached | IoMode::Writeback => 0,
        };
        assert_eq!(asked(), (opens + expected, others), "{:?}", mount.counts());
    }
}

#[test]
fn read_of_a_large_file_is_passed_through() {
    let big = noise(4 << 20);
    let image = Image::of(&[("big", &big)]);
    for choice in modes() {
        let mount = image.mount(choice);
        assert_eq!(mount.io_mode, choice.mode());
        let file = File::open(mount.path("big")).unwrap();
        let mut bytes = vec![0; big.len()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == big);
        if mount.io_mode == IoMode::Passthrough {
            assert_eq!((mount.count("OPEN"), mount.count("READ")), (1, 0));
        } else {
            assert!(mount.count("READ") >= 4, "{:?}", mount.counts());
        }
    }
}

#[test]
fn unmount_releases_the_lease() {
    let image = Image::of(&[("x", b"y")]);
    assert!(!image.is_leased());
    let mount = image.mount(IoModeChoice::Auto);
    assert!(image.is_leased());
    assert!(mount.unmount().success());
    assert!(!image.is_leased());
}

/// Workers that die one after the other: an end is better than a mount that is never there.
#[test]
fn mount_whose_workers_die_again_and_again_is_cut_off_and_says_so() {
    for choice in modes() {
        let image = Image::of(&[("x", b"y")]);
        let mut mount = image.mount(choice);
        while mount.keeper.try_wait().unwrap().is_none() {
            mount.kill_worker();
        }
        assert_eq!(mount.keeper.wait().unwrap().code(), Some(1));
        assert_eq!(
            fs::read(mount.path("x")).unwrap_err().raw_os_error(),
            Some(libc::ENOTCONN)
        );
        assert!(!image.is_leased());
        let log = image.log();
        let last = log.lines().last().unwrap();
        // Where 33 take more than a minute, more follow.
        assert!(
            last.contains("the worker died (signal: 9")
                && last.contains("too many have died within a minute"),
            "{log}"
        );
        assert!(last.contains("the mount is cut off"), "{log}");
        let count = log.matches("another one serves on").count();
        assert!(count >= 32, "{log}");
    }
}

#[test]
fn mount_of_an_invalid_tree_fails_in_one_line() {
    let image = Image::of(&[("x", b"y")]);
    fs::write(image.path("tree"), "not a tree").unwrap();
    let error = image.refusal(IoModeChoice::Auto, None);
    assert!(error.starts_with("cannot open the merged tree"), "{error}");
    assert!(!error.contains('\n'));
    assert!(!image.is_leased());
}

#[test]
fn keeper_and_worker_inherit_no_descriptors() {
    let image = Image::of(&[("x", b"y")]);
    // As a careless parent would leave it open.
    let stray = File::open("/etc/passwd").unwrap();
    rustix::io::fcntl_setfd(&stray, rustix::io::FdFlags::empty()).unwrap();
    let mount = image.mount(IoModeChoice::Auto);
    for (process, most) in [(mount.worker, 10), (mount.keeper.id(), 9)] {
        let open = Mount::descriptors(process);
        assert!(
            open.len() <= most && !open.iter().any(|target| target.ends_with("passwd")),
            "{open:?}"
        );
    }
    assert!(mount.unmount().success());
}
