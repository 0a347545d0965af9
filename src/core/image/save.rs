//! `save`: writes images as one archive that is an OCI layout and a docker-archive, as Docker
//! since 25.0 does.
//!
//! Invariants: the same images give the same bytes; no digest of the archive differs from its
//! bytes, or the save fails. A manifest and compressed layers that came in go out again as they
//! came. Where a layer's blob is not kept, its exact tar is restored from its recipe, and the
//! image gets a new manifest that lists that tar; its configuration, and so its id, stay.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use memmap2::Mmap;
use serde_json::{Value, json};

use super::documents::{Document, Manifest};
use super::{CONFIG_LIMIT, DOCUMENT_LIMIT, ImageError, Reference, SaveError, docker, oci};
use crate::digest::{DiffId, Sha256Digest, Sha256Hasher};
use crate::layer::{self, member_header, padding};
use crate::recipe::{Recipe, RecipeError};
use crate::store::{Descriptor, Store, StoreError, Tag, TaggedImage, Transaction};
use crate::sys::mmap::map_published;
use crate::tree::Tree;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// The suffixes of OCI's layer types that name a compression.
const COMPRESSIONS: [&str; 2] = ["+gzip", "+zstd"];

/// An image to save, with the names it gets in the archive.
#[derive(Debug, Clone)]
pub struct Selected {
    /// Its names; without any it is untagged.
    pub names: Vec<Reference>,
    /// Its record; the record's own name does not count.
    pub tag: Tag,
}

/// Writes the images as one archive. What they need is kept from gc meanwhile.
///
/// Nothing is written before the records, documents, trees and recipes of all of them are known to
/// be sound. After damage of a content or a compressed layer, which only reading all of it finds,
/// `out` has the beginning of an archive, without its documents.
pub fn save<W: Write>(store: &Store, images: &[Selected], out: W) -> Result<(), SaveError> {
    let transaction = store.begin()?;
    planned(store, &transaction, images)?.write(out)
}

/// Fails if [`save`] would before it has written anything: for those who have to say so first.
pub fn check_save(store: &Store, images: &[Selected]) -> Result<(), SaveError> {
    let transaction = store.begin()?;
    planned(store, &transaction, images).map(drop)
}

/// What the archive will hold, kept from gc by the transaction and checked.
fn planned<'s>(
    store: &'s Store,
    transaction: &Transaction<'_>,
    images: &[Selected],
) -> Result<Plan<'s>, SaveError> {
    for image in images {
        transaction.keep_tag(&image.tag)?;
    }
    let mut plan = Plan::new(store);
    for image in images {
        plan.add(image)?;
    }
    plan.check_restored()?;
    Ok(plan)
}

/// What the archive will hold.
struct Plan<'s> {
    store: &'s Store,
    blobs: BTreeMap<Sha256Digest, Blob>,
    /// Of `index.json`.
    descriptors: Vec<Value>,
    /// Of `manifest.json`.
    docker: Vec<Value>,
}

/// Where the bytes of a blob come from.
enum Blob {
    Document(Vec<u8>),
    /// The store's blob of this size.
    Kept(u64),
    /// A layer's tar of this size.
    Restored(DiffId, u64),
}

impl Blob {
    fn size(&self) -> u64 {
        match self {
            Self::Document(bytes) => bytes.len() as u64,
            Self::Kept(size) | Self::Restored(_, size) => *size,
        }
    }
}

/// A planned image.
struct Planned {
    manifest: Descriptor,
    /// It is the manifest that came in.
    own: bool,
    layers: Vec<Descriptor>,
}

impl<'s> Plan<'s> {
    fn new(store: &'s Store) -> Self {
        Self {
            store,
            blobs: BTreeMap::new(),
            descriptors: Vec::new(),
            docker: Vec::new(),
        }
    }

    fn add(&mut self, selected: &Selected) -> Result<(), SaveError> {
        let Selected { names, tag } = selected;
        let mut planned = Vec::with_capacity(tag.images.len());
        for image in &tag.images {
            planned.push(self.image(image)?);
        }
        let all_own = planned.iter().all(|image| image.own);
        let index = tag.target.as_ref().filter(|_| all_own);
        let index = match index {
            Some(target) => self.index(target)?,
            None => None,
        };
        match index {
            Some(index) => self.describe(&index, None, names),
            None => {
                for (planned, image) in planned.iter().zip(&tag.images) {
                    let platform = (tag.images.len() > 1).then_some(&image.platform);
                    self.describe(&planned.manifest, platform, names);
                }
            }
        }
        // A reader of manifest.json knows no platforms: it gets the image of this host.
        if let (Some(planned), Some(image)) = (planned.first(), tag.image()) {
            self.docker
                .push(docker_entry(image, &planned.layers, names));
        }
        Ok(())
    }

