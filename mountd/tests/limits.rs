//! What a mount does when processes die and descriptors run out, and that it keeps nothing of what
//! it did.
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

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;

use common::{Image, Mount, eventually, modes, noise, read_all};
use cowl_core::handover::IoModeChoice;
use cowl_tests::profile::{NEVER, readable};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, kill_process, pidfd_open, prlimit,
};

fn pid(number: u32) -> Pid {
    Pid::from_raw(number.try_into().unwrap()).unwrap()
}

fn descriptors(mount: &Mount) -> usize {
    Mount::descriptors(mount.worker).len()
}

#[test]
fn killing_the_keeper_keeps_the_mount_and_its_lease() {
    let image = Image::of(&[("x", b"y")]);
    let mut mount = image.mount(IoModeChoice::Cached);
    let worker = pidfd_open(pid(mount.worker), PidfdFlags::empty()).unwrap();
    kill_process(pid(mount.keeper.id()), Signal::KILL).unwrap();
    mount.keeper.wait().unwrap();
    assert_eq!(fs::read(mount.path("x")).unwrap(), b"y");
    assert!(image.is_leased());
    drop(mount.root.take());
    // The worker ends when nothing is mounted any more.
    assert!(readable(&worker, NEVER));
    assert!(!image.is_leased());
}

/// How often each thread that reads requests has blocked, if each of them waits for one now: in
/// read(2), by the number of the system call (proc_pid_syscall(5)).
fn idle_threads(mount: &Mount) -> Option<BTreeMap<String, u64>> {
    let tasks = fs::read_dir(format!("/proc/{}/task", mount.worker)).unwrap();
    let mut idle = BTreeMap::new();
    for task in tasks {
        let task = task.unwrap();
        let read = |name| fs::read_to_string(task.path().join(name)).ok();
        // One that has ended does not count.
        let (Some(name), Some(call), Some(status)) =
            (read("comm"), read("syscall"), read("status"))
        else {
            continue;
        };
        if name != "fuse\n" {
            continue;
        }
        // It says "running" of a thread that does.
        let number: libc::c_long = call.split_whitespace().next()?.parse().ok()?;
        if number != libc::SYS_read {
            return None;
        }
        let blocked = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let thread = task.file_name().into_string().unwrap();
        idle.insert(thread, blocked?.trim().parse().unwrap());
    }
    Some(idle)
}

/// The threads once each of them waits for a request, and the two that stay do. A thread has its
/// name when it has begun.
fn once_idle(mount: &Mount) -> BTreeMap<String, u64> {
    let mut idle = None;
    assert!(eventually(|| {
        idle = idle_threads(mount);
        idle.as_ref().is_some_and(|idle| idle.len() > 1)
    }));
    idle.unwrap()
}

/// A request that comes while all threads wait wakes the one that has waited longest.
#[test]
fn requests_of_one_client_wake_threads_in_turn() {
    let image = Image::of(&[("x", b"y")]);
    let mount = image.mount(IoModeChoice::Auto);
    let before = once_idle(&mount);
    for number in 0..200 {
        assert!(fs::symlink_metadata(mount.path(&format!("absent-{number}"))).is_err());
        once_idle(&mount);
    }
    let woken: Vec<u64> = once_idle(&mount)
        .iter()
        .map(|(thread, now)| now - before.get(thread).unwrap_or(&0))
        .collect();
    // One that looks for the next request before it sleeps is not woken for that.
    let (fewest, most) = (woken.iter().min().unwrap(), woken.iter().max().unwrap());
    assert!(fewest * 10 >= most * 8 && *most > 0, "{woken:?}");
}

/// What was closed last is still on its way to the worker then.
#[test]
fn unmount_amid_requests_is_not_an_abort() {
    let image = Image::of(&[("x", b"y")]);
    for round in 0..150 {
        let mount = image.mount(IoModeChoice::Auto);
        let files: Vec<File> = (0..100)
            .map(|_| File::open(mount.path("x")).unwrap())
            .collect();
        drop(files);
        assert!(mount.unmount().success(), "{round}: {}", image.log());
    }
}

#[test]
fn file_operations_leak_no_descriptors() {
    let image = Image::of(&[("d/a", b"a"), ("d/b", b"b"), ("e/c", b"c")]);
    for choice in modes() {
        let mount = image.mount_writable(choice, choice.name());
        let work = |round: u32| {
            for number in 0..50 {
                let name = mount.path(&format!("d/new-{round}-{number}"));
                fs::write(&name, "new").unwrap();
                fs::read(&name).unwrap();
                fs::rename(&name, mount.path("e/moved")).unwrap();
                fs::remove_file(mount.path("e/moved")).unwrap();
                assert!(
                    fs::read_dir(mount.path("d"))
                        .unwrap()
                        .all(|entry| entry.is_ok())
                );
                assert!(File::open(mount.path("absent")).is_err());
            }
        };
        work(0);
        let before = descriptors(&mount);
        (1..10).for_each(work);
        // Removed files are on their way to be forgotten, and the threads that this took end after
        // a pause.
        assert!(
            eventually(|| descriptors(&mount) <= before),
            "{before} became {}",
            descriptors(&mount)
        );
        assert!(mount.unmount().success());
    }
}

