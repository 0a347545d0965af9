//! Tests of the module, by promise. Helpers here.

mod building;
mod following;
mod golden;
mod hostile;
mod merging;
mod model;

use std::path::PathBuf;
use std::process::Command;

use super::{Kind, LayerBuilder, Meta, Timestamp, Tree};
use crate::digest::{DiffId, ObjectId, Sha256Digest};

/// The layer that all trees here say they are of, where it does not matter.
const LAYER: DiffId = DiffId(Sha256Digest::from_bytes([7; 32]));

/// What `fixtures/readtree.py` lists, which fails where FORMAT.md does not allow what it reads.
fn python_reader(trees: &[PathBuf]) -> String {
    let reader = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/readtree.py");
    let told = Command::new("python3")
        .args(["-B", reader])
        .args(trees)
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success(), "{complaint}");
    String::from_utf8(told.stdout).unwrap()
}

/// `usr/bin/x` as the builder wants it; an empty text is the root.
fn parts(path: &str) -> Vec<&[u8]> {
    path.split('/')
        .filter(|name| !name.is_empty())
        .map(str::as_bytes)
        .collect()
}

fn meta(mode: u32) -> Meta {
    Meta {
        mode,
        uid: 1,
        gid: 2,
        mtime: Timestamp { secs: -3, nanos: 4 },
        xattrs: Vec::new(),
    }
}

fn file(content: &str) -> Kind {
    let object = (!content.is_empty()).then(|| ObjectId::of(content.as_bytes()));
    Kind::Regular {
        size: content.len() as u64,
        object,
        elf: false,
    }
}

/// A layer in one line per entry, in a small language of its own: `d PATH`, `f PATH CONTENT`, `l
/// PATH TARGET` (symbolic), `h PATH TARGET` (hard), `w PATH` (whiteout), `o PATH` (opaque).
fn layer(script: &str) -> Tree {
    let mut builder = LayerBuilder::new();
    for line in script
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        let mut words = line.split(' ');
        let (what, path, rest) = (
            words.next().unwrap(),
            parts(words.next().unwrap_or("")),
            words.next().unwrap_or(""),
        );
        match what {
            "d" => builder.insert(&path, meta(0o750), Kind::Directory),
            "f" => builder.insert(&path, meta(0o640), file(rest)),
            "l" => builder.insert(&path, meta(0o777), Kind::Symlink(rest.into())),
            "h" => builder.hard_link(&path, &parts(rest)),
            "w" => builder.whiteout(&path),
            "o" => builder.opaque(&path),
            _ => panic!("unknown line: {line}"),
        }
        .unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    let tree = Tree::from_bytes(builder.finish(LAYER).unwrap()).unwrap();
    tree.verify().unwrap();
    tree
}
