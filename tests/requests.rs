//! The kernel does not ask again for what it has cached: counts of requests, which are independent
//! of the machine.

use cowl_tests::busybox::shop;
use cowl_tests::command::python;
use cowl_tests::host::io_modes;
use cowl_tests::profile::{current, directory, root, user};
use cowl_tests::requests::{OPEN, RELEASE, Requests, costs_during, during, worker};
use cowl_tests::store::{Mount, Store};

/// Lists every name with its attributes.
const WALK: &str = "
import os, sys
for path, below, files in os.walk(sys.argv[1]):
    for name in below + files: os.lstat(os.path.join(path, name))
";
/// Looks up missing names.
const MISS: &str = "
import os, sys
for i in range(100):
    for name in ('bin/missing-%d' % i, 'missing-%d' % i):
        assert not os.path.lexists(os.path.join(sys.argv[1], name))
";
/// Opens, reads and closes files.
const READ_FILES: &str = "
import os, sys
for name in ('etc/motd', 'etc/passwd', 'srv/hello'):
    file = os.open(os.path.join(sys.argv[1], name), os.O_RDONLY)
    os.read(file, 65536)
    os.close(file)
";

/// Requests for cached files: none, except an OPEN each in passthrough.
fn warm_calls_send_no_request() {
    let store = shop("store");
    for io_mode in io_modes() {
        let store = store.with_io(io_mode);
        for writable in [false, true] {
            let mount = if writable {
                store.mount_upper("shop", &format!("{io_mode}-writable"))
            } else {
                store.mount("shop", &format!("{io_mode}-read-only"))
            };
            assert_warm_calls_are_free(&mount, io_mode, writable);
            mount.unmount();
        }
    }
}

fn assert_warm_calls_are_free(mount: &Mount<'_>, io_mode: &str, writable: bool) {
    let worker = worker();
    let ask = |script: &str| {
        during(worker, || {
            python(&directory(), script, [mount.path()]);
        })
    };
    for (what, script) in [("a walk", WALK), ("names that are missing", MISS)] {
        let cold = ask(script);
        assert!(!cold.is_empty(), "{what}: the first time it must ask");
        if writable {
            // After reading a directory the kernel drops its atime, and asks for it once.
            ask(script);
        }
        assert_eq!(ask(script), Requests::new(), "{what}, once it is known");
    }
    ask(READ_FILES);
    let mut again = ask(READ_FILES);
    // RELEASE requests come after the close, some after the count.
    again.remove(&RELEASE);
    let expected = match io_mode {
        "passthrough" => Requests::from([(OPEN, 3)]),
        _ => Requests::new(),
    };
    assert_eq!(
        again, expected,
        "{io_mode}: open, read, close, the second time"
    );
}

#[test]
fn warm_calls_send_no_request_as_root() {
    root(|| warm_calls_send_no_request());
}

#[test]
fn warm_calls_send_no_request_as_user() {
    user(|| warm_calls_send_no_request());
}

/// The budget of an operation: requests, and the worker's system calls on host files.
type Budget = (usize, usize);

/// An operation that a script runs 20 times, as `f(i)` with `at(name)`; its budgets in modes where
/// opens send no request, and in passthrough.
///
/// One request of each change of names is the GETATTR of the directory, whose attributes the kernel
/// drops at the change before.
const BUDGETS: [(&str, &str, Budget, Budget); 10] = [
    (
        "create",
        "os.close(os.open(at(f'dir/new-{i}'), os.O_CREAT | os.O_EXCL | os.O_WRONLY))",
        (3, 3),
        (4, 6),
    ),
    // Two of the requests check for a capability that the change must drop.
    (
        "extract as tar does",
        "file = os.open(at(f'dir/taken-{i}'), os.O_CREAT | os.O_EXCL | os.O_WRONLY); \
         os.write(file, b'x'); os.utime(file, (1, 1)); os.fchown(file, 0, 0); os.fchmod(file, 0o640); \
         os.close(file)",
        (9, 13),
        (9, 14),
    ),
    ("mkdir", "os.mkdir(at(f'dir/made-{i}'))", (3, 3), (3, 3)),
    (
        "unlink of a lower file",
        "os.unlink(at(f'dir/lower-{i}'))",
        (3, 2),
        (3, 2),
    ),
    // In passthrough the worker knows that the file is not open; else it moves it to the orphans,
    // and removes it when the kernel forgets it.
    (
        "unlink of an upper file",
        "os.unlink(at(f'dir/new-{i}'))",
        (2, 3),
        (2, 3),
    ),
    // One sync, and no attribute is written twice.
    (
        "first write to a lower file",
        "file = os.open(at(f'dir/copied-{i}'), os.O_WRONLY | os.O_APPEND); os.write(file, b'x'); os.close(file)",
        (3, 20),
        (3, 25),
    ),
    (
        "rename of a directory",
        "os.rename(at(f'dir/made-{i}'), at(f'dir/moved-{i}'))",
        (3, 6),
        (3, 6),
    ),
    (
        "chmod of an upper file",
        "os.chmod(at(f'dir/kept-{i}'), 0o600)",
        (1, 2),
        (1, 5),
    ),
    (
        "getxattr",
        "try: os.getxattr(at(f'dir/kept-{i}'), 'user.none')\n    except OSError: pass",
        (1, 1),
        (1, 1),
    ),
    (
        "open and close",
        "os.close(os.open(at(f'dir/kept-{i}'), os.O_RDONLY))",
        (0, 0),
        (1, 5),
    ),
];

