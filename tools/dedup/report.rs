//! The arithmetic of sharing, on sets of contents and their sizes.
//!
//! Every sum is exact. `stored = exclusive + shared` for each image, and the fair shares of all
//! images of the store sum to what they keep: of a content of 10 bytes in three images one has 4
//! and two have 3.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;

use cowl_core::digest::{DiffId, ObjectId};
use serde::Serialize;

/// Of the JSON form; a field never changes its meaning, new ones may come.
const VERSION: u32 = 1;

/// Contents with their sizes in bytes.
pub(crate) type Objects = BTreeMap<ObjectId, u64>;

/// A layer and what it holds.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) diff: DiffId,
    /// Bytes of all its files, equal ones each.
    pub(crate) logical: u64,
    pub(crate) objects: Objects,
}

/// An image of the store.
#[derive(Debug)]
pub(crate) struct StoredImage {
    /// Its names, separated by commas, or its id.
    pub(crate) name: String,
    /// Whether the report lists it; other images only count as sharers.
    pub(crate) chosen: bool,
    /// Lowest first.
    pub(crate) layers: Vec<Rc<Layer>>,
    /// Bytes of the visible files.
    pub(crate) visible: u64,
}

impl StoredImage {
    fn objects(&self) -> Objects {
        let all = self.layers.iter().flat_map(|layer| &layer.objects);
        all.map(|(id, size)| (*id, *size)).collect()
    }
}

/// How many contents, and their sizes' sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Amount {
    pub(crate) contents: u64,
    pub(crate) bytes: u64,
}

impl Amount {
    fn of<'a>(sizes: impl IntoIterator<Item = &'a u64>) -> Self {
        sizes.into_iter().fold(Self::default(), |sum, size| Self {
            contents: sum.contents + 1,
            bytes: sum.bytes + size,
        })
    }
}

#[derive(Debug, Serialize)]
struct Image {
    name: String,
    layers: usize,
    logical_bytes: u64,
    visible_bytes: u64,
    stored: Amount,
    exclusive: Amount,
    shared: Amount,
    fair_share_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Pair {
    names: [String; 2],
    shared: Amount,
}

/// What some images hold and have in common.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    version: u32,
    images: Vec<Image>,
    /// What each two of the images have in common.
    pairs: Vec<Pair>,
    /// In two or more of the images, each content once.
    shared: Amount,
    /// Of the shared: in layers that two or more of the images have.
    in_shared_layers: Amount,
    /// Of the shared: the rest, which no layer digest shows.
    in_other_layers: Amount,
    /// All contents of all the images, each once: what the store keeps for them.
    kept: Amount,
    /// Bytes of the images one by one, less what is kept.
    saved_bytes: u64,
    /// Bytes of objects that no image of the store holds: a container's, or for gc to take.
    unattributed_bytes: u64,
    #[serde(skip)]
    objects: Vec<ObjectId>,
}

impl Report {
    /// Compares the chosen images; `store_bytes` are those of all objects of the store.
    pub(crate) fn new(all: &[StoredImage], store_bytes: u64) -> Self {
        let objects: Vec<Objects> = all.iter().map(StoredImage::objects).collect();
        let holders = holders(&objects);
        let rows: Vec<(&StoredImage, &Objects, u64)> = all
            .iter()
            .zip(&objects)
            .zip(fair_shares(&objects, &holders))
            .filter(|((image, _), _)| image.chosen)
            .map(|((image, objects), fair)| (image, objects, fair))
            .collect();
        let kept: Objects = rows
            .iter()
            .flat_map(|(_, objects, _)| objects.iter())
            .map(|(id, size)| (*id, *size))
            .collect();
        let shared_ids = in_several(rows.iter().map(|(_, objects, _)| objects.keys().copied()));
        let shared: Objects = kept
            .iter()
            .filter(|(id, _)| shared_ids.contains(id))
            .map(|(id, size)| (*id, *size))
            .collect();
        let in_layers = in_shared_layers(rows.iter().map(|(image, ..)| *image));
        let (layered, other): (Vec<_>, Vec<_>) =
            shared.iter().partition(|(id, _)| in_layers.contains(id));
        let one_by_one: u64 = rows
            .iter()
            .flat_map(|(_, objects, _)| objects.values())
            .sum();
        let attributed: u64 = holders.values().map(|(size, _)| size).sum();
        let kept = Amount::of(kept.values());
        Self {
            version: VERSION,
            images: rows.iter().map(|row| image(row, &holders)).collect(),
            pairs: pairs(&rows),
            shared: Amount::of(shared.values()),
            in_shared_layers: Amount::of(layered.into_iter().map(|(_, size)| size)),
            in_other_layers: Amount::of(other.into_iter().map(|(_, size)| size)),
            kept,
            saved_bytes: one_by_one.saturating_sub(kept.bytes),
            unattributed_bytes: store_bytes.saturating_sub(attributed),
            objects: shared.into_keys().collect(),
        }
    }

