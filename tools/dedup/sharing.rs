//! The arithmetic of sharing: which images hold each content.
//!
//! All contents held by the same set of images form one class, so nothing here costs images² x
//! contents. Every sum is exact: `stored = exclusive + shared` for each image, and the fair shares
//! of all images sum to what they keep.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use num_bigint::BigUint;
use serde::Serialize;

use crate::model::{Collection, ObjectNumber};

/// A number of contents and the sum of their sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Amount {
    pub(crate) contents: u64,
    pub(crate) bytes: u64,
}

impl Amount {
    pub(crate) fn add(&mut self, size: u64) {
        self.contents += 1;
        self.bytes += size;
    }

    fn extend(&mut self, other: Self) {
        self.contents += other.contents;
        self.bytes += other.bytes;
    }
}

/// The contents that exactly these images hold.
#[derive(Debug)]
pub(crate) struct Class {
    /// Indices into [`Collection::images`], ascending.
    pub(crate) images: Vec<usize>,
    /// Whether a container, a mount or a load holds them too.
    pub(crate) pinned: bool,
    pub(crate) amount: Amount,
    /// Of these, the contents in layers of two or more chosen images.
    pub(crate) in_shared_layers: Amount,
}

/// Which images hold which contents.
#[derive(Debug)]
pub(crate) struct Sharing {
    pub(crate) classes: Vec<Class>,
    /// The class of each content.
    class_of: Vec<u32>,
    /// For each image, its distinct contents.
    pub(crate) stored: Vec<Amount>,
    /// For each image, those of its contents that no other image holds.
    pub(crate) exclusive: Vec<Amount>,
    /// For each image, in bytes.
    pub(crate) fair_shares: Vec<u64>,
}

impl Sharing {
    pub(crate) fn of(collection: &Collection) -> Self {
        let refined = Refined::of(collection);
        let mut classes: Vec<Class> = refined
            .holders()
            .into_iter()
            .map(|holders| {
                let is_image = |holder: &usize| *holder < collection.images.len();
                let (images, pins): (Vec<_>, Vec<_>) = holders.into_iter().partition(is_image);
                Class {
                    images,
                    pinned: !pins.is_empty(),
                    amount: Amount::default(),
                    in_shared_layers: Amount::default(),
                }
            })
            .collect();
        let layered = in_shared_layers(collection);
        for (number, class) in (0..).zip(&refined.class_of) {
            if let Some(class) = classes.get_mut(*class as usize) {
                let size = collection.objects.size(number);
                class.amount.add(size);
                if layered.get(number as usize) == Some(&true) {
                    class.in_shared_layers.add(size);
                }
            }
        }
        let mut order: Vec<usize> = (0..collection.images.len()).collect();
        order.sort_by_key(|image| {
            collection
                .images
                .get(*image)
                .map(|image| (&image.name, image.id))
        });
        let fair_shares = fair_shares(&classes, &order);
        let mut stored = vec![Amount::default(); collection.images.len()];
        let mut exclusive = stored.clone();
        for class in &classes {
            for image in &class.images {
                if let Some(stored) = stored.get_mut(*image) {
                    stored.extend(class.amount);
                }
                if let (1, Some(exclusive)) = (class.images.len(), exclusive.get_mut(*image)) {
                    exclusive.extend(class.amount);
                }
            }
        }
        Self {
            classes,
            class_of: refined.class_of,
            stored,
            exclusive,
            fair_shares,
        }
    }

    /// The images that hold a content.
    pub(crate) fn images_of(&self, object: ObjectNumber) -> &[usize] {
        let class = self.class_of.get(object as usize);
        class
            .and_then(|class| self.classes.get(*class as usize))
            .map_or(&[], |class| &class.images)
    }

    /// Whether no other image and no container, mount or load holds a content.
    pub(crate) fn is_only_in(&self, object: ObjectNumber, image: usize) -> bool {
        let class = self.class_of.get(object as usize);
        let class = class.and_then(|class| self.classes.get(*class as usize));
        class.is_some_and(|class| class.images == [image] && !class.pinned)
    }

