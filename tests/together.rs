//! Concurrency on one mount and on one store: nothing is lost, nothing is done twice.

use std::path::Path;
use std::process::Child;

use cowl_tests::busybox::{add_blog, containers, in_shop, layers, shop};
use cowl_tests::command::{program, shell};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::store::{Store, make_image};
use cowl_tests::tree;

/// One of several processes on a mount, `me` of `all`: appends to files of the lower that all
/// append to (each must be copied up once), makes names that only one can make, moves files
/// through a shared directory.
const WORKER: &str = r#"
import os, sys
root, me, all = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.chdir(root)
won = 0
for i in range(200):
    file = os.open("lower/%d" % (i % 20), os.O_WRONLY | os.O_APPEND)
    os.write(file, b"%d %d\n" % (me, i))
    os.close(file)
    try:
        os.mkdir("once/%d" % i)
        won += 1
    except FileExistsError:
        pass
    name = "own-%d-%d" % (me, i)
    with open(name, "w") as made: made.write(name)
    os.rename(name, "shared/" + name)
    os.link("shared/" + name, "shared/link-" + name)
    os.unlink("shared/" + name)
    if me == 0 and i == 100: os.rename("lower/moved", "lower/moving")
    try:
        os.stat("lower/%d" % ((i * 7) % 20)); os.listdir("shared")
    except FileNotFoundError:
        raise SystemExit("a name was missing for a moment")
print(won)
"#;

const WORKERS: usize = 4;

fn many_processes_lose_nothing() {
    let place = directory();
    shell(
        &place,
        "mkdir -p content/lower content/once content/shared; for i in $(seq 0 19) moved; do echo first > content/lower/$i; done",
        [""; 0],
    );
    let store = Store::new("store");
    store.import_directory(&place.join("content"), "content");
    let mut mount = store.mount_upper("content", "mnt");
    let started: Vec<Child> = (0..WORKERS)
        .map(|me| {
            let output = std::fs::File::create(place.join(format!("won-{me}"))).unwrap();
            let mut command = program("python3", ["-B", "-c", WORKER]);
            command
                .arg(mount.path())
                .args([me.to_string(), WORKERS.to_string()])
                .stdout(output)
                .spawn()
                .unwrap()
        })
        .collect();
    for mut worker in started {
        assert!(worker.wait().unwrap().success());
    }
    let won: usize = (0..WORKERS)
        .map(|me| {
            std::fs::read_to_string(place.join(format!("won-{me}")))
                .unwrap()
                .trim()
                .parse::<usize>()
                .unwrap()
        })
        .sum();
    assert_eq!(won, 200, "each name is made by one of them");
    whole(mount.path());
    mount.remount();
    whole(mount.path());
    mount.unmount();
}

fn whole(mount: &Path) {
    for i in 0..20 {
        let text = std::fs::read_to_string(mount.join(format!("lower/{i}"))).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "first");
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 1 + WORKERS * 10, "lines of lower/{i}");
    }
    assert_eq!(
        std::fs::read_dir(mount.join("shared")).unwrap().count(),
        WORKERS * 200
    );
    assert_eq!(
        shell(mount, "ls lower | grep mov; cat lower/moving", [""; 0]),
        "moving\nfirst\n"
    );
    for me in 0..WORKERS {
        for i in 0..200 {
            let name = format!("own-{me}-{i}");
            assert_eq!(
                std::fs::read_to_string(mount.join(format!("shared/link-{name}"))).unwrap(),
                name
            );
        }
    }
}

#[test]
fn many_processes_lose_nothing_as_root() {
    root(|| many_processes_lose_nothing());
}

#[test]
fn many_processes_lose_nothing_as_user() {
    user(|| many_processes_lose_nothing());
}

/// One of several processes that operate randomly, each with its `seed`, on the same few names:
/// prints each error that a file system should not return.
const UNRULY: &str = r#"
import ctypes, errno, os, random, sys
root, seed = sys.argv[1], int(sys.argv[2])
os.chdir(root)
random = random.Random(seed)
libc = ctypes.CDLL(None, use_errno=True)
directories = [".", "lower", "lower/deep", "lower/deep/er", "a", "b", "a/b", "b/a", "c"]
names = ["a", "b", "c", "0", "1", "linked", "deep", "er", "p0", "p1", "p2", "p3", "p4", "p5"]
usual = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.ELOOP,
    errno.EPERM, errno.ENXIO, errno.EBUSY}
def path(): return random.choice(directories) + "/" + random.choice(names)
def rename(flags):
    if libc.renameat2(-100, path().encode(), -100, path().encode(), flags):
        raise OSError(ctypes.get_errno(), "renameat2")
def create(): os.close(os.open(path(), os.O_CREAT | os.O_WRONLY | random.choice([0, os.O_EXCL]), 0o644))
def truncate(): os.truncate(path(), random.randrange(30000))
def write():
    file = os.open(path(), os.O_WRONLY | os.O_NONBLOCK)
    os.pwrite(file, b"x" * random.randrange(1, 9000), random.randrange(20000))
    os.close(file)
held = []
def hold():
    held.append(os.open(path(), random.choice([os.O_RDONLY, os.O_RDWR])))
    if len(held) > 8: os.close(held.pop(random.randrange(8)))
def use():
    for file in held:
        os.fstat(file)
        try: os.read(file, 5000)
        except IsADirectoryError: pass
