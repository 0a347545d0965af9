//! Readdir of directories that change during the listing.

use super::rules::small;
use super::*;

/// Reads a directory one entry at a time and does something after each; the names, at most a
/// hundred.
fn list(overlay: &Overlay, dir: NodeId, mut after: impl FnMut(&str)) -> Vec<String> {
    let mut cookie = 0;
    let mut names: Vec<String> = Vec::new();
    while names.len() < 100 {
        let mut next = None;
        overlay
            .readdir(dir, cookie, false, &mut |entry| {
                if next.is_some() {
                    return false;
                }
                next = Some(String::from_utf8(entry.name.to_vec()).unwrap());
                cookie = entry.cookie;
                true
            })
            .unwrap();
        let Some(name) = next else { break };
        if name != "." && name != ".." {
            after(&name);
            names.push(name);
        }
    }
    names
}

fn create(overlay: &Overlay, dir: NodeId, name: &str) {
    let regular = FileType::Regular;
    overlay
        .mknod(
            dir,
            name.as_bytes(),
            regular,
            0o644,
            Rdev::default(),
            0,
            &ROOT_CALLER,
        )
        .unwrap();
}

fn rename(overlay: &Overlay, dir: NodeId, from: &str, to: &str) {
    overlay
        .rename(
            dir,
            from.as_bytes(),
            dir,
            to.as_bytes(),
            RenameMode::Replace,
        )
        .unwrap();
}

#[test]
fn readdir_ends_while_entries_are_renamed() {
    let fixture = small();
    let overlay = fixture.overlay();
    let new = overlay
        .mkdir(NodeId::ROOT, b"new", 0o755, 0, &ROOT_CALLER)
        .unwrap()
        .id;
    for number in 0..5 {
        create(&overlay, new, &format!("a{number}"));
    }
    for dir in [new, walk(&overlay, "dir").unwrap()] {
        let names = list(&overlay, dir, |name| {
            let to = match name.strip_prefix('~') {
                Some(rest) => rest.to_owned(),
                None => format!("~{name}"),
            };
            rename(&overlay, dir, name, &to);
        });
        assert!(names.len() <= 10, "{names:?}");
    }
}

#[test]
fn readdir_gives_a_replaced_file_once() {
    let fixture = small();
    let overlay = fixture.overlay();
    let dir = NodeId::ROOT;
    create(&overlay, dir, "born");
    let before = list(&overlay, dir, |_| {});
    let names = list(&overlay, dir, |name| {
        if ["born", "file", "hard"].contains(&name) {
            create(&overlay, dir, ".new");
            rename(&overlay, dir, ".new", name);
        }
    });
    assert_eq!(names, before);
}
