use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

#[test]
fn publish_stores_a_content_once_by_its_hash() {
    let fixture = fixture();
    let transaction = fixture.store.begin().unwrap();
    let added = put(&transaction, b"hello");
    assert_eq!(
        added,
        Added {
            id: ObjectId::of(b"hello"),
            size: 5,
            outcome: Outcome::Added,
            elf: false
        }
    );
    assert_eq!(put(&transaction, b"hello").outcome, Outcome::AlreadyPresent);
    transaction.publish(&[]).unwrap();

    let id = added.id.to_string();
    let (fan_out, rest) = id.split_at(2);
    assert_eq!(
        fixture.files("objects"),
        BTreeMap::from([(format!("{fan_out}/{rest}"), 5)])
    );
    let path = fixture.object_path(b"hello");
    assert_eq!(std::fs::read(&path).unwrap(), b"hello");
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o444
    );

    let again = fixture.store.begin().unwrap();
    assert_eq!(put(&again, b"hello").outcome, Outcome::AlreadyPresent);
}

#[test]
fn objects_have_their_mode_whatever_the_umask() {
    let fixture = fixture();
    for (umask, contents) in [(0o077, [b"one", b"two"]), (0o022, [b"six", b"ten"])] {
        let before = rustix::process::umask(Mode::from_raw_mode(umask));
        let transaction = fixture.store.begin().unwrap();
        for content in contents {
            put(&transaction, content);
        }
        transaction.publish(&[]).unwrap();
        rustix::process::umask(before);
        for content in contents {
            let meta = std::fs::metadata(fixture.object_path(content)).unwrap();
            assert_eq!(meta.permissions().mode() & 0o7777, 0o444, "{umask:o}");
        }
    }
}

#[test]
fn object_writer_stores_contents_of_every_size() {
    let fixture = fixture();
    let transaction = fixture.store.begin().unwrap();
    let sizes = [
        1,
        3,
        4,
        128 * 1024 - 1,
        128 * 1024,
        128 * 1024 + 1,
        1_000_000,
    ];
    for size in sizes {
        let content = vec![0x5a; size];
        let mut writer = transaction.object_writer();
        for piece in content.chunks(100_000) {
            writer.write_all(piece).unwrap();
        }
        assert_eq!(
            writer.finish().unwrap().id,
            ObjectId::of(&content),
            "{size}"
        );
        // Once more, so that a large one that turns out to be present leaves nothing.
        assert_eq!(put(&transaction, &content).outcome, Outcome::AlreadyPresent);
    }
    transaction.publish(&[]).unwrap();
    for size in sizes {
        assert_eq!(
            std::fs::read(fixture.object_path(&vec![0x5a; size]))
                .unwrap()
                .len(),
            size
        );
    }
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
    assert_eq!(fixture.files("tmp"), BTreeMap::new());
}

#[test]
fn object_writer_hashes_holes_as_zeros_and_keeps_them() {
    let fixture = fixture();
    let transaction = fixture.store.begin().unwrap();
    let mut writer = transaction.object_writer();
    writer.write_all(b"head").unwrap();
    writer.zeros(3 << 20).unwrap();
    writer.write_all(b"middle").unwrap();
    writer.zeros(1 << 20).unwrap();
    let added = writer.finish().unwrap();
    let content = [
        &b"head"[..],
        &vec![0; 3 << 20],
        b"middle",
        &vec![0; 1 << 20],
    ]
    .concat();
    assert_eq!(
        (added.id, added.size),
        (ObjectId::of(&content), content.len() as u64)
    );
    transaction.publish(&[]).unwrap();
    let path = fixture.object_path(&content);
    assert_eq!(std::fs::read(&path).unwrap(), content);
    assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20);
}

#[test]
fn object_writer_detects_elf_across_writes() {
    let fixture = fixture();
    let transaction = fixture.store.begin().unwrap();
    let large = [b"\x7fELF".as_slice(), &vec![1; 200_000]].concat();
    assert!(put(&transaction, b"\x7fELF").elf);
    assert!(put(&transaction, &large).elf);
    assert!(!put(&transaction, b"\x7fEL").elf);
    let mut writer = transaction.object_writer();
    for piece in [&b"\x7fE"[..], b"LF", &vec![2; 200_000]] {
        writer.write_all(piece).unwrap();
    }
    assert!(writer.finish().unwrap().elf);
}

