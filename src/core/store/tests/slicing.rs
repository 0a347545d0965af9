//! A gc lets others work between two of its slices.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{FlockOperation, flock};

use super::super::gc::Sweep;
use super::*;

/// A sweep of what nothing reaches now.
fn sweep(fixture: &Fixture) -> Sweep<'_> {
    let plan = fixture.store.plan(&[], &[]).unwrap();
    Sweep::new(&fixture.store, plan).unwrap()
}

/// What `du` says of the store and of what lies beside it.
fn du(fixture: &Fixture) -> u64 {
    let output = std::process::Command::new("du")
        .args(["-s", "--block-size=1"])
        .arg(fixture.path(".."))
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

/// An image that nothing needs, beside one that shares an object with it.
fn garbage(fixture: &Fixture) -> Tag {
    fixture.image("kept", &[&[b"shared", b"kept"]]);
    let app = fixture.image("app", &[&[b"shared", b"one"], &[b"two", b"three"]]);
    assert!(fixture.store.untag(&app).unwrap());
    app
}

#[test]
fn gc_plan_says_what_gc_frees_and_du_agrees() {
    let fixture = fixture();
    let app = garbage(&fixture);
    let image = Some(app.images[0].config);
    drop(
        fixture
            .store
            .lease("m-1", image, &layers(&app))
            .unwrap()
            .into_fd(),
    );
    fixture
        .store
        .pin("container-1", PinLife::Permanent, "", &layers(&app), &[])
        .unwrap();
    for dead in ["tmp/dead/below", "trash/dead/below"] {
        let dead = fixture.path(dead);
        std::fs::create_dir_all(&dead).unwrap();
        std::fs::write(dead.join("file"), [1; 10_000]).unwrap();
    }
    // A second link keeps the content: as a snapshot of the store has one, and as the dead load
    // has.
    let linked = fixture.object_path(b"one");
    std::fs::hard_link(&linked, fixture.path("../snapshot")).unwrap();
    let linked = fixture.object_path(b"two");
    std::fs::hard_link(&linked, fixture.path("tmp/dead/two")).unwrap();
    let (before, used) = (fixture.files(""), du(&fixture));

    let pinned = fixture.store.gc_plan(&[]).unwrap();
    assert_eq!((pinned.layers.number, pinned.objects.number), (0, 0));
    let plan = fixture.store.gc_plan(&["container-1".to_owned()]).unwrap();
    assert_eq!(fixture.files(""), before, "a plan changes nothing");
    let numbers = [plan.objects, plan.layers, plan.merged, plan.blobs].map(|count| count.number);
    assert_eq!(numbers, [3, 2, 1, 1]);
    assert_eq!((plan.pins, plan.leftovers), (2, 2));

    assert!(fixture.store.unpin("container-1").unwrap());
    let report = fixture.store.gc().unwrap();
    // The pin went before.
    assert_eq!(report.pins, 1);
    assert_eq!(
        (report.objects, report.layers, report.merged, report.blobs),
        (plan.objects, plan.layers, plan.merged, plan.blobs)
    );
    let after = fixture.files("");
    let gone = before.iter().filter(|(name, _)| {
        let counted = ["objects", "layers", "merged", "blobs"];
        !after.contains_key(*name) && counted.iter().any(|dir| name.starts_with(dir))
    });
    // The link of a layer's tree is no file of the store's.
    let gone = gone.filter(|(name, _)| !name.ends_with("/tree"));
    assert_eq!(report.bytes(), gone.map(|(_, bytes)| bytes).sum::<u64>());
    assert_eq!(used - du(&fixture), plan.disk);
    assert_eq!(fixture.store.gc_plan(&[]).unwrap().disk, 0);
}

#[test]
fn a_slice_moves_at_most_its_number_and_leaves_the_lock_free() {
    let fixture = fixture();
    let contents: Vec<Vec<u8>> = (0..600).map(|n: u32| n.to_be_bytes().to_vec()).collect();
    let contents: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
    let app = fixture.image("app", &[&contents]);
    fixture.store.untag(&app).unwrap();
    let mut sweep = sweep(&fixture);
    let moved = || {
        let dirs = std::fs::read_dir(fixture.path("trash")).unwrap();
        let dirs = dirs.map(|dir| std::fs::read_dir(dir.unwrap().path()).unwrap().count());
        dirs.sum::<usize>()
    };
    let lock = File::open(fixture.path("lock")).unwrap();
    let mut after = Vec::new();
    while sweep.slice().unwrap() {
        after.push(moved());
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        flock(&lock, FlockOperation::Unlock).unwrap();
    }
    assert_eq!(after, [256, 512]);
    // The merged tree, the layer, the objects and the blob.
    assert_eq!(moved(), 603);
}

#[test]
fn gc_takes_no_exclusive_lock_if_there_is_nothing_to_free() {
    let fixture = fixture();
    fixture.image("app", &[&[b"content"]]);
    let lock = File::open(fixture.path("lock")).unwrap();
    flock(&lock, FlockOperation::LockShared).unwrap();
    assert_eq!(fixture.store.gc().unwrap().disk, 0);
}

/// Steps through a sweep of one image, one move a slice, and does something at one point.
fn at_each_step(act: impl Fn(&Fixture, &Tag, &mut dyn FnMut())) {
    let mut point = 0;
    loop {
        let fixture = fixture();
        let app = garbage(&fixture);
        let mut sweep = sweep(&fixture);
        sweep.slice = 1;
        let reached = (0..point).all(|_| sweep.slice().unwrap());
        act(&fixture, &app, &mut || while sweep.slice().unwrap() {});
        while sweep.slice().unwrap() {}
        drop(sweep);
        let store = &fixture.store;
        assert_eq!(store.check(true).unwrap().problems, [], "step {point}");
        store.gc().unwrap();
        assert_eq!(store.check(true).unwrap().problems, [], "step {point}");
        if !reached {
            // 1 merged tree, 2 layers, 3 objects, 1 blob.
            assert!(point >= 6, "ended before step {point}");
            return;
        }
        point += 1;
    }
}

#[test]
fn an_image_named_or_leased_between_two_slices_is_whole_or_refused() {
    at_each_step(|fixture, app, rest| {
        let tagged = fixture.store.tag(app);
        rest();
        if tagged.is_ok() {
            assert!(fixture.merged_path(app).exists() || fixture.layer_path(app, 0).exists());
            assert!(fixture.object_path(b"three").exists());
        }
    });
    at_each_step(|fixture, app, rest| {
        let lease = fixture.store.lease("m-1", None, &layers(app));
        rest();
        if lease.is_ok() {
            for content in [&b"shared"[..], b"one", b"two", b"three"] {
                assert!(fixture.object_path(content).exists());
            }
        }
    });
}

#[test]
fn a_load_between_two_slices_has_its_image() {
    let load = |fixture: &Fixture, transaction: Transaction<'_>, app: &Tag| {
        let config = transaction.put_blob(b"app").unwrap();
        transaction.put_merged(&layers(app)).unwrap();
        assert_eq!(config, app.images[0].config.0);
        transaction.publish(std::slice::from_ref(app)).unwrap();
        assert_eq!(fixture.store.check(true).unwrap().problems, []);
    };
    let contents: [&[&[u8]]; 2] = [&[b"shared", b"one"], &[b"two", b"three"]];
    let put = |transaction: &Transaction<'_>, app: &Tag| {
        for (diff, contents) in layers(app).into_iter().zip(contents) {
            if !transaction.has_layer(diff).unwrap() {
                put_layer(transaction, contents);
            }
        }
    };
    // Published at once; after the rest of the sweep; and early, with its names after it.
    at_each_step(|fixture, app, rest| {
        let transaction = fixture.store.begin().unwrap();
        put(&transaction, app);
        load(fixture, transaction, app);
        rest();
        assert_eq!(fixture.store.tags().unwrap().tags.len(), 2);
    });
    at_each_step(|fixture, app, rest| {
        let transaction = fixture.store.begin().unwrap();
        put(&transaction, app);
        rest();
        load(fixture, transaction, app);
    });
    at_each_step(|fixture, app, rest| {
        let mut transaction = fixture.store.begin().unwrap();
        transaction.publish_early_after = 0;
        put(&transaction, app);
        rest();
        load(fixture, transaction, app);
    });
}

