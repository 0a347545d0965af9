//! docker-archives, and what `docker save` writes since 25.0: both forms in one.

use super::*;

#[test]
fn load_tags_every_name_of_a_docker_archive() {
    let layers = [layer("a", "1"), layer("b", "2")];
    let fixture = fixture();
    let loaded = fixture
        .load(&docker_archive(
            &layers,
            &json!(["app:1", "registry.example/app:2"]),
        ))
        .unwrap();
    assert_eq!(
        loaded[0]
            .tags
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["app:1", "registry.example/app:2"]
    );
    assert_eq!(
        fixture.record("app:1").layers,
        fixture.record("registry.example/app:2").layers
    );
    assert_eq!(fixture.record("app:1").manifest, None);
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
}

#[test]
fn load_follows_links_between_layer_tars() {
    // As docker save wrote it up to 24: the second directory's layer.tar is a symbolic link.
    let one = layer("a", "1");
    let mut files = docker_archive(&[one.clone(), one], &json!(["app:1"]));
    files[1] = ("1/layer.tar -> ../0/layer.tar".to_owned(), Vec::new());
    let fixture = fixture();
    fixture.load(&files).unwrap();
    assert_eq!(fixture.record("app:1").layers.len(), 2);
    files[1] = ("1/layer.tar -> ../1/layer.tar".to_owned(), Vec::new());
    assert!(matches!(
        fixture.load(&files),
        Err(ImageError::Missing { .. })
    ));
}

/// What `docker save` writes since 25.0: a layout, and the same images once more in
/// `manifest.json`. `images`: layers, and tags.
fn docker_25(images: &[(&[Vec<u8>], &[&str])]) -> (Layout, Value) {
    let mut layout = Layout::default();
    let mut items = Vec::new();
    for (layers, tags) in images {
        let config = config(layers, "");
        let parts: Vec<_> = layers
            .iter()
            .map(|layer| layout.blob(layer.clone(), "application/vnd.oci.image.layer.v1.tar"))
            .collect();
        let config = layout.blob(config, "application/vnd.oci.image.config.v1+json");
        let manifest = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": parts });
        let manifest = layout.blob(manifest.to_string().into(), OCI_MANIFEST);
        for tag in *tags {
            layout.with(
                manifest.clone(),
                "annotations",
                json!({ "io.containerd.image.name": format!("docker.io/library/{tag}"), "org.opencontainers.image.ref.name": "1" }),
            );
        }
        let path = |blob: &Value| {
            blob["digest"]
                .as_str()
                .unwrap()
                .replace("sha256:", "blobs/sha256/")
        };
        let parts: Vec<_> = parts.iter().map(path).collect();
        items.push(json!({ "Config": path(&config), "RepoTags": tags, "Layers": parts }));
    }
    (layout, items.into())
}

fn with_manifest_json(layout: &Layout, items: &Value) -> Files {
    let mut files = layout.files();
    files.push(("manifest.json".to_owned(), items.to_string().into()));
    files
}

#[test]
fn load_merges_both_forms_of_docker_save() {
    let layers = [layer("a", "1")];
    let (layout, mut items) = docker_25(&[(&layers, &["app:1"])]);
    items[0]["RepoTags"] = json!(["app:1", "other:2"]);
    let fixture = fixture();
    let loaded = fixture.load(&with_manifest_json(&layout, &items)).unwrap();
    assert_eq!(tags(&loaded), [["app:1", "other:2"]]);
    let manifest = layout.manifests[0]["digest"].as_str().unwrap();
    assert_eq!(
        fixture.record("other:2").manifest,
        Some(manifest.parse().unwrap())
    );
}

/// moby#51389: with a tag anywhere in the archive, its index has no image that has none.
#[test]
fn load_adds_images_only_in_manifest_json() {
    let (one, two) = ([layer("a", "1")], [layer("a", "2")]);
    let (layout, items) = docker_25(&[(&one, &["app:1"]), (&two, &[])]);
    let files = with_manifest_json(&layout, &items);
    let loaded = fixture().load(&files).unwrap();
    assert_eq!(tags(&loaded), [vec!["app:1"], vec![]]);
    let id = |layers: &[Vec<u8>]| ImageId(digest(&config(layers, "")));
    assert_eq!(loaded[1].image, id(&two));
}

/// `FROM scratch` with nothing but a configuration: what runs in it comes from volumes.
#[test]
fn load_takes_an_image_without_layers() {
    let fixture = fixture();
    fixture
        .load(&docker_archive(&[], &json!(["empty:1"])))
        .unwrap();
    let record = fixture.record("empty:1");
    assert_eq!(record.layers, []);
    let merged = fixture.store.merged(&[]).unwrap();
    assert_eq!(merged.tree.node_count(), 1);
    let lease = fixture.store.lease("m-1", Some(record.image), &[]);
    assert_eq!(fixture.store.mounts_of(record.image).unwrap(), ["m-1"]);
    drop(lease);
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
    assert_eq!(fixture.store.gc().unwrap().bytes(), 0);
    let tag = fixture.tag("empty:1");
    assert!(fixture.store.untag(&tag).unwrap());
    let freed = fixture.store.gc().unwrap();
    assert_eq!((freed.merged.number, freed.blobs.number), (1, 1));
    fixture.untouched();
}

