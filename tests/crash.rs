//! `cowl load`, `rmi`, `gc` and `commit` may be killed at any system call: the store is then
//! consistent, the same command succeeds when repeated, and the images are the right ones.
//!
//! strace delivers SIGKILL at the n-th system call of each thread, for a sample of all n
//! (`harness/sample.rs`).

use std::fs;
use std::path::Path;
use std::process::Command;

use cowl_tests::command::{Outcome, program, run, shell};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::sample::{is_repeated, strided};
use cowl_tests::store::{Store, extract, make_image};
use cowl_tests::tree::{Tree, read};

/// Every k-th system call is killed at; k is odd, so that it hits both calls of repeated pairs.
const STRIDE: u64 = 5;
/// A removal reads 256 directories, with the same calls each.
const REMOVAL_STRIDE: u64 = 23;

/// Two layers with enough kinds of files to cover every part of an import, but few enough to repeat
/// it often.
const CONTENT: &str = r"
mkdir -p one/dir one/etc two/dir
for i in 1 2 3 4 5; do head -c $((i * 20000)) /bin/bash > one/dir/$i; done
ln one/dir/1 one/linked; ln -s dir/1 one/soft; : > one/empty; setfattr -n user.x -v y one/etc
: > two/dir/.wh.2; echo new > two/dir/new; cp one/dir/3 two/dir/same
for layer in one two; do tar -c -f $layer.tar --format=posix --xattrs --sort=name -C $layer .; done
";

fn load_killed_at_any_system_call_leaves_a_clean_store() {
    let place = directory();
    shell(&place, CONTENT, [""; 0]);
    let (one, two) = (place.join("one.tar"), place.join("two.tar"));
    let archive = place.join("image.tar");
    let options = ["--compress", "gzip"];
    make_image("docker", &archive, "image:1", &options, &[&one, &two]);
    let expected = extract(&place.join("plain"), [&one, &two]);

    let kills = killed_at(STRIDE, |at| {
        let store = Store::new("store");
        let mut load = store.command(["load", "-i"]);
        let outcome = run_and_die(load.arg(&archive), at);
        if outcome.code() == 137 {
            survives(&store, &archive, &expected, at);
        }
        fs::remove_dir_all(store.root()).unwrap();
        outcome
    });
    println!("{kills}");
}

fn removal_killed_at_any_system_call_leaves_a_clean_store() {
    let place = directory();
    shell(&place, CONTENT, [""; 0]);
    let full = Store::new("full");
    for (image, layer) in [("gone:1", "one.tar"), ("image:1", "two.tar")] {
        let layer = place.join(layer);
        full.ok(["import".as_ref(), layer.as_path(), image.as_ref()]);
    }
    let expected = extract(&place.join("plain"), [place.join("two.tar")]);

    let kills = killed_at(REMOVAL_STRIDE, |at| {
        shell(&place, "cp -a full store", [""; 0]);
        let store = Store::new("store");
        let outcome = run_and_die(&store.command(["rmi", "gone:1"]), at);
        if outcome.code() == 137 {
            is_clean_after_removal(&store, &expected, at);
        }
        fs::remove_dir_all(store.root()).unwrap();
        outcome
    });
    println!("{kills}");
}

fn gc_killed_at_any_system_call_leaves_a_clean_store() {
    let place = directory();
    shell(&place, CONTENT, [""; 0]);
    let full = Store::new("full");
    for (image, layer) in [("gone:1", "one.tar"), ("image:1", "two.tar")] {
        let layer = place.join(layer);
        full.ok(["import".as_ref(), layer.as_path(), image.as_ref()]);
    }
    shell(full.root(), "rm refs/*gone*", [""; 0]);
    let expected = extract(&place.join("plain"), [place.join("two.tar")]);

    let kills = killed_at(REMOVAL_STRIDE, |at| {
        shell(&place, "cp -a full store", [""; 0]);
        let store = Store::new("store");
        let outcome = run_and_die(&store.command(["gc"]), at);
        let what = format!("after a kill at system call {at}");
        store.ok(["check", "--deep"]);
        store.assert_shows("image:1", &expected, &what);
        store.ok(["gc"]);
        let left = shell(store.root(), "find trash tmp -mindepth 1", [""; 0]);
        assert_eq!(left, "", "{what}");
        // Garbage of each kind: objects, trees, merged trees and configurations.
        let kept = shell(
            store.root(),
            "ls layers merged blobs/sha256 | grep -c -E '^[0-9a-f]{64}'",
            [""; 0],
        );
        assert_eq!(kept, "3\n", "{what}");
        store.ok(["check", "--deep"]);
        fs::remove_dir_all(store.root()).unwrap();
        outcome
    });
    println!("{kills}");
}

/// What is done below a mount, and committed.
const CHANGES: &str = r"
echo changed >> dir/2; rm dir/4; mkdir fresh; cp dir/5 fresh/copy; mv dir moved; ln moved/1 again
";

