//! Waste by cause, and the walk that finds it, compared with `tree::merge`.

use std::collections::BTreeMap;

use cowl_core::digest::{DiffId, ObjectId, Sha256Digest};
use cowl_core::tree::{FileType, Kind, Target, Tree, TreeIno, merge};
use cowl_tests::random::Random;

use super::{TestStore, build, content};
use crate::ladder::Rung;
use crate::show::Sizes;
use crate::state::State;
use crate::text::{
    Layout, duplicates, ladder, layers, matrix, only_layers, summary, waste, what_if,
};
use crate::walk::Cause;

const LAYERS: [&str; 3] = [
    "f etc/conf a100
     f bin/tool b1000
     f data/x c50
     h data/y data/x
     f opt/one d10
     f opt/two e20
     f same/1 s7
     f same/2 s7
     h same/3 same/1",
    "f etc/conf A30
     f bin/tool b1000
     w data/x
     w never/there
     o opt
     f opt/one d10",
    "w data/y
     d bin/tool
     f bin/tool/new n5",
];

/// Layer 2 replaces a100 with A30, repeats b1000, and d10 in a directory that it makes opaque,
/// which deletes e20. It removes one of two names of c50, which costs nothing yet; layer 3 removes
/// the other. Layer 3 puts a directory in place of layer 2's b1000. s7 is visible as two files, one
/// of them with two names: one copy is waste.
///
/// Layers hold 1194 + 1040 + 5 bytes, of which 30 + 5 + 10 + 7 + 7 are visible; the other 2180 are
/// waste, and the copy of s7.
#[test]
fn waste_has_a_cause_a_layer_and_paths() {
    let store = TestStore::new();
    store.put(&["image"], &LAYERS);
    let report = store.report(&[]);
    let image = &report.images[0];
    assert_eq!(
        [image.logical_bytes, image.visible_bytes, image.waste_bytes],
        [2239, 59, 2187]
    );
    let layers: Vec<&str> = report
        .layers
        .iter()
        .map(|layer| layer.diff_id.as_str())
        .collect();
    let mut rows: Vec<_> = report
        .waste
        .iter()
        .map(|row| {
            let layer = layers.iter().position(|layer| *layer == row.layer).unwrap() + 1;
            (
                row.cause,
                layer,
                row.bytes,
                row.paths.join(" "),
                row.step.as_str(),
            )
        })
        .collect();
    rows.sort();
    let row =
        |cause, layer, bytes, paths: &str, step| (cause, layer, bytes, paths.to_owned(), step);
    let expected = [
        row(Cause::Deleted, 1, 20, "/opt/two", "step 2"),
        row(Cause::Deleted, 1, 50, "/data/x /data/y", "step 3"),
        row(Cause::Overwritten, 1, 100, "/etc/conf", "step 2"),
        row(Cause::Overwritten, 2, 1000, "/bin/tool", "step 3"),
        row(Cause::Metadata, 2, 1010, "/bin/tool /opt/one", "step 2"),
        row(Cause::Duplicate, 1, 7, "/same/1 /same/2", "step 1"),
    ];
    assert_eq!(rows, expected);
    let changes: Vec<_> = report
        .layers
        .iter()
        .map(|layer| {
            [
                layer.changes.added,
                layer.changes.changed,
                layer.changes.deleted,
            ]
        })
        .collect();
    assert_eq!(changes, [[9, 0, 0], [0, 3, 2], [1, 0, 2]]);
}

/// An image may have a layer twice: layers 1 and 3 each waste a100, and the rows say which. A name
/// that is lost, repeated as a link and lost again is listed once.
#[test]
fn waste_of_a_repeated_layer_names_its_number() {
    let store = TestStore::new();
    let (one, other) = ("f x a100", "f x b30");
    store.put(&["twice"], &[one, other, one, other]);
    let report = store.report(&[]);
    let mut rows: Vec<_> = report
        .waste
        .iter()
        .map(|row| (row.number, row.cause, row.bytes, row.paths.join(" ")))
        .collect();
    rows.sort();
    let row = |number, bytes| (number, Cause::Overwritten, bytes, "/x".to_owned());
    assert_eq!(rows, [row(1, 100), row(2, 30), row(3, 100)]);
    let wasted: Vec<u64> = report
        .layers
        .iter()
        .map(|layer| layer.waste_bytes)
        .collect();
    assert_eq!(wasted, [100, 30, 100, 0]);
    let json = serde_json::to_value(&report).unwrap();
    let numbers = json["waste"].as_array().unwrap().iter();
    let numbers: u64 = numbers.map(|row| row["number"].as_u64().unwrap()).sum();
    assert_eq!(numbers, 1 + 2 + 3);

    let store = TestStore::new();
    let layers = ["f d/a c50\nh d/b d/a", "w d/a", "h d/a d/b", "w d/a\nw d/b"];
    store.put(&["links"], &layers);
    let report = store.report(&[]);
    let paths: Vec<_> = report.waste.iter().map(|row| row.paths.join(" ")).collect();
    assert_eq!(paths, ["/d/a /d/b"]);
}