/// A running load's layer may come, or be replaced by one that needs other objects, after its pin
/// was marked.
#[test]
fn a_layer_published_early_after_the_mark_keeps_its_objects() {
    let fixture = fixture();
    let mut transaction = fixture.store.begin().unwrap();
    let diff = DiffId(Sha256Digest::of(b"late"));
    transaction.keep_layers(&[diff]).unwrap();
    let before = fixture.store.plan(&[], &[]).unwrap();
    transaction.publish_early_after = 0;
    assert_eq!(put_layer(&transaction, &[b"late"]), diff);
    assert!(fixture.object_path(b"late").exists());
    // Marked before the layer came, scanned after it.
    let late = before.scanned_again(&fixture.store);
    let mut sweep = Sweep::new(&fixture.store, late).unwrap();
    while sweep.slice().unwrap() {}
    assert!(fixture.object_path(b"late").exists());
    drop(transaction);
}

#[test]
fn publish_brings_back_the_object_that_gc_moved() {
    let fixture = fixture();
    garbage(&fixture);
    let inode = |content: &[u8]| {
        let path = fixture.object_path(content);
        path.metadata().map(|meta| meta.ino()).ok()
    };
    let before = inode(b"one").unwrap();
    let transaction = fixture.store.begin().unwrap();
    assert_eq!(put(&transaction, b"one").outcome, Outcome::AlreadyPresent);
    assert_eq!(fixture.store.gc().unwrap().objects.number, 3);
    assert_eq!(inode(b"one"), None);
    // An import that begins now writes it anew.
    let later = fixture.store.begin().unwrap();
    assert_eq!(put(&later, b"two").outcome, Outcome::Added);
    drop(later);
    put_layer(&transaction, &[b"shared", b"one"]);
    transaction.publish(&[]).unwrap();
    assert_eq!(inode(b"one"), Some(before));
}
