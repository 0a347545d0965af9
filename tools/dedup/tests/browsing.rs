//! The parts of `--tui`, `cowl diff` and `cowl tree`.

use cowl_core::digest::ObjectId;

use super::{TestStore, replace};
use crate::browse::{Browser, Mark, View};
use crate::compare::Comparison;
use crate::show::Sizes;
use crate::walk::walk;

const LAYERS: [&str; 2] = [
    "f etc/a a10\nf etc/b b20\nf gone/x x30",
    "f etc/a A40\nw gone\nf new/n n50\nf new/m n50",
];

/// `mark name bytes waste` of each row, indented.
fn rows(browser: &Browser, view: &View) -> Vec<String> {
    let show = |number: &usize| {
        let item = &browser.items[*number];
        let indent = " ".repeat(item.depth);
        format!(
            "{}{indent}{} {} {}",
            item.mark.letter(),
            item.name,
            item.bytes,
            item.waste
        )
    };
    browser.rows(view).iter().map(show).collect()
}

fn browser(layer: usize) -> Browser {
    let store = TestStore::new();
    store.put(&["image"], &LAYERS);
    let collection = store.collect(&[]).unwrap();
    let image = &collection.images[0];
    let walked = walk(&collection, image).unwrap();
    Browser::new(&collection, image, layer, &walked.waste).unwrap()
}

/// Layer 1 adds everything; a10 and x30 are wasted, since layer 2 hides them.
#[test]
fn the_first_layer_adds_everything() {
    let first = browser(0);
    assert_eq!(
        rows(&first, &View::default()),
        ["A etc 30 10", "A gone 30 30"]
    );
    assert_eq!(first.items[0].mark, Mark::Added);
}

/// Layer 2 changes etc/a, removes gone/x, and adds two files with one content, one of them wasted.
/// The bytes that layer 1 wastes at its names are listed too.
#[test]
fn a_layer_marks_what_it_adds_changes_and_removes() {
    let mut second = browser(1);
    for item in &mut second.items {
        item.open = true;
    }
    let all = rows(&second, &View::default());
    let expected = [
        "C etc 60 10",
        "C  a 40 10",
        "   b 20 0",
        "D gone 0 30",
        "D  x 30 30",
        "A new 100 50",
        "A  m 50 0",
        "A  n 50 50",
    ];
    assert_eq!(all, expected);
    let by_size = View {
        by_size: true,
        ..View::default()
    };
    assert_eq!(rows(&second, &by_size)[0], "A new 100 50");
    let changed = View {
        hide_same: true,
        ..View::default()
    };
    assert!(
        !rows(&second, &changed)
            .iter()
            .any(|row| row.contains(" b "))
    );
}

/// After every layer, a name has what all layers waste at it: a10 and a20 of etc/a, which layers 2
/// and 3 hide; c7 repeated in layer 3; d5 of a name that is a file and then a directory; and the
/// copy of n50. Waste at a name that is not listed is not shown.
#[test]
fn a_name_has_its_waste_after_every_layer() {
    let layers = [
        "f etc/a a10\nf etc/c c7\nf kind d5\nf x n50\nf gone z3",
        "f etc/a a20\nd kind\nf kind/new e1\nw gone",
        "f etc/a a30\nf etc/c c7\nf y n50",
        "f last l1",
    ];
    let store = TestStore::new();
    store.put(&["image"], &layers);
    let collection = store.collect(&[]).unwrap();
    let image = &collection.images[0];
    let walked = walk(&collection, image).unwrap();
    let seen = |layer: usize| {
        let mut browser = Browser::new(&collection, image, layer, &walked.waste).unwrap();
        for item in &mut browser.items {
            item.open = true;
        }
        rows(&browser, &View::default())
    };
    let first = [
        "A etc 17 37",
        "A  a 10 30",
        "A  c 7 7",
        "A gone 3 3",
        "A kind 5 5",
        "A x 50 0",
    ];
    assert_eq!(seen(0), first);
    // The file and the directory are two rows; the bytes belong to the file.
    let second = [
        "C etc 27 37",
        "C  a 20 30",
        "   c 7 7",
        "D gone 3 3",
        "A kind 1 0",
        "A  new 1 0",
        "D kind 5 5",
        "  x 50 0",
    ];
    let mut sorted = seen(1);
    sorted.sort();
    let mut expected = second.map(str::to_owned);
    expected.sort();
    assert_eq!(sorted, expected);
    let fourth = [
        "  etc 37 37",
        "   a 30 30",
        "   c 7 7",
        "  kind 1 5",
        "   new 1 0",
        "A last 1 0",
        "  x 50 0",
        "  y 50 50",
    ];
    assert_eq!(seen(3), fourth);
}

#[test]
fn a_search_expands_the_directories_of_its_matches() {
    let second = browser(1);
    let search = View {
        search: "ETC/B".to_owned(),
        ..View::default()
    };
    assert_eq!(rows(&second, &search), ["C etc 60 10", "   b 20 0"]);
    let none = View {
        search: "nothing".to_owned(),
        ..View::default()
    };
    assert!(rows(&second, &none).is_empty());
}

