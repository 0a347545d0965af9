//! Tags: images by name, one JSON file each in `refs/`, replaced atomically.
//!
//! Invariants: a tag lists every layer and blob of its images, so gc parses no OCI documents.
//! Everything that a tag names exists: it is checked under the store's lock before the tag is
//! published. An image that loses its last name to another stays listed without one, even if both
//! are tagged at the same moment: tags change only under the flock of `refs/`.
//!
//! A file is named `<name>-<hash>.json`: `hash` is the SHA-256 of the canonical reference, or of
//! the image's id without one; `name` is the same text for people, with `%2F` for `/`, cut to
//! [`SHOWN`] bytes because a reference can be longer than a file name. Other names are foreign
//! files: `check` reports them, everything else ignores them.

use std::ffi::OsStr;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::dir::{PRIVATE, StoreDir};
use super::record::{LIMIT, MAX_LAYERS, Versioned, decode, encode};
use super::transaction::flock;
use super::{Reference, Store, StoreError, Transaction};
use crate::digest::{DiffId, ImageId, Sha256Digest};

const SUFFIX: &str = ".json";
/// Bytes of the reference in a file name; with the hash and suffix it stays below NAME_MAX.
const SHOWN: usize = 180;

/// A name and its images: one, or one per platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// None: the images are untagged and identified by the first one's id.
    pub reference: Option<Reference>,
    /// The manifest or index that the name referred to at its source. None if it had none.
    pub target: Option<Descriptor>,
    /// At least one; one that runs on this host comes first.
    pub images: Vec<TaggedImage>,
}

/// One image of a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaggedImage {
    /// Its platform.
    pub platform: Platform,
    /// The configuration's digest.
    pub config: ImageId,
    /// The OCI or Docker manifest as received. None if there was none.
    pub manifest: Option<Sha256Digest>,
    /// Lowest first.
    pub layers: Vec<TaggedLayer>,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaggedLayer {
    /// Its DiffID.
    pub diff_id: DiffId,
    /// The compressed layer as received, in `blobs/`. None if it was uncompressed or is not kept.
    pub blob: Option<Descriptor>,
}

/// A blob as OCI describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Sha256Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// The platform of an image, as GOOS and GOARCH.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, ...
    pub architecture: String,
    /// `v7`, `v8`, ...; often empty.
    #[serde(default)]
    pub variant: String,
}

/// The tags of a store, with an error for each unreadable one.
#[derive(Debug, Default)]
pub struct TagList {
    /// Sorted by file name.
    pub tags: Vec<Tag>,
    /// One error for each damaged file. While there is one, gc frees nothing: what it keeps is
    /// unknown.
    pub damaged: Vec<StoreError>,
}

impl Versioned for Tag {
    const VERSION: u32 = 1;
}

impl TaggedImage {
    /// The layers' DiffIDs, lowest first.
    pub fn diff_ids(&self) -> Vec<DiffId> {
        self.layers.iter().map(|layer| layer.diff_id).collect()
    }

    /// All its blobs.
    fn blobs(&self) -> impl Iterator<Item = Sha256Digest> {
        let layers = self.layers.iter().filter_map(|layer| layer.blob.as_ref());
        std::iter::once(self.config.0)
            .chain(self.manifest)
            .chain(layers.map(|blob| blob.digest))
    }
}

impl Tag {
    /// The id of its first image, which identifies an untagged one. None only if [`Tag::check`]
    /// fails.
    pub fn id(&self) -> Option<ImageId> {
        self.images.first().map(|image| image.config)
    }

    /// Its name, or the image's id without one.
    pub(super) fn title(&self) -> String {
        let name = self.reference.as_ref().map(ToString::to_string);
        name.or_else(|| Some(self.id()?.to_string()))
            .unwrap_or_default()
    }

    /// The image that runs on this host, or the first.
    pub fn image(&self) -> Option<&TaggedImage> {
        self.images.first()
    }

    /// Whether it has this image.
    pub fn has(&self, image: ImageId) -> bool {
        self.images.iter().any(|own| own.config == image)
    }