    /// Contents that two or more of the images hold, sorted.
    pub(crate) fn shared_objects(&self) -> &[ObjectId] {
        &self.objects
    }
}

/// Each content with its size and the number of images that hold it.
type Holders = BTreeMap<ObjectId, (u64, u64)>;

fn holders(images: &[Objects]) -> Holders {
    let mut holders = Holders::new();
    for (id, size) in images.iter().flatten() {
        holders.entry(*id).or_insert((*size, 0)).1 += 1;
    }
    holders
}

/// Divides each content among its images; what is left over goes a byte each to the first of them.
fn fair_shares(images: &[Objects], holders: &Holders) -> Vec<u64> {
    let mut served: BTreeMap<ObjectId, u64> = BTreeMap::new();
    let share = |id: &ObjectId, served: &mut BTreeMap<ObjectId, u64>| {
        let (size, images) = holders.get(id).copied().unwrap_or((0, 1));
        let before = served.entry(*id).or_default();
        let extra = u64::from(*before < size % images);
        *before += 1;
        size / images + extra
    };
    images
        .iter()
        .map(|objects| objects.keys().map(|id| share(id, &mut served)).sum())
        .collect()
}

fn image((image, objects, fair): &(&StoredImage, &Objects, u64), holders: &Holders) -> Image {
    let alone = |id: &ObjectId| holders.get(id).is_some_and(|(_, images)| *images == 1);
    let (exclusive, shared): (Vec<_>, Vec<_>) = objects.iter().partition(|(id, _)| alone(id));
    Image {
        name: image.name.clone(),
        layers: image.layers.len(),
        logical_bytes: image.layers.iter().map(|layer| layer.logical).sum(),
        visible_bytes: image.visible,
        stored: Amount::of(objects.values()),
        exclusive: Amount::of(exclusive.into_iter().map(|(_, size)| size)),
        shared: Amount::of(shared.into_iter().map(|(_, size)| size)),
        fair_share_bytes: *fair,
    }
}

fn pairs(rows: &[(&StoredImage, &Objects, u64)]) -> Vec<Pair> {
    let mut pairs = Vec::new();
    let mut rest = rows;
    while let Some(((one, objects, _), others)) = rest.split_first() {
        pairs.extend(others.iter().map(|(other, theirs, _)| {
            let common = objects.iter().filter(|(id, _)| theirs.contains_key(id));
            Pair {
                names: [one.name.clone(), other.name.clone()],
                shared: Amount::of(common.map(|(_, size)| size)),
            }
        }));
        rest = others;
    }
    pairs
}

/// Contents of the layers that two or more images have.
fn in_shared_layers<'a>(
    images: impl Iterator<Item = &'a StoredImage> + Clone,
) -> BTreeSet<ObjectId> {
    let diffs = |image: &'a StoredImage| {
        let diffs: BTreeSet<DiffId> = image.layers.iter().map(|layer| layer.diff).collect();
        diffs.into_iter()
    };
    let several = in_several(images.clone().map(diffs));
    let layers = images.flat_map(|image| &image.layers);
    layers
        .filter(|layer| several.contains(&layer.diff))
        .flat_map(|layer| layer.objects.keys().copied())
        .collect()
}

