//! A worker dies, and its successor finds each node of plain directories under the id that the
//! kernel knows it by.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use super::layers::Stack;
use super::*;
use crate::journal;

/// A journal that outlives overlays: dropping one is the worker's death, but for the locks.
struct Worker(OwnedFd);

impl Worker {
    fn new() -> Worker {
        Worker(journal::create().unwrap())
    }

    /// The next worker's overlay.
    fn overlay(&self, stack: &Stack) -> Overlay {
        let journal = Arc::new(Journal::map(self.0.as_fd()).unwrap());
        let overlay = stack.open_with(IoMode::Cached, Some(Arc::clone(&journal)));
        journal.set_agreed(1);
        overlay
    }
}

/// Looks everything up as the kernel does, `late` directories after all others: ids by path.
fn all_ids(overlay: &Overlay, late: &[&str]) -> BTreeMap<String, (NodeId, u64)> {
    let mut ids = BTreeMap::new();
    let mut directories = vec![(String::new(), NodeId::ROOT)];
    while !directories.is_empty() {
        let next = directories
            .iter()
            .rposition(|(path, _)| !late.contains(&&**path));
        let (above, dir) = directories.remove(next.unwrap_or(0));
        for name in names(overlay, &above) {
            let path = format!("{above}/{name}");
            let entry = overlay.lookup(dir, name.as_bytes()).unwrap().unwrap();
            if entry.attr.file_type == FileType::Directory {
                directories.push((path.clone(), entry.id));
            }
            ids.insert(path, (entry.id, entry.attr.ino));
        }
    }
    ids
}

