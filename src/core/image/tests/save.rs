//! What `save` writes, taken apart by GNU tar and compared with what came in.

use std::path::Path;

use super::*;
use crate::image::SaveError;
use crate::image::save::{Selected, save};

impl Fixture {
    fn selected(&self, name: &str) -> Selected {
        Selected {
            names: vec![name.parse().unwrap()],
            tag: self.tag(name),
        }
    }

    fn try_save(&self, images: &[Selected]) -> Result<Vec<u8>, SaveError> {
        let mut archive = Vec::new();
        save(&self.store, images, &mut archive).map(|()| archive)
    }

    fn saved(&self, images: &[Selected]) -> Vec<u8> {
        self.try_save(images).unwrap()
    }

    /// Removes a blob behind the store's back.
    fn lose(&self, blob: Sha256Digest) {
        let blobs = self.store.root().join("blobs/sha256");
        std::fs::remove_file(blobs.join(blob.hex())).unwrap();
    }
}

/// The files of an archive, by GNU tar.
fn extracted(archive: &[u8]) -> (TempDir, BTreeMap<String, Vec<u8>>) {
    let dir = tempfile::tempdir().unwrap();
    let tar = dir.path().join("archive.tar");
    std::fs::write(&tar, archive).unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let done = std::process::Command::new("tar")
        .arg("-xf")
        .arg(&tar)
        .arg("-C")
        .arg(&root)
        .status();
    assert!(done.unwrap().success());
    let mut files = BTreeMap::new();
    let mut collect = |below: &str| {
        for entry in std::fs::read_dir(root.join(below)).unwrap() {
            let entry = entry.unwrap();
            if !entry.file_type().unwrap().is_dir() {
                let name = Path::new(below).join(entry.file_name());
                let bytes = std::fs::read(entry.path()).unwrap();
                files.insert(name.to_str().unwrap().to_owned(), bytes);
            }
        }
    };
    collect("");
    collect("blobs/sha256");
    (dir, files)
}

/// Every blob has the digest that its name says.
fn check_digests(files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files {
        if let Some(hex) = name.strip_prefix("blobs/sha256/") {
            assert_eq!(digest(bytes).hex(), hex);
        }
    }
}

fn parsed(files: &BTreeMap<String, Vec<u8>>, name: &str) -> Value {
    serde_json::from_slice(&files[name]).unwrap()
}

fn path_of(digest: &Value) -> String {
    let digest = digest.as_str().unwrap();
    format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap())
}

#[test]
fn save_gives_back_manifest_and_blobs_as_they_came() {
    let layers = [layer("etc/motd", "hello"), layer("etc/.wh.motd", "")];
    let mut layout = Layout::default();
    let image = layout.image(&layers, "");
    layout.named(image.clone(), "app:1");
    let fixture = fixture();
    fixture.load(&layout.files()).unwrap();
    let archive = fixture.saved(&[fixture.selected("app:1")]);
    assert_eq!(archive, fixture.saved(&[fixture.selected("app:1")]));
    let (_dir, files) = extracted(&archive);
    check_digests(&files);
    for (blob, bytes) in &layout.blobs {
        assert_eq!(&files[&format!("blobs/sha256/{}", blob.hex())], bytes);
    }
    assert_eq!(files.len(), layout.blobs.len() + 3);
    let index = parsed(&files, "index.json");
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(index["manifests"][0]["digest"], image["digest"]);
    assert_eq!(
        index["manifests"][0]["annotations"],
        json!({
            "io.containerd.image.name": "docker.io/library/app:1",
            "org.opencontainers.image.ref.name": "1",
        })
    );
    let docker = parsed(&files, "manifest.json");
    assert_eq!(docker[0]["RepoTags"], json!(["app:1"]));
    let config = digest(&config(&layers, ""));
    assert_eq!(
        docker[0]["Config"],
        json!(format!("blobs/sha256/{}", config.hex()))
    );
}

