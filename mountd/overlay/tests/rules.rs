//! What each operation shows through the mount and leaves in the upper.

use super::*;

pub(super) fn small() -> Fixture {
    Fixture::new(&[
        (
            "file",
            0o644,
            ItemKind::File(b"content"),
            &[("user.a", b"1")],
        ),
        ("dir", 0o755, ItemKind::Dir, &[]),
        ("dir/one", 0o600, ItemKind::File(b"one"), &[]),
        ("dir/sub", 0o700, ItemKind::Dir, &[]),
        ("dir/sub/deep", 0o644, ItemKind::File(b"deep"), &[]),
        ("hard", 0o644, ItemKind::File(b"linked"), &[]),
        ("dir/hard", 0o644, ItemKind::Link("hard"), &[]),
        ("link", 0o777, ItemKind::Symlink("dir/one"), &[]),
        ("empty", 0o755, ItemKind::Dir, &[]),
        ("null", 0o666, ItemKind::Device(0, 0), &[]),
        ("fifo", 0o600, ItemKind::Fifo, &[]),
    ])
}

pub(super) fn write_to(overlay: &Overlay, path: &str, offset: u64, data: &[u8]) {
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
fn changes_of_a_read_only_mount_fail_with_erofs() {
    let fixture = small();
    let overlay = fixture.open_with(IoMode::Passthrough, false).unwrap();
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
        ("setattr", overlay.setattr(file.id, &mode(0)).map(drop)),
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
    let before = overlay.getattr(id).unwrap();
    let attr = overlay.setattr(id, &mode(0o640)).unwrap();
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
    assert_eq!(overlay.getattr(NodeId::ROOT).unwrap().mtime, OLD);
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
fn read_sees_a_write_made_after_open() {
    let fixture = small();
    let overlay = fixture.overlay();
    let id = walk(&overlay, "file").unwrap();
    let reader = overlay.open(id, OpenFlags::default()).unwrap();
    assert!(matches!(reader.mode, OpenMode::Cached));
    write_to(&overlay, "file", 0, b"CON");
    assert_eq!(read_all(&overlay, id, Some(reader.handle)), b"CONtent");
}

#[test]
fn open_for_writing_renumbers_a_lower_file_read_in_passthrough() {
    let big = vec![7_u8; 2 << 20];
    let fixture = Fixture::new(&[("big", 0o644, ItemKind::File(&big), &[])]);
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
    assert_eq!(overlay.getattr(before.id).unwrap().ino, before.attr.ino);
}

#[test]
fn fstat_of_a_passthrough_reader_survives_forget_of_its_successor() {
    let big = vec![7_u8; 2 << 20];
    let fixture = Fixture::new(&[("big", 0o644, ItemKind::File(&big), &[])]);
    let overlay = fixture.overlay();
    let before = overlay.lookup(NodeId::ROOT, b"big").unwrap().unwrap();
    let reader = overlay.open(before.id, OpenFlags::default()).unwrap();
    assert_eq!(overlay.open(before.id, WRITE).unwrap_err(), Errno::STALE);
    let after = overlay.lookup(NodeId::ROOT, b"big").unwrap().unwrap();
    overlay.unlink(NodeId::ROOT, b"big").unwrap();
    overlay.forget(after.id, 1);
    let attr = overlay.getattr(before.id).unwrap();
    assert_eq!((attr.ino, attr.nlink), (before.attr.ino, 0));
    let mut bytes = [0; 3];
    let read = overlay.read(before.id, Some(reader.handle), 0, &mut bytes);
    assert_eq!((read, bytes), (Ok(3), [7; 3]));
    assert_eq!(overlay.lookup(NodeId::ROOT, b"big"), Ok(None));
    // The written content is removed, and the image's content must not reappear.
    let again = overlay.open(before.id, OpenFlags::default());
    assert_eq!(again.unwrap_err(), Errno::STALE);
}

#[test]
fn listxattr_hides_namespaces_unknown_to_linux() {
    let all: &[(&str, &[u8])] = &[("com.apple.provenance", b"x"), ("user.a", b"1")];
    let fixture = Fixture::new(&[("file", 0o644, ItemKind::File(b"content"), all)]);
    let overlay = fixture.overlay();
    let id = walk(&overlay, "file").unwrap();
    for way in ["the tree", "the upper"] {
        assert_eq!(overlay.listxattr(id).unwrap(), b"user.a\0", "{way}");
        let foreign = overlay.getxattr(id, b"com.apple.provenance");
        assert_eq!(foreign, Err(Errno::OPNOTSUPP), "{way}");
        overlay.setattr(id, &mode(0o600)).unwrap();
    }
}

#[test]
fn unlink_of_a_lower_file_leaves_a_whiteout() {
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
fn mkdir_over_a_removed_lower_directory_is_opaque() {
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
fn rename_of_a_lower_directory_keeps_its_children() {
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
fn lookup_reaches_paths_longer_than_path_max() {
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
    assert_eq!(overlay.getattr(deepest).unwrap().nlink, 3);
    overlay.rmdir(deepest, b"in").unwrap();
    assert_eq!(overlay.getattr(made.id).unwrap().nlink, 0);
    let long = [b'n'; 256];
    assert_eq!(overlay.lookup(deepest, &long), Err(Errno::NAMETOOLONG));
}

#[test]
fn lookup_merges_an_unmarked_upper_as_overlayfs_does() {
    let fixture = small();
    let upper = fixture.path("upper");
    fs::create_dir_all(upper.join("dir/sub")).unwrap();
    fs::write(upper.join("dir/new"), "new").unwrap();
    let device = rustix::fs::FileType::CharacterDevice;
    let mode = rustix::fs::Mode::empty();
    match rustix::fs::mknodat(rustix::fs::CWD, upper.join("dir/one"), device, mode, 0) {
        // An overlayfs's whiteout cannot be made on an overlayfs.
        Err(Errno::PERM) => fs::write(upper.join("dir/.wh.one"), "").unwrap(),
        made => made.unwrap(),
    }
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

#[test]
fn read_runs_during_a_copy_up() {
    let fixture = small();
    let overlay = fixture.overlay();
    overlay
        .setattr(walk(&overlay, "file").unwrap(), &mode(0o600))
        .unwrap();
    let id = walk(&overlay, "file").unwrap();
    let other = walk(&overlay, "dir/one").unwrap();
    // As in the midst of a copy-up. A second guard of this thread would be a panic in a build with
    // assertions, and a hang without.
    let _guard = overlay.busy.lock(&[id]);
    assert_eq!(overlay.getattr(id).unwrap().mode, 0o600);
    assert_eq!(overlay.getattr(other).unwrap().mode, 0o600);
    assert_eq!(
        overlay.lookup(NodeId::ROOT, b"file").unwrap().unwrap().id,
        id
    );
    assert_eq!(names(&overlay, "").len(), 7);
}

#[test]
fn concurrent_changes_survive_a_remount() {
    let fixture = small();
    let overlay = fixture.overlay();
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let overlay = &overlay;
            scope.spawn(move || change_things(overlay, thread));
        }
    });
    let before = view::of_overlay(&overlay);
    let mut left = on_disk(&fixture.path("work/tmp"));
    left.retain(|name| !name.ends_with('!')); // the whiteout that others are links to
    assert_eq!(left, [""; 0]);
    drop(overlay);
    let after = view::of_overlay(&fixture.overlay());
    view::assert_same(&before, &after, &[]);
}

/// Moves, changes and removes the same few things as other threads do; most of it fails for one of
/// them.
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
            5 => found.map_or(Ok(()), |resolved| overlay.link(resolved.id, b, y).map(drop)),
            _ => found.map_or(Ok(()), |resolved| {
                overlay.setattr(resolved.id, &mode(0o711)).map(drop)
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
fn setattr_of_a_removed_open_directory_works() {
    let fixture = small();
    let overlay = fixture.overlay();
    overlay
        .mkdir(NodeId::ROOT, b"born", 0o755, 0, &ROOT_CALLER)
        .unwrap();
    for name in ["born", "empty"] {
        let found = overlay
            .lookup(NodeId::ROOT, name.as_bytes())
            .unwrap()
            .unwrap();
        overlay.rmdir(NodeId::ROOT, name.as_bytes()).unwrap();
        let wanted = SetAttr {
            uid: Some(7),
            mtime: Some(SetTime::At(OLD)),
            ..mode(0o2444)
        };
        overlay.setattr(found.id, &wanted).unwrap();
        let shown = overlay.getattr(found.id).unwrap();
        assert_eq!(
            (shown.mode, shown.uid, shown.gid, shown.mtime, shown.nlink),
            (0o2444, 7, found.attr.gid, OLD, 0),
            "{name}"
        );
        assert_eq!(overlay.lookup(NodeId::ROOT, name.as_bytes()), Ok(None));
    }
}
