//! Figures of small stores, computed by hand in the comments.

mod archives;
mod browsing;
mod figures;
mod page;
mod schema;
mod waste;

use std::io::Write;
use std::path::Path;

use cowl_core::digest::{DiffId, ImageId, Sha256Digest};
use cowl_core::recipe::canonical;
use cowl_core::store::{ObjectUsage, Platform, Store, Tag, TaggedImage, TaggedLayer, Transaction};
use cowl_core::tree::{BuildError, FileType, Kind, LayerBuilder, Meta, Tree, TreeIno};

use crate::choose::Wanted;
use crate::gather::collect;
use crate::model::{Collection, Image, Layer, Objects};
use crate::report::Report;
use crate::sharing::Sharing;

/// A store in a temporary directory.
pub(crate) struct TestStore {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) stores: [Store; 1],
}

impl TestStore {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(&dir.path().join("store")).unwrap();
        Self {
            dir,
            stores: [store],
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.stores[0]
    }

    pub(crate) fn collect(&self, named: &[&str]) -> anyhow::Result<Collection> {
        let named = named.iter().map(|name| Wanted::Named((*name).to_owned()));
        collect(&self.stores, &named.collect::<Vec<_>>())
    }

    pub(crate) fn report(&self, named: &[&str]) -> Report {
        let collection = self.collect(named).unwrap();
        assert!(collection.failed.is_empty(), "{:?}", collection.failed);
        assert!(collection.skipped.is_empty(), "{:?}", collection.skipped);
        Report::new(&collection, &Sharing::of(&collection)).unwrap()
    }

    /// Adds an image with layers in the syntax of [`build`]; the step of layer 1 is `step 1`.
    pub(crate) fn put(&self, names: &[&str], layers: &[&str]) -> ImageId {
        put(self.store(), names, layers)
    }
}

/// Damages an object: replaces its file's content.
pub(crate) fn replace(object: &Path, content: &str) {
    std::fs::remove_file(object).unwrap();
    let mut file = std::fs::File::create(object).unwrap();
    file.write_all(content.as_bytes()).unwrap();
}

/// [`TestStore::put`] for any store.
pub(crate) fn put(store: &Store, names: &[&str], layers: &[&str]) -> ImageId {
    let transaction = store.begin().unwrap();
    let layers: Vec<DiffId> = layers
        .iter()
        .map(|script| put_layer(&transaction, script))
        .collect();
    let history: Vec<_> = (1..=layers.len())
        .map(|number| serde_json::json!({"created_by": format!("step {number}")}))
        .collect();
    let config = serde_json::json!({"names": names, "history": history}).to_string();
    let config = transaction.put_blob(config.as_bytes()).unwrap();
    let layers = layers.into_iter().map(|diff_id| TaggedLayer {
        diff_id,
        blob: None,
    });
    let image = TaggedImage {
        platform: Platform {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            variant: String::new(),
        },
        config: ImageId(config),
        manifest: None,
        layers: layers.collect(),
    };
    let tags = names.iter().map(|name| Tag {
        reference: Some(name.parse().unwrap()),
        target: None,
        images: vec![image.clone()],
    });
    transaction.publish(&tags.collect::<Vec<_>>()).unwrap();
    ImageId(config)
}

/// The components of `usr/bin/x`, for the builder.
fn parts(path: &str) -> Vec<&[u8]> {
    path.split('/')
        .filter(|name| !name.is_empty())
        .map(str::as_bytes)
        .collect()
}

/// `a100b2` is 100 times the letter a, then twice the letter b.
fn content(spec: &str) -> Vec<u8> {
    let mut content = Vec::new();
    let mut runs = spec.chars().peekable();
    while let Some(letter) = runs.next() {
        let mut count = String::new();
        while let Some(digit) = runs.next_if(char::is_ascii_digit) {
            count.push(digit);
        }
        content.extend(std::iter::repeat_n(letter as u8, count.parse().unwrap()));
    }
    content
}

/// Builds a layer from one line per entry: `d PATH`, `f PATH CONTENT`, `h PATH TARGET` (hard link),
/// `w PATH` (whiteout), `o PATH` (opaque).
pub(crate) fn build(
    script: &str,
    mut content: impl FnMut(&str) -> Kind,
) -> Result<LayerBuilder, BuildError> {
    let mut builder = LayerBuilder::new();
    for line in script
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        let words: Vec<&str> = line.split(' ').collect();
        let path = parts(words[1]);
        let meta = Meta {
            mode: 0o644,
            ..Meta::default()
        };
        match words[0] {
            "d" => builder.insert(&path, meta, Kind::Directory),
            "f" => builder.insert(&path, meta, content(words[2])),
            "h" => builder.hard_link(&path, &parts(words[2])),
            "w" => builder.whiteout(&path),
            "o" => builder.opaque(&path),
            _ => panic!("unknown line: {line}"),
        }?;
    }
    Ok(builder)
}

fn put_layer(transaction: &Transaction<'_>, script: &str) -> DiffId {
    let builder = build(script, |spec| {
        let mut writer = transaction.object_writer();
        writer.write_all(&content(spec)).unwrap();
        let added = writer.finish().unwrap();
        Kind::Regular {
            size: added.size,
            object: added.object(),
            elf: added.elf,
        }
    });
    let builder = builder.unwrap_or_else(|error| panic!("{script}: {error}"));
    let diff = DiffId(Sha256Digest::of(script.as_bytes()));
    transaction
        .put_layer(diff, builder.finish(diff).unwrap(), 0, &canonical(diff, 0))
        .unwrap();
    diff
}

/// A collection of one image of these layers, without a store.
fn collection_of(trees: Vec<Tree>) -> Collection {
    let mut objects = Objects::default();
    let layers: Vec<Layer> = trees
        .into_iter()
        .map(|tree| Layer {
            diff: tree.diff_id().unwrap(),
            logical: (0..tree.node_count())
                .map(|number| tree.node(TreeIno(number)).unwrap())
                .filter(|node| node.file_type == FileType::Regular)
                .map(|node| node.size)
                .sum(),
            contents: tree
                .object_sizes()
                .map(|(id, size)| objects.intern(id, size, 0))
                .collect(),
            hidden: Vec::new(),
            tree,
        })
        .collect();
    let image = Image {
        name: "image".to_owned(),
        id: ImageId(Sha256Digest::of(b"image")),
        store: 0,
        chosen: true,
        layers: (0..layers.len()).collect(),
        steps: Vec::new(),
        removed_with: Vec::new(),
    };
    Collection {
        objects,
        layers,
        images: vec![image],
        pins: Vec::new(),
        disk: ObjectUsage::default(),
        failed: Vec::new(),
        skipped: Vec::new(),
    }
}