    /// Adds the parts of one platform's image.
    fn image(&mut self, image: &TaggedImage) -> Result<Planned, SaveError> {
        let config = self.store.read_blob(image.config.0, CONFIG_LIMIT)?;
        let config_size = config.len() as u64;
        self.blobs.insert(image.config.0, Blob::Document(config));
        if let Some(own) = self.own_manifest(image)? {
            return Ok(own);
        }
        let mut layers = Vec::with_capacity(image.layers.len());
        for layer in &image.layers {
            let typed = |blob: &&Descriptor| {
                COMPRESSIONS
                    .iter()
                    .any(|how| blob.media_type.ends_with(how))
            };
            let kept = match layer.blob.as_ref().filter(typed) {
                Some(blob) if self.has_blob(blob)? => Some(blob.clone()),
                _ => None,
            };
            let descriptor = match kept {
                Some(kept) => kept,
                None => self.restorable(layer.diff_id)?,
            };
            self.layer(layer.diff_id, &descriptor);
            layers.push(descriptor);
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": { "mediaType": CONFIG_TYPE, "digest": image.config, "size": config_size },
            "layers": layers,
        });
        let manifest = self.document(MANIFEST_TYPE, manifest.to_string().into_bytes());
        Ok(Planned {
            manifest,
            own: false,
            layers,
        })
    }

    /// The manifest that came with the image, if it is kept and all its layers can be had as it
    /// lists them.
    fn own_manifest(&mut self, image: &TaggedImage) -> Result<Option<Planned>, SaveError> {
        let Some(digest) = image.manifest else {
            return Ok(None);
        };
        let bytes = match self.store.read_blob(digest, DOCUMENT_LIMIT) {
            Err(StoreError::NoBlob(_)) => return Ok(None),
            bytes => bytes?,
        };
        let name = digest.to_string();
        let Document::Manifest(manifest) = Document::parse(&name, &bytes, "")? else {
            return Ok(None);
        };
        if manifest.config.sha256()? != image.config.0
            || manifest.layers.len() != image.layers.len()
        {
            return Ok(None);
        }
        let Some(layers) = self.listed_layers(image, &manifest)? else {
            return Ok(None);
        };
        for (layer, descriptor) in image.layers.iter().zip(&layers) {
            self.layer(layer.diff_id, descriptor);
        }
        let media_type = super::load::document_type(&bytes);
        Ok(Some(Planned {
            manifest: self.document(&media_type, bytes),
            own: true,
            layers,
        }))
    }

    /// The layers as a manifest lists them; None if one of them cannot be had so.
    fn listed_layers(
        &self,
        image: &TaggedImage,
        manifest: &Manifest,
    ) -> Result<Option<Vec<Descriptor>>, SaveError> {
        let mut layers = Vec::with_capacity(image.layers.len());
        for (layer, listed) in image.layers.iter().zip(&manifest.layers) {
            let descriptor = Descriptor {
                media_type: listed.media_type.clone(),
                digest: listed.sha256()?,
                size: listed.size,
            };
            let there = if descriptor.digest == layer.diff_id.0 {
                self.restorable(layer.diff_id)?.size == descriptor.size
            } else {
                let recorded = layer.blob.as_ref().map(|blob| blob.digest);
                recorded == Some(descriptor.digest) && self.has_blob(&descriptor)?
            };
            if !there {
                return Ok(None);
            }
            layers.push(descriptor);
        }
        Ok(Some(layers))
    }

    fn has_blob(&self, blob: &Descriptor) -> Result<bool, SaveError> {
        match self.store.open_blob(blob.digest) {
            Ok(file) => Ok(file.metadata()?.len() == blob.size),
            Err(StoreError::NoBlob(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The descriptor of a layer's own tar.
    fn restorable(&self, diff_id: DiffId) -> Result<Descriptor, SaveError> {
        let info = self.store.layer_info(diff_id)?;
        let info = info.ok_or(StoreError::NoLayer(diff_id))?;
        Ok(Descriptor {
            media_type: LAYER_TYPE.to_owned(),
            digest: diff_id.0,
            size: info.tar_size,
        })
    }

    fn layer(&mut self, diff_id: DiffId, descriptor: &Descriptor) {
        let blob = if descriptor.digest == diff_id.0 {
            Blob::Restored(diff_id, descriptor.size)
        } else {
            Blob::Kept(descriptor.size)
        };
        self.blobs.insert(descriptor.digest, blob);
    }

    /// Adds the index that came with the images.
    fn index(&mut self, target: &Descriptor) -> Result<Option<Descriptor>, SaveError> {
        let bytes = match self.store.read_blob(target.digest, DOCUMENT_LIMIT) {
            Err(StoreError::NoBlob(_)) => return Ok(None),
            bytes => bytes?,
        };
        match Document::parse(&target.digest.to_string(), &bytes, "")? {
            Document::Index(_) => Ok(Some(self.document(&target.media_type, bytes))),
            Document::Manifest(_) => Ok(None),
        }
    }

    fn document(&mut self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let descriptor = Descriptor {
            media_type: media_type.to_owned(),
            digest: Sha256Digest::of(&bytes),
            size: bytes.len() as u64,
        };
        self.blobs.insert(descriptor.digest, Blob::Document(bytes));
        descriptor
    }

    /// Lists a manifest or an index in `index.json`, once for each name.
    fn describe(
        &mut self,
        descriptor: &Descriptor,
        platform: Option<&crate::store::Platform>,
        names: &[Reference],
    ) {
        let mut value = json!(descriptor);
        if let (Some(platform), Some(fields)) = (platform, value.as_object_mut()) {
            let mut shown = json!({ "architecture": platform.architecture, "os": platform.os });
            if let (false, Some(shown)) = (platform.variant.is_empty(), shown.as_object_mut()) {
                shown.insert("variant".to_owned(), json!(platform.variant));
            }
            fields.insert("platform".to_owned(), shown);
        }
        if names.is_empty() {
            self.descriptors.push(value);
            return;
        }
        for name in names {
            let mut value = value.clone();
            if let Some(fields) = value.as_object_mut() {
                let mut annotations = json!({ oci::FULL_NAME: name.canonical() });
                if let (Some(tag), Some(annotations)) = (name.tag(), annotations.as_object_mut()) {
                    annotations.insert(oci::REF_NAME.to_owned(), json!(tag));
                }
                fields.insert("annotations".to_owned(), annotations);
            }
            self.descriptors.push(value);
        }
    }

    /// Checks all that layers are restored from, but for the contents.
    fn check_restored(&self) -> Result<(), SaveError> {
        for blob in self.blobs.values() {
            let Blob::Restored(diff_id, size) = blob else {
                continue;
            };
            let (tree, recipe) = open_layer(self.store, *diff_id)?;
            let found = sound_recipe(&recipe, *diff_id, &tree)?.tar_bytes();
            if found != *size {
                return Err(SaveError::Size {
                    what: format!("the tar of layer {diff_id}"),
                    expected: *size,
                    found,
                });
            }
        }
        Ok(())
    }

    fn write<W: Write>(self, out: W) -> Result<(), SaveError> {
        let index = json!({
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": self.descriptors,
        });
        let documents = [
            (oci::INDEX, index),
            (docker::MANIFEST, json!(self.docker)),
            (oci::LAYOUT, json!({ "imageLayoutVersion": "1.0.0" })),
        ];
        let mut out = io::BufWriter::with_capacity(BUFFER, out);
        for directory in ["blobs/", "blobs/sha256/"] {
            out.write_all(&member_header(directory, None))?;
        }
        for (digest, blob) in &self.blobs {
            let size = blob.size();
            out.write_all(&member_header(&blob_path(*digest), Some(size)))?;
            let mut counted = Counted {
                inner: &mut out,
                left: size,
            };
            write_blob(self.store, *digest, blob, &mut counted)?;
            if counted.left > 0 {
                return Err(SaveError::Size {
                    what: format!("{digest}"),
                    expected: size,
                    found: size.saturating_sub(counted.left),
                });
            }
            out.write_all(padding(size))?;
        }
        for (name, value) in documents {
            let bytes = value.to_string().into_bytes();
            let size = bytes.len() as u64;
            out.write_all(&member_header(name, Some(size)))?;
            out.write_all(&bytes)?;
            out.write_all(padding(size))?;
        }
        out.write_all(&[0; 1024])?;
        out.flush()?;
        Ok(())
    }
}

const BUFFER: usize = 256 * 1024;

fn blob_path(digest: Sha256Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// An image's entry in `manifest.json`.
fn docker_entry(image: &TaggedImage, layers: &[Descriptor], names: &[Reference]) -> Value {
    let tags: Vec<String> = names
        .iter()
        .filter(|name| name.tag().is_some())
        .map(|name| match (name.repository(), name.tag()) {
            (repository, Some(tag)) => format!("{repository}:{tag}"),
            (repository, None) => repository,
        })
        .collect();
    let sources: serde_json::Map<String, Value> = image
        .layers
        .iter()
        .zip(layers)
        .map(|(layer, source)| (layer.diff_id.to_string(), json!(source)))
        .collect();
    json!({
        "Config": blob_path(image.config.0),
        "RepoTags": if tags.is_empty() { Value::Null } else { json!(tags) },
        "Layers": layers.iter().map(|layer| blob_path(layer.digest)).collect::<Vec<_>>(),
        "LayerSources": sources,
    })
}

fn write_blob<W: Write>(
    store: &Store,
    digest: Sha256Digest,
    blob: &Blob,
    out: &mut W,
) -> Result<(), SaveError> {
    match blob {
        Blob::Document(bytes) => Ok(out.write_all(bytes)?),
        Blob::Kept(size) => copy_blob(store, digest, *size, out),
        Blob::Restored(diff_id, _) => restore_layer(store, *diff_id, out),
    }
}

fn copy_blob<W: Write>(
    store: &Store,
    digest: Sha256Digest,
    size: u64,
    out: &mut W,
) -> Result<(), SaveError> {
    let mut file = store.open_blob(digest)?.take(size);
    let mut hasher = Sha256Hasher::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = match file.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(|source| ImageError::Read {
                name: format!("blob {digest}"),
                source,
            })?,
        };
        let piece = buffer.get(..count).unwrap_or_default();
        if piece.is_empty() {
            break;
        }
        hasher.update(piece);
        out.write_all(piece)?;
    }
    let found = hasher.finish();
    if found == digest {
        Ok(())
    } else {
        Err(SaveError::Damaged {
            expected: digest,
            found,
        })
    }
}

/// Writes the exact tar that a layer was imported from; nothing of it if tree or recipe are damaged.
pub fn restore_layer<W: Write>(store: &Store, diff_id: DiffId, out: W) -> Result<(), SaveError> {
    let (tree, recipe) = open_layer(store, diff_id)?;
    let recipe = sound_recipe(&recipe, diff_id, &tree)?;
    layer::restore(&recipe, &tree, store, out)
        .map_err(|source| SaveError::Restore { diff_id, source })
}

/// A layer's tree, verified, and its recipe.
fn open_layer(store: &Store, diff_id: DiffId) -> Result<(Tree, Mmap), SaveError> {
    let tree = store.layer_tree(diff_id)?;
    let tree = tree.ok_or(StoreError::NoLayer(diff_id))?;
    tree.verify()
        .map_err(|source| SaveError::Tree { diff_id, source })?;
    let recipe = store.layer_recipe(diff_id)?;
    let recipe = recipe.ok_or(SaveError::NoRecipe(diff_id))?;
    let recipe = map_published(&recipe).map_err(|source| SaveError::Recipe {
        diff_id,
        source: RecipeError::Map(source),
    })?;
    Ok((tree, recipe))
}

fn sound_recipe<'b>(
    bytes: &'b [u8],
    diff_id: DiffId,
    tree: &Tree,
) -> Result<Recipe<'b>, SaveError> {
    Recipe::open_verified(bytes, diff_id, tree.object_count())
        .map_err(|source| SaveError::Recipe { diff_id, source })
}

/// A writer of so many bytes; more are an error.
struct Counted<W> {
    inner: W,
    left: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let too_many = || io::Error::other("a layer's tar is longer than its record says");
        let left = self.left.checked_sub(bytes.len() as u64);
        let left = left.ok_or_else(too_many)?;
        self.inner.write_all(bytes)?;
        self.left = left;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
