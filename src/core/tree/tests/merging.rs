//! What hides what between layers, case by case. The random stacks are in `model`.

use super::super::{FileType, MergeError, Target, Timestamp, Tree, TreeIno, TreeKind, merge};
use super::layer;

fn merged(layers: &[&str]) -> Result<Tree, MergeError> {
    let layers: Vec<Tree> = layers.iter().map(|script| layer(script)).collect();
    let tree = Tree::from_bytes(merge(&layers)?).unwrap();
    tree.verify().unwrap();
    assert_eq!(tree.kind(), TreeKind::Merged);
    Ok(tree)
}

/// Every path with what it is: `d` and `-` for attributes that an entry gave, `D` for those of a
/// directory never named.
fn list(tree: &Tree) -> Vec<String> {
    let mut list = Vec::new();
    for number in 0..tree.node_count() {
        let node = tree.node(TreeIno(number)).unwrap();
        assert!(!node.implied && !node.opaque);
        let what = match node.file_type {
            FileType::Directory if node.mtime == Timestamp::default() => {
                assert_eq!((node.mode, node.uid, node.gid), (0o755, 0, 0));
                "D".to_owned()
            }
            FileType::Directory => "d".to_owned(),
            FileType::Symlink => "l".to_owned(),
            _ => format!("-{}", node.size),
        };
        for name in tree.names_of(TreeIno(number)).unwrap() {
            let name = name.unwrap();
            let mut path = tree.path_of(name.parent).unwrap();
            path.push(b'/');
            path.extend_from_slice(name.name);
            let path = String::from_utf8(path).unwrap();
            list.push(format!("{} {what}", path.trim_start_matches('/')));
        }
    }
    list.sort();
    list
}

#[track_caller]
fn assert_merges_to(layers: &[&str], expected: &[&str]) {
    assert_eq!(list(&merged(layers).unwrap()), expected);
}

#[test]
fn merge_hides_files_and_joins_directories() {
    assert_merges_to(&["f a 1", "f a 22"], &["a -2"]);
    assert_merges_to(&["f d/a 1", "f d/b 22"], &["d D", "d/a -1", "d/b -2"]);
    assert_merges_to(&["f d/a 1", "f d 22"], &["d -2"]);
    assert_merges_to(&["f d/a 1", "f d 22", "f d/b 3"], &["d D", "d/b -1"]);
    assert_merges_to(&["l d x", "f d/b 3"], &["d D", "d/b -1"]);
    assert_merges_to(&["f d/a 1", "l d x"], &["d l"]);
}

#[test]
fn whiteout_hides_only_lower_layers() {
    assert_merges_to(&["f a 1\nf b 1", "w a\nw missing"], &["b -1"]);
    assert_merges_to(&["f a 1", "w a", "f a 22"], &["a -2"]);
    assert_merges_to(&["f a 1", "f a 22\nw a"], &["a -2"]);
    assert_merges_to(&["f d/a 1", "w d", "f d/b 1"], &["d D", "d/b -1"]);
    assert_merges_to(&["d d\nf d/a 1", "w d\nf d/b 1"], &["d D", "d/b -1"]);
    assert_merges_to(&["d d\nf d/a 1", "w d/a"], &["d d"]);
    assert_merges_to(&["f a 1", "w d/x"], &["a -1", "d D"]);
}

#[test]
fn opaque_directory_hides_names_and_keeps_attributes() {
    assert_merges_to(&["d d\nf d/a 1", "o d\nf d/b 1"], &["d d", "d/b -1"]);
    assert_merges_to(&["f d/a 1", "o d", "f d/b 1"], &["d D", "d/b -1"]);
    assert_merges_to(&["f d/a 1", "d d\no d", "f d/b 1"], &["d d", "d/b -1"]);
    assert_merges_to(
        &["d d\nf d/a/x 1", "o d", "f d/a/y 1"],
        &["d d", "d/a D", "d/a/y -1"],
    );
    assert_merges_to(&["d \nf a 1\nf d/b 1", "o \nf c 1"], &["c -1"]);
}

