//! Random stacks of layers against a model that knows no trees: a map from paths to files, changed
//! by one layer after the other as an extractor would.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::super::{FileType, Kind, LayerBuilder, Meta, Timestamp, Tree, TreeIno, merge};
use super::{LAYER, file, parts, python_reader};

/// One entry of a layer's tar.
#[derive(Debug, Clone)]
enum Op {
    Dir(String, u32),
    File(String, u32),
    Link(String, String),
    Whiteout(String),
    Opaque(String),
}

/// A file of the model: an identity, so that hard links can be told from equal files.
#[derive(Debug, Clone, PartialEq)]
enum Thing {
    Dir(Option<u32>),
    File {
        identity: usize,
        stamp: u32,
    },
    Link(String),
    /// A link that has no file.
    Broken,
}

/// What a layer says about a path.
#[derive(Debug, Clone, Default)]
struct LayerEntry {
    thing: Option<Thing>,
    whiteout: bool,
    opaque: bool,
}

type Files = BTreeMap<String, Thing>;

fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/')
        .filter_map(|(slash, _)| path.get(..slash))
}

fn below<T>(map: &mut BTreeMap<String, T>, dir: &str) {
    let prefix = if dir.is_empty() {
        String::new()
    } else {
        format!("{dir}/")
    };
    map.retain(|path, _| path == dir || !path.starts_with(&prefix));
}

/// The layer's own final contents, or None where an entry is refused: then both sides leave it
/// out.
fn record_op(recorded: &mut BTreeMap<String, LayerEntry>, op: &Op, identity: usize) -> Option<()> {
    let (Op::Dir(path, _)
    | Op::File(path, _)
    | Op::Link(path, _)
    | Op::Whiteout(path)
    | Op::Opaque(path)) = op;
    let is_dir = |thing: &Option<Thing>| matches!(thing, Some(Thing::Dir(_)));
    let thing = |recorded: &BTreeMap<String, LayerEntry>, path: &str| {
        recorded
            .get(path)
            .and_then(|recorded| recorded.thing.clone())
    };
    let blocked = |recorded: &BTreeMap<String, LayerEntry>, path: &str| {
        ancestors(path)
            .map(|dir| thing(recorded, dir))
            .find(|thing| !is_dir(thing))
            .flatten()
            .is_some()
    };
    if path.is_empty() && !matches!(op, Op::Dir(..) | Op::Opaque(_)) {
        return None;
    }
    let new = match op {
        Op::Link(_, target) if blocked(recorded, target) => return None,
        Op::Link(_, target) => match thing(recorded, target) {
            Some(Thing::Dir(_)) => return None,
            _ if target.is_empty() => return None,
            Some(thing) => Some(thing),
            None => Some(Thing::Link(target.clone())),
        },
        Op::Dir(_, stamp) => Some(Thing::Dir(Some(*stamp))),
        Op::File(_, stamp) => Some(Thing::File {
            identity,
            stamp: *stamp,
        }),
        Op::Whiteout(_) | Op::Opaque(_) => None,
    };
    let own = thing(recorded, path);
    if blocked(recorded, path) || (matches!(op, Op::Opaque(_)) && own.is_some() && !is_dir(&own)) {
        return None;
    }
    for dir in ancestors(path).map(str::to_owned) {
        recorded
            .entry(dir)
            .or_default()
            .thing
            .get_or_insert(Thing::Dir(None));
    }
    if new.is_some() && !(is_dir(&new) && is_dir(&own)) {
        below(recorded, path);
        recorded.entry(path.clone()).or_default().opaque = false;
    }
    let entry = recorded.entry(path.clone()).or_default();
    match op {
        Op::Whiteout(_) => entry.whiteout = true,
        Op::Opaque(_) => {
            entry.opaque = true;
            entry.thing.get_or_insert(Thing::Dir(None));
        }
        _ => entry.thing = new,
    }
    Some(())
}

fn real_link(files: &Files, recorded: &BTreeMap<String, LayerEntry>, target: &str) -> Thing {
    let mut target = target.to_owned();
    // Longer chains than there are paths go in a circle.
    for _ in 0..=recorded.len() {
        match files.get(&target) {
            Some(file @ Thing::File { .. }) => return file.clone(),
            Some(_) => return Thing::Broken,
            None => {}
        }
        match recorded
            .get(&target)
            .and_then(|recorded| recorded.thing.clone())
        {
            Some(file @ Thing::File { .. }) => return file,
            Some(Thing::Link(next)) => target = next,
            _ => return Thing::Broken,
        }
    }
    Thing::Broken
}

fn apply(files: &mut Files, recorded: &BTreeMap<String, LayerEntry>) {
    let before = files.clone();
    for (path, recorded) in recorded {
        if recorded.whiteout {
            below(files, path);
            files.remove(path);
        }
        if recorded.opaque {
            below(files, path);
        }
    }
    for (path, entry) in recorded {
        match &entry.thing {
            None => {}
            Some(Thing::Dir(stamp)) => {
                let old = files.get(path).cloned();
                let stamp = match old {
                    Some(Thing::Dir(old)) => stamp.or(old),
                    _ => *stamp,
                };
                files.insert(path.clone(), Thing::Dir(stamp));
            }
            Some(thing) => {
                below(files, path);
                let thing = match thing {
                    Thing::Link(target) => real_link(&before, recorded, target),
                    other => other.clone(),
                };
                files.insert(path.clone(), thing);
            }
        }
    }
}