    /// The sum over the classes that `wanted` selects.
    pub(crate) fn sum(&self, wanted: impl Fn(&Class) -> bool) -> Amount {
        let mut sum = Amount::default();
        for class in self.classes.iter().filter(|class| wanted(class)) {
            sum.extend(class.amount);
        }
        sum
    }

    /// For each pair of images in `listed`, what both hold.
    pub(crate) fn pairs(&self, listed: &[usize]) -> BTreeMap<(usize, usize), Amount> {
        let place: HashMap<usize, usize> = listed.iter().copied().zip(0..).collect();
        let mut pairs: BTreeMap<(usize, usize), Amount> = BTreeMap::new();
        for one in 0..listed.len() {
            for other in one + 1..listed.len() {
                pairs.insert((one, other), Amount::default());
            }
        }
        for class in &self.classes {
            let mut holders: Vec<usize> = class
                .images
                .iter()
                .filter_map(|image| place.get(image).copied())
                .collect();
            holders.sort_unstable();
            let mut rest = holders.as_slice();
            while let Some((one, others)) = rest.split_first() {
                for other in others {
                    if let Some(pair) = pairs.get_mut(&(*one, *other)) {
                        pair.extend(class.amount);
                    }
                }
                rest = others;
            }
        }
        pairs
    }

    /// What is freed in objects/ if these images are removed with all their names.
    pub(crate) fn freed(&self, removed: &BTreeSet<usize>) -> Amount {
        self.sum(|class| {
            !class.pinned
                && !class.images.is_empty()
                && class.images.iter().all(|image| removed.contains(image))
        })
    }
}

/// Partition refinement of contents by their holders: each holder splits the classes of which it
/// holds a part.
struct Refined {
    class_of: Vec<u32>,
    /// For each class, the class it was split from and the holder that split it.
    parents: Vec<(u32, usize)>,
}

impl Refined {
    fn of(collection: &Collection) -> Self {
        let mut this = Self {
            class_of: vec![0; collection.objects.len()],
            parents: vec![(0, usize::MAX)],
        };
        let images = collection.images.iter().map(|image| &image.layers);
        // The last holder seen for each content, + 1.
        let mut seen = vec![0_usize; collection.objects.len()];
        for (holder, layers) in images.chain(&collection.pins).enumerate() {
            let mut split: HashMap<u32, u32> = HashMap::new();
            for object in collection
                .stack(layers)
                .flat_map(crate::model::Layer::objects)
            {
                let place = object as usize;
                let (Some(seen), Some(class)) = (seen.get_mut(place), this.class_of.get_mut(place))
                else {
                    continue;
                };
                if std::mem::replace(seen, holder + 1) == holder + 1 {
                    continue;
                }
                let parents = &mut this.parents;
                *class = *split.entry(*class).or_insert_with(|| {
                    parents.push((*class, holder));
                    u32::try_from(parents.len() - 1).unwrap_or(u32::MAX)
                });
            }
        }
        this
    }

    /// For each class, its holders, ascending.
    fn holders(&self) -> Vec<Vec<usize>> {
        let mut used = vec![false; self.parents.len()];
        for class in &self.class_of {
            if let Some(used) = used.get_mut(*class as usize) {
                *used = true;
            }
        }
        let of = |(class, used): (usize, bool)| {
            let mut holders = Vec::new();
            let mut class = if used { class } else { 0 };
            while let (1.., Some((parent, holder))) = (class, self.parents.get(class)) {
                holders.push(*holder);
                class = *parent as usize;
            }
            holders.reverse();
            holders
        };
        used.iter().copied().enumerate().map(of).collect()
    }
}

/// For each content, whether it is in a layer that two or more chosen images have.
fn in_shared_layers(collection: &Collection) -> Vec<bool> {
    let mut images = vec![0_usize; collection.layers.len()];
    for image in collection.chosen() {
        for layer in image.layers.iter().collect::<BTreeSet<_>>() {
            if let Some(images) = images.get_mut(*layer) {
                *images += 1;
            }
        }
    }
    let mut layered = vec![false; collection.objects.len()];
    let shared = collection
        .layers
        .iter()
        .zip(images)
        .filter(|(_, images)| *images > 1);
    for object in shared.flat_map(|(layer, _)| layer.objects()) {
        if let Some(layered) = layered.get_mut(object as usize) {
            *layered = true;
        }
    }
    layered
}