operations = [
    create, lambda: os.mkdir(path()), lambda: os.unlink(path()), lambda: os.rmdir(path()),
    lambda: rename(0), lambda: rename(0), lambda: rename(1), lambda: rename(2),
    lambda: os.link(path(), path(), follow_symlinks=False), lambda: os.symlink(random.choice(names), path()),
    write, truncate, hold, use,
    lambda: os.chmod(path(), random.choice([0o644, 0o755])), lambda: os.setxattr(path(), "user.x", b"%d" % seed),
    lambda: os.listdir(random.choice(directories)), lambda: os.stat(path()),
]
for step in range(5000):
    operation = random.randrange(len(operations))
    try: operations[operation]()
    except OSError as error:
        # Not standard: the name was another program's at each of two tries, or went in between.
        twice = error.errno == errno.ESTALE and operations[operation] in [create, write, truncate]
        if error.errno not in usual and not twice: print("step", step, "operation", operation, error)
"#;

/// Whatever concurrent processes do, there are no unjustified errors, and a new mount shows the
/// same tree.
fn unruly_processes_leave_one_tree() {
    let place = directory();
    shell(
        &place,
        "mkdir -p content/lower/deep/er; for i in 0 1; do echo $i > content/lower/$i; echo $i > content/lower/deep/$i; done
        ln content/lower/0 content/lower/linked; ln content/lower/0 content/lower/deep/er/linked
        for i in 0 1 2 3 4 5; do { printf '\\177ELF'; head -c 30000 /dev/zero; } > content/lower/p$i; cp content/lower/p$i content/lower/deep; done",
        [""; 0],
    );
    let store = Store::new("store");
    store.import_directory(&place.join("content"), "content");
    let objects = store.objects();
    let mut mount = store.mount_upper("content", "mnt");
    let started: Vec<Child> = (0..WORKERS)
        .map(|seed| {
            let mut command = program("python3", ["-B", "-c", UNRULY]);
            command
                .arg(mount.path())
                .arg(seed.to_string())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for worker in started {
        let output = worker.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "");
        assert!(output.status.success());
    }
    let before = tree::read(mount.path());
    mount.remount();
    tree::assert_same(&before, &tree::read(mount.path()), "after a remount");
    mount.unmount();
    assert_eq!(store.objects(), objects, "the lower never changes");
}

#[test]
fn unruly_processes_leave_one_tree_as_root() {
    root(|| unruly_processes_leave_one_tree());
}

#[test]
fn unruly_processes_leave_one_tree_as_user() {
    user(|| unruly_processes_leave_one_tree());
}

/// Concurrent loads, removals and checks of images that share layers and contents: no errors, and
/// the store is consistent.
fn concurrent_commands_do_not_conflict() {
    let store = shop("store");
    add_blog(&store);
    let parts = layers();
    let archive = directory().join("third.tar");
    make_image(
        "docker",
        &archive,
        "third",
        &[],
        &[
            &parts.join("base.tar"),
            &parts.join("blog.tar"),
            &parts.join("shop.tar"),
        ],
    );
    for _ in 0..5 {
        let mut running: Vec<Child> = Vec::new();
        for arguments in [
            &["load", "-i", archive.to_str().unwrap()][..],
            &["load", "-i", archive.to_str().unwrap()],
            &["rmi", "blog"],
            &["check"],
            &["images"],
        ] {
            running.push(
                store
                    .command(arguments)
                    .stdout(std::process::Stdio::null())
                    .spawn()
                    .unwrap(),
            );
        }
        for mut child in running {
            assert!(child.wait().unwrap().success());
        }
        assert_eq!(
            store
                .ok(["run", "--rm", "third", "cat", "/var/lib/blog/archive.txt"])
                .len(),
            1_372_895
        );
        add_blog(&store);
        store.ok(["rmi", "third"]);
        store.ok(["check", "--deep"]);
    }
}

#[test]
fn concurrent_commands_do_not_conflict_as_root() {
    root(|| concurrent_commands_do_not_conflict());
}

/// What is unused is freed: without images the store is as small as at first, and containers keep
/// theirs.
fn removal_frees_what_is_unused() {
    Store::empty("store");
    let store = shop("store");
    add_blog(&store);
    in_shop(&store, &["--name", "kept"], &["true"]).ok();
    store.ok(["rmi", "blog"]);
    let refusal = store.run(["rmi", "shop"]).refused(1);
    assert!(
        refusal.contains("kept") || refusal.contains(&containers(&store)[0][..12]),
        "{refusal}"
    );
    store.ok(["rmi", "-f", "shop"]);
    let upper_works = store.run(["run", "--rm", "shop", "true"]);
    assert_eq!(upper_works.code(), 125, "the name is gone");
    store.ok(["rm", "kept"]);
    store.ok(["check"]);
}

#[test]
fn removal_frees_what_is_unused_as_root() {
    root(|| removal_frees_what_is_unused());
}

#[test]
fn an_image_that_is_removed_leaves_no_object() {
    root(|| {
        let store = shop("store");
        assert_ne!(store.objects_by_name(), "");
        store.ok(["rmi", "shop"]);
        assert_eq!(store.objects_by_name(), "");
        let left = shell(
            store.root(),
            "find layers merged blobs refs trash tmp pins -type f",
            [""; 0],
        );
        assert_eq!(left, "");
    });
}
