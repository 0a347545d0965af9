//! Reads images and their layers from a store, each layer once.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use cowl_core::digest::{DiffId, ImageId};
use cowl_core::store::{Reference, Store, Tag, TaggedImage};
use cowl_core::tree::{FileType, Tree, TreeError, TreeIno, merge};

use crate::report::{Layer, StoredImage};

/// The images of a store, with an error for each unreadable one.
pub(crate) struct Images {
    pub(crate) images: Vec<StoredImage>,
    pub(crate) skipped: Vec<anyhow::Error>,
}

/// All images of the store. Marks the named ones as chosen, or all if no name is given.
pub(crate) fn images(store: &Store, named: &[String]) -> Result<Images> {
    let mut tags: BTreeMap<ImageId, Vec<Tag>> = BTreeMap::new();
    let found = store.tags()?;
    let mut skipped: Vec<_> = found.damaged.into_iter().map(anyhow::Error::from).collect();
    for tag in found.tags {
        if let Some(id) = tag.id() {
            tags.entry(id).or_default().push(tag);
        }
    }
    let mut chosen: Vec<ImageId> = Vec::new();
    for name in named {
        let reference: Reference = name.parse()?;
        match store.find_tag(&reference)?.and_then(|tag| tag.id()) {
            Some(id) => chosen.push(id),
            None => bail!("no image {reference} in the store; `cowl images` lists what there is"),
        }
    }
    let mut layers = HashMap::new();
    let mut images = Vec::new();
    for (id, tags) in &tags {
        let name = name(*id, tags);
        let Some(image) = tags.first().and_then(Tag::image) else {
            continue;
        };
        let place = chosen.iter().position(|chosen| chosen == id);
        let image =
            stored_image(store, image, &mut layers).with_context(|| format!("image {name}"));
        let image = match image {
            Ok(image) => image,
            // An image given by name must be readable.
            Err(error) if place.is_some() => return Err(error),
            Err(error) => {
                skipped.push(error);
                continue;
            }
        };
        images.push((
            place,
            StoredImage {
                name,
                chosen: named.is_empty() || place.is_some(),
                ..image
            },
        ));
    }
    // In the order of the arguments, then by name.
    images.sort_by(|(place, image), (other, than)| {
        let places = place
            .unwrap_or(usize::MAX)
            .cmp(&other.unwrap_or(usize::MAX));
        places.then_with(|| image.name.cmp(&than.name))
    });
    Ok(Images {
        images: images.into_iter().map(|(_, image)| image).collect(),
        skipped,
    })
}

/// All names of one image, or its id.
fn name(id: ImageId, tags: &[Tag]) -> String {
    let mut names: Vec<String> = tags
        .iter()
        .filter_map(|tag| tag.reference.as_ref().map(Reference::to_string))
        .collect();
    if names.is_empty() {
        return id.to_string();
    }
    names.sort();
    names.join(", ")
}

fn stored_image(
    store: &Store,
    image: &TaggedImage,
    known: &mut HashMap<DiffId, Rc<Layer>>,
) -> Result<StoredImage> {
    let mut trees = Vec::new();
    let mut layers = Vec::new();
    for diff in &image.diff_ids() {
        let tree = store
            .layer_tree(*diff)?
            .with_context(|| format!("layer {diff} is not in the store"))?;
        if !known.contains_key(diff) {
            let info = store.layer_info(*diff)?;
            let info = info.with_context(|| format!("layer {diff} has no layer.json"))?;
            let layer = Layer {
                diff: *diff,
                logical: info.content_size,
                objects: tree.object_sizes().collect(),
            };
            known.insert(*diff, Rc::new(layer));
        }
        layers.extend(known.get(diff).cloned());
        trees.push(tree);
    }
    let merged = Tree::from_bytes(merge(&trees)?)?;
    Ok(StoredImage {
        name: String::new(),
        chosen: false,
        layers,
        visible: content_size(&merged)?,
    })
}

