//! Changes in containers and uppers: `diff`, `commit`, the files for `export`; and `unpack`.
//!
//! Invariant: an upper is never read while it changes. An unmounted upper's locks are held, so that
//! no mount uses it meanwhile; a running container is frozen, or its changes wait
//! ([`frozen`](super::frozen)).

use super::container::{Container, PATIENCE, PAUSE};
use super::docker::ContainerConfig;
use super::error::{Context, Error, Kind, Result};
use super::frozen::{Frozen, Means};
use super::image::{CONFIG_LIMIT, Image};
use super::{Engine, mountpoint, network};
use cowl_core::digest::{DiffId, ImageId};
use cowl_core::image::{ConfigChange, ImageConfig, NewImage, new_config};
use cowl_core::layer::{self, Unpacked, from_upper};
use cowl_core::store::{Reference, Tag, TaggedImage, TaggedLayer, Transaction};
use cowl_core::tree::{Tree, merge};
use cowl_core::upper::changes::{ChangesError, MountPoints, Now, changes};
use cowl_core::upper::marks::Stamp;
use cowl_core::upper::{Base, Upper, UpperError};
use jiff::Timestamp;
use rustix::event::poll;
use rustix::fs::{FileType, Statx};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

/// What changed at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// The image does not have the file.
    Added,
    /// The image's file differs.
    Changed,
    /// The image's file is gone.
    Deleted,
}

/// What to look for changes in.
#[derive(Debug, Clone, Copy)]
pub enum Changed<'a> {
    /// A container.
    Container(&'a str),
    /// An upper of `cowl mount IMAGE DIR --upper UPPER`.
    Upper {
        /// The image it was mounted over.
        image: &'a str,
        /// The upper directory.
        upper: &'a Path,
        /// Its work directory; `<upper>.work` by default.
        work: Option<&'a Path>,
    },
}

/// The arguments of [`Engine::commit`].
#[derive(Debug)]
pub struct CommitRequest<'a> {
    /// What to commit.
    pub changed: Changed<'a>,
    /// The name of the new image; None leaves it untagged.
    pub name: Option<&'a Reference>,
    /// `-a`.
    pub author: &'a str,
    /// `-m`.
    pub comment: &'a str,
    /// `-c`, each.
    pub changes: &'a [String],
    /// Whether a running container is paused for it, where it can be; else only its changes wait.
    pub pause: bool,
    /// Overrides the container's configuration, as a client's configuration overrides an image's.
    pub config: Option<&'a ContainerConfig>,
}

/// An upper that cannot change now, and the tree below it.
struct AtRest {
    upper: Upper,
    /// For a running container: dropping it lets the container go on.
    frozen: Option<Frozen>,
    tree: Tree,
    layers: Vec<DiffId>,
    image: ImageId,
    mount_points: MountPoints,
    /// The container's configuration fields, which replace the image's.
    config: Map<String, Value>,
    created_by: String,
}

impl AtRest {
    /// Fails if the upper may have changed since.
    fn confirm(&self) -> Result<()> {
        self.frozen.as_ref().map_or(Ok(()), Frozen::confirm)
    }
}

/// Directories that the launcher creates for its own mounts.
const OWN_MOUNT_POINTS: [&str; 3] = ["proc", "sys", "dev"];

impl Engine {
    /// The changes in a container or an upper, sorted by path. Paths have no leading slash.
    pub fn diff(&self, changed: Changed<'_>) -> Result<Vec<(ChangeKind, Vec<u8>)>> {
        let transaction = self.store.begin()?;
        let at_rest = self.at_rest(changed, Means::PauseOrHold, &transaction)?;
        let tree = &at_rest.tree;
        let mut listed = BTreeSet::new();
        let mut gone = Vec::new();
        let mut opaque = Vec::new();
        // Directories whose only change may be new mount points: not listed.
        let mut unchanged: Vec<Vec<u8>> = Vec::new();
        changes(&at_rest.upper, tree, &at_rest.mount_points, |change| {
            match change.now {
                Now::Nothing => gone.push(change.path.to_vec()),
                Now::Opaque => opaque.push(change.path.to_vec()),
                Now::Upper { stat, .. } if holds_mount_points(&at_rest, change.path, stat)? => {
                    unchanged.push(change.path.to_vec());
                }
                Now::Upper { .. } | Now::Tree(_) | Now::Link(_) => {
                    listed.insert(change.path.to_vec());
                }
            }
            Ok::<_, ChangesError>(())
        })?;
        at_rest.confirm()?;
        for dir in opaque {
            let Some(ino) = tree.resolve(&dir)? else {
                continue;
            };
            for child in tree.children(ino)? {
                let path = [dir.as_slice(), child?.name].join(&b'/');
                if !listed.contains(&path) {
                    gone.push(path);
                }
            }
        }
        let mut all: Vec<_> = gone
            .into_iter()
            .map(|path| (ChangeKind::Deleted, path))
            .collect();
        // The root itself has no name to list.
        for path in listed.into_iter().filter(|path| !path.is_empty()) {
            let kind = match tree.resolve(&path)? {
                Some(_) => ChangeKind::Changed,
                None => ChangeKind::Added,
            };
            all.push((kind, path));
        }
        for dir in unchanged {
            if all.iter().any(|(_, path)| is_inside(path, &dir)) {
                all.push((ChangeKind::Changed, dir));
            }
        }
        all.sort_by(|(_, a), (_, b)| a.cmp(b));
        Ok(all)
    }

