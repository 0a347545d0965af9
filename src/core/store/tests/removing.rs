use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use rustix::fs::{Mode, OFlags};

use super::*;

const NOBODY: u32 = 65_534;

fn open(dir: &Path) -> OwnedFd {
    rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

#[test]
fn remove_tree_does_not_follow_symlinks() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("gone/a/b")).unwrap();
    fs::create_dir(dir.path().join("kept")).unwrap();
    fs::write(dir.path().join("kept/file"), "x").unwrap();
    fs::write(dir.path().join("gone/a/file"), "x").unwrap();
    symlink("../../kept", dir.path().join("gone/a/link")).unwrap();
    symlink("kept", dir.path().join("link")).unwrap();
    let parent = open(dir.path());
    assert!(remove_tree(&parent, "gone").unwrap());
    assert!(!remove_tree(&parent, "gone").unwrap());
    assert!(remove_tree(&parent, "link").unwrap());
    assert!(fs::exists(dir.path().join("kept/file")).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn remove_tree_refuses_paths() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["", ".", "..", "a/b", "/etc", "a\0b"] {
        assert!(
            matches!(
                remove_tree(open(dir.path()), name),
                Err(StoreError::Name { .. })
            ),
            "{name:?}"
        );
    }
}

#[test]
fn remove_tree_handles_depth_beyond_path_max() {
    let dir = tempfile::tempdir().unwrap();
    let mut at = open(dir.path());
    for _ in 0..3000 {
        for name in ["deep", "side"] {
            rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
        }
        at = rustix::fs::openat(
            &at,
            "deep",
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap();
    }
    assert!(remove_tree(open(dir.path()), "deep").unwrap());
    assert!(remove_tree(open(dir.path()), "side").unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// As an ordinary user, also when the tests run as root: user ids belong to threads.
fn as_nobody(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            if rustix::process::geteuid().is_root() {
                let id = rustix::process::Uid::from_raw(NOBODY);
                rustix::thread::set_thread_res_uid(id, id, id).unwrap();
            }
            work();
        });
        worker.join().unwrap();
    });
}

#[test]
fn remove_tree_opens_unreadable_directories() {
    let dir = tempfile::tempdir().unwrap();
    for path in ["t/none/below", "t/no-write", "t/no-read"] {
        fs::create_dir_all(dir.path().join(path)).unwrap();
    }
    fs::write(dir.path().join("t/no-write/file"), "x").unwrap();
    fs::write(dir.path().join("t/no-read/file"), "x").unwrap();
    if rustix::process::geteuid().is_root() {
        let all = [
            "",
            "t",
            "t/none",
            "t/none/below",
            "t/no-write",
            "t/no-write/file",
            "t/no-read",
            "t/no-read/file",
        ];
        for path in all {
            chown(dir.path().join(path), Some(NOBODY), None).unwrap();
        }
    }
    for (path, mode) in [
        ("t/none/below", 0),
        ("t/none", 0),
        ("t/no-write", 0o500),
        ("t/no-read", 0o300),
    ] {
        fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    as_nobody(|| assert!(remove_tree(open(dir.path()), "t").unwrap()));
    assert!(!fs::exists(dir.path().join("t")).unwrap());
}

#[test]
fn store_works_for_an_unprivileged_user() {
    let dir = tempfile::tempdir().unwrap();
    if rustix::process::geteuid().is_root() {
        chown(dir.path(), Some(NOBODY), None).unwrap();
    }
    as_nobody(|| {
        let fixture = Fixture {
            store: Store::open_or_create(&dir.path().join("store")).unwrap(),
            dir: tempfile::tempdir().unwrap(),
        };
        let app = fixture.image("app", &[&[b"content"]]);
        assert_eq!(fixture.store.check(true).unwrap().problems, []);
        fixture.store.merged(&layers(&app)).unwrap();
        fixture.store.untag(&app).unwrap();
        assert_eq!(fixture.store.gc().unwrap().objects.number, 1);
    });
    let error = Store::open(&dir.path().join("nothing")).unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }));
}
