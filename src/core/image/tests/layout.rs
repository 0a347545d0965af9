//! OCI layouts.

use super::*;
use crate::digest::ObjectId;

#[test]
fn load_takes_a_layout_as_tar_gzip_and_directory() {
    let layers = [layer("etc/motd", "hello"), layer("etc/.wh.motd", "")];
    let mut layout = Layout::default();
    let image = layout.image(&layers, "");
    layout.named(image.clone(), "app:1");
    let files = layout.files();
    let fixture = fixture();
    let paths = [
        fixture.file("a.tar", &tar(&files)),
        fixture.file("b.tar.gz", &gzip(&tar(&files))),
        fixture.dir.path().join("layout"),
    ];
    for (name, bytes) in &files {
        fixture.file(&format!("layout/{name}"), bytes);
    }
    let id = ImageId(digest(&config(&layers, "")));
    for path in paths {
        let loaded = load(&fixture.store, &path).unwrap();
        assert_eq!(
            loaded,
            [Loaded {
                image: id,
                platform: fixture.tag("app:1").images[0].platform.clone(),
                others: Vec::new(),
                tags: vec!["app:1".parse().unwrap()]
            }],
            "{}",
            path.display()
        );
    }
    let record = fixture.record("app:1");
    assert_eq!(
        record.layers,
        layers.each_ref().map(|layer| DiffId(digest(layer)))
    );
    assert_eq!(
        record.manifest,
        Some(image["digest"].as_str().unwrap().parse().unwrap())
    );
    // Configuration, manifest, two layers as they came, each with the bytes it came with.
    assert_eq!(record.blobs.len(), 4);
    for blob in &record.blobs {
        assert_eq!(
            fixture.store.read_blob(*blob, 1 << 20).unwrap(),
            layout.blobs[blob]
        );
    }
    let merged = fixture.store.merged(&record.layers).unwrap();
    assert!(merged.tree.resolve(b"etc").unwrap().is_some());
    assert!(merged.tree.resolve(b"etc/motd").unwrap().is_none());
    assert_eq!(
        fixture.store.objects_of(&record.layers).unwrap(),
        BTreeMap::from([(ObjectId::of(b"hello"), 5)])
    );
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
}

#[test]
fn load_follows_symlinks_within_a_layout_directory() {
    let mut layout = Layout::default();
    let image = layout.image(&[layer("a", "1")], "");
    layout.named(image, "app:1");
    let fixture = fixture();
    for (name, bytes) in layout.files() {
        fixture.file(&format!("layout/{name}"), &bytes);
    }
    let directory = fixture.dir.path().join("layout");
    let moved = |to: &str| {
        let index = directory.join("index.json");
        std::fs::rename(&index, directory.join(to)).unwrap();
        std::os::unix::fs::symlink(to, &index).unwrap();
    };
    moved("blobs/index");
    assert_eq!(
        tags(&load(&fixture.store, &directory).unwrap()),
        [["app:1"]]
    );
    std::fs::rename(directory.join("blobs/index"), directory.join("index.json")).unwrap();
    moved("../index");
    let error = load(&fixture.store, &directory).unwrap_err().to_string();
    assert!(
        error.contains("index.json") && error.contains("symbolic link"),
        "{error}"
    );
}

#[test]
fn load_keeps_no_blob_of_an_uncompressed_layer() {
    let layers = [layer("a", "1")];
    let mut layout = Layout::default();
    let config = layout.blob(
        config(&layers, ""),
        "application/vnd.oci.image.config.v1+json",
    );
    let plain = layout.blob(layers[0].clone(), "application/vnd.oci.image.layer.v1.tar");
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [plain] });
    let manifest = layout.blob(manifest.to_string().into(), OCI_MANIFEST);
    layout.named(manifest, "app:1");
    let fixture = fixture();
    fixture.load(&layout.files()).unwrap();
    assert_eq!(fixture.record("app:1").blobs.len(), 2);
}

#[test]
fn load_joins_a_bare_ref_name_to_the_file_name() {
    let mut layout = Layout::default();
    for tag in ["v1", "v2"] {
        let image = layout.image(&[layer("a", tag)], tag);
        layout.named(image, tag);
    }
    let fixture = fixture();
    let path = fixture.file("my-app.tar.gz", &gzip(&tar(&layout.files())));
    let loaded = load(&fixture.store, &path).unwrap();
    assert_eq!(
        loaded
            .iter()
            .map(|image| image.tags[0].to_string())
            .collect::<Vec<_>>(),
        ["my-app:v1", "my-app:v2"]
    );
    // Not a name that an image could have.
    let path = fixture.file("My App.tar", &tar(&layout.files()));
    assert!(
        load(&fixture.store, &path)
            .unwrap()
            .iter()
            .all(|image| image.tags.is_empty())
    );
}

