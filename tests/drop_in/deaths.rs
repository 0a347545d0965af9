//! `kill -9` of the process that serves a mount.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use cowl_tests::command::shell;
use cowl_tests::profile::{NEVER, processes, root, user};
use cowl_tests::tree::{assert_same, read};
use rustix::process::{Pid, Signal, kill_process};

use super::{Place, STACK};

const KILLS: u64 = 10;

/// The processes of the only mount: the one that holds it, and its child that serves it, if there
/// is one at the moment.
fn holding_and_serving() -> (Pid, Option<Pid>) {
    let found = processes().into_iter();
    let ours = found.filter(|(_, line)| line.contains("--serve"));
    let (holding, serving): (Vec<_>, Vec<_>) = ours.map(|(pid, _)| pid).partition(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The parent is the second field behind the name (proc_pid_stat(5)).
        let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        rest.split(' ').nth(1) == Some("1")
    });
    (holding[0], serving.first().copied())
}

fn serving() -> Option<Pid> {
    holding_and_serving().1
}

/// Reads, creates, renames, appends and unlinks until it is over.
fn change(root: &Path, rounds: impl IntoIterator<Item = u64>) {
    let at = |name: String| root.join(name);
    let mut kept = File::open(root.join("kept")).unwrap();
    for round in rounds {
        let (new, renamed) = (format!("new{round}"), format!("dir/sub/renamed{round}"));
        fs::write(at(new.clone()), format!("made in round {round}")).unwrap();
        fs::rename(at(new.clone()), at(renamed.clone())).unwrap();
        let mut appended = File::options().append(true).open(at("both/file".into()));
        let appended = appended.as_mut().unwrap();
        writeln!(appended, "{round}").unwrap();
        assert!(!at(new).exists());
        let large = fs::read_to_string(at("large".into())).unwrap();
        assert!(large.ends_with("\n30000\n"));
        if let Some(before) = round.checked_sub(5) {
            let removed = at(format!("dir/sub/renamed{before}"));
            let mut open = File::open(&removed).unwrap();
            fs::remove_file(removed).unwrap();
            let mut text = String::new();
            open.read_to_string(&mut text).unwrap();
            assert_eq!(text, format!("made in round {before}"));
        }
        assert_eq!(kept.metadata().unwrap().len(), 5);
    }
    let mut text = String::new();
    kept.read_to_string(&mut text).unwrap();
    assert_eq!(text, "kept\n");
}

/// Kills the serving process repeatedly, each time at some point of another round of the client.
fn kill_again_and_again(rounds: &AtomicU64, over: &AtomicBool) {
    let mut killed = 0;
    while killed < KILLS && !over.load(Ordering::Relaxed) {
        let before = rounds.load(Ordering::Relaxed);
        // Requests in progress at a death are finished before the next one.
        while rounds.load(Ordering::Relaxed) < before + 2 && !over.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
        (0..killed * 10_000).for_each(|_| std::hint::spin_loop());
        killed += u64::from(serving().is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok()));
    }
    over.store(true, Ordering::Relaxed);
}

