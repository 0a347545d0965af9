//! What the builder is told is what the reader says, by the rules of one layer.

use super::super::{
    BuildError, FileType, LayerBuilder, Node, ObjectRef, Rdev, Target, Timestamp, TreeError,
    TreeIno,
};
use super::super::{Kind, Meta, Tree, TreeKind};
use super::{LAYER, file, layer, meta, parts};
use crate::digest::ObjectId;

fn at(tree: &Tree, path: &str) -> TreeIno {
    tree.resolve(path.as_bytes())
        .unwrap()
        .unwrap_or_else(|| panic!("{path} is missing"))
}

fn names(tree: &Tree, dir: &str) -> Vec<String> {
    let names = tree.children(at(tree, dir)).unwrap();
    names
        .map(|dirent| String::from_utf8(dirent.unwrap().name.to_vec()).unwrap())
        .collect()
}

fn target(tree: &Tree, path: &str) -> Option<Target> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    tree.lookup(at(tree, dir), name.as_bytes())
        .unwrap()
        .map(|dirent| dirent.target)
}

/// Odd but legal attributes.
fn odd(xattrs: &[(&str, &[u8])]) -> Meta {
    Meta {
        mode: 0o104_755,
        uid: u32::MAX - 1,
        gid: 7,
        mtime: Timestamp {
            secs: -1,
            nanos: 999_999_999,
        },
        xattrs: xattrs
            .iter()
            .map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()))
            .collect(),
    }
}

#[test]
fn finish_stores_every_attribute() {
    let mut builder = LayerBuilder::new();
    let object = ObjectId::of(b"elf");
    let size = i64::MAX.unsigned_abs();
    let kind = Kind::Regular {
        size,
        object: Some(object),
        elf: true,
    };
    builder.insert(&parts("x"), odd(&[]), kind).unwrap();
    let tree = Tree::from_bytes(builder.finish(LAYER).unwrap()).unwrap();
    assert_eq!(tree.kind(), TreeKind::Layer);
    let expected = Node {
        file_type: FileType::Regular,
        mode: 0o4755,
        uid: u32::MAX - 1,
        gid: 7,
        nlink: 1,
        size,
        mtime: odd(&[]).mtime,
        rdev: Rdev::default(),
        elf: true,
        implied: false,
        opaque: false,
        object: Some(ObjectRef(0)),
    };
    assert_eq!(tree.node(at(&tree, "x")).unwrap(), expected);
    assert_eq!(tree.object_id(ObjectRef(0)).unwrap(), object);
    assert_eq!(tree.object_ids().collect::<Vec<_>>(), [object]);
}

#[test]
fn xattrs_are_sorted_and_the_last_duplicate_wins() {
    let mut builder = LayerBuilder::new();
    let xattrs: [(&str, &[u8]); 4] = [
        ("user.b", b"old"),
        ("security.capability", &[0, 1, 255]),
        ("user.b", b"new"),
        ("user.a", b""),
    ];
    builder
        .insert(&parts("x"), odd(&xattrs), Kind::Fifo)
        .unwrap();
    builder.insert(&parts("y"), odd(&[]), Kind::Fifo).unwrap();
    let tree = Tree::from_bytes(builder.finish(LAYER).unwrap()).unwrap();
    let x = at(&tree, "x");
    let found: Vec<_> = tree.xattrs(x).unwrap().map(Result::unwrap).collect();
    let sorted: [(&[u8], &[u8]); 3] = [
        (b"security.capability", &[0, 1, 255]),
        (b"user.a", b""),
        (b"user.b", b"new"),
    ];
    assert_eq!(found, sorted);
    assert_eq!(tree.xattr(x, b"user.b").unwrap(), Some(b"new".as_slice()));
    assert_eq!(tree.xattr(x, b"user.c").unwrap(), None);
    assert_eq!(tree.xattrs(at(&tree, "y")).unwrap().count(), 0);
}

#[test]
fn finish_stores_devices_fifos_and_sockets() {
    let rdev = Rdev {
        major: 4095,
        minor: 1_048_575,
    };
    let none = Rdev::default();
    let kinds = [
        (Kind::CharDevice(rdev), FileType::CharDevice, rdev),
        (Kind::BlockDevice(none), FileType::BlockDevice, none),
        (Kind::Fifo, FileType::Fifo, none),
        (Kind::Socket, FileType::Socket, none),
        (Kind::Symlink(b"../\xff".to_vec()), FileType::Symlink, none),
    ];
    let mut builder = LayerBuilder::new();
    let names = ["a", "b", "c", "d", "e"];
    for (name, (kind, ..)) in names.iter().zip(&kinds) {
        builder
            .insert(&parts(name), odd(&[]), kind.clone())
            .unwrap();
    }
    let tree = Tree::from_bytes(builder.finish(LAYER).unwrap()).unwrap();
    for (name, (_, file_type, rdev)) in names.iter().zip(&kinds) {
        let node = tree.node(at(&tree, name)).unwrap();
        assert_eq!((node.file_type, node.rdev), (*file_type, *rdev));
        assert_eq!((node.mode, node.object), (0o4755, None));
    }
    let link = at(&tree, "e");
    assert_eq!(tree.symlink_target(link).unwrap(), b"../\xff");
    assert_eq!(tree.node(link).unwrap().size, 4);
}

