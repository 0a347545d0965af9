//! From an archive to the store: every layer a tree and objects, every document a blob, every name a tag, or nothing at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use super::archive::{Archive, Contents};
use super::{Candidate, ImageConfig, ImageError, LayerPart, Reference, docker, oci};
use crate::digest::{DiffId, ImageId, Sha256Digest, Sha256Hasher};
use crate::layer::{self, Compression, Limits};
use crate::store::{
    BlobWriter, Descriptor, MAX_LAYERS, Platform, Store, Tag, TaggedImage, TaggedLayer,
    Transaction, Trust,
};

/// An image that is in the store now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The digest of its configuration.
    pub image: ImageId,
    /// Its names in the archive; it may have none.
    pub tags: Vec<Reference>,
}

/// Loads all images of a docker-archive or an OCI layout: a tar, a gzip'ed tar, a pipe of one, or a layout's directory.
///
/// All or nothing: on an error the store is as it was. Loading what is there already heals what is damaged.
pub fn load(store: &Store, path: &Path) -> Result<Vec<Loaded>, ImageError> {
    load_with(store, path, Trust::Size)
}

/// [`load`]; with [`Trust::Hash`] objects that are there already are read and hashed too.
pub fn load_with(store: &Store, path: &Path, trust: Trust) -> Result<Vec<Loaded>, ImageError> {
    let file = File::open(path).map_err(|source| ImageError::Read {
        name: path.display().to_string(),
        source,
    })?;
    load_file(store, file, path, trust)
}

/// [`load_with`] of a file that is open already, which may be a pipe or a socket, from where it is read next. `path` is what
/// messages call it, and what a bare tag in it is one of.
pub fn load_file(
    store: &Store,
    file: File,
    path: &Path,
    trust: Trust,
) -> Result<Vec<Loaded>, ImageError> {
    let archive = Archive::open(file, path, store)?;
    let transaction = store.begin_with(trust)?;
    let mut loader = Loader {
        transaction: &transaction,
        archive: &archive,
        layers: BTreeMap::new(),
    };
    let mut images: Vec<Image> = Vec::new();
    for candidate in candidates(&archive, path)? {
        let image = loader.image(candidate)?;
        match images.iter_mut().find(|other| other.id == image.id) {
            Some(known) => known.names.extend(image.names),
            None => images.push(image),
        }
    }
    if images.is_empty() {
        return Err(ImageError::Empty);
    }
    let tags = images.iter().flat_map(Image::tags).collect::<Vec<_>>();
    transaction.publish(&tags)?;
    Ok(images
        .into_iter()
        .map(|image| Loaded {
            image: image.id,
            tags: image.names.into_iter().collect(),
        })
        .collect())
}

/// What is in the archive, in whichever form; a new `docker save` writes both.
fn candidates(archive: &Archive, path: &Path) -> Result<Vec<Candidate>, ImageError> {
    let (layout, docker) = (archive.has(oci::LAYOUT)?, archive.has(docker::MANIFEST)?);
    if !layout && !docker {
        return Err(no_image_archive(archive)?);
    }
    let mut found = if layout {
        oci::candidates(archive, path)?
    } else {
        Vec::new()
    };
    if docker {
        for image in docker::candidates(archive)? {
            add(&mut found, image);
        }
    }
    Ok(found)
}

/// Adds an image of `manifest.json` to those of the layout beside it.
///
/// Docker itself loads by `manifest.json`, and its layouts are not always whole: they leave out images without a tag
/// (moby#51389), and in 25.0 layers (moby#47065). The layout has what the other cannot: manifests, and a choice of platforms,
/// so what it has by name is not replaced by another image.
fn add(found: &mut Vec<Candidate>, mut image: Candidate) {
    let mut known = false;
    for same in found
        .iter_mut()
        .filter(|other| other.config == image.config)
    {
        known = true;
        same.names.extend(image.names.iter().cloned());
        let parts = |candidate: &Candidate| -> Vec<String> {
            let layers = candidate.layers.iter();
            layers.map(|layer| layer.name.clone()).collect()
        };
        if parts(same) != parts(&image) {
            same.layers.clone_from(&image.layers);
            same.manifest = None;
        }
    }
    if known {
        return;
    }
    let named = !image.names.is_empty();
    let taken = |name: &Reference| found.iter().any(|other| other.names.contains(name));
    image.names.retain(|name| !taken(name));
    if image.names.is_empty() != named {
        found.push(image);
    }
}