/// `chown -R`: the same files with another owner. A store of layers keeps them twice; ours has each
/// content once.
#[test]
fn repeated_files_cost_this_store_nothing() {
    let store = TestStore::new();
    let files = "f srv/a a300\nf srv/b b200";
    store.put(&["image"], &[files, &format!("d srv\n{files}")]);
    let report = store.report(&[]);
    assert_eq!(report.images[0].logical_bytes, 1000);
    assert_eq!(report.images[0].stored.bytes, 500);
    let [row] = &report.waste[..] else {
        panic!("one row: {:?}", report.waste)
    };
    assert_eq!(
        (row.cause, row.bytes, row.paths.len()),
        (Cause::Metadata, 500, 2)
    );
}

/// Three copies: two are waste.
#[test]
fn duplicates_count_every_copy_but_one() {
    let store = TestStore::new();
    store.put(
        &["image"],
        &["f a x50\nf b x50", "f c x50\nf empty/1 x0\nf empty/2 x0"],
    );
    let report = store.report(&[]);
    let [row] = &report.waste[..] else {
        panic!("one row: {:?}", report.waste)
    };
    assert_eq!((row.cause, row.bytes), (Cause::Duplicate, 100));
    assert_eq!(row.paths, ["/a", "/b", "/c"]);
    assert_eq!(row.step, "step 2", "the last copy came with it");
}

fn random_path(random: &mut Random) -> String {
    let names: Vec<&str> = (0..=random.below(3))
        .map(|_| random.pick(&["a", "b", "c"]))
        .collect();
    names.join("/")
}

