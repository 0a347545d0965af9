//! One test for each rule.

use cowl_core::upper::marks::Namespace;

use super::*;

/// Version 2; `user::rwx,user:0:rwx,group::r-x,mask::rwx,other::---`: tag and permissions u16, id u32, little-endian.
const DEFAULT_ACL: &[u8] =
    b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x07\0\0\0\0\0\x04\0\x05\0\xff\xff\xff\xff\
    \x10\0\x07\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

pub(super) fn small() -> Fixture {
    Fixture::new(&[
        ("file", 0o644, Made::File(b"content"), &[("user.a", b"1")]),
        ("dir", 0o755, Made::Dir, &[]),
        ("dir/one", 0o600, Made::File(b"one"), &[]),
        ("dir/sub", 0o700, Made::Dir, &[]),
        ("dir/sub/deep", 0o644, Made::File(b"deep"), &[]),
        ("hard", 0o644, Made::File(b"linked"), &[]),
        ("dir/hard", 0o644, Made::Link("hard"), &[]),
        ("link", 0o777, Made::Symlink("dir/one"), &[]),
        ("empty", 0o755, Made::Dir, &[]),
        ("null", 0o666, Made::Device(0, 0), &[]),
        ("fifo", 0o600, Made::Fifo, &[]),
    ])
}

fn write_to(overlay: &Overlay, path: &str, offset: u64, data: &[u8]) {
    let id = walk(overlay, path).unwrap();
    let opened = overlay.open(id, WRITE).unwrap();
    assert_eq!(
        overlay
            .write(id, Some(opened.handle), offset, data, false)
            .unwrap(),
        data.len()
    );
    overlay.release(id, opened.handle).unwrap();
}

#[test]
fn a_read_only_mount_shows_the_tree_and_refuses_every_change() {
    let fixture = small();
    let overlay = fixture.open_with(Profile::Passthrough, false).unwrap();
    assert_eq!(
        names(&overlay, ""),
        ["dir", "empty", "fifo", "file", "hard", "link", "null"]
    );
    assert_eq!(content(&overlay, "dir/sub/deep"), b"deep");
    let file = overlay.lookup(NodeId::ROOT, b"file").unwrap().unwrap();
    assert_eq!(
        (file.id.0, file.attr.ino, file.attr.mtime),
        (file.attr.ino, file.id.0, OLD)
    );
    assert_eq!(overlay.getxattr(file.id, b"user.a").unwrap(), b"1");
    assert_eq!(overlay.listxattr(file.id).unwrap(), b"user.a\0");
    assert_eq!(
        overlay.readlink(walk(&overlay, "link").unwrap()).unwrap(),
        b"dir/one"
    );
    assert_eq!(stat(&overlay, "dir").nlink, 3);
    assert_eq!(overlay.lookup(NodeId::ROOT, b"nothing").unwrap(), None);
    assert_eq!(overlay.lookup(file.id, b"x").unwrap_err(), Errno::NOTDIR);
    let root = NodeId::ROOT;
    let caller = &ROOT_CALLER;
    let changes: [(&str, Result<(), Errno>); 12] = [
        (
            "mkdir",
            overlay.mkdir(root, b"x", 0o755, 0, caller).map(drop),
        ),
        (
            "create",
            overlay
                .create(root, b"x", 0o644, 0, WRITE, caller)
                .map(drop),
        ),
        (
            "tmpfile",
            overlay.tmpfile(root, 0o644, 0, WRITE, caller).map(drop),
        ),
        (
            "symlink",
            overlay.symlink(root, b"x", b"y", caller).map(drop),
        ),
        ("link", overlay.link(file.id, root, b"x").map(drop)),
        ("unlink", overlay.unlink(root, b"file")),
        ("rmdir", overlay.rmdir(root, b"empty")),
        (
            "rename",
            overlay.rename(root, b"file", root, b"x", RenameMode::Replace),
        ),
        (
            "setattr",
            overlay.setattr(file.id, None, &mode(0)).map(drop),
        ),
        (
            "setxattr",
            overlay.setxattr(file.id, b"user.b", b"", XattrFlags::default()),
        ),
        ("removexattr", overlay.removexattr(file.id, b"user.a")),
        ("open", overlay.open(file.id, WRITE).map(drop)),
    ];
    for (what, result) in changes {
        assert_eq!(result, Err(Errno::ROFS), "{what}");
    }
}

