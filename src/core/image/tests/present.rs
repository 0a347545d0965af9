//! What the store has already: layers that an archive leaves out, and images that come in again.

use super::*;
use crate::digest::ObjectId;

/// An archive as buildpacks' pack exports it: the first layers are blank, the last is there.
/// `blank`: how the former are named.
fn packed(layers: &[Vec<u8>], blank: [&str; 2]) -> Files {
    let last = layers.last().unwrap();
    let config = config(layers, "");
    let name = format!("/{}.tar", digest(last).hex());
    let manifest = json!([{ "Config": "/config.json", "RepoTags": ["app:1"], "Layers": [blank[0], blank[1], name] }]);
    let mut files = vec![
        ("/config.json".to_owned(), config),
        (name, last.clone()),
        ("manifest.json".to_owned(), manifest.to_string().into()),
    ];
    for name in blank.iter().filter(|name| !name.is_empty()) {
        files.push(((*name).to_owned(), Vec::new()));
    }
    files
}

#[test]
fn load_takes_layers_left_out_by_pack_from_the_store() {
    let layers = ["base-1", "base-2", "app"].map(|name| layer(name, name));
    for blank in [["", ""], ["blank_0", "blank_1"]] {
        let fixture = fixture();
        let archive = packed(&layers, blank);
        let error = fixture.refused(&archive);
        assert!(
            matches!(error, ImageError::LeftOut { number: 1, diff_id } if diff_id.0 == digest(&layers[0])),
            "{error}"
        );
        fixture
            .load(&docker_archive(&layers[..2], &json!(["base:1"])))
            .unwrap();
        fixture.load(&archive).unwrap();
        fixture
            .store
            .untag_name(&"base:1".parse().unwrap())
            .unwrap();
        fixture.store.gc().unwrap();
        assert_eq!(fixture.store.check(true).unwrap().problems, []);
        let expected = layers.each_ref().map(|layer| DiffId(digest(layer)));
        assert_eq!(fixture.record("app:1").layers, expected);
        let merged = fixture.store.merged(&expected).unwrap();
        for name in ["base-1", "base-2", "app"] {
            assert!(merged.tree.resolve(name.as_bytes()).unwrap().is_some());
        }
    }
}

/// Bytes that this process has written to files: a test is a process.
fn written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    let wchar = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    wchar.unwrap().parse().unwrap()
}

#[test]
fn load_and_import_write_nothing_that_is_present() {
    let content: String = std::iter::successors(Some(1_u64), |number| {
        Some(
            number
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1),
        )
    })
    .map(|number| number.to_string())
    .take(50_000)
    .collect();
    let layers = [layer("large", &content)];
    let mut layout = Layout::default();
    let image = layout.image(&layers, "");
    layout.named(image, "app:1");
    for files in [layout.files(), docker_archive(&layers, &json!(["app:1"]))] {
        let fixture = fixture();
        let path = fixture.file("archive", &tar(&files));
        let load = || {
            let before = written();
            load(&fixture.store, &path).unwrap();
            written() - before
        };
        let (first, second) = (load(), load());
        assert!(first > 900_000 && second < first / 20, "{first} {second}");
    }
    let fixture = fixture();
    let rootfs = layers[0].clone();
    let import = |name| {
        let file = fixture.file("root.tar", &rootfs);
        let file = std::fs::File::open(file).unwrap();
        let before = written();
        let options = ImportOptions {
            reference: Some(&name),
            ..ImportOptions::default()
        };
        import_rootfs(&fixture.store, &file, &options).unwrap();
        written() - before
    };
    let (first, second) = (
        import("app:1".parse().unwrap()),
        import("app:2".parse().unwrap()),
    );
    assert!(first > 900_000 && second < first / 20, "{first} {second}");
}

#[test]
fn load_restores_a_missing_object() {
    let layers = [layer("a", "content")];
    let archive = docker_archive(&layers, &json!(["app:1"]));
    let fixture = fixture();
    fixture.load(&archive).unwrap();
    let id = ObjectId::of(b"content").to_string();
    let (first, rest) = id.split_at(2);
    let objects = fixture.dir.path().join("store/objects");
    let object = objects.join(first).join(rest);
    std::fs::remove_file(&object).unwrap();
    fixture.load(&archive).unwrap();
    assert_eq!(std::fs::read(object).unwrap(), b"content");
}

#[test]
fn load_checks_the_bytes_of_a_layer_it_has() {
    let fixture = fixture();
    let mut files = docker_archive(&[layer("a", "1")], &json!(["app:1"]));
    fixture.load(&files).unwrap();
    let other = layer("a", "2");
    files[0].1.clone_from(&other);
    assert!(matches!(
        fixture.load(&files),
        Err(ImageError::DiffId { found, .. }) if found.0 == digest(&other)
    ));
}

