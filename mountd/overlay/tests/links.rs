//! Hard links and unnamed files.

use super::rules::{small, write_to};
use super::*;

#[test]
fn copy_up_and_unlink_keep_hard_links() {
    let fixture = small();
    let overlay = fixture.overlay();
    assert_eq!(
        walk(&overlay, "hard").unwrap(),
        walk(&overlay, "dir/hard").unwrap()
    );
    write_to(&overlay, "dir/hard", 0, b"L");
    assert_eq!(content(&overlay, "hard"), b"Linked");
    let links = |overlay: &Overlay, path: &str| {
        overlay.getattr(walk(overlay, path).unwrap()).unwrap().nlink
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
fn unlink_of_an_open_file_orphans_it_until_release_and_forget() {
    let fixture = small();
    let overlay = fixture.overlay();
    let id = overlay.lookup(NodeId::ROOT, b"file").unwrap().unwrap().id;
    let opened = overlay.open(id, WRITE).unwrap();
    overlay.unlink(NodeId::ROOT, b"file").unwrap();
    assert_eq!(on_disk(&fixture.path("work/orphans")).len(), 1);
    assert_eq!(overlay.getattr(id).unwrap().nlink, 0);
    overlay
        .write(id, Some(opened.handle), 0, b"still", false)
        .unwrap();
    assert_eq!(read_all(&overlay, id, Some(opened.handle)), b"stillnt");
    overlay
        .setattr(
            id,
            &SetAttr {
                size: Some(2),
                ..SetAttr::default()
            },
        )
        .unwrap();
    assert_eq!(read_all(&overlay, id, Some(opened.handle)), b"st");
    overlay.release(id, opened.handle).unwrap();
    assert_eq!(overlay.getattr(id).unwrap().nlink, 0);
    overlay.forget(id, 1);
    assert_eq!(on_disk(&fixture.path("work/orphans")), [""; 0]);
}

/// A process that looked it up may still open it: through /proc/self/fd, or in a race with the
/// unlink.
#[test]
fn open_of_a_removed_file_never_shows_the_image_content() {
    let fixture = small();
    let overlay = fixture.overlay();
    let dir = walk(&overlay, "dir").unwrap();
    let [changed, untouched] = [(NodeId::ROOT, &b"file"[..]), (dir, b"one")]
        .map(|(dir, name)| overlay.lookup(dir, name).unwrap().unwrap().id);
    write_to(&overlay, "file", 0, b"CON");
    overlay.unlink(NodeId::ROOT, b"file").unwrap();
    for flags in [OpenFlags::default(), WRITE] {
        assert_eq!(overlay.open(changed, flags).unwrap_err(), Errno::STALE);
    }
    overlay.unlink(dir, b"one").unwrap();
    let opened = overlay.open(untouched, OpenFlags::default()).unwrap();
    assert_eq!(read_all(&overlay, untouched, Some(opened.handle)), b"one");
}

#[test]
fn link_names_a_tmpfile() {
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

/// The kernel's writeback cache sends them when it drops an unlinked inode.
#[test]
fn setattr_of_times_after_unlink_copies_nothing_up() {
    let fixture = small();
    let overlay = fixture.open_with(IoMode::Cached, true).unwrap();
    let id = overlay.lookup(NodeId::ROOT, b"file").unwrap().unwrap().id;
    overlay.unlink(NodeId::ROOT, b"file").unwrap();
    let later = Timestamp { secs: 77, nanos: 7 };
    let times = SetAttr {
        mtime: Some(SetTime::At(later)),
        ..SetAttr::default()
    };
    let attr = overlay.setattr(id, &times).unwrap();
    assert_eq!((attr.mtime, attr.nlink), (later, 0));
    assert_eq!(on_disk(&fixture.path("work/orphans")), [""; 0]);
    // A later copy-up keeps these times.
    let attr = overlay.setattr(id, &mode(0o600)).unwrap();
    assert_eq!((attr.mtime, attr.mode, attr.nlink), (later, 0o600, 0));
    assert_eq!(on_disk(&fixture.path("work/orphans")).len(), 1);
    assert_eq!(read_all(&overlay, id, None), b"content");
    overlay.forget(id, 1);
}

/// The kernel forgets single lookups at times (fuse_dentry_revalidate), including those made
/// before a change.
#[test]
fn unlink_counts_lookups_made_before_the_copy_up() {
    let fixture = small();
    let overlay = fixture.open_with(IoMode::Cached, true).unwrap();
    let find = || overlay.lookup(NodeId::ROOT, b"file").unwrap().unwrap().id;
    let id = find();
    find();
    write_to_node(&overlay, id, b"CON");
    overlay.unlink(NodeId::ROOT, b"file").unwrap();
    overlay.forget(id, 1);
    assert_eq!(
        read_all(&overlay, id, None),
        b"CONtent",
        "it may be open still"
    );
    overlay.forget(id, 1);
    assert_eq!(on_disk(&fixture.path("work/orphans")), [""; 0]);
}

/// The kernel opens devices and fifos itself: an open one is not known to be so.
#[test]
fn setattr_of_a_removed_fifo_changes_what_fstat_shows() {
    let fixture = small();
    for io_mode in [IoMode::Passthrough, IoMode::Cached] {
        let overlay = fixture.open_with(io_mode, true).unwrap();
        let (fifo, none) = (FileType::Fifo, Rdev::default());
        let id = overlay
            .mknod(NodeId::ROOT, b"new", fifo, 0o644, none, 0, &ROOT_CALLER)
            .unwrap()
            .id;
        overlay.unlink(NodeId::ROOT, b"new").unwrap();
        let attr = overlay.setattr(id, &mode(0o600)).unwrap();
        assert_eq!((attr.mode, attr.nlink), (0o600, 0), "{io_mode:?}");
        assert_eq!(overlay.getattr(id).unwrap().mode, 0o600);
        overlay.forget(id, 1);
        assert_eq!(on_disk(&fixture.path("work/orphans")), [""; 0]);
    }
}

fn write_to_node(overlay: &Overlay, id: NodeId, data: &[u8]) {
    assert_eq!(overlay.write(id, None, 0, data, false), Ok(data.len()));
}

#[test]
fn forget_of_removed_files_shrinks_the_state() {
    let fixture = small();
    for io_mode in [IoMode::Passthrough, IoMode::Cached] {
        let overlay = fixture.open_with(io_mode, true).unwrap();
        let size = || overlay.state.read().size();
        let dir = overlay
            .mkdir(NodeId::ROOT, b"made", 0o755, 0, &ROOT_CALLER)
            .unwrap();
        let before = size();
        for number in 0..2000 {
            let name = format!("{number}").into_bytes();
            let (entry, opened) = overlay
                .create(dir.id, &name, 0o644, 0, WRITE, &ROOT_CALLER)
                .unwrap();
            if io_mode == IoMode::Passthrough {
                overlay.release(entry.id, opened.handle).unwrap();
            }
        }
        let ids: Vec<NodeId> = (0..2000)
            .map(|number| walk(&overlay, &format!("made/{number}")).unwrap())
            .collect();
        assert!(size().0 > before.0 + 2000);
        for (number, id) in ids.into_iter().enumerate() {
            let name = format!("{number}").into_bytes();
            overlay.unlink(dir.id, &name).unwrap();
            overlay.forget(id, 1);
        }
        let (entries, room) = size();
        assert_eq!(entries, before.0, "{io_mode:?}");
        assert!(room < 3000, "room for {room}, {io_mode:?}");
        overlay.rmdir(NodeId::ROOT, b"made").unwrap();
        overlay.forget(dir.id, 1);
        // Of a removed lower file only the whiteout remains.
        let id = overlay.lookup(NodeId::ROOT, b"fifo").unwrap();
        if let Some(entry) = id {
            let before = size();
            overlay.unlink(NodeId::ROOT, b"fifo").unwrap();
            overlay.forget(entry.id, 1);
            assert_eq!(size().0, before.0);
        }
    }
}
