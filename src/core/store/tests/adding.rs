use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

#[test]
fn a_content_is_one_file_named_by_its_hash() {
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
fn contents_of_every_size_arrive_whole() {
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
fn holes_are_hashed_as_zeros_and_stay_holes() {
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
fn elf_is_told_by_the_first_four_bytes_however_they_arrive() {
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
fn the_empty_content_has_no_object() {
    let fixture = fixture();
    let transaction = fixture.store.begin().unwrap();
    let added = put(&transaction, b"");
    assert_eq!((added.outcome, added.object()), (Outcome::Empty, None));
    transaction.publish(&[]).unwrap();
    assert_eq!(fixture.files("objects"), BTreeMap::new());
}

#[test]
fn nothing_is_visible_before_the_publish_and_nothing_left_without_one() {
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
fn a_tag_that_cannot_be_written_stops_the_publish_before_it_begins() {
    let fixture = fixture();
    let transaction = fixture.store.begin().unwrap();
    let diff = put_layer(&transaction, &[b"one"]);
    let name = format!("{}:{}", "a/".repeat(90) + "a", "t".repeat(120));
    let refused = transaction
        .publish(&[record(&name, Sha256Digest::of(b""), vec![diff])])
        .unwrap_err();
    assert!(matches!(refused, StoreError::Name { .. }), "{refused}");
    assert_eq!(fixture.files("objects"), BTreeMap::new());
}

#[test]
fn an_image_that_loses_its_last_name_to_another_stays_by_its_id() {
    let fixture = fixture();
    let old = fixture.image("app:1", &[&[b"old"]]);
    let second = RefRecord {
        reference: Some("app:2".parse().unwrap()),
        ..old.clone()
    };
    fixture.store.tag(&second).unwrap();
    let new = fixture.image("other", &[&[b"new"]]);
    let named = |name: &str| RefRecord {
        reference: Some(name.parse().unwrap()),
        ..new.clone()
    };
    fixture.store.tag(&named("app:1")).unwrap();
    let of_old = || -> Vec<Option<String>> {
        let records = fixture.store.refs().unwrap().into_iter();
        let records = records.filter(|record| record.image == old.image);
        records
            .map(|record| record.reference.map(|name| name.to_string()))
            .collect()
    };
    assert_eq!(of_old(), [Some("app:2".to_owned())], "it has a name still");
    fixture.store.tag(&named("app:2")).unwrap();
    assert_eq!(of_old(), [None]);
    fixture.store.gc().unwrap();
    assert!(fixture.object_path(b"old").exists());
    // The same again moves nothing.
    fixture.store.tag(&named("app:2")).unwrap();
    assert_eq!(of_old(), [None]);
}

#[test]
fn a_damaged_object_is_replaced_when_it_is_added_again() {
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
fn rot_of_the_same_size_is_found_and_replaced_by_who_trusts_hashes_only() {
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
fn a_damaged_layer_is_replaced_and_a_sound_one_kept() {
    let fixture = fixture();
    let record = fixture.image("app", &[&[b"content"]]);
    let tree = fixture
        .path("layers")
        .join(record.layers[0].0.hex())
        .join("tree");
    let sound = std::fs::read(&tree).unwrap();
    let inode = std::fs::metadata(&tree).unwrap().ino();
    fixture.image("app", &[&[b"content"]]);
    assert_eq!(std::fs::metadata(&tree).unwrap().ino(), inode);
    std::fs::remove_file(&tree).unwrap();
    std::fs::write(&tree, &sound[..sound.len() - 1]).unwrap();
    fixture.image("app", &[&[b"content"]]);
    assert_eq!(std::fs::read(&tree).unwrap(), sound);
}

#[test]
fn the_merged_tree_is_a_cache() {
    let fixture = fixture();
    let record = fixture.image("app", &[&[b"below", b"hidden"], &[b"above"]]);
    let merged = fixture.store.merged(&record.layers).unwrap();
    let path = fixture
        .path("merged")
        .join(format!("{}.tree", merged.chain.0.hex()));
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    fixture.store.merged(&record.layers).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, &bytes[..40]).unwrap();
    fixture.store.merged(&record.layers).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert!(matches!(
        fixture.store.merged(&[]),
        Err(StoreError::NoLayers)
    ));
}

#[test]
fn what_dead_transactions_left_goes_and_what_live_ones_write_stays() {
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
fn json_files_are_as_published() {
    let fixture = fixture();
    let record = fixture.image(
        "registry.example/team/app:1.0",
        &[&[b"content", b"content", b""]],
    );
    let (diff, image) = (record.layers[0], record.image);
    let text = std::fs::read_to_string(fixture.path("refs/registry.example%2Fteam%2Fapp:1.0.json"))
        .unwrap();
    let expected = format!(
        "{{\n  \"reference\": \"registry.example/team/app:1.0\",\n  \"image\": \"{image}\",\n  \"manifest\": null,\n  \
         \"layers\": [\n    \"{diff}\"\n  ],\n  \"blobs\": [\n    \"{image}\"\n  ]\n}}\n"
    );
    assert_eq!(text, expected);
    let text =
        std::fs::read_to_string(fixture.path("layers").join(diff.0.hex()).join("layer.json"))
            .unwrap();
    let expected = format!(
        "{{\n  \"diff_id\": \"{diff}\",\n  \"tar_size\": 10240,\n  \"content_size\": 14,\n  \"nodes\": 4\n}}\n"
    );
    assert_eq!(text, expected);
}

#[test]
fn many_at_once_add_the_same_image_while_gc_runs() {
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
    assert_eq!((report.objects.number, report.refs), (41, 2));
    assert_eq!(fixture.store.gc().unwrap().bytes(), 0);
    assert_eq!(
        (fixture.files("tmp"), fixture.files("trash")),
        (BTreeMap::new(), BTreeMap::new())
    );
}
