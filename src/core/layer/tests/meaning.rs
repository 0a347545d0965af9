//! What a layer says of the layers below, what reaches the store, and what happens where import
//! stops.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

use super::memory::Memory;
use super::oracle::{import_with, message, tars};
use crate::digest::ObjectId;
use crate::layer::{
    HashOnly, ImportError, ImportedLayer, Limits, ObjectSink, ObjectWrite, ReadSeek, StoredObject,
    import,
};
use crate::store::{Stage, Store};
use crate::tree::{FileType, Rdev, Target, Tree};

fn archive(kind: &str, name: &str) -> Vec<u8> {
    let scratch = tempfile::tempdir().unwrap();
    tars(&[kind, scratch.path().to_str().unwrap()]);
    fs::read(scratch.path().join(name)).unwrap()
}

fn hashed(bytes: &[u8], limits: &Limits) -> Result<ImportedLayer, ImportError> {
    import(bytes, &HashOnly, limits)
}

#[test]
fn import_tells_whiteouts_opaque_marks_and_links_below_apart() {
    let layer = hashed(&archive("layer", "layer.tar"), &Limits::default()).unwrap();
    assert_eq!(
        (
            layer.stats.entries,
            layer.stats.skipped,
            layer.stats.whiteouts
        ),
        (18, 3, 6)
    );
    let tree = Tree::from_bytes(layer.tree_bytes).unwrap();
    tree.verify().unwrap();
    let names = |path: &[u8]| {
        let directory = tree.resolve(path).unwrap().unwrap();
        let children = tree.children(directory).unwrap().map(Result::unwrap);
        children
            .map(|child| {
                (
                    String::from_utf8_lossy(child.name).into_owned(),
                    child.target,
                )
            })
            .collect::<Vec<_>>()
    };
    let root: Vec<String> = names(b"").into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        root,
        [
            "device",
            "gone",
            "implied",
            "link-absolute",
            "link-below",
            "link-here",
            "opaque"
        ]
    );
    let gone = names(b"gone");
    let whiteouts: Vec<&str> = gone
        .iter()
        .filter(|(_, target)| *target == Target::Whiteout)
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(
        whiteouts,
        [".hidden", "before", "by-aufs"],
        "a whiteout beside an entry of its name leaves the entry"
    );
    assert_eq!(gone.len(), 5);

    let node = |path: &[u8]| tree.node(tree.resolve(path).unwrap().unwrap()).unwrap();
    assert!(node(b"opaque").opaque && !node(b"opaque").implied);
    assert_eq!(names(b"opaque").len(), 2);
    assert!(node(b"implied/deep").opaque && node(b"implied/deep").implied && node(b"gone").implied);
    assert_eq!(
        (node(b"device").file_type, node(b"device").rdev),
        (FileType::CharDevice, Rdev { major: 0, minor: 0 })
    );
    assert_eq!(
        tree.resolve(b"link-here").unwrap(),
        tree.resolve(b"gone/stays").unwrap()
    );
    for name in [&b"link-below"[..], b"link-absolute"] {
        let link = tree
            .lookup(crate::tree::TreeIno::ROOT, name)
            .unwrap()
            .unwrap();
        assert_eq!(
            (link.target, tree.link_target(&link).unwrap()),
            (Target::LinkBelow, &b"usr/bin/tool"[..])
        );
    }
}

#[test]
fn import_stores_exactly_the_contents() {
    let scratch = tempfile::tempdir().unwrap();
    let bytes = archive("odd", "link-names-once-more.tar");
    let memory = Memory::default();
    let expected = import_with(bytes.as_slice(), &memory).unwrap();
    let store = Store::open_or_create(&scratch.path().join("store")).unwrap();
    let transaction = store.begin().unwrap();
    let import = || {
        let import = |stage: &Stage<'_>| {
            let layer = import(bytes.as_slice(), stage, &Limits::default()).unwrap();
            stage
                .put_layer(
                    layer.diff_id,
                    layer.tree_bytes.clone(),
                    layer.stats.stream_bytes,
                    &layer.recipe,
                )
                .unwrap();
            layer
        };
        transaction.stage(import).unwrap()
    };
    let layer = import();
    assert_eq!(
        (layer.diff_id, layer.stats),
        (expected.diff_id, expected.stats)
    );
    assert_eq!(layer.tree_bytes, expected.tree_bytes);
    assert_eq!(memory.contents().len(), 2);
    assert_eq!(import().recipe, layer.recipe);
    transaction.publish(&[]).unwrap();
    for (id, content) in memory.contents() {
        let mut stored = Vec::new();
        store
            .open_object(id)
            .unwrap()
            .read_to_end(&mut stored)
            .unwrap();
        assert_eq!(stored, content);
    }
}

