use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use cowl_tests::skip::skip;

use super::marks::Namespace;
use super::*;
use crate::digest::{ChainId, Sha256Digest};

fn stamp(text: &str, numbering: u16) -> Stamp {
    Stamp {
        chain: ChainId(Sha256Digest::of(text.as_bytes())),
        numbering,
    }
}

fn open(base: &Path, stamp: &Stamp) -> Result<Upper, UpperError> {
    for name in ["upper", "work"] {
        fs::create_dir_all(base.join(name)).unwrap();
    }
    let dir = |name: &str| OwnedFd::from(File::open(base.join(name)).unwrap());
    Upper::open(
        dir("upper"),
        &dir("work"),
        Base::Tree {
            stamp,
            volatile: false,
        },
    )
}

#[test]
fn open_finds_a_new_upper_empty_until_it_is_stamped() {
    let base = tempfile::tempdir().unwrap();
    let upper = open(base.path(), &stamp("a", 1)).unwrap();
    assert_eq!(upper.condition(), Condition::Empty);
    upper.stamp(&stamp("a", 1)).unwrap();
    drop(upper);
    assert_eq!(
        open(base.path(), &stamp("a", 1)).unwrap().condition(),
        Condition::Stamped
    );
    let base = tempfile::tempdir().unwrap();
    fs::create_dir_all(base.path().join("upper/something")).unwrap();
    assert_eq!(
        open(base.path(), &stamp("a", 1)).unwrap().condition(),
        Condition::Unstamped
    );
}

fn namespace(upper: &Upper) -> Namespace {
    upper.mark_store().namespace().unwrap()
}

/// What ext4 keeps of a small unsynced file after a power cut: its length, its name, or nothing.
#[test]
fn open_accepts_a_lock_file_zeroed_by_a_power_cut() {
    for left in ["", "\0\0\0\0\0\0\0\0"] {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("work")).unwrap();
        fs::write(base.path().join("work/lock"), left).unwrap();
        let space = namespace(&open(base.path(), &stamp("a", 1)).unwrap());
        let said = fs::read_to_string(base.path().join("work/lock")).unwrap();
        assert_eq!(
            format!("{}.\n", said.trim_end()),
            format!("{}\n", space.prefix())
        );
    }
    let base = tempfile::tempdir().unwrap();
    fs::create_dir(base.path().join("work")).unwrap();
    fs::write(base.path().join("work/lock"), "sidecar\n").unwrap();
    assert!(open(base.path(), &stamp("a", 1)).is_err());
}

#[test]
fn open_refuses_another_chain_or_numbering() {
    let base = tempfile::tempdir().unwrap();
    open(base.path(), &stamp("a", 1))
        .unwrap()
        .stamp(&stamp("a", 1))
        .unwrap();
    let error = open(base.path(), &stamp("b", 1)).unwrap_err();
    assert!(matches!(error, UpperError::OtherChain { .. }), "{error}");
    let error = open(base.path(), &stamp("a", 2)).unwrap_err();
    assert!(
        matches!(
            error,
            UpperError::OtherNumbering {
                found: 1,
                wanted: 2
            }
        ),
        "{error}"
    );
}

#[test]
fn open_fails_while_the_upper_is_locked() {
    let base = tempfile::tempdir().unwrap();
    let first = open(base.path(), &stamp("a", 1)).unwrap();
    assert!(matches!(
        open(base.path(), &stamp("a", 1)).unwrap_err(),
        UpperError::InUse
    ));
    drop(first);
    open(base.path(), &stamp("a", 1)).unwrap();
}

#[test]
fn open_refuses_a_locked_upper_with_another_work_directory() {
    let base = tempfile::tempdir().unwrap();
    let first = open(base.path(), &stamp("a", 1)).unwrap();
    fs::create_dir(base.path().join("other")).unwrap();
    let second = || {
        let dir = |name: &str| OwnedFd::from(File::open(base.path().join(name)).unwrap());
        Upper::open(
            dir("upper"),
            &dir("other"),
            Base::Tree {
                stamp: &stamp("a", 1),
                volatile: false,
            },
        )
    };
    assert!(matches!(second().unwrap_err(), UpperError::InUse));
    drop(first);
    second().unwrap();
}

