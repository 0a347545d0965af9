//! Contents that were copied up and not synced: what their marks say, and what is shown of a file
//! that a power cut took blocks of. A hole that is punched into the upper stands for that.

use std::os::unix::fs::MetadataExt;

use cowl_core::upper::marks::{FileMark, Mark};
use cowl_core::upper::name_at::NameAt;
use rustix::fs::{FallocateFlags, fallocate};

use super::*;

const BLOCK: usize = 64 << 10;
const SMALL: usize = 3 * BLOCK;
const LARGE: usize = 10 * BLOCK;

/// A file that is copied at once, one that is copied into place, and one with two names.
fn fixture() -> Fixture {
    Fixture::new(&[
        ("dir", 0o755, ItemKind::Dir, &[]),
        ("dir/small", 0o644, ItemKind::File(&vec![b's'; SMALL]), &[]),
        ("dir/large", 0o4755, ItemKind::File(&vec![b'l'; LARGE]), &[]),
        ("dir/linked", 0o644, ItemKind::File(&vec![b'k'; SMALL]), &[]),
        ("dir/other", 0o644, ItemKind::Link("dir/linked"), &[]),
    ])
}

const FILES: [(&str, u8, usize); 3] = [
    ("dir/small", b's', SMALL),
    ("dir/large", b'l', LARGE),
    ("dir/other", b'k', SMALL),
];

/// Whether copy-ups leave the sync for later here. Elsewhere nothing is marked and nothing is torn.
fn defers(overlay: &Overlay) -> bool {
    overlay.writable().unwrap().shows_lost_blocks()
}

fn write(overlay: &Overlay, path: &str, offset: u64, data: &[u8]) {
    let id = walk(overlay, path).unwrap();
    overlay.write(id, None, offset, data, false).unwrap();
}

/// The file of the upper. That of the two names is in the index.
fn host(fixture: &Fixture, path: &str) -> PathBuf {
    let named = fixture.path("upper").join(path);
    if named.exists() {
        return named;
    }
    let mut indexed = fs::read_dir(fixture.path("work/index")).unwrap();
    indexed.next().unwrap().unwrap().path()
}

fn is_marked(fixture: &Fixture, overlay: &Overlay, path: &str) -> bool {
    let space = overlay.writable().unwrap().namespace();
    let host = host(fixture, path);
    let dir = File::open(host.parent().unwrap()).unwrap();
    let name = host.file_name().unwrap().as_encoded_bytes();
    let value = NameAt::new(dir.as_fd(), name).mark(space, Mark::File);
    FileMark::decode(&value.unwrap().unwrap()).unwrap().unsynced
}

/// What a power cut does to a block of a file that was not synced.
fn lose(fixture: &Fixture, path: &str, block: usize) {
    let file = File::options().write(true).open(host(fixture, path));
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let at = (block * BLOCK) as u64;
    fallocate(file.unwrap(), flags, at, BLOCK as u64).unwrap();
}

fn cached(fixture: &Fixture) -> Overlay {
    fixture.open_with(IoMode::Cached, true).unwrap()
}

#[test]
fn copy_up_marks_what_it_does_not_sync_until_fsync_or_the_end() {
    let fixture = fixture();
    let overlay = cached(&fixture);
    let defers = defers(&overlay);
    for (path, _, size) in FILES {
        write(&overlay, path, size as u64, b"appended");
        assert_eq!(is_marked(&fixture, &overlay, path), defers, "{path}");
    }
    overlay
        .fsync(walk(&overlay, "dir/small").unwrap(), true)
        .unwrap();
    assert!(!is_marked(&fixture, &overlay, "dir/small"));
    assert_eq!(is_marked(&fixture, &overlay, "dir/large"), defers);
    overlay.sync_contents();
    for (path, ..) in FILES {
        assert!(!is_marked(&fixture, &overlay, path), "{path}");
    }
}

/// Of so many the file system syncs all at once.
#[test]
fn the_end_of_a_mount_syncs_many_contents() {
    let paths: Vec<String> = (0..20).map(|number| format!("file-{number}")).collect();
    let item = |path| -> Item<'_> { (path, 0o644, ItemKind::File(b"content"), &[]) };
    let items: Vec<Item<'_>> = paths.iter().map(|path| item(path)).collect();
    let fixture = Fixture::new(&items);
    let overlay = cached(&fixture);
    for path in &paths {
        write(&overlay, path, 7, b"appended");
        assert_eq!(is_marked(&fixture, &overlay, path), defers(&overlay));
    }
    overlay.sync_contents();
    for path in &paths {
        assert!(!is_marked(&fixture, &overlay, path), "{path}");
    }
}

