//! Removing images: what is refused, what is freed, and how it is reported.

use super::error::{Context, Error, Result};
use super::image::{Found, Removed, no_such_image, short_id};
use super::mount::SEPARATOR;
use super::{Engine, mountpoint, names};
use cowl_core::digest::{ChainId, DiffId, ImageId};
use cowl_core::store::{Reference, Tag, TaggedImage};
use std::fmt;
use std::path::PathBuf;

impl Engine {
    /// Removes a name of an image, or by its id the whole image; frees what nothing else uses.
    /// `force` overrides what it does in Docker.
    ///
    /// `removed` gets what was done, also if an error stops it half-way. Returns the bytes freed.
    pub fn remove_image(
        &self,
        needle: &str,
        force: bool,
        removed: &mut Vec<Removed>,
    ) -> Result<u64> {
        // No new container or mount can use the image meanwhile.
        let guard = self.containers.guard()?;
        self.drop_pins_of_gone_containers(&guard)?;
        let Found { image, by_name } = match self.find_image(needle) {
            Err(error) => return self.remove_damaged_tag(needle, error, removed),
            Ok(found) => found,
        };
        let id = image.config;
        let tags = self.tags_of(id)?;
        let users = self.users_of_image(id)?;
        let labels = self.labels_of_image(id);
        check_removable(needle, id, &tags, by_name.is_some(), &users, force)?;
        let gone = match by_name {
            Some(tag) if self.store.untag(&tag)? => vec![tag],
            // The name refers to another image by now.
            Some(_) => return Err(no_such_image(needle)),
            None => self.store.untag_image(id)?,
        };
        let names = gone.iter().filter_map(|tag| tag.reference.as_ref());
        let tell = |action| self.tell_image_with(id, action, &id.to_string(), labels.clone());
        for name in names {
            removed.push(Removed::Untagged(name.to_string()));
            tell("untag");
        }
        drop(guard);
        if gone.len() < tags.len() {
            return Ok(0);
        }
        let mut freed = Vec::new();
        let bytes = self.free(&mut freed)?;
        if users.is_empty() {
            removed.push(Removed::Deleted(id));
            tell("delete");
            removed.extend(self.gone_layers(&image.diff_ids())?);
        }
        removed.extend(freed);
        Ok(bytes)
    }

    /// The layer stacks of a removed image, top first, down to the first that is still used.
    fn gone_layers(&self, layers: &[DiffId]) -> Result<Vec<Removed>> {
        let tags = self.store.tags()?.tags;
        let images = tags.iter().flat_map(|tag| &tag.images);
        let mut others: Vec<Vec<DiffId>> = images.map(TaggedImage::diff_ids).collect();
        let containers = self.containers.list()?.items.into_iter();
        others.extend(containers.map(|container| container.config.layers));
        let mut gone = Vec::new();
        for height in (1..=layers.len()).rev() {
            let stack = layers.get(..height).unwrap_or_default();
            if others.iter().any(|other| other.starts_with(stack)) {
                break;
            }
            gone.push(Removed::DeletedLayers(ChainId::of(stack)));
        }
        Ok(gone)
    }

    /// Frees what nothing uses; returns the bytes freed.
    fn free(&self, removed: &mut Vec<Removed>) -> Result<u64> {
        let report = self
            .store
            .gc()
            .context(|| "freeing what only the image used")?;
        let bytes = report.bytes();
        let damaged = report.damaged.into_iter().map(Error::from);
        removed.extend(damaged.map(Removed::NotFreed));
        Ok(bytes)
    }

    /// Removes an unreadable tag, if `needle` names it.
    fn remove_damaged_tag(
        &self,
        needle: &str,
        error: Error,
        removed: &mut Vec<Removed>,
    ) -> Result<u64> {
        let Ok(name) = needle.parse::<Reference>() else {
            return Err(error);
        };
        if self.store.find_tag(&name).is_ok() || !self.store.untag_name(&name)? {
            return Err(error);
        }
        removed.push(Removed::Untagged(name.to_string()));
        self.free(removed)
    }

    /// The users of an image: running containers, other containers, then mounts.
    pub(super) fn users_of_image(&self, id: ImageId) -> Result<Vec<User>> {
        let mut users = Vec::new();
        let mut containers = Vec::new();
        for container in self.containers.list()?.items {
            let short = names::short(&container.config.id).to_owned();
            if container.config.image_id == id {
                // A container with a damaged status is a user too.
                let runs = container.status().is_ok_and(|status| status.is_live());
                let user = if runs { User::Running } else { User::Stopped };
                users.push(user(short.clone()));
            }
            containers.push(short);
        }
        for mount in self.store.mounts_of(id)? {
            // A container's own mount has the container's id.
            if !containers.contains(&mount) {
                let place = mountpoint::place_of(&format!("{SEPARATOR}{mount}"))?;
                users.push(User::Mount(place));
            }
        }
        users.sort();
        Ok(users)
    }
}

/// A user of an image; the order is by how strongly it prevents removal.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum User {
    /// The short id of a running container.
    Running(String),
    /// The short id of another container.
    Stopped(String),
    /// A mount, with its mount point if it is in this mount namespace.
    Mount(Option<PathBuf>),
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running(id) | Self::Stopped(id) => write!(f, "container {id}"),
            Self::Mount(Some(place)) => write!(f, "the mount on {}", place.display()),
            Self::Mount(None) => write!(f, "a mount in another mount namespace"),
        }
    }
}

/// Docker's rules for what `force` overrides; a mount counts as a stopped container.
fn check_removable(
    needle: &str,
    id: ImageId,
    tags: &[Tag],
    by_name: bool,
    users: &[User],
    force: bool,
) -> Result<()> {
    let short = short_id(id);
    let user = users.first();
    let advice = match user {
        Some(User::Mount(Some(place))) => format!("; cowl umount {} ends it", place.display()),
        _ => String::new(),
    };
    if by_name {
        if let (Some(user), 1, false) = (user, tags.len(), force) {
            return Err(Error::conflict(format!(
                "conflict: unable to remove repository reference \"{needle}\" (must force) - {user} is using its referenced image {short}{advice}"
            )));
        }
        return Ok(());
    }
    let refuse = |how: &str, why: String| {
        Err(Error::conflict(format!(
            "conflict: unable to delete {short} ({how}) - {why}"
        )))
    };
    let used_by = |user: String| format!("image is being used by {user}{advice}");
    match user {
        Some(running @ User::Running(_)) => {
            return refuse("cannot be forced", used_by(format!("running {running}")));
        }
        Some(stopped @ User::Stopped(_)) if !force => {
            return refuse("must be forced", used_by(format!("stopped {stopped}")));
        }
        Some(mount @ User::Mount(_)) if !force => {
            return refuse("must be forced", used_by(mount.to_string()));
        }
        _ => {}
    }
    if tags.len() > 1 && !force {
        return refuse(
            "must be forced",
            "image is referenced in multiple repositories".to_owned(),
        );
    }
    Ok(())
}
