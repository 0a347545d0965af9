//! Tags: the images of the store by name, one JSON file each in `refs/`, replaced atomically.
//!
//! Invariants: a tag names everything its images keep alive, so gc decodes nothing of OCI. A tag never names what is not
//! there: it is checked under the store's lock before it appears. An image that loses its last name to another stays
//! listed without one, also when both are made at the same moment: tags change under the flock of `refs/` only.
//!
//! A file is called `<name>-<hash>.json`: the SHA-256 of the canonical reference, or of the image's id where there is none,
//! and before it, for people, the same text with `%2F` for `/`, cut to [`SHOWN`] bytes, since references are longer than file
//! names may be. Other names are strays, which `check` reports and nothing else looks at.

use std::ffi::OsStr;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::dir::{Dir, PRIVATE};
use super::record::{LIMIT, MAX_LAYERS, Versioned, decode, encode};
use super::transaction::flock;
use super::{Reference, Store, StoreError, Transaction, from_hex};
use crate::digest::{DiffId, ImageId, Sha256Digest};

const SUFFIX: &str = ".json";
/// Bytes of a reference in a file name: with the hash and what stands between, less than the 255 of a name.
const SHOWN: usize = 180;

/// A name and the images it stands for: one, or one for each of several platforms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// None: the images have no name and go by the id of the first.
    pub reference: Option<Reference>,
    /// The manifest or index that the name stood for where it came from. None: it came without one.
    pub target: Option<Descriptor>,
    /// At least one; the first is the one that runs here, if there is one.
    pub images: Vec<TaggedImage>,
}

/// One image of a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaggedImage {
    /// What it runs on.
    pub platform: Platform,
    /// The configuration's digest.
    pub config: ImageId,
    /// The OCI or Docker manifest as it came. None: the image came without one.
    pub manifest: Option<Sha256Digest>,
    /// Lowest first.
    pub layers: Vec<TaggedLayer>,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaggedLayer {
    /// The layer itself.
    pub diff_id: DiffId,
    /// The compressed layer as it came, in `blobs/`. None: it came uncompressed, or was given up.
    pub blob: Option<Descriptor>,
}

/// A blob as OCI describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    pub media_type: String,
    /// Its name.
    pub digest: Sha256Digest,
    /// Its bytes.
    pub size: u64,
}

/// What an image runs on, in the words of Go's GOOS and GOARCH.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, ...
    pub architecture: String,
    /// `v7`, `v8`, ...; empty where it doesn't matter.
    #[serde(default)]
    pub variant: String,
}

/// The tags of a store, and what of `refs/` could not be read.
#[derive(Debug, Default)]
pub struct TagList {
    /// Sorted by file name.
    pub tags: Vec<Tag>,
    /// One error for each damaged file. What such a tag keeps is unknown, so gc frees nothing while there is one.
    pub damaged: Vec<StoreError>,
}

impl Versioned for Tag {
    const VERSION: u32 = 1;
}

impl TaggedImage {
    /// The layers' names, lowest first.
    pub fn diff_ids(&self) -> Vec<DiffId> {
        self.layers.iter().map(|layer| layer.diff_id).collect()
    }

    /// All that it keeps in `blobs/`.
    fn blobs(&self) -> impl Iterator<Item = Sha256Digest> {
        let layers = self.layers.iter().filter_map(|layer| layer.blob.as_ref());
        std::iter::once(self.config.0)
            .chain(self.manifest)
            .chain(layers.map(|blob| blob.digest))
    }
}

impl Tag {
    /// The id of its first image, by which it goes where it has no name. None only where [`Tag::check`] failed.
    pub fn id(&self) -> Option<ImageId> {
        self.images.first().map(|image| image.config)
    }

    /// The image that runs here, or the first.
    pub fn image(&self) -> Option<&TaggedImage> {
        self.images.first()
    }

    /// Whether one of its images is this one.
    pub fn has(&self, image: ImageId) -> bool {
        self.images.iter().any(|own| own.config == image)
    }

    pub(super) fn layers(&self) -> impl Iterator<Item = DiffId> {
        let layers = self.images.iter().flat_map(|image| &image.layers);
        layers.map(|layer| layer.diff_id)
    }

    pub(super) fn blobs(&self) -> impl Iterator<Item = Sha256Digest> {
        let target = self.target.as_ref().map(|target| target.digest);
        let images = self.images.iter().flat_map(TaggedImage::blobs);
        images.chain(target)
    }

