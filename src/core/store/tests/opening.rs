use std::os::unix::fs::{PermissionsExt, chown};

use super::*;

const FORMAT: &str = r#"{
  "version": 2,
  "compat": [],
  "ro-compat": [],
  "incompat": []
}
"#;

#[test]
fn open_or_create_makes_the_documented_layout() {
    let fixture = fixture();
    assert_eq!(
        std::fs::read_to_string(fixture.path("format.json")).unwrap(),
        FORMAT
    );
    assert_eq!(
        std::fs::metadata(fixture.path(""))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777,
        0o700
    );
    let mut names: Vec<_> = std::fs::read_dir(fixture.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    let expected = [
        "blobs",
        "containers",
        "format.json",
        "layers",
        "lock",
        "merged",
        "names",
        "objects",
        "pins",
        "refs",
        "tmp",
        "trash",
        "volumes",
    ];
    assert_eq!(names, expected);
    assert_eq!(
        std::fs::read_dir(fixture.path("objects")).unwrap().count(),
        256
    );
    assert_eq!(fixture.files("tmp"), BTreeMap::new());
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
}

#[test]
fn open_refuses_a_missing_store() {
    let fixture = fixture();
    drop(Store::open_or_create(&fixture.path("")).unwrap());
    drop(Store::open(&fixture.path("")).unwrap());
    let nowhere = Store::open(&fixture.path("objects/00")).unwrap_err();
    assert!(matches!(nowhere, StoreError::NotFound { .. }), "{nowhere}");
    let missing = Store::open(&fixture.path("nothing")).unwrap_err();
    assert!(matches!(missing, StoreError::NotFound { .. }), "{missing}");
}

#[test]
fn concurrent_open_or_create_makes_one_store() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("a/b");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| Store::open_or_create(&root).unwrap());
        }
    });
    assert_eq!(
        Store::open(&root).unwrap().check(true).unwrap().problems,
        []
    );
}

#[test]
fn open_or_create_finishes_an_interrupted_creation() {
    let fixture = fixture();
    std::fs::remove_file(fixture.path("format.json")).unwrap();
    std::fs::remove_dir(fixture.path("objects/7f")).unwrap();
    std::fs::write(fixture.path("tmp/0123456789abcdef"), "{").unwrap();
    let store = Store::open_or_create(&fixture.path("")).unwrap();
    drop(store.begin().unwrap());
    assert_eq!(store.check(true).unwrap().problems, []);
    assert_eq!(fixture.files("tmp"), BTreeMap::new());
}

#[test]
fn open_or_create_refuses_a_foreign_directory() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.tex"), "x").unwrap();
    let error = Store::open_or_create(dir.path()).unwrap_err();
    assert!(error.to_string().contains("thesis.tex"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

fn reopen_with(format: &str) -> Result<Store, StoreError> {
    let fixture = fixture();
    std::fs::write(fixture.path("format.json"), format).unwrap();
    Store::open_or_create(&fixture.path(""))
}

#[test]
fn open_names_an_unknown_version_or_feature() {
    let older = reopen_with(r#"{"version": 1}"#).unwrap_err();
    assert!(
        older.to_string().contains("load the images again"),
        "{older}"
    );
    let newer = reopen_with(r#"{"version": 3}"#).unwrap_err();
    assert!(
        matches!(newer, StoreError::Version { found: 3, .. }),
        "{newer}"
    );
    let incompat = reopen_with(r#"{"version": 2, "incompat": ["packs"]}"#).unwrap_err();
    assert!(incompat.to_string().contains("packs"), "{incompat}");
    assert!(matches!(
        reopen_with("{").unwrap_err(),
        StoreError::Malformed { .. }
    ));
    assert!(reopen_with(r#"{"version": 2, "compat": ["hints"], "more": 1}"#).is_ok());
}

#[test]
fn unknown_ro_compat_feature_makes_the_store_read_only() {
    let fixture = fixture();
    let record = fixture.image("app", &[&[b"content"]]);
    std::fs::write(
        fixture.path("format.json"),
        r#"{"version": 2, "ro-compat": ["quota"]}"#,
    )
    .unwrap();
    let store = Store::open(&fixture.path("")).unwrap();
    assert_eq!(store.tags().unwrap().tags, std::slice::from_ref(&record));
    store.merged(&layers(&record)).unwrap();
    for refused in [
        store.begin().map(drop),
        store.gc().map(drop),
        store.untag(&record).map(drop),
    ] {
        assert!(matches!(
            refused,
            Err(StoreError::Features { readable: true, .. })
        ));
    }
}

#[test]
fn layer_tree_tells_a_newer_format_from_damage() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    let tree = fixture
        .path("layers")
        .join(layers(&app)[0].0.hex())
        .join("tree-v2");
    let mut bytes = std::fs::read(&tree).unwrap();
    for (position, said) in [(8, "newer cowl"), (200, "is damaged")] {
        bytes[position] ^= 4;
        std::fs::remove_file(&tree).unwrap();
        std::fs::write(&tree, &bytes).unwrap();
        let error = fixture.store.layer_tree(layers(&app)[0]).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        bytes[position] ^= 4;
    }
}

/// Root would leave files that the owner cannot read or remove.
#[test]
fn another_users_store_is_read_and_not_changed() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    chown(fixture.path(""), Some(4711), None).unwrap();
    let before = fixture.files("");
    let store = Store::open_or_create(&fixture.path("")).unwrap();
    assert_eq!(store.tags().unwrap().tags, std::slice::from_ref(&app));
    assert_eq!(store.check(true).unwrap().problems, []);
    let layers = layers(&app);
    for refused in [
        store.begin().map(drop),
        store.scratch().map(drop),
        store.gc().map(drop),
        store.untag(&app).map(drop),
        store.pin("container-1", PinLife::Permanent, "", &layers, &[]),
        store.lease("1", None, &layers).map(drop),
    ] {
        assert!(
            matches!(refused, Err(StoreError::OtherOwner { owner: 4711, .. })),
            "{refused:?}"
        );
    }
    assert_eq!(fixture.files(""), before);
}

#[test]
fn no_store_is_made_in_another_users_directory() {
    let dir = tempfile::tempdir().unwrap();
    chown(dir.path(), Some(4711), None).unwrap();
    let refused = Store::open_or_create(dir.path()).unwrap_err();
    assert!(
        matches!(refused, StoreError::OtherOwner { owner: 4711, .. }),
        "{refused}"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
