//! Selects the images that a report lists, and their order and names.
//!
//! Invariant: no two listed images have the same name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::symlink_metadata;

use anyhow::{Result, bail};
use cowl_core::digest::ImageId;
use cowl_core::image::{Loaded, PlatformName, is_named_as_archive};
use cowl_core::store::{Platform, Reference, Store};

use crate::archive::Named;
use crate::model::Image;
use crate::show::with_platform;

/// One or more images that the user selected.
pub(crate) enum Wanted {
    /// By name or id, in a store; for a name, the images for all platforms.
    Named(String),
    /// By name or id, in a store; for a name, only the image for the first platform.
    First(String),
    /// All images of an archive.
    Archive {
        path: String,
        images: Vec<Loaded>,
        /// Whether a platform was given too.
        of_platform: bool,
        /// The store it was read into.
        store: usize,
    },
}

impl Wanted {
    /// Whether it is the archive in this store.
    pub(crate) fn is_in(&self, number: usize) -> bool {
        matches!(self, Self::Archive { store, .. } if *store == number)
    }
}

/// An image with its names from its tags, or the error of reading it.
pub(crate) struct Found {
    pub(crate) image: Image,
    /// Its displayed names.
    pub(crate) names: BTreeSet<String>,
    /// The names that refer to it, by tag and by digest.
    pub(crate) references: Vec<Reference>,
    /// Of these, the names whose first image it is.
    pub(crate) first_of: Vec<Reference>,
    /// Its names, each with its platform.
    pub(crate) of_platform: Vec<(Reference, Platform)>,
    pub(crate) damage: Option<anyhow::Error>,
    /// Why its history could not be read, if only that is missing.
    pub(crate) without_history: Option<anyhow::Error>,
}

/// Puts the selected images first, in the order of the arguments and of the archive. Errors of
/// selected images go to `failed`, others to `skipped`; fails if no selected image is readable.
pub(crate) fn choose(
    mut found: Vec<Found>,
    stores: &[Store],
    wanted: &[Wanted],
    failed: &mut Vec<anyhow::Error>,
    skipped: &mut Vec<anyhow::Error>,
) -> Result<Vec<Image>> {
    let mut places: HashMap<ImageId, (usize, usize)> = HashMap::new();
    for (place, wanted) in wanted.iter().enumerate() {
        let keys = match wanted {
            Wanted::Named(name) => {
                let keys = find(&found, name, |found| &found.references);
                match keys.map_err(|error| (damage_of(stores, name, skipped), error)) {
                    Ok(keys) => keys,
                    Err((None, error)) => return Err(error),
                    Err((Some(damage), _)) => {
                        failed.push(damage);
                        continue;
                    }
                }
            }
            Wanted::First(name) => {
                let keys = find(&found, name, |found| &found.first_of);
                // There is nothing to compare the other side with.
                keys.map_err(|error| damage_of(stores, name, skipped).unwrap_or(error))?
            }
            Wanted::Archive { images, .. } => {
                let images = images.iter().flat_map(all_of);
                images.map(|(image, _)| image).collect()
            }
        };
        let is_archive = matches!(wanted, Wanted::Archive { .. });
        for (number, key) in keys.into_iter().enumerate() {
            let number = if is_archive { number } else { 0 };
            places.entry(key).or_insert((place, number));
        }
    }
    name_archived(&mut found, wanted);
    let mut images = Vec::new();
    for found in found {
        let place = places.get(&found.image.id).copied();
        let is_chosen = wanted.is_empty() || place.is_some();
        let told = if is_chosen {
            &mut *failed
        } else {
            &mut *skipped
        };
        told.extend(found.without_history);
        match found.damage {
            Some(damage) => {
                let argument = place.and_then(|(argument, _)| wanted.get(argument));
                if let Some(Wanted::First(_)) = argument {
                    // There is nothing to compare the other side with.
                    return Err(damage);
                }
                told.push(damage);
            }
            None => images.push((
                place.unwrap_or((usize::MAX, 0)),
                Image {
                    chosen: is_chosen,
                    ..found.image
                },
            )),
        }
    }
    if !wanted.is_empty() && !images.iter().any(|(_, image)| image.chosen) && !failed.is_empty() {
        let all: Vec<String> = failed.iter().map(|error| format!("{error:#}")).collect();
        bail!("{}", all.join("; "));
    }
    images.sort_by(|(place, image), (other, than)| {
        let order = place.cmp(other).then_with(|| image.name.cmp(&than.name));
        order.then_with(|| image.id.cmp(&than.id))
    });
    Ok(images.into_iter().map(|(_, image)| image).collect())
}

