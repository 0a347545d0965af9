//! Images as people name, list and remove them. What an image is, the store and `core::image` know.

use super::Engine;
use super::container::state::Status;
use super::error::{Context, Error, Result};
use super::names;
use super::process::ImageDefaults;
use cowl_core::digest::{DiffId, ImageId, Sha256Digest};
use cowl_core::image::{self, ImageConfig, Loaded};
use cowl_core::store::{RefRecord, Reference, Trust};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

/// What is needed of an image to run or mount it.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name and tag, or its short id if it was named by id.
    pub name: String,
    /// The digest of its configuration.
    pub id: ImageId,
    /// Bottom first.
    pub layers: Vec<DiffId>,
    /// What it keeps in the store's blobs, compressed layers apart: a container needs those no more.
    pub blobs: Vec<Sha256Digest>,
    /// Its process.
    pub defaults: ImageDefaults,
    /// Where it wants volumes.
    pub volumes: Vec<String>,
}

/// A name of an image, or an image without one.
#[derive(Debug)]
pub struct Listed {
    /// None: `<none>`.
    pub reference: Option<Reference>,
    /// The digest of its configuration.
    pub id: ImageId,
    /// When it was made; Docker shows none for none.
    pub created: Option<Timestamp>,
    /// Bytes of all files of all layers.
    pub size: u64,
    /// Why its configuration can't be read. It can still be removed, or loaded again.
    pub damage: Option<Error>,
}

/// One step of an image's making.
#[derive(Debug, Clone)]
pub struct Step {
    /// The image, for its last step.
    pub image: Option<ImageId>,
    /// When.
    pub created: Option<Timestamp>,
    /// By which command.
    pub created_by: String,
    /// Bytes of the files of its layer; 0 if it made none.
    pub size: u64,
    /// What its maker says about it.
    pub comment: String,
}

/// What removing an image did.
#[derive(Debug, Clone)]
pub enum Removed {
    /// It lost this name.
    Untagged(String),
    /// Its last name is gone, and what only it used was freed.
    Deleted(ImageId),
}

/// What a user may mean by the word for an image.
struct Meant {
    /// The names (or the nameless record) of the one image.
    records: Vec<RefRecord>,
    /// It was called by this name, not by its id.
    by_name: Option<RefRecord>,
}

impl Engine {
    /// The image that `needle` means: a name, a whole id, or the beginning of one id only.
    pub fn image(&self, needle: &str) -> Result<Image> {
        let Meant { records, by_name } = self.meant(needle)?;
        let record = by_name
            .or_else(|| records.into_iter().next())
            .ok_or_else(|| missing(needle))?;
        let config = self.config(&record)?;
        let name = match &record.reference {
            Some(reference) => reference.to_string(),
            None => short_id(record.image),
        };
        let process = config.config.unwrap_or_default();
        let defaults = ImageDefaults {
            entrypoint: process.entrypoint,
            cmd: process.cmd,
            env: process.env,
            working_dir: process.working_dir,
            user: process.user,
        };
        let blobs = std::iter::once(record.image.0)
            .chain(record.manifest)
            .collect();
        Ok(Image {
            name,
            id: record.image,
            layers: record.layers,
            blobs,
            defaults,
            volumes: process.volumes,
        })
    }

