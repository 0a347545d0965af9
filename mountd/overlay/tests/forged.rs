//! Uppers with forged or corrupt marks: such a name fails with EIO, other names do not, and
//! nothing panics.

use std::thread;

use cowl_core::tree::TreeIno;
use cowl_core::upper::marks::{FileMark, Mark, Saved};
use cowl_tests::random::Random;

use super::rules::{small, write_to};
use super::*;

/// An upper with a file of each kind: with and without content, a directory, a hard link, a
/// device.
fn filled(fixture: &Fixture) {
    let overlay = fixture.overlay();
    write_to(&overlay, "file", 0, b"CON");
    for path in ["dir/one", "hard", "null", "empty"] {
        let id = walk(&overlay, path).unwrap();
        overlay.setattr(id, &mode(0o700)).unwrap();
    }
    let dir = walk(&overlay, "dir").unwrap();
    overlay
        .rename(NodeId::ROOT, b"empty", dir, b"moved", RenameMode::Replace)
        .unwrap();
}

fn set(fixture: &Fixture, path: &str, mark: Mark, value: &[u8]) {
    set_through(&fixture.overlay(), fixture, path, mark, value);
}

fn set_through(overlay: &Overlay, fixture: &Fixture, path: &str, mark: Mark, value: &[u8]) {
    let store = overlay.upper.as_ref().unwrap().mark_store();
    let path = fixture.path(path);
    let dir = File::open(path.parent().unwrap()).unwrap();
    let name = path.file_name().unwrap().as_encoded_bytes();
    NameAt::new(dir.as_fd(), name)
        .set_mark(store, mark, value)
        .unwrap();
}

#[test]
fn lookup_of_a_forged_mark_fails_with_eio_for_its_name_only() {
    let origin = |node| FileMark::of_origin(TreeIno(node));
    let fixture = small();
    let of = |path: &str| {
        walk(&fixture.overlay(), path)
            .unwrap()
            .lower()
            .map(|node| TreeIno(node.0))
            .unwrap()
    };
    let (dir, sub, one) = (of("dir"), of("dir/sub"), of("dir/one"));
    let metadata_only = |node| FileMark {
        metadata_only: true,
        ..FileMark::of_origin(node)
    };
    let forged: [(&str, Vec<u8>); 8] = [
        ("bytes of no meaning", b"y".to_vec()),
        ("of another version", vec![1, 1, 0, 0, 1, 0, 0, 0]),
        ("a node beyond the tree", origin(1 << 20).encode()),
        ("a directory", FileMark::of_origin(sub).encode()),
        ("a directory's content", metadata_only(dir).encode()),
        (
            "a node that another file is",
            FileMark::of_origin(one).encode(),
        ),
        (
            "a device that is none",
            FileMark {
                device: true,
                ..FileMark::of_origin(one)
            }
            .encode(),
        ),
        ("the root", origin(0).encode()),
    ];
    for (what, value) in forged {
        let fixture = small();
        filled(&fixture);
        set(&fixture, "upper/file", Mark::File, &value);
        let overlay = fixture.overlay();
        assert_eq!(content(&overlay, "dir/one"), b"one", "{what}");
        assert_eq!(walk(&overlay, "file"), Err(Errno::IO), "{what}");
        assert!(names(&overlay, "").contains(&"file".to_owned()), "{what}");
        assert_eq!(content(&overlay, "hard"), b"linked", "{what}");
        overlay
            .mkdir(NodeId::ROOT, b"new", 0o755, 0, &ROOT_CALLER)
            .unwrap();
    }
}

#[test]
fn lookup_of_a_forged_index_mark_fails_with_eio_for_every_name() {
    for value in [&b"y"[..], &FileMark::of_origin(TreeIno(0)).encode()] {
        let fixture = small();
        filled(&fixture);
        let [indexed] = &on_disk(&fixture.path("work/index"))[..] else {
            panic!("one file is indexed")
        };
        set(
            &fixture,
            &format!("work/index/{indexed}"),
            Mark::File,
            value,
        );
        let overlay = fixture.overlay();
        for name in ["hard", "dir/hard"] {
            assert_eq!(walk(&overlay, name), Err(Errno::IO), "{name}");
        }
        assert_eq!(content(&overlay, "dir/one"), b"one");
    }
}

/// Gives `dir/one` the mark that it has during a content copy-up.
fn set_copying(overlay: &Overlay, fixture: &Fixture, node: NodeId) {
    let copying = FileMark {
        metadata_only: true,
        copying: Some(Saved {
            size: 3,
            mtime: OLD,
            mode: 0o700,
            capability: None,
        }),
        ..FileMark::of_origin(TreeIno(node.lower().unwrap().0))
    };
    let path = "upper/dir/one";
    set_through(overlay, fixture, path, Mark::File, &copying.encode());
}

/// Gives `dir/one` other names, each in a directory of its own.
fn link_one(fixture: &Fixture, dirs: &[String]) -> NodeId {
    let overlay = fixture.overlay();
    let one = walk(&overlay, "dir/one").unwrap();
    for dir in dirs {
        let dir = overlay
            .mkdir(NodeId::ROOT, dir.as_bytes(), 0o755, 0, &ROOT_CALLER)
            .unwrap();
        overlay.link(one, dir.id, b"one").unwrap();
    }
    one
}

