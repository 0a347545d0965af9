//! What is exported is what GNU tar extracts, and what import reads back to the same bytes.

use std::fs;
use std::io::{self, Cursor};
use std::process::Command;

use super::memory::Memory;
use super::oracle::{
    assert_same, extract, import, import_with, message, tars, walk_directory, walk_tree,
};
use crate::digest::{DiffId, ObjectId, Sha256Digest};
use crate::layer::{ExportError, ImportError, ImportedLayer, ObjectSource, export};
use crate::tree::{Kind, LayerBuilder, Meta, Timestamp, Tree, TreeKind, merge};

impl ObjectSource for Memory {
    type Reader = Cursor<Vec<u8>>;

    fn open(&self, id: ObjectId) -> io::Result<Self::Reader> {
        self.content(id)
            .map(Cursor::new)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn exported(tree: &Tree, source: &Memory) -> Vec<u8> {
    let mut archive = Vec::new();
    let stats = export(tree, source, &mut archive).unwrap();
    assert_eq!(stats.bytes, archive.len() as u64);
    archive
}

#[test]
fn export_round_trips_every_kind_of_file() {
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
    let (layer, contents) = import(&at("archives/gnu-pax-sparse-1.0.tar")).unwrap();
    let tree = Tree::from_bytes(layer.tree_bytes.clone()).unwrap();

    let archive = exported(&tree, &contents);
    assert_eq!(
        archive,
        exported(&tree, &contents),
        "one tree is one archive"
    );
    let again = import_with(archive.as_slice(), &Memory::default()).unwrap();
    assert!(records(&again) == records(&layer), "the trees differ");

    let out = at("out.tar");
    fs::write(&out, &archive).unwrap();
    extract(&out, &at("extracted"));
    assert_same(
        &out,
        &tree,
        &walk_tree(&tree, &contents),
        &walk_directory(&at("extracted")),
    );

    // Python reads the names and times as we do, and finds the end where it is
    let script = "import sys, tarfile; print(len(list(tarfile.open(sys.argv[1]))))";
    let listed = Command::new("python3")
        .args(["-c", script])
        .arg(&out)
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&listed.stdout).trim(),
        again.stats.entries.to_string()
    );

    // a merged tree is exported like a layer without marks
    let merged = Tree::from_bytes(merge(&[tree]).unwrap()).unwrap();
    assert_eq!(merged.kind(), TreeKind::Merged);
    assert_eq!(exported(&merged, &contents), archive);
}

/// Docker sets the owner, mode and times of a hard link's header on the file; GNU tar ignores them.
#[test]
fn export_writes_the_files_attributes_in_each_hard_links_header() {
    let file = Meta {
        mode: 0o640,
        uid: 7,
        gid: 8,
        mtime: Timestamp {
            secs: 1_000_000_000,
            nanos: 0,
        },
        ..Meta::default()
    };
    let mut builder = LayerBuilder::new();
    let empty = Kind::Regular {
        size: 0,
        object: None,
        elf: false,
    };
    builder.insert(&[b"first"], file, empty).unwrap();
    builder.hard_link(&[b"second"], &[b"first"]).unwrap();
    let bytes = builder.finish(DiffId(Sha256Digest::of(b"layer"))).unwrap();
    let archive = exported(&Tree::from_bytes(bytes).unwrap(), &Memory::default());

    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out.tar");
    fs::write(&out, archive).unwrap();
    let script = "import sys, tarfile\n\
        for m in tarfile.open(sys.argv[1]): print(m.name, m.islnk(), oct(m.mode), m.uid, m.gid, m.mtime)";
    let listed = Command::new("python3")
        .args(["-c", script])
        .arg(&out)
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains("first False 0o640 7 8 1000000000\n"),
        "{listed}"
    );
    assert!(
        listed.contains("second True 0o640 7 8 1000000000\n"),
        "{listed}"
    );
}

#[test]
fn export_keeps_whiteouts_and_links_below() {
    let scratch = tempfile::tempdir().unwrap();
    for (kind, name) in [
        ("layer", "layer.tar"),
        ("odd", "implied.tar"),
        ("odd", "pax-long-everything.tar"),
        ("odd", "base256-time.tar"),
    ] {
        tars(&[kind, scratch.path().to_str().unwrap()]);
        let (layer, contents) = import(&scratch.path().join(name)).unwrap();
        let archive = exported(
            &Tree::from_bytes(layer.tree_bytes.clone()).unwrap(),
            &contents,
        );
        let again = import_with(archive.as_slice(), &Memory::default())
            .unwrap_or_else(|error: ImportError| panic!("{}", message(&error)));
        assert!(
            records(&again) == records(&layer),
            "{name}: the trees differ"
        );
    }
}

/// A tree without its header and digests, which depend on the tar's DiffID.
fn records(layer: &ImportedLayer) -> &[u8] {
    let bytes = &layer.tree_bytes;
    &bytes[320..bytes.len() - 32]
}

fn one_file(name: &[u8], size: u64, object: ObjectId, mtime: Timestamp) -> Tree {
    let mut builder = LayerBuilder::new();
    let meta = Meta {
        mode: 0o644,
        mtime,
        ..Meta::default()
    };
    builder
        .insert(
            &[name],
            meta,
            Kind::Regular {
                size,
                object: Some(object),
                elf: false,
            },
        )
        .unwrap();
    Tree::from_bytes(builder.finish(DiffId(Sha256Digest::of(b"layer"))).unwrap()).unwrap()
}

/// Gives the same bytes for every object.
struct Always(&'static [u8]);

impl ObjectSource for Always {
    type Reader = Cursor<&'static [u8]>;

    fn open(&self, _: ObjectId) -> io::Result<Self::Reader> {
        Ok(Cursor::new(self.0))
    }
}

#[test]
fn export_refuses_a_damaged_object() {
    let tree = one_file(b"x", 5, ObjectId::of(b"right"), Timestamp::default());
    export(&tree, &Always(b"right"), Vec::new()).unwrap();
    for content in [&b"wrong"[..], b"rig", b""] {
        let error = export(&tree, &Always(content), Vec::new()).unwrap_err();
        assert!(matches!(error, ExportError::Damaged { .. }), "{error}");
    }
}

#[test]
fn export_refuses_a_file_named_like_a_whiteout() {
    let tree = one_file(b".wh.x", 1, ObjectId::of(b"x"), Timestamp::default());
    let error = export(&tree, &Always(b"x"), Vec::new()).unwrap_err();
    assert!(error.to_string().contains(".wh."), "{error}");
    // as a root file system it is a file like any other
    let merged = Tree::from_bytes(merge(&[tree]).unwrap()).unwrap();
    export(&merged, &Always(b"x"), Vec::new()).unwrap();
}