    /// Creates an image from the changes in a container or an upper, on top of its image.
    pub fn commit(&self, request: &CommitRequest<'_>) -> Result<ImageId> {
        let mut edits = Vec::new();
        for text in request.changes {
            let edit: Result<ConfigChange, _> = text.parse();
            edits.push(edit.map_err(|error| Error::invalid(error.to_string()))?);
        }
        let transaction = self.store.begin()?;
        let means = if request.pause {
            Means::Pause
        } else {
            Means::Hold
        };
        let mut at_rest = self.at_rest(request.changed, means, &transaction)?;
        if let (Some(asked), Changed::Container(needle)) = (request.config, request.changed) {
            super::process::check(asked)?;
            let own = self.containers.find(needle)?.config.config;
            at_rest.config = image_fields(&super::process::merge(asked, &own)?)?;
        }
        let below = self.store.read_blob(at_rest.image.0, CONFIG_LIMIT)?;
        let layer = from_upper(
            &at_rest.upper,
            &at_rest.tree,
            &at_rest.mount_points,
            &transaction,
        )?;
        at_rest.confirm()?;
        let config = new_config(
            &below,
            &NewImage {
                created: Timestamp::now().to_string(),
                created_by: at_rest.created_by.clone(),
                author: request.author.to_owned(),
                comment: request.comment.to_owned(),
                layer: (!layer.empty).then_some(layer.diff_id),
                config: at_rest.config.clone(),
                changes: &edits,
            },
        )?;
        let mut layers = self.layers_with_blobs(&at_rest, &transaction)?;
        if !layer.empty {
            transaction.put_layer(
                layer.diff_id,
                layer.tree_bytes,
                layer.tar_size,
                &layer.recipe,
            )?;
            layers.push(TaggedLayer {
                diff_id: layer.diff_id,
                blob: None,
            });
        }
        let diff_ids: Vec<DiffId> = layers.iter().map(|layer| layer.diff_id).collect();
        transaction.put_merged(&diff_ids)?;
        let id = ImageId(transaction.put_blob(&config)?);
        let known = ImageConfig::from_slice(&config)?;
        transaction.publish(&[Tag {
            reference: request.name.cloned(),
            target: None,
            images: vec![TaggedImage {
                platform: known.platform(),
                config: id,
                manifest: None,
                layers,
            }],
        }])?;
        self.tell_commit(request, id)?;
        Ok(id)
    }

    fn tell_commit(&self, request: &CommitRequest<'_>, id: ImageId) -> Result<()> {
        let name = request.name.map_or_else(String::new, Reference::to_string);
        if !name.is_empty() {
            self.tell_image(id, "tag", &name);
        }
        if let Changed::Container(needle) = request.changed {
            let extra = [
                ("comment", request.comment),
                ("imageID", &id.to_string()),
                ("imageRef", &name),
            ];
            let config = self.containers.find(needle)?.config;
            self.tell_container(&config, "commit", &extra);
        }
        Ok(())
    }

