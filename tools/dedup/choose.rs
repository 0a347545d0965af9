//! Which of the gathered images a report lists, in which order, and what it calls them.
//!
//! Invariant: no two listed images have the same name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::symlink_metadata;

use anyhow::{Result, bail};
use cowl_core::digest::ImageId;
use cowl_core::image::{Loaded, is_named_as_archive};
use cowl_core::store::Reference;

use crate::model::Image;

/// An image or images that the report is to list.
pub(crate) enum Wanted {
    /// By a name or an id, in a store; of a name, the images for all platforms.
    Named(String),
    /// The same; of a name, the image for the first platform.
    First(String),
    /// All of an archive.
    Archive {
        path: String,
        images: Vec<Loaded>,
        /// The store that it was read into.
        store: usize,
    },
}

/// An image as its tags say, and an error if it could not be read.
pub(crate) struct Found {
    pub(crate) image: Image,
    /// Its names as they are shown.
    pub(crate) names: BTreeSet<String>,
    /// The names that mean it, by tag and by digest.
    pub(crate) references: Vec<Reference>,
    /// Of these, those that mean no other image first.
    pub(crate) first_of: Vec<Reference>,
    /// Its names with its platform: `multi:1 (linux/arm64)`.
    pub(crate) of_platform: Vec<String>,
    pub(crate) damage: Option<anyhow::Error>,
}

/// Puts the wanted images first, in the order of the arguments and in that of an archive. The error
/// of a wanted one that cannot be read goes to `failed`, unless nothing is left of what was wanted.
pub(crate) fn choose(
    mut found: Vec<Found>,
    wanted: &[Wanted],
    failed: &mut Vec<anyhow::Error>,
    skipped: &mut Vec<anyhow::Error>,
) -> Result<Vec<Image>> {
    let mut places: HashMap<ImageId, (usize, usize)> = HashMap::new();
    for (place, wanted) in wanted.iter().enumerate() {
        let keys = match wanted {
            Wanted::Named(name) => find(&found, name, |found| &found.references)?,
            Wanted::First(name) => find(&found, name, |found| &found.first_of)?,
            Wanted::Archive { images, .. } => images.iter().flat_map(all_of).collect(),
        };
        let is_archive = matches!(wanted, Wanted::Archive { .. });
        for (number, key) in keys.into_iter().enumerate() {
            let number = if is_archive { number } else { 0 };
            places.entry(key).or_insert((place, number));
        }
    }
    name_archived(&mut found, wanted);
    let mut images = Vec::new();
    for Found { image, damage, .. } in found {
        let place = places.get(&image.id).copied();
        match (damage, place) {
            (Some(damage), Some((argument, _))) => {
                if let Some(Wanted::First(_)) = wanted.get(argument) {
                    // There is nothing to compare the other side with.
                    return Err(damage);
                }
                failed.push(damage);
            }
            (Some(damage), None) => skipped.push(damage),
            (None, place) => images.push((
                place.unwrap_or((usize::MAX, 0)),
                Image {
                    chosen: wanted.is_empty() || place.is_some(),
                    ..image
                },
            )),
        }
    }
    if !wanted.is_empty() && !images.iter().any(|(_, image)| image.chosen) && !failed.is_empty() {
        return Err(failed.swap_remove(0));
    }
    images.sort_by(|(place, image), (other, than)| {
        let order = place.cmp(other).then_with(|| image.name.cmp(&than.name));
        order.then_with(|| image.id.cmp(&than.id))
    });
    Ok(images.into_iter().map(|(_, image)| image).collect())
}

/// The images of an archive's name, for all platforms.
fn all_of(loaded: &Loaded) -> impl Iterator<Item = ImageId> + use<'_> {
    std::iter::once(loaded.image).chain(loaded.others.iter().copied())
}

