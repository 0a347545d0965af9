//! The store's public interface, each test on a store of its own. The oracle is the plain
//! directory.

mod adding;
mod checking;
mod clean;
mod collecting;
mod healing;
mod logging;
mod opening;
mod removing;
mod slicing;
mod staging;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::digest::{DiffId, ImageId};
use crate::recipe::canonical;
use crate::tree::{Kind, LayerBuilder, Meta, Timestamp};

pub(super) struct Fixture {
    pub(super) store: Store,
    dir: TempDir,
}

pub(super) fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    Fixture {
        store: Store::open_or_create(&dir.path().join("store")).unwrap(),
        dir,
    }
}

impl Fixture {
    pub(super) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join("store").join(below)
    }

    /// All files below a directory of the store with their sizes.
    pub(super) fn files(&self, below: &str) -> BTreeMap<String, u64> {
        let mut files = BTreeMap::new();
        list(&self.path(below), "", &mut files);
        files
    }

    pub(super) fn object_path(&self, content: &[u8]) -> PathBuf {
        self.path("objects")
            .join(object_name(ObjectId::of(content)))
    }

    pub(super) fn merged_path(&self, tag: &Tag) -> PathBuf {
        let chain = crate::digest::ChainId::of(&layers(tag));
        let name = format!("{}.tree-v2", chain.0.hex());
        self.path("merged").join(name)
    }

    pub(super) fn layer_path(&self, tag: &Tag, number: usize) -> PathBuf {
        self.path("layers").join(layers(tag)[number].0.hex())
    }

    pub(super) fn tree_path(&self, tag: &Tag, number: usize) -> PathBuf {
        self.layer_path(tag, number).join("tree-v2")
    }

    /// Publishes an image of one layer per list of contents.
    pub(super) fn image(&self, name: &str, layers: &[&[&[u8]]]) -> Tag {
        let transaction = self.store.begin().unwrap();
        let layers: Vec<DiffId> = layers
            .iter()
            .map(|contents| put_layer(&transaction, contents))
            .collect();
        let config = transaction.put_blob(name.as_bytes()).unwrap();
        transaction.put_merged(&layers).unwrap();
        let tag = tag(name, config, layers);
        transaction.publish(std::slice::from_ref(&tag)).unwrap();
        tag
    }
}

pub(super) fn tag(name: &str, config: Sha256Digest, layers: Vec<DiffId>) -> Tag {
    let layers = layers.into_iter().map(|diff_id| TaggedLayer {
        diff_id,
        blob: None,
    });
    Tag {
        reference: Some(name.parse().unwrap()),
        target: None,
        images: vec![TaggedImage {
            platform: Platform {
                os: "linux".to_owned(),
                architecture: "amd64".to_owned(),
                variant: String::new(),
            },
            config: ImageId(config),
            manifest: None,
            layers: layers.collect(),
        }],
    }
}

/// The same images under another name, or under none.
pub(super) fn named(tag: &Tag, name: Option<&str>) -> Tag {
    Tag {
        reference: name.map(|name| name.parse().unwrap()),
        ..tag.clone()
    }
}

pub(super) fn layers(tag: &Tag) -> Vec<DiffId> {
    tag.images[0].diff_ids()
}

pub(super) fn put(transaction: &Transaction<'_>, content: &[u8]) -> Added {
    let mut writer = transaction.object_writer();
    writer.write_all(content).unwrap();
    writer.finish().unwrap()
}

pub(super) fn meta() -> Meta {
    Meta {
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Timestamp { secs: 0, nanos: 0 },
        xattrs: Vec::new(),
    }
}

/// Adds a layer of files `0`, `1`, ... with these contents, under a DiffID computed from them.
pub(super) fn put_layer(transaction: &Transaction<'_>, contents: &[&[u8]]) -> DiffId {
    let mut builder = LayerBuilder::new();
    for (number, content) in contents.iter().enumerate() {
        let added = put(transaction, content);
        let kind = Kind::Regular {
            size: added.size,
            object: added.object(),
            elf: added.elf,
        };
        builder
            .insert(&[number.to_string().as_bytes()], meta(), kind)
            .unwrap();
    }
    let diff = DiffId(Sha256Digest::of(&contents.concat()));
    transaction
        .put_layer(
            diff,
            builder.finish(diff).unwrap(),
            10_240,
            &canonical(diff, 10_240),
        )
        .unwrap();
    diff
}

fn list(dir: &Path, prefix: &str, files: &mut BTreeMap<String, u64>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        let meta = entry.metadata().unwrap();
        if meta.is_dir() {
            list(&entry.path(), &format!("{name}/"), files);
        } else {
            files.insert(name, meta.len());
        }
    }
}