    /// All files of a container; the transaction keeps their contents from gc.
    pub(super) fn files_of(
        &self,
        container: &Container,
        needle: &str,
        transaction: &Transaction<'_>,
    ) -> Result<Tree> {
        let means = Means::PauseOrHold;
        let at_rest = self.container_at_rest(container, needle, means, transaction)?;
        let upper = from_upper(
            &at_rest.upper,
            &at_rest.tree,
            &below(network_files()),
            transaction,
        )?;
        at_rest.confirm()?;
        let mut trees = Vec::new();
        for diff_id in &at_rest.layers {
            let tree = self.store.layer_tree(*diff_id)?;
            trees.push(tree.ok_or_else(|| Error::failed(format!("layer {diff_id} is gone")))?);
        }
        trees.push(Tree::from_bytes(upper.tree_bytes)?);
        Ok(Tree::from_bytes(merge(trees)?)?)
    }

    /// Unpacks an image into an empty directory, created if missing.
    pub fn unpack(&self, image: &str, dir: &Path) -> Result<Unpacked> {
        let image = self.image(image)?;
        let transaction = self.store.begin()?;
        transaction.keep_layers(&image.layers)?;
        let merged = self.store.merged(&image.layers)?;
        let (fd, _) = mountpoint::open_or_make(dir, 0o755)?;
        layer::unpack(&merged.tree, &self.store, fd)
            .context(|| format!("unpacking into {}", dir.display()))
    }

    fn at_rest(
        &self,
        changed: Changed<'_>,
        means: Means,
        transaction: &Transaction<'_>,
    ) -> Result<AtRest> {
        match changed {
            Changed::Container(needle) => {
                let container = self.containers.find(needle)?;
                self.container_at_rest(&container, needle, means, transaction)
            }
            Changed::Upper { image, upper, work } => {
                let Image { id, layers, .. } = self.image(image)?;
                let upper_fd = open(upper)?;
                let work = if let Some(work) = work {
                    open(work)?
                } else {
                    let mut name = mountpoint::canonical(&upper_fd)?.into_os_string();
                    name.push(".work");
                    open(Path::new(&name))?
                };
                let (upper, tree) = self
                    .open_upper(&layers, upper_fd, &work, transaction)
                    .context(|| format!("upper {}", upper.display()))?;
                Ok(AtRest {
                    upper,
                    frozen: None,
                    tree,
                    layers,
                    image: id,
                    mount_points: MountPoints::new(),
                    config: Map::new(),
                    created_by: "cowl commit".to_owned(),
                })
            }
        }
    }

    fn container_at_rest(
        &self,
        container: &Container,
        needle: &str,
        means: Means,
        transaction: &Transaction<'_>,
    ) -> Result<AtRest> {
        let config = &container.config;
        let frozen = self.freeze(container, means)?;
        if frozen.is_none() {
            self.wait_for_last_mount(container)?;
        }
        let open = || {
            let (upper, work) = container.upper()?;
            match &frozen {
                Some(_) => self.open_mounted(&config.layers, upper, &work, transaction),
                None => self.open_upper(&config.layers, upper, &work, transaction),
            }
        };
        let mut opened = open();
        let end = Instant::now() + PATIENCE;
        // A command that tests the lock holds it for a moment.
        while matches!(&opened, Err(error) if error.kind() == Kind::Conflict)
            && Instant::now() < end
        {
            rustix::io::retry_on_intr(|| poll(&mut [], Some(&PAUSE)))?;
            opened = open();
        }
        let (upper, tree) = opened.map_err(|error| match error.kind() {
            Kind::Conflict => Error::conflict(format!(
                "the files of container {needle} are in use by another command"
            )),
            _ => error.context(format!("container {needle}")),
        })?;
        let destinations = config.mounts.iter().map(|mount| mount.destination.as_str());
        let mount_points = below(destinations.chain(OWN_MOUNT_POINTS).chain(network_files()));
        Ok(AtRest {
            upper,
            frozen,
            tree,
            layers: config.layers.clone(),
            image: config.image_id,
            mount_points,
            config: image_fields(&config.config)?,
            created_by: config.config.cmd.as_deref().unwrap_or_default().join(" "),
        })
    }

    /// Waits until an ended container's mount has ended: it may have much to sync. The start lock
    /// prevents a new mount.
    fn wait_for_last_mount(&self, container: &Container) -> Result<()> {
        let _lock = self.containers.take(container)?;
        let status = container.status()?;
        if status.is_live() || status.is_orphaned() {
            return Ok(());
        }
        container.wait_unmounted()
    }