#[test]
fn empty_content_has_no_object() {
    let fixture = fixture();
    let transaction = fixture.store.begin().unwrap();
    let added = put(&transaction, b"");
    assert_eq!((added.outcome, added.object()), (Outcome::Empty, None));
    transaction.publish(&[]).unwrap();
    assert_eq!(fixture.files("objects"), BTreeMap::new());
}

#[test]
fn dropped_transaction_leaves_nothing() {
    let fixture = fixture();
    let transaction = fixture.store.begin().unwrap();
    let diff = put_layer(&transaction, &[b"one", &vec![7; 200_000]]);
    transaction.put_blob(b"{}").unwrap();
    transaction.put_merged(&[diff]).unwrap();
    for place in ["objects", "layers", "merged", "blobs", "refs"] {
        assert_eq!(fixture.files(place), BTreeMap::new(), "{place}");
    }
    drop(transaction);
    assert_eq!(fixture.files("tmp"), BTreeMap::new());
    assert!(fixture.store.layer_tree(diff).unwrap().is_none());
}

#[test]
fn publish_refuses_too_many_layers_before_any_rename() {
    let fixture = fixture();
    let transaction = fixture.store.begin().unwrap();
    let diff = put_layer(&transaction, &[b"one"]);
    let config = transaction.put_blob(b"{}").unwrap();
    let refused = transaction
        .publish(&[tag("app", config, vec![diff; MAX_LAYERS + 1])])
        .unwrap_err();
    assert!(refused.to_string().contains("1001 layers"), "{refused}");
    assert_eq!(fixture.files("objects"), BTreeMap::new());
    let transaction = fixture.store.begin().unwrap();
    put_layer(&transaction, &[b"one"]);
    transaction.put_blob(b"{}").unwrap();
    let most = tag("app", config, vec![diff; MAX_LAYERS]);
    transaction.publish(std::slice::from_ref(&most)).unwrap();
    assert_eq!(fixture.store.tags().unwrap().tags, [most]);
}

#[test]
fn publish_refuses_a_tag_with_missing_parts() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    let nowhere = Sha256Digest::of(b"nowhere");
    let refused = fixture.store.tag(&tag("x", nowhere, layers(&app)));
    assert!(matches!(refused, Err(StoreError::NoBlob(_))));
    let config = app.images[0].config.0;
    let refused = fixture.store.tag(&tag("x", config, vec![DiffId(nowhere)]));
    assert!(matches!(refused, Err(StoreError::NoLayer(_))));
    assert_eq!(fixture.store.tags().unwrap().tags, [app]);
}

#[test]
fn tag_stores_the_longest_names() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    let repository = format!("registry.example/{}", "a/".repeat(118) + "aa");
    assert_eq!(repository.len(), 255);
    let long = named(&app, Some(&format!("{repository}:{}", "t".repeat(128))));
    fixture.store.tag(&long).unwrap();
    let reference = long.reference.as_ref().unwrap();
    assert_eq!(
        fixture.store.find_tag(reference).unwrap(),
        Some(long.clone())
    );
    assert!(fixture.store.untag(&long).unwrap());
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
}

#[test]
fn publish_keeps_an_untagged_image_by_its_id() {
    let fixture = fixture();
    let old = fixture.image("app:1", &[&[b"old"]]);
    fixture.store.tag(&named(&old, Some("app:2"))).unwrap();
    let new = fixture.image("other", &[&[b"new"]]);
    let of_old = || -> Vec<Option<String>> {
        let tags = fixture.store.tags().unwrap().tags.into_iter();
        let tags = tags.filter(|tag| tag.images == old.images);
        tags.map(|tag| tag.reference.map(|name| name.to_string()))
            .collect()
    };
    fixture.store.tag(&named(&new, Some("app:1"))).unwrap();
    assert_eq!(of_old(), [Some("app:2".to_owned())], "it has a name still");
    fixture.store.tag(&named(&new, Some("app:2"))).unwrap();
    assert_eq!(of_old(), [None]);
    fixture.store.gc().unwrap();
    assert!(fixture.object_path(b"old").exists());
    // The same again moves nothing.
    fixture.store.tag(&named(&new, Some("app:2"))).unwrap();
    assert_eq!(of_old(), [None]);
    // With a name again it needs no record without one.
    fixture.store.tag(&named(&old, Some("back"))).unwrap();
    fixture.store.tag(&named(&old, None)).unwrap();
    assert_eq!(of_old(), [Some("back:latest".to_owned())]);
}