#[test]
fn chmod_copies_no_data_and_a_write_copies_all() {
    let fixture = small();
    let overlay = fixture.overlay();
    let id = walk(&overlay, "dir/one").unwrap();
    let before = overlay.getattr(id, None).unwrap();
    let attr = overlay.setattr(id, None, &mode(0o640)).unwrap();
    assert_eq!(
        (attr.mode, attr.ino, attr.size, attr.mtime),
        (0o640, before.ino, 3, OLD)
    );
    assert_eq!(on_disk(&fixture.path("upper")), ["dir", "dir/one"]);
    let raw = fs::read(fixture.path("upper/dir/one")).unwrap();
    assert_eq!(raw, [0; 3]);
    assert_eq!(content(&overlay, "dir/one"), b"one");
    // Nothing visible happened to the directories above.
    assert_eq!(stat(&overlay, "dir").mtime, OLD);
    assert_eq!(overlay.getattr(NodeId::ROOT, None).unwrap().mtime, OLD);
    write_to(&overlay, "dir/one", 1, b"XY!");
    assert_eq!(fs::read(fixture.path("upper/dir/one")).unwrap(), b"oXY!");
    assert_eq!(content(&overlay, "dir/one"), b"oXY!");
    assert_eq!(walk(&overlay, "dir/one").unwrap(), id);
    drop(overlay);
    let overlay = fixture.overlay();
    assert_eq!(content(&overlay, "dir/one"), b"oXY!");
    assert_eq!(stat(&overlay, "dir/one").ino, before.ino);
}

#[test]
fn a_reader_sees_what_is_written_after_it_opened() {
    let fixture = small();
    let overlay = fixture.overlay();
    let id = walk(&overlay, "file").unwrap();
    let reader = overlay.open(id, OpenFlags::default()).unwrap();
    assert!(matches!(reader.mode, OpenMode::Cached));
    write_to(&overlay, "file", 0, b"CON");
    assert_eq!(read_all(&overlay, id, Some(reader.handle)), b"CONtent");
}

#[test]
fn a_large_file_read_from_its_object_gets_another_node_when_it_is_written() {
    let big = vec![7_u8; 2 << 20];
    let fixture = Fixture::new(&[("big", 0o644, Made::File(&big), &[])]);
    let overlay = fixture.overlay();
    let before = overlay.lookup(NodeId::ROOT, b"big").unwrap().unwrap();
    let reader = overlay.open(before.id, OpenFlags::default()).unwrap();
    assert!(matches!(
        reader.mode,
        OpenMode::Passthrough(Backing {
            side: Side::Lower,
            ..
        })
    ));
    assert_eq!(overlay.open(before.id, WRITE).unwrap_err(), Errno::STALE);
    let after = overlay.lookup(NodeId::ROOT, b"big").unwrap().unwrap();
    assert_ne!(after.id, before.id);
    assert_eq!(after.attr.ino, before.attr.ino);
    let writer = overlay.open(after.id, WRITE).unwrap();
    assert!(matches!(
        writer.mode,
        OpenMode::Passthrough(Backing {
            side: Side::Upper,
            ..
        })
    ));
    overlay
        .write(after.id, Some(writer.handle), 0, b"new", false)
        .unwrap();
    assert_eq!(
        &read_all(&overlay, before.id, Some(reader.handle))[..3],
        [7, 7, 7]
    );
    assert_eq!(&content(&overlay, "big")[..3], b"new");
    assert_eq!(
        overlay.open(before.id, OpenFlags::default()).unwrap_err(),
        Errno::STALE
    );
    assert_eq!(
        overlay.getattr(before.id, None).unwrap().ino,
        before.attr.ino
    );
}

#[test]
fn removing_copies_nothing() {
    let fixture = small();
    let overlay = fixture.overlay();
    overlay.unlink(NodeId::ROOT, b"file").unwrap();
    assert_eq!(on_disk(&fixture.path("upper")), ["file!"]);
    assert_eq!(overlay.lookup(NodeId::ROOT, b"file").unwrap(), None);
    assert_eq!(
        overlay.rmdir(NodeId::ROOT, b"dir").unwrap_err(),
        Errno::NOTEMPTY
    );
    overlay.rmdir(NodeId::ROOT, b"empty").unwrap();
    assert_eq!(on_disk(&fixture.path("upper")), ["empty!", "file!"]);
    drop(overlay);
    let overlay = fixture.overlay();
    assert_eq!(names(&overlay, ""), ["dir", "fifo", "hard", "link", "null"]);
}

