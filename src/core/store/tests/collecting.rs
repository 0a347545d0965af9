use std::fs::File;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::*;
use crate::recipe::Recorder;

/// A content that the layer itself replaced, and that is too large to be kept inline.
#[test]
fn gc_and_check_honour_an_object_that_only_a_recipe_names() {
    let fixture = fixture();
    let transaction = fixture.store.begin().unwrap();
    let [kept, replaced] = [b"kept", b"gone"].map(|content| put(&transaction, content));
    let diff = DiffId(Sha256Digest::of(b"the tar"));
    let mut builder = LayerBuilder::new();
    let kind = Kind::Regular {
        size: kept.size,
        object: kept.object(),
        elf: kept.elf,
    };
    builder.insert(&[b"a"], meta(), kind).unwrap();
    let tree = builder.finish(diff).unwrap();
    let (replaced_id, kept_id) = (replaced.object().unwrap(), kept.object().unwrap());
    // The numbers of the objects in the recipe: the tree's first.
    let recipe = |tree_objects, [of_replaced, of_kept]: [u32; 2], own: &[ObjectId]| {
        let mut recorder = Recorder::new(1 << 20).unwrap();
        recorder.object(of_replaced, 0, replaced.size).unwrap();
        recorder.object(of_kept, 0, kept.size).unwrap();
        let recording = recorder.finish().unwrap();
        recording.into_recipe(diff, tree_objects, own).unwrap()
    };
    let other = fixture.store.begin().unwrap();
    let refused = other.put_layer(
        diff,
        tree.clone(),
        8,
        &recipe(0, [0, 1], &[replaced_id, kept_id]),
    );
    let error = refused.unwrap_err().to_string();
    drop(other);
    assert!(error.contains("recipe-v2"), "{error}");
    assert!(
        error.contains("it numbers the objects of another tree"),
        "{error}"
    );
    let recipe = recipe(1, [1, 0], &[replaced_id]);
    transaction.put_layer(diff, tree, 8, &recipe).unwrap();
    let config = transaction.put_blob(b"config").unwrap();
    transaction
        .publish(&[tag("app", config, vec![diff])])
        .unwrap();

    assert_eq!(fixture.store.gc().unwrap().bytes(), 0);
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
    let object = fixture.object_path(b"gone");
    std::fs::remove_file(&object).unwrap();
    let problems = fixture.store.check(false).unwrap().problems;
    assert!(
        matches!(
            problems.as_slice(),
            [Problem::Missing { path, needed_by }]
                if *path == object && needed_by.ends_with("recipe-v2")
        ),
        "{problems:?}"
    );
}

#[test]
fn gc_removes_unreferenced_and_keeps_shared_objects() {
    let fixture = fixture();
    let base = fixture.image("base", &[&[b"shared", b"base"]]);
    let app = fixture.image("app", &[&[b"shared", b"base"], &[b"shared", b"app only"]]);
    assert_eq!(fixture.store.gc().unwrap().bytes(), 0);

    assert!(fixture.store.untag(&app).unwrap());
    assert!(!fixture.store.untag(&app).unwrap());
    let report = fixture.store.gc().unwrap();
    assert_eq!(
        report.objects,
        Count {
            number: 1,
            bytes: 8
        }
    );
    assert_eq!(
        (
            report.layers.number,
            report.merged.number,
            report.blobs.number
        ),
        (1, 1, 1)
    );
    assert_eq!(fixture.store.tags().unwrap().tags, [base]);
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
    assert_eq!(fixture.files("trash"), BTreeMap::new());

    fixture
        .store
        .untag(&fixture.store.tags().unwrap().tags[0])
        .unwrap();
    fixture.store.gc().unwrap();
    for place in ["objects", "layers", "merged", "blobs", "refs"] {
        assert_eq!(fixture.files(place), BTreeMap::new(), "{place}");
    }
}