#[test]
fn finish_numbers_nodes_breadth_first() {
    let one = layer("f b/z 1\nf a/y 2\nh c b/z\nf b/\u{e9} 3\nd a/d\nf a/d/deep 4");
    let paths: Vec<_> = (0..one.node_count())
        .map(|n| String::from_utf8(one.path_of(TreeIno(n)).unwrap()).unwrap())
        .collect();
    assert_eq!(paths, ["", "a", "b", "c", "a/d", "a/y", "b/é", "a/d/deep"]);
    let other = layer("d a/d\nf b/\u{e9} 3\nf c 1\nf a/d/deep 4\nh b/z c\nf a/y 2");
    assert_eq!(
        one.bytes(),
        other.bytes(),
        "the order of the tar does not matter"
    );
}

#[test]
fn insert_makes_an_implied_directory_explicit() {
    let tree = layer("f d/x 1\nd d\nf e/x 2");
    assert!(!tree.node(at(&tree, "d")).unwrap().implied);
    assert_eq!(tree.node(at(&tree, "d")).unwrap().mode, 0o750);
    assert_eq!(names(&tree, "d"), ["x"]);
    assert!(tree.node(at(&tree, "e")).unwrap().implied);
    assert!(tree.node(TreeIno::ROOT).unwrap().implied);
    assert!(!layer("d").node(TreeIno::ROOT).unwrap().implied);
}

#[test]
fn insert_replaces_an_earlier_entry() {
    let tree = layer("f a 1\nf a 22\nd b\nf b/x 1\nf b 333\nf c 1\nd c\nf c/y 1");
    assert_eq!(tree.node(at(&tree, "a")).unwrap().size, 2);
    assert_eq!(tree.node(at(&tree, "b")).unwrap().size, 3);
    assert_eq!(names(&tree, "c"), ["y"]);
}

#[test]
fn hard_link_survives_replacement_of_its_target() {
    let tree = layer("f a 1\nh b a\nh c b\nf a 22\nh d/e c\nh d/e d/e");
    let b = at(&tree, "b");
    assert_eq!((at(&tree, "c"), at(&tree, "d/e")), (b, b));
    assert_ne!(at(&tree, "a"), b);
    assert_eq!(tree.node(b).unwrap().nlink, 3);
    let all: Vec<_> = tree
        .names_of(b)
        .unwrap()
        .map(|dirent| dirent.unwrap().name.to_vec())
        .collect();
    assert_eq!(all, [b"b", b"c", b"e"]);
    assert_eq!(tree.names_of(TreeIno::ROOT).unwrap().count(), 0);
}

#[test]
fn hard_link_to_a_lower_file_is_stored_as_a_path() {
    let tree = layer("h a/b usr/bin/x\nh c a/b");
    for path in ["a/b", "c"] {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dirent = tree
            .lookup(at(&tree, dir), name.as_bytes())
            .unwrap()
            .unwrap();
        assert_eq!((dirent.target, dirent.file_type), (Target::LinkBelow, None));
        assert_eq!(tree.link_target(&dirent).unwrap(), b"usr/bin/x");
        assert_eq!(tree.resolve(path.as_bytes()).unwrap(), None);
    }
    let dir = tree.lookup(TreeIno::ROOT, b"a").unwrap().unwrap();
    assert!(matches!(
        tree.link_target(&dir),
        Err(TreeError::NotALink(_))
    ));
}

#[test]
fn whiteouts_apply_to_lower_layers_in_any_order() {
    for script in [
        "w f\nf f 1\nw d\nf d/x 1\nw gone\no o\nf o/y 1\nw i",
        "f d/x 1\nf f 1\nf o/y 1\no o\nw gone\nw d\nw f\nw i",
    ] {
        let tree = layer(script);
        assert!(matches!(target(&tree, "f"), Some(Target::Node(_))));
        assert_eq!(target(&tree, "gone"), Some(Target::Whiteout));
        let d = tree.node(at(&tree, "d")).unwrap();
        assert_eq!(
            (d.opaque, d.implied, d.mode),
            (true, false, 0o755),
            "deleted and made anew"
        );
        let o = tree.node(at(&tree, "o")).unwrap();
        assert_eq!(
            (o.opaque, o.implied),
            (true, true),
            "emptied, but the same directory"
        );
        assert_eq!(names(&tree, "o"), ["y"]);
    }
}

#[test]
fn insert_refuses_a_path_through_a_dangling_symlink() {
    let mut builder = LayerBuilder::new();
    builder
        .insert(&parts("lib"), meta(0o777), Kind::Symlink(b"/etc".to_vec()))
        .unwrap();
    let through = [
        builder.insert(&parts("lib/passwd"), meta(0o644), file("x")),
        builder.insert(&parts("lib/a/b"), meta(0o755), Kind::Directory),
        builder.hard_link(&parts("lib/x"), &parts("y")),
        builder.whiteout(&parts("lib/x")),
        builder.opaque(&parts("lib")),
    ];
    for result in through {
        let Err(BuildError::Ancestor { ancestor, .. }) = result else {
            panic!("{result:?}")
        };
        assert_eq!(ancestor, "lib");
    }
    let link = builder.hard_link(&parts("x"), &parts("lib/passwd"));
    assert!(
        matches!(link, Err(BuildError::LinkThrough { .. })),
        "{link:?}"
    );
    builder
        .insert(&parts("lib"), meta(0o755), Kind::Directory)
        .unwrap();
    builder
        .insert(&parts("lib/passwd"), meta(0o644), file("x"))
        .unwrap();
}

