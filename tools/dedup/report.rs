//! The report: every figure of a collection, as in its JSON.
//!
//! docs/dedup.md defines each figure and field.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use cowl_core::digest::ObjectId;
use serde::Serialize;

use crate::ladder::{Ladder, Rung};
use crate::layers::{self, DuplicateRow, LayerRow};
use crate::model::{Collection, Image};
use crate::sharing::{Amount, Class, Sharing};
use crate::show::{image_name, shown_path};
use crate::walk::{Cause, Walked, walk};
use crate::whatif::{self, RebaseRow, RemovalRow};

/// Version of the JSON: fields never change their meaning, new ones may be added.
const VERSION: u32 = 1;

#[derive(Debug, Serialize)]
pub(crate) struct ImageRow {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) layers: usize,
    pub(crate) logical_bytes: u64,
    pub(crate) visible_bytes: u64,
    pub(crate) stored: Amount,
    pub(crate) exclusive: Amount,
    pub(crate) shared: Amount,
    pub(crate) fair_share_bytes: u64,
    /// The sum over all four causes.
    pub(crate) waste_bytes: u64,
    #[serde(skip)]
    pub(crate) waste_by_cause: BTreeMap<Cause, u64>,
}

impl ImageRow {
    fn add_waste(&mut self, rows: &[WasteRow]) {
        for row in rows {
            self.waste_bytes += row.bytes;
            *self.waste_by_cause.entry(row.cause).or_default() += row.bytes;
        }
    }