fn build(builder: &mut LayerBuilder, op: &Op) -> bool {
    let meta = |stamp: u32| Meta {
        mode: 0o700,
        uid: stamp,
        gid: 1,
        mtime: Timestamp::default(),
        xattrs: vec![(b"user.n".to_vec(), vec![b'n'; stamp as usize % 3])],
    };
    match op {
        Op::Dir(path, stamp) => builder.insert(&parts(path), meta(*stamp), Kind::Directory),
        Op::File(path, stamp) => {
            builder.insert(&parts(path), meta(*stamp), file(&stamp.to_string()))
        }
        Op::Link(path, target) => builder.hard_link(&parts(path), &parts(target)),
        Op::Whiteout(path) => builder.whiteout(&parts(path)),
        Op::Opaque(path) => builder.opaque(&parts(path)),
    }
    .is_ok()
}

fn compare(tree: &Tree, files: &Files) {
    let mut identities: HashMap<usize, (TreeIno, u32)> = HashMap::new();
    for (path, thing) in files {
        let ino = tree
            .resolve(path.as_bytes())
            .unwrap()
            .unwrap_or_else(|| panic!("{path} is missing"));
        let node = tree.node(ino).unwrap();
        match thing {
            Thing::Dir(stamp) => {
                assert_eq!(
                    (node.file_type, node.uid),
                    (FileType::Directory, stamp.unwrap_or(0)),
                    "{path}"
                );
            }
            Thing::File { identity, stamp } => {
                assert_eq!(
                    (node.file_type, node.uid),
                    (FileType::Regular, *stamp),
                    "{path}"
                );
                let (first, names) = identities.entry(*identity).or_insert((ino, 0));
                assert_eq!(ino, *first, "{path} is another file than its other names");
                *names += 1;
            }
            Thing::Link(_) | Thing::Broken => panic!("the merge must have failed"),
        }
    }
    for (ino, names) in identities.values() {
        assert_eq!(tree.node(*ino).unwrap().nlink, *names);
    }
    assert_eq!(
        tree.dirent_count() as usize + 1,
        files.len(),
        "names that the model lacks"
    );
    let others: std::collections::HashSet<_> = identities.values().map(|(ino, _)| ino).collect();
    assert_eq!(others.len(), identities.len(), "two files became one");
}

fn path() -> impl Strategy<Value = String> {
    // Few names, so that entries meet; one of them sorts between another and its children.
    prop::collection::vec(prop::sample::select(vec!["a", "b", "a-"]), 0..4)
        .prop_map(|names| names.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (path(), 1..100u32).prop_map(|(path, stamp)| Op::Dir(path, stamp)),
        4 => (path(), 1..100u32).prop_map(|(path, stamp)| Op::File(path, stamp)),
        3 => (path(), path()).prop_map(|(path, target)| Op::Link(path, target)),
        2 => path().prop_map(Op::Whiteout),
        1 => path().prop_map(Op::Opaque),
    ]
}

fn layers() -> impl Strategy<Value = Vec<Vec<Op>>> {
    prop::collection::vec(prop::collection::vec(op(), 0..10), 0..7)
}

/// FORMAT.md says all there is to know: a reader made from it alone finds nothing in them that it
/// does not allow.
#[test]
fn python_reader_accepts_random_trees() {
    let mut runner = TestRunner::deterministic();
    let dir = tempfile::tempdir().unwrap();
    let (mut paths, mut names) = (Vec::new(), 0);
    for _ in 0..200 {
        let layers = layers().new_tree(&mut runner).unwrap().current();
        let trees = layers.iter().map(|layer| {
            let mut builder = LayerBuilder::new();
            // What is refused is left out.
            for op in layer {
                build(&mut builder, op);
            }
            Tree::from_bytes(builder.finish(LAYER).unwrap()).unwrap()
        });
        let mut trees: Vec<Tree> = trees.collect();
        // Links without a file make no stack.
        trees.extend(
            merge(&trees)
                .ok()
                .map(|bytes| Tree::from_bytes(bytes).unwrap()),
        );
        for tree in trees {
            let path = dir.path().join(format!("{}.tree", paths.len()));
            std::fs::write(&path, tree.bytes()).unwrap();
            paths.push(path);
            names += tree.dirent_count() as usize;
        }
    }
    // For each tree a line for itself and one for its root.
    let lines = python_reader(&paths).lines().count();
    assert_eq!(lines, names + 2 * paths.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn merge_equals_applying_the_layers_in_turn(
        layers in layers()
    ) {
        let mut files = Files::from([(String::new(), Thing::Dir(None))]);
        let mut trees = Vec::new();
        let mut identity = 0;
        for layer in &layers {
            let mut builder = LayerBuilder::new();
            let root = LayerEntry { thing: Some(Thing::Dir(None)), ..LayerEntry::default() };
            let mut recorded = BTreeMap::from([(String::new(), root)]);
            for op in layer {
                identity += 1;
                prop_assert_eq!(build(&mut builder, op), record_op(&mut recorded, op, identity).is_some(), "{:?}", op);
            }
            apply(&mut files, &recorded);
            let tree = Tree::from_bytes(builder.finish(LAYER).unwrap()).unwrap();
            tree.verify().unwrap();
            trees.push(tree);
        }
        let broken = files.values().any(|thing| *thing == Thing::Broken);
        match merge(&trees) {
            Err(error) => prop_assert!(broken, "{error}"),
            Ok(bytes) => {
                prop_assert!(!broken, "a link without a file was merged");
                let tree = Tree::from_bytes(bytes).unwrap();
                tree.verify().unwrap();
                compare(&tree, &files);
            }
        }
    }
}
