//! Naming, listing and describing images. The store and `core::image` define what an image is.

use super::docker::ContainerConfig;
use super::error::{Context, Error, Result};
use super::{Engine, Listing, names};
use cowl_core::digest::{ChainId, DiffId, ImageId, Sha256Digest};
use cowl_core::image::{self, ImageConfig};
use cowl_core::store::{Platform, Reference, Tag, TaggedImage};
use jiff::Timestamp;
use std::collections::BTreeMap;

/// The part of an image that running and mounting need.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name and tag or digest, or its short id if it was named by id.
    pub name: String,
    /// The digest of its configuration.
    pub id: ImageId,
    /// Its operating system and architecture.
    pub platform: Platform,
    /// Bottom first.
    pub layers: Vec<DiffId>,
    /// Its blobs in the store, but for compressed layers: a container does not need those.
    pub blobs: Vec<Sha256Digest>,
    /// The image's defaults for a container's configuration.
    pub defaults: ContainerConfig,
}

/// A row of `images`: a name of an image, or an image without a name.
#[derive(Debug)]
pub struct Listed {
    /// None: `<none>`.
    pub reference: Option<Reference>,
    /// The digest of its configuration.
    pub id: ImageId,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Bytes of all files in all layers.
    pub size: u64,
    /// Digest of the manifest or index that the name referred to at its source.
    pub digest: Option<Sha256Digest>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Why its configuration cannot be read. It can still be removed, or loaded again.
    pub damage: Option<Error>,
}

/// One step of an image's history.
#[derive(Debug, Clone)]
pub struct Step {
    /// The image's id, for its last step.
    pub image: Option<ImageId>,
    /// When the step was made.
    pub created: Option<Timestamp>,
    /// The command that made it.
    pub created_by: String,
    /// Bytes of the files in its layer; 0 if it has none.
    pub size: u64,
    /// Its author's comment.
    pub comment: String,
}

/// One effect of removing an image.
#[derive(Debug)]
pub enum Removed {
    /// The image lost this name.
    Untagged(String),
    /// Its last name is gone, and what only it used was freed.
    Deleted(ImageId),
    /// No image and no container has this stack of layers any more.
    DeletedLayers(ChainId),
    /// A damaged record might use something, so not everything was freed.
    NotFreed(Error),
}

/// The image that a user's argument resolves to.
pub(super) struct Found {
    pub(super) image: TaggedImage,
    /// The tag, if the argument is a name and not an id.
    pub(super) by_name: Option<Tag>,
}