#[test]
fn open_empties_tmp_and_orphans_but_keeps_the_index() {
    let base = tempfile::tempdir().unwrap();
    let upper = open(base.path(), &stamp("a", 1)).unwrap();
    upper.stamp(&stamp("a", 1)).unwrap();
    drop(upper);
    let work = base.path().join("work");
    fs::create_dir(work.join("tmp/7")).unwrap();
    File::create(work.join("tmp/7/f")).unwrap();
    File::create(work.join("tmp/8")).unwrap();
    File::create(work.join("orphans/3")).unwrap();
    File::create(work.join("index/12")).unwrap();
    let upper = open(base.path(), &stamp("a", 1)).unwrap();
    let count = |name: &str| fs::read_dir(work.join(name)).unwrap().count();
    assert_eq!((count("tmp"), count("orphans"), count("index")), (0, 0, 1));
    assert_eq!(upper.indexed().unwrap(), [12]);
}

#[test]
fn open_refuses_a_work_directory_on_another_file_system() {
    let base = tempfile::tempdir().unwrap();
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else {
        return skip("no second file system: /dev/shm cannot be written to");
    };
    let device = |path: &Path| rustix::fs::stat(path).unwrap().st_dev;
    if device(base.path()) == device(other.path()) {
        return skip("no second file system: the temporary directory is in /dev/shm's");
    }
    let root = OwnedFd::from(File::open(other.path()).unwrap());
    let work = OwnedFd::from(File::open(base.path()).unwrap());
    assert!(matches!(
        Upper::open(
            root,
            &work,
            Base::Tree {
                stamp: &stamp("a", 1),
                volatile: false
            }
        ),
        Err(UpperError::TwoFileSystems)
    ));
}

#[test]
fn open_of_an_upper_with_trusted_marks_needs_privilege() {
    let base = tempfile::tempdir().unwrap();
    let upper = open(base.path(), &stamp("a", 1)).unwrap();
    let space = namespace(&upper);
    drop(upper);
    let said = fs::read_to_string(base.path().join("work/lock")).unwrap();
    assert_eq!(said, format!("{}\n", space.prefix().trim_end_matches('.')));
    if space == Namespace::User {
        fs::write(base.path().join("work/lock"), "trusted\n").unwrap();
        fs::write(base.path().join("upper/file"), "").unwrap();
        assert!(matches!(
            open(base.path(), &stamp("a", 1)),
            Err(UpperError::NeedsPrivilege)
        ));
    }
}

#[test]
fn marks_and_xattrs_work_on_every_file_type() {
    let base = tempfile::tempdir().unwrap();
    let upper = open(base.path(), &stamp("a", 1)).unwrap();
    std::os::unix::fs::symlink("nowhere", base.path().join("upper/link")).unwrap();
    File::create(base.path().join("upper/file")).unwrap();
    for name in [&b"link"[..], b"file", b"."] {
        let name_at = NameAt::new(upper.root(), name);
        let (store, space) = (upper.mark_store(), namespace(&upper));
        if name == b"link" && space == Namespace::User {
            continue;
        }
        let value = marks::FileMark {
            origin: Some(marks::Origin::Node(crate::tree::TreeIno(5))),
            ..marks::FileMark::default()
        }
        .encode();
        assert_eq!(name_at.mark(store, Mark::File).unwrap(), None);
        name_at.set_mark(store, Mark::File, &value).unwrap();
        assert_eq!(name_at.mark(store, Mark::File).unwrap().unwrap(), value);
        let names = name_at.xattr_names().unwrap();
        assert_eq!(
            names.split(|byte| *byte == 0).next().unwrap(),
            Mark::File.name(space).as_bytes()
        );
        name_at.clear_mark(store, Mark::File).unwrap();
        name_at.clear_mark(store, Mark::File).unwrap();
    }
    let long = vec![b'v'; 3000];
    let file = NameAt::new(upper.root(), b"file");
    file.set_xattr(b"user.long", &long, rustix::fs::XattrFlags::empty())
        .unwrap();
    assert_eq!(file.xattr(b"user.long").unwrap().unwrap(), long);
}

