//! Disk usage of containers, images and volumes, for `system df` and the prunes.

use super::container::Container;
use super::container::config::Config;
use super::error::{Context as _, Kind, Result};
use super::image::Listed;
use super::list::Summary;
use super::{Engine, Listing};
use crate::volume::Volume;
use cowl_core::digest::{DiffId, ImageId};
use cowl_core::store::Tag;
use cowl_sys::open::openat2;
use rustix::fs::{AtFlags, Dir, FileType, OFlags, ResolveFlags, statat};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

/// Bytes of one block in `st_blocks` (stat(2)).
const BLOCK: u64 = 512;

/// The result of [`Engine::disk_usage`].
#[derive(Debug)]
pub struct DiskUsage {
    /// Bytes of the contents of all layers, each counted once.
    pub layers: u64,
    /// Every name of every image.
    pub images: Vec<Listed>,
    /// Bytes of contents that only this image has: its removal frees them.
    pub unique: BTreeMap<ImageId, u64>,
    /// Number of containers of each image.
    pub containers_of: BTreeMap<ImageId, usize>,
    /// All containers, each with the bytes of its changed files.
    pub containers: Vec<(Summary, u64)>,
    /// All volumes, each with its bytes and its number of containers.
    pub volumes: Vec<(Volume, u64, usize)>,
    /// Errors for what could not be read.
    pub skipped: Vec<super::error::Error>,
}

impl Engine {
    /// Measures everything. It reads all layers' trees and walks uppers and volumes.
    pub fn disk_usage(&self) -> Result<DiskUsage> {
        let Listing {
            items: images,
            mut skipped,
        } = self.images()?;
        let found = self.containers.list()?;
        skipped.extend(found.skipped);
        let mut containers_of = BTreeMap::new();
        let mut containers = Vec::new();
        for container in found.items {
            *containers_of.entry(container.config.image_id).or_default() += 1;
            let size = self.changed_bytes(&container)?;
            let state = container.state()?;
            let config = container.config;
            containers.push((Summary { config, state }, size));
        }
        let links = self.volume_links()?;
        let found = self.volumes()?;
        skipped.extend(found.skipped);
        let mut volumes = Vec::new();
        for volume in found.items {
            let size = self.volume_bytes(&volume)?;
            let used_by = links.get(&volume.name).copied().unwrap_or_default();
            volumes.push((volume, size, used_by));
        }
        Ok(DiskUsage {
            layers: self.store.usage()?.objects.bytes,
            unique: self.unique_bytes()?,
            images,
            containers_of,
            containers,
            volumes,
            skipped,
        })
    }

    /// The bytes of contents that each image shares with no other image.
    pub fn unique_bytes(&self) -> Result<BTreeMap<ImageId, u64>> {
        let tags = self.store.tags()?.tags;
        let images: BTreeMap<ImageId, Vec<DiffId>> = tags
            .iter()
            .filter_map(Tag::image)
            .map(|image| (image.config, image.diff_ids()))
            .collect();
        // Of each object: its length, and its image unless there are several.
        let mut owners = BTreeMap::new();
        for (id, layers) in &images {
            for (object, bytes) in self.store.objects_of(layers)? {
                owners
                    .entry(object)
                    .and_modify(|(_, owner)| *owner = None)
                    .or_insert((bytes, Some(*id)));
            }
        }
        let mut unique: BTreeMap<ImageId, u64> = images.into_keys().map(|id| (id, 0)).collect();
        for (bytes, owner) in owners.into_values() {
            if let Some(total) = owner.and_then(|owner| unique.get_mut(&owner)) {
                *total += bytes;
            }
        }
        Ok(unique)
    }

    /// Bytes of a container's own files, and of these and its image's together.
    pub fn sizes(&self, config: &Config) -> Result<(u64, u64)> {
        let changed = match self.container(&config.id) {
            Ok(container) => self.changed_bytes(&container)?,
            // Removed since.
            Err(error) if error.kind() == Kind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok((changed, self.layers_bytes(config)? + changed))
    }

    /// Bytes of the files that a container has changed or created.
    pub fn changed_bytes(&self, container: &Container) -> Result<u64> {
        let (upper, _work) = container.upper()?;
        bytes_below(&upper).context(|| format!("measuring container {}", container.config.id))
    }

    /// Bytes of a container's layers.
    pub fn layers_bytes(&self, config: &Config) -> Result<u64> {
        self.size(&config.layers)
    }

    /// Bytes of the files in a volume; 0 if it is a directory of the host.
    pub fn volume_bytes(&self, volume: &Volume) -> Result<u64> {
        if !volume.record.options.is_empty() {
            return Ok(0);
        }
        bytes_below(&volume.data()?).context(|| format!("measuring volume {}", volume.name))
    }
}

/// Allocated bytes of all regular files in a tree, each inode once. Holes count nothing, nor do
/// files deeper than a path can be long.
///
/// The tree may change meanwhile. No symlink is followed.
fn bytes_below(top: &OwnedFd) -> Result<u64> {
    let mut total = 0;
    let mut seen = BTreeSet::new();
    // Paths, not descriptors: there may be more subdirectories than the descriptor limit allows.
    let mut paths = vec![PathBuf::from(".")];
    while let Some(path) = paths.pop() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let directory = match openat2(top, &path, flags, inside) {
            Ok(directory) => directory,
            // Removed or replaced since the listing, or too deep.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => continue,
            Err(errno) => return Err(errno.into()),
        };
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match statat(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno.into()),
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile if seen.insert((stat.st_dev, stat.st_ino)) => {
                    let length = u64::try_from(stat.st_size).unwrap_or_default();
                    let held = u64::try_from(stat.st_blocks).unwrap_or_default() * BLOCK;
                    total += length.min(held);
                }
                FileType::Directory => paths.push(path.join(OsStr::from_bytes(name.to_bytes()))),
                _ => {}
            }
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_below_counts_an_inode_once_and_holes_never() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("sub")).unwrap();
        std::fs::write(path("sub/a"), vec![1; 5000]).unwrap();
        std::fs::hard_link(path("sub/a"), path("b")).unwrap();
        std::os::unix::fs::symlink("/etc", path("link")).unwrap();
        let hole = std::fs::File::create(path("hole")).unwrap();
        hole.set_len(1 << 30).unwrap();
        let top = super::super::files::open_dir(dir.path()).unwrap();
        assert_eq!(bytes_below(&top).unwrap(), 5000);
    }
}