/// A store on a full disk.
struct Full;

impl ObjectSink for Full {
    type Writer<'s> = Full;

    fn object(&self) -> io::Result<Full> {
        Ok(Full)
    }

    fn read_back(&self, _: ObjectId) -> io::Result<Box<dyn ReadSeek + '_>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn discard(&self, _: ObjectId) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ObjectWrite for Full {
    fn finish(self) -> io::Result<StoredObject> {
        Err(io::ErrorKind::StorageFull.into())
    }
}

/// A disk that is gone.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the disk is gone"))
    }
}

#[test]
fn import_errors_name_the_sink_or_the_source() {
    let bytes = archive("odd", "no-end.tar");
    let error = import(bytes.as_slice(), &Full, &Limits::default()).unwrap_err();
    assert!(
        matches!(&error, ImportError::Sink { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    );
    assert_eq!(
        message(&error),
        "entry \"x\": cannot store its content: no storage space"
    );
    let error = import(
        bytes.as_slice().chain(Broken),
        &HashOnly,
        &Limits::default(),
    )
    .unwrap_err();
    assert!(
        message(&error).contains("the disk is gone"),
        "{}",
        message(&error)
    );
}

#[test]
fn import_enforces_each_limit() {
    let bytes = archive("odd", "pax-long-everything.tar");
    let with = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        hashed(&bytes, &limits)
    };
    with(|_| ()).unwrap();
    let refused = |part: &str, change| {
        let message = message(&with(change).unwrap_err());
        assert!(message.contains(part), "{part}: {message}");
    };
    refused("entries", |limits| limits.entries = 0);
    refused("the limit is 600", |limits| limits.path_bytes = 600);
    refused("300 directories", |limits| limits.depth = 300);
    refused("extended headers", |limits| limits.extended_bytes = 4000);
    refused("bytes", |limits| limits.stream_bytes = 6000);
    // 4.7 KiB of strings, and 301 directories that no entry names
    refused("metadata", |limits| limits.metadata_bytes = 60_000);
}

/// Terabytes of holes are a few hundred bytes of a tar, and an hour of hashing.
#[test]
fn import_limits_holes_before_hashing_them() {
    let script = "
import sys, tarfile
with tarfile.open(sys.argv[1], 'w', format=tarfile.PAX_FORMAT) as tar:
    for number in range(3):
        records = {'GNU.sparse.size': str(30 << 30), 'GNU.sparse.numblocks': '0', 'GNU.sparse.map': ''}
        info = tarfile.TarInfo(f'hole-{number}'); info.pax_headers = records
        tar.addfile(info)";
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("x.tar");
    python(script, &path);
    let bytes = fs::read(path).unwrap();
    let limits = Limits {
        hole_bytes: (30 << 30) - 1,
        ..Limits::default()
    };
    let error = hashed(&bytes, &limits).unwrap_err();
    assert!(message(&error).contains("holes"), "{error:?}");
}

/// As those of a bomb are.
#[test]
fn import_stores_long_runs_of_zeros_as_holes() {
    let memory = Memory::default();
    let mut bytes = archive("odd", "no-end.tar");
    bytes.truncate(512);
    // a file of 4 MiB in place of the one of 7 bytes, its checksum by hand
    bytes[124..136].copy_from_slice(b"00020000000\0");
    bytes[148..156].fill(b' ');
    let sum: u32 = bytes[..512].iter().map(|&byte| u32::from(byte)).sum();
    bytes[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    bytes.resize(512 + (4 << 20), 0);
    let layer = import_with(bytes.as_slice(), &memory).unwrap();
    assert_eq!(layer.stats.content_bytes, 4 << 20);
    assert!(memory.zeros() >= 3 << 20, "{}", memory.zeros());
}

#[test]
fn messages_escape_control_characters_in_names() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("x.tar");
    let script = "import sys, tarfile\nwith tarfile.open(sys.argv[1], 'w') as tar: tar.addfile(tarfile.TarInfo('../\\x1b[2J\\n'))";
    python(script, &path);
    let error = hashed(&fs::read(&path).unwrap(), &Limits::default()).unwrap_err();
    assert!(
        message(&error).chars().all(|letter| !letter.is_control()),
        "{error:?}"
    );
}

fn python(script: &str, argument: &Path) {
    let status = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(argument)
        .status()
        .unwrap();
    assert!(status.success());
}
