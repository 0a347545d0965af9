//! The worker is killed between a system call that makes a change and everything that follows: its
//! own tables, its journal, the answer. Its successor finds the request in the journal, and the
//! client gets the one answer that a single execution gives. Or it is killed when the kernel has
//! the answer.
//!
//! strace holds the worker back at the end of that call; the change is seen in the upper; then the
//! worker is killed.
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

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Child;

use common::{Image, Mount, OWN_MOUNTS, USER_NAMESPACE, eventually, is_here, read_all, there};
use cowl_core::handover::IoModeChoice;
use cowl_tests::requests::attach;
use cowl_tests::tree::{assert_same, below};
use rustix::fs::{AtFlags, CWD, RenameFlags, XattrFlags};
use rustix::process::Pid;

/// What a test does; run on the mount and on a plain directory.
type Act = fn(&Path);
/// Whether the change is in the upper; it is told upper and work directory.
type Seen = fn(&Path, &Path) -> bool;

struct Case {
    name: &'static str,
    /// What comes before, undisturbed.
    before: Act,
    act: Act,
    /// The system call that makes the change, and the how many-th of its kind it is.
    call: &'static str,
    when: u32,
    seen: Seen,
}

const FILES: &[(&str, &[u8])] = &[
    ("d/lower", b"of the image"),
    ("d/other", b"another of the image"),
    ("d/sub/deep", b"deep"),
    ("e/x", b"x"),
    ("d/big", &BIG),
];

/// So large that it is read in passthrough.
static BIG: [u8; 1 << 20] = [7; 1 << 20];

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn is_whiteout(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|found| found.file_type().is_char_device())
}

fn has_orphan(work: &Path) -> bool {
    fs::read_dir(work.join("orphans")).unwrap().count() > 0
}

/// Makes `d` a directory of the upper, with two files of its own.
fn make_two(root: &Path) {
    fs::write(root.join("d/one"), "the first").unwrap();
    fs::write(root.join("d/two"), "the second, longer").unwrap();
}

