//! The arithmetic of sharing: sets of contents and their sizes, no files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use cowl_core::digest::{DiffId, ObjectId};
use serde::Serialize;

/// Contents with their sizes in bytes.
pub(crate) type Objects = BTreeMap<ObjectId, u64>;

/// An image and what it holds.
#[derive(Debug)]
pub(crate) struct Held {
    /// As it is called.
    pub(crate) name: String,
    /// Lowest first.
    pub(crate) layers: Vec<DiffId>,
    /// Contents of all its layers, each once.
    pub(crate) objects: Objects,
}

/// How many contents, and their sizes' sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Amount {
    pub(crate) contents: usize,
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
    #[serde(flatten)]
    holds: Amount,
}

/// What some images have in common.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    images: Vec<Image>,
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
    #[serde(skip)]
    objects: Vec<ObjectId>,
}

impl Report {
    /// Compares images; `objects_of` gives the contents of layers.
    pub(crate) fn new<E>(
        images: &[Held],
        objects_of: impl FnOnce(&[DiffId]) -> Result<Objects, E>,
    ) -> Result<Self, E> {
        let shared_layers = in_several(
            images
                .iter()
                .map(|image| image.layers.iter().copied().collect()),
        );
        let in_layers = objects_of(&shared_layers.into_iter().collect::<Vec<_>>())?;
        let shared_ids = in_several(
            images
                .iter()
                .map(|image| image.objects.keys().copied().collect()),
        );
        let all: Objects = images
            .iter()
            .flat_map(|image| image.objects.clone())
            .collect();
        let shared: Objects = all
            .iter()
            .filter(|(id, _)| shared_ids.contains(id))
            .map(|(id, size)| (*id, *size))
            .collect();
        let kept = Amount::of(all.values());
        let one_by_one: u64 = images.iter().flat_map(|image| image.objects.values()).sum();
        Ok(Self {
            images: images
                .iter()
                .map(|image| Image {
                    name: image.name.clone(),
                    layers: image.layers.len(),
                    holds: Amount::of(image.objects.values()),
                })
                .collect(),
            shared: Amount::of(shared.values()),
            in_shared_layers: Amount::of(
                shared
                    .iter()
                    .filter(|(id, _)| in_layers.contains_key(id))
                    .map(|(_, size)| size),
            ),
            in_other_layers: Amount::of(
                shared
                    .iter()
                    .filter(|(id, _)| !in_layers.contains_key(id))
                    .map(|(_, size)| size),
            ),
            kept,
            saved_bytes: one_by_one.saturating_sub(kept.bytes),
            objects: shared.into_keys().collect(),
        })
    }

    /// Contents that two or more of the images hold, sorted.
    pub(crate) fn shared_objects(&self) -> &[ObjectId] {
        &self.objects
    }
}

/// What is in two or more of the sets.
fn in_several<T: Ord>(sets: impl Iterator<Item = BTreeSet<T>>) -> BTreeSet<T> {
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
        let width = self
            .images
            .iter()
            .map(|image| image.name.chars().count())
            .max()
            .unwrap_or(0)
            .max(22);
        writeln!(
            f,
            "{:width$} {:>8} {:>10} {:>15}",
            "", "LAYERS", "CONTENTS", "BYTES"
        )?;
        for image in &self.images {
            writeln!(
                f,
                "{:width$} {:>8} {:>10} {:>15}",
                image.name, image.layers, image.holds.contents, image.holds.bytes
            )?;
        }
        let mut line = |what: &str, amount: Amount| {
            writeln!(
                f,
                "{what:width$} {:>8} {:>10} {:>15}",
                "", amount.contents, amount.bytes
            )
        };
        line("shared", self.shared)?;
        line("  in shared layers", self.in_shared_layers)?;
        line("  in layers of their own", self.in_other_layers)?;
        line("kept once for all", self.kept)?;
        writeln!(
            f,
            "{:width$} {:>8} {:>10} {:>15}",
            "saved", "", "", self.saved_bytes
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowl_core::digest::Sha256Digest;

    fn id(name: &str) -> ObjectId {
        ObjectId::of(name.as_bytes())
    }

    fn image(name: &str, layers: &[&str], objects: &[(&str, u64)]) -> Held {
        Held {
            name: name.to_owned(),
            layers: layers
                .iter()
                .map(|layer| DiffId(Sha256Digest::of(layer.as_bytes())))
                .collect(),
            objects: objects
                .iter()
                .map(|(name, size)| (id(name), *size))
                .collect(),
        }
    }

    #[test]
    fn layers_and_contents_are_told_apart() {
        let images = [
            image(
                "a",
                &["base", "app-a"],
                &[("busybox", 1000), ("catalogue", 100), ("a", 1)],
            ),
            image(
                "b",
                &["base", "app-b"],
                &[("busybox", 1000), ("catalogue", 100), ("b", 2)],
            ),
            image("c", &["other"], &[("catalogue", 100), ("c", 4)]),
        ];
        let base = |layers: &[DiffId]| -> Result<Objects, ()> {
            assert_eq!(layers, [DiffId(Sha256Digest::of(b"base"))]);
            Ok([(id("busybox"), 1000)].into())
        };
        let report = Report::new(&images, base).unwrap();
        assert_eq!(
            report.shared,
            Amount {
                contents: 2,
                bytes: 1100
            }
        );
        assert_eq!(
            report.in_shared_layers,
            Amount {
                contents: 1,
                bytes: 1000
            }
        );
        assert_eq!(
            report.in_other_layers,
            Amount {
                contents: 1,
                bytes: 100
            }
        );
        assert_eq!(
            report.kept,
            Amount {
                contents: 5,
                bytes: 1107
            }
        );
        assert_eq!(report.saved_bytes, 1101 + 1102 + 104 - 1107);
        assert_eq!(report.shared_objects().len(), 2);
    }
}
