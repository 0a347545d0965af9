//! Archives of every form, made here byte by byte. Those that real tools make are in the end-to-end tests.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;

use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::digest::{DiffId, ImageId, ObjectId};
use crate::store::{RefRecord, Store, Trust};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What to put in an archive: names and contents, in order.
type Files = Vec<(String, Vec<u8>)>;

/// A ustar header; `link` makes it a symbolic link.
fn header(name: &str, size: usize, link: Option<&str>) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, if link.is_some() { b"2" } else { b"0" });
    put(157, link.unwrap_or_default().as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, content) in files {
        if let Some((name, target)) = name.split_once(" -> ") {
            out.extend(header(name, 0, Some(target)));
        } else {
            out.extend(header(name, content.len(), None));
            out.extend(content);
            out.resize(out.len().next_multiple_of(512), 0);
        }
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer of one file.
fn layer(name: &str, content: &str) -> Vec<u8> {
    tar(&[(name.to_owned(), content.into())])
}

fn digest(bytes: &[u8]) -> Sha256Digest {
    Sha256Digest::of(bytes)
}

fn config(layers: &[Vec<u8>], comment: &str) -> Vec<u8> {
    let diffs: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
    json!({ "architecture": "amd64", "os": "linux", "comment": comment, "rootfs": { "type": "layers", "diff_ids": diffs } })
        .to_string()
        .into()
}

/// An OCI layout in the making.
#[derive(Default)]
struct Layout {
    blobs: BTreeMap<Sha256Digest, Vec<u8>>,
    manifests: Vec<Value>,
}

impl Layout {
    fn blob(&mut self, bytes: Vec<u8>, media_type: &str) -> Value {
        let (digest, size) = (digest(&bytes), bytes.len());
        self.blobs.insert(digest, bytes);
        json!({ "mediaType": media_type, "digest": digest, "size": size })
    }

    fn image(&mut self, layers: &[Vec<u8>], comment: &str) -> Value {
        let config = self.blob(
            config(layers, comment),
            "application/vnd.oci.image.config.v1+json",
        );
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| self.blob(gzip(layer), "application/vnd.oci.image.layer.v1.tar+gzip"))
            .collect();
        let manifest = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers });
        self.blob(manifest.to_string().into(), OCI_MANIFEST)
    }

    fn named(&mut self, descriptor: Value, name: &str) {
        self.with(
            descriptor,
            "annotations",
            json!({ "org.opencontainers.image.ref.name": name }),
        );
    }

    fn with(&mut self, mut descriptor: Value, key: &str, value: Value) {
        descriptor[key] = value;
        self.manifests.push(descriptor);
    }

    fn files(&self) -> Files {
        let blobs = self
            .blobs
            .iter()
            .map(|(digest, bytes)| (format!("blobs/sha256/{}", digest.hex()), bytes.clone()));
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        let documents = [
            ("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })),
            ("index.json", index),
        ];
        let documents =
            documents.map(|(name, value)| (name.to_owned(), value.to_string().into_bytes()));
        blobs.chain(documents).collect()
    }
}

struct Fixture {
    store: Store,
    dir: TempDir,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    Fixture {
        store: Store::open_or_create(&dir.path().join("store")).unwrap(),
        dir,
    }
}

impl Fixture {
    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn load(&self, files: &Files) -> Result<Vec<Loaded>, ImageError> {
        load(&self.store, &self.file("archive.tar", &tar(files)))
    }

    fn record(&self, name: &str) -> RefRecord {
        self.store
            .find_ref(&name.parse().unwrap())
            .unwrap()
            .unwrap()
    }

    /// Loads what must be refused, and looks that it left nothing.
    fn refused(&self, files: &Files) -> ImageError {
        let error = self.load(files).unwrap_err();
        self.untouched();
        error
    }

    fn untouched(&self) {
        let usage = self.store.usage().unwrap();
        assert_eq!(usage, crate::store::Usage::default());
        assert_eq!(self.store.check(true).unwrap().transactions, 0);
    }
}

