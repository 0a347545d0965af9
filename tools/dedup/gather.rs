//! Reads images and their layers from stores, each layer once.
//!
//! A lease keeps every layer from the moment it is found, so gc may run beside. What is gone
//! before that was removed, and is not reported.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result, bail};
use cowl_core::digest::{DiffId, ImageId};
use cowl_core::image::{ImageConfig, Loaded};
use cowl_core::recipe;
use cowl_core::store::{Lease, ObjectUsage, Reference, Store, StoreError, Tag, TaggedImage};
use cowl_core::sys::mmap::map_published;

use crate::model::{Collection, Image, Layer, Objects, Step};
use crate::{archive, cleanup};

/// Far above any real configuration.
const CONFIG_LIMIT: u64 = 16 << 20;

/// What the ids of reports' leases begin with. Those of mounts are hexadecimal.
const LEASE: &str = "dedup-";

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

/// All images of the stores. Marks as chosen the wanted ones, or all if none is.
pub(crate) fn collect(stores: &[Store], wanted: &[Wanted]) -> Result<Collection> {
    let mut gathering = Gathering {
        objects: Objects::default(),
        layers: Vec::new(),
        known: HashMap::new(),
        images: Vec::new(),
        skipped: Vec::new(),
    };
    let mut pins = Vec::new();
    let mut disk = ObjectUsage::default();
    for (number, store) in stores.iter().enumerate() {
        // A report, this one or another, keeps nothing from being freed.
        let pinned = store.pinned_layers(|mount| !mount.starts_with(LEASE))?;
        gathering.store(number, store)?;
        for layers in pinned {
            // A running load may still be about to add a layer, and a mount may end meanwhile.
            let layers = layers
                .iter()
                .map(|diff| gathering.layer(number, store, *diff));
            pins.push(layers.filter_map(Result::ok).collect());
        }
        // Beside a store, archives take no part in what is on disk.
        if number == 0 {
            disk = store.object_usage()?;
        }
    }
    let Gathering {
        objects,
        layers,
        images,
        mut skipped,
        ..
    } = gathering;
    let images = choose(images, wanted, &mut skipped)?;
    Ok(Collection {
        objects,
        layers,
        images,
        pins,
        disk,
        skipped,
    })
}

/// An image as its tags say, and an error if it could not be read.
struct Found {
    image: Image,
    /// Its names as they are shown.
    names: BTreeSet<String>,
    references: Vec<Reference>,
    /// Of these, the tags whose first platform it is for.
    first_of: Vec<Reference>,
    damage: Option<anyhow::Error>,
}

/// Puts the wanted images first, in the order of the arguments, and checks that each can be read.
fn choose(
    mut found: Vec<Found>,
    wanted: &[Wanted],
    skipped: &mut Vec<anyhow::Error>,
) -> Result<Vec<Image>> {
    let mut places: HashMap<ImageId, usize> = HashMap::new();
    for (place, wanted) in wanted.iter().enumerate() {
        let keys = match wanted {
            Wanted::Named(name) => find(&found, name, |found| &found.references)?,
            Wanted::First(name) => find(&found, name, |found| &found.first_of)?,
            Wanted::Archive { images, .. } => images.iter().map(|loaded| loaded.image).collect(),
        };
        for key in keys {
            places.entry(key).or_insert(place);
        }
    }
    name_archived(&mut found, wanted);
    let mut images = Vec::new();
    for Found { image, damage, .. } in found {
        let place = places.get(&image.id).copied();
        match (damage, place) {
            // An image that is asked for must be readable.
            (Some(damage), Some(_)) => return Err(damage),
            (Some(damage), None) => skipped.push(damage),
            (None, place) => images.push((
                place.unwrap_or(usize::MAX),
                Image {
                    chosen: wanted.is_empty() || place.is_some(),
                    ..image
                },
            )),
        }
    }
    images.sort_by(|(place, image), (other, than)| {
        let order = place.cmp(other).then_with(|| image.name.cmp(&than.name));
        order.then_with(|| image.id.cmp(&than.id))
    });
    Ok(images.into_iter().map(|(_, image)| image).collect())
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
        for loaded in images {
            let is_it = |found: &Found| found.image.id == loaded.image;
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

fn joined(names: &BTreeSet<String>) -> String {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.join(", ")
}

/// The names that several images have.
fn ambiguous_names(found: &[Found]) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    let names = found.iter().map(|found| &found.image.name);
    names.filter(|name| !known.insert(*name)).cloned().collect()
}

/// The image that a name, an id or the beginning of one id stands for.
fn find(
    found: &[Found],
    name: &str,
    references: impl Fn(&Found) -> &[Reference],
) -> Result<Vec<ImageId>> {
    let key = |found: &Found| found.image.id;
    if let Ok(reference) = name.parse::<Reference>() {
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
            let hint = if archive::is_named_so(name) {
                format!("; an archive is read as ./{name}")
            } else {
                "; `cowl images` lists what there is".to_owned()
            };
            bail!("no image {shown} in the store{hint}")
        }
        _ => bail!("image {name}: several images have ids that begin so; give more of it"),
    }
}

