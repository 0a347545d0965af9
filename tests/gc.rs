//! `cowl gc`: what it reports as freed agrees with `du`, and it holds the store's lock for a
//! bounded number of renames, counted by strace.

use std::fs;

use cowl_tests::command::{program, run, shell};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::store::Store;

/// Files of the removed image, each an object of its own.
const FILES: usize = 700;
/// Renames per hold of the lock, as `src/core/store/gc` promises.
const SLICE: usize = 256;

/// A store with an image in use, and the remains of a larger one whose `rmi` was killed before it
/// freed anything.
fn littered() -> Store {
    let store = Store::new("store");
    for (image, files) in [("kept", 3), ("gone", FILES)] {
        let content = directory().join(image);
        fs::create_dir(&content).unwrap();
        for number in 0..files {
            fs::write(
                content.join(number.to_string()),
                format!("{image} {number}"),
            )
            .unwrap();
        }
        store.import_directory(&content, image);
    }
    shell(store.root(), "rm refs/*gone*", [""; 0]);
    store
}

fn du(store: &Store) -> u64 {
    let said = shell(store.root(), "du -s --block-size=1 .", [""; 0]);
    said.split_whitespace().next().unwrap().parse().unwrap()
}

/// The number of bytes in `Reclaimable space: 1.2MB (1234567 bytes of disk)`.
fn bytes_of_disk(said: &str) -> u64 {
    let last = said.lines().last().unwrap();
    let bytes = last.split_once('(').unwrap().1.split(' ').next().unwrap();
    bytes.parse().unwrap()
}

fn gc_frees_what_the_dry_run_says() {
    let store = littered();
    let before = shell(store.root(), "find . | sort", [""; 0]);
    let planned = store.ok(["gc", "--dry-run"]);
    assert_eq!(shell(store.root(), "find . | sort", [""; 0]), before);
    assert!(planned.contains("1 layer: "), "{planned}");
    assert!(planned.contains(&format!("{FILES} objects: ")), "{planned}");
    let used = du(&store);
    let freed = store.ok(["gc"]);
    let (planned, freed) = (planned.lines(), freed.lines());
    assert_eq!(
        planned.clone().take(4).collect::<Vec<_>>(),
        freed.clone().take(4).collect::<Vec<_>>()
    );
    let [planned, freed] = [planned, freed].map(|lines| bytes_of_disk(lines.last().unwrap()));
    assert_eq!((planned, freed), (used - du(&store), planned));
    assert_eq!(
        store.ok(["gc"]),
        "Total reclaimed space: 0B (0 bytes of disk)\n"
    );
    store.ok(["check", "--deep"]);
}

#[test]
fn gc_frees_what_the_dry_run_says_as_root() {
    root(|| gc_frees_what_the_dry_run_says());
}

#[test]
fn gc_frees_what_the_dry_run_says_as_user() {
    user(|| gc_frees_what_the_dry_run_says());
}

/// What a start has to wait for: while the exclusive lock is held, gc reads the roots and makes a
/// bounded number of renames, but reads no trees and syncs nothing.
#[test]
fn gc_holds_the_lock_for_a_slice_at_a_time() {
    root(|| {
        let store = littered();
        let calls = directory().join("calls");
        let mut traced = program("strace", ["-f", "-qq", "-o"]);
        traced
            .arg(&calls)
            .args(["-e", "trace=%file,%desc,flock,syncfs", "--"]);
        let gc = store.command(["gc"]);
        run(traced.arg(gc.get_program()).args(gc.get_args())).ok();
        let holds = holds(&fs::read_to_string(&calls).unwrap());
        let renames: Vec<usize> = holds
            .iter()
            .map(|calls| {
                calls
                    .iter()
                    .filter(|call| call.starts_with("rename"))
                    .count()
            })
            .collect();
        // A merged tree, a layer and a configuration beside the objects.
        assert_eq!(renames.iter().sum::<usize>(), FILES + 3);
        assert!(renames.len() > FILES / SLICE, "{renames:?}");
        assert!(
            renames.iter().all(|renames| *renames <= SLICE),
            "{renames:?}"
        );
        for call in holds.iter().flatten() {
            let expected = [
                "rename", "statx", "openat", "getdents", "fstat", "lseek", "fcntl", "close",
                "flock",
            ];
            let known = expected.iter().any(|name| call.starts_with(name));
            assert!(known && !call.contains("tree-v2\", O_RDONLY"), "{call}");
        }
    });
}

/// The calls of a process between the grant of an exclusive lock on the store's `lock` and the
/// close that releases it.
fn holds(trace: &str) -> Vec<Vec<String>> {
    let mut holds: Vec<Vec<String>> = Vec::new();
    // The descriptor of the file `lock`, and whether it is locked.
    let (mut file, mut held) = (None, false);
    for line in trace.lines() {
        let call = line.split_once(' ').unwrap().1.trim_start();
        if call.starts_with("openat(") && call.contains("\"lock\"") {
            file = call.rsplit_once("= ").map(|(_, fd)| fd.to_owned());
        }
        let Some(fd) = &file else { continue };
        if call.starts_with(&format!("flock({fd}, LOCK_EX")) {
            held = true;
            holds.push(Vec::new());
        } else if call.starts_with(&format!("close({fd})")) {
            (file, held) = (None, false);
        } else if held && let Some(calls) = holds.last_mut() {
            calls.push(call.to_owned());
        }
    }
    holds
}