/// Layers with all that makes numbering depend on more than names.
fn stack() -> Stack {
    let stack = Stack::new(&["top", "middle", "bottom"]);
    for path in ["merged/a", "merged/sub/x", "linked/a", "old/deep/file"] {
        stack.write(&format!("bottom/{path}"), "bottom");
    }
    for path in ["merged/b", "merged/sub/y", "opaque/z", ".wh.gone"] {
        stack.write(&format!("middle/{path}"), "middle");
    }
    stack.write("bottom/gone/file", "whited out");
    stack.write("bottom/opaque/hidden", "hidden");
    stack.write("top/merged/sub/z", "top");
    stack.write("top/same", "the name of another layer's file");
    stack.write("bottom/same", "hidden");
    stack.mark("middle/opaque", "user.overlay.opaque", b"y");
    stack.mark("top/new", "user.overlay.redirect", b"/old");
    // One file, whichever of its names is met first.
    for (layer, name) in [
        ("bottom", "zz"),
        ("bottom", "linked/b"),
        ("middle", "linked/c"),
    ] {
        let path = stack.path(&format!("{layer}/{name}"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::hard_link(stack.path("bottom/linked/a"), path).unwrap();
    }
    std::os::unix::fs::symlink("there", stack.path("bottom/symlink")).unwrap();
    stack
}

#[test]
fn nodes_of_layers_keep_their_ids_over_deaths_whatever_was_met_first() {
    for late in [
        &[][..],
        &["/merged", "/linked"],
        &["/old", "/merged/sub"],
        &["/new"],
    ] {
        let stack = stack();
        let worker = Worker::new();
        let before = all_ids(&worker.overlay(&stack), late);
        assert_eq!(before["/zz"], before["/linked/c"]);
        assert!(before.contains_key("/new/deep/file"), "{before:?}");
        for _ in 0..2 {
            let overlay = worker.overlay(&stack);
            assert_eq!(all_ids(&overlay, &["/linked"]), before, "{late:?}");
        }
    }
}

/// A directory that the dead worker never looked into gets numbers that none of its nodes has.
#[test]
fn what_a_successor_meets_first_has_new_ids() {
    let stack = stack();
    let worker = Worker::new();
    let overlay = worker.overlay(&stack);
    let known = |overlay: &Overlay, path: &str| walk(overlay, path).unwrap();
    let before = ["merged", "linked/a", "new/deep"].map(|path| known(&overlay, path));
    drop(overlay);
    let overlay = worker.overlay(&stack);
    let ids = all_ids(&overlay, &[]);
    for (path, id) in ["/merged", "/linked/a", "/new/deep"]
        .into_iter()
        .zip(before)
    {
        assert_eq!(ids[path].0, id);
    }
    // As many as there are files: one has four names, and one is found by the redirect, too.
    let distinct: std::collections::BTreeSet<_> = ids.values().map(|(id, _)| id).collect();
    assert_eq!(distinct.len(), ids.len() - 4);
    drop(overlay);
    assert_eq!(all_ids(&worker.overlay(&stack), &[]), ids);
}

#[test]
fn changed_files_of_layers_keep_their_ids_over_a_death() {
    let stack = stack();
    let worker = Worker::new();
    let overlay = worker.overlay(&stack);
    let before = all_ids(&overlay, &["/merged"]);
    let id = |path: &str| before[path].0;
    for path in ["/linked/a", "/symlink", "/merged/sub/z"] {
        let owner = SetAttr {
            uid: Some(0),
            ..SetAttr::default()
        };
        overlay.setattr(id(path), &owner).unwrap();
    }
    overlay.unlink(id("/linked"), b"b").unwrap();
    overlay.unlink(NodeId::ROOT, b"same").unwrap();
    let name = b"moved";
    overlay
        .rename(id("/merged"), b"a", NodeId::ROOT, name, RenameMode::Replace)
        .unwrap();
    drop(overlay);
    let overlay = worker.overlay(&stack);
    let after = all_ids(&overlay, &[]);
    for (path, known) in &after {
        let was = if path == "/moved" { "/merged/a" } else { path };
        assert_eq!(*known, before[was], "{path}");
    }
    assert_eq!(after.len(), before.len() - 2);
    for path in ["/linked/b", "/same", "/merged/a"] {
        assert!(!after.contains_key(path));
    }
    // The kernel still knows it, and reads it.
    let removed = overlay.getattr(id("/same")).unwrap();
    assert_eq!((removed.nlink, removed.size), (0, 32));
    assert_eq!(read_all(&overlay, id("/same"), None).len(), 32);
    assert_eq!(overlay.getattr(id("/linked/b")).unwrap().nlink, 3);
}

/// The last name of a file whose copies bear no marks, where a user's uppers are.
#[test]
fn hard_link_whose_copy_bears_no_mark_stays_changed_over_a_death() {
    let stack = Stack::new(&["layer"]);
    std::os::unix::fs::symlink("there", stack.path("layer/a")).unwrap();
    fs::hard_link(stack.path("layer/a"), stack.path("layer/b")).unwrap();
    let worker = Worker::new();
    let overlay = worker.overlay(&stack);
    let symlink = walk(&overlay, "a").unwrap();
    let mtime = Some(SetTime::At(OLD));
    let times = SetAttr {
        mtime,
        ..SetAttr::default()
    };
    overlay.setattr(symlink, &times).unwrap();
    drop(overlay);
    let overlay = worker.overlay(&stack);
    for name in ["a", "b"] {
        assert_eq!(walk(&overlay, name), Ok(symlink));
    }
    assert_eq!(overlay.getattr(symlink).unwrap().mtime, OLD);
}

#[test]
fn layers_changed_beneath_a_mount_lose_what_was_known_in_them_at_a_death() {
    let stack = stack();
    let worker = Worker::new();
    let before = all_ids(&worker.overlay(&stack), &[]);
    stack.write("top/merged/aa", "comes before the others");
    fs::remove_file(stack.path("middle/opaque/z")).unwrap();
    // The same name: nothing moves.
    fs::remove_file(stack.path("top/same")).unwrap();
    stack.write("top/same", "another");
    let overlay = worker.overlay(&stack);
    let lost = |path: &str| overlay.getattr(before[path].0) == Err(Errno::STALE);
    for path in ["/merged/a", "/merged/sub", "/merged/sub/x", "/opaque/z"] {
        assert!(lost(path), "{path}");
    }
    for path in [
        "/merged",
        "/opaque",
        "/new/deep/file",
        "/same",
        "/linked/a",
        "/symlink",
    ] {
        assert!(!lost(path), "{path}");
        assert_eq!(walk(&overlay, path), Ok(before[path].0), "{path}");
    }
    assert_eq!(content(&overlay, "same"), b"another");
    assert_eq!(content(&overlay, "merged/aa"), b"comes before the others");
    assert_eq!(content(&overlay, "merged/sub/z"), b"top");
    let known: Vec<NodeId> = before.values().map(|(id, _)| *id).collect();
    for path in ["merged/a", "merged/aa", "merged/sub", "merged/sub/x"] {
        assert!(!known.contains(&walk(&overlay, path).unwrap()), "{path}");
    }
}
