//! Trees of version 2, byte for byte as they were when it was made, and read by their offsets
//! alone.

use std::path::PathBuf;

use super::super::{Kind, LayerBuilder, Meta, Rdev, Timestamp, Tree, TreeIno, merge};
use super::{file, parts, python_reader};
use crate::digest::{ChainId, DiffId, ObjectId, Sha256Digest};

const LOWER: DiffId = DiffId(Sha256Digest::from_bytes([1; 32]));
const UPPER: DiffId = DiffId(Sha256Digest::from_bytes([2; 32]));

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/golden/tree");

fn meta(mode: u32) -> Meta {
    Meta {
        mode,
        uid: 1000,
        gid: 100,
        mtime: Timestamp {
            secs: 1_700_000_000,
            nanos: 123_456_789,
        },
        xattrs: Vec::new(),
    }
}

fn lower() -> Vec<u8> {
    let elf = Kind::Regular {
        size: 5,
        object: Some(ObjectId::of(b"\x7fELF\n")),
        elf: true,
    };
    let capability = vec![1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0];
    let capable = Meta {
        xattrs: vec![
            (b"user.note".to_vec(), b"x".to_vec()),
            (b"security.capability".to_vec(), capability),
        ],
        ..meta(0o4755)
    };
    let device = |major, minor| Rdev { major, minor };
    let entries = [
        ("", meta(0o755), Kind::Directory),
        ("bin", meta(0o755), Kind::Directory),
        ("bin/ping", capable, elf),
        ("bin/sh", meta(0o777), Kind::Symlink(b"ping".to_vec())),
        ("dev/null", meta(0o666), Kind::CharDevice(device(1, 3))),
        ("dev/sda", meta(0o660), Kind::BlockDevice(device(8, 0))),
        ("etc/empty", Meta::default(), file("")),
        ("etc/motd", meta(0o644), file("hello\n")),
        ("run/pipe", meta(0o600), Kind::Fifo),
        ("run/sock", meta(0o600), Kind::Socket),
    ];
    let mut builder = LayerBuilder::new();
    for (path, meta, kind) in entries {
        builder.insert(&parts(path), meta, kind).unwrap();
    }
    builder
        .hard_link(&parts("bin/ping6"), &parts("bin/ping"))
        .unwrap();
    builder.finish(LOWER).unwrap()
}

fn upper() -> Vec<u8> {
    let before_1970 = Meta {
        mtime: Timestamp { secs: -1, nanos: 5 },
        ..meta(0o600)
    };
    let mut builder = LayerBuilder::new();
    builder
        .hard_link(&parts("etc/issue"), &parts("etc/motd"))
        .unwrap();
    builder.whiteout(&parts("dev/sda")).unwrap();
    builder.opaque(&parts("run")).unwrap();
    builder
        .insert(&parts("run/old"), before_1970, file("hello\n"))
        .unwrap();
    builder.finish(UPPER).unwrap()
}