    /// Every name of every image, newest first.
    pub fn images(&self) -> Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for record in self.store.refs()? {
            let (created, damage) = match self.config(&record) {
                Ok(config) => (config.created.and_then(|text| text.parse().ok()), None),
                Err(error) => (None, Some(error)),
            };
            listed.push(Listed {
                created,
                damage,
                size: self.size(&record.layers)?,
                id: record.image,
                reference: record.reference,
            });
        }
        listed.sort_by(|a, b| {
            b.created
                .cmp(&a.created)
                .then_with(|| a.reference.cmp(&b.reference))
        });
        Ok(listed)
    }

    /// Brings in the images of an archive; without a path, of standard input. `trust` is in what the store has already.
    pub fn load(&self, archive: Option<&Path>, trust: Trust) -> Result<Vec<Loaded>> {
        let path = archive.unwrap_or(Path::new(STDIN));
        let loaded = match archive {
            Some(path) => image::load_with(&self.store, path, trust),
            None => image::load_file(&self.store, standard_input()?, path, trust),
        };
        loaded.map_err(|error| {
            let error = Error::from(error);
            let named = error.to_string().contains(&path.display().to_string());
            if named {
                error
            } else {
                error.context(format!("loading {}", path.display()))
            }
        })
    }

    /// Makes an image of the tar of a root file system; without a path, of standard input.
    pub fn import(&self, tar: Option<&Path>, name: &Reference) -> Result<ImageId> {
        let what = || format!("importing {}", tar.unwrap_or(Path::new(STDIN)).display());
        let file = match tar {
            Some(path) => File::open(path).context(what)?,
            None => standard_input()?,
        };
        image::import_rootfs(&self.store, file, name).context(what)
    }

    /// How the image was made, last step first.
    pub fn history(&self, needle: &str) -> Result<Vec<Step>> {
        let Meant { records, by_name } = self.meant(needle)?;
        let record = by_name
            .or_else(|| records.into_iter().next())
            .ok_or_else(|| missing(needle))?;
        let config = self.config(&record)?;
        let mut layers = record.layers.iter();
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
                size: layer.map_or(Ok(0), |layer| self.size(std::slice::from_ref(layer)))?,
                comment: step.comment,
            });
        }
        // Layers that the history doesn't speak of; an image need not have one.
        for layer in layers {
            let size = self.size(std::slice::from_ref(layer))?;
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
            last.image = Some(record.image);
        }
        Ok(steps)
    }

    /// Removes a name of an image, or all of it by its id; frees what nothing else uses. Docker's rules for what `force` overrides.
    ///
    /// What was done is noted in `removed`, also when an error ends it half-way.
    pub fn remove_image(
        &self,
        needle: &str,
        force: bool,
        removed: &mut Vec<Removed>,
    ) -> Result<()> {
        // So that no container comes to use it meanwhile.
        let guard = self.containers.guard()?;
        let Meant { records, by_name } = self.meant(needle)?;
        let id = records.first().ok_or_else(|| missing(needle))?.image;
        let users = self.users_of_image(id)?;
        let short = short_id(id);
        let doomed = if let Some(record) = by_name {
            if let (Some((user, _)), 1, false) = (users.first(), records.len(), force) {
                return Err(Error::conflict(format!(
                    "conflict: unable to remove repository reference \"{needle}\" (must force) - container {user} is using its referenced image {short}"
                )));
            }
            vec![record]
        } else {
            let refuse = |how: &str, why: String| {
                Err(Error::conflict(format!(
                    "conflict: unable to delete {short} ({how}) - {why}"
                )))
            };
            if let Some((user, _)) = users.iter().find(|(_, running)| *running) {
                return refuse(
                    "cannot be forced",
                    format!("image is being used by running container {user}"),
                );
            }
            if let (Some((user, _)), false) = (users.first(), force) {
                return refuse(
                    "must be forced",
                    format!("image is being used by stopped container {user}"),
                );
            }
            if records.len() > 1 && !force {
                return refuse(
                    "must be forced",
                    "image is referenced in multiple repositories".to_owned(),
                );
            }
            records.clone()
        };
        for record in &doomed {
            self.store.untag(record)?;
            removed.extend(
                record
                    .reference
                    .as_ref()
                    .map(|reference| Removed::Untagged(reference.to_string())),
            );
        }
        drop(guard);
        if doomed.len() == records.len() {
            self.store
                .gc()
                .context(|| "freeing what only the image used")?;
            if users.is_empty() {
                removed.push(Removed::Deleted(id));
            }
        }
        Ok(())
    }

    fn meant(&self, needle: &str) -> Result<Meant> {
        let all = self.store.refs()?;
        let of = |id: ImageId| {
            all.iter()
                .filter(|record| record.image == id)
                .cloned()
                .collect::<Vec<_>>()
        };
        if let Ok(reference) = needle.parse::<Reference>()
            && let Some(record) = self.store.find_ref(&reference)?
        {
            return Ok(Meant {
                records: of(record.image),
                by_name: Some(record),
            });
        }
        let ids: BTreeSet<ImageId> = all
            .iter()
            .map(|record| record.image)
            .filter(|id| is_id(needle) && id.0.hex().starts_with(digits(needle)))
            .collect();
        match (ids.first(), ids.len()) {
            (Some(id), 1) => Ok(Meant {
                records: of(*id),
                by_name: None,
            }),
            (None, _) => Err(missing(needle)),
            (Some(_), _) => Err(Error::invalid(format!(
                "image {needle}: several images have ids that begin so; give more of it (cowl images --no-trunc)"
            ))),
        }
    }

    /// Short ids of the containers that use an image, and whether they run; running ones first.
    fn users_of_image(&self, id: ImageId) -> Result<Vec<(String, bool)>> {
        let mut users = Vec::new();
        for (container, status) in self.containers()? {
            if container.config.image_id == id {
                users.push((
                    names::short(&container.config.id).to_owned(),
                    matches!(status, Status::Running | Status::Created),
                ));
            }
        }
        users.sort_by_key(|(_, running)| !running);
        Ok(users)
    }

    fn config(&self, record: &RefRecord) -> Result<ImageConfig> {
        let bytes = self.store.read_blob(record.image.0, CONFIG_LIMIT)?;
        ImageConfig::from_slice(&bytes)
            .context(|| format!("configuration of image {}", short_id(record.image)))
    }

    fn size(&self, layers: &[DiffId]) -> Result<u64> {
        let mut size = 0;
        for layer in layers {
            size += self
                .store
                .layer_record(*layer)?
                .map_or(0, |layer| layer.content_size);
        }
        Ok(size)
    }
}

const STDIN: &str = "standard input";

/// By its descriptor: to open `/dev/stdin` fails where it is a socket, or a pipe of another user's.
fn standard_input() -> Result<File> {
    let descriptor = std::io::stdin().as_fd().try_clone_to_owned();
    Ok(File::from(descriptor.context(|| STDIN.to_owned())?))
}

/// Far above any real configuration.
const CONFIG_LIMIT: u64 = 16 << 20;

fn digits(needle: &str) -> &str {
    needle.strip_prefix("sha256:").unwrap_or(needle)
}

/// Whether it can be an id or the beginning of one.
fn is_id(needle: &str) -> bool {
    let digits = digits(needle);
    let is_digit = |c| matches!(c, b'0'..=b'9' | b'a'..=b'f');
    (1..=64).contains(&digits.len()) && digits.bytes().all(is_digit)
}

fn missing(needle: &str) -> Error {
    // Said with the tag that was looked for, as Docker does.
    let name = match needle.parse::<Reference>() {
        Ok(reference) => reference.to_string(),
        Err(_) if is_id(needle) => needle.to_owned(),
        Err(error) => return Error::invalid(error.to_string()),
    };
    Error::not_found(format!(
        "No such image: {name}; cowl images lists what there is, cowl load -i FILE brings in an archive"
    ))
}

/// The first 12 digits of an image's id.
pub fn short_id(id: ImageId) -> String {
    names::short(&id.0.hex()).to_owned()
}