#[test]
fn gc_keeps_pinned_layers_and_blobs_until_unpin() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    let config = app.images[0].config.0;
    fixture
        .store
        .pin(
            "container-1",
            PinLife::Permanent,
            "container web",
            &layers(&app),
            &[config],
        )
        .unwrap();
    assert_eq!(fixture.store.pins().unwrap(), ["container-1"]);
    fixture.store.untag(&app).unwrap();
    let report = fixture.store.gc().unwrap();
    assert_eq!(
        (
            report.objects.number,
            report.layers.number,
            report.merged.number,
            report.blobs.number
        ),
        (0, 0, 0, 0)
    );
    assert!(fixture.store.unpin("container-1").unwrap());
    assert!(!fixture.store.unpin("container-1").unwrap());
    assert_eq!(fixture.store.gc().unwrap().objects.number, 1);
    let refused = fixture
        .store
        .pin("container-1", PinLife::Permanent, "", &layers(&app), &[]);
    assert!(matches!(refused, Err(StoreError::NoLayer(_))));
    for name in ["", "a/b", ".x", "held-x", "boot-x"] {
        let refused = fixture.store.pin(name, PinLife::Permanent, "", &[], &[]);
        assert!(matches!(refused, Err(StoreError::Name { .. })), "{name}");
    }
}

#[test]
fn pin_of_this_boot_keeps_layers_until_unpin_or_another_boot() {
    let fixture = fixture();
    let store = &fixture.store;
    let app = fixture.image("app", &[&[b"content"]]);
    let pin = |name: &str| store.pin(name, PinLife::ThisBoot, "container web", &layers(&app), &[]);
    pin("container-1").unwrap();
    pin("container-2").unwrap();
    store.untag(&app).unwrap();
    assert_eq!(store.gc().unwrap().layers.number, 0);
    assert_eq!(store.pins().unwrap(), ["container-1", "container-2"]);
    assert!(store.unpin("container-1").unwrap());
    assert!(!store.unpin("container-1").unwrap());
    assert_eq!(store.gc().unwrap().layers.number, 0);
    // As a power cut leaves it: under the id of the boot before, and never written.
    let files = fixture.files("pins");
    let name = files.keys().next().unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let boot = boot.trim_end().replace('-', "");
    assert_eq!(*name, format!("boot-{boot}-container-2.json"));
    let before = format!("boot-{}-container-2.json", "0".repeat(32));
    std::fs::remove_file(fixture.path("pins").join(name)).unwrap();
    std::fs::write(fixture.path("pins").join(before), "").unwrap();
    assert_eq!(store.pins().unwrap(), [""; 0]);
    let planned = store.gc_plan(&[]).unwrap();
    assert_eq!((planned.layers.number, planned.pins), (1, 1));
    let report = store.gc().unwrap();
    assert_eq!((report.layers.number, report.pins), (1, 1));
    assert_eq!(report.damaged.len(), 0);
    assert_eq!(fixture.files("pins"), BTreeMap::new());
}

#[test]
fn gc_plan_counts_a_pin_of_this_boot_as_removed() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    let store = &fixture.store;
    store
        .pin("container-1", PinLife::ThisBoot, "", &layers(&app), &[])
        .unwrap();
    store.untag(&app).unwrap();
    assert_eq!(store.gc_plan(&[]).unwrap().layers.number, 0);
    let planned = store.gc_plan(&["container-1".to_owned()]).unwrap();
    assert_eq!((planned.layers.number, planned.pins), (1, 1));
}

#[test]
fn lease_lasts_until_its_last_descriptor_is_closed() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    let lease = fixture
        .store
        .lease("m1", Some(app.images[0].config), &layers(&app))
        .unwrap();
    fixture.store.untag(&app).unwrap();
    assert_eq!(fixture.store.gc().unwrap().objects.number, 0);
    let handed = lease.into_fd();
    let copy = handed.try_clone().unwrap();
    drop(handed);
    assert_eq!(fixture.store.gc().unwrap().objects.number, 0);
    drop(copy);
    let report = fixture.store.gc().unwrap();
    assert_eq!((report.objects.number, report.pins), (1, 1));
    assert_eq!(fixture.files("pins"), BTreeMap::new());
}