/// Two layers and their merge, with one of each kind of record.
fn trees() -> [(&'static str, Vec<u8>); 3] {
    let layers = [lower(), upper()].map(|bytes| Tree::from_bytes(bytes).unwrap());
    let merged = merge(&layers).unwrap();
    [
        ("v2-lower.tree", lower()),
        ("v2-upper.tree", upper()),
        ("v2-merged.tree", merged),
    ]
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(format!("{DIR}/{name}")).unwrap()
}

#[test]
fn golden_trees_of_version_2_are_unchanged() {
    for (name, bytes) in trees() {
        assert!(
            golden(name) == bytes,
            "{name} differs: a version that was released never changes"
        );
    }
}

#[test]
#[ignore = "writes the fixtures; only for a new version, beside the old ones"]
fn write_fixtures() {
    std::fs::create_dir_all(DIR).unwrap();
    for (name, bytes) in trees() {
        std::fs::write(format!("{DIR}/{name}"), bytes).unwrap();
    }
}

#[test]
fn golden_trees_verify() {
    for name in ["v2-lower.tree", "v2-upper.tree", "v2-merged.tree"] {
        let file = std::fs::File::open(format!("{DIR}/{name}")).unwrap();
        Tree::open(&file).unwrap().verify().unwrap();
    }
}

/// A second reader, made from FORMAT.md alone, sees in them what was put in.
#[test]
fn python_reader_lists_the_golden_trees() {
    for (name, _) in trees() {
        let path = PathBuf::from(format!("{DIR}/{name}"));
        let listing = std::fs::read_to_string(path.with_extension("txt")).unwrap();
        assert_eq!(python_reader(&[path]), listing, "{name}");
    }
}

/// Reads a merged tree with nothing but the numbers of FORMAT.md.
#[test]
fn format_md_offsets_match_the_golden_tree() {
    let bytes = golden("v2-merged.tree");
    let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(&bytes[..8], b"cowltree");
    assert_eq!((u16_at(8), u16_at(10), bytes[12]), (2, 1, 2));
    assert_eq!((u32_at(44), u64_at(48)), (8, bytes.len() as u64));
    assert_eq!(bytes[288..320], *blake3::hash(&bytes[..288]).as_bytes());
    let end = bytes.len() - 32;
    assert_eq!(bytes[end..], *blake3::hash(&bytes[..end]).as_bytes());
    let section = |id: usize| {
        let entry = 96 + (id - 1) * 24;
        assert_eq!(u32_at(entry) as usize, id);
        usize::try_from(u64_at(entry + 8)).unwrap()
    };
    let [nodes, dirents, index, list, _, names, xattrs, objects] =
        [1, 2, 3, 4, 5, 6, 7, 8].map(section);
    // The first name of the first directory is bin, and bin's first is ping.
    let root_first = u32_at(nodes + 40) as usize;
    let dirent = |number: usize| dirents + number * 16;
    let name = |at: usize| {
        let start = names + u32_at(at + 8) as usize;
        &bytes[start..start + usize::from(u16_at(at + 12))]
    };
    let bin = dirent(root_first);
    assert_eq!(
        (name(bin), bytes[bin + 14], bytes[bin + 15]),
        (b"bin".as_slice(), 4, 0)
    );
    let bin_node = nodes + u32_at(bin) as usize * 64;
    assert_eq!(u32_at(bin_node), 0o40755);
    let ping = dirent(u32_at(bin_node + 40) as usize);
    assert_eq!(
        (name(ping), u32_at(ping + 4)),
        (b"ping".as_slice(), u32_at(bin))
    );
    let number = u32_at(ping) as usize;
    let node = nodes + number * 64;
    assert_eq!(
        [0, 4, 8, 12].map(|at| u32_at(node + at)),
        [0o104_755, 1000, 100, 2]
    );
    assert_eq!([16, 24].map(|at| u64_at(node + at)), [5, 1_700_000_000]);
    assert_eq!([32, 36].map(|at| u32_at(node + at)), [123_456_789, 1]);
    let object = objects + u32_at(node + 40) as usize * 40;
    assert_eq!(
        bytes[object..object + 32],
        *ObjectId::of(b"\x7fELF\n").as_bytes()
    );
    assert_eq!(u64_at(object + 32), 5);
    let chain = ChainId::of(&[LOWER, UPPER]);
    assert_eq!(bytes[64..96], *chain.0.as_bytes());
    let set = xattrs + u32_at(node + 48) as usize;
    assert_eq!((u16_at(set), u16_at(set + 2), u32_at(set + 4)), (2, 19, 12));
    assert_eq!(&bytes[set + 8..set + 8 + 19], b"security.capability");
    let inverse = [0, 4].map(|next| u32_at(index + number * 4 + next) as usize);
    assert_eq!(inverse[1] - inverse[0], 2);
    assert_eq!(dirent(u32_at(list + inverse[0] * 4) as usize), ping);
    assert_eq!(
        Tree::from_bytes(bytes.clone())
            .unwrap()
            .path_of(TreeIno(u32_at(ping)))
            .unwrap(),
        b"bin/ping"
    );
}