/// Names the images of archives: as their archive does, by its path if that has no name for them.
/// The path is behind a name that another image has too; all places are behind the name of an image
/// that has several. A name that is still not of one image alone, as of two platforms that are
/// called alike, gets the id behind it.
fn name_archived(found: &mut [Found], wanted: &[Wanted]) {
    let mut places: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for wanted in wanted {
        let Wanted::Archive {
            path,
            images,
            store,
        } = wanted
        else {
            continue;
        };
        for (loaded, id) in images
            .iter()
            .flat_map(|image| all_of(image).map(move |id| (image, id)))
        {
            let is_it = |found: &Found| found.image.id == id;
            let Some(number) = found.iter().position(is_it) else {
                continue;
            };
            if let Some(Found { image, names, .. }) = found.get_mut(number) {
                // Archives may have the same names; the store has given them to the last.
                if names.is_empty() {
                    names.extend(loaded.tags.iter().map(ToString::to_string));
                }
                let places = places.entry(number).or_default();
                if places.is_empty() && image.store < *store {
                    places.push("store");
                }
                if !places.contains(&path.as_str()) {
                    places.push(path);
                }
            }
        }
    }
    for (number, places) in &places {
        if let Some(Found { image, names, .. }) = found.get_mut(*number) {
            let places = places.join(", ");
            image.name = match (names.is_empty(), places.strip_prefix("store, ")) {
                (false, _) => joined(names),
                (true, Some(_)) => image.id.to_string(),
                (true, None) => places,
            };
        }
    }
    let ambiguous = ambiguous_names(found);
    for (number, places) in places {
        if let Some(Found { image, .. }) = found.get_mut(number) {
            let needed = places.len() > 1 || ambiguous.contains(&image.name);
            let places = places.join(", ");
            if needed && image.name != places {
                image.name = format!("{} ({places})", image.name);
            }
        }
    }
    let ambiguous = ambiguous_names(found);
    for Found { image, .. } in found {
        if ambiguous.contains(&image.name) {
            let id = image.id.0.hex();
            image.name = format!("{} {}", image.name, id.get(..12).unwrap_or(&id));
        }
    }
}

pub(crate) fn joined(names: &BTreeSet<String>) -> String {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.join(", ")
}

/// The names that several images have.
fn ambiguous_names(found: &[Found]) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    let names = found.iter().map(|found| &found.image.name);
    names.filter(|name| !known.insert(*name)).cloned().collect()
}

/// The image that a name, an id or the beginning of one id stands for. A name may have a platform
/// behind it, as it is shown: `multi:1 (linux/arm64)`.
fn find(
    found: &[Found],
    name: &str,
    references: impl Fn(&Found) -> &[Reference],
) -> Result<Vec<ImageId>> {
    let key = |found: &Found| found.image.id;
    if let Some((name, platform)) = name.rsplit_once(" (") {
        let shown = format!("{} ({platform}", name.parse::<Reference>()?);
        let named = found
            .iter()
            .filter(|found| found.of_platform.contains(&shown));
        let keys: Vec<_> = named.map(key).collect();
        if keys.is_empty() {
            bail!("no image {shown} in the store; `cowl dedup {name}` lists its platforms");
        }
        return Ok(keys);
    }
    if let Ok(reference) = name.parse().map(Reference::looked_up) {
        let named = found
            .iter()
            .filter(|found| references(found).contains(&reference));
        let keys: Vec<_> = named.map(key).collect();
        if !keys.is_empty() {
            return Ok(keys);
        }
    }
    let digits = name.strip_prefix("sha256:").unwrap_or(name);
    let is_id = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let of_id = found
        .iter()
        .filter(|found| found.image.id.0.hex().starts_with(digits));
    let keys: Vec<_> = of_id.filter(|_| is_id).map(key).collect();
    match keys.as_slice() {
        [_] => Ok(keys),
        [] => {
            let shown = name.parse::<Reference>()?;
            let hint = if is_named_as_archive(name) || symlink_metadata(name).is_ok() {
                format!("; an archive is read as ./{name}")
            } else {
                "; `cowl images` lists what there is".to_owned()
            };
            bail!("no image {shown} in the store{hint}")
        }
        _ => bail!("image {name}: several images have ids that begin so; give more of it"),
    }
}
