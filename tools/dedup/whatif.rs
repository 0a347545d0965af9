//! What would change if an image were removed, or moved to another base.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::layers::{base_length, bases};
use crate::model::{Collection, ObjectNumber};
use crate::sharing::{Amount, Sharing};

/// The removal of an image with all its names.
#[derive(Debug, Serialize)]
pub(crate) struct RemovalRow {
    pub(crate) image: String,
    /// What it frees in objects/ (`cowl rmi` runs gc at once).
    pub(crate) freed: Amount,
}

/// An image moved to another image's base.
#[derive(Debug, Serialize)]
pub(crate) struct RebaseRow {
    pub(crate) image: String,
    /// An image that has the other base.
    pub(crate) onto: String,
    /// Number of layers that the image would lose, and of layers that would replace them.
    pub(crate) layers_out: usize,
    pub(crate) layers_in: usize,
    /// Contents that no image or container would need any more.
    pub(crate) freed: Amount,
}

pub(crate) fn removals(collection: &Collection, sharing: &Sharing) -> Vec<RemovalRow> {
    let of = |image: &crate::model::Image| {
        let goes = |(number, other): (usize, &crate::model::Image)| {
            let gone = other.store == image.store && image.removed_with.contains(&other.id);
            gone.then_some(number)
        };
        let removed: BTreeSet<usize> = collection
            .images
            .iter()
            .enumerate()
            .filter_map(goes)
            .collect();
        RemovalRow {
            image: image.name.clone(),
            freed: sharing.freed(&removed),
        }
    };
    collection.chosen().map(of).collect()
}

/// For each listed image, each base of another listed image.
pub(crate) fn rebases(collection: &Collection, sharing: &Sharing) -> Vec<RebaseRow> {
    let bases = bases(collection);
    let mut rows = Vec::new();
    for (number, image) in collection
        .images
        .iter()
        .enumerate()
        .filter(|(_, image)| image.chosen)
    {
        let length = base_length(collection, image);
        let (own, above) = image.layers.split_at_checked(length).unwrap_or_default();
        let freed = only_in(collection, sharing, number, own, above);
        for (base, onto) in &bases {
            if base.as_slice() != own && onto.id != image.id {
                rows.push(RebaseRow {
                    image: image.name.clone(),
                    onto: onto.name.clone(),
                    layers_out: own.len(),
                    layers_in: base.len(),
                    freed,
                });
            }
        }
    }
    rows
}

/// The contents of some layers of an image that neither its other layers nor anything else holds.
fn only_in(
    collection: &Collection,
    sharing: &Sharing,
    image: usize,
    layers: &[usize],
    others: &[usize],
) -> Amount {
    let objects = |layers| -> BTreeSet<ObjectNumber> {
        collection
            .stack(layers)
            .flat_map(crate::model::Layer::objects)
            .collect()
    };
    let mut amount = Amount::default();
    for object in objects(layers).difference(&objects(others)) {
        if sharing.is_only_in(*object, image) {
            amount.add(collection.objects.size(*object));
        }
    }
    amount
}