/// moby#47065: 25.0.0 wrote manifests without layers.
#[test]
fn load_takes_missing_layers_from_manifest_json() {
    let layers = [layer("a", "1"), layer("b", "2")];
    let (mut layout, items) = docker_25(&[(&layers, &["app:1"])]);
    let whole = layout.manifests[0]["digest"].as_str().unwrap();
    let mut manifest: Value =
        serde_json::from_slice(&layout.blobs[&whole.parse().unwrap()]).unwrap();
    manifest["layers"] = json!([]);
    let lacking = layout.blob(manifest.to_string().into(), OCI_MANIFEST);
    for key in ["digest", "size"] {
        layout.manifests[0][key] = lacking[key].clone();
    }
    let fixture = fixture();
    let loaded = fixture.load(&with_manifest_json(&layout, &items)).unwrap();
    assert_eq!(tags(&loaded), [["app:1"]]);
    assert_eq!(
        fixture.record("app:1").layers,
        layers.each_ref().map(|layer| DiffId(digest(layer)))
    );
    assert_eq!(fixture.record("app:1").manifest, None);
}

/// An archive for all platforms, made on another one: there `manifest.json` names the image of
/// that platform.
#[test]
fn load_prefers_the_layout_for_a_name_in_both_forms() {
    let (here, there) = ([layer("a", "here")], [layer("a", "there")]);
    let (mut layout, mut items) = docker_25(&[(&here, &["app:1"]), (&there, &["app:1"])]);
    layout.manifests.truncate(1);
    items = json!([items[1]]);
    let loaded = fixture()
        .load(&with_manifest_json(&layout, &items))
        .unwrap();
    assert_eq!(tags(&loaded), [["app:1"]]);
    assert_eq!(loaded[0].image, ImageId(digest(&config(&here, ""))));
}

#[test]
fn load_checks_the_digest_in_a_config_name() {
    let good = docker_archive(&[layer("a", "1")], &json!(["app:1"]));
    let hex = digest(&good[1].1).hex();
    for name in [
        format!("{hex}.json"),
        format!("blobs/sha256/{hex}"),
        format!("sha256:{hex}"),
    ] {
        let mut files = good.clone();
        files[1].0.clone_from(&name);
        let manifest = json!([{ "Config": name, "Layers": ["0/layer.tar"] }]);
        files[2].1 = manifest.to_string().into();
        let fixture = fixture();
        files[1].1.push(b' ');
        assert!(
            matches!(fixture.refused(&files), ImageError::Digest { name: part, .. } if part == name)
        );
        files[1].1.pop();
        fixture.load(&files).unwrap();
    }
}

/// Its only statement of a platform is the configuration's.
#[test]
fn load_takes_only_an_image_of_the_platform_asked_for() {
    let fixture = fixture();
    let archive = tar(&docker_archive(&[layer("a", "1")], &json!(["app:1"])));
    let path = fixture.file("a.tar", &archive);
    let load = |platform: &str| {
        let options = LoadOptions {
            platforms: &[platform.parse().unwrap()],
            ..LoadOptions::default()
        };
        load_with(&fixture.store, &path, &options)
    };
    assert!(matches!(load("arm64"), Err(ImageError::Platform { .. })));
    fixture.untouched();
    assert_eq!(tags(&load("amd64").unwrap()), [["app:1"]]);
}

#[test]
fn import_sets_what_was_asked_for() {
    let fixture = fixture();
    let path = fixture.file("root.tar", &layer("a", "1"));
    let import = |platform: &str| {
        let changes = ["CMD [\"/a\"]", "ENV A=1", "LABEL b=c"].map(|text| text.parse().unwrap());
        let options = ImportOptions {
            changes: &changes,
            message: "by hand",
            platform: Some(&platform.parse().unwrap()),
            ..ImportOptions::default()
        };
        import_rootfs(
            &fixture.store,
            &std::fs::File::open(&path).unwrap(),
            &options,
        )
    };
    let id = import("linux/arm/v6").unwrap();
    let bytes = fixture.store.read_blob(id.0, 1 << 20).unwrap();
    let config: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(
        config["config"],
        json!({ "Cmd": ["/a"], "Env": ["A=1"], "Labels": { "b": "c" } })
    );
    assert_eq!(config["history"][0]["comment"], "by hand");
    for (field, value) in [("os", "linux"), ("architecture", "arm"), ("variant", "v6")] {
        assert_eq!(config[field], value);
    }
    let tags = fixture.store.tags().unwrap().tags;
    assert_eq!((tags.len(), &tags[0].reference), (1, &None));
    let platform = &tags[0].images[0].platform;
    assert_eq!(oci::show(platform), "linux/arm/v6");
    let error = import("windows/amd64").unwrap_err().to_string();
    assert!(error.contains("windows/amd64"), "{error}");
}