/// Bytes of all files; hard links are one file.
fn content_size(tree: &Tree) -> Result<u64, TreeError> {
    let mut bytes = 0;
    for number in 0..tree.node_count() {
        let node = tree.node(TreeIno(number))?;
        if node.file_type == FileType::Regular {
            bytes += node.size;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use cowl_core::digest::Sha256Digest;
    use cowl_core::store::{Platform, TaggedLayer, Transaction};
    use cowl_core::tree::{Kind, LayerBuilder, Meta};

    use super::*;
    use crate::report::Report;

    fn put_layer(transaction: &Transaction<'_>, files: &[(&str, &str)]) -> DiffId {
        let mut builder = LayerBuilder::new();
        for (name, content) in files {
            let mut writer = transaction.object_writer();
            writer.write_all(content.as_bytes()).unwrap();
            let added = writer.finish().unwrap();
            let kind = Kind::Regular {
                size: added.size,
                object: added.object(),
                elf: added.elf,
            };
            builder
                .insert(&[name.as_bytes()], Meta::default(), kind)
                .unwrap();
            let link = format!("{name}.link");
            builder
                .hard_link(&[link.as_bytes()], &[name.as_bytes()])
                .unwrap();
        }
        let diff = DiffId(Sha256Digest::of(format!("{files:?}").as_bytes()));
        transaction
            .put_layer(diff, builder.finish(diff).unwrap(), 0, None)
            .unwrap();
        diff
    }

    fn put_image(store: &Store, names: &[&str], layers: &[&[(&str, &str)]]) {
        let transaction = store.begin().unwrap();
        let layers: Vec<DiffId> = layers
            .iter()
            .map(|files| put_layer(&transaction, files))
            .collect();
        let config = transaction.put_blob(names.concat().as_bytes()).unwrap();
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
    }

    /// Sizes of the files in a directory and one below it, as `find -type f` would sum them.
    fn on_disk(objects: &Path) -> u64 {
        let entries = |dir: &Path| -> Vec<_> {
            let entries = std::fs::read_dir(dir).unwrap();
            entries.map(Result::unwrap).collect()
        };
        let dirs = entries(objects);
        let files = dirs.iter().flat_map(|dir| entries(&dir.path()));
        files.map(|file| file.metadata().unwrap().len()).sum()
    }

    #[test]
    fn report_sums_match_the_files_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(&dir.path().join("store")).unwrap();
        let base: &[(&str, &str)] = &[("sh", "0123456789"), ("motd", "hello")];
        put_image(
            &store,
            &["shop", "shop:1"],
            &[base, &[("motd", "hi"), ("data", "same")]],
        );
        put_image(
            &store,
            &["blog"],
            &[base, &[("copy", "same"), ("again", "same")]],
        );
        let all = images(&store, &[]).unwrap().images;
        let report = Report::new(&all, store.usage().unwrap().objects.bytes);
        let json = serde_json::to_value(&report).unwrap();
        let disk = on_disk(&dir.path().join("store/objects"));
        assert_eq!(json["kept"]["bytes"], disk);
        assert_eq!(json["unattributed_bytes"], 0);
        let [blog, shop] = [&json["images"][0], &json["images"][1]];
        assert_eq!(blog["name"], "blog:latest");
        assert_eq!(shop["name"], "shop:1, shop:latest");
        // 10 + 5 below; 2 + 4 and 4 + 4 above. In shop the upper motd hides the lower.
        assert_eq!([&shop["logical_bytes"], &blog["logical_bytes"]], [21, 23]);
        assert_eq!([&shop["visible_bytes"], &blog["visible_bytes"]], [16, 23]);
        assert_eq!(
            [&shop["stored"]["bytes"], &blog["stored"]["bytes"]],
            [21, 19]
        );
        assert_eq!(
            [&shop["exclusive"]["bytes"], &blog["exclusive"]["bytes"]],
            [2, 0]
        );
        assert_eq!(json["pairs"][0]["shared"]["bytes"], 19);
        let listed = report.shared_objects().iter();
        let listed: u64 = listed
            .map(|id| {
                let file = std::fs::File::open(store.object_path(*id)).unwrap();
                file.metadata().unwrap().len()
            })
            .sum();
        assert_eq!(json["shared"]["bytes"], listed);
    }

    #[test]
    fn images_keep_the_order_of_the_arguments() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(&dir.path().join("store")).unwrap();
        for name in ["a", "b", "c"] {
            put_image(&store, &[name], &[&[("x", name)]]);
        }
        let named = ["c".to_owned(), "a:latest".to_owned()];
        let found = images(&store, &named).unwrap().images;
        let order: Vec<_> = found
            .iter()
            .map(|image| (image.name.as_str(), image.chosen))
            .collect();
        assert_eq!(
            order,
            [("c:latest", true), ("a:latest", true), ("b:latest", false)]
        );
        let error = images(&store, &["d".to_owned()]).err().unwrap();
        assert!(error.to_string().starts_with("no image d:latest"));
    }
}