/// The directory that everything is in, with an upper whose whiteouts are files.
fn with_whiteout_files() -> (tempfile::TempDir, Upper) {
    let base = tempfile::tempdir().unwrap();
    open(base.path(), &stamp("a", 1))
        .unwrap()
        .stamp(&stamp("a", 1))
        .unwrap();
    let lock = base.path().join("work/lock");
    let record = fs::read_to_string(&lock).unwrap();
    fs::write(lock, record.replace('\n', " .wh.\n")).unwrap();
    let upper = open(base.path(), &stamp("a", 1)).unwrap();
    (base, upper)
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// An upper keeps its first mount's whiteouts; a new one gets devices, where they can be made.
#[test]
fn open_keeps_the_recorded_kind_of_whiteouts() {
    let (base, upper) = with_whiteout_files();
    assert_eq!(upper.whiteouts(), Whiteouts::Files);
    drop(upper);
    let upper = open(base.path(), &stamp("a", 1)).unwrap();
    assert_eq!(upper.whiteouts(), Whiteouts::Files);
    let dir = |name: &str| OwnedFd::from(File::open(base.path().join(name)).unwrap());
    let mounted = Upper::of_mount(dir("upper"), &dir("work"), &stamp("a", 1)).unwrap();
    assert_eq!(mounted.whiteouts(), Whiteouts::Files);
    let recorded = |name| recorded_whiteouts(dir(name).as_fd()).unwrap();
    assert_eq!(recorded("work"), Some(Whiteouts::Files));
    assert_eq!(recorded("upper"), None);
    drop(upper);
    fs::remove_dir(base.path().join("upper")).unwrap();
    let upper = open(base.path(), &stamp("a", 1)).unwrap();
    assert_eq!(upper.whiteouts(), Whiteouts::Devices);
    fs::write(base.path().join("upper/file"), "").unwrap();
    drop(upper);
    fs::write(base.path().join("work/lock"), "user .xx.\n").unwrap();
    assert!(open(base.path(), &stamp("a", 1)).is_err());
}

#[test]
fn moves_leave_whiteout_files_and_take_their_place() {
    let (base, upper) = with_whiteout_files();
    let dir = base.path().join("upper");
    let (one, two) = (
        NameAt::new(upper.root(), b"one"),
        NameAt::new(upper.root(), b"two"),
    );
    let away = NameAt::new(upper.tmp(), b"away");
    fs::create_dir(dir.join("one")).unwrap();
    upper.move_away(one, away, true).unwrap();
    assert_eq!(names_in(&dir), [".wh.one"]);
    upper.move_in(away, one, true, true).unwrap();
    upper.drop_whiteout_file(one).unwrap();
    assert_eq!(names_in(&dir), ["one"]);
    upper.make_whiteout(two).unwrap();
    let renamed = whiteouts::Renamed {
        directory: true,
        hides: true,
        over_whiteout: true,
    };
    assert!(!upper.swaps(renamed));
    upper.rename(one, two, renamed).unwrap();
    assert_eq!(names_in(&dir), [".wh.one", ".wh.two", "two"]);
    // A failure leaves nothing behind.
    fs::create_dir(base.path().join("work/tmp/away")).unwrap();
    assert_eq!(upper.move_away(two, away, true), Err(Errno::EXIST));
    assert_eq!(names_in(&dir), [".wh.one", "two"]);
}

#[test]
fn list_tells_whiteout_files_from_needless_ones_and_from_marks_of_aufs() {
    use scan::Listed;
    let (base, upper) = with_whiteout_files();
    let dir = base.path().join("upper");
    for name in [
        ".wh.gone",
        ".wh.both",
        "both",
        ".wh.",
        ".wh..",
        ".wh...",
        ".wh..wh..opq",
        ".wh..hidden",
        "x.wh.y",
    ] {
        fs::write(dir.join(name), "").unwrap();
    }
    NameAt::new(upper.root(), b"device")
        .make_whiteout()
        .unwrap();
    let mut found = Vec::new();
    scan::list(
        upper.root(),
        upper.whiteouts(),
        upper.spelling(),
        |name, listed| {
            let listed = match listed {
                Listed::Whiteout => "hidden",
                Listed::DeviceWhiteout => "hidden by a device",
                Listed::NeedlessWhiteout => "needless",
                Listed::File { .. } => "file",
            };
            found.push((String::from_utf8(name.to_vec()).unwrap(), listed));
            Ok(())
        },
    )
    .unwrap();
    found.sort();
    let expected = [
        (".hidden", "hidden"),
        ("both", "file"),
        ("both", "needless"),
        ("device", "hidden by a device"),
        ("gone", "hidden"),
        ("x.wh.y", "file"),
    ];
    assert_eq!(found, expected.map(|(name, what)| (name.to_owned(), what)));
}

#[test]
fn make_whiteout_creates_a_character_device_0_0() {
    let base = tempfile::tempdir().unwrap();
    let upper = open(base.path(), &stamp("a", 1)).unwrap();
    for name in [&b"gone"[..], b"gone too"] {
        let name_at = NameAt::new(upper.root(), name);
        upper.make_whiteout(name_at).unwrap();
        assert!(name_at::is_whiteout(&name_at.stat().unwrap()));
        assert_eq!(upper.make_whiteout(name_at), Err(Errno::EXIST));
    }
    let of = |name: &str| fs::symlink_metadata(base.path().join("upper").join(name)).unwrap();
    assert!(of("gone").file_type().is_char_device());
    assert_eq!(of("gone").ino(), of("gone too").ino(), "one inode for all");
    // The next mount makes another; the old whiteouts remain.
    drop(upper);
    let upper = open(base.path(), &stamp("a", 1)).unwrap();
    let name_at = NameAt::new(upper.root(), b"later");
    upper.make_whiteout(name_at).unwrap();
    assert_ne!(of("later").ino(), of("gone").ino());
    assert_eq!(of("gone").nlink(), 2);
}

/// The user removed the upper and not the work directory beside it.
#[test]
fn open_drops_what_the_work_directory_has_of_a_removed_upper() {
    for entries in [&[][..], &["file"]] {
        let base = tempfile::tempdir().unwrap();
        let upper = open(base.path(), &stamp("a", 1)).unwrap();
        let space = namespace(&upper);
        upper.stamp(&stamp("a", 1)).unwrap();
        fs::write(base.path().join("work/index/5"), "of the removed upper").unwrap();
        drop(upper);
        // Of the same upper it stays.
        let upper = open(base.path(), &stamp("a", 1)).unwrap();
        assert_eq!(upper.indexed().unwrap().len(), 1);
        drop(upper);
        fs::remove_dir_all(base.path().join("upper")).unwrap();
        fs::create_dir(base.path().join("upper")).unwrap();
        for name in entries {
            fs::write(base.path().join("upper").join(name), "").unwrap();
        }
        let upper = open(base.path(), &stamp("b", 2)).unwrap();
        assert_eq!(upper.indexed().unwrap().len(), 0);
        assert_eq!(namespace(&upper), space);
    }
}

/// As a later mount with more rights finds an upper whose only change is one of its root.
#[test]
fn open_keeps_to_marks_in_links_though_attributes_work() {
    let base = tempfile::tempdir().unwrap();
    drop(open(base.path(), &stamp("a", 1)).unwrap());
    let [upper, work] = ["upper", "work"].map(|name| File::open(base.path().join(name)).unwrap());
    fs::write(base.path().join("work/lock"), "links\n").unwrap();
    let links = MarkLinks::open(work.as_fd(), upper.as_fd(), true).unwrap();
    NameAt::new(upper.as_fd(), b".")
        .set_mark(
            &MarkStore::Links(links),
            Mark::Stamp,
            &stamp("a", 1).encode(),
        )
        .unwrap();
    let upper = open(base.path(), &stamp("a", 1)).unwrap();
    assert_eq!(upper.condition(), Condition::Stamped);
    assert!(upper.mark_store().namespace().is_none());
}

/// Without privilege marks in `trusted.` do not work, with it both do.
#[test]
fn open_of_a_new_upper_ignores_the_recorded_namespace() {
    let base = tempfile::tempdir().unwrap();
    let space = namespace(&open(base.path(), &stamp("a", 1)).unwrap());
    let own = fs::read_to_string(base.path().join("work/lock")).unwrap();
    for removed in ["trusted\n", "user\n"] {
        fs::write(base.path().join("work/lock"), removed).unwrap();
        let upper = open(base.path(), &stamp("a", 1)).unwrap();
        assert_eq!(namespace(&upper), space);
        assert_eq!(
            fs::read_to_string(base.path().join("work/lock")).unwrap(),
            own
        );
    }
}
