//! Images in the store: by name, by id, from standard input, many at once.

use std::io::Read;

use super::*;

#[test]
fn load_lists_a_nameless_image_until_it_is_tagged() {
    let layers = [layer("a", "1")];
    let fixture = fixture();
    let loaded = fixture
        .load(&docker_archive(&layers, &Value::Null))
        .unwrap();
    assert!(loaded[0].tags.is_empty());
    assert_eq!(fixture.store.tags().unwrap().tags[0].reference, None);
    fixture
        .load(&docker_archive(&layers, &json!(["app:1"])))
        .unwrap();
    fixture.load(&docker_archive(&layers, &json!([]))).unwrap();
    let names: Vec<_> = fixture
        .store
        .tags()
        .unwrap()
        .tags
        .into_iter()
        .map(|record| record.reference.map(|name| name.to_string()))
        .collect();
    assert_eq!(names, [Some("app:1".to_owned())]);
}

/// Two images of one layout, one of them with two names, and one that has none: what each word
/// means, and that no layer of another image is read.
#[test]
fn load_takes_only_the_image_that_is_asked_for() {
    let layers = ["1", "2", "3"].map(|content| [layer("a", content)]);
    let ids = layers
        .each_ref()
        .map(|layers| ImageId(digest(&config(layers, ""))));
    let mut layout = Layout::default();
    let [one, two, three] = layers.each_ref().map(|layers| layout.image(layers, ""));
    let manifest = one["digest"].as_str().unwrap().to_owned();
    layout.named(one.clone(), "app:1");
    layout.named(one, "app:old");
    layout.named(two, "host.example:5000/app:1");
    layout.manifests.push(three);
    let archive = tar(&layout.files());
    let load = |wanted: &str| {
        let fixture = fixture();
        let path = fixture.file("all.tar", &archive);
        let options = LoadOptions {
            image: Some(wanted),
            ..LoadOptions::default()
        };
        let loaded = load_with(&fixture.store, &path, &options)?;
        let layers = std::fs::read_dir(fixture.store.root().join("layers"));
        assert_eq!(layers.unwrap().count(), 1, "{wanted}");
        Ok::<_, ImageError>(loaded.iter().map(|image| image.image).collect::<Vec<_>>())
    };
    let hex = |at: usize| ids[at].0.hex();
    for (wanted, at) in [
        ("app:1", 0),
        ("docker.io/library/app:1", 0),
        ("app:old", 0),
        ("old", 0),
        ("host.example:5000/app:1", 1),
        (&hex(1), 1),
        (hex(2).get(..12).unwrap(), 2),
        (&ids[2].to_string(), 2),
        // Beside a digest a tag says nothing.
        (&format!("app@{manifest}"), 0),
        (&format!("app:none@{}", ids[0]), 0),
    ] {
        assert_eq!(load(wanted).unwrap(), [ids[at]], "{wanted}");
    }
    let refused = |wanted| load(wanted).unwrap_err().to_string();
    assert_eq!(
        refused("1"),
        "\"1\" is several images of the archive: app:1, host.example:5000/app:1"
    );
    let all = format!(
        "app:1, app:old, host.example:5000/app:1, {}",
        hex(2).get(..12).unwrap()
    );
    let of_others = [format!("other@{manifest}"), format!("app@{}", ids[1])];
    let nothing = ["app", "nothing", "app:2", "zz", ""].into_iter();
    for none in nothing.chain(of_others.iter().map(String::as_str)) {
        let expected = format!("the archive has no image {none:?}, only these: {all}");
        assert_eq!(refused(none), expected);
    }
}

