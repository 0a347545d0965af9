//! `load`: adds the images of an archive to the store. Each layer becomes a tree and objects, each
//! document a blob, each name a tag.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use cowl_sys::stack::on_own_stack;

use super::absent::Found;
use super::archive::Archive;
use super::parts::{self, LoadedLayers, Wanted};
use super::watch::Watch;
use super::{
    Candidate, CandidateImage, ImageConfig, ImageError, PlatformName, Reference, choice, docker,
    oci,
};
use crate::digest::{ImageId, Sha256Digest};
use crate::store::{
    Descriptor, MAX_LAYERS, Platform, Store, Tag, TaggedImage, TaggedLayer, Transaction, Trust,
};

/// A loaded image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The digest of its configuration.
    pub image: ImageId,
    /// What it is for.
    pub platform: Platform,
    /// The same of other platforms, if the names are of an index that lists them.
    pub others: Vec<(ImageId, Platform)>,
    /// Its names in the archive; it may have none.
    pub tags: Vec<Reference>,
}

/// How an archive is loaded.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions<'o> {
    /// With [`Trust::Hash`] existing objects are hashed too.
    pub trust: Trust,
    /// Only the images for these platforms are loaded; if there are none, all images that the
    /// archive has.
    pub platforms: &'o [PlatformName],
    /// Only what this means is loaded: a name, a tag alone or the beginning of an id, which must be
    /// of one image. None: all images.
    pub image: Option<&'o str>,
    /// Contents and compressed layers are hashed and not kept, for a look at trees in a store that
    /// goes with this process.
    pub only_trees: bool,
    /// Is told how far it is, and what of the archive is missing.
    pub watch: Option<&'o dyn Watch>,
}

/// Loads all images of a docker-archive or an OCI layout: a tar, a compressed tar, a pipe of one,
/// or a layout's directory.
///
/// All tags are published together, at the end: an error leaves the tags as they were. A large
/// load publishes complete layers earlier; after an error no tag names them, and the next gc frees
/// them unless a repeated load uses them first. Loading an image again repairs its damaged files.
pub fn load(store: &Store, path: &Path) -> Result<Vec<Loaded>, ImageError> {
    load_with(store, path, &LoadOptions::default())
}

/// [`load`] with options.
pub fn load_with(
    store: &Store,
    path: &Path,
    options: &LoadOptions<'_>,
) -> Result<Vec<Loaded>, ImageError> {
    let file = File::open(path).map_err(|source| ImageError::Read {
        name: path.display().to_string(),
        source,
    })?;
    load_file(store, file, path, options)
}

/// [`load_with`] for an open file, pipe or socket, read from its current position. `path` names it
/// in messages and gives the repository of a bare tag.
pub fn load_file(
    store: &Store,
    file: File,
    path: &Path,
    options: &LoadOptions<'_>,
) -> Result<Vec<Loaded>, ImageError> {
    on_own_stack(|| load_here(store, file, path, options)).map_err(ImageError::Thread)?
}

fn load_here(
    store: &Store,
    file: File,
    path: &Path,
    options: &LoadOptions<'_>,
) -> Result<Vec<Loaded>, ImageError> {
    let archive = Archive::open(file, path, store, options.watch)?;
    let mut found = candidates(&archive, path, options.platforms)?;
    if let Some(wanted) = options.image {
        found = choice::named(found, wanted)?;
    }
    let found = found.only_whole(&archive)?;
    let absent = found.wanted_absent(options.platforms);
    let planned = found.images.into_iter().map(plan);
    let planned = planned.collect::<Result<Vec<_>, _>>()?;
    let transaction = store.begin_with(options.trust)?;
    let layers: Vec<Wanted> = planned.iter().flat_map(PlannedImage::layers).collect();
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
    transaction.keep_layers(&diff_ids)?;
    let layers = parts::load(&archive, &transaction, &layers, options)?;
    let mut images: Vec<Image> = Vec::new();
    for planned in planned {
        let image = record(&transaction, &layers, planned)?;
        let same = |other: &&mut Image| other.tag.images == image.tag.images;
        match images.iter_mut().find(same) {
            Some(known) => known.names.extend(image.names),
            None => images.push(image),
        }
    }
    if images.is_empty() {
        return Err(ImageError::Empty);
    }
    let tags = images.iter().flat_map(Image::tags).collect::<Vec<_>>();
    transaction.publish(&tags)?;
    if let Some(watch) = options.watch {
        for absent in &absent {
            watch.absent(absent);
        }
    }
    Ok(images.into_iter().map(Image::loaded).collect())
}

