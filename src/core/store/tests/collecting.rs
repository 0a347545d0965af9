use std::fs::File;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::*;

#[test]
fn what_no_tag_keeps_goes_and_what_is_shared_stays() {
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
    assert_eq!(fixture.store.refs().unwrap(), [base]);
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
    assert_eq!(fixture.files("trash"), BTreeMap::new());

    fixture
        .store
        .untag(&fixture.store.refs().unwrap()[0])
        .unwrap();
    fixture.store.gc().unwrap();
    for place in ["objects", "layers", "merged", "blobs", "refs"] {
        assert_eq!(fixture.files(place), BTreeMap::new(), "{place}");
    }
}

#[test]
fn a_container_keeps_its_layers() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    std::fs::create_dir(fixture.path("containers/c1")).unwrap();
    std::fs::create_dir(fixture.path("containers/being-made")).unwrap();
    let config = format!(
        r#"{{"name": "c1", "layers": ["{}"], "other": {{}}}}"#,
        app.layers[0]
    );
    std::fs::write(fixture.path("containers/c1/config.json"), config).unwrap();
    fixture.store.untag(&app).unwrap();
    let report = fixture.store.gc().unwrap();
    assert_eq!(
        (
            report.objects.number,
            report.layers.number,
            report.merged.number,
            report.blobs.number
        ),
        (0, 0, 0, 1)
    );
    std::fs::remove_dir_all(fixture.path("containers/c1")).unwrap();
    assert_eq!(fixture.store.gc().unwrap().objects.number, 1);
}

#[test]
fn a_lease_keeps_its_layers_until_the_last_holder_of_its_file_is_gone() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    let lease = fixture
        .store
        .lease("m1", Some(app.image), &app.layers)
        .unwrap();
    fixture.store.untag(&app).unwrap();
    assert_eq!(fixture.store.gc().unwrap().objects.number, 0);
    let handed = lease.into_fd();
    let copy = handed.try_clone().unwrap();
    drop(handed);
    assert_eq!(fixture.store.gc().unwrap().objects.number, 0);
    drop(copy);
    let report = fixture.store.gc().unwrap();
    assert_eq!((report.objects.number, report.leases), (1, 1));
    assert_eq!(fixture.files("leases"), BTreeMap::new());
}

#[test]
fn a_lease_says_what_it_is_and_ends_when_dropped() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"a"], &[b"b"]]);
    let lease = fixture
        .store
        .lease("m-1", Some(app.image), &app.layers)
        .unwrap();
    let files = fixture.files("leases");
    let name = files.keys().next().unwrap();
    assert!(
        name.starts_with("m-1-") && name.len() == "m-1-0123456789abcdef.json".len(),
        "{name}"
    );
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture.path("leases").join(name)).unwrap()).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let chain = crate::digest::ChainId::of(&app.layers).unwrap();
    let expected = serde_json::json!({
        "mount": "m-1", "image": app.image, "chain": chain, "boot": boot.trim(), "layers": app.layers,
    });
    assert_eq!(json, expected);
    drop(lease);
    assert_eq!(fixture.files("leases"), BTreeMap::new());
    // Nobody holds one: no wait.
    fixture.store.wait_lease_end("m-1").unwrap();
}

#[test]
fn waiting_for_a_lease_ends_with_it_and_not_for_another() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"a"]]);
    let other = fixture.store.lease("m-1", None, &app.layers).unwrap();
    let fd = fixture
        .store
        .lease("m", None, &app.layers)
        .unwrap()
        .into_fd();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| fixture.store.wait_lease_end("m"));
        drop(fd);
        waiter.join().unwrap().unwrap();
    });
    assert_eq!(fixture.files("leases").len(), 1);
    drop(other);
}

#[test]
fn waiting_for_a_lease_can_be_given_up() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"a"]]);
    let within = |patience| fixture.store.lease_ends_within("m", patience).unwrap();
    assert!(within(Duration::ZERO), "there is none");
    let held = fixture
        .store
        .lease("m", None, &app.layers)
        .unwrap()
        .into_fd();
    assert!(!within(Duration::ZERO));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| within(Duration::from_hours(1)));
        drop(held);
        assert!(waiter.join().unwrap());
    });
    // Whose end nobody is told of: it is not open for writing.
    let held = fixture
        .store
        .lease("m", None, &app.layers)
        .unwrap()
        .into_fd();
    let name = fixture.files("leases").into_keys().next().unwrap();
    let silent = File::open(fixture.path("leases").join(name)).unwrap();
    drop(held);
    flock(&silent, FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| within(Duration::from_secs(30)));
        drop(silent);
        assert!(waiter.join().unwrap());
    });
    assert_eq!(fixture.files("leases"), BTreeMap::new());
}