/// Says what the archive is instead.
fn no_image_archive(archive: &Archive) -> Result<ImageError, ImageError> {
    let what = if archive.has("repositories")? {
        "it is of a Docker older than 1.10; save it again with a newer one"
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
struct Image {
    id: ImageId,
    /// Without a name.
    tag: Tag,
    names: BTreeSet<Reference>,
}

impl Image {
    /// A tag for each name, or one without.
    fn tags(&self) -> Vec<Tag> {
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

struct Loader<'l> {
    transaction: &'l Transaction<'l>,
    archive: &'l Archive,
    /// Layers of the archive that are in the transaction, by the names of their parts.
    layers: BTreeMap<String, Done>,
}

#[derive(Clone)]
struct Done {
    diff: DiffId,
    /// The layer as it came, if it was compressed. What was not is its tree and objects alone.
    blob: Option<Descriptor>,
}

impl Loader<'_> {
    fn image(&mut self, candidate: Candidate) -> Result<Image, ImageError> {
        let id = ImageId(Sha256Digest::of(&candidate.config));
        let name = format!(
            "the configuration of {}",
            candidate
                .names
                .first()
                .map_or_else(|| id.to_string(), ToString::to_string)
        );
        let config = ImageConfig::from_slice(&candidate.config)
            .map_err(|source| ImageError::Json { name, source })?;
        if !matches!(config.os.as_str(), "" | "linux") {
            let what = format!("it is an image for {}, only Linux runs here", config.os);
            return Err(ImageError::Unsupported {
                name: id.to_string(),
                what,
            });
        }
        let layers = config.rootfs.diff_ids;
        if layers.len() != candidate.layers.len() {
            return Err(ImageError::LayerCount {
                config: layers.len(),
                manifest: candidate.layers.len(),
            });
        }
        if layers.len() > MAX_LAYERS {
            return Err(ImageError::TooManyLayers {
                found: layers.len(),
                limit: MAX_LAYERS,
            });
        }
        self.transaction.keep_layers(&layers)?;
        let mut tagged = Vec::with_capacity(layers.len());
        for (at, (part, expected)) in candidate.layers.iter().zip(&layers).enumerate() {
            let number = at + 1;
            let done = self.layer(number, part)?;
            if done.diff != *expected {
                return Err(ImageError::DiffId {
                    number,
                    expected: *expected,
                    found: done.diff,
                });
            }
            tagged.push(TaggedLayer {
                diff_id: done.diff,
                blob: done.blob,
            });
        }
        if !layers.is_empty() {
            self.transaction.put_merged(&layers)?;
        }
        self.transaction.put_blob(&candidate.config)?;
        let target = match candidate.manifest {
            None => None,
            Some(bytes) => Some(Descriptor {
                media_type: manifest_type(&bytes),
                digest: self.transaction.put_blob(&bytes)?,
                size: bytes.len() as u64,
            }),
        };
        let image = TaggedImage {
            platform: Platform {
                os: config.os,
                architecture: config.architecture,
                variant: config.variant,
            },
            config: id,
            manifest: target.as_ref().map(|target| target.digest),
            layers: tagged,
        };
        Ok(Image {
            id,
            tag: Tag {
                reference: None,
                target,
                images: vec![image],
            },
            names: candidate.names.into_iter().collect(),
        })
    }

    fn layer(&mut self, number: usize, part: &LayerPart) -> Result<Done, ImageError> {
        if let Some(done) = self.layers.get(&part.name) {
            return Ok(done.clone());
        }
        let mut source = self.open_layer(part)?;
        let stream = layer::decompress(&mut source).map_err(|source| ImageError::Decompress {
            name: part.name.clone(),
            source,
        })?;
        let compression = stream.compression();
        let imported = match layer::import(stream, self.transaction, &Limits::default()) {
            Ok(imported) => imported,
            Err(source) => {
                // A part that is not what its digest says is the better reason, whatever the damage did to the tar in it.
                self.check_part(part)?;
                return Err(ImageError::Layer {
                    number,
                    name: part.name.clone(),
                    source,
                });
            }
        };
        // To the last byte, which a decompressor need not have read.
        io::copy(&mut source, &mut io::sink()).map_err(|source| read_error(part, source))?;
        let blob = source.blob.map(BlobWriter::finish).transpose()?;
        let blob = blob.map(|(digest, size)| Descriptor {
            media_type: layer_type(compression).to_owned(),
            digest,
            size,
        });
        let found = blob.as_ref().map_or(imported.diff_id.0, |blob| blob.digest);
        if let Some(expected) = part.digest.filter(|expected| *expected != found) {
            return Err(ImageError::Digest {
                name: part.name.clone(),
                expected,
                found,
            });
        }
        self.transaction.put_layer(
            imported.diff_id,
            imported.tree_bytes,
            imported.stats.stream_bytes,
            Some(&imported.recipe),
        )?;
        let done = Done {
            diff: imported.diff_id,
            blob,
        };
        self.layers.insert(part.name.clone(), done.clone());
        Ok(done)
    }

    fn open_layer(&self, part: &LayerPart) -> Result<Kept<'_>, ImageError> {
        let contents = self.member(part)?;
        if let Some(expected) = part.size.filter(|expected| *expected != contents.size) {
            return Err(ImageError::Size {
                name: part.name.clone(),
                expected,
                found: contents.size,
            });
        }
        let refuse = |source| ImageError::Decompress {
            name: part.name.clone(),
            source,
        };
        // Looked at by itself first, since the copy begins with the first byte.
        let compression = layer::decompress(self.member(part)?)
            .map_err(refuse)?
            .compression();
        let blob = (compression != Compression::None)
            .then(|| self.transaction.blob_writer())
            .transpose()?;
        Ok(Kept { contents, blob })
    }

    fn check_part(&self, part: &LayerPart) -> Result<(), ImageError> {
        let Some(expected) = part.digest else {
            return Ok(());
        };
        let mut hasher = Sha256Hasher::new();
        io::copy(&mut self.member(part)?, &mut hasher)
            .map_err(|source| read_error(part, source))?;
        let found = hasher.finish();
        if found == expected {
            Ok(())
        } else {
            Err(ImageError::Digest {
                name: part.name.clone(),
                expected,
                found,
            })
        }
    }

    fn member(&self, part: &LayerPart) -> Result<Contents<'_>, ImageError> {
        let missing = || ImageError::Missing {
            name: part.name.clone(),
            needed_by: "its manifest".to_owned(),
        };
        self.archive.open_member(&part.name)?.ok_or_else(missing)
    }
}

/// What a manifest says it is; OCI lets it leave that out.
fn manifest_type(bytes: &[u8]) -> String {
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

/// What OCI calls a layer of this compression.
fn layer_type(compression: Compression) -> &'static str {
    match compression {
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        _ => "application/vnd.oci.image.layer.v1.tar",
    }
}

fn read_error(part: &LayerPart, source: io::Error) -> ImageError {
    ImageError::Read {
        name: part.name.clone(),
        source,
    }
}

/// A layer of the archive; what is read of it is kept, if it is compressed.
struct Kept<'a> {
    contents: Contents<'a>,
    blob: Option<BlobWriter<'a>>,
}

impl Read for Kept<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.contents.read(buffer)?;
        if let Some(blob) = &mut self.blob {
            blob.write_all(buffer.get(..read).unwrap_or_default())?;
        }
        Ok(read)
    }
}