#[test]
fn load_picks_the_host_platform_of_an_index() {
    let here = oci::host_architecture();
    let mut layout = Layout::default();
    let image = layout.image(&[layer("a", "here")], "here");
    let absent = json!({ "mediaType": OCI_MANIFEST, "digest": digest(b"absent"), "size": 6 });
    let with = |mut descriptor: Value, os: &str, architecture: &str, variant: &str| {
        descriptor["platform"] =
            json!({ "os": os, "architecture": architecture, "variant": variant });
        descriptor
    };
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        with(absent.clone(), "linux", "s390x", ""),
        with(absent.clone(), "linux", here, "v9"),
        with(image, "linux", here, ""),
        with(absent.clone(), "unknown", "unknown", ""),
    ]});
    let index = layout.blob(index.to_string().into(), OCI_INDEX);
    layout.named(index, "app:1");
    let fixture = fixture();
    let loaded = fixture.load(&layout.files()).unwrap();
    assert_eq!(
        loaded[0].image,
        ImageId(digest(&config(&[layer("a", "here")], "here")))
    );

    let manifests = vec![
        with(absent.clone(), "linux", "s390x", ""),
        with(absent, "windows", here, ""),
    ];
    let layout = Layout {
        manifests,
        ..Layout::default()
    };
    assert!(matches!(
        fixture.load(&layout.files()),
        Err(ImageError::Missing { .. })
    ));
}

#[test]
fn load_takes_only_the_platforms_asked_for() {
    let mut layout = Layout::default();
    let mut images = Vec::new();
    for architecture in ["amd64", "arm64", "s390x"] {
        let mut image = layout.image(&[layer("a", architecture)], architecture);
        image["platform"] = json!({ "os": "linux", "architecture": architecture });
        images.push(image);
    }
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": images });
    let index = layout.blob(index.to_string().into(), OCI_INDEX);
    layout.named(index, "app:1");
    let fixture = fixture();
    let path = fixture.file("a.tar", &tar(&layout.files()));
    let load = |platforms: &[&str]| {
        let platforms: Vec<PlatformName> = platforms.iter().map(|n| n.parse().unwrap()).collect();
        let options = LoadOptions {
            platforms: &platforms,
            ..LoadOptions::default()
        };
        load_with(&fixture.store, &path, &options)
    };
    for (wanted, comments) in [
        (&["arm64"][..], &["arm64"][..]),
        (&["linux/s390x", "linux/x86_64"], &["amd64", "s390x"]),
        // neither of which need be for this host
        (&["s390x", "arm64"], &["arm64", "s390x"]),
    ] {
        load(wanted).unwrap();
        let tag = fixture.tag("app:1");
        let mut ids: Vec<_> = tag.images.iter().map(|image| image.config).collect();
        ids.sort();
        let config = |comment: &&str| ImageId(digest(&config(&[layer("a", comment)], comment)));
        let mut expected: Vec<_> = comments.iter().map(config).collect();
        expected.sort();
        assert_eq!(ids, expected, "{wanted:?}");
        assert_eq!(tag.target.unwrap().media_type, OCI_MANIFEST, "{wanted:?}");
        fixture.store.untag_image(tag.images[0].config).unwrap();
        fixture.store.gc().unwrap();
    }
    let error = load(&["linux/riscv64"]).unwrap_err().to_string();
    assert_eq!(
        error,
        "the archive has no image for linux/riscv64, only for linux/amd64, linux/arm64, linux/s390x"
    );
    fixture.untouched();
}

#[test]
fn load_takes_the_only_present_platform() {
    let mut layout = Layout::default();
    let image = layout.image(&[layer("a", "elsewhere")], "elsewhere");
    let platform = |mut descriptor: Value, architecture: &str| {
        descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
        descriptor
    };
    let absent = json!({ "mediaType": OCI_MANIFEST, "digest": digest(b"absent"), "size": 6 });
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        platform(absent, oci::host_architecture()),
        platform(image, "s390x"),
    ]});
    let index = layout.blob(index.to_string().into(), OCI_INDEX);
    layout.named(index, "app:1");
    let loaded = fixture().load(&layout.files()).unwrap();
    assert_eq!(tags(&loaded), [["app:1"]]);
}