/// Some entries of a layer.
fn random_layer(random: &mut Random) -> String {
    let lines = (0..random.below(6)).map(|_| {
        let (path, other) = (random_path(random), random_path(random));
        match random.below(8) {
            0 | 1 => format!("d {path}"),
            2 => format!("w {path}"),
            3 => format!("o {path}"),
            4 if path != other => format!("h {path} {other}"),
            _ => {
                let kind = random.pick(&["x", "y", "z"]);
                format!("f {path} {kind}{}", 1 + random.below(2))
            }
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn tree(script: &str) -> Option<Tree> {
    let builder = build(script, |spec| {
        let content = content(spec);
        Kind::Regular {
            size: content.len() as u64,
            object: Some(ObjectId::of(&content)),
            elf: false,
        }
    });
    // The builder refuses entries that a layer's tar could not have.
    let bytes = builder
        .ok()?
        .finish(DiffId(Sha256Digest::of(script.as_bytes())))
        .ok()?;
    Some(Tree::from_bytes(bytes).unwrap())
}

/// Paths and contents, files with the same number being one, as `merge` has them.
fn merged(
    tree: &Tree,
    dir: TreeIno,
    path: &str,
    names: &mut BTreeMap<String, (u32, Option<ObjectId>)>,
) {
    for dirent in tree.children(dir).unwrap() {
        let dirent = dirent.unwrap();
        let path = format!("{path}/{}", String::from_utf8_lossy(dirent.name));
        let Target::Node(ino) = dirent.target else {
            panic!("a merged tree has files only")
        };
        if dirent.file_type == Some(FileType::Directory) {
            merged(tree, ino, &path, names);
            continue;
        }
        let object = tree
            .node(ino)
            .unwrap()
            .object
            .map(|object| tree.object_id(object).unwrap());
        names.insert(path, (ino.0, object));
    }
}

/// Random stacks: names, contents and hard links after the last layer equal those of the merged
/// tree, and the hidden bytes are those that layers have and the merged tree does not.
#[test]
fn walk_agrees_with_tree_merge() {
    let mut compared = 0;
    for seed in 1..1500_u64 {
        let mut random = Random::new(seed);
        let scripts: Vec<String> = (0..=random.below(4))
            .map(|_| random_layer(&mut random))
            .collect();
        let Some(trees) = scripts
            .iter()
            .map(|script| tree(script))
            .collect::<Option<Vec<_>>>()
        else {
            continue;
        };
        let Ok(bytes) = merge(&trees) else { continue };
        let expected = Tree::from_bytes(bytes).unwrap();
        let mut names = BTreeMap::new();
        merged(&expected, TreeIno::ROOT, "", &mut names);
        let collection = super::collection_of(trees);
        let image = &collection.images[0];
        let mut state = State::new(&collection, image);
        for number in 0..image.layers.len() {
            state.apply(number).unwrap();
        }
        let found = state.listing();
        let objects: Vec<_> = found
            .iter()
            .map(|(path, (_, object))| (path.as_str(), *object))
            .collect();
        let wanted: Vec<_> = names
            .iter()
            .map(|(path, (_, object))| (path.as_str(), *object))
            .collect();
        assert_eq!(objects, wanted, "seed {seed}: {scripts:#?}");
        for (path, (place, _)) in &found {
            let same = |(other, (than, _)): (&String, &(crate::walk::Place, _))| {
                let linked = names[path].0 == names[other].0;
                assert_eq!(
                    place == than,
                    linked,
                    "seed {seed}: {path} {other} {scripts:#?}"
                );
            };
            found.iter().for_each(same);
        }
        let walked = crate::walk::walk(&collection, image).unwrap();
        let hidden = walked
            .waste
            .iter()
            .filter(|waste| waste.cause != Cause::Duplicate);
        let hidden: u64 = hidden.map(|waste| waste.bytes).sum();
        let logical: u64 = collection.layers.iter().map(|layer| layer.logical).sum();
        assert_eq!(
            logical,
            walked.visible + hidden,
            "seed {seed}: {scripts:#?}"
        );
        compared += 1;
    }
    assert!(compared > 500, "{compared} stacks could be merged");
}

/// Layer 2 replaces a100 of layer 1: the bytes are in layer 1, the step that caused it is layer
/// 2's.
#[test]
fn tables_show_the_layer_of_waste_and_the_step_that_caused_it() {
    let store = TestStore::new();
    store.put(&["image"], &["f conf a100", "f conf b3"]);
    let report = store.report(&[]);
    let layout = Layout {
        sizes: Sizes::Exact,
        width: None,
        rows: None,
    };
    let words = |text: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.contains("100"));
        line.unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(
        words(&waste(&report, layout)),
        [
            "image:latest",
            "overwritten",
            "100",
            "1",
            "1",
            "/conf",
            "step",
            "2"
        ]
    );
    assert_eq!(report.waste[0].step, "step 2");
    // SIZE and WASTE of the first layer.
    assert_eq!(
        words(&only_layers(&report, layout)),
        ["1", "100", "1", "0", "0", "0", "100", "step", "1"]
    );
}

/// In 40 columns no heading is too wide, and no sum is cut.
#[test]
fn headings_fit_a_narrow_terminal() {
    let store = TestStore::new();
    store.put(&["one"], &LAYERS);
    store.put(&["two"], &["f own o3\nf data/x c50000000"]);
    let mut report = store.report(&[]);
    report.ladder.push(Rung {
        unit: "file",
        chunks: 1,
        bytes: 1,
        index_bytes: 40,
        zstd_bytes: None,
        error: 0.0,
        zstd_error: 0.0,
    });
    let layout = Layout {
        sizes: Sizes::Human,
        width: Some(40),
        rows: Some(20),
    };
    let lists = [summary, waste, layers, matrix, duplicates, what_if, ladder];
    let text: String = lists.iter().map(|list| list(&report, layout)).collect();
    let headings: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("\x1b[1;36m")?.strip_suffix("\x1b[0m"))
        .collect();
    assert_eq!(headings.len(), 8, "{headings:?}");
    assert!(
        headings.iter().all(|heading| heading.len() <= 40),
        "{headings:?}"
    );
    let sums = text
        .split("CONTENTS")
        .nth(1)
        .unwrap()
        .split("\n\n")
        .next()
        .unwrap();
    assert!(
        sums.contains("  in other layers") && !sums.contains('…'),
        "{sums}"
    );
}
