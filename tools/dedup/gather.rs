//! Reads images and their layers from stores, each layer once.
//!
//! A lease keeps every layer from the moment it is found, so gc may run concurrently. What was
//! removed before that is not reported.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result, bail};
use cowl_core::digest::{DiffId, ImageId, ObjectId};
use cowl_core::image::ImageConfig;
use cowl_core::recipe;
use cowl_core::store::{
    LayerInfo, Lease, ObjectUsage, Platform, Reference, Store, StoreError, Tag, TaggedImage,
};
use cowl_core::sys::mmap::map_published;
use cowl_core::tree::Tree;

use crate::choose::{Found, Wanted, choose, joined};
use crate::cleanup;
use crate::model::{Collection, Image, Layer, Objects, Step};
use crate::show::with_platform;

/// Far above any real configuration.
const CONFIG_LIMIT: u64 = 16 << 20;

/// Prefix of the ids of reports' leases. Those of mounts are hexadecimal.
const LEASE: &str = "dedup-";

/// Reads all images of the stores. Marks the wanted ones as chosen, or all if none is wanted.
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
        let is_scratch = wanted.iter().any(|wanted| wanted.is_in(number));
        // Ignore the leases of reports, which are temporary.
        let pinned = store.pinned_layers(|mount| !mount.starts_with(LEASE))?;
        gathering.store(number, store, is_scratch)?;
        for layers in pinned {
            // A running load may not have added the layer yet, and a mount may end meanwhile.
            let layers = layers
                .iter()
                .map(|diff| gathering.layer(number, store, *diff));
            pins.push(layers.filter_map(Result::ok).collect());
        }
        // If there is a store, archives do not count as on disk.
        if number == 0 {
            disk = if is_scratch {
                usage_of(&gathering.objects)
            } else {
                store.object_usage()?
            };
        }
    }
    let Gathering {
        objects,
        layers,
        images,
        mut skipped,
        ..
    } = gathering;
    let mut failed = Vec::new();
    let images = choose(images, stores, wanted, &mut failed, &mut skipped)?;
    if wanted.is_empty() {
        failed.append(&mut skipped);
    }
    Ok(Collection {
        objects,
        layers,
        images,
        pins,
        disk,
        failed,
        skipped,
    })
}

/// What a store of these contents would hold. The scratch store need not have their files.
fn usage_of(objects: &Objects) -> ObjectUsage {
    const BLOCK: u64 = 4096;
    let mut usage = ObjectUsage::default();
    for object in (0..).take(objects.len()) {
        let size = objects.size(object);
        usage += ObjectUsage {
            objects: 1,
            bytes: size,
            blocks: size.div_ceil(BLOCK) * (BLOCK / 512),
        };
    }
    usage
}

struct Gathering {
    objects: Objects,
    layers: Vec<Layer>,
    /// The layers by diffID, over all stores.
    known: HashMap<DiffId, usize>,
    images: Vec<Found>,
    skipped: Vec<anyhow::Error>,
}

/// The names of one image.
#[derive(Default)]
struct Names {
    shown: BTreeSet<String>,
    /// References that select it, alone or with the other images of a tag.
    references: Vec<Reference>,
    /// Of these, those that select it where one image is wanted.
    first_of: Vec<Reference>,
    /// References that select it alone: each name with its platform.
    of_platform: Vec<(Reference, Platform)>,
}

impl Names {
    /// Adds a tag's references to this image. The tag's name, and the digest that it referred to at
    /// its source, select every image of the tag.
    fn add(&mut self, reference: &Reference, image: &TaggedImage, tag: &Tag) {
        let own = tag.names_by_digest(image);
        self.references.extend(own.iter().cloned());
        self.first_of.extend(own);
        let of_source = tag.target.as_ref().map(|target| target.digest);
        self.references
            .extend(of_source.map(|digest| reference.at(digest)));
        self.references.push(reference.clone());
        let platform = image.platform.clone();
        self.of_platform.push((reference.clone(), platform));
        if tag.id() == Some(image.config) {
            self.first_of.push(reference.clone());
        }
    }
}