#[test]
fn a_directory_made_over_a_removed_one_shows_nothing_of_it() {
    let fixture = small();
    let overlay = fixture.overlay();
    let sub = walk(&overlay, "dir/sub").unwrap();
    overlay.unlink(sub, b"deep").unwrap();
    let dir = walk(&overlay, "dir").unwrap();
    overlay.rmdir(dir, b"sub").unwrap();
    overlay.mkdir(dir, b"sub", 0o755, 0, &ROOT_CALLER).unwrap();
    assert_eq!(names(&overlay, "dir/sub"), [""; 0]);
    drop(overlay);
    let overlay = fixture.overlay();
    assert_eq!(names(&overlay, "dir/sub"), [""; 0]);
    assert_eq!(on_disk(&fixture.path("work/tmp")), [""; 0]);
}

#[test]
fn a_moved_directory_takes_its_children_along() {
    let fixture = small();
    let overlay = fixture.overlay();
    let ino = stat(&overlay, "dir/sub/deep").ino;
    overlay
        .rename(
            NodeId::ROOT,
            b"dir",
            NodeId::ROOT,
            b"moved",
            RenameMode::Replace,
        )
        .unwrap();
    assert_eq!(on_disk(&fixture.path("upper")), ["dir!", "moved"]);
    assert_eq!(content(&overlay, "moved/sub/deep"), b"deep");
    write_to(&overlay, "moved/sub/deep", 0, b"D");
    assert_eq!(names(&overlay, "moved"), ["hard", "one", "sub"]);
    drop(overlay);
    let overlay = fixture.overlay();
    assert_eq!(content(&overlay, "moved/sub/deep"), b"Deep");
    assert_eq!(stat(&overlay, "moved/sub/deep").ino, ino);
    assert_eq!(walk(&overlay, "dir"), Err(Errno::NOENT));
}

#[test]
fn hard_links_stay_links_over_copy_up_and_lose_names_one_by_one() {
    let fixture = small();
    let overlay = fixture.overlay();
    assert_eq!(
        walk(&overlay, "hard").unwrap(),
        walk(&overlay, "dir/hard").unwrap()
    );
    write_to(&overlay, "dir/hard", 0, b"L");
    assert_eq!(content(&overlay, "hard"), b"Linked");
    let links = |overlay: &Overlay, path: &str| {
        overlay
            .getattr(walk(overlay, path).unwrap(), None)
            .unwrap()
            .nlink
    };
    assert_eq!(links(&overlay, "hard"), 2);
    overlay
        .link(walk(&overlay, "hard").unwrap(), NodeId::ROOT, b"third")
        .unwrap();
    assert_eq!(links(&overlay, "dir/hard"), 3);
    overlay.unlink(NodeId::ROOT, b"hard").unwrap();
    assert_eq!(links(&overlay, "third"), 2);
    drop(overlay);
    let overlay = fixture.overlay();
    assert_eq!(
        (links(&overlay, "third"), content(&overlay, "dir/hard")),
        (2, b"Linked".to_vec())
    );
    assert_eq!(
        walk(&overlay, "third").unwrap(),
        walk(&overlay, "dir/hard").unwrap()
    );
    overlay
        .rename(
            NodeId::ROOT,
            b"third",
            NodeId::ROOT,
            b"fourth",
            RenameMode::Replace,
        )
        .unwrap();
    let dir = walk(&overlay, "dir").unwrap();
    overlay.unlink(dir, b"hard").unwrap();
    assert_eq!(links(&overlay, "fourth"), 1);
    overlay.unlink(NodeId::ROOT, b"fourth").unwrap();
    assert_eq!(on_disk(&fixture.path("work/index")), [""; 0]);
}

