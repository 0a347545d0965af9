//! A running container is read without a pause, while a program in it makes changes one after the
//! other: what is read is what a program that stops at one moment leaves.

use std::collections::BTreeSet;

use cowl_tests::busybox::shop;
use cowl_tests::command::{program, run, system};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::server::{Server, until};
use cowl_tests::store::Store;

/// Makes `/w/a/1`, `/w/z/1`, `/w/a/2` and so on. There is much to read between the two directories.
const WRITER: &str =
    "mkdir -p /w/a /w/m /w/z; i=0; while [ $i -lt 1000 ]; do i=$((i+1)); : > /w/m/$i; done
i=0; while [ $i -lt 100000 ]; do i=$((i+1)); : > /w/a/$i; : > /w/z/$i; done; exec sleep 1000";

/// A container that runs [`WRITER`].
struct Writer<'s> {
    store: &'s Store,
}

impl<'s> Writer<'s> {
    fn start(store: &'s Store, flags: &[&str]) -> Self {
        let named = ["run", "-d", "--name", "writer"];
        store.ok([&named, flags, &["shop", "sh", "-c", WRITER]].concat());
        let writer = Self { store };
        until(|| writer.steps() > 0);
        writer
    }

    /// How far it is, as `diff` sees it.
    fn steps(&self) -> u64 {
        steps(&self.store.ok(["diff", "writer"]), "`cowl diff`")
    }

    /// How far it was in an image of it, which is removed.
    fn committed(&self, image: &str) -> u64 {
        let archive = directory().join("image.tar");
        let path = archive.to_str().unwrap();
        self.store.ok(["export", "-o", path, image]);
        self.store.ok(["rmi", image]);
        steps(&system("tar", ["-tf", path]), "the committed image")
    }

    fn end(self) {
        self.store.ok(["rm", "-f", "writer"]);
    }
}

/// How many steps of the writer are among these names: all but the second half of the last one.
fn steps(names: &str, what: &str) -> u64 {
    let made = |directory: &str| -> BTreeSet<u64> {
        let numbers = names.lines().filter_map(|name| name.split_once(directory));
        numbers
            .filter_map(|(_, number)| number.parse().ok())
            .collect()
    };
    let (first, second) = (made("w/a/"), made("w/z/"));
    let last = u64::try_from(first.len()).unwrap();
    assert!(
        first.iter().copied().eq(1..=last),
        "{what}: a later change without an earlier one"
    );
    assert!(
        second.is_subset(&first),
        "{what}: {:?}",
        second.difference(&first)
    );
    assert!(
        second.len() + 1 >= first.len(),
        "{what}: {:?}",
        first.difference(&second)
    );
    assert!(
        second
            .iter()
            .copied()
            .eq(1..=u64::try_from(second.len()).unwrap()),
        "{what}"
    );
    last
}

/// Every command of a container that cannot be paused.
fn is_read_at_one_moment() {
    let store = shop("store");
    let server = Server::start(&store);
    let writer = Writer::start(&store, &[]);
    store.run(["pause", "writer"]).refused(1);
    let mut before = 0;
    for round in 0..3 {
        let seen = writer.steps();
        assert!(seen >= before, "{round}: {seen} after {before}");
        store.ok(["commit", "writer", "live"]);
        let committed = writer.committed("live");
        assert!(committed >= seen, "{round}: {committed} after {seen}");
        server.ok(["commit", "writer", "live"]);
        let committed = writer.committed("live");
        let archive = directory().join("container.tar");
        let path = archive.to_str().unwrap();
        store.ok(["export", "-o", path, "writer"]);
        before = steps(&system("tar", ["-tf", path]), "the exported container");
        assert!(before >= committed, "{round}: {before} after {committed}");
    }
    until(|| writer.steps() > before);
    writer.end();
}

#[test]
fn a_container_that_cannot_be_paused_is_read_at_one_moment_as_root() {
    root(|| {
        run(&mut program(
            "umount",
            ["--lazy", "--recursive", "/sys/fs/cgroup"],
        ))
        .ok();
        is_read_at_one_moment();
    });
}

#[test]
fn a_container_that_cannot_be_paused_is_read_at_one_moment_as_user() {
    user(|| is_read_at_one_moment());
}

/// As in Docker, it is not paused; but what is committed is of one moment all the same.
#[test]
fn commit_pause_false_commits_a_container_that_goes_on() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        for io_mode in ["cached", "writeback"] {
            let writer = Writer::start(&store, &["--io", io_mode]);
            let seen = writer.steps();
            store.ok(["commit", "-p=false", "writer", "live"]);
            let own = writer.committed("live");
            assert!(own >= seen, "{own} after {seen}");
            server.ok(["commit", "--pause=false", "writer", "live"]);
            let docker = writer.committed("live");
            assert!(docker >= own, "{docker} after {own}");
            let events = store.ok(["events", "--since", "0", "--until", "0s"]);
            assert!(!events.contains("container pause"), "{events}");
            writer.end();
        }
    });
}

/// What is written passes the worker by, so a commit that asks for a pause says that it needs one.
#[test]
fn commit_refuses_what_can_neither_be_paused_nor_held() {
    user(|| {
        let store = shop("store");
        let writer = Writer::start(&store, &["--io", "writeback"]);
        let refusal = store.run(["commit", "writer", "live"]).refused(1);
        assert!(refusal.contains("cannot be paused"), "{refusal}");
        assert!(refusal.contains("--pause=false"), "{refusal}");
        let seen = writer.steps();
        store.ok(["commit", "-p=false", "writer", "live"]);
        assert!(writer.committed("live") >= seen);
        writer.end();
    });
}