fn no_client_notices(options: &str) {
    let place = Place::with_layers("place");
    place.ours(STACK);
    shell::<&str>(&place.path, "cp -a mnt plain", []);
    place.unmount();
    place.ours(options);
    let (rounds, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let mount = place.at("mnt");
    std::thread::scope(|scope| {
        scope.spawn(|| kill_again_and_again(&rounds, &over));
        let until_over = std::iter::from_fn(|| {
            let round = rounds.fetch_add(1, Ordering::Relaxed);
            (!over.load(Ordering::Relaxed)).then_some(round)
        });
        let client = || change(&mount, until_over);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(client));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    let done = rounds.into_inner() - 1;
    let plain = place.at("plain");
    change(&plain, 0..done);
    let expected = read(&plain);
    assert_same(&expected, &read(&mount), "under the kills");
    place.unmount();
    fs::remove_dir_all(place.at("work/work")).unwrap_or(());
    place.ours(STACK);
    assert_same(&expected, &read(&mount), "after a remount");
    place.unmount();
    for left in ["orphans", "tmp"] {
        let left = place.at("work").join(left);
        assert_eq!(fs::read_dir(left).unwrap().count(), 0);
    }
}

#[test]
fn no_client_notices_that_the_serving_process_is_killed_as_root() {
    root(|| no_client_notices(STACK));
}

#[test]
fn no_client_notices_that_the_serving_process_is_killed_as_user() {
    user(|| no_client_notices(STACK));
}

#[test]
fn a_volatile_mount_outlives_its_serving_process_as_root() {
    root(|| no_client_notices(&format!("{STACK},volatile,io=writeback")));
}

#[test]
fn a_mount_without_an_upper_outlives_its_serving_process_as_root() {
    root(|| {
        let place = Place::with_layers("place");
        place.ours("lowerdir=top:middle:bottom");
        let met = ["both", "dir/sub", "opaque"].map(|name| place.at("mnt").join(name));
        let mut open = File::open(place.at("mnt/large")).unwrap();
        for directory in met {
            let known = fs::metadata(&directory).unwrap().ino();
            kill_process(serving().unwrap(), Signal::KILL).unwrap();
            assert_eq!(fs::metadata(&directory).unwrap().ino(), known);
            assert!(fs::read_dir(&directory).unwrap().count() > 0);
        }
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("\n30000\n"));
        drop(open);
        let shown = place.shown();
        place.unmount();
        place.ours(STACK);
        assert_same(&place.shown(), &shown, "after the deaths");
        place.unmount();
    });
}

/// The descriptors that a worker over three layers always has open; it caches some directories and
/// files below.
const OPEN: [&str; 8] = [
    "/",
    "/",
    "/",
    "/dev/fuse",
    "/dev/null",
    "/dev/null",
    "/dev/null",
    "/memfd:cowl-journal (deleted)",
];

fn open_files(process: Pid) -> Vec<String> {
    let Ok(files) = fs::read_dir(format!("/proc/{process}/fd")) else {
        return Vec::new();
    };
    // A descriptor closed meanwhile does not count.
    let files = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    let mut files: Vec<_> = files.map(|file| file.display().to_string()).collect();
    files.retain(|file| !file.starts_with("/dir") && !file.contains("/work/place/"));
    files.sort();
    files
}

/// Waits until a process has exactly these files open; returns its privileges and its root.
fn settled(process: impl Fn() -> Option<Pid>, files: &[&str]) -> (Vec<String>, PathBuf) {
    let limit = Instant::now() + NEVER;
    let process = loop {
        let found = process();
        let open = found.map(open_files);
        match found {
            Some(pid) if open.as_ref().is_some_and(|open| open == files) => break pid,
            _ => assert!(Instant::now() < limit, "{open:?}"),
        }
        std::thread::yield_now();
    };
    let about = Path::new("/proc").join(process.to_string());
    let status = fs::read_to_string(about.join("status")).unwrap();
    let rights = status
        .lines()
        .filter(|line| line.starts_with("Cap") || line.starts_with("NoNewPrivs"));
    let mounts = fs::read_link(about.join("ns/mnt")).unwrap();
    (rights.map(str::to_owned).collect(), mounts)
}

#[test]
fn a_successor_has_the_rights_and_files_of_the_first_worker_as_root() {
    root(|| {
        let place = Place::with_layers("place");
        place.ours(STACK);
        let holding = holding_and_serving().0;
        let of_holding = [&OPEN[..], &["/memfd:cowl-requests (deleted)"]].concat();
        let (rights, _) = settled(serving, &OPEN);
        for _ in 0..2 {
            let (held, mounts) = settled(|| Some(holding), &of_holding);
            assert!(held.contains(&"CapEff:\t0000000000000000".to_owned()));
            assert_ne!(mounts, fs::read_link("/proc/self/ns/mnt").unwrap());
            let killed = serving();
            kill_process(killed.unwrap(), Signal::KILL).unwrap();
            let successor = || serving().filter(|pid| Some(*pid) != killed);
            assert_eq!(settled(successor, &OPEN), (rights.clone(), mounts));
        }
        place.unmount();
    });
}

#[test]
fn a_mount_goes_on_without_the_process_that_holds_it_as_root() {
    root(|| {
        let place = Place::with_layers("place");
        place.ours(STACK);
        kill_process(holding_and_serving().0, Signal::KILL).unwrap();
        fs::write(place.at("mnt/new"), "new").unwrap();
        assert_eq!(
            fs::read_to_string(place.at("mnt/both/top")).unwrap(),
            "top\n"
        );
        place.unmount();
        assert_eq!(fs::read_to_string(place.at("upper/new")).unwrap(), "new");
    });
}
