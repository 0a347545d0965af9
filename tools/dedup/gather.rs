//! Reads images and their layers from a store, each layer once.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use cowl_core::digest::{DiffId, ImageId, ObjectId};
use cowl_core::store::{RefRecord, Reference, Store};
use cowl_core::tree::{FileType, Tree, TreeError, TreeIno, merge};

use crate::report::{Held, Layer, Objects};

/// All images of the store, those that were named marked; if none was named, all are.
pub(crate) fn images(store: &Store, named: &[String]) -> Result<Vec<Held>> {
    let mut records: BTreeMap<ImageId, Vec<RefRecord>> = BTreeMap::new();
    for record in store.refs()? {
        records.entry(record.image).or_default().push(record);
    }
    let mut chosen: Vec<ImageId> = Vec::new();
    for name in named {
        let reference: Reference = name.parse()?;
        match store.find_ref(&reference)? {
            Some(record) => chosen.push(record.image),
            None => bail!("no image {reference} in the store; `cowl images` lists what there is"),
        }
    }
    let mut layers = HashMap::new();
    let mut images = Vec::new();
    for (id, records) in &records {
        let name = name(*id, records);
        let Some(record) = records.first() else {
            continue;
        };
        let place = chosen.iter().position(|chosen| chosen == id);
        let image = held(store, record, &mut layers).with_context(|| format!("image {name}"))?;
        images.push((
            place,
            Held {
                name,
                chosen: named.is_empty() || place.is_some(),
                ..image
            },
        ));
    }
    // As they were named, then by name.
    images.sort_by(|(place, image), (other, than)| {
        let places = place
            .unwrap_or(usize::MAX)
            .cmp(&other.unwrap_or(usize::MAX));
        places.then_with(|| image.name.cmp(&than.name))
    });
    Ok(images.into_iter().map(|(_, image)| image).collect())
}

/// All names of one image, or its id.
fn name(id: ImageId, records: &[RefRecord]) -> String {
    let mut names: Vec<String> = records
        .iter()
        .filter_map(|record| record.reference.as_ref().map(Reference::to_string))
        .collect();
    if names.is_empty() {
        return id.to_string();
    }
    names.sort();
    names.join(", ")
}

fn held(store: &Store, record: &RefRecord, known: &mut HashMap<DiffId, Rc<Layer>>) -> Result<Held> {
    let mut trees = Vec::new();
    let mut layers = Vec::new();
    for diff in &record.layers {
        let tree = store
            .layer_tree(*diff)?
            .with_context(|| format!("layer {diff} is not in the store"))?;
        if !known.contains_key(diff) {
            let layer = layer(*diff, &tree).with_context(|| format!("layer {diff}"))?;
            known.insert(*diff, Rc::new(layer));
        }
        layers.extend(known.get(diff).cloned());
        trees.push(tree);
    }
    let merged = Tree::from_bytes(merge(&trees)?)?;
    let mut visible = 0;
    contents(&merged, |_, size| visible += size)?;
    Ok(Held {
        name: String::new(),
        chosen: false,
        layers,
        visible,
    })
}

fn layer(diff: DiffId, tree: &Tree) -> Result<Layer, TreeError> {
    let mut logical = 0;
    let mut objects = Objects::new();
    contents(tree, |object, size| {
        logical += size;
        objects.insert(object, size);
    })?;
    Ok(Layer {
        diff,
        logical,
        objects,
    })
}

/// Calls back for each file of a tree that has a content; hard links are one file.
fn contents(tree: &Tree, mut each: impl FnMut(ObjectId, u64)) -> Result<(), TreeError> {
    for number in 0..tree.node_count() {
        let node = tree.node(TreeIno(number))?;
        if let (FileType::Regular, Some(object)) = (node.file_type, node.object) {
            each(tree.object_id(object)?, node.size);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use cowl_core::digest::Sha256Digest;
    use cowl_core::store::Transaction;
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
            .put_layer(diff, builder.finish(diff).unwrap(), 0)
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
        let records = names.iter().map(|name| RefRecord {
            reference: Some(name.parse().unwrap()),
            image: ImageId(config),
            manifest: None,
            layers: layers.clone(),
            blobs: vec![config],
        });
        transaction.publish(&records.collect::<Vec<_>>()).unwrap();
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
    fn the_sums_are_the_sizes_of_the_files() {
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
        let all = images(&store, &[]).unwrap();
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
    fn images_come_as_they_were_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(&dir.path().join("store")).unwrap();
        for name in ["a", "b", "c"] {
            put_image(&store, &[name], &[&[("x", name)]]);
        }
        let named = ["c".to_owned(), "a:latest".to_owned()];
        let found = images(&store, &named).unwrap();
        let order: Vec<_> = found
            .iter()
            .map(|image| (image.name.as_str(), image.chosen))
            .collect();
        assert_eq!(
            order,
            [("c:latest", true), ("a:latest", true), ("b:latest", false)]
        );
        let error = images(&store, &["d".to_owned()]).unwrap_err();
        assert!(error.to_string().starts_with("no image d:latest"));
    }
}
