//! `kill -9` of the process that serves a mount.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cowl_tests::command::shell;
use cowl_tests::profile::{processes, root, user};
use cowl_tests::tree::{assert_same, read};
use rustix::process::{Pid, Signal, kill_process};

use super::{Place, STACK};

const KILLS: u64 = 10;

/// The process that serves the only mount, once it does: the child of the one that holds it.
fn serving() -> Option<Pid> {
    let ours = processes();
    let mut ours = ours
        .iter()
        .filter(|(_, line)| line.contains("--serve"))
        .map(|(pid, _)| *pid);
    ours.find(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The parent is the second field behind the name (proc_pid_stat(5)).
        let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        rest.split(' ').nth(1).is_some_and(|parent| parent != "1")
    })
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

/// Kills the serving process, each time after another round of the client, somewhere within one.
fn kill_again_and_again(rounds: &AtomicU64, over: &AtomicBool) {
    let mut killed = 0;
    while killed < KILLS && !over.load(Ordering::Relaxed) {
        let before = rounds.load(Ordering::Relaxed);
        // What was under way at a death is done before the next one.
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