/// Of the layers only trees, objects and recipes are left.
#[test]
fn save_restores_layers_whose_blobs_are_gone() {
    let layers = [layer("etc/motd", "hello"), layer("etc/issue", "there")];
    let mut layout = Layout::default();
    let image = layout.image(&layers, "");
    layout.named(image, "app:1");
    let fixture = fixture();
    fixture.load(&layout.files()).unwrap();
    let record = fixture.record("app:1");
    let kept = |blob: &&Sha256Digest| **blob != record.image.0;
    for blob in record.blobs.iter().filter(kept) {
        fixture.lose(*blob);
    }
    let (_dir, files) = extracted(&fixture.saved(&[fixture.selected("app:1")]));
    check_digests(&files);
    let index = parsed(&files, "index.json");
    let manifest = parsed(&files, &path_of(&index["manifests"][0]["digest"]));
    assert_eq!(manifest["config"]["digest"], json!(record.image.0));
    let listed = manifest["layers"].as_array().unwrap();
    assert_eq!(listed.len(), layers.len());
    for (layer, listed) in layers.iter().zip(listed) {
        assert_eq!(&files[&path_of(&listed["digest"])], layer);
        assert_eq!(listed["size"], json!(layer.len()));
    }
    let docker = parsed(&files, "manifest.json");
    for (layer, path) in layers.iter().zip(docker[0]["Layers"].as_array().unwrap()) {
        assert_eq!(&files[path.as_str().unwrap()], layer);
    }

    let other = self::fixture();
    other.load(&files.into_iter().collect()).unwrap();
    assert_eq!(other.record("app:1").image, record.image);
}

/// One blob is gone, so the manifest that lists it would be wrong.
#[test]
fn save_keeps_the_blobs_that_are_left() {
    let layers = [layer("a", "1"), layer("b", "2")];
    let mut layout = Layout::default();
    let image = layout.image(&layers, "");
    layout.named(image, "app:1");
    let fixture = fixture();
    fixture.load(&layout.files()).unwrap();
    fixture.lose(digest(&gzip(&layers[0])));
    let (_dir, files) = extracted(&fixture.saved(&[fixture.selected("app:1")]));
    check_digests(&files);
    let index = parsed(&files, "index.json");
    let manifest = parsed(&files, &path_of(&index["manifests"][0]["digest"]));
    let types: Vec<_> = [0, 1]
        .map(|at| manifest["layers"][at]["mediaType"].clone())
        .into();
    assert_eq!(
        types,
        [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip"
        ]
    );
    assert_eq!(files[&path_of(&manifest["layers"][0]["digest"])], layers[0]);
    assert_eq!(
        files[&path_of(&manifest["layers"][1]["digest"])],
        gzip(&layers[1])
    );
}

#[test]
fn save_writes_several_images_and_what_they_share_once() {
    let shared = layer("base", "1");
    let (first, second) = ([shared.clone(), layer("a", "1")], [shared, layer("b", "2")]);
    let fixture = fixture();
    let archive = docker_archive(&first, &json!(["first:1", "again:2"]));
    fixture.load(&archive).unwrap();
    let archive = docker_archive(&second, &Value::Null);
    let untagged = fixture.load(&archive).unwrap().remove(0).image;
    let tags = fixture.store.tags().unwrap().tags;
    let tag = tags.into_iter().find(|tag| tag.id() == Some(untagged));
    let both = Selected {
        names: ["again:2", "first:1"]
            .map(|name| name.parse().unwrap())
            .into(),
        tag: fixture.tag("first:1"),
    };
    let nameless = Selected {
        names: Vec::new(),
        tag: tag.unwrap(),
    };
    let archive = fixture.saved(&[both, nameless]);
    let (_dir, files) = extracted(&archive);
    check_digests(&files);
    // Three layers, two configurations, two manifests.
    assert_eq!(files.len(), 7 + 3);
    let docker = parsed(&files, "manifest.json");
    assert_eq!(docker[0]["RepoTags"], json!(["again:2", "first:1"]));
    assert_eq!(docker[1]["RepoTags"], Value::Null);
    let other = self::fixture();
    let mut loaded = other.load(&files.into_iter().collect()).unwrap();
    loaded.sort_by_key(|image| image.tags.len());
    assert_eq!(loaded[0].image, untagged);
    assert_eq!(tags_of(&loaded[1]), ["again:2", "first:1"]);
}

fn tags_of(image: &Loaded) -> Vec<String> {
    image.tags.iter().map(ToString::to_string).collect()
}