    /// What holds for every tag, written or read.
    fn check(&self) -> Result<(), String> {
        if self.images.is_empty() {
            return Err("it names no image".to_owned());
        }
        let layers = self.images.iter().map(|image| image.layers.len());
        match layers.max() {
            Some(layers) if layers > MAX_LAYERS => Err(format!(
                "an image of {layers} layers; more than {MAX_LAYERS} are not supported"
            )),
            _ => Ok(()),
        }
    }

    /// The file this tag lives in.
    pub(super) fn file_name(&self) -> String {
        match (&self.reference, self.id()) {
            (Some(reference), _) => file_name(&reference.canonical()),
            (None, Some(id)) => file_name(&id.to_string()),
            (None, None) => file_name(""),
        }
    }
}

fn file_name(text: &str) -> String {
    let shown: String = text.replace('/', "%2F").chars().take(SHOWN).collect();
    format!(
        "{shown}-{}{SUFFIX}",
        Sha256Digest::of(text.as_bytes()).hex()
    )
}

/// Whether a name in `refs/` is one that a tag can have.
pub(super) fn is_tag_file(name: &OsStr) -> bool {
    let hash = name
        .to_str()
        .and_then(|name| name.strip_suffix(SUFFIX)?.rsplit_once('-'));
    hash.is_some_and(|(_, hash)| from_hex(hash).is_some())
}

/// The right to change tags; goes with the descriptor.
struct TagLock(#[expect(dead_code, reason = "held for its flock")] Dir);

impl Store {
    /// All tags.
    pub fn tags(&self) -> Result<TagList, StoreError> {
        let mut list = TagList::default();
        for name in self.refs.names()? {
            if !is_tag_file(&name) {
                continue;
            }
            match self.read_tag(&name) {
                // None: gone since the listing.
                Ok(tag) => list.tags.extend(tag),
                Err(error) => list.damaged.push(error),
            }
        }
        Ok(list)
    }

    pub(super) fn read_tag(&self, name: &OsStr) -> Result<Option<Tag>, StoreError> {
        let Some(bytes) = self.refs.read(name, LIMIT)? else {
            return Ok(None);
        };
        let path = self.refs.join(name);
        let tag: Tag = decode(&bytes, &path)?;
        tag.check()
            .map_err(|reason| StoreError::malformed(&path, reason))?;
        if *tag.file_name() != *name {
            let whose = tag.reference.as_ref().map(ToString::to_string);
            let whose = whose.or_else(|| Some(tag.id()?.to_string()));
            return Err(StoreError::malformed(
                path,
                format!("it is the record of {}", whose.unwrap_or_default()),
            ));
        }
        Ok(Some(tag))
    }

    /// The tag of this name.
    pub fn find_tag(&self, reference: &Reference) -> Result<Option<Tag>, StoreError> {
        self.read_tag(OsStr::new(&file_name(&reference.canonical())))
    }

    /// Gives images one more name, or moves a name to them.
    pub fn tag(&self, tag: &Tag) -> Result<(), StoreError> {
        self.begin()?.publish(std::slice::from_ref(tag))
    }

    /// Removes a tag, unless it stands for other images by now; whether it did. Durable when it returns; gc then frees
    /// what nothing else keeps.
    pub fn untag(&self, tag: &Tag) -> Result<bool, StoreError> {
        self.check_writable()?;
        let _lock = self.lock_tags()?;
        let name = tag.file_name();
        let now = self.read_tag(OsStr::new(&name))?;
        if now.is_none_or(|now| now.images != tag.images) {
            return Ok(false);
        }
        self.remove_tags([name.as_str()])
    }

    /// Removes the tag of this name, whatever it stands for and even if it can't be read; whether there was one.
    pub fn untag_name(&self, reference: &Reference) -> Result<bool, StoreError> {
        self.check_writable()?;
        let _lock = self.lock_tags()?;
        self.remove_tags([file_name(&reference.canonical()).as_str()])
    }

    /// Removes every tag whose first image is this one; the tags. What is given one of their names meanwhile keeps it.
    pub fn untag_image(&self, image: ImageId) -> Result<Vec<Tag>, StoreError> {
        self.check_writable()?;
        let _lock = self.lock_tags()?;
        let mut tags = self.tags()?.tags;
        tags.retain(|tag| tag.id() == Some(image));
        let names: Vec<String> = tags.iter().map(Tag::file_name).collect();
        self.remove_tags(names.iter().map(String::as_str))?;
        Ok(tags)
    }

    /// Whether one of them was there. The caller holds the lock of tags.
    fn remove_tags<'n>(
        &self,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<bool, StoreError> {
        let mut removed = false;
        for name in names {
            removed |= self.refs.remove(name)?;
        }
        self.refs.sync()?;
        Ok(removed)
    }

    fn lock_tags(&self) -> Result<TagLock, StoreError> {
        let refs = self.root.sub("refs")?;
        flock(&refs, FlockOperation::LockExclusive)?;
        Ok(TagLock(refs))
    }

    /// Refuses when a layer or a blob is missing. The caller holds the store's lock.
    pub(super) fn check_present(
        &self,
        layers: impl IntoIterator<Item = DiffId>,
        blobs: impl IntoIterator<Item = Sha256Digest>,
    ) -> Result<(), StoreError> {
        for diff in layers {
            self.layers
                .stat(diff.0.hex())?
                .ok_or(StoreError::NoLayer(diff))?;
        }
        for blob in blobs {
            self.blobs
                .stat(blob.hex())?
                .ok_or(StoreError::NoBlob(blob))?;
        }
        Ok(())
    }
}

/// Tags that lie in the transaction's directory, each with the file it becomes.
pub(super) struct StagedTags<'t>(Vec<(String, &'t Tag)>);

