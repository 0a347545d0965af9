//! The comparable view of a mount or of a plain directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cowl_core::tree::FileType;

use super::super::{NodeId, Overlay};
use super::read_all;

/// A file as `stat`, `read`, `readlink` and `getxattr` show it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct FileView {
    kind: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u64,
    size: u64,
    rdev: (u32, u32),
    /// Only where it was set, not stamped: before the tests were written.
    mtime: Option<(i64, i64)>,
    content: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path of the same inode.
    same_as: String,
}

impl FileView {
    /// The content, as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.content).into_owned()
    }

    /// Whether this matches `plain` after a kill: a link may be counted twice, and a directory's
    /// time may not be restored yet.
    pub(super) fn may_be(&self, plain: &FileView) -> bool {
        let links = self.nlink == plain.nlink || self.nlink == plain.nlink + 1;
        let directory = self.kind == FileType::Directory.to_mode_bits();
        let mtime = if directory && self.mtime.is_none() {
            None
        } else {
            plain.mtime
        };
        links
            && *self
                == FileView {
                    nlink: self.nlink,
                    mtime,
                    ..plain.clone()
                }
    }
}

pub(super) type Tree = BTreeMap<String, FileView>;

/// Times after this were set by the clock during the test.
const RECENT: i64 = 1_600_000_000;

fn settled(secs: i64, nanos: i64) -> Option<(i64, i64)> {
    (secs < RECENT).then_some((secs, nanos))
}

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
            FileType::Regular => read_all(overlay, entry.id, None),
            FileType::Symlink => overlay.readlink(entry.id).unwrap(),
            _ => Vec::new(),
        };
        let mut xattrs = BTreeMap::new();
        for name in overlay
            .listxattr(entry.id)
            .unwrap()
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
        {
            xattrs.insert(name.to_vec(), overlay.getxattr(entry.id, name).unwrap());
        }
        let directory = attr.file_type == FileType::Directory;
        let same_as = first
            .entry(attr.ino)
            .or_insert_with(|| path.clone())
            .clone();
        let seen = FileView {
            kind: attr.file_type.to_mode_bits(),
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            nlink: u64::from(attr.nlink),
            size: if directory { 0 } else { attr.size },
            rdev: (attr.rdev.major, attr.rdev.minor),
            mtime: settled(attr.mtime.secs, i64::from(attr.mtime.nanos)),
            content,
            xattrs,
            same_as,
        };
        tree.insert(path.clone(), seen);
        if directory {
            visit_overlay(overlay, entry.id, &format!("{path}/"), tree, first);
        }
        overlay.forget(entry.id, 1);
    }
}

pub(super) fn of_directory(dir: &Path) -> Tree {
    let mut tree = Tree::new();
    visit_directory(dir, "", &mut tree, &mut BTreeMap::new());
    tree
}

fn visit_directory(dir: &Path, prefix: &str, tree: &mut Tree, first: &mut BTreeMap<u64, String>) {
    let mut names: Vec<Vec<u8>> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_vec())
        .collect();
    names.sort();
    for name in names {
        let host = dir.join(OsStr::from_bytes(&name));
        let meta = fs::symlink_metadata(&host).unwrap();
        let path = format!("{prefix}{}", String::from_utf8(name).unwrap());
        let content = if meta.file_type().is_symlink() {
            fs::read_link(&host).unwrap().into_os_string().into_vec()
        } else if meta.mode() & 0o170_000 == 0o100_000 {
            fs::read(&host).unwrap()
        } else {
            Vec::new()
        };
        let same_as = first
            .entry(meta.ino())
            .or_insert_with(|| path.clone())
            .clone();
        let device = matches!(meta.mode() & 0o170_000, 0o020_000 | 0o060_000);
        let seen = FileView {
            kind: meta.mode() & 0o170_000,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            nlink: meta.nlink(),
            size: if meta.is_dir() { 0 } else { meta.size() },
            rdev: if device {
                (
                    rustix::fs::major(meta.rdev()),
                    rustix::fs::minor(meta.rdev()),
                )
            } else {
                (0, 0)
            },
            mtime: settled(meta.mtime(), meta.mtime_nsec()),
            content,
            xattrs: xattrs_of(&host),
            same_as,
        };
        tree.insert(path.clone(), seen);
        if meta.is_dir() {
            visit_directory(&host, &format!("{path}/"), tree, first);
        }
    }
}

fn xattrs_of(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    names.truncate(length);
    let mut xattrs = BTreeMap::new();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; 4096];
        let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap();
        value.truncate(length);
        xattrs.insert(name.to_vec(), value);
    }
    xattrs
}

/// Fails with the first difference, and what was done last.
pub(super) fn assert_same(overlay: &Tree, plain: &Tree, log: &[String]) {
    let paths: std::collections::BTreeSet<&String> = overlay.keys().chain(plain.keys()).collect();
    for path in paths {
        let (ours, theirs) = (overlay.get(path), plain.get(path));
        assert!(
            ours == theirs,
            "{path}\n  overlay: {ours:?}\n  plain:   {theirs:?}\nafter:\n{}",
            log.iter()
                .rev()
                .take(25)
                .rev()
                .cloned()
                .collect::<Vec<_>>()
                .join("\n")
        );
    }
}