#[test]
fn an_unlinked_open_file_stays_until_it_is_released_and_forgotten() {
    let fixture = small();
    let overlay = fixture.overlay();
    let id = overlay.lookup(NodeId::ROOT, b"file").unwrap().unwrap().id;
    let opened = overlay.open(id, WRITE).unwrap();
    overlay.unlink(NodeId::ROOT, b"file").unwrap();
    assert_eq!(on_disk(&fixture.path("work/orphans")).len(), 1);
    assert_eq!(overlay.getattr(id, None).unwrap().nlink, 0);
    overlay
        .write(id, Some(opened.handle), 0, b"still", false)
        .unwrap();
    assert_eq!(read_all(&overlay, id, Some(opened.handle)), b"stillnt");
    overlay
        .setattr(
            id,
            None,
            &SetAttr {
                size: Some(2),
                ..SetAttr::default()
            },
        )
        .unwrap();
    assert_eq!(read_all(&overlay, id, Some(opened.handle)), b"st");
    overlay.forget(id, 1);
    overlay.release(id, opened.handle).unwrap();
    assert_eq!(on_disk(&fixture.path("work/orphans")), [""; 0]);
    assert_eq!(overlay.getattr(id, None).unwrap().nlink, 0);
}

#[test]
fn an_unnamed_file_can_be_given_a_name() {
    let fixture = small();
    let overlay = fixture.overlay();
    let (entry, opened) = overlay
        .tmpfile(NodeId::ROOT, 0o640, 0, WRITE, &ROOT_CALLER)
        .unwrap();
    assert_eq!((entry.attr.nlink, entry.attr.mode), (0, 0o640));
    overlay
        .write(entry.id, Some(opened.handle), 0, b"named", false)
        .unwrap();
    let linked = overlay.link(entry.id, NodeId::ROOT, b"named").unwrap();
    assert_eq!((linked.id, linked.attr.nlink), (entry.id, 1));
    overlay.release(entry.id, opened.handle).unwrap();
    assert_eq!(content(&overlay, "named"), b"named");
    let (other, opened) = overlay
        .tmpfile(NodeId::ROOT, 0o640, 0, WRITE, &ROOT_CALLER)
        .unwrap();
    overlay.forget(other.id, 1);
    overlay.release(other.id, opened.handle).unwrap();
    assert_eq!(on_disk(&fixture.path("work/orphans")), [""; 0]);
}

#[test]
fn marks_cannot_be_forged_and_a_null_device_is_no_whiteout() {
    let fixture = small();
    let overlay = fixture.overlay();
    let space = overlay.upper.as_ref().unwrap().namespace().prefix();
    let id = walk(&overlay, "dir").unwrap();
    let name = format!("{space}overlay.opaque").into_bytes();
    overlay
        .setxattr(id, &name, b"y", XattrFlags::default())
        .unwrap();
    assert_eq!(overlay.getxattr(id, &name).unwrap(), b"y");
    assert_eq!(overlay.listxattr(id).unwrap(), [&*name, b"\0"].concat());
    let device = FileType::CharDevice;
    let made = overlay
        .mknod(
            NodeId::ROOT,
            b"zero",
            device,
            0o644,
            Rdev::default(),
            0,
            &ROOT_CALLER,
        )
        .unwrap();
    assert_eq!(made.attr.file_type, device);
    overlay
        .setattr(walk(&overlay, "null").unwrap(), None, &mode(0o600))
        .unwrap();
    let zero_ino = made.attr.ino;
    drop(overlay);
    let overlay = fixture.overlay();
    for (path, mode) in [("zero", 0o644), ("null", 0o600)] {
        let attr = stat(&overlay, path);
        assert_eq!(
            (attr.file_type, attr.mode, attr.rdev.major, attr.size),
            (device, mode, 0, 0),
            "{path}"
        );
    }
    assert_eq!(stat(&overlay, "zero").ino, zero_ino);
    assert_eq!(
        names(&overlay, "dir").len(),
        3,
        "a forged mark hid the tree"
    );
}

