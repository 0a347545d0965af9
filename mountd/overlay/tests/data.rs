//! A file's bytes: holes, seeking, copying and making them durable.

use std::os::unix::fs::MetadataExt;

use super::*;

const MEBIBYTE: u64 = 1 << 20;

/// Data at the start and at 4 MiB of 8.
fn sparse() -> Fixture {
    let mut content = vec![0; 8 << 20];
    content[..5].copy_from_slice(b"begin");
    content[4 << 20..][..6].copy_from_slice(b"middle");
    let fixture = Fixture::new(&[
        ("dir", 0o755, ItemKind::Dir, &[]),
        ("dir/sparse", 0o644, ItemKind::File(&content), &[]),
    ]);
    // The store keeps holes.
    let hex = ObjectId::of(&content).to_string();
    let (shard, rest) = hex.split_at(2);
    let object = fixture.path("objects").join(shard).join(rest);
    let file = File::create(object).unwrap();
    file.set_len(8 * MEBIBYTE).unwrap();
    for (at, bytes) in [(0, &b"begin"[..]), (4 * MEBIBYTE, b"middle")] {
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, at).unwrap();
    }
    fixture
}

#[test]
fn copy_up_keeps_holes_and_lseek_finds_them() {
    let fixture = sparse();
    let overlay = fixture.overlay();
    let id = walk(&overlay, "dir/sparse").unwrap();
    let seek = |handle| {
        let data = overlay
            .lseek(id, Some(handle), MEBIBYTE, Seek::Data)
            .unwrap();
        let hole = overlay.lseek(id, Some(handle), 0, Seek::Hole).unwrap();
        let end = overlay.lseek(id, Some(handle), 8 * MEBIBYTE, Seek::Data);
        assert_eq!(end, Err(Errno::NXIO));
        (data == 4 * MEBIBYTE, hole < MEBIBYTE)
    };
    let reader = overlay.open(id, OpenFlags::default()).unwrap();
    assert_eq!(seek(reader.handle), (true, true));
    overlay.release(id, reader.handle).unwrap();
    let writer = overlay.open(id, WRITE).unwrap();
    assert_eq!(seek(writer.handle), (true, true));
    let host = fs::metadata(fixture.path("upper/dir/sparse")).unwrap();
    assert_eq!(host.len(), 8 * MEBIBYTE);
    assert!(host.blocks() * 512 < MEBIBYTE, "{} blocks", host.blocks());
    assert_eq!(
        overlay.fallocate(id, Some(writer.handle), 9 * MEBIBYTE, 10, 0),
        Ok(())
    );
    assert_eq!(overlay.getattr(id).unwrap().size, 9 * MEBIBYTE + 10);
    let unknown = overlay.fallocate(id, Some(writer.handle), 0, 1, 1 << 30);
    assert_eq!(unknown, Err(Errno::OPNOTSUPP));
}

#[test]
fn copy_file_range_copies_from_the_lower_to_the_upper() {
    let fixture = sparse();
    let overlay = fixture.overlay();
    let (entry, to) = overlay
        .create(NodeId::ROOT, b"to", 0o644, 0, WRITE, &ROOT_CALLER)
        .unwrap();
    let id = walk(&overlay, "dir/sparse").unwrap();
    let from = overlay.open(id, OpenFlags::default()).unwrap();
    let end = |node, handle, offset| CopyEnd {
        node,
        handle: Some(handle),
        offset,
    };
    let copied = overlay.copy_file_range(
        end(id, from.handle, 4 * MEBIBYTE),
        end(entry.id, to.handle, 2),
        6,
    );
    // Two file systems without a copy between them: the kernel does it by reading and writing.
    if copied != Err(Errno::XDEV) {
        assert_eq!(copied, Ok(6));
        assert_eq!(content(&overlay, "to"), b"\0\0middle");
    }
    let back = overlay.copy_file_range(end(entry.id, to.handle, 0), end(id, from.handle, 0), 1);
    assert_eq!(back, Err(Errno::BADF), "it is open for reading");
}