#[test]
fn a_lease_on_what_is_gone_is_refused() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    fixture.store.untag(&app).unwrap();
    fixture.store.gc().unwrap();
    assert!(matches!(
        fixture.store.lease("m1", None, &app.layers),
        Err(StoreError::NoLayer(_))
    ));
    // Nor where nobody has merged them yet.
    let bare = fixture.image("bare", &[&[b"content"], &[b"more"]]);
    std::fs::remove_file(fixture.merged_path(&bare)).unwrap();
    drop(fixture.store.lease("m1", None, &bare.layers).unwrap());
    let layer = fixture.path("layers").join(bare.layers[1].0.hex());
    std::fs::remove_dir_all(layer).unwrap();
    assert!(matches!(
        fixture.store.lease("m1", None, &bare.layers),
        Err(StoreError::NoLayer(_))
    ));
    assert!(matches!(
        fixture.store.tag(&bare),
        Err(StoreError::NoLayer(_))
    ));
    assert!(matches!(
        fixture.store.lease("a/b", None, &app.layers),
        Err(StoreError::Name { .. })
    ));
    assert_eq!(fixture.files("leases"), BTreeMap::new());
}

#[test]
fn gc_waits_for_transactions() {
    let fixture = fixture();
    let lock = File::open(fixture.path("lock")).unwrap();
    let transaction = fixture.store.begin().unwrap();
    assert_eq!(
        flock(&lock, FlockOperation::NonBlockingLockExclusive),
        Err(Errno::WOULDBLOCK)
    );
    drop(transaction);
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn a_root_that_cannot_be_read_stops_gc_before_it_touches_anything() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    fixture.store.untag(&app).unwrap();
    let objects = fixture.files("objects");
    for (file, text) in [
        ("refs/x:latest.json", "{"),
        ("containers/c/config.json", r#"{"layers": "all"}"#),
    ] {
        std::fs::create_dir_all(fixture.path(file).parent().unwrap()).unwrap();
        std::fs::write(fixture.path(file), text).unwrap();
        let error = fixture.store.gc().unwrap_err();
        assert!(error.to_string().contains(file), "{error}");
        assert_eq!(fixture.files("objects"), objects);
        std::fs::remove_file(fixture.path(file)).unwrap();
    }
    assert_eq!(fixture.store.gc().unwrap().objects.number, 1);
}

#[test]
fn a_damaged_tree_stops_gc_since_its_objects_are_unknown() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    fixture.image("other", &[&[b"more"]]);
    let tree = fixture
        .path("layers")
        .join(app.layers[0].0.hex())
        .join("tree");
    let mut bytes = std::fs::read(&tree).unwrap();
    let last = bytes.len() - 40;
    bytes[last] ^= 1;
    std::fs::remove_file(&tree).unwrap();
    std::fs::write(&tree, bytes).unwrap();
    assert!(fixture.store.gc().is_err());
    fixture.store.untag(&app).unwrap();
    fixture.store.gc().unwrap();
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
}

#[test]
fn what_a_killed_gc_left_is_finished_by_the_next_and_strays_are_nobodys_business() {
    let fixture = fixture();
    std::fs::create_dir(fixture.path("trash/feed")).unwrap();
    std::fs::write(fixture.path("trash/feed/0"), "x").unwrap();
    std::fs::write(fixture.path("objects/00/notes"), "mine").unwrap();
    fixture.store.gc().unwrap();
    assert_eq!(fixture.files("trash"), BTreeMap::new());
    assert_eq!(
        fixture.files("objects"),
        BTreeMap::from([("00/notes".to_owned(), 4)])
    );
}

#[test]
fn names_move_and_multiply() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    let second = RefRecord {
        reference: Some("other:2".parse().unwrap()),
        ..app.clone()
    };
    let nameless = RefRecord {
        reference: None,
        ..app.clone()
    };
    fixture.store.tag(&second).unwrap();
    fixture.store.tag(&nameless).unwrap();
    fixture.store.untag(&app).unwrap();
    assert_eq!(fixture.store.gc().unwrap().objects.number, 0);
    assert_eq!(
        fixture.store.find_ref(&"other:2".parse().unwrap()).unwrap(),
        Some(second.clone())
    );
    assert_eq!(
        fixture.store.find_ref(&"app".parse().unwrap()).unwrap(),
        None
    );
    assert_eq!(fixture.store.refs().unwrap(), [second, nameless]);
}