#[test]
fn a_write_by_a_stranger_drops_privileges() {
    let fixture = small();
    let overlay = fixture.overlay();
    let id = walk(&overlay, "file").unwrap();
    overlay.setattr(id, None, &mode(0o6777)).unwrap();
    let writer = overlay.open(id, WRITE).unwrap();
    assert_eq!(
        overlay.getattr(id, None).unwrap().mode,
        0o6777,
        "opening is no write"
    );
    assert!(
        matches!(writer.mode, OpenMode::Cached),
        "a set-user-id file is not written behind our back"
    );
    overlay
        .write(id, Some(writer.handle), 0, b"x", false)
        .unwrap();
    // Outside of the initial user namespace the host drops them at every write.
    let initial = overlay.upper.as_ref().unwrap().namespace() == Namespace::Trusted;
    let kept = if initial { 0o6777 } else { 0o777 };
    assert_eq!(overlay.getattr(id, None).unwrap().mode, kept);
    overlay
        .write(id, Some(writer.handle), 0, b"x", true)
        .unwrap();
    assert_eq!(overlay.getattr(id, None).unwrap().mode, 0o777);
    // Without execution by the group, set-group-id is mandatory locking and stays.
    overlay.setattr(id, None, &mode(0o6767)).unwrap();
    let attr = overlay
        .setattr(
            id,
            None,
            &SetAttr {
                kill_priv: true,
                ..SetAttr::default()
            },
        )
        .unwrap();
    assert_eq!(attr.mode, 0o2767);
    let fifo = walk(&overlay, "fifo").unwrap();
    overlay.setattr(fifo, None, &mode(0o6755)).unwrap();
    let kill = SetAttr {
        kill_priv: true,
        ..SetAttr::default()
    };
    // As chown(-1, -1) asks for, of anything but a directory.
    assert_eq!(overlay.setattr(fifo, None, &kill).unwrap().mode, 0o755);
    overlay.setattr(id, None, &mode(0o6755)).unwrap();
    let attr = overlay
        .setattr(
            id,
            None,
            &SetAttr {
                uid: Some(0),
                ..SetAttr::default()
            },
        )
        .unwrap();
    assert_eq!(attr.mode, 0o755, "chown drops them for everyone");
}

#[test]
fn a_path_may_be_longer_than_any_system_call_takes() {
    let fixture = small();
    let overlay = fixture.overlay();
    let name = [b'n'; 250];
    let mut dirs = vec![NodeId::ROOT];
    for _ in 0..40 {
        let parent = *dirs.last().unwrap();
        let made = overlay.mkdir(parent, &name, 0o755, 0, &ROOT_CALLER);
        dirs.push(made.unwrap().id);
    }
    for dir in &dirs {
        overlay.places.forget(*dir);
    }
    let deepest = *dirs.last().unwrap();
    let made = overlay
        .mkdir(deepest, b"in", 0o700, 0, &ROOT_CALLER)
        .unwrap();
    assert_eq!(overlay.getattr(deepest, None).unwrap().nlink, 3);
    overlay.rmdir(deepest, b"in").unwrap();
    assert_eq!(overlay.getattr(made.id, None).unwrap().nlink, 0);
    let long = [b'n'; 256];
    assert_eq!(overlay.lookup(deepest, &long), Err(Errno::NAMETOOLONG));
}

#[test]
fn an_upper_made_below_a_default_acl_does_not_inherit_it() {
    let fixture = small();
    for name in ["upper", "work"] {
        let none = rustix::fs::XattrFlags::empty();
        let dir = fixture.path(name);
        rustix::fs::lsetxattr(dir, "system.posix_acl_default", DEFAULT_ACL, none).unwrap();
    }
    let overlay = fixture.overlay();
    let id = walk(&overlay, "dir/one").unwrap();
    overlay.setattr(id, None, &mode(0o600)).unwrap();
    for path in ["", "dir", "dir/one"] {
        let names = overlay.listxattr(walk(&overlay, path).unwrap()).unwrap();
        assert_eq!(names, b"", "{path}");
    }
}

#[test]
fn an_upper_without_marks_is_read_as_overlayfs_reads_it() {
    let fixture = small();
    let upper = fixture.path("upper");
    fs::create_dir_all(upper.join("dir/sub")).unwrap();
    fs::write(upper.join("dir/new"), "new").unwrap();
    let whiteout = rustix::fs::FileType::CharacterDevice;
    let mode = rustix::fs::Mode::empty();
    rustix::fs::mknodat(rustix::fs::CWD, upper.join("dir/one"), whiteout, mode, 0).unwrap();
    let overlay = fixture.overlay();
    assert_eq!(names(&overlay, "dir"), ["hard", "sub", "new"]);
    assert_eq!(content(&overlay, "dir/sub/deep"), b"deep");
    // It still shows the tree's children after it was moved.
    let root = NodeId::ROOT;
    overlay
        .rename(root, b"dir", root, b"moved", RenameMode::Replace)
        .unwrap();
    drop(overlay);
    let overlay = fixture.overlay();
    assert_eq!(names(&overlay, "moved"), ["hard", "sub", "new"]);
    assert_eq!(content(&overlay, "moved/sub/deep"), b"deep");
}