const CASES: &[Case] = &[
    Case {
        name: "create",
        before: make_two,
        act: create,
        call: "openat",
        when: 1,
        seen: |upper, _| exists(&upper.join("d/new")),
    },
    Case {
        name: "create over a whiteout",
        before: |root| fs::remove_file(root.join("d/lower")).unwrap(),
        act: |root| {
            let made = File::options()
                .write(true)
                .create_new(true)
                .open(root.join("d/lower"));
            made.unwrap().write_all(b"new").unwrap();
        },
        call: "renameat",
        when: 1,
        seen: |upper, _| exists(&upper.join("d/lower")) && !is_whiteout(&upper.join("d/lower")),
    },
    Case {
        name: "mkdir",
        before: make_two,
        act: |root| {
            fs::create_dir(root.join("d/new")).unwrap();
            fs::write(root.join("d/new/file"), "in it").unwrap();
        },
        call: "mkdirat",
        when: 1,
        seen: |upper, _| exists(&upper.join("d/new")),
    },
    Case {
        name: "symlink",
        before: make_two,
        act: |root| std::os::unix::fs::symlink("there", root.join("d/new")).unwrap(),
        call: "symlinkat",
        when: 1,
        seen: |upper, _| exists(&upper.join("d/new")),
    },
    Case {
        name: "link",
        before: make_two,
        act: |root| fs::hard_link(root.join("d/one"), root.join("d/new")).unwrap(),
        call: "linkat",
        when: 1,
        seen: |upper, _| exists(&upper.join("d/new")),
    },
    Case {
        name: "unlink of a file of the upper",
        before: make_two,
        act: |root| {
            let open = File::options()
                .read(true)
                .write(true)
                .open(root.join("d/one"))
                .unwrap();
            fs::remove_file(root.join("d/one")).unwrap();
            check_removed(&open, b"the first");
        },
        call: "renameat2",
        when: 1,
        seen: |upper, _| !exists(&upper.join("d/one")),
    },
    Case {
        name: "unlink of a file of the lower",
        before: make_two,
        act: |root| remove_open_lower(root, b"of the image"),
        call: "mknodat",
        when: 1,
        seen: |upper, _| is_whiteout(&upper.join("d/lower")),
    },
    Case {
        name: "rmdir",
        before: |root| fs::create_dir(root.join("d/new")).unwrap(),
        act: |root| fs::remove_dir(root.join("d/new")).unwrap(),
        call: "unlinkat",
        when: 1,
        seen: |upper, _| !exists(&upper.join("d/new")),
    },
    Case {
        name: "rmdir of a directory of the lower",
        before: |root| fs::remove_file(root.join("e/x")).unwrap(),
        act: |root| fs::remove_dir(root.join("e")).unwrap(),
        call: "renameat2",
        when: 1,
        seen: |upper, _| is_whiteout(&upper.join("e")),
    },
    Case {
        name: "rename over a file, before the rename",
        before: make_two,
        act: rename_over,
        call: "linkat",
        when: 1,
        seen: |_, work| has_orphan(work),
    },
    Case {
        name: "rename over a file",
        before: make_two,
        act: rename_over,
        call: "renameat",
        when: 1,
        seen: |upper, _| !exists(&upper.join("d/one")),
    },
    Case {
        name: "rename over a file of the lower",
        before: make_two,
        act: |root| {
            let open = File::options()
                .read(true)
                .write(true)
                .open(root.join("d/lower"))
                .unwrap();
            fs::rename(root.join("d/one"), root.join("d/lower")).unwrap();
            check_removed(&open, b"of the image");
        },
        call: "renameat",
        when: 1,
        seen: |upper, _| !exists(&upper.join("d/one")),
    },
    Case {
        name: "rename of a file of the lower, copied up",
        before: make_two,
        act: |root| fs::rename(root.join("d/lower"), root.join("d/new")).unwrap(),
        call: "renameat2",
        when: 1,
        seen: |upper, _| exists(&upper.join("d/lower")),
    },
    Case {
        name: "rename of a file of the lower",
        before: make_two,
        act: |root| fs::rename(root.join("d/lower"), root.join("d/new")).unwrap(),
        call: "renameat2",
        when: 2,
        seen: |upper, _| is_whiteout(&upper.join("d/lower")),
    },
    Case {
        name: "rename of a directory of the lower",
        before: make_two,
        act: |root| {
            fs::rename(root.join("d/sub"), root.join("e/moved")).unwrap();
            fs::write(root.join("e/moved/deep"), "changed").unwrap();
        },
        call: "renameat2",
        when: 3,
        seen: |upper, _| is_whiteout(&upper.join("d/sub")),
    },
    Case {
        name: "rename of a directory over an empty one",
        before: |root| {
            fs::create_dir(root.join("d/from")).unwrap();
            fs::write(root.join("d/from/file"), "in it").unwrap();
            fs::create_dir(root.join("d/to")).unwrap();
        },
        act: |root| {
            fs::rename(root.join("d/from"), root.join("d/to")).unwrap();
            fs::write(root.join("d/to/file"), "changed").unwrap();
        },
        call: "renameat",
        when: 1,
        seen: |upper, _| !exists(&upper.join("d/from")),
    },
    Case {
        name: "exchange",
        before: make_two,
        act: |root| {
            let (one, two) = (root.join("d/one"), root.join("d/two"));
            rustix::fs::renameat_with(CWD, one, CWD, two, RenameFlags::EXCHANGE).unwrap();
        },
        call: "renameat2",
        when: 1,
        seen: |upper, _| fs::read(upper.join("d/two")).is_ok_and(|bytes| bytes == b"the first"),
    },
    Case {
        name: "setxattr with XATTR_CREATE",
        before: make_two,
        act: |root| {
            rustix::fs::setxattr(root.join("d/one"), "user.x", b"1", XattrFlags::CREATE).unwrap();
        },
        call: "lsetxattr",
        when: 1,
        seen: |upper, _| rustix::fs::getxattr(upper.join("d/one"), "user.x", &mut [0; 9]).is_ok(),
    },
    Case {
        name: "removexattr",
        before: |root| {
            make_two(root);
            rustix::fs::setxattr(root.join("d/one"), "user.x", b"1", XattrFlags::CREATE).unwrap();
        },
        act: |root| rustix::fs::removexattr(root.join("d/one"), "user.x").unwrap(),
        call: "lremovexattr",
        when: 1,
        seen: |upper, _| rustix::fs::getxattr(upper.join("d/one"), "user.x", &mut [0; 9]).is_err(),
    },
    Case {
        name: "chmod of a file of the lower",
        before: make_two,
        act: |root| {
            let mode = fs::Permissions::from_mode(0o600);
            fs::set_permissions(root.join("d/lower"), mode).unwrap();
        },
        call: "renameat2",
        when: 1,
        seen: |upper, _| exists(&upper.join("d/lower")),
    },
    Case {
        name: "append to a file of the lower",
        before: make_two,
        act: append,
        call: "renameat2",
        when: 1,
        seen: |upper, _| exists(&upper.join("d/lower")),
    },
    Case {
        name: "append",
        before: |root| {
            make_two(root);
            append(root);
        },
        act: append,
        call: "pwrite64",
        when: 1,
        seen: |upper, _| fs::metadata(upper.join("d/lower")).is_ok_and(|file| file.len() == 24),
    },
    Case {
        name: "O_TMPFILE",
        before: make_two,
        act: link_unnamed,
        call: "renameat2",
        when: 1,
        seen: |_, work| has_orphan(work),
    },
];