impl Transaction<'_> {
    /// Writes tags beside the rest of the transaction: what is refused, or does not fit on the disk, fails here.
    pub(super) fn stage_tags<'t>(&self, tags: &'t [Tag]) -> Result<StagedTags<'t>, StoreError> {
        let stage = |tag: &'t Tag| {
            tag.check().map_err(|reason| StoreError::Refused {
                name: tag
                    .reference
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                reason,
            })?;
            Ok((self.stage_tag(tag)?, tag))
        };
        tags.iter()
            .map(stage)
            .collect::<Result<_, _>>()
            .map(StagedTags)
    }

    fn stage_tag(&self, tag: &Tag) -> Result<String, StoreError> {
        let temporary = self.temporary();
        let content = encode(tag, &self.store.refs.join(tag.file_name()))?;
        self.dir.create_with(&temporary, PRIVATE, &content)?;
        Ok(temporary)
    }

    /// Makes staged tags visible. The caller holds the store's lock, and what the tags name is in place and durable.
    pub(super) fn publish_tags(&self, staged: &StagedTags<'_>) -> Result<(), StoreError> {
        let store = self.store;
        for (_, tag) in &staged.0 {
            store.check_present(tag.layers(), tag.blobs())?;
        }
        let _lock = store.lock_tags()?;
        let now = store.tags()?.tags;
        let moves = |tag: &Tag| {
            tag.reference.is_some()
                && staged
                    .0
                    .iter()
                    .any(|(_, new)| new.reference == tag.reference)
        };
        let named = |image: ImageId| {
            let staying = now.iter().filter(|tag| !moves(tag));
            let new = staged.0.iter().map(|(_, tag)| *tag);
            staying
                .chain(new)
                .any(|tag| tag.reference.is_some() && tag.has(image))
        };
        // First the images that lose their last name: a crash may leave them two records, never none.
        for tag in now.iter().filter(|tag| moves(tag)) {
            if !tag.images.iter().all(|image| named(image.config)) {
                let nameless = Tag {
                    reference: None,
                    ..tag.clone()
                };
                self.place_tag(&self.stage_tag(&nameless)?, &nameless, true)?;
            }
        }
        for (temporary, tag) in &staged.0 {
            // What has a name needs no record without one.
            if tag.reference.is_some() || !tag.id().is_some_and(named) {
                self.place_tag(temporary, tag, false)?;
            }
        }
        store.refs.sync()?;
        // Last, so that no crash leaves an image without a record: those that have a name now.
        let needless = |tag: &&Tag| tag.reference.is_none() && tag.id().is_some_and(named);
        let needless: Vec<String> = now.iter().filter(needless).map(Tag::file_name).collect();
        store
            .remove_tags(needless.iter().map(String::as_str))
            .map(drop)
    }

    /// `fresh`: its content was written after the last sync.
    fn place_tag(&self, temporary: &str, tag: &Tag, fresh: bool) -> Result<(), StoreError> {
        if fresh {
            self.dir.sync_file(temporary)?;
        }
        self.dir
            .rename(temporary, &self.store.refs, tag.file_name())
    }
}