struct Gathering {
    objects: Objects,
    layers: Vec<Layer>,
    /// One for each diffID, whichever stores have it.
    known: HashMap<DiffId, usize>,
    images: Vec<Found>,
    skipped: Vec<anyhow::Error>,
}

/// The tags of one image.
#[derive(Default)]
struct Names {
    shown: BTreeSet<String>,
    references: Vec<Reference>,
    first_of: Vec<Reference>,
}

impl Gathering {
    fn store(&mut self, number: usize, store: &Store) -> Result<()> {
        let (tags, images) = self.leased(store)?;
        let mut names: BTreeMap<ImageId, Names> = BTreeMap::new();
        for tag in &tags {
            for image in &tag.images {
                let names = names.entry(image.config).or_default();
                if let Some(reference) = &tag.reference {
                    names.shown.insert(shown(reference, image, tag));
                    names.references.push(reference.clone());
                    if tag.id() == Some(image.config) {
                        names.first_of.push(reference.clone());
                    }
                }
            }
        }
        for (id, image) in &images {
            let Names {
                shown,
                references,
                first_of,
            } = names.remove(id).unwrap_or_default();
            let name = if shown.is_empty() {
                id.to_string()
            } else {
                joined(&shown)
            };
            let read = self.image(number, store, image);
            let (layers, damage) = match read {
                Ok(layers) => (layers, None),
                Err(error) => (Vec::new(), Some(error.context(format!("image {name}")))),
            };
            let mut found = Found {
                image: Image {
                    name,
                    id: *id,
                    store: number,
                    chosen: false,
                    layers,
                    steps: Vec::new(),
                    removed_with: removed_with(*id, &tags),
                },
                names: shown,
                references,
                first_of,
                damage,
            };
            if found.damage.is_none() {
                self.add_steps(store, &mut found.image);
            }
            self.add(found);
        }
        Ok(())
    }

    /// Adds an image, or to what is known of it: an image is one, whichever stores have it.
    fn add(&mut self, found: Found) {
        let is_it = |known: &&mut Found| known.image.id == found.image.id;
        let Some(known) = self.images.iter_mut().find(is_it) else {
            self.images.push(found);
            return;
        };
        known.names.extend(found.names);
        known.references.extend(found.references);
        known.first_of.extend(found.first_of);
        if found.damage.is_none()
            && let Some(damage) = known.damage.take()
        {
            self.skipped.push(damage);
            known.image.layers = found.image.layers;
            known.image.steps = found.image.steps;
            known.image.store = found.image.store;
        }
    }

    /// The tags of a store and their images, all of whose layers a lease keeps.
    fn leased(&mut self, store: &Store) -> Result<(Vec<Tag>, BTreeMap<ImageId, TaggedImage>)> {
        loop {
            let list = store.tags()?;
            let mut images = BTreeMap::new();
            let mut layers = BTreeSet::new();
            for image in list.tags.iter().flat_map(|tag| &tag.images) {
                // An image with a missing layer is reported when it is read.
                let diffs = image.diff_ids();
                let mut whole = true;
                for diff in &diffs {
                    whole &= store.layer_info(*diff).is_ok_and(|info| info.is_some());
                }
                if whole {
                    layers.extend(diffs);
                }
                images.insert(image.config, image.clone());
            }
            let layers: Vec<DiffId> = layers.into_iter().collect();
            match cleanup::hold_lease(|| lease(store, &layers)) {
                Ok(()) => {}
                // Removed since the tags were read: read them again.
                Err(StoreError::NoLayer(_)) => continue,
                Err(error) => return Err(error.into()),
            }
            self.skipped
                .extend(list.damaged.into_iter().map(anyhow::Error::from));
            // Tags that went before the lease was taken: their objects may be gone.
            let now = store.tags()?.tags;
            let tags: Vec<Tag> = list
                .tags
                .into_iter()
                .filter(|tag| now.contains(tag))
                .collect();
            images.retain(|id, _| tags.iter().any(|tag| tag.has(*id)));
            return Ok((tags, images));
        }
    }