/// The state that a kill during a content copy-up leaves.
#[test]
fn lookup_undoes_an_interrupted_copy_up() {
    let fixture = small();
    filled(&fixture);
    let path = fixture.path("upper/dir/one");
    let overlay = fixture.overlay();
    set_copying(&overlay, &fixture, walk(&overlay, "dir/one").unwrap());
    drop(overlay);
    fs::write(&path, "o").unwrap();
    let overlay = fixture.overlay();
    let attr = stat(&overlay, "dir/one");
    assert_eq!((attr.size, attr.mtime, attr.mode), (3, OLD, 0o700));
    assert_eq!(content(&overlay, "dir/one"), b"one");
    assert_eq!(fs::read(&path).unwrap(), [0; 3]);
    drop(overlay);
    // It is undone once: later writes stay.
    let overlay = fixture.overlay();
    write_to(&overlay, "dir/one", 0, b"O");
    drop(overlay);
    let overlay = fixture.overlay();
    assert_eq!(content(&overlay, "dir/one"), b"One");
    assert!(stat(&overlay, "dir/one").mtime > OLD);
}

/// The name by which this mount copies a file up may not be its only one.
#[test]
fn lookup_of_another_name_leaves_a_running_copy_up() {
    let fixture = small();
    filled(&fixture);
    let one = link_one(&fixture, &["other".into()]);
    let overlay = fixture.overlay();
    assert_eq!(walk(&overlay, "dir/one").unwrap(), one);
    set_copying(&overlay, &fixture, one);
    let path = fixture.path("upper/dir/one");
    fs::write(&path, "one").unwrap();
    assert_eq!(walk(&overlay, "other/one").unwrap(), one);
    assert_eq!(fs::read(&path).unwrap(), b"one");
}

/// Each lookup of a name may find the copy interrupted. The first undoes it, and no other what is
/// written then.
#[test]
fn lookups_of_many_names_undo_an_interrupted_copy_up_once() {
    let dirs: Vec<String> = (0..8).map(|number| number.to_string()).collect();
    let written = b"abcdefgh";
    for _ in 0..20 {
        let fixture = small();
        filled(&fixture);
        let one = link_one(&fixture, &dirs);
        set_copying(&fixture.overlay(), &fixture, one);
        let overlay = fixture.overlay();
        thread::scope(|scope| {
            for (at, dir) in dirs.iter().enumerate() {
                let overlay = &overlay;
                scope.spawn(move || {
                    let byte = &written[at..=at];
                    write_to(overlay, &format!("{dir}/one"), 3 + at as u64, byte);
                });
            }
        });
        assert_eq!(content(&overlay, "dir/one"), b"oneabcdefgh");
    }
}

#[test]
fn lookup_of_random_marks_never_panics() {
    let mut random = Random::new(5);
    let mut failed = 0;
    for _ in 0..60 {
        let fixture = small();
        filled(&fixture);
        let mut paths: Vec<String> = on_disk(&fixture.path("upper"))
            .iter()
            .map(|path| format!("upper/{path}"))
            .chain(
                on_disk(&fixture.path("work/index"))
                    .iter()
                    .map(|name| format!("work/index/{name}")),
            )
            .filter(|path| !path.ends_with('!'))
            .collect();
        paths.sort();
        for _ in 0..3 {
            let path = random.pick(&paths);
            let length = random.index(14);
            let mut value: Vec<u8> = (0..length).map(|_| random.byte()).collect();
            if let Some(head) = value.first_chunk_mut::<4>() {
                *head = [2, head[1] & 31, 0, 0];
            }
            for origin in value.iter_mut().skip(5).take(3) {
                *origin = 0;
            }
            if let Some(origin) = value.get_mut(4) {
                *origin %= 14;
            }
            let mark = random.pick(&[Mark::File, Mark::File, Mark::Opaque]);
            set(
                &fixture,
                &path,
                mark,
                if mark == Mark::Opaque { b"y" } else { &value },
            );
        }
        let overlay = fixture.overlay();
        failed += use_everything(&overlay, NodeId::ROOT, 0);
        drop(overlay);
        use_everything(&fixture.overlay(), NodeId::ROOT, 0);
    }
    assert!(failed > 10, "{failed} errors");
}

/// Reads everything below a directory and changes some of it; returns the number of failed names.
fn use_everything(overlay: &Overlay, dir: NodeId, depth: u32) -> u32 {
    assert!(depth < 30, "the tree has no end");
    let mut names = Vec::new();
    overlay
        .readdir(dir, 0, true, &mut |entry| {
            names.push(entry.name.to_vec());
            true
        })
        .unwrap();
    let mut failed = 0;
    for name in names
        .iter()
        .filter(|name| !matches!(&name[..], b"." | b".."))
    {
        let entry = match overlay.lookup(dir, name) {
            Ok(Some(entry)) => entry,
            Ok(None) => continue,
            Err(errno) => {
                assert_eq!(errno, Errno::IO);
                failed += 1;
                continue;
            }
        };
        overlay.listxattr(entry.id).unwrap();
        match entry.attr.file_type {
            FileType::Directory => failed += use_everything(overlay, entry.id, depth + 1),
            FileType::Regular => {
                let mut bytes = [0; 20];
                if let Ok(opened) = overlay.open(entry.id, WRITE) {
                    overlay
                        .read(entry.id, Some(opened.handle), 0, &mut bytes)
                        .unwrap();
                    overlay
                        .write(entry.id, Some(opened.handle), 3, b"x", false)
                        .unwrap();
                    overlay.fsync(entry.id, false).unwrap();
                    overlay.release(entry.id, opened.handle).unwrap();
                }
            }
            _ => {}
        }
        for done in [
            overlay.setattr(entry.id, &mode(0o711)).map(drop),
            overlay.rename(dir, name, dir, b"renamed", RenameMode::Replace),
            overlay.unlink(dir, b"renamed"),
        ] {
            failed += u32::from(done.is_err());
        }
    }
    failed
}