/// `FUSE_DEV_IOC_BACKING_OPEN` of include/uapi/linux/fuse.h:
/// `_IOW(229, 1, struct fuse_backing_map)`.
const BACKING_OPEN: &str = "0x4010e501";

/// Opens in passthrough. By `ioctl` a file is registered with the kernel; those cases are seen when
/// a thread is held back in that.
const OPENS: &[Case] = &[
    Case {
        name: "unlink of a file of the lower that was copied up",
        before: |root| {
            make_two(root);
            append(root);
        },
        act: |root| remove_open_lower(root, b"of the image again"),
        call: "renameat2",
        when: 1,
        seen: |upper, _| is_whiteout(&upper.join("d/lower")),
    },
    Case {
        name: "create, opened",
        before: make_two,
        act: create,
        call: "ioctl",
        when: 1,
        seen: |upper, _| exists(&upper.join("d/new")),
    },
    Case {
        name: "open of a large file of the lower",
        before: make_two,
        act: |root| assert_eq!(fs::read(root.join("d/big")).unwrap(), BIG),
        call: "ioctl",
        when: 1,
        seen: |_, _| true,
    },
    Case {
        name: "open of a large file of the lower by two at a time",
        before: make_two,
        act: open_twice,
        call: "ioctl",
        when: 1,
        seen: |_, _| true,
    },
    Case {
        name: "open that truncates",
        before: make_two,
        act: |root| fs::write(root.join("d/one"), "short").unwrap(),
        call: "ftruncate",
        when: 1,
        seen: |upper, _| fs::metadata(upper.join("d/one")).is_ok_and(|file| file.len() == 0),
    },
    Case {
        name: "O_TMPFILE, opened",
        before: make_two,
        act: link_unnamed,
        call: "ioctl",
        when: 1,
        seen: |_, work| has_orphan(work),
    },
    Case {
        name: "append to a file of the lower, opened",
        before: make_two,
        act: append,
        // The first one tries to clone the content.
        call: "ioctl",
        when: 2,
        seen: |upper, _| exists(&upper.join("d/lower")),
    },
];

