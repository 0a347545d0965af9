//! A layer's tree equals what GNU tar extracts, for every writer of archives. Unsafe entries are
//! refused by name.
//!
//! The oracle is GNU tar as root, and a walk over what it extracted. Archives come from
//! `fixtures/tars.py`. Devices, owners and `trusted.*` attributes need root in the initial user
//! namespace: without, the tests fail and say so.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::digest::Sha256Digest;
use crate::layer::{self, ImportError, ImportedLayer, Limits};
use crate::tree::{FileType, Target, Tree, TreeIno};

use super::memory::Memory;

/// All that a layer can say about one name; what two walks must agree on.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(super) struct Facts {
    file_type: FileType,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, u32),
    nlink: u32,
    device: (u32, u32),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of a symbolic link its target.
    content: Vec<u8>,
    /// The first of the names that are this file.
    same_as: Vec<u8>,
}

pub(super) type Walk = BTreeMap<Vec<u8>, Facts>;

pub(super) fn walk_tree(tree: &Tree, sink: &Memory) -> Walk {
    let mut walk = Walk::new();
    let mut first = BTreeMap::new();
    let mut todo = vec![(TreeIno::ROOT, Vec::new())];
    while let Some((ino, path)) = todo.pop() {
        walk.insert(path.clone(), tree_facts(tree, sink, ino));
        if tree.node(ino).unwrap().file_type != FileType::Directory {
            continue;
        }
        for child in tree.children(ino).unwrap() {
            let child = child.unwrap();
            let name = if path.is_empty() {
                child.name.to_vec()
            } else {
                [&path, b"/".as_slice(), child.name].concat()
            };
            let Target::Node(target) = child.target else {
                panic!("{:?}: {:?}", String::from_utf8_lossy(&name), child.target);
            };
            if child.file_type != Some(FileType::Directory) {
                first
                    .entry(target)
                    .or_insert_with(Vec::new)
                    .push(name.clone());
            }
            todo.push((target, name));
        }
    }
    for names in first.into_values() {
        group(&mut walk, names);
    }
    walk
}

fn tree_facts(tree: &Tree, sink: &Memory, ino: TreeIno) -> Facts {
    let node = tree.node(ino).unwrap();
    let content = match (node.file_type, node.object) {
        (FileType::Symlink, _) => tree.symlink_target(ino).unwrap().to_vec(),
        (FileType::Regular, Some(object)) => sink.content(tree.object_id(object).unwrap()).unwrap(),
        (_, object) => {
            assert_eq!((object, node.size), (None, 0));
            Vec::new()
        }
    };
    assert_eq!(
        node.elf,
        node.file_type == FileType::Regular && content.starts_with(b"\x7fELF")
    );
    assert_eq!(node.size, content.len() as u64);
    let xattrs = tree
        .xattrs(ino)
        .unwrap()
        .map(|xattr| {
            xattr
                .map(|(name, value)| (name.to_vec(), value.to_vec()))
                .unwrap()
        })
        .collect();
    Facts {
        file_type: node.file_type,
        mode: node.mode,
        owner: (node.uid, node.gid),
        mtime: (node.mtime.secs, node.mtime.nanos),
        nlink: if node.file_type == FileType::Directory {
            0
        } else {
            node.nlink
        },
        device: (node.rdev.major, node.rdev.minor),
        xattrs,
        content,
        same_as: Vec::new(),
    }
}

pub(super) fn walk_directory(root: &Path) -> Walk {
    let mut walk = Walk::new();
    let mut first = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let full = if path.as_os_str().is_empty() {
            root.to_owned()
        } else {
            root.join(&path)
        };
        let meta = fs::symlink_metadata(&full).unwrap();
        let name = path.as_os_str().as_bytes().to_vec();
        if !meta.is_dir() {
            first
                .entry(meta.ino())
                .or_insert_with(Vec::new)
                .push(name.clone());
        }
        walk.insert(name, directory_facts(&full, &meta));
        if meta.is_dir() {
            todo.extend(
                fs::read_dir(&full)
                    .unwrap()
                    .map(|entry| path.join(entry.unwrap().file_name())),
            );
        }
    }
    for names in first.into_values() {
        group(&mut walk, names);
    }
    walk
}