/// As Docker and podman do: `<none>` in their lists.
#[test]
fn load_keeps_an_untagged_image_by_its_id() {
    let fixture = fixture();
    let load = |content: &str, tags: Value| {
        let archive = docker_archive(&[layer("a", content)], &tags);
        fixture.load(&archive).unwrap().remove(0).image
    };
    let names = || -> Vec<(ImageId, Option<String>)> {
        let mut tags = fixture.store.tags().unwrap().tags;
        tags.sort_by(|a, b| a.reference.cmp(&b.reference));
        let name = |tag: &Tag| tag.reference.as_ref().map(ToString::to_string);
        tags.iter()
            .map(|tag| (tag.id().unwrap(), name(tag)))
            .collect()
    };
    let named = |name: &str| Some(name.to_owned());
    let one = load("1", json!(["app:1", "app:2"]));
    let two = load("2", json!(["app:1"]));
    assert_eq!(names(), [(two, named("app:1")), (one, named("app:2"))]);
    let three = load("3", json!(["app:1", "app:2"]));
    let mut listed = names();
    listed.sort_by_key(|(image, name)| (name.clone(), *image != one));
    let kept = [(one, None), (two, None)];
    let held = [(three, named("app:1")), (three, named("app:2"))];
    assert_eq!(listed, [kept, held].concat());
    fixture.store.gc().unwrap();
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
    // The same again moves no name; one of them named again needs its id no more.
    load("3", json!(["app:1", "app:2"]));
    load("1", json!(["app:3"]));
    assert_eq!(names().iter().filter(|(_, name)| name.is_none()).count(), 1);
    let rootfs = layer("a", "4");
    fixture.import(&rootfs, "app:3").unwrap();
    assert!(names().contains(&(one, None)));
}

/// Go's archive/tar, GNU tar and Python's tarfile end at the last whole block as well.
#[test]
fn import_takes_a_tar_without_its_end_and_save_gives_it_back() {
    let whole = layer("etc/motd", "hello");
    let fixture = fixture();
    for length in [1024, 1536] {
        let tar = &whole[..length];
        fixture.import(tar, "mine").unwrap();
        let diff_id = fixture.record("mine:latest").layers[0];
        assert_eq!(diff_id, DiffId(digest(tar)));
        let mut restored = Vec::new();
        restore_layer(&fixture.store, diff_id, &mut restored).unwrap();
        assert!(restored == tar, "{length} bytes");
    }
}

/// As a shell's group of commands leaves it that has read a line of the file already.
#[test]
fn load_reads_from_the_current_position() {
    let archive = tar(&docker_archive(&[layer("a", "1")], &json!(["app:1"])));
    let fixture = fixture();
    let path = fixture.file("archive", &[b"a line\n", archive.as_slice()].concat());
    let mut file = std::fs::File::open(path).unwrap();
    file.read_exact(&mut [0; 7]).unwrap();
    let loaded = load_file(
        &fixture.store,
        file,
        "input".as_ref(),
        &LoadOptions::default(),
    )
    .unwrap();
    assert_eq!(tags(&loaded), [["app:1"]]);
}

#[test]
fn load_runs_beside_itself_and_gc() {
    let fixture = fixture();
    let layers: Vec<_> = (0..5)
        .map(|n| layer(&format!("dir/{n}"), &"x".repeat(n * 100_000)))
        .collect();
    let path = fixture.file("a.tar", &tar(&docker_archive(&layers, &json!(["app:1"]))));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| load(&fixture.store, &path).unwrap());
        }
        scope.spawn(|| fixture.store.gc().unwrap());
    });
    let report = fixture.store.check(true).unwrap();
    assert_eq!(
        (report.problems, report.transactions, report.objects.number),
        (vec![], 0, 4)
    );
}

#[test]
fn import_makes_an_image_of_a_root_file_system() {
    let fixture = fixture();
    let rootfs = layer("etc/motd", "hello");
    let id = fixture.import(&gzip(&rootfs), "mine").unwrap();
    let record = fixture.record("mine:latest");
    assert_eq!(
        (record.image, record.layers.clone()),
        (id, vec![DiffId(digest(&rootfs))])
    );
    let config = ImageConfig::from_slice(&fixture.store.read_blob(id.0, 1 << 20).unwrap()).unwrap();
    assert_eq!(
        (
            config.architecture.as_str(),
            config.rootfs.diff_ids,
            config.history.len()
        ),
        (oci::host_architecture(), record.layers, 1)
    );
    assert_eq!(config.created, config.history[0].created);

    let cut = fixture.import(&rootfs[..515], "other").unwrap_err();
    assert!(cut.to_string().contains("cut off"), "{cut}");
    let text = fixture
        .import("hello\n".repeat(1000).as_bytes(), "other")
        .unwrap_err();
    assert!(text.to_string().starts_with("not a tar archive"), "{text}");
    let empty = fixture.import(b"", "other").unwrap_err();
    assert!(empty.to_string().contains("it is empty"), "{empty}");
    let other: Reference = "other".parse().unwrap();
    assert_eq!(fixture.store.find_tag(&other).unwrap(), None);
}