#[test]
fn lookup_fills_lost_blocks_with_the_lowers_bytes() {
    let fixture = fixture();
    let overlay = cached(&fixture);
    if !defers(&overlay) {
        return;
    }
    for (path, _, size) in FILES {
        write(&overlay, path, 5, b"written");
        write(&overlay, path, size as u64, b"appended");
    }
    drop(overlay);
    let before = FILES.map(|(path, ..)| fs::metadata(host(&fixture, path)).unwrap());
    for (path, ..) in FILES {
        lose(&fixture, path, 1);
    }
    lose(&fixture, "dir/large", 0);
    let overlay = cached(&fixture);
    for ((path, byte, size), before) in FILES.into_iter().zip(before) {
        let mut expected = vec![byte; size];
        if path != "dir/large" {
            expected[5..12].copy_from_slice(b"written");
        }
        expected.extend(b"appended");
        assert!(content(&overlay, path) == expected, "{path}");
        assert!(!is_marked(&fixture, &overlay, path), "{path}");
        let now = fs::metadata(host(&fixture, path)).unwrap();
        let is_same = (now.mode(), now.len()) == (before.mode(), before.len());
        assert!(is_same, "{path}: {now:?}");
    }
    // What is synced is no longer compared.
    drop(overlay);
    lose(&fixture, "dir/small", 1);
    let overlay = cached(&fixture);
    assert_eq!(content(&overlay, "dir/small")[BLOCK], 0);
}

#[test]
fn lookup_leaves_what_a_worker_that_died_copied() {
    let fixture = fixture();
    let overlay = cached(&fixture);
    for (path, ..) in FILES {
        write(&overlay, path, 5, b"written");
        write(&overlay, path, BLOCK as u64, &vec![0; BLOCK]);
    }
    drop(overlay);
    let overlay = cached(&fixture);
    for (path, byte, size) in FILES {
        let mut expected = vec![byte; size];
        expected[5..12].copy_from_slice(b"written");
        expected[BLOCK..2 * BLOCK].fill(0);
        assert!(content(&overlay, path) == expected, "{path}");
    }
}

/// A hole that a client makes is no lost block.
#[test]
fn holes_are_made_in_synced_contents_only() {
    type Make = fn(&Overlay, NodeId);
    fn resize(overlay: &Overlay, id: NodeId, size: u64) {
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        overlay.setattr(id, &set).unwrap();
    }
    fn punch(overlay: &Overlay, id: NodeId, flag: FallocateFlags) {
        let mode = (flag | FallocateFlags::KEEP_SIZE).bits();
        overlay.fallocate(id, None, 0, BLOCK as u64, mode).unwrap();
    }
    let ways: [(&str, Make); 5] = [
        ("truncate", |overlay, id| {
            resize(overlay, id, 3);
            resize(overlay, id, SMALL as u64);
        }),
        ("O_TRUNC", |overlay, id| {
            let flags = OpenFlags {
                truncate: true,
                ..WRITE
            };
            overlay.open(id, flags).unwrap();
            overlay.write(id, None, SMALL as u64, b"x", false).unwrap();
        }),
        ("punch", |overlay, id| {
            punch(overlay, id, FallocateFlags::PUNCH_HOLE);
        }),
        ("zero", |overlay, id| {
            punch(overlay, id, FallocateFlags::ZERO_RANGE);
        }),
        ("copy_file_range", |overlay, id| {
            let hole = overlay
                .create(NodeId::ROOT, b"hole", 0o644, 0, WRITE, &ROOT_CALLER)
                .unwrap();
            resize(overlay, hole.0.id, SMALL as u64);
            let end = |node| CopyEnd {
                node,
                handle: None,
                offset: 0,
            };
            overlay
                .copy_file_range(end(hole.0.id), end(id), BLOCK as u64)
                .unwrap();
        }),
    ];
    for (way, make_hole) in ways {
        let fixture = fixture();
        let overlay = cached(&fixture);
        write(&overlay, "dir/small", SMALL as u64, b"appended");
        make_hole(&overlay, walk(&overlay, "dir/small").unwrap());
        assert!(!is_marked(&fixture, &overlay, "dir/small"), "{way}");
        let shown = content(&overlay, "dir/small");
        assert!(shown[3..BLOCK].iter().all(|byte| *byte == 0), "{way}");
        drop(overlay);
        assert!(content(&cached(&fixture), "dir/small") == shown, "{way}");
    }
}

/// What lies behind the lower's bytes is the client's alone.
#[test]
fn a_longer_file_needs_no_sync() {
    let fixture = fixture();
    let overlay = cached(&fixture);
    write(&overlay, "dir/small", 0, b"written");
    let id = walk(&overlay, "dir/small").unwrap();
    let longer = SetAttr {
        size: Some(2 * SMALL as u64),
        ..SetAttr::default()
    };
    overlay.setattr(id, &longer).unwrap();
    assert_eq!(is_marked(&fixture, &overlay, "dir/small"), defers(&overlay));
}