    /// Opens and locks an upper over a stack of layers, which the transaction keeps from gc.
    fn open_upper(
        &self,
        layers: &[DiffId],
        upper: OwnedFd,
        work: &OwnedFd,
        transaction: &Transaction<'_>,
    ) -> Result<(Upper, Tree)> {
        let (tree, stamp) = self.stack(layers, transaction)?;
        match Upper::open(
            upper,
            work,
            Base::Tree {
                stamp: &stamp,
                volatile: false,
            },
        ) {
            Ok(upper) => Ok((upper, tree)),
            Err(error @ UpperError::InUse) => Err(Error::conflict(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the upper of a mount in which nothing changes.
    fn open_mounted(
        &self,
        layers: &[DiffId],
        upper: OwnedFd,
        work: &OwnedFd,
        transaction: &Transaction<'_>,
    ) -> Result<(Upper, Tree)> {
        let (tree, stamp) = self.stack(layers, transaction)?;
        Ok((Upper::of_mount(upper, work, &stamp)?, tree))
    }

    fn stack(&self, layers: &[DiffId], transaction: &Transaction<'_>) -> Result<(Tree, Stamp)> {
        transaction.keep_layers(layers)?;
        let merged = self.store.merged(layers)?;
        let stamp = Stamp {
            chain: merged.chain,
            numbering: merged.tree.numbering(),
        };
        Ok((merged.tree, stamp))
    }

    /// The layers, with their blobs if an image still has them.
    fn layers_with_blobs(
        &self,
        at_rest: &AtRest,
        transaction: &Transaction<'_>,
    ) -> Result<Vec<TaggedLayer>> {
        let tags = self.store.tags()?.tags;
        let known = tags
            .iter()
            .find(|tag| tag.id() == Some(at_rest.image))
            .and_then(|tag| Some((tag, tag.image()?)))
            .filter(|(_, image)| image.diff_ids() == at_rest.layers);
        if let Some((tag, image)) = known {
            transaction.keep_tag(tag)?;
            return Ok(image.layers.clone());
        }
        let plain = at_rest.layers.iter().map(|diff_id| TaggedLayer {
            diff_id: *diff_id,
            blob: None,
        });
        Ok(plain.collect())
    }
}

/// Whether a directory with mount points inside has the tree's owner and mode. Creating them has
/// changed its time.
fn holds_mount_points(at_rest: &AtRest, path: &[u8], stat: &Statx) -> Result<bool, ChangesError> {
    let tree = &at_rest.tree;
    if !at_rest
        .mount_points
        .iter()
        .any(|point| is_inside(point, path))
    {
        return Ok(false);
    }
    if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::Directory {
        return Ok(false);
    }
    let Some(ino) = tree.resolve(path)? else {
        return Ok(false);
    };
    let node = tree.node(ino)?;
    let mode = u32::from(stat.stx_mode) & 0o7777;
    Ok((node.mode, node.uid, node.gid) == (mode, stat.stx_uid, stat.stx_gid))
}

fn is_inside(path: &[u8], dir: &[u8]) -> bool {
    let rest = path.strip_prefix(dir);
    rest.is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// Where each container's network files are mounted.
fn network_files<'p>() -> impl Iterator<Item = &'p str> {
    network::FILES.into_iter().map(|(_, path)| path)
}

fn below<'p>(paths: impl Iterator<Item = &'p str>) -> MountPoints {
    let plain = |path: &str| path.trim_matches('/').as_bytes().to_vec();
    paths.map(plain).collect()
}

/// The fields of a container's configuration that an image's configuration has too.
fn image_fields(config: &ContainerConfig) -> Result<Map<String, Value>> {
    const FIELDS: [&str; 13] = [
        "User",
        "ExposedPorts",
        "Env",
        "Entrypoint",
        "Cmd",
        "Healthcheck",
        "ArgsEscaped",
        "Volumes",
        "WorkingDir",
        "OnBuild",
        "Labels",
        "StopSignal",
        "Shell",
    ];
    let mut config = config.clone();
    // A bare name has already unset the image's variable.
    config.env.retain(|entry| entry.contains('='));
    let Value::Object(fields) = serde_json::to_value(&config)? else {
        return Ok(Map::new());
    };
    let kept = fields.into_iter();
    Ok(kept
        .filter(|(name, value)| FIELDS.contains(&name.as_str()) && !value.is_null())
        .collect())
}

fn open(path: &Path) -> Result<OwnedFd> {
    super::files::open_dir(path).context(|| format!("opening {}", path.display()))
}