    pub(crate) fn waste(&self, cause: Cause) -> u64 {
        self.waste_by_cause.get(&cause).copied().unwrap_or(0)
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Pair {
    pub(crate) names: [String; 2],
    pub(crate) shared: Amount,
}

#[derive(Debug, Serialize)]
pub(crate) struct WasteRow {
    pub(crate) image: String,
    pub(crate) cause: Cause,
    pub(crate) bytes: u64,
    pub(crate) layer: String,
    pub(crate) paths: Vec<String>,
    /// The layer's position in the image, from 1, as in [`LayerRow::number`]: an image may have a
    /// layer twice.
    pub(crate) number: usize,
    /// The command of the layer that caused the waste.
    pub(crate) step: String,
    /// The files with their bytes, the largest first.
    #[serde(skip)]
    pub(crate) files: Vec<(u64, String)>,
}

#[derive(Debug, Serialize)]
pub(crate) struct MatrixRow {
    pub(crate) a: String,
    pub(crate) b: String,
    pub(crate) bytes: u64,
    /// The common bytes divided by those of the union.
    pub(crate) jaccard: f64,
}

/// The error bounds of a rung.
#[derive(Debug, Serialize)]
pub(crate) struct RungError {
    pub(crate) unit: &'static str,
    /// Two standard errors of `chunks` and `bytes`, relative to them; 0 if exact.
    pub(crate) relative: f64,
    /// The same for `zstd_bytes`.
    pub(crate) zstd_relative: f64,
}

/// An unreadable content, which the ladder leaves out.
#[derive(Debug, Serialize)]
pub(crate) struct UnreadableRow {
    pub(crate) object: String,
    /// Its size according to the indexes.
    pub(crate) bytes: u64,
    /// All images that hold it, not only listed ones.
    pub(crate) images: Vec<String>,
    /// The reason, such as `is missing`.
    pub(crate) error: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct StoreRow {
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
    pub(crate) blocks: u64,
}

/// What some images hold and have in common.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) version: u32,
    pub(crate) images: Vec<ImageRow>,
    /// What each pair of images has in common.
    pub(crate) pairs: Vec<Pair>,
    /// Contents in two or more of the images, each once.
    pub(crate) shared: Amount,
    /// Of `shared`, those in layers that two or more of the images have.
    pub(crate) in_shared_layers: Amount,
    /// Of `shared`, the rest, which layer digests do not show.
    pub(crate) in_other_layers: Amount,
    /// All contents of all the images, each once: what the store keeps for them.
    pub(crate) kept: Amount,
    /// The sum of the images' bytes, minus what is kept.
    pub(crate) saved_bytes: u64,
    /// Bytes of objects in no image of the store: a container's, or garbage.
    pub(crate) unattributed_bytes: u64,
    pub(crate) store: StoreRow,
    pub(crate) waste: Vec<WasteRow>,
    pub(crate) matrix: Vec<MatrixRow>,
    pub(crate) layers: Vec<LayerRow>,
    /// The largest files that several layers have.
    pub(crate) duplicates: Vec<DuplicateRow>,
    pub(crate) removals: Vec<RemovalRow>,
    pub(crate) rebases: Vec<RebaseRow>,
    /// What each granularity would store; empty unless asked for.
    pub(crate) ladder: Vec<Rung>,
    /// The errors of rungs that are estimates.
    pub(crate) ladder_errors: Vec<RungError>,
    /// What the ladder leaves out.
    pub(crate) unreadable: Vec<UnreadableRow>,
    /// Contents that two or more of the images hold, sorted.
    #[serde(skip)]
    pub(crate) shared_objects: Vec<ObjectId>,
}

impl Report {
    pub(crate) fn new(collection: &Collection, sharing: &Sharing) -> Result<Self> {
        let listed: Vec<usize> = collection
            .images
            .iter()
            .enumerate()
            .filter_map(|(number, image)| image.chosen.then_some(number))
            .collect();
        let mut images = Vec::new();
        let mut waste = Vec::new();
        let mut layer_rows = Vec::new();
        let holding = layers::layers_holding(collection);
        for number in &listed {
            let Some(image) = collection.images.get(*number) else {
                continue;
            };
            let walked = walk(collection, image)?;
            let mut row = image_row(collection, sharing, *number, &walked);
            layer_rows.extend(layers::rows(collection, image, &walked, &holding));
            let rows = waste_rows(collection, image, walked);
            row.add_waste(&rows);
            images.push(row);
            waste.extend(rows);
        }
        let chosen = |image: &&usize| collection.images.get(**image).is_some_and(|i| i.chosen);
        let holds = |class: &Class| class.images.iter().filter(chosen).count();
        let shared = sharing.sum(|class| holds(class) > 1);
        let kept = sharing.sum(|class| holds(class) > 0);
        let in_shared_layers = sharing
            .classes
            .iter()
            .filter(|class| holds(class) > 1)
            .fold(Amount::default(), |sum, class| Amount {
                contents: sum.contents + class.in_shared_layers.contents,
                bytes: sum.bytes + class.in_shared_layers.bytes,
            });
        let one_by_one: u64 = images.iter().map(|image| image.stored.bytes).sum();
        // Objects of archives are not in the store.
        let attributed: u64 = (0..)
            .take(collection.objects.len())
            .filter(|object| collection.objects.store(*object) == 0)
            .filter(|object| !sharing.images_of(*object).is_empty())
            .map(|object| collection.objects.size(object))
            .sum();
        let (pairs, matrix) = pairs(sharing, &listed, &images);
        let shared_objects = (0..).take(collection.objects.len()).filter(|object| {
            let images = sharing.images_of(*object).iter();
            images.filter(chosen).nth(1).is_some()
        });
        let shared_objects: BTreeSet<ObjectId> = shared_objects
            .filter_map(|object| collection.objects.id(object))
            .collect();
        Ok(Self {
            version: VERSION,
            images,
            pairs,
            shared,
            in_shared_layers,
            in_other_layers: Amount {
                contents: shared.contents - in_shared_layers.contents,
                bytes: shared.bytes - in_shared_layers.bytes,
            },
            kept,
            saved_bytes: one_by_one.saturating_sub(kept.bytes),
            unattributed_bytes: collection.disk.bytes.saturating_sub(attributed),
            store: StoreRow {
                objects: collection.disk.objects,
                bytes: collection.disk.bytes,
                blocks: collection.disk.blocks,
            },
            waste,
            matrix,
            layers: layer_rows,
            duplicates: layers::duplicates(collection, |object| {
                sharing.images_of(object).iter().filter(chosen).count() as u64
            }),
            removals: whatif::removals(collection, sharing),
            rebases: whatif::rebases(collection, sharing),
            ladder: Vec::new(),
            ladder_errors: Vec::new(),
            unreadable: Vec::new(),
            shared_objects: shared_objects.into_iter().collect(),
        })
    }
}

/// The report of `cowl layers`.
#[derive(Debug, Serialize)]
pub(crate) struct OnlyLayers<'r> {
    version: u32,
    layers: &'r [LayerRow],
}

impl Report {
    pub(crate) fn only_layers(&self) -> OnlyLayers<'_> {
        OnlyLayers {
            version: self.version,
            layers: &self.layers,
        }
    }

    pub(crate) fn set_ladder(
        &mut self,
        collection: &Collection,
        sharing: &Sharing,
        ladder: Ladder,
    ) {
        let estimates = ladder
            .rungs
            .iter()
            .filter(|rung| rung.error > 0.0 || rung.zstd_error > 0.0);
        self.ladder_errors = estimates
            .map(|rung| RungError {
                unit: rung.unit,
                relative: rung.error,
                zstd_relative: rung.zstd_error,
            })
            .collect();
        self.ladder = ladder.rungs;
        let name = |image: &usize| Some(collection.images.get(*image)?.name.clone());
        let row = |(object, damage)| UnreadableRow {
            object: collection
                .objects
                .id(object)
                .map(|id| id.to_string())
                .unwrap_or_default(),
            bytes: collection.objects.size(object),
            images: sharing.images_of(object).iter().filter_map(name).collect(),
            error: format!("{damage}"),
        };
        self.unreadable = ladder.unreadable.into_iter().map(row).collect();
    }