#[test]
fn insert_refuses_impossible_entries_by_name() {
    let mut builder = LayerBuilder::new();
    builder
        .insert(&parts("d"), meta(0o755), Kind::Directory)
        .unwrap();
    let long = vec![b'x'; 256];
    for name in [b"".as_slice(), b".", b"..", b"a/b", b"a\0", &long] {
        let error = builder
            .insert(&[b"d", name], meta(0o644), file(""))
            .unwrap_err();
        assert!(matches!(error, BuildError::Name { .. }), "{error}");
        let error = builder.hard_link(&[b"x"], &[b"d", name]).unwrap_err();
        assert!(matches!(error, BuildError::Name { .. }), "{error}");
    }
    let x = parts("x");
    let content = |size, object| Kind::Regular {
        size,
        object,
        elf: false,
    };
    let object = Some(ObjectId::of(b"1"));
    let late = Meta {
        mtime: Timestamp {
            secs: 0,
            nanos: 1_000_000_000,
        },
        ..meta(0)
    };
    let attributes = |name: &[u8], value: usize| Meta {
        xattrs: vec![(name.to_vec(), vec![0; value])],
        ..meta(0)
    };
    let refused = [
        builder.insert(&[], meta(0o644), file("x")),
        builder.whiteout(&[]),
        builder.hard_link(&x, &parts("d")),
        builder.hard_link(&x, &[]),
        builder.insert(&x, meta(0), Kind::Symlink(Vec::new())),
        builder.insert(&x, meta(0), Kind::Symlink(vec![b'x'; 4096])),
        builder.insert(&x, meta(0), content(1, None)),
        builder.insert(&x, meta(0), content(0, object)),
        builder.insert(&x, meta(0), content(1 << 63, object)),
        builder.insert(&x, late, file("")),
        builder.insert(&x, attributes(b"", 0), file("")),
        builder.insert(&x, attributes(b"user.a", 65537), file("")),
        builder.insert(&vec![b"d".as_slice(); 4097], meta(0), file("")),
    ];
    for (number, result) in refused.into_iter().enumerate() {
        assert!(result.is_err(), "case {number}");
    }
    let text = builder.hard_link(&x, &parts("d")).unwrap_err().to_string();
    assert_eq!(text, r#""x": a hard link to the directory "d""#);
    builder.insert(&x, meta(0), content(1, object)).unwrap();
    builder
        .insert(&parts("y"), meta(0), content(2, object))
        .unwrap();
    assert!(
        matches!(builder.finish(LAYER), Err(BuildError::Write(_))),
        "one object, two sizes"
    );
}

#[test]
fn lookup_and_child_find_exactly_the_names() {
    let tree = layer("f d/a 1\nf d/bb 2\nd d/c\nf d/\u{7f} 3\nf e 4");
    let d = at(&tree, "d");
    assert_eq!(names(&tree, "d"), ["a", "bb", "c", "\u{7f}"]);
    assert_eq!(
        (tree.child_count(d).unwrap(), tree.subdir_count(d).unwrap()),
        (4, 1)
    );
    for (position, name) in (0..).zip(["a", "bb", "c", "\u{7f}"]) {
        let dirent = tree.lookup(d, name.as_bytes()).unwrap().unwrap();
        assert_eq!(tree.child(d, position).unwrap(), Some(dirent));
        assert_eq!(dirent.parent, d);
    }
    assert_eq!(tree.child(d, 4).unwrap(), None);
    assert_eq!(tree.child(d, u32::MAX).unwrap(), None);
    for missing in ["", "A", "b", "bbb", "e", "z"] {
        assert_eq!(
            tree.lookup(d, missing.as_bytes()).unwrap(),
            None,
            "{missing}"
        );
    }
    let e = at(&tree, "e");
    assert!(matches!(tree.lookup(e, b"x"), Err(TreeError::NotADirectory(ino)) if ino == e));
    assert!(matches!(
        tree.node(TreeIno(tree.node_count())),
        Err(TreeError::NoSuchNode(_))
    ));
    assert!(matches!(
        tree.names_of(TreeIno(u32::MAX)).err(),
        Some(TreeError::NoSuchNode(_))
    ));
    assert!(matches!(
        tree.symlink_target(e),
        Err(TreeError::NotASymlink(_))
    ));
    assert_eq!(tree.resolve(b"//d/./a").unwrap(), None);
    assert_eq!(tree.resolve(b"/d//a/").unwrap(), Some(at(&tree, "d/a")));
    assert_eq!(tree.resolve(b"e/a").unwrap(), None);
}