/// The index lists a third platform that never came.
#[test]
fn save_gives_back_an_index_with_all_platforms_that_came() {
    let mut layout = Layout::default();
    let host = oci::host_architecture();
    let manifests: Vec<Value> = [(host, "host"), ("s390x", "mainframe")]
        .iter()
        .map(|(architecture, comment)| {
            let mut image = layout.image(&[layer("a", comment)], comment);
            image["platform"] = json!({ "os": "linux", "architecture": architecture });
            image
        })
        .collect();
    let missing = json!({
        "mediaType": OCI_MANIFEST, "digest": digest(b"never came"), "size": 10,
        "platform": { "os": "linux", "architecture": "riscv64" },
    });
    let index = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [manifests[0], manifests[1], missing],
    });
    let index = layout.blob(index.to_string().into(), OCI_INDEX);
    layout.named(index.clone(), "app:1");
    let fixture = fixture();
    fixture.load(&layout.files()).unwrap();
    let (_dir, files) = extracted(&fixture.saved(&[fixture.selected("app:1")]));
    check_digests(&files);
    for (blob, bytes) in &layout.blobs {
        assert_eq!(&files[&format!("blobs/sha256/{}", blob.hex())], bytes);
    }
    assert_eq!(
        parsed(&files, "index.json")["manifests"][0]["digest"],
        index["digest"]
    );
    assert_eq!(parsed(&files, "manifest.json").as_array().unwrap().len(), 1);
    let other = self::fixture();
    other.load(&files.into_iter().collect()).unwrap();
    assert_eq!(other.tag("app:1"), fixture.tag("app:1"));
}

#[test]
fn save_refuses_damage() {
    let layers = [layer("etc/motd", "hello")];
    let mut layout = Layout::default();
    let image = layout.image(&layers, "");
    layout.named(image, "app:1");
    let fixture = fixture();
    fixture.load(&layout.files()).unwrap();
    let blob = digest(&gzip(&layers[0]));
    let path = fixture.store.root().join("blobs/sha256").join(blob.hex());
    let whole = std::fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, damaged).unwrap();
    assert!(matches!(
        fixture.try_save(&[fixture.selected("app:1")]),
        Err(SaveError::Damaged { expected, .. }) if expected == blob
    ));
    // Cut short it is no blob: the layer is restored.
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let (_dir, files) = extracted(&fixture.saved(&[fixture.selected("app:1")]));
    check_digests(&files);
    // The layer's only object is damaged, too.
    let id = crate::digest::ObjectId::of(b"hello");
    let object = fixture.store.object_path(id);
    std::fs::remove_file(&object).unwrap();
    std::fs::write(&object, "HELLO").unwrap();
    assert!(matches!(
        fixture.try_save(&[fixture.selected("app:1")]),
        Err(SaveError::Restore { .. })
    ));
}

/// One byte of a recipe or of a tree is enough, even behind the parts that a header check reads.
#[test]
fn save_of_a_damaged_recipe_or_tree_writes_nothing() {
    let layers = [layer("etc/motd", "hello"), layer("etc/issue", "there")];
    let fixture = fixture();
    fixture
        .load(&docker_archive(&layers, &json!(["app:1"])))
        .unwrap();
    let diff_id = digest(&layers[1]);
    let dir = fixture.store.root().join("layers").join(diff_id.hex());
    let other = dir.with_file_name(digest(&layers[0]).hex());
    let refused = |name: &str, damage: &dyn Fn(&mut Vec<u8>)| {
        let path = dir.join(name);
        let whole = std::fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        damage(&mut damaged);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, damaged).unwrap();
        let mut out = Vec::new();
        let error = save(&fixture.store, &[fixture.selected("app:1")], &mut out).unwrap_err();
        assert!(out.is_empty(), "{} bytes before {error}", out.len());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, whole).unwrap();
        error
    };
    let recipe = std::fs::read(dir.join("recipe-v2")).unwrap();
    for at in 0..recipe.len() {
        let error = refused("recipe-v2", &|bytes| bytes[at] ^= 1);
        assert!(matches!(error, SaveError::Recipe { diff_id: of, .. } if of.0 == diff_id));
        assert_eq!(
            error.to_string(),
            format!("the recipe of layer {diff_id} cannot be read: load its image again")
        );
    }
    let error = refused("recipe-v2", &|bytes| {
        *bytes = std::fs::read(other.join("recipe-v2")).unwrap();
    });
    assert!(matches!(error, SaveError::Recipe { .. }));
    let tree = std::fs::read(dir.join("tree-v2")).unwrap();
    let error = refused("tree-v2", &|bytes| bytes[tree.len() - 40] ^= 1);
    assert!(matches!(error, SaveError::Tree { diff_id: of, .. } if of.0 == diff_id));
    fixture.saved(&[fixture.selected("app:1")]);
}