#[test]
fn load_skips_a_platform_without_its_layers() {
    let mut layout = Layout::default();
    let hollow = layout.image(&[layer("a", "hollow")], "hollow");
    let gone = digest(&gzip(&layer("a", "hollow")));
    assert!(layout.blobs.remove(&gone).is_some());
    let image = layout.image(&[layer("a", "whole")], "whole");
    let architectures = [oci::host_architecture(), "s390x"];
    let manifests = [hollow, image].into_iter().zip(architectures);
    let manifests: Vec<Value> = manifests
        .map(|(mut descriptor, architecture)| {
            descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
            descriptor
        })
        .collect();
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
    let index = layout.blob(index.to_string().into(), OCI_INDEX);
    layout.named(index, "app:1");
    let loaded = fixture().load(&layout.files()).unwrap();
    let whole = ImageId(digest(&config(&[layer("a", "whole")], "whole")));
    assert_eq!(loaded[0].image, whole);
}

/// Docker gives each image its platform, and one that has no tag no name.
#[test]
fn load_keeps_nameless_images_of_one_platform_apart() {
    let mut layout = Layout::default();
    let platform = json!({ "os": "linux", "architecture": oci::host_architecture() });
    for content in ["1", "2"] {
        let image = layout.image(&[layer("a", content)], content);
        layout.with(image, "platform", platform.clone());
    }
    let loaded = fixture().load(&layout.files()).unwrap();
    assert_eq!(tags(&loaded), [vec![""; 0], vec![]]);
}

/// An artifact's manifest: a descriptor of it. `more` goes into the manifest.
fn artifact(layout: &mut Layout, config_type: &str, layer_type: &str, more: &Value) -> Value {
    let config = layout.blob(config(&[layer("a", "1")], "signed"), config_type);
    let part = layout.blob(b"{\"signed\": true}".to_vec(), layer_type);
    let mut manifest = json!({ "schemaVersion": 2, "config": config, "layers": [part] });
    for (key, value) in more.as_object().unwrap() {
        manifest[key] = value.clone();
    }
    layout.blob(manifest.to_string().into(), OCI_MANIFEST)
}

/// Signatures of cosign, attestations of BuildKit, and what image-spec 1.1 calls artifacts.
const ARTIFACTS: [(&str, &str, &str); 4] = [
    (
        "application/vnd.oci.empty.v1+json",
        "application/vnd.example",
        "",
    ),
    (
        "application/vnd.in-toto+json",
        "application/vnd.in-toto+json",
        "",
    ),
    (
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.dev.cosign.simplesigning.v1+json",
        "",
    ),
    (
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.example.kind",
    ),
];

#[test]
fn load_skips_artifacts_beside_an_image() {
    for (config_type, layer_type, kind) in ARTIFACTS {
        for at in 0..2 {
            let mut layout = Layout::default();
            let image = layout.image(&[layer("a", "1")], "");
            layout.named(image, "app:1");
            let more = json!({ "artifactType": kind });
            let other = artifact(&mut layout, config_type, layer_type, &more);
            layout.manifests.insert(at, other.clone());
            let loaded = fixture().load(&layout.files()).unwrap();
            assert_eq!(tags(&loaded), [["app:1"]], "{config_type} {layer_type}");

            layout.manifests = vec![other];
            assert!(matches!(
                fixture().refused(&layout.files()),
                ImageError::Unsupported { .. }
            ));
        }
    }
    let mut layout = Layout::default();
    let image = layout.image(&[layer("a", "1")], "");
    layout.named(image, "app:1");
    let absent = digest(b"absent");
    layout.manifests.push(
        json!({ "mediaType": OCI_MANIFEST, "digest": absent, "size": 6, "artifactType": "x" }),
    );
    assert_eq!(tags(&fixture().load(&layout.files()).unwrap()), [["app:1"]]);
}

#[test]
fn load_refuses_an_artifact() {
    let mut layout = Layout::default();
    let config = layout.blob(b"{}".to_vec(), "application/vnd.oci.empty.v1+json");
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [] });
    let manifest = layout.blob(manifest.to_string().into(), OCI_MANIFEST);
    layout.named(manifest, "app:1");
    assert!(matches!(
        fixture().refused(&layout.files()),
        ImageError::Unsupported { .. }
    ));
}

/// Each index mentions the next 100 times: a million ways to one image.
#[test]
fn load_reads_an_index_once_however_often_it_is_mentioned() {
    let mut layout = Layout::default();
    let mut inner = layout.image(&[layer("a", "1")], "");
    for _ in 0..3 {
        let mentions = vec![inner; 100];
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": mentions });
        inner = layout.blob(index.to_string().into(), OCI_INDEX);
    }
    layout.named(inner, "app:1");
    let fixture = fixture();
    assert_eq!(fixture.load(&layout.files()).unwrap().len(), 1);
    assert_eq!(fixture.tag("app:1").images.len(), 1);
}
