//! A gc that relies on the record of the last one frees what a full one would.

use std::fs::File;
use std::time::Duration;

use super::*;
use crate::digest::ImageId;

const RECORD: &str = "clean.json";

fn ticking() -> Fixture {
    let mut fixture = fixture();
    // The clock's tick is waited for instead.
    fixture.store.settled_after = Duration::ZERO;
    fixture
}

impl Fixture {
    /// Waits for the next tick of the file system's clock, as time does between two commands.
    fn tick(&self) {
        let (_, youngest) = self.store.clean_directories().unwrap();
        while self.store.clock().unwrap() <= youngest {}
    }

    /// A gc that leaves a record.
    fn recorded(&self) {
        self.tick();
        self.store.gc().unwrap();
        self.tick();
        assert_eq!(self.store.gc().unwrap().bytes(), 0);
        self.tick();
        assert!(self.is_clean());
    }

    fn is_clean(&self) -> bool {
        self.store.is_known_clean(|_| false)
    }

    /// What a gc frees that has no record to rely on.
    fn full_plan(&self) -> u64 {
        let (record, aside) = (self.path(RECORD), self.path("../aside"));
        let there = std::fs::rename(&record, &aside).is_ok();
        let plan = self.store.gc_plan(&[]).unwrap();
        if there {
            std::fs::rename(&aside, &record).unwrap();
        }
        plan.bytes() + plan.pins + plan.leftovers
    }

    fn lease_of(&self, name: &str, tag: &Tag) -> Lease {
        let image: ImageId = tag.images[0].config;
        self.store.lease(name, Some(image), &layers(tag)).unwrap()
    }
}

#[test]
fn gc_relies_on_its_record_until_something_could_be_garbage() {
    let fixture = ticking();
    let store = &fixture.store;
    let kept = fixture.image("kept", &[&[b"shared", b"kept"]]);
    let app = || fixture.image("app", &[&[b"shared", b"one"], &[b"two"]]);
    let doubtful = |what: &str, change: &dyn Fn()| {
        fixture.recorded();
        change();
        assert!(!fixture.is_clean(), "after {what}");
        store.gc().unwrap();
        assert_eq!(fixture.full_plan(), 0, "after {what}");
    };
    doubtful("an image", &|| drop(app()));
    doubtful("its removal", &|| assert!(store.untag(&app()).unwrap()));
    app();
    doubtful("another image of its name", &|| {
        fixture.image("app", &[&[b"shared"]]);
    });
    let pinned = app();
    store
        .pin("box", PinLife::Permanent, "", &layers(&pinned), &[])
        .unwrap();
    doubtful("the end of a pin", &|| {
        assert!(store.unpin("box").unwrap());
    });
    let mounted = app();
    let held = std::cell::Cell::new(Some(fixture.lease_of("m-1", &mounted).into_fd()));
    assert!(store.untag(&mounted).unwrap());
    doubtful("the end of a mount", &|| drop(held.take()));
    let other = app();
    doubtful("a mount that came and was killed", &|| {
        drop(fixture.lease_of("m-3", &kept).into_fd());
    });
    doubtful("an aborted load", &|| {
        let mut transaction = store.begin().unwrap();
        transaction.publish_early_after = 0;
        put_layer(&transaction, &[b"early"]);
    });
    doubtful("a merged tree", &|| {
        let lease = fixture.lease_of("m-2", &kept);
        store
            .merged(&[layers(&kept), layers(&other)].concat())
            .unwrap();
        drop(lease);
    });
    doubtful("a foreign object", &|| {
        std::fs::write(fixture.object_path(b"foreign"), "foreign").unwrap();
    });
    doubtful("a lost layer's file", &|| {
        std::fs::remove_file(fixture.layer_path(&kept, 0).join("tree")).unwrap();
    });
    for bytes in [&b""[..], b"{}", b"{\"version\":2}"] {
        doubtful("damage of the record", &|| {
            std::fs::write(fixture.path(RECORD), bytes).unwrap();
        });
    }
}

#[test]
fn gc_relies_on_its_record_whatever_keeps_more() {
    let fixture = ticking();
    let store = &fixture.store;
    let app = fixture.image("app", &[&[b"shared", b"one"], &[b"two"]]);
    let lease = fixture.lease_of("m-1", &app);
    fixture.recorded();
    let record = std::fs::read(fixture.path(RECORD)).unwrap();
    let again = named(&app, Some("again"));
    store.tag(&again).unwrap();
    store
        .pin("box", PinLife::Permanent, "", &layers(&app), &[])
        .unwrap();
    drop(fixture.lease_of("m-2", &app));
    fixture.image("app", &[&[b"shared", b"one"], &[b"two"]]);
    assert!(store.untag(&again).unwrap() && store.unpin("box").unwrap());
    assert!(!fixture.is_clean(), "the tag was replaced");
    fixture.recorded();
    assert_ne!(std::fs::read(fixture.path(RECORD)).unwrap(), record);
    store.tag(&again).unwrap();
    drop(fixture.lease_of("m-2", &app));
    assert!(fixture.is_clean());
    assert_eq!(store.gc().unwrap().bytes(), 0);
    assert!(!store.is_known_clean(|pin| pin.to_string_lossy().contains("m-1")));
    drop(lease);
    assert_eq!(fixture.full_plan(), 0);
}

/// A directory that changed in the last tick may change again in it.
#[test]
fn gc_leaves_no_record_of_directories_that_have_just_changed() {
    let fixture = fixture();
    fixture.image("app", &[&[b"one"]]);
    assert_eq!(fixture.store.gc().unwrap().bytes(), 0);
    assert!(!fixture.path(RECORD).exists());
}

#[test]
fn gc_removes_what_died_though_nothing_is_garbage() {
    let fixture = ticking();
    fixture.image("app", &[&[b"one"]]);
    fixture.recorded();
    let dead = fixture.path("tmp/dead");
    std::fs::create_dir(&dead).unwrap();
    File::create(dead.join("file")).unwrap();
    std::fs::create_dir(fixture.path("trash/dead")).unwrap();
    assert!(fixture.is_clean());
    assert_eq!(fixture.store.gc_plan(&[]).unwrap().leftovers, 2);
    assert_eq!(fixture.store.gc().unwrap().leftovers, 2);
    assert_eq!(fixture.files("tmp").len() + fixture.files("trash").len(), 0);
}

/// Whatever has its name, gc works; `check` knows the one and reports the other.
#[test]
fn gc_does_without_a_record_that_it_cannot_replace() {
    let fixture = ticking();
    fixture.image("app", &[&[b"one"]]);
    fixture.recorded();
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
    std::fs::remove_file(fixture.path(RECORD)).unwrap();
    std::fs::create_dir(fixture.path(RECORD)).unwrap();
    assert_eq!(fixture.store.gc().unwrap().bytes(), 0);
    assert!(!fixture.is_clean());
    let problems = fixture.store.check(false).unwrap().problems;
    assert!(
        matches!(problems.as_slice(), [Problem::Damaged { path, .. }] if path.ends_with(RECORD)),
        "{problems:?}"
    );
}
