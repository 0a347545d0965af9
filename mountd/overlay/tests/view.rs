//! The comparable view of a mount or of a plain directory.

use std::collections::BTreeMap;

use cowl_core::tree::FileType;
use cowl_tests::tree::{Content, Entry, SET_BEFORE, differences};

pub(super) use cowl_tests::tree::{Tree, below as of_directory};

use super::super::{NodeId, Overlay};
use super::read_all;

/// Whether `ours` matches `plain` after a kill: a link may be counted twice, and a directory's time
/// may not be restored yet.
pub(super) fn may_be(ours: &Entry, plain: &Entry) -> bool {
    let links = ours.nlink == plain.nlink || ours.nlink == plain.nlink + 1;
    let is_directory = ours.kind == rustix::fs::FileType::Directory;
    let mtime = if is_directory && ours.mtime.is_none() {
        None
    } else {
        plain.mtime
    };
    let nlink = ours.nlink;
    let plain = plain.clone();
    links
        && *ours
            == Entry {
                nlink,
                mtime,
                ..plain
            }
}

/// All below the root.
pub(super) fn of_overlay(overlay: &Overlay) -> Tree {
    let mut tree = Tree::new();
    visit_overlay(overlay, NodeId::ROOT, "", &mut tree, &mut BTreeMap::new());
    tree
}

/// Name, `d_ino` and type of every entry.
fn names_of(overlay: &Overlay, dir: NodeId, prefix: &str) -> Vec<(Vec<u8>, u64, FileType)> {
    let mut names = Vec::new();
    let mut cookie = 0;
    // A few at a time, so that going on is tried too.
    loop {
        let mut some = Vec::new();
        overlay
            .readdir(dir, cookie, false, &mut |entry| {
                if some.len() == 3 {
                    return false;
                }
                cookie = entry.cookie;
                some.push((entry.name.to_vec(), entry.ino, entry.file_type));
                true
            })
            .unwrap();
        if some.is_empty() {
            break;
        }
        names.extend(some);
    }
    names.retain(|(name, ..)| name != b"." && name != b"..");
    names.sort_by(|a, b| a.0.cmp(&b.0));
    let unique = names
        .iter()
        .map(|(name, ..)| name)
        .collect::<std::collections::BTreeSet<_>>();
    assert_eq!(
        unique.len(),
        names.len(),
        "a name comes twice in {prefix:?}"
    );
    names
}

fn visit_overlay(
    overlay: &Overlay,
    dir: NodeId,
    prefix: &str,
    tree: &mut Tree,
    first: &mut BTreeMap<u64, String>,
) {
    let names = names_of(overlay, dir, prefix);
    for (name, d_ino, d_type) in names {
        let entry = overlay
            .lookup(dir, &name)
            .unwrap()
            .expect("readdir gave a name that lookup does not find");
        let attr = entry.attr;
        assert_eq!(
            (d_ino, d_type),
            (attr.ino, attr.file_type),
            "d_ino and d_type of {prefix}{}",
            name.escape_ascii()
        );
        let path = format!("{prefix}{}", String::from_utf8(name).unwrap());
        let content = match attr.file_type {
            FileType::Regular => Content::of(&read_all(overlay, entry.id, None)),
            FileType::Symlink => Content::Target(overlay.readlink(entry.id).unwrap()),
            _ => Content::None,
        };
        let mut xattrs = BTreeMap::new();
        for name in overlay
            .listxattr(entry.id)
            .unwrap()
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
        {
            let value = overlay.getxattr(entry.id, name).unwrap();
            xattrs.insert(String::from_utf8(name.to_vec()).unwrap(), value);
        }
        let directory = attr.file_type == FileType::Directory;
        let first_name = first
            .entry(attr.ino)
            .or_insert_with(|| path.clone())
            .clone();
        let seen = Entry {
            kind: rustix::fs::FileType::from_raw_mode(attr.file_type.to_mode_bits()),
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            nlink: attr.nlink,
            size: if directory { 0 } else { attr.size },
            rdev: (attr.rdev.major, attr.rdev.minor),
            mtime: (attr.mtime.secs < SET_BEFORE).then_some((attr.mtime.secs, attr.mtime.nanos)),
            content,
            xattrs,
            first_name,
        };
        tree.insert(path.clone(), seen);
        if directory {
            visit_overlay(overlay, entry.id, &format!("{path}/"), tree, first);
        }
        overlay.forget(entry.id, 1);
    }
}

/// Fails with the differences, and what was done last.
pub(super) fn assert_same(overlay: &Tree, plain: &Tree, log: &[String]) {
    let lines = differences(plain, overlay);
    let last = log.get(log.len().saturating_sub(25)..).unwrap_or_default();
    assert!(
        lines.is_empty(),
        "{}\nafter:\n{}",
        lines.join("\n"),
        last.join("\n")
    );
}