/// The images of the archive in either form; a new `docker save` writes both.
pub(super) fn candidates(
    archive: &Archive,
    path: &Path,
    platforms: &[PlatformName],
) -> Result<Found, ImageError> {
    let (layout, docker) = (archive.has(oci::LAYOUT)?, archive.has(docker::MANIFEST)?);
    if !layout && !docker {
        return Err(no_image_archive(archive)?);
    }
    let mut found = if layout {
        oci::candidates(archive, path, platforms)?
    } else {
        Found::default()
    };
    if docker {
        let also = docker::candidates(archive)?;
        for image in also.images {
            add(&mut found.images, image);
        }
        for mut absent in also.absent {
            let is_known = |name: &Reference| found.absent.iter().any(|a| a.names.contains(name));
            let is_named = !absent.names.is_empty();
            absent.names.retain(|name| !is_known(name));
            if !is_named || !absent.names.is_empty() {
                found.absent.push(absent);
            }
        }
    }
    if !platforms.is_empty() {
        found = choice::of_platforms(found, platforms)?;
    }
    found.or_nothing()
}

pub(super) fn parse_config(bytes: &[u8], names: &[Reference]) -> Result<ImageConfig, ImageError> {
    // `inspect` shows all of it, `commit` copies all of it: what could not be read then, nested too
    // deep or a number that is none, is refused before it is in the store.
    let whole = serde_json::from_slice::<serde_json::Value>(bytes);
    let config = whole.and_then(|_whole| ImageConfig::from_slice(bytes));
    config.map_err(|source| {
        let name = names.first().map_or_else(
            || ImageId(Sha256Digest::of(bytes)).to_string(),
            ToString::to_string,
        );
        ImageError::Json {
            name: format!("the configuration of {name}"),
            source,
        }
    })
}

/// Adds an image of `manifest.json` to those of the layout beside it.
///
/// Docker itself loads by `manifest.json`, and its layouts are not always whole: they leave out
/// images without a tag (moby#51389), and in 25.0 layers (moby#47065). The layout has what the
/// other cannot: manifests, and a choice of platforms, so what it has by name is not replaced by
/// another image.
fn add(found: &mut Vec<Candidate>, mut candidate: Candidate) {
    let mut known = false;
    for image in &candidate.images {
        for other in found.iter_mut() {
            let Some(same) = other
                .images
                .iter_mut()
                .find(|same| same.config == image.config)
            else {
                continue;
            };
            known = true;
            other.names.extend(candidate.names.iter().cloned());
            if !same
                .layers
                .iter()
                .map(|layer| &layer.name)
                .eq(image.layers.iter().map(|layer| &layer.name))
            {
                same.layers.clone_from(&image.layers);
                same.manifest = None;
            }
        }
    }
    if known {
        return;
    }
    let named = !candidate.names.is_empty();
    let taken = |name: &Reference| found.iter().any(|other| other.names.contains(name));
    candidate.names.retain(|name| !taken(name));
    if candidate.names.is_empty() != named {
        found.push(candidate);
    }
}

/// The error for a file that is no image archive; it names what the file is.
fn no_image_archive(archive: &Archive) -> Result<ImageError, ImageError> {
    let what = if archive.has("repositories")? {
        // Docker refuses it too, since 29 (moby#50324).
        "it is of a Docker older than 1.10; Docker 1.10 to 28 loads it, and saves it anew"
    } else if archive.looks_like_root() {
        "it looks like a root file system"
    } else {
        "it has neither oci-layout nor manifest.json"
    };
    Ok(ImageError::NotAnArchive {
        name: archive.name.clone(),
        what: what.to_owned(),
    })
}

/// An image whose parts are in the transaction.
pub(super) struct Image {
    first: TaggedImage,
    /// Without a name.
    tag: Tag,
    names: BTreeSet<Reference>,
}

impl Image {
    fn loaded(self) -> Loaded {
        let images = self.tag.images.into_iter();
        let others = images.filter(|image| image.config != self.first.config);
        Loaded {
            image: self.first.config,
            platform: self.first.platform,
            others: others.map(|image| (image.config, image.platform)).collect(),
            tags: self.names.into_iter().collect(),
        }
    }

    /// One tag per name, or one untagged record.
    pub(super) fn tags(&self) -> Vec<Tag> {
        if self.names.is_empty() {
            return vec![self.tag.clone()];
        }
        self.names
            .iter()
            .map(|name| Tag {
                reference: Some(name.clone()),
                ..self.tag.clone()
            })
            .collect()
    }
}