#[test]
fn dropping_a_lease_removes_its_pin() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"a"], &[b"b"]]);
    let image = app.id().unwrap();
    let lease = fixture
        .store
        .lease("m-1", Some(image), &layers(&app))
        .unwrap();
    let files = fixture.files("pins");
    let name = files.keys().next().unwrap();
    assert!(
        name.starts_with("held-mount-m-1-")
            && name.len() == "held-mount-m-1-0123456789abcdef.json".len(),
        "{name}"
    );
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture.path("pins").join(name)).unwrap()).unwrap();
    let expected = serde_json::json!({
        "version": 1, "owner": format!("mount m-1 of image {image}"), "layers": layers(&app), "blobs": [image],
    });
    assert_eq!(json, expected);
    assert_eq!(fixture.store.pins().unwrap(), [""; 0]);
    drop(lease);
    assert_eq!(fixture.files("pins"), BTreeMap::new());
    // Nothing holds one: no wait.
    fixture.store.wait_lease_end("m-1").unwrap();
}

#[test]
fn wait_lease_end_ignores_other_mounts() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"a"]]);
    let other = fixture.store.lease("m-1", None, &layers(&app)).unwrap();
    let fd = fixture
        .store
        .lease("m", None, &layers(&app))
        .unwrap()
        .into_fd();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| fixture.store.wait_lease_end("m"));
        drop(fd);
        waiter.join().unwrap().unwrap();
    });
    assert_eq!(fixture.files("pins").len(), 1);
    drop(other);
}

#[test]
fn lease_ends_within_times_out() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"a"]]);
    let within = |patience| fixture.store.lease_ends_within("m", patience).unwrap();
    assert!(within(Duration::ZERO), "there is none");
    let held = fixture
        .store
        .lease("m", None, &layers(&app))
        .unwrap()
        .into_fd();
    assert!(!within(Duration::ZERO));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| within(Duration::from_hours(1)));
        drop(held);
        assert!(waiter.join().unwrap());
    });
    // A holder without write access: closing it causes no inotify event.
    let held = fixture
        .store
        .lease("m", None, &layers(&app))
        .unwrap()
        .into_fd();
    let name = fixture.files("pins").into_keys().next().unwrap();
    let silent = File::open(fixture.path("pins").join(name)).unwrap();
    drop(held);
    flock(&silent, FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| within(Duration::from_hours(1)));
        drop(silent);
        assert!(waiter.join().unwrap());
    });
    assert_eq!(fixture.files("pins"), BTreeMap::new());
}

#[test]
fn lease_refuses_missing_layers() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    fixture.store.untag(&app).unwrap();
    fixture.store.gc().unwrap();
    assert!(matches!(
        fixture.store.lease("m1", None, &layers(&app)),
        Err(StoreError::NoLayer(_))
    ));
    // Also without a merged tree.
    let bare = fixture.image("bare", &[&[b"content"], &[b"more"]]);
    std::fs::remove_file(fixture.merged_path(&bare)).unwrap();
    drop(fixture.store.lease("m1", None, &layers(&bare)).unwrap());
    let layer = fixture.path("layers").join(layers(&bare)[1].0.hex());
    std::fs::remove_dir_all(layer).unwrap();
    assert!(matches!(
        fixture.store.lease("m1", None, &layers(&bare)),
        Err(StoreError::NoLayer(_))
    ));
    assert!(matches!(
        fixture.store.tag(&bare),
        Err(StoreError::NoLayer(_))
    ));
    assert!(matches!(
        fixture.store.lease("a/b", None, &layers(&app)),
        Err(StoreError::Name { .. })
    ));
    assert_eq!(fixture.files("pins"), BTreeMap::new());
}