    /// The names with a digest that mean this image of the tag: the digest is that of its manifest
    /// or configuration; for the first image also that of what the tag referred to at its source.
    pub fn names_by_digest(&self, image: &TaggedImage) -> Vec<Reference> {
        let Some(name) = &self.reference else {
            return Vec::new();
        };
        let of_tag = [
            self.target.as_ref().map(|target| target.digest),
            name.digest(),
        ];
        let is_first = self.id() == Some(image.config);
        let of_tag = of_tag.into_iter().filter(|_| is_first);
        let digests = of_tag.chain([image.manifest, Some(image.config.0)]);
        digests.flatten().map(|digest| name.at(digest)).collect()
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

    /// Checks the rules for every tag, written or read.
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

    /// The name of its file in `refs/`.
    pub(super) fn file_name(&self) -> String {
        match (&self.reference, self.id()) {
            (Some(reference), _) => file_name(&reference.canonical()),
            (None, Some(id)) => file_name(&id.to_string()),
            (None, None) => file_name(""),
        }
    }
}

/// The name of a reference's file in `refs/`.
pub(super) fn tag_file(reference: &Reference) -> String {
    file_name(&reference.canonical())
}

fn file_name(text: &str) -> String {
    let shown: String = text.replace('/', "%2F").chars().take(SHOWN).collect();
    format!(
        "{shown}-{}{SUFFIX}",
        Sha256Digest::of(text.as_bytes()).hex()
    )
}

/// Whether a name in `refs/` is a tag's.
pub(super) fn is_tag_file(name: &OsStr) -> bool {
    let hash = name
        .to_str()
        .and_then(|name| name.strip_suffix(SUFFIX)?.rsplit_once('-'));
    hash.is_some_and(|(_, hash)| Sha256Digest::from_hex(hash).is_some())
}

/// The lock for changing tags; closing the descriptor releases it.
struct TagLock(#[expect(dead_code, reason = "held for its flock")] StoreDir);

impl Store {
    /// All tags.
    pub fn tags(&self) -> Result<TagList, StoreError> {
        let mut list = TagList::default();
        for name in self.refs()?.names()? {
            if !is_tag_file(&name) {
                continue;
            }
            match self.read_tag(&name) {
                // Removed since the listing.
                Ok(tag) => list.tags.extend(tag),
                Err(error) => list.damaged.push(error),
            }
        }
        Ok(list)
    }

    pub(super) fn read_tag(&self, name: &OsStr) -> Result<Option<Tag>, StoreError> {
        let Some(bytes) = self.refs()?.read(name, LIMIT)? else {
            return Ok(None);
        };
        let path = self.refs()?.join(name);
        let tag: Tag = decode(&bytes, &path)?;
        tag.check()
            .map_err(|reason| StoreError::malformed(&path, reason))?;
        if *tag.file_name() != *name {
            return Err(StoreError::malformed(
                path,
                format!("it is the record of {}", tag.title()),
            ));
        }
        Ok(Some(tag))
    }

    /// The tag of this name.
    pub fn find_tag(&self, reference: &Reference) -> Result<Option<Tag>, StoreError> {
        self.read_tag(OsStr::new(&file_name(&reference.canonical())))
    }

    /// Adds a tag, or moves it to other images.
    pub fn tag(&self, tag: &Tag) -> Result<(), StoreError> {
        self.begin()?.publish(std::slice::from_ref(tag))
    }

    /// Removes a tag unless it has moved to other images; true if it was removed. Durable on
    /// return; the next gc frees what nothing else keeps.
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

    /// Removes the tag of this name, even a damaged one; false if there was none.
    pub fn untag_name(&self, reference: &Reference) -> Result<bool, StoreError> {
        self.check_writable()?;
        let _lock = self.lock_tags()?;
        self.remove_tags([file_name(&reference.canonical()).as_str()])
    }

    /// Removes and returns every tag whose first image is this one. A name that moves to another
    /// image meanwhile stays.
    pub fn untag_image(&self, image: ImageId) -> Result<Vec<Tag>, StoreError> {
        self.check_writable()?;
        let _lock = self.lock_tags()?;
        let mut tags = self.tags()?.tags;
        tags.retain(|tag| tag.id() == Some(image));
        let names: Vec<String> = tags.iter().map(Tag::file_name).collect();
        self.remove_tags(names.iter().map(String::as_str))?;
        Ok(tags)
    }

    /// Removes tag files; true if one existed. The caller holds the lock of tags.
    fn remove_tags<'n>(
        &self,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<bool, StoreError> {
        let mut removed = false;
        for name in names {
            removed |= self.refs()?.remove(name)?;
        }
        self.refs()?.sync()?;
        Ok(removed)
    }

    fn lock_tags(&self) -> Result<TagLock, StoreError> {
        let refs = self.root.open_dir("refs")?;
        flock(&refs, FlockOperation::LockExclusive)?;
        Ok(TagLock(refs))
    }

    /// Fails if a layer or a blob is missing. The caller holds the store's lock.
    pub(super) fn check_present(
        &self,
        layers: impl IntoIterator<Item = DiffId>,
        blobs: impl IntoIterator<Item = Sha256Digest>,
    ) -> Result<(), StoreError> {
        for diff in layers {
            self.layers()?
                .stat(diff.0.hex())?
                .ok_or(StoreError::NoLayer(diff))?;
        }
        for blob in blobs {
            self.blobs()?
                .stat(blob.hex())?
                .ok_or(StoreError::NoBlob(blob))?;
        }
        Ok(())
    }
}

/// Tags written to the transaction's directory, each with its temporary name.
pub(super) struct StagedTags<'t>(Vec<(String, &'t Tag)>);

impl Transaction<'_> {
    /// Writes tags to the transaction's directory: an invalid tag or a full disk fails here.
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
        let content = encode(tag, &self.store.refs()?.join(tag.file_name()))?;
        self.dir.create_with(&temporary, PRIVATE, &content)?;
        Ok(temporary)
    }

    /// Publishes staged tags. The caller holds the store's lock; everything the tags name is in
    /// place and durable.
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
        // First record the images that lose their last name: a crash may leave two records, never
        // none.
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
            // A tagged image needs no untagged record.
            if tag.reference.is_some() || !tag.id().is_some_and(named) {
                self.place_tag(temporary, tag, false)?;
            }
        }
        store.refs()?.sync()?;
        // Last, so that no crash leaves an image without a record: drop the untagged records of
        // images that have a name now.
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
            .rename(temporary, self.store.refs()?, tag.file_name())
    }
}