/// An image whose documents were checked, so that its layers are known.
pub(super) struct PlannedImage {
    names: Vec<Reference>,
    index: Option<Vec<u8>>,
    platforms: Vec<PlannedPlatform>,
}

struct PlannedPlatform {
    platform: Platform,
    config: Vec<u8>,
    manifest: Option<Vec<u8>>,
    layers: Vec<Wanted>,
}

impl PlannedImage {
    pub(super) fn layers(&self) -> impl Iterator<Item = Wanted> {
        let layers = self.platforms.iter().flat_map(|platform| &platform.layers);
        layers.cloned()
    }
}

/// Documents -> what to load.
pub(super) fn plan(candidate: Candidate) -> Result<PlannedImage, ImageError> {
    let Candidate {
        names,
        index,
        images,
        absent: _,
    } = candidate;
    let platforms = images
        .into_iter()
        .map(|image| plan_platform(&names, image))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(PlannedImage {
        names,
        index,
        platforms,
    })
}

fn plan_platform(
    names: &[Reference],
    image: CandidateImage,
) -> Result<PlannedPlatform, ImageError> {
    let config = parse_config(&image.config, names)?;
    if !matches!(config.os.as_str(), "" | "linux") {
        let what = format!("it is an image for {}, only Linux runs here", config.os);
        return Err(ImageError::Unsupported {
            name: ImageId(Sha256Digest::of(&image.config)).to_string(),
            what,
        });
    }
    let platform = config.platform();
    let diff_ids = config.rootfs.diff_ids;
    if diff_ids.len() != image.layers.len() {
        return Err(ImageError::LayerCount {
            config: diff_ids.len(),
            manifest: image.layers.len(),
        });
    }
    if diff_ids.len() > MAX_LAYERS {
        return Err(ImageError::TooManyLayers {
            found: diff_ids.len(),
            limit: MAX_LAYERS,
        });
    }
    let layers = image.layers.into_iter().zip(diff_ids).enumerate();
    let layers = layers.map(|(at, (part, diff_id))| Wanted {
        number: at + 1,
        part,
        diff_id,
    });
    Ok(PlannedPlatform {
        platform,
        layers: layers.collect(),
        config: image.config,
        manifest: image.manifest,
    })
}

/// Documents -> record: stores them, and merges the layers that were loaded.
pub(super) fn record(
    transaction: &Transaction<'_>,
    layers: &LoadedLayers,
    planned: PlannedImage,
) -> Result<Image, ImageError> {
    // an index says more than the manifest of one of its images
    let first = planned.platforms.first();
    let target = planned
        .index
        .as_ref()
        .or_else(|| first?.manifest.as_ref())
        .map(|bytes| put_document(transaction, bytes))
        .transpose()?;
    let images = planned
        .platforms
        .into_iter()
        .map(|platform| record_platform(transaction, layers, platform))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Image {
        first: images.first().cloned().ok_or(ImageError::Empty)?,
        tag: Tag {
            reference: None,
            target,
            images,
        },
        names: planned.names.into_iter().collect(),
    })
}

fn put_document(transaction: &Transaction<'_>, bytes: &[u8]) -> Result<Descriptor, ImageError> {
    Ok(Descriptor {
        media_type: document_type(bytes),
        digest: transaction.put_blob(bytes)?,
        size: bytes.len() as u64,
    })
}

/// The image of one platform.
fn record_platform(
    transaction: &Transaction<'_>,
    layers: &LoadedLayers,
    planned: PlannedPlatform,
) -> Result<TaggedImage, ImageError> {
    let diff_ids: Vec<_> = planned.layers.iter().map(|layer| layer.diff_id).collect();
    transaction.put_merged(&diff_ids)?;
    let config = ImageId(transaction.put_blob(&planned.config)?);
    let manifest = planned
        .manifest
        .map(|bytes| transaction.put_blob(&bytes))
        .transpose()?;
    let layers = planned.layers.iter().map(|layer| TaggedLayer {
        diff_id: layer.diff_id,
        blob: layers.blob(layer),
    });
    Ok(TaggedImage {
        platform: planned.platform,
        config,
        manifest,
        layers: layers.collect(),
    })
}

/// The media type in a manifest or an index; optional in OCI.
pub(super) fn document_type(bytes: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Own {
        media_type: String,
    }
    serde_json::from_slice::<Own>(bytes).map_or_else(
        |_| "application/vnd.oci.image.manifest.v1+json".to_owned(),
        |own| own.media_type,
    )
}