    /// A line for each content that could not be read, if there are not too many.
    pub(crate) fn damage(&self) -> Vec<String> {
        const LINES: usize = 20;
        let line = |row: &UnreadableRow| {
            let (object, error) = (&row.object, &row.error);
            let images: Vec<String> = row.images.iter().map(|name| image_name(name)).collect();
            let images = match images.as_slice() {
                [image] => format!("image {image}"),
                images => format!("images {}", images.join("; ")),
            };
            format!("object {object} {error}; it is of {images}: load one again to replace it")
        };
        let mut lines: Vec<String> = self.unreadable.iter().take(LINES).map(line).collect();
        if let Some(more @ 1..) = self.unreadable.len().checked_sub(LINES) {
            lines.push(format!("and {more} objects more; `cowl check` lists them"));
        }
        lines
    }
}

fn image_row(
    collection: &Collection,
    sharing: &Sharing,
    number: usize,
    walked: &Walked,
) -> ImageRow {
    let stored = sharing.stored.get(number).copied().unwrap_or_default();
    let exclusive = sharing.exclusive.get(number).copied().unwrap_or_default();
    let image = collection.images.get(number);
    let layers = image.map_or(&[][..], |image| &image.layers);
    ImageRow {
        name: image.map(|image| image.name.clone()).unwrap_or_default(),
        id: image.map(|image| image.id.to_string()).unwrap_or_default(),
        layers: layers.len(),
        logical_bytes: collection.stack(layers).map(|layer| layer.logical).sum(),
        visible_bytes: walked.visible,
        stored,
        exclusive,
        shared: Amount {
            contents: stored.contents - exclusive.contents,
            bytes: stored.bytes - exclusive.bytes,
        },
        fair_share_bytes: sharing.fair_shares.get(number).copied().unwrap_or(0),
        waste_bytes: 0,
        waste_by_cause: BTreeMap::new(),
    }
}

/// One row for each cause and layer, and one for each content with several paths.
fn waste_rows(collection: &Collection, image: &Image, walked: Walked) -> Vec<WasteRow> {
    let mut rows: BTreeMap<(usize, Cause, usize, usize), WasteRow> = BTreeMap::new();
    for (number, waste) in walked.waste.into_iter().enumerate() {
        let content = if waste.cause == Cause::Duplicate {
            number + 1
        } else {
            0
        };
        let key = (waste.layer, waste.cause, waste.by, content);
        let diff = image
            .layers
            .get(waste.layer)
            .and_then(|layer| collection.layer(*layer));
        let row = rows.entry(key).or_insert_with(|| WasteRow {
            image: image.name.clone(),
            cause: waste.cause,
            bytes: 0,
            layer: diff.map(|layer| layer.diff.to_string()).unwrap_or_default(),
            paths: Vec::new(),
            number: waste.layer + 1,
            step: image
                .steps
                .get(waste.by)
                .map(|step| step.created_by.clone())
                .unwrap_or_default(),
            files: Vec::new(),
        });
        row.bytes += waste.bytes;
        let mut shown: Vec<String> = waste.paths.iter().map(|path| shown_path(path)).collect();
        row.files
            .push((waste.bytes, shown.first().cloned().unwrap_or_default()));
        row.paths.append(&mut shown);
    }
    let mut rows: Vec<WasteRow> = rows.into_values().collect();
    for row in &mut rows {
        row.files
            .sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        if row.cause != Cause::Duplicate {
            row.paths.sort();
        }
    }
    rows.sort_by_key(|row| Reverse(row.bytes));
    rows
}

fn pairs(sharing: &Sharing, listed: &[usize], images: &[ImageRow]) -> (Vec<Pair>, Vec<MatrixRow>) {
    let mut pairs = Vec::new();
    let mut matrix = Vec::new();
    for ((one, other), shared) in sharing.pairs(listed) {
        let (Some(one), Some(other)) = (images.get(one), images.get(other)) else {
            continue;
        };
        pairs.push(Pair {
            names: [one.name.clone(), other.name.clone()],
            shared,
        });
        matrix.push(MatrixRow {
            a: one.name.clone(),
            b: other.name.clone(),
            bytes: shared.bytes,
            jaccard: ratio(
                shared.bytes,
                one.stored.bytes + other.stored.bytes - shared.bytes,
            ),
        });
    }
    (pairs, matrix)
}

/// A fraction from 0 to 1; 0 if `whole` is 0.
#[expect(
    clippy::cast_precision_loss,
    reason = "a ratio for people; its parts are exact elsewhere"
)]
pub(crate) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}
