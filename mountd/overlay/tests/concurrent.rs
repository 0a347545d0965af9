//! Operations that run while another thread copies a file up.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use cowl_tests::profile::NEVER;

use super::rules::{small, write_to};
use super::*;

#[test]
fn getattr_masks_directory_times_during_copy_up() {
    const FILES: usize = 400;
    let names: Vec<String> = (0..FILES).map(|i| format!("dir/{i}")).collect();
    let mut items: Vec<Item<'_>> = vec![("dir", 0o755, ItemKind::Dir, &[])];
    items.extend(
        names
            .iter()
            .map(|name| (&**name, 0o644, ItemKind::File(b"content"), &[][..])),
    );
    let fixture = Fixture::new(&items);
    let overlay = fixture.overlay();
    let dir = walk(&overlay, "dir").unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut seen = Vec::new();
            loop {
                seen.push(overlay.getattr(dir).unwrap().mtime);
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
            seen.dedup();
            seen
        });
        for name in &names {
            let id = walk(&overlay, name).unwrap();
            overlay.setattr(id, &mode(0o600)).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(looking.join().unwrap(), [OLD]);
    });
}

/// A content copy-up that lasts until the test ends it: the object is a fifo, which only the copy
/// opens.
struct Gate {
    object: PathBuf,
    kept: PathBuf,
    fifo: PathBuf,
}

impl Gate {
    fn before(fixture: &Fixture, bytes: &[u8]) -> Gate {
        let hex = ObjectId::of(bytes).to_string();
        let (shard, rest) = hex.split_at(2);
        let gate = Gate {
            object: fixture.path("objects").join(shard).join(rest),
            kept: fixture.path("kept"),
            fifo: fixture.path("fifo"),
        };
        fs::rename(&gate.object, &gate.kept).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &gate.fifo, fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        fs::set_permissions(&gate.fifo, Permissions::from_mode(0o600)).unwrap();
        fs::hard_link(&gate.fifo, &gate.object).unwrap();
        gate
    }

    /// For opens after the copy: a copy that has not opened the fifo yet would copy the object, and
    /// [`Gate::open`] would wait forever.
    fn restore_object(&self) {
        fs::rename(&self.kept, &self.object).unwrap();
    }

    /// Waits until the copy has opened the fifo, and lets it go on. It fails: a fifo has no holes
    /// to look for.
    fn open(&self) {
        drop(fs::OpenOptions::new().write(true).open(&self.fifo).unwrap());
    }
}

fn wait_for(condition: impl Fn() -> bool) {
    while !condition() {
        thread::yield_now();
    }
}

#[test]
fn read_getattr_and_rename_run_during_a_content_copy_up() {
    let fixture = small();
    let overlay = fixture.overlay();
    let id = walk(&overlay, "file").unwrap();
    overlay.setattr(id, &mode(0o6755)).unwrap();
    let before = overlay.getattr(id).unwrap();
    let handle = overlay.open(id, OpenFlags::default()).unwrap().handle;
    // The object is kept open from here on; the gate replaces it.
    assert_eq!(read_all(&overlay, id, Some(handle)), b"content");
    let gate = Gate::before(&fixture, b"content");
    thread::scope(|scope| {
        let writer = scope.spawn(|| overlay.open(id, WRITE).map(drop));
        wait_for(|| overlay.masked.is_masked(id));
        let (tell, told) = mpsc::channel();
        scope.spawn({
            let overlay = &overlay;
            move || {
                let value = overlay.getxattr(id, b"user.a").unwrap();
                let bytes = read_all(overlay, id, Some(handle));
                let mode = RenameMode::Replace;
                let dir = walk(overlay, "dir").unwrap();
                overlay
                    .rename(NodeId::ROOT, b"file", dir, b"moved", mode)
                    .unwrap();
                let attr = overlay.getattr(id).unwrap();
                tell.send((value, bytes, attr)).unwrap();
            }
        });
        let seen = told.recv_timeout(NEVER);
        gate.open();
        assert_eq!(writer.join().unwrap(), Err(Errno::SPIPE));
        let (value, bytes, attr) = seen.expect("waits for the copy");
        assert_eq!((&*value, &*bytes), (&b"1"[..], &b"content"[..]));
        assert_eq!((attr.mtime, attr.mode), (before.mtime, 0o6755));
    });
    overlay.release(id, handle).unwrap();
    gate.restore_object();
    // A copy that failed changed nothing, and the next one finds the file where it is now.
    let after = overlay.getattr(id).unwrap();
    assert_eq!(
        (after.mtime, after.mode, after.size),
        (before.mtime, 0o6755, before.size)
    );
    write_to(&overlay, "dir/moved", 0, b"CON");
    assert_eq!(content(&overlay, "dir/moved"), b"CONtent");
}

#[test]
fn unlink_during_a_content_copy_up_removes_the_file() {
    let fixture = small();
    let overlay = fixture.overlay();
    let id = walk(&overlay, "file").unwrap();
    overlay.setattr(id, &mode(0o600)).unwrap();
    let gate = Gate::before(&fixture, b"content");
    thread::scope(|scope| {
        let writer = scope.spawn(|| overlay.open(id, WRITE).map(drop));
        wait_for(|| overlay.masked.is_masked(id));
        let (tell, told) = mpsc::channel();
        scope.spawn({
            let overlay = &overlay;
            move || tell.send(overlay.unlink(NodeId::ROOT, b"file")).unwrap()
        });
        let removed = told.recv_timeout(NEVER);
        gate.open();
        assert_eq!(removed, Ok(Ok(())), "waits for the copy");
        assert_eq!(writer.join().unwrap(), Err(Errno::STALE));
    });
    assert_eq!(overlay.lookup(NodeId::ROOT, b"file"), Ok(None));
}

/// A `chmod` during the copy would be undone at its end, so it waits.
#[test]
fn setattr_waits_for_a_content_copy_up() {
    let fixture = small();
    let overlay = fixture.overlay();
    let id = walk(&overlay, "file").unwrap();
    overlay.setattr(id, &mode(0o6755)).unwrap();
    let gate = Gate::before(&fixture, b"content");
    thread::scope(|scope| {
        let writer = scope.spawn(|| overlay.open(id, WRITE).map(drop));
        wait_for(|| overlay.masked.is_masked(id));
        let changed = scope.spawn(|| overlay.setattr(id, &mode(0o4711)).unwrap().mode);
        gate.open();
        assert_eq!(writer.join().unwrap(), Err(Errno::SPIPE));
        assert_eq!(changed.join().unwrap(), 0o4711);
    });
    assert_eq!(overlay.getattr(id).unwrap().mode, 0o4711);
}