impl Gathering {
    /// Reads a store. In a scratch store, the archives name the images.
    fn store(&mut self, number: usize, store: &Store, is_scratch: bool) -> Result<()> {
        let (tags, images) = self.leased(store)?;
        let mut names: BTreeMap<ImageId, Names> = BTreeMap::new();
        for tag in &tags {
            for image in &tag.images {
                let names = names.entry(image.config).or_default();
                if let Some(reference) = &tag.reference {
                    if !is_scratch {
                        names.shown.insert(shown(reference, image, tag));
                    }
                    names.add(reference, image, tag);
                }
            }
        }
        for (id, image) in &images {
            let Names {
                shown,
                references,
                first_of,
                of_platform,
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
                of_platform,
                damage,
                without_history: None,
            };
            if found.damage.is_none() {
                found.without_history = add_steps(store, &mut found.image).err();
            }
            self.add(found);
        }
        Ok(())
    }

    /// Adds an image, or merges it with the same image of another store.
    fn add(&mut self, found: Found) {
        let is_it = |known: &&mut Found| known.image.id == found.image.id;
        let Some(known) = self.images.iter_mut().find(is_it) else {
            self.images.push(found);
            return;
        };
        known.names.extend(found.names);
        known.references.extend(found.references);
        known.first_of.extend(found.first_of);
        known.of_platform.extend(found.of_platform);
        if found.damage.is_none()
            && let Some(damage) = known.damage.take()
        {
            self.skipped.push(damage);
            known.image.layers = found.image.layers;
            known.image.steps = found.image.steps;
            known.image.store = found.image.store;
            known.without_history = found.without_history;
        }
    }

    /// The tags of a store and their images, with a lease on all their layers.
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
                // Removed meanwhile: read the tags again.
                Err(StoreError::NoLayer(_)) => continue,
                Err(error) => return Err(error.into()),
            }
            self.skipped
                .extend(list.damaged.into_iter().map(anyhow::Error::from));
            // Drop tags removed before the lease was taken: their objects may be gone.
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
        check_tree(&tree, &info).with_context(|| format!("the tree of layer {diff}"))?;
        let place = u8::try_from(number).unwrap_or(u8::MAX);
        let contents: Vec<_> = tree
            .object_sizes()
            .map(|(id, size)| self.objects.intern(id, size, place))
            .collect();
        let mut hidden = Vec::new();
        if let Some(file) = store.layer_recipe(diff)? {
            let map =
                map_published(&file).with_context(|| format!("the recipe of layer {diff}"))?;
            for id in recipe::own_object_ids(&map).with_context(|| format!("layer {diff}"))? {
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
}

/// Reads the command of each layer. An unreadable configuration loses only the commands.
fn add_steps(store: &Store, image: &mut Image) -> Result<()> {
    let read = store
        .read_blob(image.id.0, CONFIG_LIMIT)
        .map_err(anyhow::Error::from)
        .and_then(|bytes| Ok(ImageConfig::from_slice(&bytes)?.history))
        .with_context(|| format!("the history of image {}", image.name));
    let (history, read) = match read {
        Ok(history) => (history, Ok(())),
        Err(error) => (Vec::new(), Err(error)),
    };
    let made = history.into_iter().filter(|entry| !entry.empty_layer);
    image.steps = made
        .map(|entry| Step {
            created_by: entry.created_by,
        })
        .chain(std::iter::repeat(Step::default()))
        .take(image.layers.len())
        .collect();
    read
}

/// Takes a lease on these layers. None if there are none, or if the store is read-only, so that
/// nothing can be removed either.
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
    with_platform(reference, &image.platform)
}

/// The images that lose their last tag with this image's tags.
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

/// Checks a tree's digest: later steps would not notice a damaged size or object id.
fn check_tree(tree: &Tree, info: &LayerInfo) -> Result<()> {
    tree.verify_digest()?;
    if ObjectId::from_bytes(tree.digest()) != info.tree {
        bail!("its digest is not that of layer.json");
    }
    Ok(())
}