/// Each content's bytes divided by the number of images that hold it: summed exactly, then rounded
/// once per image.
///
/// Every sum is rounded down. The bytes left over go, one each, to the images with the largest
/// fractions, ties by `order`. So the shares sum to the bytes of all contents that images hold.
fn fair_shares(classes: &[Class], order: &[usize]) -> Vec<u64> {
    let images = order.len();
    // For each image, bytes of its contents by number of holders.
    let mut sums: Vec<BTreeMap<u64, u64>> = vec![BTreeMap::new(); images];
    let mut total = 0;
    for class in classes.iter().filter(|class| !class.images.is_empty()) {
        total += class.amount.bytes;
        for image in &class.images {
            if let Some(sums) = sums.get_mut(*image) {
                *sums.entry(class.images.len() as u64).or_default() += class.amount.bytes;
            }
        }
    }
    let holders: BTreeSet<u64> = sums.iter().flat_map(BTreeMap::keys).copied().collect();
    let denominator = holders
        .iter()
        .fold(BigUint::from(1_u32), |multiple, count| {
            let common = gcd(*count, u64::try_from(&multiple % count).unwrap_or(0));
            multiple * (count / common)
        });
    let mut shares = Vec::with_capacity(images);
    let mut fractions = Vec::with_capacity(images);
    for sums in &sums {
        let mut share = 0;
        let mut fraction = BigUint::ZERO;
        for (count, bytes) in sums {
            share += bytes / count;
            fraction += (&denominator / count) * (bytes % count);
        }
        share += u64::try_from(&fraction / &denominator).unwrap_or(0);
        shares.push(share);
        fractions.push(&fraction % &denominator);
    }
    let mut order = order.to_vec();
    order.sort_by_key(|image| std::cmp::Reverse(fractions.get(*image)));
    let left = total - shares.iter().sum::<u64>();
    for image in order.iter().take(usize::try_from(left).unwrap_or(0)) {
        if let Some(share) = shares.get_mut(*image) {
            *share += 1;
        }
    }
    shares
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(images: &[usize], bytes: u64) -> Class {
        Class {
            images: images.to_vec(),
            pinned: false,
            amount: Amount { contents: 1, bytes },
            in_shared_layers: Amount::default(),
        }
    }

    /// 2.5 + 3.33 + 1 = 6.83; 2.5 + 3.33 = 5.83; 3.33: 14 whole bytes of 16, so the two largest
    /// fractions are rounded up.
    #[test]
    fn fair_shares_are_rounded_once_and_sum_to_the_total() {
        let classes = [
            class(&[0, 1], 5),
            class(&[0, 1, 2], 10),
            class(&[0], 1),
            class(&[], 99),
        ];
        assert_eq!(fair_shares(&classes, &[0, 1, 2]), [7, 6, 3]);
    }

    /// Objects of odd sizes in both of two images: each image has half, without an extra byte per
    /// object.
    #[test]
    fn fair_shares_of_many_objects_are_equal() {
        let classes: Vec<Class> = (0..13_000).map(|n| class(&[0, 1], 2 * n + 1)).collect();
        let total: u64 = 13_000 * 13_000;
        assert_eq!(fair_shares(&classes, &[0, 1]), [total / 2, total / 2]);
    }

    /// Denominators whose least common multiple has 1,440 bits.
    #[test]
    fn fair_shares_of_a_thousand_images_sum_to_the_total() {
        let images: Vec<usize> = (0..1000).collect();
        let classes: Vec<Class> = (1..=1000)
            .map(|n| class(&images[..n], 7919 * n as u64 % 1013))
            .collect();
        let total: u64 = classes.iter().map(|class| class.amount.bytes).sum();
        let shares = fair_shares(&classes, &images);
        assert_eq!(shares.iter().sum::<u64>(), total);
        assert!(
            shares.is_sorted_by(|a, b| a >= b),
            "the first images hold the most"
        );
    }
}