#[test]
fn concurrent_publish_of_one_tag_keeps_both_images() {
    let fixture = fixture();
    for round in 0..20_u8 {
        let contents = [[round, b'a'], [round, b'b']];
        let images = contents
            .map(|content| fixture.image(&format!("{}-{round}", content[1]), &[&[&content]]));
        for image in &images {
            fixture.store.untag(image).unwrap();
        }
        std::thread::scope(|scope| {
            for image in &images {
                scope.spawn(|| fixture.store.tag(&named(image, Some("app"))).unwrap());
            }
        });
        let tags = fixture.store.tags().unwrap().tags;
        for image in &images {
            assert!(tags.iter().any(|tag| tag.images == image.images), "{round}");
        }
    }
}

#[test]
fn untag_image_keeps_a_moved_tag() {
    let fixture = fixture();
    let old = fixture.image("app", &[&[b"old"]]);
    let new = fixture.image("new", &[&[b"new"]]);
    let moved = named(&new, Some("app"));
    fixture.store.tag(&moved).unwrap();
    assert!(!fixture.store.untag(&old).unwrap());
    assert_eq!(
        fixture.store.untag_image(old.id().unwrap()).unwrap(),
        [named(&old, None)]
    );
    let name = moved.reference.as_ref().unwrap();
    assert_eq!(fixture.store.find_tag(name).unwrap(), Some(moved.clone()));
}

#[test]
fn merged_rebuilds_a_missing_tree() {
    let fixture = fixture();
    let record = fixture.image("app", &[&[b"below", b"hidden"], &[b"above"]]);
    let merged = fixture.store.merged(&layers(&record)).unwrap();
    let path = fixture
        .path("merged")
        .join(format!("{}.tree-v2", merged.chain.0.hex()));
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    fixture.store.merged(&layers(&record)).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, &bytes[..40]).unwrap();
    fixture.store.merged(&layers(&record)).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    let empty = fixture.store.merged(&[]).unwrap();
    assert_eq!(
        (empty.chain, empty.tree.node_count()),
        (crate::digest::ChainId::NO_LAYERS, 1)
    );
}

#[test]
fn begin_removes_dead_transactions_only() {
    let fixture = fixture();
    let live = fixture.store.begin().unwrap();
    let mut writer = live.object_writer();
    writer.write_all(&vec![1; 300_000]).unwrap();
    std::fs::create_dir_all(fixture.path("tmp/dead/layer-x")).unwrap();
    std::fs::write(fixture.path("tmp/dead/layer-x/tree"), "x").unwrap();
    drop(fixture.store.begin().unwrap());
    assert_eq!(
        fixture.files("tmp").into_values().collect::<Vec<_>>(),
        [300_000]
    );
    writer.finish().unwrap();
    live.publish(&[]).unwrap();
    assert_eq!(fixture.store.check(true).unwrap().objects.number, 1);
}

#[test]
fn json_records_have_golden_bytes() {
    let fixture = fixture();
    let transaction = fixture.store.begin().unwrap();
    let diff = put_layer(&transaction, &[b"content", b"content", b""]);
    let config = transaction.put_blob(b"config").unwrap();
    let manifest = transaction.put_blob(b"manifest").unwrap();
    let blob = transaction.put_blob(b"compressed").unwrap();
    let mut tag = tag("registry.example/team/app:1.0", config, vec![diff]);
    tag.target = Some(Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        digest: manifest,
        size: 8,
    });
    tag.images[0].manifest = Some(manifest);
    tag.images[0].layers[0].blob = Some(Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        digest: blob,
        size: 10,
    });
    transaction.publish(std::slice::from_ref(&tag)).unwrap();
    fixture
        .store
        .pin(
            "container-1",
            PinLife::Permanent,
            "container web",
            &[diff],
            &[config],
        )
        .unwrap();
    let read = |path: &str| std::fs::read_to_string(fixture.path(path)).unwrap();
    let hash = Sha256Digest::of(b"registry.example/team/app:1.0").hex();
    let tree = fixture.store.layer_tree(diff).unwrap().unwrap();
    let digest = ObjectId::from_bytes(tree.digest());
    let expected = GOLDEN
        .replace("DIFF", &diff.to_string())
        .replace("CONFIG", &config.to_string())
        .replace("MANIFEST", &manifest.to_string())
        .replace("BLOB", &blob.to_string())
        .replace("TREE", &digest.to_string());
    let written = [
        read(&format!(
            "refs/registry.example%2Fteam%2Fapp:1.0-{hash}.json"
        )),
        read(&format!("layers/{}/layer.json", diff.0.hex())),
        read("pins/container-1.json"),
    ];
    assert_eq!(written.concat(), expected);
}