/// All opens of a file have one backing id, whatever order they are closed in.
fn open_twice(root: &Path) {
    let open = || File::open(root.join("d/big")).unwrap();
    let (mut first, mut second) = std::thread::scope(|scope| {
        let other = scope.spawn(open);
        (open(), other.join().unwrap())
    });
    assert_eq!(read_all(&mut first), BIG);
    drop(first);
    fs::metadata(root.join("d/big")).unwrap();
    let mut third = open();
    for file in [&mut second, &mut third] {
        assert_eq!(read_all(file), BIG);
    }
}

fn remove_open_lower(root: &Path, content: &[u8]) {
    let mut options = File::options();
    let open = options.read(true).write(true).open(root.join("d/lower"));
    fs::remove_file(root.join("d/lower")).unwrap();
    check_removed(&open.unwrap(), content);
}

fn create(root: &Path) {
    let mut options = File::options();
    let made = options
        .write(true)
        .create_new(true)
        .open(root.join("d/new"));
    made.unwrap().write_all(b"new").unwrap();
}

fn link_unnamed(root: &Path) {
    let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    let file = rustix::fs::open(root.join("d"), flags, mode).unwrap();
    let mut file = File::from(file);
    file.write_all(b"unnamed").unwrap();
    let own = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    rustix::fs::linkat(CWD, own, CWD, root.join("d/new"), AtFlags::SYMLINK_FOLLOW).unwrap();
}

fn append(root: &Path) {
    let mut file = File::options()
        .append(true)
        .open(root.join("d/lower"))
        .unwrap();
    file.write_all(b" again").unwrap();
}

fn rename_over(root: &Path) {
    let open = File::options()
        .read(true)
        .write(true)
        .open(root.join("d/two"))
        .unwrap();
    fs::rename(root.join("d/one"), root.join("d/two")).unwrap();
    check_removed(&open, b"the second, longer");
}

/// A file without a name is as good as before.
fn check_removed(open: &File, content: &[u8]) {
    let removed = open.metadata().unwrap();
    assert_eq!((removed.nlink(), removed.len()), (0, content.len() as u64));
    open.write_all_at(b"more", removed.len()).unwrap();
    let mut bytes = vec![0; content.len() + 4];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [content, b"more"].concat());
}

/// Holds the worker back at the end of a system call.
fn hold_back(mount: &Mount, case: &Case) -> Child {
    let (call, when) = (case.call, case.when);
    let trace = format!("trace={call}");
    let inject = format!("inject={call}:delay_exit=600s:when={when}");
    let worker = mount.current_worker().unwrap();
    attach(worker, ["-o", "/dev/null", "-e", &trace, "-e", &inject])
}

/// Whether a thread of the worker is stopped in the registration of a file.
fn is_registering(worker: Pid) -> bool {
    let worker = worker.as_raw_nonzero();
    let Ok(threads) = fs::read_dir(format!("/proc/{worker}/task")) else {
        return false;
    };
    threads.flatten().any(|thread| {
        let read = |name| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        read("status").contains("(tracing stop)") && read("syscall").contains(BACKING_OPEN)
    })
}

/// Holds each thread of the worker back once it has answered a request.
fn hold_back_answered(mount: &Mount) -> Child {
    let worker = mount.current_worker().unwrap();
    let inject = "inject=write:delay_exit=600s:when=1";
    attach(
        worker,
        ["-o", "/dev/null", "-e", "trace=write", "-e", inject],
    )
}

/// Changes names, and undoes that or makes the names anew, so that each change could be made twice.
fn change_and_undo(root: &Path) {
    let at = |name: &str| root.join("d").join(name);
    fs::remove_file(at("one")).unwrap();
    fs::write(at("one"), "made again").unwrap();
    fs::rename(at("two"), at("renamed")).unwrap();
    fs::write(at("two"), "another").unwrap();
    fs::create_dir(at("dir")).unwrap();
    fs::remove_dir(at("dir")).unwrap();
    fs::hard_link(at("lower"), at("linked")).unwrap();
    fs::remove_file(at("linked")).unwrap();
    std::os::unix::fs::symlink("there", at("symlink")).unwrap();
    fs::remove_file(at("symlink")).unwrap();
}

