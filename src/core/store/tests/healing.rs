//! Publishing again repairs damaged objects and layers.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use rustix::fs::{CWD, FileType, Mode};

use super::*;

#[test]
fn publish_replaces_a_truncated_object() {
    let fixture = fixture();
    fixture.image("app", &[&[b"content"]]);
    let path = fixture.object_path(b"content");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "cont").unwrap();
    let transaction = fixture.store.begin().unwrap();
    assert_eq!(put(&transaction, b"content").outcome, Outcome::Healed);
    transaction.publish(&[]).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"content");
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
}

#[test]
fn trust_hash_replaces_a_corrupt_object_of_the_right_size() {
    let fixture = fixture();
    fixture.image("app", &[&[b"content"]]);
    let path = fixture.object_path(b"content");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "CONTENT").unwrap();
    assert_eq!(
        put(&fixture.store.begin().unwrap(), b"content").outcome,
        Outcome::AlreadyPresent
    );
    let transaction = fixture.store.begin_with(Trust::Hash).unwrap();
    assert_eq!(put(&transaction, b"content").outcome, Outcome::Healed);
    transaction.publish(&[]).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"content");
}

#[test]
fn publish_replaces_a_damaged_layer_only() {
    let fixture = fixture();
    let record = fixture.image("app", &[&[b"content"]]);
    let tree = fixture.tree_path(&record, 0);
    let sound = std::fs::read(&tree).unwrap();
    let inode = std::fs::metadata(&tree).unwrap().ino();
    fixture.image("app", &[&[b"content"]]);
    assert_eq!(std::fs::metadata(&tree).unwrap().ino(), inode);
    std::fs::remove_file(&tree).unwrap();
    std::fs::write(&tree, &sound[..sound.len() - 1]).unwrap();
    fixture.image("app", &[&[b"content"]]);
    assert_eq!(std::fs::read(&tree).unwrap(), sound);
}

/// Both stage the repaired object and layer before either publishes: the second finds the first's
/// repair in place of the damage it saw.
#[test]
fn concurrent_healing_transactions_both_publish() {
    let fixture = fixture();
    let record = fixture.image("app", &[&[b"content"]]);
    let (tree, object) = (
        fixture.tree_path(&record, 0),
        fixture.object_path(b"content"),
    );
    let sound = std::fs::read(&tree).unwrap();
    let staged = std::sync::Barrier::new(4);
    for _ in 0..20 {
        for (path, damage) in [(&tree, &sound[1..]), (&object, &b"cont"[..])] {
            std::fs::remove_file(path).unwrap();
            std::fs::write(path, damage).unwrap();
        }
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let transaction = fixture.store.begin().unwrap();
                    put_layer(&transaction, &[b"content"]);
                    staged.wait();
                    transaction.publish(std::slice::from_ref(&record)).unwrap();
                });
            }
        });
        assert_eq!(std::fs::read(&tree).unwrap(), sound);
        assert_eq!(std::fs::read(&object).unwrap(), b"content");
        assert_eq!(fixture.files("tmp"), BTreeMap::new());
    }
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
}

fn make_fifo(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
}

fn make_file(path: &Path) {
    std::fs::write(path, "x").unwrap();
}

fn make_link(path: &Path) {
    let elsewhere = path.with_extension("elsewhere");
    std::fs::create_dir_all(&elsewhere).unwrap();
    symlink(elsewhere, path).unwrap();
}

fn make_dangling_link(path: &Path) {
    symlink("nowhere", path).unwrap();
}

/// What can stand where a directory should.
const DAMAGES: [fn(&Path); 4] = [make_fifo, make_file, make_link, make_dangling_link];

#[test]
fn publish_makes_a_missing_or_damaged_fan_out_directory_again() {
    let missing: fn(&Path) = |_| {};
    for damage in DAMAGES.into_iter().chain([missing]) {
        let fixture = fixture();
        fixture.image("app", &[&[b"content"]]);
        let fan_out = fixture.object_path(b"content").parent().unwrap().to_owned();
        std::fs::remove_dir_all(&fan_out).unwrap();
        damage(&fan_out);
        let found = fixture.store.check(false).unwrap().problems;
        let named = found.iter().any(|problem| {
            problem
                .to_string()
                .starts_with(&format!("{}:", fan_out.display()))
        });
        assert!(named, "{found:?}");
        fixture.image("app", &[&[b"content"]]);
        let content = std::fs::read(fixture.object_path(b"content")).unwrap();
        assert_eq!(content, b"content");
        if let Ok(elsewhere) = std::fs::read_dir(fan_out.with_extension("elsewhere")) {
            assert_eq!(elsewhere.count(), 0, "a symbolic link was followed");
            std::fs::remove_dir(fan_out.with_extension("elsewhere")).unwrap();
        }
        assert_eq!(fixture.store.check(true).unwrap().problems, []);
    }
}

#[test]
fn all_missing_fan_out_directories_are_named_and_made_again_by_one_publish() {
    let mut fixture = fixture();
    fixture.image("app", &[&[b"content"]]);
    std::fs::remove_dir_all(fixture.path("objects")).unwrap();
    std::fs::create_dir(fixture.path("objects")).unwrap();
    fixture.store = Store::open(&fixture.path("")).unwrap();
    // The 256 directories and the object.
    assert_eq!(fixture.store.check(false).unwrap().problems.len(), 257);
    fixture.image("app", &[&[b"content"]]);
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
}