/// The error for a name whose record is damaged, taken from the errors of all records.
fn damage_of(
    stores: &[Store],
    name: &str,
    skipped: &mut Vec<anyhow::Error>,
) -> Option<anyhow::Error> {
    let name = split_behind(name).map_or(name, |(name, _)| name);
    let reference = name.parse().ok().map(Reference::looked_up)?;
    let damage = stores
        .iter()
        .find_map(|store| store.find_tag(&reference).err());
    let damage = anyhow::Error::from(damage?);
    skipped.retain(|known| known.to_string() != damage.to_string());
    Some(damage.context(format!("image {reference}")))
}

/// Splits `NAME (TEXT)`.
fn split_behind(name: &str) -> Option<(&str, &str)> {
    name.strip_suffix(')')?.rsplit_once(" (")
}

/// The images under an archive's name, for all platforms.
fn all_of(loaded: &Loaded) -> impl Iterator<Item = (ImageId, &Platform)> + use<'_> {
    let others = loaded.others.iter();
    std::iter::once((loaded.image, &loaded.platform))
        .chain(others.map(|(image, platform)| (*image, platform)))
}

/// An image's names in an archive: its tags, with the platform if it is not the first or was given.
fn names_in_archive(
    loaded: &Loaded,
    id: ImageId,
    platform: &Platform,
    of_platform: bool,
) -> impl Iterator<Item = String> {
    let is_plain = id == loaded.image && !of_platform;
    let tags = loaded.tags.iter();
    tags.map(move |tag| {
        if is_plain {
            tag.to_string()
        } else {
            with_platform(tag, platform)
        }
    })
}

/// Names the images of archives by their names there, else by the archive's path. An ambiguous name
/// gets the path appended, an image in several places all of them. A name that is still ambiguous,
/// as with two equal platforms, gets the id appended.
fn name_archived(found: &mut [Found], wanted: &[Wanted]) {
    let mut places: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for wanted in wanted {
        let Wanted::Archive {
            path,
            images,
            of_platform,
            store,
        } = wanted
        else {
            continue;
        };
        for (loaded, (id, platform)) in images
            .iter()
            .flat_map(|image| all_of(image).map(move |one| (image, one)))
        {
            let is_it = |found: &Found| found.image.id == id;
            let Some(number) = found.iter().position(is_it) else {
                continue;
            };
            if let Some(Found { image, names, .. }) = found.get_mut(number) {
                names.extend(names_in_archive(loaded, id, platform, *of_platform));
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

/// Finds an image by name, id or unambiguous prefix of an id. A name may have a platform appended
/// as displayed: `multi:1 (linux/arm64)`.
fn find(
    found: &[Found],
    name: &str,
    references: impl Fn(&Found) -> &[Reference],
) -> Result<Vec<ImageId>> {
    let key = |found: &Found| found.image.id;
    if let Some((name, behind)) = split_behind(name) {
        return of_platform(found, name, behind);
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
        _ => bail!("image {name}: several images have ids with this prefix; use more digits"),
    }
}

/// The image of a name for one platform. Reports append archives in the same way (`app:1
/// (./app.tar)`): for these the error says how to select the image.
fn of_platform(found: &[Found], name: &str, behind: &str) -> Result<Vec<ImageId>> {
    let reference = name.parse::<Reference>()?;
    if let Ok(platform) = behind.parse::<PlatformName>() {
        let is_it =
            |(known, of): &(Reference, Platform)| *known == reference && platform.matches(of);
        let named = found
            .iter()
            .filter(|found| found.of_platform.iter().any(is_it));
        let keys: Vec<_> = named.map(|found| found.image.id).collect();
        if !keys.is_empty() {
            return Ok(keys);
        }
    }
    let mut places = behind.split(", ");
    let hint = match places.find(|place| Named::of(OsStr::new(place)).is_some()) {
        Some(archive) => format!("the image of an archive is read as {archive}:{name}"),
        None => format!("`cowl dedup {name}` lists its platforms"),
    };
    bail!("no image {reference} ({behind}) in the store; {hint}")
}