/// Contents, types, whole directories and packages.
#[test]
fn comparing_lists_names_and_packages() {
    let store = TestStore::new();
    store.put(&["one"], &["f same s1\nf old/x x1\nf kind k1\nf text a10"]);
    store.put(
        &["two"],
        &["f same s1\nf new/y y1\nf kind/z z1\nf text b20"],
    );
    let collection = store.collect(&["one", "two"]).unwrap();
    let comparison = Comparison::new(&collection, &store.stores, &[], Sizes::Human).unwrap();
    let files: Vec<String> = comparison
        .files
        .iter()
        .map(|file| format!("{:?} {} {}", file.change, file.path, file.what.join(", ")))
        .collect();
    let expected = [
        "Changed /kind type file -> directory, mode 0644 -> 0755",
        "Added /kind/z ",
        "Added /new ",
        "Added /new/y ",
        "Removed /old ",
        "Removed /old/x ",
        "Changed /text content 10B -> 20B",
    ];
    assert_eq!(files, expected);
    assert!(comparison.packages.is_empty() && comparison.notes.is_empty());
    // The layers' files have mode 0644 and owner 0:0; an implied directory has 0755.
    let side = |kind: &str, mode: u32, content: &str| {
        let object = (!content.is_empty()).then(|| ObjectId::of(content.as_bytes()).to_string());
        serde_json::json!({"type": kind, "mode": mode, "uid": 0, "gid": 0, "size": content.len(),
                           "object": object, "device": null, "target": null})
    };
    let (a, b) = ("a".repeat(10), "b".repeat(20));
    let json = serde_json::to_value(&comparison).unwrap();
    let sides = |number: usize| {
        (
            json["files"][number]["a"].clone(),
            json["files"][number]["b"].clone(),
        )
    };
    let null = serde_json::Value::Null;
    assert_eq!(
        sides(0),
        (side("file", 0o644, "k"), side("directory", 0o755, ""))
    );
    assert_eq!(sides(3), (null.clone(), side("file", 0o644, "y")));
    assert_eq!(sides(5), (side("file", 0o644, "x"), null));
    assert_eq!(sides(6), (side("file", 0o644, &a), side("file", 0o644, &b)));
    let exact = Comparison::new(&collection, &store.stores, &[], Sizes::Exact).unwrap();
    assert_eq!(exact.files[6].what, ["content 10 -> 20"]);
    assert_eq!(
        (comparison.a.as_str(), comparison.b.as_str()),
        ("one:latest", "two:latest")
    );
}

/// A database whose object is gone or changed is reported, and packages of its kind are not
/// compared: all would look removed. The rest is compared.
#[test]
fn a_comparison_goes_on_without_a_damaged_database() {
    let store = TestStore::new();
    store.put(&["one"], &["f a a1\nf var/lib/dpkg/status x9"]);
    store.put(&["two"], &["f a b1\nf var/lib/dpkg/status y9"]);
    let id = ObjectId::of(b"xxxxxxxxx");
    let object = store.store().object_path(id);
    let compared = || {
        let collection = store.collect(&["one", "two"]).unwrap();
        Comparison::new(&collection, &store.stores, &[], Sizes::Human).unwrap()
    };
    for (content, what) in [
        (Some("zzzzzzzzz"), "is damaged: its digest is not its name"),
        (Some("zzzz"), "is damaged: its length is wrong"),
        (None, "is missing"),
    ] {
        match content {
            None => std::fs::remove_file(&object).unwrap(),
            Some(content) => replace(&object, content),
        }
        let found = compared();
        assert_eq!(found.files.len(), 2);
        let line = format!(
            "one:latest: /var/lib/dpkg/status: object {id} {what}; load the image again to replace it"
        );
        assert_eq!(
            (found.notes, found.damage),
            (vec![line.clone()], vec![line])
        );
    }
}

/// If both arguments are one image, the comparison names the sides by the arguments; other numbers
/// of images are refused.
#[test]
fn the_sides_of_a_comparison_have_names_of_their_own() {
    let store = TestStore::new();
    store.put(&["one", "same"], &["f a a1\nf var/lib/rpm/Packages x9"]);
    let one = store.collect(&["one", "same"]).unwrap();
    let compare = |given: &[&str]| {
        let given: Vec<String> = given.iter().map(|name| (*name).to_owned()).collect();
        Comparison::new(&one, &store.stores, &given, Sizes::Human)
    };
    let both = compare(&["one", "same"]).unwrap();
    assert_eq!((both.a.as_str(), both.b.as_str()), ("one", "same"));
    let notes: Vec<&str> = both
        .notes
        .iter()
        .map(|note| note.split(':').next().unwrap())
        .collect();
    assert_eq!(notes, ["one", "same"]);
    let error = compare(&["./one.tar"]).unwrap_err().to_string();
    assert_eq!(error, "a comparison is of two images, and ./one.tar has 1");
}
