//! A disk that is full, or fails: what was there stays, the error is one line, and removals free
//! space.

use std::fs;
use std::path::{Path, PathBuf};

use cowl_tests::command::{program, run, shell};
use cowl_tests::disk::{Mounted, ext4};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::store::{Store, extract, make_image};

/// An image with more objects than one directory block has names.
const MANY: &str = r"
mkdir many; for i in $(seq 2000); do echo $i > many/$i; done; tar -c -f many.tar -C many .
head -c 60000000 /dev/urandom > large; tar -c -f large.tar large; rm large
";

/// Fills the disk until not even a directory can be created.
const FILL: &str = r"
for size in 65536 1024; do dd if=/dev/zero of=filled-$size bs=$size status=none 2>/dev/null || true; done
! mkdir more 2>/dev/null
";

/// On ext4, where a directory needs a block for its names: on a tmpfs there is always room for one
/// more.
#[test]
fn a_full_disk_can_be_made_empty_again() {
    root(|| {
        let place = directory();
        shell(&place, MANY, [""; 0]);
        let (device, point) = (place.join("device"), place.join("disk"));
        ext4(&device, 40 << 20);
        fs::create_dir(&point).unwrap();
        let disk = Mounted::new(&device, &point);
        let store = Store::at(&point.join("store"));
        let import = |tar: &str, name: &str| -> [PathBuf; 3] {
            ["import".into(), place.join(tar), name.into()]
        };
        store.ok(import("many.tar", "many"));
        let before = store.objects();

        let refusal = store.run(import("large.tar", "large")).refused(1);
        assert!(refusal.contains("no space left"), "{refusal}");
        assert_eq!(store.objects(), before);
        assert_eq!(shell(store.root(), "find tmp -mindepth 1", [""; 0]), "");

        shell(&point, FILL, [""; 0]);
        store.ok(["check", "--deep"]);
        store.ok(["rmi", "many"]);
        let left = shell(
            store.root(),
            "find objects layers merged blobs refs trash tmp -type f",
            [""; 0],
        );
        assert_eq!(left, "");
        store.ok(["check"]);
        shell(&point, "rm filled-*", [""; 0]);
        store.ok(import("many.tar", "many"));
        assert_eq!(store.objects_by_name().lines().count(), 2000);
        disk.unmount();
    });
}

/// The system calls that write to the disk or sync it.
const CALLS: [&str; 5] = ["write", "mkdirat", "renameat,renameat2", "syncfs", "fsync"];

/// Two layers with a file large enough to be streamed.
const CONTENT: &str = r"
mkdir -p one/dir two/dir
for i in 1 2 3; do head -c $((i * 100000)) /bin/bash > one/dir/$i; done
: > two/dir/.wh.2; echo new > two/dir/new
for layer in one two; do tar -c -f $layer.tar --sort=name -C $layer .; done
";

fn load_on_a_disk_that_fails_at_any_call_leaves_the_store_clean() {
    let place = directory();
    shell(&place, CONTENT, [""; 0]);
    let (one, two) = (place.join("one.tar"), place.join("two.tar"));
    let archive = place.join("image.tar");
    let options = ["--compress", "gzip"];
    make_image("docker", &archive, "image:1", &options, &[&one, &two]);
    let expected = extract(&place.join("plain"), [&one, &two]);
    let store = Store::new("store");
    store.ok(["import".as_ref(), one.as_path(), "other".as_ref()]);
    for call in CALLS {
        let mut failed = 0;
        while load_and_fail(&store, &archive, call, failed + 1) {
            failed += 1;
            let what = format!("{call} failed for the {failed}. time");
            let check = store.run(["check", "--deep"]);
            assert!(check.status.success(), "{what}: {check}");
            store.load(&archive);
            store.assert_shows("image:1", &expected, &what);
            store.ok(["rmi", "image:1"]);
            let left = shell(store.root(), "find tmp trash -mindepth 1", [""; 0]);
            assert_eq!(left, "", "{what}");
        }
        assert!(failed > 0, "{call} was never called");
        store.ok(["rmi", "image:1"]);
    }
}

#[test]
fn load_on_a_disk_that_fails_at_any_call_leaves_the_store_clean_as_root() {
    root(|| load_on_a_disk_that_fails_at_any_call_leaves_the_store_clean());
}

#[test]
fn load_on_a_disk_that_fails_at_any_call_leaves_the_store_clean_as_user() {
    user(|| load_on_a_disk_that_fails_at_any_call_leaves_the_store_clean());
}

/// Whether an error was injected into the write of an error message. While another thread ends,
/// strace writes a call in two lines: one where it begins and one where it returns.
fn is_message_lost(calls: &str) -> bool {
    let mut telling = None;
    calls.lines().any(|line| {
        let thread = line.split_whitespace().next();
        if line.contains(" write(2,") {
            telling = thread;
        } else if telling == thread && line.contains("<... write resumed>") {
            telling = None;
            return line.ends_with("(INJECTED)");
        }
        line.contains(" write(2,") && line.ends_with("(INJECTED)")
    })
}

/// False if there were fewer calls, so that none failed. `cowl load` must report an injected error:
/// success after one means a swallowed error, not the end of the calls.
fn load_and_fail(store: &Store, archive: &Path, call: &str, at: usize) -> bool {
    let calls = directory().join("calls");
    let inject = format!("inject={call}:error=EIO:when={at}");
    let load = store.command(["load", "-q", "-i"]);
    let mut traced = program("strace", ["-f", "-qq", "-e", &inject, "-o"]);
    let outcome = run(traced
        .arg(&calls)
        .arg("--")
        .arg(load.get_program())
        .args(load.get_args())
        .arg(archive));
    let calls = fs::read_to_string(&calls).unwrap();
    let Some(injected) = calls.lines().find(|line| line.ends_with("(INJECTED)")) else {
        assert!(outcome.status.success(), "{outcome}");
        return false;
    };
    assert!(!outcome.status.success(), "swallowed: {injected}");
    if is_message_lost(&calls) {
        // Calls are counted per thread, and this thread was to report another one's failure.
        assert_eq!(outcome.code(), 1, "{injected}");
        return true;
    }
    let line = outcome.refused(1);
    assert!(line.contains("Input/output error"), "{line}: {injected}");
    true
}
