//! Figures, recomputed from the archives.

use std::fs;
use std::path::{Path, PathBuf};

use cowl_tests::busybox::{add_blog, layers};
use cowl_tests::command::{fixture, program, run, shell};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::store::Store;

use crate::{figure, load_images};

/// Compares the report on the whole store with the archives and `du`.
#[track_caller]
fn check_figures(store: &Store, archives: &[PathBuf]) {
    let report = directory().join("report.json");
    fs::write(&report, store.ok(["dedup", "--json"])).unwrap();
    let objects = store.root().join("objects");
    let arguments = [fixture("dedup.py"), report, objects];
    let script = arguments.iter().chain(archives);
    run(&mut program(
        "python3",
        ["-B"]
            .iter()
            .map(Path::new)
            .chain(script.map(PathBuf::as_path)),
    ))
    .ok();
}

#[test]
fn figures_are_those_of_the_archives_as_root() {
    root(|| {
        let store = Store::new("store");
        let mut archives = load_images(&store);
        add_blog(&store);
        archives.push(layers().join("blog.image.tar"));
        check_figures(&store, &archives);
    });
}

#[test]
fn figures_are_those_of_the_archives_as_user() {
    user(|| {
        let store = Store::new("store");
        let archives = load_images(&store);
        check_figures(&store, &archives);
    });
}

/// Bytes of the files in objects/.
fn object_bytes(store: &Store) -> u64 {
    let script =
        "find objects -type f -print0 | du --bytes --total --files0-from=- | tail -n 1 | cut -f 1";
    shell(store.root(), script, [""; 0]).trim().parse().unwrap()
}

/// Removes each image in turn: objects/ shrinks by what the report predicted.
#[test]
fn removal_frees_what_the_report_says() {
    root(|| {
        let store = Store::new("store");
        load_images(&store);
        for image in ["three", "one", "five", "four", "two"] {
            let said: u64 = figure(&store, &[image], "r['removals'][0]['freed']['bytes']")
                .parse()
                .unwrap();
            let before = object_bytes(&store);
            store.ok(["rmi", image]);
            assert_eq!(before - object_bytes(&store), said, "{image}");
        }
        assert_eq!(object_bytes(&store), 0);
    });
}
