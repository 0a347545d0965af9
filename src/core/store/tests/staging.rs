use std::io::Read;

use super::*;

/// A stage with one file of each content, not completed.
fn add(stage: &Stage<'_>, contents: &[&[u8]]) -> (DiffId, Vec<u8>) {
    let mut builder = LayerBuilder::new();
    for (number, content) in contents.iter().enumerate() {
        let mut writer = stage.object_writer();
        writer.write_all(content).unwrap();
        let staged = writer.finish().unwrap();
        let kind = Kind::Regular {
            size: content.len() as u64,
            object: Some(staged.id),
            elf: staged.elf,
        };
        builder
            .insert(&[number.to_string().as_bytes()], meta(), kind)
            .unwrap();
    }
    let diff = DiffId(Sha256Digest::of(&contents.concat()));
    (diff, builder.finish(diff).unwrap())
}

#[test]
fn stage_adds_a_layer_with_contents_of_every_size() {
    let fixture = fixture();
    let large = vec![b'l'; 300_000];
    let contents = [&b"small"[..], b"small", b"\x7fELF", &large, &large];
    let transaction = fixture.store.begin().unwrap();
    let diff = transaction
        .stage(|stage| {
            let (diff, tree) = add(stage, &contents);
            stage.settle().unwrap();
            let file = stage.open_object(ObjectId::of(&large)).unwrap();
            let back: Vec<u8> = std::io::BufReader::new(file)
                .bytes()
                .map(Result::unwrap)
                .collect();
            assert_eq!(back, large);
            stage
                .put_layer(diff, tree, 10_240, &canonical(diff, 10_240))
                .unwrap();
            diff
        })
        .unwrap();
    let of_elf = transaction.open_object(ObjectId::of(b"\x7fELF")).unwrap();
    assert_eq!(of_elf.metadata().unwrap().len(), 4);
    assert_eq!(fixture.files("objects"), BTreeMap::new());
    transaction.publish(&[]).unwrap();
    assert_eq!(fixture.files("objects").len(), 3);
    for content in contents {
        assert_eq!(
            std::fs::read(fixture.object_path(content)).unwrap(),
            content
        );
    }
    assert!(fixture.store.begin().unwrap().has_layer(diff).unwrap());
    assert_eq!(fixture.files("tmp"), BTreeMap::new());
}

#[test]
fn stages_add_the_same_contents_at_a_time() {
    let fixture = fixture();
    let shared: Vec<Vec<u8>> = (0..200).map(|n| format!("shared {n}").into()).collect();
    let transaction = fixture.store.begin().unwrap();
    let diffs: Vec<DiffId> = std::thread::scope(|scope| {
        let add_one = |own: usize| {
            let own = format!("own {own}").into_bytes();
            let contents: Vec<&[u8]> = shared.iter().chain([&own]).map(Vec::as_slice).collect();
            let put = |stage: &Stage<'_>| {
                let (diff, tree) = add(stage, &contents);
                stage
                    .put_layer(diff, tree, 10_240, &canonical(diff, 10_240))
                    .unwrap();
                diff
            };
            transaction.stage(put).unwrap()
        };
        let threads: Vec<_> = (0..4)
            .map(|own| scope.spawn(move || add_one(own)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let config = transaction.put_blob(b"a configuration").unwrap();
    transaction.put_merged(&diffs).unwrap();
    transaction.publish(&[tag("app", config, diffs)]).unwrap();
    assert_eq!(fixture.files("objects").len(), 204);
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
}

/// What gc would take from a layer that is still being added must not be published.
#[test]
fn a_stage_keeps_its_objects_until_its_layer_is_complete() {
    let fixture = fixture();
    let mut transaction = fixture.store.begin().unwrap();
    transaction.publish_early_after = 10;
    let diffs = transaction.stage(|slow| {
        let (late, tree) = add(slow, &[b"of the slow layer", b"of both layers"]);
        let quick = transaction.stage(|quick| {
            let (diff, tree) = add(quick, &[b"of the quick layer", b"of both layers"]);
            quick
                .put_layer(diff, tree, 10_240, &canonical(diff, 10_240))
                .unwrap();
            diff
        });
        assert_eq!(
            fixture.files("objects").len(),
            2,
            "those of the quick layer"
        );
        fixture.store.gc().unwrap();
        slow.put_layer(late, tree, 10_240, &canonical(late, 10_240))
            .unwrap();
        vec![quick.unwrap(), late]
    });
    let diffs = diffs.unwrap();
    let config = transaction.put_blob(b"a configuration").unwrap();
    transaction.put_merged(&diffs).unwrap();
    transaction.publish(&[tag("app", config, diffs)]).unwrap();
    assert_eq!(fixture.files("objects").len(), 3);
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
}

#[test]
fn stage_reports_a_content_that_could_not_be_written() {
    let fixture = fixture();
    let transaction = fixture.store.begin().unwrap();
    transaction
        .stage(|stage| {
            for entry in std::fs::read_dir(fixture.path("tmp")).unwrap() {
                std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
            }
            let mut writer = stage.object_writer();
            writer.write_all(b"content").unwrap();
            writer.finish().unwrap();
            let error = stage.settle().unwrap_err();
            assert_eq!(error.errno(), Some(Errno::NOENT), "{error}");
        })
        .unwrap();
}

#[test]
fn stage_discards_a_content_and_heals_a_damaged_one() {
    let fixture = fixture();
    fixture.image("app", &[&[b"content"]]);
    let path = fixture.object_path(b"content");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"other length").unwrap();
    let transaction = fixture.store.begin().unwrap();
    transaction
        .stage(|stage| {
            let (diff, tree) = add(stage, &[b"content"]);
            add(stage, &[b"replaced"]);
            stage.settle().unwrap();
            stage.discard_object(ObjectId::of(b"replaced")).unwrap();
            assert!(stage.open_object(ObjectId::of(b"replaced")).is_err());
            stage
                .put_layer(diff, tree, 10_240, &canonical(diff, 10_240))
                .unwrap();
        })
        .unwrap();
    transaction.publish(&[]).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"content");
    assert_eq!(fixture.files("objects").len(), 1);
}