/// Version 1 of a tag, a `layer.json` and a pin.
const GOLDEN: &str = r#"{
  "version": 1,
  "reference": "registry.example/team/app:1.0",
  "target": {
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "digest": "MANIFEST",
    "size": 8
  },
  "images": [
    {
      "platform": {
        "os": "linux",
        "architecture": "amd64",
        "variant": ""
      },
      "config": "CONFIG",
      "manifest": "MANIFEST",
      "layers": [
        {
          "diff_id": "DIFF",
          "blob": {
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": "BLOB",
            "size": 10
          }
        }
      ]
    }
  ]
}
{
  "version": 1,
  "diff_id": "DIFF",
  "tree": "TREE",
  "tar_size": 10240,
  "content_size": 14,
  "nodes": 4
}
{
  "version": 1,
  "owner": "container web",
  "layers": [
    "DIFF"
  ],
  "blobs": [
    "CONFIG"
  ]
}
"#;

#[test]
fn concurrent_publish_and_gc_leave_no_damage() {
    let fixture = fixture();
    let contents: Vec<Vec<u8>> = (0..40_u8)
        .map(|n| vec![n; 1000 * usize::from(n) + 1])
        .collect();
    let contents: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
    std::thread::scope(|scope| {
        for name in ["a", "b", "a", "b"] {
            let (fixture, contents) = (&fixture, &contents);
            scope.spawn(move || fixture.image(name, &[contents, &[b"top"]]));
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..10 {
                    fixture.store.gc().unwrap();
                }
            });
        }
    });
    let report = fixture.store.check(true).unwrap();
    assert_eq!(report.problems, []);
    assert_eq!((report.objects.number, report.tags), (41, 2));
    assert_eq!(fixture.store.gc().unwrap().bytes(), 0);
    assert_eq!(
        (fixture.files("tmp"), fixture.files("trash")),
        (BTreeMap::new(), BTreeMap::new())
    );
}

/// With a lower limit than a real load's.
#[test]
fn a_large_transaction_publishes_complete_layers_early() {
    let fixture = fixture();
    let begin = || {
        let mut transaction = fixture.store.begin().unwrap();
        transaction.publish_early_after = 20;
        transaction
    };
    let layers = || {
        fixture
            .files("layers")
            .keys()
            .filter(|name| name.ends_with("/tree-v2"))
            .count()
    };
    let transaction = begin();
    let small = put_layer(&transaction, &[b"ten bytes."]);
    assert_eq!(layers(), 0, "below the limit");
    let large = put_layer(&transaction, &[b"ten more bytes, and more"]);
    assert_eq!(layers(), 2);
    let blob = transaction.put_blob(b"a configuration").unwrap();
    put_layer(&transaction, &[b"small"]);
    assert_eq!(layers(), 2, "counted from the last publishing");
    assert_eq!(fixture.store.tags().unwrap().tags, []);
    // Its pin keeps them.
    fixture.store.gc().unwrap();
    assert_eq!((layers(), fixture.files("objects").len()), (2, 2));
    // A load that was interrupted goes on from them.
    drop(transaction);
    let transaction = begin();
    assert!(transaction.has_layer(small).unwrap() && transaction.has_layer(large).unwrap());
    assert!(
        fixture.store.open_blob(blob).is_err(),
        "published with its layers only"
    );
    let config = transaction.put_blob(b"a configuration").unwrap();
    transaction
        .publish(&[tag("app", config, vec![small, large])])
        .unwrap();
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
    // Another leaves them to gc.
    let transaction = begin();
    put_layer(&transaction, &[b"of a load that is given up"]);
    assert_eq!(layers(), 3);
    drop(transaction);
    fixture.store.gc().unwrap();
    assert_eq!(layers(), 2);
}
