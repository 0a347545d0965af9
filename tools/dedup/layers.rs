//! What layers have in common: the layers of each image, and the files that sharing by layer
//! misses.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cowl_core::tree::{FileType, TreeIno};
use serde::Serialize;

use crate::model::{Collection, Image, Layer, ObjectNumber};
use crate::sharing::Amount;
use crate::show::shown_path;
use crate::walk::{Changes, Walked};

/// Most duplicated files that a report lists.
const LISTED: usize = 100;

/// A layer of an image.
#[derive(Debug, Serialize)]
pub(crate) struct LayerRow {
    pub(crate) image: String,
    /// From 1, the lowest.
    pub(crate) number: usize,
    pub(crate) diff_id: String,
    pub(crate) created_by: String,
    /// Changes of names other than directories.
    #[serde(flatten)]
    pub(crate) changes: Changes,
    /// Contents of its files, hard links once.
    pub(crate) bytes: u64,
    /// Of its distinct contents, those that lower layers of the image have too.
    pub(crate) below: Amount,
    /// Of its distinct contents, those that another layer of the store has too.
    pub(crate) elsewhere: Amount,
    /// Of its bytes, those in rows of waste.
    pub(crate) waste_bytes: u64,
}

/// A content that several layers hold.
#[derive(Debug, Serialize)]
pub(crate) struct DuplicateRow {
    pub(crate) path: String,
    pub(crate) size: u64,
    /// Layers that hold it.
    pub(crate) layers: u64,
    /// Images that hold it.
    pub(crate) images: u64,
    /// Extra bytes in a store of layers: (layers - 1) x size.
    pub(crate) bytes: u64,
}

/// For each content, the number of distinct layers that hold it.
pub(crate) fn layers_holding(collection: &Collection) -> Vec<u32> {
    let mut counts = vec![0; collection.objects.len()];
    for object in collection.layers.iter().flat_map(Layer::objects) {
        if let Some(count) = counts.get_mut(object as usize) {
            *count += 1;
        }
    }
    counts
}

/// The layers of an image, the lowest first.
pub(crate) fn rows(
    collection: &Collection,
    image: &Image,
    walked: &Walked,
    holding: &[u32],
) -> Vec<LayerRow> {
    let mut wasted = vec![0; image.layers.len()];
    for waste in &walked.waste {
        if let Some(bytes) = wasted.get_mut(waste.layer) {
            *bytes += waste.bytes;
        }
    }
    let mut below: BTreeSet<ObjectNumber> = BTreeSet::new();
    let mut rows = Vec::new();
    let layers = collection
        .stack(&image.layers)
        .zip(&walked.changes)
        .zip(&image.steps);
    for (number, ((layer, changes), step)) in layers.enumerate() {
        let mut row = LayerRow {
            image: image.name.clone(),
            number: number + 1,
            diff_id: layer.diff.to_string(),
            created_by: step.created_by.clone(),
            changes: *changes,
            bytes: layer.logical,
            below: Amount::default(),
            elsewhere: Amount::default(),
            waste_bytes: wasted.get(number).copied().unwrap_or(0),
        };
        for object in layer.objects() {
            let size = collection.objects.size(object);
            if below.contains(&object) {
                row.below.add(size);
            }
            if holding
                .get(object as usize)
                .is_some_and(|layers| *layers > 1)
            {
                row.elsewhere.add(size);
            }
        }
        below.extend(layer.objects());
        rows.push(row);
    }
    rows
}

/// The contents of the listed images that cost a store of layers most, being in several layers.
pub(crate) fn duplicates(
    collection: &Collection,
    images_of: impl Fn(ObjectNumber) -> u64,
) -> Vec<DuplicateRow> {
    let listed: BTreeSet<usize> = collection
        .chosen()
        .flat_map(|image| &image.layers)
        .copied()
        .collect();
    let layers: Vec<&Layer> = listed
        .iter()
        .filter_map(|number| collection.layer(*number))
        .collect();
    let mut counts = vec![0_u32; collection.objects.len()];
    for object in layers.iter().flat_map(|layer| &layer.contents) {
        if let Some(count) = counts.get_mut(*object as usize) {
            *count += 1;
        }
    }
    let mut rows: Vec<(u64, ObjectNumber, u64)> = (0..)
        .zip(&counts)
        .filter(|(_, count)| **count > 1)
        .map(|(object, count)| {
            let layers = u64::from(*count);
            (
                collection.objects.size(object) * (layers - 1),
                object,
                layers,
            )
        })
        .collect();
    let id = |object: ObjectNumber| collection.objects.id(object);
    rows.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| id(a.1).cmp(&id(b.1))));
    rows.truncate(LISTED);
    let paths = paths_of(&layers, &rows.iter().map(|row| row.1).collect());
    rows.into_iter()
        .map(|(bytes, object, layers)| DuplicateRow {
            path: paths.get(&object).cloned().unwrap_or_default(),
            size: collection.objects.size(object),
            layers,
            images: images_of(object),
            bytes,
        })
        .collect()
}

/// A path of each content, in the first layer that has it.
fn paths_of(layers: &[&Layer], wanted: &BTreeSet<ObjectNumber>) -> HashMap<ObjectNumber, String> {
    let mut paths = HashMap::new();
    for layer in layers {
        for number in 0..layer.tree.node_count() {
            let ino = TreeIno(number);
            let Ok(node) = layer.tree.node(ino) else {
                continue;
            };
            let object = node.object.and_then(|object| layer.content(object));
            let Some(object) = object
                .filter(|object| node.file_type == FileType::Regular && wanted.contains(object))
            else {
                continue;
            };
            if !paths.contains_key(&object)
                && let Ok(path) = layer.tree.path_of(ino)
            {
                paths.insert(object, shown_path(&path));
            }
        }
    }
    paths
}

/// The number of layers, from the bottom, that an image shares with other images; at least 1.
pub(crate) fn base_length(collection: &Collection, image: &Image) -> usize {
    let own = &image.layers;
    let common = |other: &Image| {
        let both = own.iter().zip(&other.layers);
        both.take_while(|(one, other)| one == other).count()
    };
    let others = collection
        .images
        .iter()
        .filter(|other| other.id != image.id);
    others.map(common).max().unwrap_or(0).max(1).min(own.len())
}

/// One image for each base that the listed images have.
pub(crate) fn bases(collection: &Collection) -> BTreeMap<Vec<usize>, &Image> {
    let mut bases = BTreeMap::new();
    for image in collection.chosen() {
        let base = image
            .layers
            .get(..base_length(collection, image))
            .unwrap_or_default();
        bases.entry(base.to_vec()).or_insert(image);
    }
    bases
}