impl Engine {
    /// Refuses a platform (`OS/ARCHITECTURE[/VARIANT]`) other than that of the image that the name
    /// resolves to on this host.
    pub fn check_platforms<'p>(
        &self,
        needle: &str,
        platforms: impl IntoIterator<Item = &'p str>,
    ) -> Result<()> {
        for platform in platforms {
            let selected = self.select(&[needle.to_owned()], Some(platform))?;
            let meant = self.image(needle)?.id;
            if !selected.iter().any(|one| one.tag.id() == Some(meant)) {
                return Err(Error::invalid(format!(
                    "image {needle} has several platforms, and {platform} is not the one it stands for on this host"
                )));
            }
        }
        Ok(())
    }

    /// Finds an image by name, id or unambiguous prefix of an id.
    pub fn image(&self, needle: &str) -> Result<Image> {
        let Found { image, by_name } = self.find_image(needle)?;
        let by_digest = || {
            let name: Reference = needle.parse().ok()?;
            name.digest().is_some().then_some(name)
        };
        let reference = by_name.and_then(|tag| tag.reference).or_else(by_digest);
        let name = reference.map_or_else(|| short_id(image.config), |name| name.to_string());
        let defaults = self.defaults(image.config)?;
        Ok(Image {
            name,
            id: image.config,
            platform: image.platform.clone(),
            layers: image.diff_ids(),
            blobs: std::iter::once(image.config.0)
                .chain(image.manifest)
                .collect(),
            defaults,
        })
    }

    /// Docker's warning if an image is not for this host.
    pub fn foreign_platform(&self, id: ImageId) -> Result<Option<String>> {
        let tags = self.store.tags()?.tags;
        let image = tags
            .iter()
            .filter_map(Tag::image)
            .find(|image| image.config == id);
        Ok(image.and_then(|image| image::foreign_platform(&image.platform)))
    }

    /// Every name of every image, newest first, then by name, then by id. Docker sorts the tags of
    /// a repository, but not the repositories.
    pub fn images(&self) -> Result<Listing<Listed>> {
        let found = self.store.tags()?;
        let mut items = Vec::new();
        for tag in found.tags {
            let Some(image) = tag.image() else { continue };
            let mut listed = Listed {
                reference: None,
                id: image.config,
                created: None,
                size: 0,
                digest: tag.target.as_ref().map(|target| target.digest),
                labels: BTreeMap::new(),
                damage: None,
            };
            match self.describe(image) {
                Ok((config, size)) => {
                    listed.created = config.created.and_then(|at| at.parse().ok());
                    listed.size = size;
                    listed.labels = config.config.unwrap_or_default().labels;
                }
                Err(error) => listed.damage = Some(error),
            }
            items.push(Listed {
                reference: tag.reference,
                ..listed
            });
        }
        items.sort_by(|a, b| {
            b.created
                .cmp(&a.created)
                .then_with(|| a.reference.cmp(&b.reference))
                .then_with(|| a.id.cmp(&b.id))
        });
        Ok(Listing {
            items,
            skipped: found.damaged.into_iter().map(Error::from).collect(),
        })
    }

    fn describe(&self, image: &TaggedImage) -> Result<(ImageConfig, u64)> {
        Ok((
            self.config(image.config)?,
            self.size(image.layers.iter().map(|layer| &layer.diff_id))?,
        ))
    }

    /// Adds a name to an image; another image may lose it.
    pub fn tag_image(&self, source: &str, target: &Reference) -> Result<()> {
        let transaction = self.store.begin()?;
        let Found { image, by_name } = self.find_image(source)?;
        let tag = match by_name {
            Some(tag) => Some(tag),
            None => self.tags_of(image.config)?.into_iter().next(),
        };
        let tag = tag.ok_or_else(|| no_such_image(source))?;
        transaction.keep_tag(&tag)?;
        transaction.publish(&[Tag {
            reference: Some(target.clone()),
            ..tag
        }])?;
        self.tell_image(image.config, "tag", &target.to_string());
        Ok(())
    }

    /// The image's history, last step first.
    pub fn history(&self, needle: &str) -> Result<Vec<Step>> {
        let image = self.find_image(needle)?.image;
        let config = self.config(image.config)?;
        let mut layers = image.layers.iter().map(|layer| &layer.diff_id);
        let mut steps = Vec::new();
        for step in config.history {
            let layer = if step.empty_layer {
                None
            } else {
                layers.next()
            };
            steps.push(Step {
                image: None,
                created: step.created.and_then(|text| text.parse().ok()),
                created_by: step.created_by,
                size: self.size(layer)?,
                comment: step.comment,
            });
        }
        // Layers without an entry in the history, which is optional.
        for layer in layers {
            let size = self.size([layer])?;
            steps.push(Step {
                image: None,
                created: None,
                created_by: String::new(),
                size,
                comment: String::new(),
            });
        }
        steps.reverse();
        if let Some(last) = steps.first_mut() {
            last.image = Some(image.config);
        }
        Ok(steps)
    }

    /// A lookup by name reads one tag, however many images there are; by a digest that is not in a
    /// tag's record name, all tags.
    pub(super) fn find_image(&self, needle: &str) -> Result<Found> {
        let name = needle.parse().ok().map(Reference::looked_up);
        if let Some(name) = &name
            && let Some(tag) = self.store.find_tag(name)?
            && let Some(image) = tag.image().cloned()
        {
            return Ok(Found {
                image,
                by_name: Some(tag),
            });
        }
        let all = self.store.tags()?.tags;
        if let Some(name) = name.filter(|name| name.digest().is_some()) {
            let mut images = all
                .iter()
                .flat_map(|tag| tag.images.iter().map(move |image| (tag, image)));
            let found = images.find(|(tag, image)| tag.names_by_digest(image).contains(&name));
            return match found {
                Some((_, image)) => Ok(Found {
                    image: image.clone(),
                    by_name: None,
                }),
                None => Err(no_such_image(needle)),
            };
        }
        let images = all.iter().filter_map(Tag::image);
        let wanted = |image: &&TaggedImage| {
            is_id(needle) && image.config.0.hex().starts_with(without_algorithm(needle))
        };
        let found: BTreeMap<ImageId, &TaggedImage> = images
            .filter(wanted)
            .map(|image| (image.config, image))
            .collect();
        match (found.into_values().collect::<Vec<_>>()).as_slice() {
            [] => Err(no_such_image(needle)),
            [image] => Ok(Found {
                image: (*image).clone(),
                by_name: None,
            }),
            _ => Err(Error::invalid(format!(
                "image {needle}: several images have ids with this prefix; use more digits (cowl images --no-trunc)"
            ))),
        }
    }

    /// All tags of an image, or the nameless one. Reads every tag, so a start does not call it.
    pub(super) fn tags_of(&self, id: ImageId) -> Result<Vec<Tag>> {
        let mut tags = self.store.tags()?.tags;
        tags.retain(|tag| tag.id() == Some(id));
        Ok(tags)
    }

    /// Whether any tag has the image. If `name` still has it, no other tag is read.
    pub(super) fn is_listed(&self, id: ImageId, name: &str) -> Result<bool> {
        // If this tag is damaged, look at the others.
        if let Ok(reference) = name.parse::<Reference>()
            && let Ok(Some(tag)) = self.store.find_tag(&reference)
            && tag.has(id)
        {
            return Ok(true);
        }
        let tags = self.store.tags()?.tags;
        Ok(tags.iter().any(|tag| tag.has(id)))
    }

    /// `config` of an image's configuration.
    fn defaults(&self, image: ImageId) -> Result<ContainerConfig> {
        #[derive(serde::Deserialize)]
        struct Defaults {
            config: Option<ContainerConfig>,
        }
        let bytes = self.store.read_blob(image.0, CONFIG_LIMIT)?;
        let defaults: Defaults = serde_json::from_slice(&bytes)
            .context(|| format!("configuration of image {}", short_id(image)))?;
        Ok(defaults.config.unwrap_or_default())
    }

    /// The labels of an image for its events; none if it is damaged.
    pub(super) fn labels_of_image(&self, id: ImageId) -> BTreeMap<String, String> {
        let config = self.config(id).ok().and_then(|config| config.config);
        config.unwrap_or_default().labels
    }

    fn config(&self, image: ImageId) -> Result<ImageConfig> {
        let bytes = self.store.read_blob(image.0, CONFIG_LIMIT)?;
        ImageConfig::from_slice(&bytes)
            .context(|| format!("configuration of image {}", short_id(image)))
    }

    pub(super) fn size<'l>(&self, layers: impl IntoIterator<Item = &'l DiffId>) -> Result<u64> {
        let mut size = 0;
        for layer in layers {
            size += self
                .store
                .layer_info(*layer)?
                .map_or(0, |layer| layer.content_size);
        }
        Ok(size)
    }
}

/// Far above any real configuration.
pub(super) const CONFIG_LIMIT: u64 = 16 << 20;

fn without_algorithm(needle: &str) -> &str {
    needle.strip_prefix("sha256:").unwrap_or(needle)
}

/// Whether it can be an id or a prefix of one.
fn is_id(needle: &str) -> bool {
    let digits = without_algorithm(needle);
    let is_digit = |c| matches!(c, b'0'..=b'9' | b'a'..=b'f');
    (1..=64).contains(&digits.len()) && digits.bytes().all(is_digit)
}

pub(super) fn no_such_image(needle: &str) -> Error {
    // With the tag that was looked for, as in Docker.
    let name = match needle.parse::<Reference>() {
        Ok(reference) => reference.to_string(),
        Err(_) if is_id(needle) => needle.to_owned(),
        Err(error) => return Error::invalid(error.to_string()),
    };
    Error::not_found(format!("No such image: {name}"))
}

/// The first 12 digits of an image's id.
pub fn short_id(id: ImageId) -> String {
    names::short(&id.0.hex()).to_owned()
}
