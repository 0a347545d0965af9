//! Paths through symbolic links of the same layer.

use super::super::format::MAX_DEPTH;
use super::super::{BuildError, FileType, Kind, LayerBuilder, Target, Tree, TreeIno};
use super::{LAYER, file, meta, parts};

fn symlink(target: &str) -> Kind {
    Kind::Symlink(target.as_bytes().to_vec())
}

/// What an entry `a/f` becomes where `links` are there before it, beside the directories b and
/// b/c. None: refused.
fn through(links: &[(&str, &str)], path: &str) -> Option<Vec<String>> {
    let mut builder = LayerBuilder::new();
    for dir in ["b", "b/c"] {
        builder
            .insert(&parts(dir), meta(0o755), Kind::Directory)
            .unwrap();
    }
    for (name, target) in links {
        builder
            .insert(&parts(name), meta(0o777), symlink(target))
            .unwrap();
    }
    match builder.insert(&parts(path), meta(0o644), file("x")) {
        Ok(()) => {}
        Err(BuildError::Ancestor { .. }) => return None,
        Err(other) => panic!("{other:?}"),
    }
    let tree = Tree::from_bytes(builder.finish(LAYER).unwrap()).unwrap();
    tree.verify().unwrap();
    let mut files = Vec::new();
    let mut todo = vec![(TreeIno::ROOT, String::new())];
    while let Some((dir, path)) = todo.pop() {
        for child in tree.children(dir).unwrap() {
            let child = child.unwrap();
            let name = format!("{path}{}", String::from_utf8_lossy(child.name));
            let Target::Node(ino) = child.target else {
                panic!("{child:?}")
            };
            match child.file_type {
                Some(FileType::Directory) => todo.push((ino, format!("{name}/"))),
                Some(FileType::Regular) => files.push(name),
                _ => {}
            }
        }
    }
    Some(files)
}

/// What GNU tar leaves of these is the oracle of the importer's tests.
#[test]
fn insert_follows_a_symlink_of_the_same_layer() {
    let lands = |links: &[(&str, &str)], path: &str, at: &str| {
        assert_eq!(through(links, path).unwrap(), [at], "{links:?} {path}");
    };
    lands(&[("a", "b")], "a/f", "b/f");
    lands(&[("a", "./b//c/.")], "a/f", "b/c/f");
    lands(&[("a", "/b")], "a/new/f", "b/new/f");
    lands(&[("b/c/up", "../..")], "b/c/up/b/f", "b/f");
    lands(&[("x", "b"), ("a", "x/c/../c")], "a/f", "b/c/f");
    lands(&[("b/c/back", "/a"), ("a", "b")], "b/c/back/f", "b/f");
}

#[test]
fn insert_refuses_symlinks_out_of_the_root_and_loops() {
    for links in [
        &[("a", "..")][..],
        &[("a", "b/../..")],
        &[("a", "../b")],
        &[("a", "nothing")],
        &[("a", "nothing/../b")],
        &[("a", "/host")],
        &[("a", "a")],
        &[("x", "a"), ("a", "x")],
        &[("a", "x/b"), ("x", "a/..")],
    ] {
        assert_eq!(through(links, "a/f"), None, "{links:?}");
    }
    // a chain of as many links as Linux follows, and one more
    let chain = |length: usize| {
        let mut links: Vec<(String, String)> = (1..length)
            .map(|number| (format!("l{number}"), format!("l{}", number + 1)))
            .collect();
        links.push((format!("l{length}"), "b".to_owned()));
        let links: Vec<(&str, &str)> = links
            .iter()
            .map(|(name, target)| (name.as_str(), target.as_str()))
            .collect();
        through(&links, "l1/f")
    };
    assert_eq!(chain(40).unwrap(), ["b/f"]);
    assert_eq!(chain(41), None);
}

#[test]
fn hard_link_follows_symlinks_to_its_target() {
    let mut builder = LayerBuilder::new();
    builder
        .insert(&parts("usr/lib"), meta(0o755), Kind::Directory)
        .unwrap();
    builder
        .insert(&parts("lib"), meta(0o777), symlink("usr/lib"))
        .unwrap();
    builder
        .insert(&parts("lib/f"), meta(0o644), file("x"))
        .unwrap();
    builder.hard_link(&parts("lib/g"), &parts("lib/f")).unwrap();
    builder
        .hard_link(&parts("below"), &parts("lib/of/a/layer/below"))
        .unwrap();
    let tree = Tree::from_bytes(builder.finish(LAYER).unwrap()).unwrap();
    let resolve = |path: &[u8]| tree.resolve(path).unwrap().unwrap();
    assert_eq!(resolve(b"usr/lib/f"), resolve(b"usr/lib/g"));
    let below = tree.lookup(TreeIno::ROOT, b"below").unwrap().unwrap();
    assert_eq!(
        tree.link_target(&below).unwrap(),
        b"usr/lib/of/a/layer/below"
    );
}

#[test]
fn insert_limits_the_depth_behind_symlinks() {
    let mut builder = LayerBuilder::new();
    // as deep as a target can be long
    let deep = 2000;
    builder
        .insert(&vec![b"d".as_slice(); deep], meta(0o755), Kind::Directory)
        .unwrap();
    let target = vec!["d"; deep].join("/");
    builder
        .insert(&parts("a"), meta(0o777), symlink(&target))
        .unwrap();
    let below = |name, levels| [vec![b"a".as_slice()], vec![name; levels]].concat();
    let most = MAX_DEPTH - deep;
    builder
        .insert(&below(b"x".as_slice(), most), meta(0o644), file("x"))
        .unwrap();
    let error = builder.insert(&below(b"y", most + 1), meta(0o644), file("x"));
    assert!(
        matches!(error, Err(BuildError::TooDeep { .. })),
        "{error:?}"
    );
}

/// Minutes of work from a small archive, if nothing counted.
#[test]
fn insert_limits_the_steps_through_symlinks() {
    let mut builder = LayerBuilder::new();
    builder
        .insert(&parts("d"), meta(0o755), Kind::Directory)
        .unwrap();
    let winding = "d/../".repeat(800);
    builder
        .insert(&parts("l0"), meta(0o777), symlink(&format!("{winding}d")))
        .unwrap();
    for number in 1..40 {
        let target = format!("{winding}l{}", number - 1);
        builder
            .insert(&parts(&format!("l{number}")), meta(0o777), symlink(&target))
            .unwrap();
    }
    let error = (0..100_000)
        .map(|number| builder.insert(&parts(&format!("l39/{number}")), meta(0o644), file("x")))
        .find_map(Result::err);
    assert!(
        matches!(error, Some(BuildError::TooManySteps { .. })),
        "{error:?}"
    );
}