#[test]
fn merge_takes_attributes_of_the_topmost_explicit_directory() {
    let tree = merged(&["d\nd d", "f d/a 1"]).unwrap();
    assert_eq!(tree.node(TreeIno::ROOT).unwrap().mode, 0o750);
    assert_eq!(
        tree.node(tree.resolve(b"d").unwrap().unwrap()).unwrap().uid,
        1
    );
    assert_eq!(
        merged(&[]).unwrap().node(TreeIno::ROOT).unwrap().mode,
        0o755
    );
}

#[test]
fn merge_resolves_hard_links_into_lower_layers() {
    let tree = merged(&["f d/a 1", "h b d/a\nh c b", "h d/e c"]).unwrap();
    let ino = tree.resolve(b"b").unwrap().unwrap();
    assert_eq!(tree.node(ino).unwrap().nlink, 4);
    let names: Vec<_> = tree
        .names_of(ino)
        .unwrap()
        .map(|name| name.unwrap().name.to_vec())
        .collect();
    assert_eq!(names, [b"b", b"c", b"a", b"e"]);
    // A name that goes takes a link with it, and the file stays by the others.
    let tree = merged(&["f d/a 1", "h b d/a", "w d"]).unwrap();
    assert_eq!(list(&tree), ["b -1"]);
    assert_eq!(
        tree.node(tree.resolve(b"b").unwrap().unwrap())
            .unwrap()
            .nlink,
        1
    );
}

#[test]
fn merge_resolves_a_link_below_its_own_layer() {
    // Not what layers above have put there.
    assert_merges_to(&["f a 1", "h b a", "f a 333"], &["a -3", "b -1"]);
    // Nor what its own layer puts there later, or deletes.
    assert_merges_to(&["f a 1", "h b a\nf a 333"], &["a -3", "b -1"]);
    assert_merges_to(&["f a 1", "h b a\nw a"], &["b -1"]);
    assert_merges_to(&["f d/a 1", "h b d/a\nf d 333"], &["b -1", "d -3"]);
    // Two names trade places.
    assert_merges_to(
        &["f a 1\nf b 22", "h t a\nh a b\nh b t"],
        &["a -2", "b -1", "t -1"],
    );
    // Only where nothing is below: a link that stands before its target.
    assert_merges_to(
        &["f x 1", "h b d/a\nf d/a 22"],
        &["b -2", "d D", "d/a -2", "x -1"],
    );
    assert_merges_to(&["f x 1", "h a b\nh b x"], &["a -1", "b -1", "x -1"]);
}

#[test]
fn merge_names_a_dangling_hard_link() {
    let text = |layers: &[&str]| merged(layers).unwrap_err().to_string();
    assert_eq!(
        text(&["f x 1", "h d/b gone/a"]),
        r#"layer 1: "d/b" is a hard link to "gone/a", which does not exist"#
    );
    assert_eq!(
        text(&["f a/x 1", "h b a"]),
        r#"layer 1: "b" is a hard link to the directory "a""#
    );
    assert!(matches!(
        merged(&["h a b\nh b a"]),
        Err(MergeError::LinkLoop { .. })
    ));
    assert!(matches!(
        merged(&["l d e\nf e/a 1", "h b d/a"]),
        Err(MergeError::LinkMissing { .. })
    ));
    assert!(matches!(
        merged(&["f a 1", "w a", "h b a"]),
        Err(MergeError::LinkMissing { .. })
    ));
    // A hidden dangling link is no error.
    assert_merges_to(&["h a gone", "f a 1"], &["a -1"]);
}

#[test]
fn merge_refuses_a_merged_tree() {
    let tree = merged(&["f a 1"]).unwrap();
    assert!(matches!(
        merge(&[layer("f a 1"), tree]),
        Err(MergeError::NotALayer { layer: 1 })
    ));
}

#[test]
fn merge_leaves_no_whiteouts_or_links() {
    let tree = merged(&["f a 1\nf b/c 1", "w a\no b\nh d e\nf e 1"]).unwrap();
    for number in 0..tree.dirent_count() {
        assert!(matches!(
            tree.dirent(number).unwrap().target,
            Target::Node(_)
        ));
    }
}