/// What is in two or more of the sets.
fn in_several<T: Ord>(sets: impl Iterator<Item = impl Iterator<Item = T>>) -> BTreeSet<T> {
    let mut once = BTreeSet::new();
    let mut several = BTreeSet::new();
    for item in sets.flatten() {
        if once.contains(&item) {
            several.insert(item);
        } else {
            once.insert(item);
        }
    }
    several
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.images.iter().map(|image| image.name.chars().count());
        let pair_names = |pair: &Pair| pair.names.join(" and ");
        let pairs = self
            .pairs
            .iter()
            .map(|pair| pair_names(pair).chars().count() + 2);
        let width = names.chain(pairs).max().unwrap_or(0).max(24);
        writeln!(
            f,
            "{:width$} {:>6} {:>13} {:>13} {:>13} {:>13} {:>13} {:>13}",
            "IMAGE", "LAYERS", "LOGICAL", "VISIBLE", "STORED", "EXCLUSIVE", "SHARED", "FAIR"
        )?;
        for image in &self.images {
            writeln!(
                f,
                "{:width$} {:>6} {:>13} {:>13} {:>13} {:>13} {:>13} {:>13}",
                image.name,
                image.layers,
                image.logical_bytes,
                image.visible_bytes,
                image.stored.bytes,
                image.exclusive.bytes,
                image.shared.bytes,
                image.fair_share_bytes
            )?;
        }
        writeln!(f, "\n{:width$} {:>10} {:>15}", "", "CONTENTS", "BYTES")?;
        let mut line = |what: &str, amount: Amount| {
            writeln!(
                f,
                "{what:width$} {:>10} {:>15}",
                amount.contents, amount.bytes
            )
        };
        line("shared", self.shared)?;
        line("  in shared layers", self.in_shared_layers)?;
        line("  in layers of their own", self.in_other_layers)?;
        if self.pairs.len() > 1 {
            for pair in &self.pairs {
                line(&format!("  {}", pair_names(pair)), pair.shared)?;
            }
        }
        line("kept once for all", self.kept)?;
        writeln!(f, "{:width$} {:>10} {:>15}", "saved", "", self.saved_bytes)?;
        if self.unattributed_bytes > 0 {
            let bytes = self.unattributed_bytes;
            writeln!(f, "{:width$} {:>10} {bytes:>15}", "in no image", "")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowl_core::digest::Sha256Digest;

    fn layer(name: &str, contents: &[(&str, u64)]) -> Rc<Layer> {
        Rc::new(Layer {
            diff: DiffId(Sha256Digest::of(name.as_bytes())),
            // One file twice in each layer.
            logical: contents.iter().map(|(_, size)| size * 2).sum(),
            objects: contents
                .iter()
                .map(|(name, size)| (ObjectId::of(name.as_bytes()), *size))
                .collect(),
        })
    }

    fn image(name: &str, chosen: bool, layers: Vec<Rc<Layer>>) -> StoredImage {
        StoredImage {
            name: name.to_owned(),
            chosen,
            layers,
            visible: 7,
        }
    }

    const fn amount(contents: u64, bytes: u64) -> Amount {
        Amount { contents, bytes }
    }

    fn images(third_is_chosen: bool) -> [StoredImage; 3] {
        let base = || layer("base", &[("busybox", 1000)]);
        let own = [
            layer("a", &[("catalogue", 100), ("a", 1)]),
            layer("b", &[("catalogue", 100), ("b", 2)]),
            layer("c", &[("catalogue", 100), ("c", 4)]),
        ];
        let [a, b, c] = own;
        [
            image("a", true, vec![base(), a]),
            image("b", true, vec![base(), b]),
            image("c", third_is_chosen, vec![c]),
        ]
    }

    #[test]
    fn report_tells_shared_layers_from_shared_contents() {
        let report = Report::new(&images(true), 1107 + 50);
        assert_eq!(report.shared, amount(2, 1100));
        assert_eq!(report.in_shared_layers, amount(1, 1000));
        assert_eq!(report.in_other_layers, amount(1, 100));
        assert_eq!(report.kept, amount(5, 1107));
        assert_eq!(report.saved_bytes, 1101 + 1102 + 104 - 1107);
        assert_eq!(report.unattributed_bytes, 50);
        assert_eq!(report.shared_objects().len(), 2);
        let pairs: Vec<_> = report.pairs.iter().map(|pair| pair.shared).collect();
        assert_eq!(pairs, [amount(2, 1100), amount(1, 100), amount(1, 100)]);
    }

    #[test]
    fn exclusive_and_shared_sum_to_kept() {
        let report = Report::new(&images(true), 1107);
        for image in &report.images {
            let both = image.exclusive.bytes + image.shared.bytes;
            assert_eq!(image.stored.bytes, both);
        }
        let exclusive: u64 = report
            .images
            .iter()
            .map(|image| image.exclusive.bytes)
            .sum();
        assert_eq!(exclusive + report.shared.bytes, report.kept.bytes);
        let fair: Vec<u64> = report
            .images
            .iter()
            .map(|image| image.fair_share_bytes)
            .collect();
        assert_eq!(fair, [500 + 34 + 1, 500 + 33 + 2, 33 + 4]);
        assert_eq!(fair.iter().sum::<u64>(), report.kept.bytes);
        assert_eq!(report.images[0].logical_bytes, 2202);
    }

    #[test]
    fn unchosen_images_count_as_sharers() {
        let report = Report::new(&images(false), 1107);
        assert_eq!(report.images.len(), 2);
        assert_eq!(report.images[0].exclusive, amount(1, 1));
        assert_eq!(report.kept, amount(4, 1103));
        assert_eq!(
            report.unattributed_bytes, 0,
            "the third image's are its own"
        );
    }
}