fn commit_killed_at_any_system_call_leaves_a_clean_store() {
    let place = directory();
    shell(&place, CONTENT, [""; 0]);
    let full = Store::new("full");
    let layer = place.join("one.tar");
    full.ok(["import".as_ref(), layer.as_path(), "image:1".as_ref()]);
    let mount = full.mount_upper("image:1", "seen");
    shell(mount.path(), CHANGES, [""; 0]);
    let expected = read(mount.path());
    mount.unmount();
    let before = extract(&place.join("plain"), [layer]);

    let kills = killed_at(STRIDE, |at| {
        shell(
            &place,
            "cp -a full store; cp -a seen.upper upper; cp -a seen.upper.work upper.work",
            [""; 0],
        );
        let store = Store::new("store");
        let upper = place.join("upper");
        let [verb, option, image, new] = ["commit", "--upper", "image:1", "new:1"].map(Path::new);
        let arguments = [verb, option, &upper, image, new];
        let outcome = run_and_die(&store.command(arguments), at);
        let what = format!("after a kill at system call {at}");
        store.ok(["check", "--deep"]);
        store.assert_shows("image:1", &before, &what);
        if !store.ok(["images", "-q", "new"]).is_empty() {
            store.assert_shows("new:1", &expected, &what);
        }
        store.ok(arguments);
        store.assert_shows("new:1", &expected, &format!("{what} and a second commit"));
        store.ok(["check", "--deep"]);
        shell(&place, "rm -r store upper upper.work", [""; 0]);
        outcome
    });
    println!("{kills}");
}

fn is_clean_after_removal(store: &Store, expected: &Tree, at: usize) {
    let what = format!("after a kill at system call {at}");
    store.ok(["check", "--deep"]);
    store.assert_shows("image:1", expected, &what);
    if store.run(["rmi", "gone:1"]).code() != 0 {
        // The name was already removed. What it kept is freed by the next removal of anything.
        store.ok(["rmi", "image:1"]);
        assert_eq!(store.objects_by_name(), "", "{what}");
    }
    let left = shell(store.root(), "find trash tmp -mindepth 1", [""; 0]);
    assert_eq!(left, "", "{what}");
    store.ok(["check"]);
}

#[test]
fn load_killed_at_any_system_call_leaves_a_clean_store_as_root() {
    root(|| load_killed_at_any_system_call_leaves_a_clean_store());
}

#[test]
fn load_killed_at_any_system_call_leaves_a_clean_store_as_user() {
    user(|| load_killed_at_any_system_call_leaves_a_clean_store());
}

#[test]
fn rmi_killed_at_any_system_call_leaves_a_clean_store_as_root() {
    root(|| removal_killed_at_any_system_call_leaves_a_clean_store());
}

#[test]
fn rmi_killed_at_any_system_call_leaves_a_clean_store_as_user() {
    user(|| removal_killed_at_any_system_call_leaves_a_clean_store());
}

#[test]
fn gc_killed_at_any_system_call_leaves_a_clean_store_as_root() {
    root(|| gc_killed_at_any_system_call_leaves_a_clean_store());
}

#[test]
fn gc_killed_at_any_system_call_leaves_a_clean_store_as_user() {
    user(|| gc_killed_at_any_system_call_leaves_a_clean_store());
}

#[test]
fn commit_killed_at_any_system_call_leaves_a_clean_store_as_root() {
    root(|| commit_killed_at_any_system_call_leaves_a_clean_store());
}

#[test]
fn commit_killed_at_any_system_call_leaves_a_clean_store_as_user() {
    user(|| commit_killed_at_any_system_call_leaves_a_clean_store());
}

/// Tries a sample of a command's system calls, until the command ends before the n-th. Prints how
/// many were tried.
fn killed_at(stride: u64, attempt: impl Fn(usize) -> Outcome) -> String {
    let mut killed = 0;
    for point in strided(1, stride) {
        let outcome = attempt(point.index());
        if outcome.code() == 0 {
            // Each command makes at least this many calls; fewer would mean that nothing was
            // injected.
            assert!(
                is_repeated() || point.number() > 50,
                "ended before system call {}",
                point.number()
            );
            return format!("killed at {killed} of {} system calls", point.number());
        }
        assert_eq!(outcome.code(), 137, "dies by the signal only: {outcome}");
        killed += 1;
    }
    format!("killed at {killed}")
}

fn run_and_die(command: &Command, at: usize) -> Outcome {
    let inject = format!("inject=all:signal=KILL:when={at}");
    let mut traced = program(
        "strace",
        ["-f", "-qq", "-o", "/dev/null", "-e", &inject, "--"],
    );
    run(traced.arg(command.get_program()).args(command.get_args()))
}

fn survives(store: &Store, archive: &Path, expected: &Tree, at: usize) {
    let what = format!("after a kill at system call {at}");
    // Nothing partially visible: either there is no image, or a complete one.
    if store.root().join("format.json").exists() {
        store.ok(["check"]);
        if store.ok(["images", "-q"]).trim() != "" {
            store.assert_shows("image:1", expected, &what);
        }
    }
    store.load(archive);
    store.ok(["check"]);
    store.assert_shows("image:1", expected, &format!("{what} and a second load"));
    let leftovers = shell(store.root(), "find tmp -mindepth 1", [""; 0]);
    assert_eq!(
        leftovers, "",
        "{what}: tmp/ still holds what the killed load left"
    );
}