const TIMES: usize = 20;

const REPEAT: &str = "
import os, sys
def at(name): return os.path.join(sys.argv[1], name)
def f(i):
    BODY
for i in range(20): f(i)
";

fn operations_cost_no_more_than_their_budgets() {
    let store = Store::new("store");
    let content = directory().join("content");
    std::fs::create_dir_all(content.join("dir")).unwrap();
    for i in 0..TIMES {
        for name in ["lower", "copied"] {
            std::fs::write(content.join(format!("dir/{name}-{i}")), "lower").unwrap();
        }
    }
    store.import_directory(&content, "some");
    for io_mode in io_modes() {
        let store = store.with_io(io_mode);
        let mount = store.mount_upper("some", io_mode);
        // The directory is already copied up, and unrelated attributes are cached.
        let prepare = REPEAT.replace("BODY", "open(at(f'dir/kept-{i}'), 'w').close()");
        python(&directory(), &prepare, [mount.path()]);
        let worker = worker();
        let mut beyond = Vec::new();
        for (what, body, without_handles, passthrough) in BUDGETS {
            let (most_requests, most_calls) = match io_mode {
                "passthrough" => passthrough,
                // The writeback cache sets the times of a file that it saw removed.
                "writeback" if what.starts_with("unlink") => {
                    (without_handles.0 + 1, without_handles.1 + 3)
                }
                // It reads the page before the write, and sets the times.
                "writeback" if what.starts_with("first write") => {
                    (without_handles.0 + 2, without_handles.1 + 5)
                }
                // It may have written back the time of the change before the times are set.
                "writeback" if what.starts_with("extract") => {
                    (without_handles.0 + 1, without_handles.1 + 2)
                }
                _ => without_handles,
            };
            let script = REPEAT.replace("BODY", body);
            let (requests, calls) = costs_during(worker, || {
                python(&directory(), &script, [mount.path()]);
            });
            let of = |counts: &mut dyn Iterator<Item = usize>| counts.sum::<usize>();
            let (asked, made) = (
                of(&mut requests.values().copied()),
                of(&mut calls.values().copied()),
            );
            println!("{io_mode}, {what}: {requests:?} {calls:?}");
            // The first of them may look up a directory, and open it.
            if asked > TIMES * most_requests + 4 || made > TIMES * most_calls + 4 {
                beyond.push(format!("{what}: {asked} requests, {made} calls"));
            }
        }
        mount.unmount();
        assert!(beyond.is_empty(), "{io_mode}, {TIMES} times: {beyond:#?}");
    }
}

#[test]
fn operations_cost_no_more_than_their_budgets_as_root() {
    root(|| operations_cost_no_more_than_their_budgets());
}

#[test]
fn operations_cost_no_more_than_their_budgets_as_user() {
    user(|| operations_cost_no_more_than_their_budgets());
}

/// The disk writes a large copy-up while the copy goes on, so the one sync after it waits for less.
fn large_copy_up_is_written_while_it_goes_on() {
    const MIB: usize = 1 << 20;
    let store = Store::new("store");
    let content = directory().join("content");
    std::fs::create_dir(&content).unwrap();
    std::fs::write(content.join("large"), vec![b'x'; 33 * MIB]).unwrap();
    store.import_directory(&content, "large");
    let mount = store.mount_upper("large", "mnt");
    let append = "import sys; open(sys.argv[1] + '/large', 'a').write('y')";
    let (_, calls) = costs_during(worker(), || {
        python(&directory(), append, [mount.path()]);
    });
    mount.unmount();
    let of = |call: &str| calls.get(call).copied().unwrap_or_default();
    assert_eq!(
        (of("sync_file_range"), of("fdatasync"), of("fsync")),
        (4, 1, 0),
        "a call for each 8 MiB but the last, and the sync: {calls:?}"
    );
}

#[test]
fn large_copy_up_is_written_while_it_goes_on_as_root() {
    root(|| large_copy_up_is_written_while_it_goes_on());
}

#[test]
fn large_copy_up_is_written_while_it_goes_on_as_user() {
    user(|| large_copy_up_is_written_while_it_goes_on());
}

/// A listing with attributes takes as many requests as replies are full, and one for the end.
fn listing_a_thousand() {
    let store = Store::new("store");
    let content = directory().join("content");
    std::fs::create_dir_all(content.join("many")).unwrap();
    for i in 0..1_000 {
        std::fs::write(content.join(format!("many/{i:04}")), "").unwrap();
    }
    store.import_directory(&content, "many");
    let mount = store.mount("many", "mnt");
    let requests = during(worker(), || {
        python(&directory(), WALK, [mount.path()]);
    });
    mount.unmount();
    let total: usize = requests.values().sum();
    println!("1,000 names with attributes, {:?}: {requests:?}", current());
    // One request per name would be more than 1,000; a reply holds at least 4 KiB, which is 24
    // names with attributes.
    assert!(total < 100, "{requests:?}");
}

#[test]
fn a_listing_brings_attributes_as_root() {
    root(|| listing_a_thousand());
}

#[test]
fn a_listing_brings_attributes_as_user() {
    user(|| listing_a_thousand());
}