/// A client's open files are none of the worker's: its own limit counts, not the worker's.
#[test]
fn open_files_exceed_the_workers_limit() {
    const FILES: usize = 400;
    let names: Vec<String> = (0..FILES)
        .map(|number| format!("d/file-{number}"))
        .collect();
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .map(|name| (name.as_str(), &b"content"[..]))
        .collect();
    let image = Image::of(&files);
    for choice in modes() {
        let mount = image.mount_writable(choice, choice.name());
        let few = Rlimit {
            current: Some(60),
            maximum: Some(60),
        };
        prlimit(Some(pid(mount.worker)), Resource::Nofile, few).unwrap();
        let read: Vec<File> = names
            .iter()
            .map(|name| File::open(mount.path(name)).unwrap())
            .collect();
        let written: Vec<File> = (0..FILES)
            .map(|number| {
                fs::create_dir(mount.path(&format!("new-{number}"))).unwrap();
                let mut file = File::create_new(mount.path(&format!("new-{number}/f")))
                    .unwrap_or_else(|error| panic!("{choice}, {number}: {error}\n{}", image.log()));
                file.write_all(b"written").unwrap();
                file
            })
            .collect();
        for mut file in read {
            assert_eq!(read_all(&mut file), b"content");
        }
        for (number, mut file) in written.into_iter().enumerate() {
            file.write_all(b" again").unwrap();
            file.sync_all().unwrap();
            let name = mount.path(&format!("new-{number}/f"));
            assert_eq!(fs::read(&name).unwrap(), b"written again");
            fs::remove_file(&name).unwrap();
            file.write_all(b" and removed").unwrap();
            assert_eq!(file.metadata().unwrap().len(), 25);
        }
        assert!(mount.unmount().success(), "{}", image.log());
    }
}

/// Memory that is the worker's alone and not a file's, in KiB.
fn private(mount: &Mount) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", mount.worker)).unwrap();
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// As a caller's `ulimit -f` would be where the worker may not raise it.
#[test]
fn write_beyond_the_workers_rlimit_fsize_fails_with_efbig() {
    let image = Image::of(&[
        ("small", b"small"),
        ("large", &noise(2 << 20)),
        ("untouched", b"untouched"),
    ]);
    let mount = image.mount_writable(IoModeChoice::Cached, "upper");
    let short = Rlimit {
        current: Some(100 << 10),
        maximum: Some(100 << 10),
    };
    prlimit(Some(pid(mount.worker)), Resource::Fsize, short).unwrap();
    for name in ["small", "large", "new"] {
        let append = |name| -> std::io::Result<()> {
            let mut options = File::options();
            let mut file = options.create(true).append(true).open(mount.path(name))?;
            file.write_all(&noise(1 << 20))?;
            file.sync_all()
        };
        let error = append(name).unwrap_err().raw_os_error();
        assert_eq!(error, Some(libc::EFBIG), "{name}");
    }
    assert_eq!(fs::read(mount.path("untouched")).unwrap(), b"untouched");
    fs::write(mount.path("other"), "other").unwrap();
    assert!(mount.unmount().success(), "{}", image.log());
}

#[test]
fn buffers_of_large_writes_are_freed() {
    let image = Image::of(&[]);
    let mount = image.mount_writable(IoModeChoice::Cached, "upper");
    let idle = private(&mount);
    let content = noise(64 << 20);
    std::thread::scope(|scope| {
        for name in ["a", "b", "c", "d"] {
            let path = mount.path(name);
            scope.spawn(|| {
                fs::write(&path, &content).unwrap();
                assert!(fs::read(path).unwrap() == content);
            });
        }
    });
    assert!(
        eventually(|| private(&mount) < idle + 512),
        "{idle} KiB became {}",
        private(&mount)
    );
}

#[test]
fn worker_memory_stays_small_over_a_walk() {
    let image = Image::build(|builder, objects| {
        for number in 0..100_000 {
            objects.add_file(
                builder,
                &format!("d-{}/f-{number}", number / 100),
                b"",
                0o644,
            );
        }
    });
    let mount = image.mount_writable(IoModeChoice::Auto, "upper");
    let idle = private(&mount);
    assert!(idle < 1536, "{idle} KiB idle");
    let mut seen = 0;
    for directory in fs::read_dir(mount.path("")).unwrap() {
        for file in fs::read_dir(directory.unwrap().path()).unwrap() {
            assert_eq!(file.unwrap().metadata().unwrap().len(), 0);
            seen += 1;
        }
    }
    assert_eq!(seen, 100_000);
    let walked = private(&mount);
    eprintln!("{idle} KiB idle, {walked} KiB after a walk over {seen} files");
    assert!(walked < idle + 4096, "{idle} KiB became {walked}");
}