#[test]
fn load_tags_every_present_platform() {
    let mut layout = Layout::default();
    let here = oci::host_architecture();
    let contents = ["s390x", here];
    let manifests = contents.map(|architecture| {
        let mut image = layout.image(&[layer("a", architecture)], architecture);
        image["platform"] = json!({ "os": "linux", "architecture": architecture });
        image
    });
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
    let index = layout.blob(index.to_string().into(), OCI_INDEX);
    layout.named(index.clone(), "app:1");
    let fixture = fixture();
    let loaded = fixture.load(&layout.files()).unwrap();
    let id = |content: &str| ImageId(digest(&config(&[layer("a", content)], content)));
    assert_eq!(loaded[0].image, id(here));
    let tag = fixture.tag("app:1");
    let images: Vec<ImageId> = tag.images.iter().map(|image| image.config).collect();
    assert_eq!(images, [id(here), id("s390x")], "this machine's first");
    let target = tag.target.unwrap();
    assert_eq!(target.digest.to_string(), index["digest"].as_str().unwrap());
    assert_eq!(target.media_type, OCI_INDEX);
    fixture.store.gc().unwrap();
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
    for image in &tag.images {
        fixture.store.merged(&image.diff_ids()).unwrap();
    }
}

#[test]
fn import_publishes_the_recipe_of_its_layer() {
    let fixture = fixture();
    let rootfs = layer("a", "content");
    fixture.import(&rootfs, "app:1").unwrap();
    let diff_id = DiffId(digest(&rootfs));
    let tree = fixture.store.layer_tree(diff_id).unwrap().unwrap();
    let mut recipe = Vec::new();
    let mut file = fixture.store.layer_recipe(diff_id).unwrap().unwrap();
    std::io::Read::read_to_end(&mut file, &mut recipe).unwrap();
    let recipe = crate::recipe::Recipe::open(&recipe).unwrap();
    let mut tar = Vec::new();
    crate::layer::restore(&recipe, &tree, &fixture.store, &mut tar).unwrap();
    assert_eq!(tar, rootfs);
}

/// Each file has a block of header, one of content, and in the tree's table an id of 32 bytes.
#[test]
fn import_keeps_recipes_small_on_the_disk() {
    let fixture = fixture();
    let files: Files = (0..1_000)
        .map(|number| (format!("etc/{number}.conf"), format!("{number}").into()))
        .rev()
        .collect();
    let rootfs = tar(&files);
    fixture.import(&rootfs, "app:1").unwrap();
    let directory = format!("store/layers/{}", digest(&rootfs).hex());
    let recipe = fixture.dir.path().join(directory).join("recipe-v2");
    let size = std::fs::metadata(recipe).unwrap().len();
    assert!(size * 1000 <= rootfs.len() as u64 * 15, "{size}");
    let mut restored = Vec::new();
    let diff_id = DiffId(digest(&rootfs));
    restore_layer(&fixture.store, diff_id, &mut restored).unwrap();
    assert!(restored == rootfs, "other bytes");
}

/// For a look at trees: they are those of a load, and nothing else is kept. Contents that are in no
/// tree, of a layer that replaces more of its own files than its recipe takes in, are there all the
/// same; so much is replaced that a recipe of 32 MiB has no place for it.
#[test]
fn load_of_trees_alone_keeps_no_contents() {
    let large = "x".repeat((32 << 20) + 1);
    let replaced: Files = vec![
        ("large".to_owned(), large.clone().into()),
        ("large".to_owned(), b"small".to_vec()),
    ];
    let layers = [layer("a", "content"), tar(&replaced)];
    let mut layout = Layout::default();
    let image = layout.image(&layers, "");
    layout.named(image, "app:1");
    let fixture = fixture();
    let path = fixture.file("archive.tar", &tar(&layout.files()));
    let scratch = fixture.dir.path().join("scratch");
    let scratch = Store::open_or_create_scratch(&scratch).unwrap();
    let options = LoadOptions {
        only_trees: true,
        ..LoadOptions::default()
    };
    let loaded = load_with(&scratch, &path, &options).unwrap();
    assert_eq!(loaded, load(&fixture.store, &path).unwrap());
    let layers = layers.each_ref().map(|layer| DiffId(digest(layer)));
    for diff in layers {
        let tree = |store: &Store| {
            let tree = store.layer_tree(diff).unwrap().unwrap();
            (tree.digest(), store.layer_info(diff).unwrap())
        };
        assert_eq!(tree(&scratch), tree(&fixture.store));
    }
    let large = ObjectId::of(large.as_bytes());
    assert_eq!(
        scratch
            .open_object(large)
            .unwrap()
            .metadata()
            .unwrap()
            .len(),
        (32 << 20) + 1
    );
    assert!(scratch.open_object(ObjectId::of(b"content")).is_err());
    let [first, _] = fixture.record("app:1").blobs[..2] else {
        panic!()
    };
    assert!(
        scratch.read_blob(first, 1 << 20).is_err(),
        "the compressed layer"
    );
    // Its digests are checked all the same.
    let mut files = layout.files();
    let place = files
        .iter()
        .position(|(_, bytes)| bytes.starts_with(b"\x1f\x8b"))
        .unwrap();
    *files[place].1.last_mut().unwrap() ^= 1;
    let path = fixture.file("damaged.tar", &tar(&files));
    assert!(load_with(&scratch, &path, &options).is_err());
}