/// Tags and pins say what gc keeps: without them it would free everything.
#[test]
fn a_missing_directory_is_made_again_unless_it_holds_the_roots() {
    for name in DIRECTORIES {
        let mut fixture = fixture();
        let app = fixture.image("app", &[&[b"content"]]);
        std::fs::remove_dir_all(fixture.path(name)).unwrap();
        let path = fixture.path(name);
        fixture.store = Store::open(&fixture.path("")).unwrap();
        let store = &fixture.store;
        let found = store.check(false).unwrap().problems;
        let said = |problem: &Problem| {
            problem
                .to_string()
                .starts_with(&format!("{}: ", path.display()))
        };
        assert!(found.iter().any(said), "{name}: {found:?}");
        assert!(!path.exists(), "check repairs nothing");
        if ROOTS.contains(&name) {
            let objects = fixture.files("objects");
            let error = store.gc().unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
            assert_eq!(fixture.files("objects"), objects);
        } else if !matches!(name, "containers" | "names" | "volumes") {
            fixture.image("app", &[&[b"content"]]);
            store.gc().unwrap();
            assert_eq!(store.check(true).unwrap().problems, [], "{name}");
            assert_eq!(store.tags().unwrap().tags, std::slice::from_ref(&app));
        }
    }
}

#[test]
fn a_damaged_directory_stops_only_what_needs_it() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    let aside = fixture.path("../aside");
    for (name, damage) in DIRECTORIES
        .iter()
        .flat_map(|name| DAMAGES.map(|damage| (*name, damage)))
    {
        let path = fixture.path(name);
        std::fs::rename(&path, &aside).unwrap();
        damage(&path);
        let store = Store::open(&fixture.path("")).unwrap();
        let found = store.check(true).unwrap().problems;
        let said = |problem: &Problem| {
            problem
                .to_string()
                .starts_with(&format!("{}: ", path.display()))
        };
        assert!(found.iter().any(said), "{name}: {found:?}");
        let needs: [(&[&str], Result<(), StoreError>); 8] = [
            (&["refs"], store.tags().map(drop)),
            (
                &["blobs", "blobs/sha256"],
                store.read_blob(app.images[0].config.0, 9).map(drop),
            ),
            (&["layers"], store.layer_info(layers(&app)[0]).map(drop)),
            (
                &["objects"],
                store.open_object(ObjectId::of(b"content")).map(drop),
            ),
            (&["tmp"], store.begin().map(drop)),
            (&["pins"], store.pins().map(drop)),
            (
                &["pins", "tmp", "merged"],
                store.lease("1", None, &layers(&app)).map(drop),
            ),
            (
                &[
                    "merged",
                    "layers",
                    "refs",
                    "pins",
                    "trash",
                    "tmp",
                    "blobs",
                    "blobs/sha256",
                    "objects",
                ],
                store.gc().map(drop),
            ),
        ];
        for (number, (needed, done)) in needs.into_iter().enumerate() {
            match done {
                Ok(()) => assert!(!needed.contains(&name), "{number} works without {name}"),
                Err(error) => {
                    assert!(needed.contains(&name), "{number} fails for {name}: {error}");
                    assert!(
                        error.to_string().contains(path.to_str().unwrap()),
                        "{error}"
                    );
                }
            }
        }
        if let Ok(elsewhere) = std::fs::read_dir(path.with_extension("elsewhere")) {
            assert_eq!(elsewhere.count(), 0, "a symbolic link was followed");
            std::fs::remove_dir(path.with_extension("elsewhere")).unwrap();
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
    }
}

/// They must not stop every removal and load.
#[test]
fn gc_removes_foreign_files_in_trash_tmp_and_pins() {
    let sealed: fn(&Path) = |path| {
        std::fs::create_dir(path).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o000)).unwrap();
    };
    for damage in DAMAGES.into_iter().chain([sealed]) {
        let fixture = fixture();
        let app = fixture.image("app", &[&[b"content"]]);
        for below in [
            "trash/x",
            "tmp/x",
            "pins/held-load-x.json",
            "pins/held-mount-1-0123456789abcdef.json",
        ] {
            damage(&fixture.path(below));
        }
        fixture.store.wait_lease_end("1").unwrap();
        drop(fixture.store.lease("1", None, &layers(&app)).unwrap());
        assert_eq!(fixture.store.gc().unwrap().damaged.len(), 0);
        for below in ["trash", "tmp", "pins"] {
            let left: Vec<_> = std::fs::read_dir(fixture.path(below))
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            let targets = left
                .iter()
                .all(|name| name.to_str().unwrap().ends_with(".elsewhere"));
            assert!(targets, "{below}: {left:?}");
        }
    }
}

/// Without it, `save` could not give the layer back.
#[test]
fn check_and_load_miss_a_lost_recipe() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    let recipe = fixture.layer_path(&app, 0).join("recipe-v2");
    std::fs::remove_file(&recipe).unwrap();
    let problems = fixture.store.check(false).unwrap().problems;
    assert!(
        matches!(&problems[..], [Problem::Missing { path, .. }] if *path == recipe),
        "{problems:?}"
    );
    let transaction = fixture.store.begin().unwrap();
    assert!(!transaction.has_layer(layers(&app)[0]).unwrap());
    drop(transaction);
    fixture.image("app", &[&[b"content"]]);
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
}