#[test]
fn a_layout_is_loaded_from_a_tar_a_gzip_and_a_directory() {
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
fn links_of_a_directory_are_followed_within_it() {
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
fn plain_layers_are_kept_as_trees_and_objects_alone() {
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

fn docker_archive(layers: &[Vec<u8>], tags: &Value) -> Files {
    let config = config(layers, "");
    let config_name = format!("{}.json", digest(&config).hex());
    let mut files: Files = layers
        .iter()
        .enumerate()
        .map(|(at, layer)| (format!("{at}/layer.tar"), layer.clone()))
        .collect();
    let names: Vec<_> = files.iter().map(|(name, _)| name.clone()).collect();
    let manifest = json!([{ "Config": config_name, "RepoTags": tags, "Layers": names }]);
    files.push((config_name, config));
    files.push(("manifest.json".to_owned(), manifest.to_string().into()));
    files
}

#[test]
fn a_docker_archive_is_loaded_with_all_its_names() {
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
fn an_image_without_a_name_is_kept_by_its_id_until_it_has_one() {
    let layers = [layer("a", "1")];
    let fixture = fixture();
    let loaded = fixture
        .load(&docker_archive(&layers, &Value::Null))
        .unwrap();
    assert!(loaded[0].tags.is_empty());
    assert_eq!(fixture.store.refs().unwrap()[0].reference, None);
    fixture
        .load(&docker_archive(&layers, &json!(["app:1"])))
        .unwrap();
    fixture.load(&docker_archive(&layers, &json!([]))).unwrap();
    let names: Vec<_> = fixture
        .store
        .refs()
        .unwrap()
        .into_iter()
        .map(|record| record.reference.map(|name| name.to_string()))
        .collect();
    assert_eq!(names, [Some("app:1".to_owned())]);
}

#[test]
fn a_repeated_layer_may_be_a_link_to_the_first() {
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

/// What `docker save` writes since 25.0: a layout, and the same images once more in `manifest.json`. `images`: layers, and tags.
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

fn tags(loaded: &[Loaded]) -> Vec<Vec<String>> {
    loaded
        .iter()
        .map(|image| image.tags.iter().map(ToString::to_string).collect())
        .collect()
}

#[test]
fn new_docker_save_gives_manifests_by_one_form_and_names_by_both() {
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
fn an_image_that_only_manifest_json_names_is_loaded() {
    let (one, two) = ([layer("a", "1")], [layer("a", "2")]);
    let (layout, items) = docker_25(&[(&one, &["app:1"]), (&two, &[])]);
    let files = with_manifest_json(&layout, &items);
    let loaded = fixture().load(&files).unwrap();
    assert_eq!(tags(&loaded), [vec!["app:1"], vec![]]);
    let id = |layers: &[Vec<u8>]| ImageId(digest(&config(layers, "")));
    assert_eq!(loaded[1].image, id(&two));
}

/// moby#47065: 25.0.0 wrote manifests without layers.
#[test]
fn manifest_json_has_the_layers_that_a_manifest_lacks() {
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

/// An archive for all platforms, made on another one: there `manifest.json` names the image of that platform.
#[test]
fn a_name_of_the_layout_stays_with_its_image() {
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
fn a_bare_tag_is_one_of_the_archives_name() {
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
fn of_several_platforms_this_one_is_loaded_and_the_others_need_not_be_there() {
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
    let error = fixture.load(&layout.files()).unwrap_err().to_string();
    assert!(
        error.contains("linux/s390x") && error.contains(&format!("windows/{here}")),
        "{error}"
    );
}

/// Docker gives each image its platform, and one that has no tag no name.
#[test]
fn nameless_images_for_one_platform_are_several_images() {
    let mut layout = Layout::default();
    let platform = json!({ "os": "linux", "architecture": oci::host_architecture() });
    for content in ["1", "2"] {
        let image = layout.image(&[layer("a", content)], content);
        layout.with(image, "platform", platform.clone());
    }
    let loaded = fixture().load(&layout.files()).unwrap();
    assert_eq!(tags(&loaded), [vec![""; 0], vec![]]);
}

/// As a shell's group of commands leaves it that has read a line of the file already.
#[test]
fn an_open_file_is_read_from_where_it_is() {
    let archive = tar(&docker_archive(&[layer("a", "1")], &json!(["app:1"])));
    let fixture = fixture();
    let path = fixture.file("archive", &[b"a line\n", archive.as_slice()].concat());
    let mut file = std::fs::File::open(path).unwrap();
    file.read_exact(&mut [0; 7]).unwrap();
    let loaded = load_file(&fixture.store, file, "input".as_ref(), Trust::Size).unwrap();
    assert_eq!(tags(&loaded), [["app:1"]]);
}

#[test]
fn damage_is_refused_by_the_part_it_is_in() {
    let fixture = fixture();
    let mut layout = Layout::default();
    let image = layout.image(&[layer("a", "1")], "");
    layout.named(image, "app:1");
    let files = layout.files();
    for at in 0..3 {
        let mut damaged = files.clone();
        let middle = damaged[at].1.len() / 2;
        damaged[at].1[middle] ^= 0x20;
        let name = damaged[at].0.clone();
        assert!(
            matches!(fixture.refused(&damaged), ImageError::Digest { name: part, .. } if part == name)
        );
        damaged[at].1.push(0);
        assert!(
            matches!(fixture.refused(&damaged), ImageError::Size { name: part, .. } if part == name)
        );
        damaged.remove(at);
        assert!(
            matches!(fixture.refused(&damaged), ImageError::Missing { name: part, .. } if part == name)
        );
    }
}

#[test]
fn a_layer_that_is_not_the_configurations_is_refused_by_its_number() {
    let fixture = fixture();
    let mut files = docker_archive(&[layer("a", "1"), layer("b", "2")], &json!(["app:1"]));
    files[1].1 = layer("b", "3");
    assert!(matches!(
        fixture.refused(&files),
        ImageError::DiffId { number: 2, .. }
    ));
    files[1].1 = b"no tar at all".repeat(100);
    assert!(matches!(
        fixture.refused(&files),
        ImageError::Layer { number: 2, .. }
    ));
    files[1].1 = b"\x28\xb5\x2f\xfd zstd".to_vec();
    let error = fixture.refused(&files);
    assert!(
        std::error::Error::source(&error)
            .unwrap()
            .to_string()
            .contains("zstd"),
        "{error}"
    );
    let manifest = json!([{ "Config": files[2].0, "Layers": ["0/layer.tar"] }]);
    files[3].1 = manifest.to_string().into();
    assert!(matches!(
        fixture.refused(&files),
        ImageError::LayerCount {
            config: 2,
            manifest: 1
        }
    ));
}

#[test]
fn a_configuration_is_what_its_name_says_in_each_spelling() {
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

#[test]
fn layers_that_do_not_stack_are_refused() {
    let mut link = layer("a", "");
    link[..512].copy_from_slice(&header("a", 0, Some("nowhere")));
    // The same header as a hard link, its checksum one digit of type less.
    link[156] = b'1';
    let sum: u32 = link[..148]
        .iter()
        .chain(&[b' '; 8])
        .chain(&link[156..512])
        .map(|byte| u32::from(*byte))
        .sum();
    link[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let error = fixture().refused(&docker_archive(&[link], &json!(["app:1"])));
    assert!(
        matches!(error, ImageError::Store(crate::store::StoreError::Merge(_))),
        "{error:?}"
    );
}

#[test]
fn other_files_are_told_for_what_they_are() {
    let fixture = fixture();
    let what = |path: &std::path::Path| match load(&fixture.store, path).unwrap_err() {
        ImageError::NotAnArchive { what, .. } | ImageError::Truncated { what, .. } => what,
        other => panic!("{other:?}"),
    };
    assert!(what(&fixture.file("text", &b"hello\n".repeat(1000))).contains("not a tar"));
    assert!(what(&fixture.file("empty", b"")).contains("too short"));
    assert!(
        what(&fixture.file("root.tar", &layer("etc/passwd", "root"))).contains("root file system")
    );
    assert!(what(&fixture.file("other.tar", &layer("x", ""))).contains("neither"));
    assert!(what(fixture.dir.path()).contains("neither"));
    // skopeo copy ... dir:
    fixture.file("dir/manifest.json", br#"{"schemaVersion": 2}"#);
    assert!(what(&fixture.dir.path().join("dir")).contains("dir:"));
    assert!(what("/dev/null".as_ref()).contains("device"));
    let archive = tar(&docker_archive(&[layer("a", "1")], &json!(["app:1"])));
    assert!(what(&fixture.file("cut.tar", &archive[..700])).contains("layer.tar"));
    assert!(what(&fixture.file("cut.tar", &archive[..2700])).contains("header"));
    let zipped = gzip(&archive);
    assert!(what(&fixture.file("cut.tar.gz", &zipped[..zipped.len() / 2])).contains("cut off"));
    assert!(matches!(
        load(&fixture.store, &fixture.dir.path().join("none")),
        Err(ImageError::Read { .. })
    ));
    assert!(matches!(
        fixture.refused(&vec![("manifest.json".to_owned(), b"[]".to_vec())]),
        ImageError::Empty
    ));
    assert!(matches!(
        fixture.refused(&vec![("manifest.json".to_owned(), b"[".to_vec())]),
        ImageError::Json { .. }
    ));
    fixture.untouched();
}

/// A configuration of spaces compresses to nothing, and may be named any number of times.
#[test]
fn the_documents_of_an_archive_are_bounded_together() {
    let layers = [layer("a", "1")];
    let mut files = docker_archive(&layers, &json!(["app:1"]));
    files[1].0 = "config".to_owned();
    files[1].1.resize(15 << 20, b' ');
    let image = json!({ "Config": "config", "RepoTags": ["app:1"], "Layers": ["0/layer.tar"] });
    let fixture = fixture();
    files[2].1 = vec![image.clone(); 5]
        .into_iter()
        .collect::<Value>()
        .to_string()
        .into();
    let error = fixture.refused(&files).to_string();
    assert!(error.contains("documents"), "{error}");
    files[2].1 = vec![image; 4]
        .into_iter()
        .collect::<Value>()
        .to_string()
        .into();
    assert_eq!(fixture.load(&files).unwrap().len(), 1);
}

#[test]
fn an_artifact_is_no_image() {
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

#[test]
fn an_image_for_another_system_is_refused() {
    let config: Vec<u8> =
        json!({ "architecture": "amd64", "os": "windows", "rootfs": { "diff_ids": [] } })
            .to_string()
            .into();
    let manifest = json!([{ "Config": "config", "RepoTags": ["app:1"], "Layers": [] }])
        .to_string()
        .into();
    let error = fixture().refused(&vec![
        ("config".to_owned(), config),
        ("manifest.json".to_owned(), manifest),
    ]);
    assert!(error.to_string().contains("windows"), "{error}");
}

#[test]
fn the_same_archive_may_be_loaded_many_times_at_once() {
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
fn a_root_file_system_becomes_an_image() {
    let fixture = fixture();
    let rootfs = layer("etc/motd", "hello");
    let name: Reference = "mine".parse().unwrap();
    let id = import_rootfs(&fixture.store, gzip(&rootfs).as_slice(), &name).unwrap();
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

    let other: Reference = "other".parse().unwrap();
    let cut = import_rootfs(&fixture.store, &rootfs[..1024], &other).unwrap_err();
    assert!(matches!(cut, ImageError::Truncated { .. }), "{cut}");
    let text =
        import_rootfs(&fixture.store, "hello\n".repeat(1000).as_bytes(), &other).unwrap_err();
    assert!(text.to_string().starts_with("not a tar archive"), "{text}");
    let empty = import_rootfs(&fixture.store, std::io::empty(), &other).unwrap_err();
    assert!(empty.to_string().contains("it is empty"), "{empty}");
    assert_eq!(fixture.store.find_ref(&other).unwrap(), None);
}