    fn image(&mut self, number: usize, store: &Store, image: &TaggedImage) -> Result<Vec<usize>> {
        let diffs = image.diff_ids();
        diffs
            .iter()
            .map(|diff| self.layer(number, store, *diff))
            .collect()
    }

    fn layer(&mut self, number: usize, store: &Store, diff: DiffId) -> Result<usize> {
        if let Some(known) = self.known.get(&diff) {
            return Ok(*known);
        }
        let tree = store.layer_tree(diff)?;
        let tree = tree.with_context(|| format!("layer {diff} is not in the store"))?;
        let info = store.layer_info(diff)?;
        let info = info.with_context(|| format!("layer {diff} has no layer.json"))?;
        let place = u8::try_from(number).unwrap_or(u8::MAX);
        let contents: Vec<_> = tree
            .object_sizes()
            .map(|(id, size)| self.objects.intern(id, size, place))
            .collect();
        let mut hidden = Vec::new();
        if let Some(file) = store.layer_recipe(diff)? {
            let map =
                map_published(&file).with_context(|| format!("the recipe of layer {diff}"))?;
            for id in recipe::object_ids(&map).with_context(|| format!("layer {diff}"))? {
                let known = if let Some(known) = self.objects.find(&id) {
                    known
                } else {
                    let file = store.open_object(id)?;
                    let size = file.metadata().context("an object")?.len();
                    self.objects.intern(id, size, place)
                };
                hidden.push(known);
            }
        }
        let own: BTreeSet<_> = contents.iter().copied().collect();
        hidden.retain(|object| !own.contains(object));
        self.layers.push(Layer {
            diff,
            logical: info.content_size,
            contents,
            hidden,
            tree,
        });
        self.known.insert(diff, self.layers.len() - 1);
        Ok(self.layers.len() - 1)
    }

    /// Reads the command of each layer. A configuration that cannot be read costs the commands
    /// only.
    fn add_steps(&mut self, store: &Store, image: &mut Image) {
        let read = store
            .read_blob(image.id.0, CONFIG_LIMIT)
            .map_err(anyhow::Error::from)
            .and_then(|bytes| Ok(ImageConfig::from_slice(&bytes)?));
        let history = match read {
            Ok(config) => config.history,
            Err(error) => {
                let what = format!("the history of image {}", image.name);
                self.skipped.push(error.context(what));
                Vec::new()
            }
        };
        let made = history.into_iter().filter(|entry| !entry.empty_layer);
        image.steps = made
            .map(|entry| Step {
                created_by: entry.created_by,
            })
            .chain(std::iter::repeat(Step::default()))
            .take(image.layers.len())
            .collect();
    }
}

/// A lease on these layers. None: there are none, or nothing can be written to the store, so
/// nothing can be removed from it either.
fn lease(store: &Store, layers: &[DiffId]) -> Result<Option<Lease>, StoreError> {
    if layers.is_empty() {
        return Ok(None);
    }
    let read_only = |error: &StoreError| {
        matches!(error, StoreError::Features { readable: true, .. })
            || error.errno() == Some(rustix::io::Errno::ROFS)
    };
    match store.lease(&format!("{LEASE}{}", std::process::id()), None, layers) {
        Err(error) if read_only(&error) => Ok(None),
        leased => leased.map(Some),
    }
}

/// A name, with the platform of an image that is not the first of its tag.
fn shown(reference: &Reference, image: &TaggedImage, tag: &Tag) -> String {
    if tag.id() == Some(image.config) {
        return reference.to_string();
    }
    let platform = &image.platform;
    let words = [&platform.os, &platform.architecture, &platform.variant];
    let words: Vec<&str> = words
        .map(String::as_str)
        .into_iter()
        .filter(|word| !word.is_empty())
        .collect();
    format!("{reference} ({})", words.join("/"))
}

/// The images that only tags of this image name.
fn removed_with(id: ImageId, tags: &[Tag]) -> Vec<ImageId> {
    let (gone, stay): (Vec<_>, Vec<_>) = tags.iter().partition(|tag| tag.has(id));
    let images = gone
        .iter()
        .flat_map(|tag| &tag.images)
        .map(|image| image.config);
    let images: BTreeSet<_> = images.collect();
    images
        .into_iter()
        .filter(|image| !stay.iter().any(|tag| tag.has(*image)))
        .collect()
}
