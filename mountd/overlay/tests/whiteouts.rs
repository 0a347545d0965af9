//! Whiteouts as files, on a host that would also make devices: the upper's record says which.

use super::rules::small;
use super::*;

/// A fixture whose upper has whiteouts as files, as one that was written on another host.
fn with_files() -> Fixture {
    let fixture = small();
    let overlay = fixture.overlay();
    overlay
        .setattr(walk(&overlay, "dir").unwrap(), &mode(0o750))
        .unwrap();
    drop(overlay);
    respell(&fixture);
    fixture
}

/// What the first mount would have recorded.
fn respell(fixture: &Fixture) {
    let lock = fixture.path("work/lock");
    let record = fs::read_to_string(&lock).unwrap();
    let space = record.split_whitespace().next().unwrap();
    fs::write(lock, format!("{space} .wh.\n")).unwrap();
}

/// The names in a directory of the upper.
fn stored(fixture: &Fixture, dir: &str) -> Vec<String> {
    let entries = fs::read_dir(fixture.path("upper").join(dir)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn unlink_rename_and_create_keep_whiteout_files() {
    let fixture = with_files();
    let overlay = fixture.overlay();
    let root = NodeId::ROOT;
    overlay.unlink(root, b"file").unwrap();
    overlay
        .rename(root, b"empty", root, b"file", RenameMode::Replace)
        .unwrap();
    assert_eq!(stored(&fixture, ""), [".wh.empty", "dir", "file"]);
    overlay.rmdir(root, b"file").unwrap();
    assert_eq!(stored(&fixture, ""), [".wh.empty", ".wh.file", "dir"]);
    let empty = overlay.mkdir(root, b"empty", 0o755, 0, &ROOT_CALLER);
    overlay
        .rename(root, b"link", root, b"file", RenameMode::Replace)
        .unwrap();
    assert_eq!(stored(&fixture, ""), [".wh.link", "dir", "empty", "file"]);
    assert_eq!(names(&overlay, "empty"), [""; 0]);
    overlay.forget(empty.unwrap().id, 1);
    drop(overlay);
    let overlay = fixture.overlay();
    assert_eq!(
        names(&overlay, ""),
        ["dir", "empty", "fifo", "file", "hard", "null"]
    );
}

/// Beside a file of its name a whiteout says nothing, whichever step a crash came before: the
/// directory still merges, and keeps its times.
#[test]
fn lookup_removes_a_whiteout_file_beside_its_name() {
    let fixture = with_files();
    let upper = fixture.path("upper");
    fs::write(upper.join(".wh.dir"), "").unwrap();
    let old = cowl_core::upper::name_at::times(OLD, OLD);
    rustix::fs::utimensat(rustix::fs::CWD, &upper, &old, rustix::fs::AtFlags::empty()).unwrap();
    let overlay = fixture.overlay();
    assert_eq!(names(&overlay, "dir"), ["hard", "one", "sub"]);
    assert_eq!(stored(&fixture, ""), ["dir"]);
    assert_eq!(overlay.getattr(NodeId::ROOT).unwrap().mtime, OLD);
}

/// As fuse-overlayfs leaves them where devices work and `RENAME_WHITEOUT` does not.
#[test]
fn lookup_replaces_devices_by_whiteout_files() {
    let fixture = with_files();
    let device = rustix::fs::FileType::CharacterDevice;
    let none = rustix::fs::Mode::empty();
    let at = fixture.path("upper/dir/one");
    match rustix::fs::mknodat(rustix::fs::CWD, at, device, none, 0) {
        Err(Errno::PERM) => return, // on an overlayfs there are none
        made => made.unwrap(),
    }
    let overlay = fixture.overlay();
    assert_eq!(names(&overlay, "dir"), ["hard", "sub"]);
    assert_eq!(stored(&fixture, "dir"), [".wh.one"]);
    let (dir, name) = parent_and_name(&overlay, "dir/one").unwrap();
    overlay
        .mknod(
            dir,
            name,
            FileType::Regular,
            0o600,
            Rdev::default(),
            0,
            &ROOT_CALLER,
        )
        .unwrap();
    assert_eq!(content(&overlay, "dir/one"), b"");
}

/// open(2): EINVAL, the final component of the pathname is invalid.
#[test]
fn create_of_a_whiteouts_name_fails_with_einval() {
    let fixture = with_files();
    let overlay = fixture.overlay();
    let (root, name) = (NodeId::ROOT, b".wh.file");
    let file = walk(&overlay, "file").unwrap();
    let made = [
        overlay.mkdir(root, name, 0o755, 0, &ROOT_CALLER).map(drop),
        overlay
            .create(root, name, 0o644, 0, WRITE, &ROOT_CALLER)
            .map(drop),
        overlay.symlink(root, name, b"x", &ROOT_CALLER).map(drop),
        overlay.link(file, root, name).map(drop),
        overlay.rename(root, b"file", root, name, RenameMode::Replace),
    ];
    assert_eq!(made, [Err(Errno::INVAL); 5]);
    assert_eq!(content(&overlay, "file"), b"content");
    assert_eq!(overlay.lookup(root, name), Ok(None));
    assert_eq!(overlay.unlink(root, name), Err(Errno::NOENT));
    let ordinary = overlay.mkdir(root, b".whfile", 0o755, 0, &ROOT_CALLER);
    ordinary.unwrap();
}

/// A `.wh.` file of a longer name cannot be.
#[test]
fn unlink_of_a_lower_name_of_252_bytes_fails_with_enametoolong() {
    for (length, removed) in [(251, Ok(())), (252, Err(Errno::NAMETOOLONG))] {
        let long = "n".repeat(length);
        let fixture = Fixture::new(&[(&*long, 0o644, ItemKind::File(b"long"), &[])]);
        let overlay = fixture.overlay();
        overlay
            .mkdir(NodeId::ROOT, b"made", 0o755, 0, &ROOT_CALLER)
            .unwrap();
        drop(overlay);
        respell(&fixture);
        let overlay = fixture.overlay();
        let root = NodeId::ROOT;
        assert_eq!(overlay.unlink(root, long.as_bytes()), removed);
        let renamed = overlay.rename(root, long.as_bytes(), root, b"short", RenameMode::Replace);
        if removed == Ok(()) {
            assert_eq!(renamed, Err(Errno::NOENT));
        } else {
            assert_eq!(renamed, removed);
            assert_eq!(content(&overlay, &long), b"long");
        }
    }
}