/// `cap_net_raw=p` as the kernel stores it: version 2 and permitted, inheritable sets, u32 little-endian.
const CAPABILITY: &[u8] = b"\0\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

#[test]
fn capabilities_survive_copy_up_and_not_a_write() {
    let name = "security.capability";
    let fixture = Fixture::new(&[("ping", 0o755, Made::File(b"ping"), &[(name, CAPABILITY)])]);
    let overlay = fixture.overlay();
    let id = walk(&overlay, "ping").unwrap();
    assert_eq!(overlay.getxattr(id, name.as_bytes()).unwrap(), CAPABILITY);
    overlay.setattr(id, None, &mode(0o711)).unwrap();
    assert_eq!(overlay.getxattr(id, name.as_bytes()).unwrap(), CAPABILITY);
    let writer = overlay.open(id, WRITE).unwrap();
    assert_eq!(overlay.getxattr(id, name.as_bytes()).unwrap(), CAPABILITY);
    overlay
        .write(id, Some(writer.handle), 0, b"x", false)
        .unwrap();
    assert_eq!(
        overlay.getxattr(id, name.as_bytes()),
        Err(Errno::NODATA),
        "as on any file system, for root too"
    );
}

#[test]
fn reading_waits_for_no_copy_up() {
    let fixture = small();
    let overlay = fixture.overlay();
    overlay
        .setattr(walk(&overlay, "file").unwrap(), None, &mode(0o600))
        .unwrap();
    let id = walk(&overlay, "file").unwrap();
    let other = walk(&overlay, "dir/one").unwrap();
    // As in the midst of a copy-up. A second guard of this thread would be a panic in a build with assertions, and a hang without.
    let _guard = overlay.busy.lock(&[id]);
    assert_eq!(overlay.getattr(id, None).unwrap().mode, 0o600);
    assert_eq!(overlay.getattr(other, None).unwrap().mode, 0o600);
    assert_eq!(
        overlay.lookup(NodeId::ROOT, b"file").unwrap().unwrap().id,
        id
    );
    assert_eq!(names(&overlay, "").len(), 7);
}

#[test]
fn many_threads_leave_an_upper_that_reads_the_same_after_a_remount() {
    let fixture = small();
    let overlay = fixture.overlay();
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let overlay = &overlay;
            scope.spawn(move || change_things(overlay, thread));
        }
    });
    let before = seen::of_overlay(&overlay);
    assert_eq!(on_disk(&fixture.path("work/tmp")), [""; 0]);
    drop(overlay);
    let after = seen::of_overlay(&fixture.overlay());
    seen::assert_same(&before, &after, &[]);
}

/// Moves, changes and removes the same few things as other threads do; most of it fails for one of them.
fn change_things(overlay: &Overlay, thread: u32) {
    let places = ["", "dir", "dir/sub", "empty", "moved"];
    let names = ["file", "one", "hard", "sub", "new", "moved", "dir"];
    let mut number = thread;
    let mut next = move |limit: usize| {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (number >> 16) as usize % limit
    };
    for _ in 0..400 {
        let (a, b) = (places[next(places.len())], places[next(places.len())]);
        let (x, y) = (
            names[next(names.len())].as_bytes(),
            names[next(names.len())].as_bytes(),
        );
        let (Ok(a), Ok(b)) = (walk(overlay, a), walk(overlay, b)) else {
            continue;
        };
        let found = overlay.resolve(a, x).ok().flatten();
        let result = match next(7) {
            0 => overlay.unlink(a, x),
            1 => overlay.rmdir(a, x),
            2 => overlay.mkdir(a, x, 0o755, 0, &ROOT_CALLER).map(drop),
            3 => overlay.rename(a, x, b, y, RenameMode::Replace),
            4 => overlay.rename(a, x, b, y, RenameMode::Exchange),
            5 => found.map_or(Ok(()), |hit| overlay.link(hit.id, b, y).map(drop)),
            _ => found.map_or(Ok(()), |hit| {
                overlay.setattr(hit.id, None, &mode(0o711)).map(drop)
            }),
        };
        let expected = [
            Errno::NOENT,
            Errno::EXIST,
            Errno::NOTEMPTY,
            Errno::NOTDIR,
            Errno::ISDIR,
            Errno::INVAL,
            Errno::PERM,
            Errno::STALE,
            Errno::OPNOTSUPP,
        ];
        if let Err(errno) = result {
            assert!(expected.contains(&errno), "{errno}");
        }
    }
}

