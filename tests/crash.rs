//! `cowl load` and `cowl rmi` may be killed at any system call: what is in the store then is whole, loading or removing
//! again succeeds, and the images there are the right ones.
//!
//! strace delivers SIGKILL at the n-th system call of each thread, for every k-th n over the whole command (`make
//! test-long`: for every n).

use std::fs;
use std::path::Path;
use std::process::Command;

use cowl_tests::command::{Outcome, program, run, shell};
use cowl_tests::profile::{directory, long, root};
use cowl_tests::store::{Store, extract, make_image};
use cowl_tests::tree::Tree;

/// Every k-th system call is one to die at; odd, so that it meets both sides of pairs that repeat.
const STRIDE: usize = 5;
/// A removal looks into 256 directories, with the same calls each.
const REMOVAL_STRIDE: usize = 23;

/// Two layers, enough kinds of files to go through every part of an import, few enough to do it often.
const CONTENT: &str = r"
mkdir -p one/dir one/etc two/dir
for i in 1 2 3 4 5; do head -c $((i * 20000)) /bin/bash > one/dir/$i; done
ln one/dir/1 one/linked; ln -s dir/1 one/soft; : > one/empty; setfattr -n user.x -v y one/etc
: > two/dir/.wh.2; echo new > two/dir/new; cp one/dir/3 two/dir/same
for layer in one two; do tar -c -f $layer.tar --format=posix --xattrs --sort=name -C $layer .; done
";

#[test]
fn a_load_killed_at_any_system_call_leaves_a_clean_store() {
    root(|| {
        let place = directory();
        shell(&place, CONTENT, [""; 0]);
        let (one, two) = (place.join("one.tar"), place.join("two.tar"));
        let archive = place.join("image.tar");
        make_image(
            "docker",
            &archive,
            "image:1",
            &["--compress", "gzip"],
            &[&one, &two],
        );
        let expected = extract(&place.join("plain"), [&one, &two]);

        let stride = if long() { 1 } else { STRIDE };
        let (mut at, mut killed) = (1, 0);
        loop {
            let name = format!("store-{at}");
            let store = Store::new(&name);
            let mut load = store.command(["load", "-i"]);
            let outcome = run_and_die(load.arg(&archive), at);
            if outcome.code() == 0 {
                break;
            }
            assert_eq!(outcome.code(), 137, "dies by the signal only: {outcome}");
            killed += 1;
            survives(&store, &archive, &expected, at);
            fs::remove_dir_all(store.root()).unwrap();
            at += stride;
        }
        // An import of two layers takes hundreds of calls; fewer would mean that nothing was injected.
        assert!(killed * stride > 100, "killed {killed} times only");
        println!("killed {killed} times, at every {stride}. of {at} system calls");
    });
}

#[test]
fn a_removal_killed_at_any_system_call_leaves_a_clean_store() {
    root(|| {
        let place = directory();
        shell(&place, CONTENT, [""; 0]);
        let full = Store::new("full");
        for (image, layer) in [("gone:1", "one.tar"), ("image:1", "two.tar")] {
            full.ok([
                "import".as_ref(),
                place.join(layer).as_path(),
                image.as_ref(),
            ]);
        }
        let expected = extract(&place.join("plain"), [place.join("two.tar")]);

        let stride = if long() { 1 } else { REMOVAL_STRIDE };
        let (mut at, mut killed) = (1, 0);
        loop {
            shell(&place, "cp -a full store", [""; 0]);
            let store = Store::new("store");
            let outcome = run_and_die(&store.command(["rmi", "gone:1"]), at);
            let what = format!("after a kill at system call {at}");
            if outcome.code() == 0 {
                break;
            }
            assert_eq!(outcome.code(), 137, "dies by the signal only: {outcome}");
            killed += 1;
            store.ok(["check", "--deep"]);
            store.assert_shows("image:1", &expected, &what);
            if store.run(["rmi", "gone:1"]).code() != 0 {
                // The name was gone already. What it kept goes with the next removal, whatever that removes.
                store.ok(["rmi", "image:1"]);
                assert_eq!(store.objects_by_name(), "", "{what}");
            }
            let left = shell(store.root(), "find trash tmp -mindepth 1", [""; 0]);
            assert_eq!(left, "", "{what}");
            store.ok(["check"]);
            fs::remove_dir_all(store.root()).unwrap();
            at += stride;
        }
        assert!(killed * stride > 100, "killed {killed} times only");
        println!("killed {killed} times, at every {stride}. of {at} system calls");
    });
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
    // Nothing half visible: either no image is named, or one that is whole.
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