#[test]
fn gc_runs_beside_an_open_transaction() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"shared", b"own"], &[b"top"]]);
    let lock = File::open(fixture.path("lock")).unwrap();
    let transaction = fixture.store.begin().unwrap();
    assert_eq!(
        put(&transaction, b"shared").outcome,
        Outcome::AlreadyPresent
    );
    assert!(transaction.has_layer(layers(&app)[1]).unwrap());
    let config = app.images[0].config.0;
    assert!(!transaction.has_blob(config, 4).unwrap());
    assert!(transaction.has_blob(config, 3).unwrap());
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    flock(&lock, FlockOperation::Unlock).unwrap();

    fixture.store.untag(&app).unwrap();
    let report = fixture.store.gc().unwrap();
    assert_eq!((report.layers.number, report.damaged.len()), (1, 0));
    assert!(!fixture.object_path(b"shared").exists());
    let diff = put_layer(&transaction, &[b"shared"]);
    let again = tag("again", config, vec![diff, layers(&app)[1]]);
    transaction.put_merged(&layers(&again)).unwrap();
    transaction.publish(std::slice::from_ref(&again)).unwrap();
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
    assert_eq!(fixture.store.gc().unwrap().bytes(), 0);
    assert_eq!(fixture.files("pins"), BTreeMap::new());
}

#[test]
fn gc_removes_the_pin_of_a_dead_load() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    fixture.store.untag(&app).unwrap();
    let transaction = fixture.store.begin().unwrap();
    transaction.keep_layers(&layers(&app)).unwrap();
    // As SIGKILL leaves it: the descriptors are closed, no destructor has run.
    let name = fixture.files("pins").into_keys().next().unwrap();
    let pin = fixture.path("pins").join(&name);
    std::fs::copy(&pin, fixture.path("pins/held-load-0123456789abcdef.json")).unwrap();
    drop(transaction);
    let report = fixture.store.gc().unwrap();
    assert_eq!((report.pins, report.layers.number), (1, 1));
    assert_eq!(fixture.files("pins"), BTreeMap::new());
}

#[test]
fn gc_frees_nothing_while_a_tag_or_pin_cannot_be_read() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    fixture.store.untag(&app).unwrap();
    let objects = fixture.files("objects");
    let hash = Sha256Digest::of(b"docker.io/library/x:latest").hex();
    let tag = format!("refs/docker.io%2Flibrary%2Fx:latest-{hash}.json");
    for file in [tag.as_str(), "pins/container-1.json"] {
        for text in [
            "{",
            r#"{"version": 2}"#,
            r#"{"version": 1, "layers": "all"}"#,
        ] {
            std::fs::write(fixture.path(file), text).unwrap();
            let damaged = fixture.store.gc().unwrap().damaged;
            assert_eq!(damaged.len(), 1);
            assert!(damaged[0].to_string().contains(file), "{}", damaged[0]);
            assert_eq!(fixture.files("objects"), objects);
            assert!(!fixture.store.check(false).unwrap().problems.is_empty());
        }
        std::fs::remove_file(fixture.path(file)).unwrap();
    }
    assert_eq!(fixture.store.gc().unwrap().objects.number, 1);
}