#[test]
fn umask_and_default_acl_are_what_the_host_makes_of_them() {
    let fixture = small();
    let overlay = fixture.overlay();
    let root = NodeId::ROOT;
    let (made, opened) = overlay
        .create(root, b"masked", 0o666, 0o027, WRITE, &ROOT_CALLER)
        .unwrap();
    overlay.release(made.id, opened.handle).unwrap();
    assert_eq!(made.attr.mode, 0o640);
    let dir = walk(&overlay, "dir").unwrap();
    overlay
        .setxattr(
            dir,
            b"system.posix_acl_default",
            DEFAULT_ACL,
            XattrFlags::default(),
        )
        .unwrap();
    overlay.unlink(dir, b"one").unwrap();
    let plain = fixture.path("plain/acl");
    fs::create_dir(&plain).unwrap();
    rustix::fs::lsetxattr(
        &plain,
        "system.posix_acl_default",
        DEFAULT_ACL,
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    // At a free name, and at one that has a whiteout.
    for name in [&b"fresh"[..], b"one"] {
        let (ours, opened) = overlay
            .create(dir, name, 0o666, 0o077, WRITE, &ROOT_CALLER)
            .unwrap();
        overlay.release(ours.id, opened.handle).unwrap();
        let host = plain.join(std::str::from_utf8(name).unwrap());
        File::create(&host).unwrap();
        let want = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&host).unwrap()) & 0o7777;
        assert_eq!(ours.attr.mode, want);
        let mut value = [0; 128];
        let length =
            rustix::fs::lgetxattr(&host, "system.posix_acl_access", &mut value[..]).unwrap();
        assert_eq!(
            overlay
                .getxattr(ours.id, b"system.posix_acl_access")
                .unwrap(),
            value[..length]
        );
    }
    // What is copied up into that directory inherits nothing.
    let hard = walk(&overlay, "dir/sub/deep").unwrap();
    overlay.setattr(hard, None, &mode(0o644)).unwrap();
    assert_eq!(
        overlay
            .listxattr(walk(&overlay, "dir/sub").unwrap())
            .unwrap(),
        b""
    );
}

#[test]
fn a_new_file_belongs_to_who_made_it() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let fixture = small();
    let overlay = fixture.overlay();
    let caller = Caller {
        uid: 1234,
        gid: 4321,
    };
    if overlay
        .create(NodeId::ROOT, b"probe", 0o600, 0, WRITE, &caller)
        .is_err()
    {
        return; // a user namespace of one id
    }
    overlay.unlink(NodeId::ROOT, b"file").unwrap();
    let (made, _) = overlay
        .create(NodeId::ROOT, b"file", 0o600, 0, WRITE, &caller)
        .unwrap();
    assert_eq!((made.attr.uid, made.attr.gid), (1234, 4321));
    let dir = overlay
        .mkdir(NodeId::ROOT, b"d", 0o2770, 0, &ROOT_CALLER)
        .unwrap();
    overlay
        .setattr(
            dir.id,
            None,
            &SetAttr {
                gid: Some(99),
                mode: Some(0o2770),
                ..SetAttr::default()
            },
        )
        .unwrap();
    let inside = overlay.mkdir(dir.id, b"e", 0o755, 0, &caller).unwrap();
    assert_eq!(
        (inside.attr.uid, inside.attr.gid, inside.attr.mode),
        (1234, 99, 0o2755)
    );
    let link = overlay
        .symlink(NodeId::ROOT, b"l", b"x", &ROOT_CALLER)
        .unwrap();
    assert_eq!((link.attr.uid, link.attr.gid), (0, 0));
    // Copying up is nobody's doing.
    let caller_again = overlay
        .mkdir(NodeId::ROOT, b"f", 0o755, 0, &caller)
        .unwrap();
    assert_eq!(caller_again.attr.uid, 1234);
    let one = walk(&overlay, "dir/one").unwrap();
    let attr = overlay.setattr(one, None, &mode(0o600)).unwrap();
    assert_eq!((attr.uid, attr.gid), (0, 0));
}