fn directory_facts(path: &Path, meta: &fs::Metadata) -> Facts {
    let file_type = FileType::from_mode_bits(meta.mode()).unwrap();
    let special = matches!(file_type, FileType::CharDevice | FileType::BlockDevice);
    Facts {
        file_type,
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec().try_into().unwrap()),
        nlink: if meta.is_dir() {
            0
        } else {
            meta.nlink().try_into().unwrap()
        },
        device: if special {
            (
                rustix::fs::major(meta.rdev()),
                rustix::fs::minor(meta.rdev()),
            )
        } else {
            (0, 0)
        },
        xattrs: xattrs(path),
        content: match file_type {
            FileType::Regular => fs::read(path).unwrap(),
            FileType::Symlink => fs::read_link(path).unwrap().into_os_string().into_vec(),
            _ => Vec::new(),
        },
        same_as: Vec::new(),
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    names[..length]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let length =
                rustix::fs::lgetxattr(path, OsString::from_vec(name.to_vec()), &mut value[..])
                    .unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}

fn group(walk: &mut Walk, mut names: Vec<Vec<u8>>) {
    names.sort();
    for name in &names {
        walk.get_mut(name).unwrap().same_as = names[0].clone();
    }
}

pub(super) fn tars(arguments: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tars.py");
    let status = Command::new("python3")
        .arg(script)
        .args(arguments)
        .status()
        .expect("python3 is installed");
    assert!(status.success(), "tars.py {arguments:?}");
}

pub(super) fn import(archive: &Path) -> Result<(ImportedLayer, Memory), ImportError> {
    let sink = Memory::default();
    let stream = layer::decompress(File::open(archive).unwrap()).unwrap();
    import_with(stream, &sink).map(|layer| (layer, sink))
}

pub(super) fn import_with(
    stream: impl Read + Send,
    sink: &Memory,
) -> Result<ImportedLayer, ImportError> {
    // contents are kept in memory here, so a bomb has to meet its limit early
    let limits = Limits {
        content_bytes: 1 << 30,
        ..Limits::default()
    };
    layer::import(stream, sink, &limits)
}

/// The error and all its causes, as a person would see them.
pub(super) fn message(error: &ImportError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

pub(super) fn archives(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "tar"))
        .collect();
    found.sort();
    assert!(!found.is_empty());
    found
}

/// Extracts as GNU tar does for root, all attributes kept.
pub(super) fn extract(archive: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    let output = Command::new("tar")
        .args([
            "--extract",
            "--preserve-permissions",
            "--same-owner",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "--file",
        ])
        .arg(archive)
        .arg("-C")
        .arg(to)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}: {}",
        archive.display(),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Compares entry by entry; all differences are told. The root, where the archive has none, and