#[test]
fn request_whose_answer_the_kernel_has_is_not_done_again() {
    let (image, plain) = Image::beside_plain(FILES);
    let mount = image.mount_writable(IoModeChoice::Cached, "upper");
    let root = mount.path("");
    make_two(&root);
    make_two(&plain);
    let mut strace = hold_back_answered(&mount);
    change_and_undo(&root);
    assert!(mount.kill_worker());
    // It would count the seconds before it lets go of the dead.
    strace.kill().unwrap();
    strace.wait().unwrap();
    change_and_undo(&plain);
    assert_same(&below(&plain), &below(&root), "after the worker's death");
    assert!(mount.unmount().success(), "{}", image.log());
    let log = image.log();
    assert_eq!(log.matches("another one serves on").count(), 1, "{log}");
}

/// Makes a lower of files, and the same as a plain directory.
type Make = fn(&[(&str, &[u8])]) -> (Image, PathBuf);

fn check(make: Make, choice: IoModeChoice, case: &Case, number: usize) {
    let (image, plain) = make(FILES);
    let upper = format!("upper-{number}");
    let work = image.path(&format!("{upper}.work"));
    let mount = image.mount_writable(choice, &upper);
    let (root, upper) = (mount.path(""), image.path(&upper));
    (case.before)(&root);
    (case.before)(&plain);
    let mut strace = hold_back(&mount, case);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| (case.act)(&root));
        let worker = mount.current_worker().unwrap();
        let is_called = || case.call != "ioctl" || is_registering(worker);
        let seen = || is_called() && (case.seen)(&upper, &work) || client.is_finished();
        assert!(eventually(seen), "{}: no such call", case.name);
        let held = !client.is_finished();
        assert!(mount.kill_worker());
        // It would count the seconds before it lets go of the dead.
        strace.kill().unwrap();
        strace.wait().unwrap();
        assert!(held, "{}: nothing is held back", case.name);
    });
    (case.act)(&plain);
    assert_same(&below(&plain), &below(&root), case.name);
    // Nothing is kept for files that are gone.
    let no_orphan = || !has_orphan(&work);
    assert!(eventually(no_orphan), "{}: an orphan stays", case.name);
    assert!(mount.unmount().success(), "{}", image.log());
    let log = image.log();
    assert_eq!(log.matches("another one serves on").count(), 1, "{log}");
}

fn check_all(make: Make) {
    for (number, case) in CASES.iter().enumerate() {
        check(make, IoModeChoice::Cached, case, number);
    }
}

#[test]
fn requests_interrupted_in_passthrough_are_answered_once() {
    if !common::modes().contains(&IoModeChoice::Passthrough) {
        // `places.rs` holds that the kernel refuses such a mount.
        return;
    }
    for (number, case) in CASES.iter().chain(OPENS).enumerate() {
        // The kernel writes by itself, and an open for writing copies up.
        if !["pwrite64", "mknodat"].contains(&case.call) {
            check(Image::beside_plain, IoModeChoice::Passthrough, case, number);
        }
    }
}

#[test]
fn requests_interrupted_after_their_change_are_answered_once() {
    check_all(Image::beside_plain);
}

#[test]
fn requests_interrupted_after_their_change_are_answered_once_as_user() {
    if !is_here() {
        return there(USER_NAMESPACE);
    }
    check_all(Image::beside_plain);
}

#[test]
fn requests_interrupted_after_their_change_are_answered_once_over_layers() {
    if !is_here() {
        return there(OWN_MOUNTS);
    }
    check_all(Image::layers_beside_plain);
}

#[test]
fn requests_interrupted_after_their_change_are_answered_once_over_layers_as_user() {
    if !is_here() {
        return there(USER_NAMESPACE);
    }
    check_all(Image::layers_beside_plain);
}
