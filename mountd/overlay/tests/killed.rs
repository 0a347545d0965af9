//! SIGKILL at any system call: the upper then shows the state before or after the running
//! operation, compared with a plain directory, and the work directory is empty.
//!
//! strace delivers SIGKILL at the n-th call of each kind that changes something, for every n.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

use cowl_core::tree::{FileType, Rdev};
use cowl_tests::skip::skip;
use rustix::fs::{AtFlags, CWD, FileType as HostType, Mode, RenameFlags};

use super::super::*;
use super::rules::small;
use super::view::{self, Tree};
use super::{Fixture, ROOT_CALLER, WRITE, mode, parent_and_name, walk};

/// The steps: an operation and its arguments.
const STEPS: &[&str] = &[
    "chmod dir/one",
    "write dir/one",
    "write file",
    "chmod link",
    "unlink file",
    "make file",
    "unlink file",
    "mkdir file",
    "null zero",
    "write hard",
    "link hard third",
    "unlink dir/hard",
    "rename third fourth",
    "exchange hard dir/one",
    "unlink hard",
    "rename dir/sub moved",
    "write moved/deep",
    "rename empty dir/sub",
    "mkdir empty",
    "rename moved/deep empty/deep",
    "unlink empty/deep",
    "rename dir empty",
    "rename empty/sub moved",
    "exchange empty file",
    "unlink null",
    "rename zero null",
    "truncate fourth",
    "unlink fourth",
    "rmdir moved",
];

/// Calls that change something or come right before one.
const CALLS: [&str; 18] = [
    "renameat",
    "mkdirat",
    "mknodat",
    "symlinkat",
    "linkat",
    "unlinkat",
    "renameat2",
    "lsetxattr",
    "lremovexattr",
    "fchownat",
    "fchmodat",
    "utimensat",
    "ftruncate",
    "copy_file_range",
    "ioctl",
    "pwrite64",
    "fdatasync",
    "fsync",
];

const BASE: &str = "COWL_KILLED_BASE";

fn split(step: &str) -> (&str, &str, &str) {
    let mut words = step.split(' ');
    let (what, first) = (words.next().unwrap(), words.next().unwrap());
    (what, first, words.next().unwrap_or_default())
}

fn do_on_overlay(overlay: &Overlay, step: &str) -> Result<(), Errno> {
    let (what, path, other) = split(step);
    let (dir, name) = parent_and_name(overlay, path)?;
    let none = Rdev::default();
    let node = || walk(overlay, path);
    match what {
        "chmod" if overlay.getattr(node()?)?.file_type == FileType::Symlink => {
            let owner = SetAttr {
                uid: Some(1),
                gid: Some(2),
                ..SetAttr::default()
            };
            overlay.setattr(node()?, &owner).map(drop)
        }
        "chmod" => overlay.setattr(node()?, &mode(0o711)).map(drop),
        "truncate" => overlay
            .setattr(
                node()?,
                &SetAttr {
                    size: Some(2),
                    ..SetAttr::default()
                },
            )
            .map(drop),
        "write" => {
            let opened = overlay.open(node()?, WRITE)?;
            overlay.write(node()?, Some(opened.handle), 0, b"X", false)?;
            overlay.release(node()?, opened.handle)
        }
        "unlink" => overlay.unlink(dir, name),
        "rmdir" => overlay.rmdir(dir, name),
        "mkdir" => overlay.mkdir(dir, name, 0o755, 0, &ROOT_CALLER).map(drop),
        "make" => overlay
            .mknod(dir, name, FileType::Regular, 0o644, none, 0, &ROOT_CALLER)
            .map(drop),
        "null" => overlay
            .mknod(
                dir,
                name,
                FileType::CharDevice,
                0o644,
                none,
                0,
                &ROOT_CALLER,
            )
            .map(drop),
        "link" => {
            let (dir, name) = parent_and_name(overlay, other)?;
            overlay.link(node()?, dir, name).map(drop)
        }
        "rename" | "exchange" => {
            let (new_dir, new_name) = parent_and_name(overlay, other)?;
            let mode = if what == "rename" {
                RenameMode::Replace
            } else {
                RenameMode::Exchange
            };
            overlay.rename(dir, name, new_dir, new_name, mode)
        }
        _ => panic!("{step}"),
    }
}