/// implied directories say nothing to compare.
pub(super) fn assert_same(archive: &Path, tree: &Tree, ours: &Walk, theirs: &Walk) {
    let shown = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    let mut wrong = Vec::new();
    for name in theirs.keys().filter(|name| !ours.contains_key(*name)) {
        wrong.push(format!("{}: not in the tree", shown(name)));
    }
    for (name, facts) in ours {
        let Some(theirs) = theirs.get(name) else {
            wrong.push(format!("{}: only in the tree", shown(name)));
            continue;
        };
        let implied = tree
            .resolve(name)
            .unwrap()
            .is_some_and(|ino| tree.node(ino).unwrap().implied);
        if !implied && facts != theirs {
            let short = |facts: &Facts| Facts {
                content: facts.content[..facts.content.len().min(40)].to_vec(),
                ..facts.clone()
            };
            wrong.push(format!(
                "{}:\n  {:?}\n  {:?}",
                shown(name),
                short(facts),
                short(theirs)
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}: tree, then plain extraction:\n{}",
        archive.display(),
        wrong.join("\n")
    );
}

fn compare(archive: &Path, scratch: &Path) -> usize {
    let (layer, sink) = import(archive)
        .unwrap_or_else(|error| panic!("{}: {}", archive.display(), message(&error)));
    assert_eq!(
        layer.diff_id.0,
        Sha256Digest::of(&fs::read(archive).unwrap()),
        "{}",
        archive.display()
    );
    let tree = Tree::from_bytes(layer.tree_bytes).unwrap();
    tree.verify().unwrap();
    let to = scratch.join("extracted");
    extract(archive, &to);
    let (ours, theirs) = (walk_tree(&tree, &sink), walk_directory(&to));
    assert_same(archive, &tree, &ours, &theirs);
    fs::remove_dir_all(&to).unwrap();
    ours.len()
}

#[test]
fn import_matches_gnu_tar_for_every_writer() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes devices and owners: run it as root"
    );
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    tars(&["tree", at("tree").to_str().unwrap()]);
    tars(&[
        "archives",
        at("tree").to_str().unwrap(),
        at("archives").to_str().unwrap(),
    ]);
    let archives = archives(&at("archives"));
    assert_eq!(archives.len(), 17, "{archives:?}");
    for archive in &archives {
        // v7 holds the least: no devices, no long names
        let entries = compare(archive, scratch.path());
        assert!(entries >= 69, "{}: {entries} entries", archive.display());
    }
    // nothing is lost on the way: the format that can hold everything gives back the tree it was
    // made of
    let complete = at("archives/gnu-pax-sparse-1.0.tar");
    let (layer, sink) = import(&complete).unwrap();
    let tree = Tree::from_bytes(layer.tree_bytes).unwrap();
    assert_same(
        &complete,
        &tree,
        &walk_tree(&tree, &sink),
        &walk_directory(&at("tree")),
    );
}

#[test]
fn import_matches_gnu_tar_for_odd_archives() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("odd");
    tars(&["odd", directory.to_str().unwrap()]);
    for archive in archives(&directory) {
        let name = archive.file_stem().unwrap().to_str().unwrap();
        if ![
            "empty",
            "no-padding",
            "global-ignored",
            "symlink-then-directory-dot",
        ]
        .contains(&name)
        {
            compare(&archive, scratch.path());
        }
    }
    // where Docker does otherwise: GNU tar calls no bytes at all no archive, minds padding that is
    // missing at the end, takes the values of a global header for those of each entry, and does
    // not replace a symbolic link by a directory called `link/.`
    let entries = |name: &str| import(&directory.join(name)).unwrap().0.stats.entries;
    assert_eq!(entries("empty.tar"), 0);
    assert_eq!(entries("no-padding.tar"), 1);
    let node = |name: &str, path: &[u8]| {
        let layer = import(&directory.join(name)).unwrap().0;
        let tree = Tree::from_bytes(layer.tree_bytes).unwrap();
        tree.node(tree.resolve(path).unwrap().unwrap()).unwrap()
    };
    assert_eq!(node("global-ignored.tar", b"x").uid, 0);
    let directory_now = node("symlink-then-directory-dot.tar", b"foo");
    assert_eq!(
        (directory_now.file_type, directory_now.mode),
        (FileType::Directory, 0o700)
    );
}

#[test]
fn import_refuses_hostile_archives_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("hostile");
    tars(&["hostile", directory.to_str().unwrap()]);
    let expected = fs::read_to_string(directory.join("expected.tsv")).unwrap();
    let mut wrong = Vec::new();
    for line in expected.lines() {
        let (name, part) = line.split_once('\t').unwrap();
        match import(&directory.join(format!("{name}.tar"))) {
            Ok(_) => wrong.push(format!("{name}: accepted")),
            Err(error) if message(&error).contains(part) => {}
            Err(error) => wrong.push(format!("{name}: wanted {part:?}, got: {}", message(&error))),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        expected.lines().count(),
        wrong.join("\n")
    );
}

#[test]
fn diff_id_of_a_gzipped_layer_is_that_of_its_tar() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    tars(&["odd", at("odd").to_str().unwrap()]);
    let plain = at("odd/trailing-garbage.tar");
    let status = Command::new("gzip").arg("-k").arg(&plain).status().unwrap();
    assert!(status.success());
    let (layer, _) = import(&at("odd/trailing-garbage.tar.gz")).unwrap();
    assert_eq!(
        layer.diff_id.0,
        Sha256Digest::of(&fs::read(&plain).unwrap())
    );
}