#[test]
fn fsync_makes_a_copy_up_durable_up_to_the_root() {
    let fixture = sparse();
    let overlay = fixture.overlay();
    let id = walk(&overlay, "dir/sparse").unwrap();
    overlay.setattr(id, &mode(0o600)).unwrap();
    let dir = walk(&overlay, "dir").unwrap();
    let unsynced = || [id, dir].map(|node| overlay.upper_node(node).unwrap().2.unsynced);
    let all = Unsynced {
        inode: true,
        name: true,
    };
    assert_eq!(unsynced(), [all, all]);
    overlay.fsync(id, true).unwrap();
    assert!(unsynced().iter().all(|unsynced| !unsynced.name));
    assert!(!unsynced()[0].inode);
    overlay.fsyncdir(dir, false).unwrap();
    overlay.syncfs().unwrap();
}

#[test]
fn truncate_copies_only_the_remaining_bytes() {
    let fixture = sparse();
    let overlay = fixture.overlay();
    let id = walk(&overlay, "dir/sparse").unwrap();
    let size = |size| SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    assert_eq!(overlay.setattr(id, &size(3)).unwrap().size, 3);
    assert_eq!(content(&overlay, "dir/sparse"), b"beg");
    assert_eq!(overlay.setattr(id, &size(5)).unwrap().size, 5);
    assert_eq!(content(&overlay, "dir/sparse"), b"beg\0\0");
    let dir = walk(&overlay, "dir").unwrap();
    assert_eq!(overlay.setattr(dir, &size(5)), Err(Errno::ISDIR));
}

#[test]
fn open_with_o_trunc_copies_nothing() {
    let fixture = sparse();
    let overlay = fixture.overlay();
    let id = walk(&overlay, "dir/sparse").unwrap();
    overlay.setattr(id, &mode(0o6777)).unwrap();
    let flags = OpenFlags {
        write: true,
        truncate: true,
        kill_priv: true,
        ..WRITE
    };
    overlay.open(id, flags).unwrap();
    let attr = overlay.getattr(id).unwrap();
    assert_eq!((attr.size, attr.mode), (0, 0o777));
    // One block of the host for the marks, where the inode has no room for them.
    assert!(attr.blocks <= 8, "{} blocks", attr.blocks);
}

#[test]
fn rename_refuses_unsupported_flags() {
    let modes = [0, 1, 2, 3, 4, 8].map(RenameMode::from_bits);
    let refused = Err(Errno::INVAL);
    let taken = [
        Ok(RenameMode::Replace),
        Ok(RenameMode::NoReplace),
        Ok(RenameMode::Exchange),
    ];
    assert_eq!(
        modes,
        [taken[0], taken[1], taken[2], refused, refused, refused]
    );
}

#[test]
fn open_rdonly_with_o_trunc_truncates() {
    let fixture = sparse();
    let overlay = fixture.overlay();
    let flags = OpenFlags {
        truncate: true,
        ..OpenFlags::default()
    };
    let id = walk(&overlay, "dir/sparse").unwrap();
    // The first reader is in passthrough of the object, so the truncated file is renumbered.
    let reader = overlay.open(id, OpenFlags::default()).unwrap();
    assert_eq!(overlay.open(id, flags).unwrap_err(), Errno::STALE);
    overlay.release(id, reader.handle).unwrap();
    let id = walk(&overlay, "dir/sparse").unwrap();
    let opened = overlay.open(id, flags).unwrap();
    assert_eq!(overlay.getattr(id).unwrap().size, 0);
    assert_eq!(read_all(&overlay, id, Some(opened.handle)), b"");
    let written = overlay.write(id, Some(opened.handle), 0, b"x", false);
    assert_eq!(written, Err(Errno::BADF), "it is open for reading");
    assert_eq!(
        fs::metadata(fixture.path("upper/dir/sparse"))
            .unwrap()
            .len(),
        0
    );
    let overlay = fixture.open_with(IoMode::Passthrough, false).unwrap();
    let id = walk(&overlay, "dir/sparse").unwrap();
    assert_eq!(overlay.open(id, flags).unwrap_err(), Errno::ROFS);
}