fn do_on_plain(root: &Path, step: &str) -> Result<(), Errno> {
    let (what, path, other) = split(step);
    let (at, other) = (root.join(path), root.join(other));
    let make = |kind| rustix::fs::mknodat(CWD, &at, kind, Mode::from_raw_mode(0o644), 0);
    match what {
        "chmod" if at.is_symlink() => {
            let (uid, gid) = (rustix::fs::Uid::from_raw(1), rustix::fs::Gid::from_raw(2));
            rustix::fs::chownat(CWD, &at, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        }
        "chmod" => rustix::fs::chmod(&at, Mode::from_raw_mode(0o711)),
        "truncate" => rustix::fs::ftruncate(OpenOptions::new().write(true).open(&at).unwrap(), 2),
        "write" => {
            OpenOptions::new()
                .write(true)
                .open(&at)
                .unwrap()
                .write_all(b"X")
                .unwrap();
            Ok(())
        }
        "unlink" => rustix::fs::unlink(&at),
        "rmdir" => rustix::fs::rmdir(&at),
        "mkdir" => rustix::fs::mkdirat(CWD, &at, Mode::from_raw_mode(0o755)),
        "make" => make(HostType::RegularFile),
        "null" => make(HostType::CharacterDevice),
        "link" => rustix::fs::link(&at, other),
        "rename" => rustix::fs::rename(&at, other),
        "exchange" => rustix::fs::renameat_with(CWD, &at, CWD, other, RenameFlags::EXCHANGE),
        _ => panic!("{step}"),
    }
}

/// The process that is killed; the other test starts it.
#[test]
fn child_process() {
    let Some(base) = std::env::var_os(BASE) else {
        return;
    };
    let base = Path::new(&base);
    let no_flags = base.join("no-flags").exists();
    let tree = fs::read(base.join("tree")).unwrap();
    let overlay = super::open_at(base, &tree, IoMode::Passthrough, true).unwrap();
    let mut done = OpenOptions::new()
        .append(true)
        .create(true)
        .open(base.join("done"))
        .unwrap();
    for step in STEPS {
        let outcome = do_on_overlay(&overlay, step);
        if no_flags && step.starts_with("exchange") {
            assert_eq!(outcome, Err(Errno::INVAL));
        } else {
            outcome.unwrap_or_else(|errno| panic!("{step}: {errno}"));
        }
        done.write_all(b".").unwrap();
    }
}

/// Runs the steps in a process to which strace does something at some calls.
fn child(fixture: &Fixture, call: &str, done: &str) -> ExitStatus {
    fs::write(fixture.path("done"), "").unwrap();
    let mut command = Command::new("strace");
    command
        .args(["-f", "-qq", "-o", "/dev/null"])
        .args(["-e", &format!("trace={call}")])
        .args(["-e", &format!("inject={call}:{done}")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "overlay::tests::killed::child_process"])
        .arg("--test-threads=1")
        .env(BASE, fixture.base.path());
    super::run(&mut command).status
}

/// Runs the steps in a process that is killed at its n-th such call; returns whether it was.
fn run_killed(fixture: &Fixture, call: &str, n: usize) -> bool {
    for name in ["upper", "work"] {
        fs::remove_dir_all(fixture.path(name)).unwrap();
        fs::create_dir(fixture.path(name)).unwrap();
    }
    let ended = child(fixture, call, &format!("signal=KILL:when={n}"));
    assert!(
        ended.success() || ended.signal() == Some(9),
        "{n}: {ended:?}"
    );
    !ended.success()
}

/// A kill between two names of one operation may leave a link count that is one too high, and one
/// in the midst of a copy-up the time of the directory above: neither is a state that POSIX would
/// give, and neither loses anything.
fn is_state(ours: &Tree, plain: &Tree) -> bool {
    ours.len() == plain.len()
        && ours
            .iter()
            .zip(plain)
            .all(|(ours, plain)| ours.0 == plain.0 && view::may_be(ours.1, plain.1))
}

#[test]
fn sigkill_at_any_system_call_leaves_the_old_or_the_new_state() {
    if !super::model::owners() {
        return skip("neither devices nor files of other users can be made here");
    }
    let fixture = small();
    fixture.write_tree();
    let plain = fixture.path("plain");
    let mut states = vec![view::of_directory(&plain)];
    for step in STEPS {
        do_on_plain(&plain, step).unwrap_or_else(|errno| panic!("{step}: {errno}"));
        states.push(view::of_directory(&plain));
    }
    let mut kills = 0;
    for call in CALLS {
        let mut n = 1;
        while run_killed(&fixture, call, n) {
            check_killed(&fixture, &states, &format!("{call} {n}"));
            kills += 1;
            n += 1;
        }
    }
    assert!(kills > 100, "strace counts nothing: {kills}");
}

#[test]
fn sigkill_leaves_the_old_or_the_new_state_where_whiteouts_are_files() {
    if !super::model::owners() {
        return skip("neither devices nor files of other users can be made here");
    }
    let all = "overlay::tests::killed::sigkill_at_any_system_call_leaves_the_old_or_the_new_state";
    super::run_on_overlayfs(&["--exact", all]);
}

#[test]
fn sigkill_leaves_the_old_or_the_new_state_where_marks_are_links() {
    if !super::model::owners() {
        return skip("neither devices nor files of other users can be made here");
    }
    let all = "overlay::tests::killed::sigkill_at_any_system_call_leaves_the_old_or_the_new_state";
    super::run_on_ramfs(&["--exact", all]);
}

/// NFS has no flag of renameat2. There an exchange fails, as on a plain directory.
#[test]
fn renames_need_no_flags_of_the_upper() {
    let fixture = small();
    if !super::model::owners() {
        return skip("neither devices nor files of other users can be made here");
    }
    fixture.write_tree();
    let plain = fixture.path("plain");
    for step in STEPS.iter().filter(|step| !step.starts_with("exchange")) {
        do_on_plain(&plain, step).unwrap_or_else(|errno| panic!("{step}: {errno}"));
    }
    fs::write(fixture.path("no-flags"), "").unwrap();
    let status = child(&fixture, "renameat2", "error=EINVAL");
    assert!(status.success(), "{status:?}");
    let done = fs::read(fixture.path("done")).unwrap().len();
    assert_eq!(done, STEPS.len());
    let ours = view::of_overlay(&fixture.overlay());
    view::assert_same(&ours, &view::of_directory(&plain), &[]);
}

fn check_killed(fixture: &Fixture, states: &[Tree], at: &str) {
    let done = fs::read(fixture.path("done")).unwrap().len();
    let overlay = fixture.overlay();
    let ours = view::of_overlay(&overlay);
    let step = STEPS.get(done).unwrap_or(&"the end");
    let next = (done + 1).min(STEPS.len());
    if !is_state(&ours, &states[done]) && !is_state(&ours, &states[next]) {
        view::assert_same(
            &ours,
            &states[done],
            &[format!("killed at {at}, in \"{step}\"")],
        );
    }
    for name in ["work/tmp", "work/orphans"] {
        assert_eq!(
            super::on_disk(&fixture.path(name)),
            [""; 0],
            "killed at {at}, in \"{step}\""
        );
    }
    overlay
        .mkdir(NodeId::ROOT, b"alive", 0o755, 0, &ROOT_CALLER)
        .unwrap();
}