#[test]
fn tags_reports_a_damaged_tag_and_lists_the_rest() {
    let fixture = fixture();
    let good = fixture.image("good", &[&[b"good"]]);
    let hurt = fixture.image("hurt", &[&[b"hurt"]]);
    let name = hurt.reference.as_ref().unwrap();
    let damage = || {
        let files = fixture.files("refs").into_keys();
        let file = files
            .into_iter()
            .find(|file| file.contains("hurt"))
            .unwrap();
        std::fs::write(fixture.path("refs").join(file), r#"{"version": 1, "ref"#).unwrap();
    };
    std::fs::write(fixture.path("refs/notes~"), "mine").unwrap();
    damage();
    let list = fixture.store.tags().unwrap();
    assert_eq!((list.tags, list.damaged.len()), (vec![good.clone()], 1));
    assert!(fixture.store.find_tag(name).is_err());
    assert_eq!(fixture.store.usage().unwrap().tags, 2);
    // Another name is given and taken; the damaged one is healed by giving it again, or removed.
    let more = named(&good, Some("more"));
    fixture.store.tag(&more).unwrap();
    assert!(fixture.store.untag(&more).unwrap());
    fixture.store.tag(&hurt).unwrap();
    assert_eq!(fixture.store.find_tag(name).unwrap(), Some(hurt.clone()));
    damage();
    assert!(fixture.store.untag_name(name).unwrap());
    assert_eq!(fixture.store.tags().unwrap().damaged.len(), 0);
}

#[test]
fn gc_frees_no_object_while_a_layer_cannot_be_read() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    let doomed = fixture.image("other", &[&[b"more"]]);
    fixture.store.untag(&doomed).unwrap();
    let tree = fixture.tree_path(&app, 0);
    let whole = std::fs::read(&tree).unwrap();
    let mut bytes = whole.clone();
    let last = bytes.len() - 40;
    bytes[last] ^= 1;
    std::fs::remove_file(&tree).unwrap();
    std::fs::write(&tree, bytes).unwrap();
    let report = fixture.store.gc().unwrap();
    assert_eq!((report.damaged.len(), report.layers.number), (1, 1));
    assert_eq!(fixture.files("objects").len(), 2);
    std::fs::write(&tree, whole).unwrap();
    assert_eq!(fixture.store.gc().unwrap().objects.number, 1);
}

#[test]
fn gc_empties_the_trash_and_ignores_foreign_files() {
    let fixture = fixture();
    std::fs::create_dir(fixture.path("trash/feed")).unwrap();
    std::fs::write(fixture.path("trash/feed/0"), "x").unwrap();
    std::fs::write(fixture.path("objects/00/notes"), "mine").unwrap();
    std::fs::write(fixture.path("objects/notes~"), "mine").unwrap();
    fixture.store.gc().unwrap();
    assert_eq!(fixture.files("trash"), BTreeMap::new());
    assert_eq!(
        fixture.files("objects"),
        BTreeMap::from([("00/notes".to_owned(), 4), ("notes~".to_owned(), 4)])
    );
}

#[test]
fn gc_keeps_an_image_while_one_tag_remains() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    let second = named(&app, Some("other:2"));
    fixture.store.tag(&second).unwrap();
    fixture.store.untag(&app).unwrap();
    assert_eq!(fixture.store.gc().unwrap().objects.number, 0);
    assert_eq!(
        fixture.store.find_tag(&"other:2".parse().unwrap()).unwrap(),
        Some(second.clone())
    );
    assert_eq!(
        fixture.store.find_tag(&"app".parse().unwrap()).unwrap(),
        None
    );
    assert_eq!(fixture.store.tags().unwrap().tags, [second]);
}

#[test]
fn mounts_of_an_image_are_those_with_a_live_lease() {
    let fixture = fixture();
    let (app, other) = (
        fixture.image("app", &[&[b"one"]]),
        fixture.image("other", &[&[b"two"]]),
    );
    let lease = |tag: &Tag, mount: &str| {
        let image = tag.images[0].config;
        fixture
            .store
            .lease(mount, Some(image), &layers(tag))
            .unwrap()
    };
    let mounts = || fixture.store.mounts_of(app.images[0].config).unwrap();
    let (first, second) = (lease(&app, "m-1"), lease(&app, "m-2"));
    let _another = lease(&other, "m-3");
    assert_eq!(mounts(), ["m-1", "m-2"]);
    drop(first);
    // As a killed holder leaves it.
    drop(second.into_fd());
    assert_eq!(mounts(), [""; 0]);
}
