//! Archives of every form, made here byte by byte, and loaded into stores of their own.

mod absent;
mod docker;
mod layout;
mod names;
mod present;
mod refused;
mod save;
mod variants;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::digest::{DiffId, ImageId};
use crate::store::{Store, Tag};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What to put in an archive: names and contents, in order.
type Files = Vec<(String, Vec<u8>)>;

/// A ustar header; `link` makes it a symbolic link, a slash at the end of the name a directory.
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
    put(
        156,
        match link {
            Some(_) => b"2",
            None if name.ends_with('/') => b"5",
            None => b"0",
        },
    );
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

/// What a tag says of its only image.
struct Recorded {
    image: ImageId,
    manifest: Option<Sha256Digest>,
    layers: Vec<DiffId>,
    blobs: Vec<Sha256Digest>,
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

    fn record(&self, name: &str) -> Recorded {
        let tag = self.store.find_tag(&name.parse().unwrap());
        let mut tag: Tag = tag.unwrap().unwrap();
        let image = tag.images.remove(0);
        let layers = image.layers.iter();
        let blobs = layers.filter_map(|layer| layer.blob.as_ref().map(|blob| blob.digest));
        Recorded {
            image: image.config,
            manifest: image.manifest,
            layers: image.diff_ids(),
            blobs: blobs
                .chain(image.manifest)
                .chain([image.config.0])
                .collect(),
        }
    }

    fn import(&self, bytes: &[u8], name: &str) -> Result<ImageId, ImageError> {
        let file = std::fs::File::open(self.file("root.tar", bytes)).unwrap();
        let name = name.parse().unwrap();
        let options = ImportOptions {
            reference: Some(&name),
            ..ImportOptions::default()
        };
        import_rootfs(&self.store, &file, &options)
    }

    fn tag(&self, name: &str) -> Tag {
        let tag = self.store.find_tag(&name.parse().unwrap());
        tag.unwrap().unwrap()
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

fn tags(loaded: &[Loaded]) -> Vec<Vec<String>> {
    loaded
        .iter()
        .map(|image| image.tags.iter().map(ToString::to_string).collect())
        .collect()
}
