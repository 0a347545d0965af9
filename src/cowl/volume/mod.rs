//! Named volumes: directories that outlive the containers they are mounted in.
//!
//! ```text
//! volumes/<name>/               locked (flock) while an image fills it
//!   _data/                      the content, mounted into containers
//!   volume.json                 when it was created, and whether an image may still fill it
//!   mounted.json, mounted.lock  of a file system: the containers that have it mounted
//! volumes/.new-<id>/            being created
//! volumes/.gone-<id>/           being removed
//! ```
//!
//! A new volume is filled with the content of its first container's image at the mount point. The
//! next container repeats a fill that was killed. Invariant: the engine writes into a volume only
//! while its record says `filling`, and only if the volume was empty.
//!
//! The engine knows which containers use a volume, and holds the containers' guard while it creates
//! or removes one.

mod filesystem;
mod fill;
mod options;
mod spec;

pub use filesystem::root_of;
pub use options::{Backing, Driven, FilesystemMount, NewVolume};
pub use spec::{PROPAGATIONS, Source, VolumeName, VolumeSpec, clean_destination, is_name};

use crate::engine::error::{Context, Error, Result};
use crate::engine::files::{self, LazyDir};
use crate::engine::{Listing, new_id};
use cowl_core::store::remove_tree;
use jiff::Timestamp;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

const DATA: &str = "_data";
const RECORD: &str = "volume.json";
const MOUNTED: &str = "mounted.json";
const MOUNTED_LOCK: &str = "mounted.lock";
const NEW: &str = ".new-";
const GONE: &str = ".gone-";

/// The directory `volumes/`.
#[derive(Debug)]
pub struct Volumes(LazyDir);

/// `volume.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When it was created.
    pub created: Timestamp,
    /// Created for one container, with a generated name.
    pub anonymous: bool,
    /// Whether it has been used or filled.
    pub usage: Usage,
    /// Labels by name.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The options of the driver `local`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// The life cycle of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Usage {
    /// No container has used it.
    Fresh,
    /// An image is filling it; the content may be incomplete.
    Filling,
    /// Containers have used it; the engine no longer writes to it.
    InUse,
}

/// A container's mount of a volume's file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountedIn {
    /// The container's id.
    pub container: String,
    /// The mount point in the container.
    pub destination: String,
    /// Major and minor number of the file system.
    pub device: (u32, u32),
}

/// The source for filling a volume at the start of its first container.
#[derive(Debug, Clone, Copy)]
pub struct Filling<'a> {
    /// The container's root.
    pub root: BorrowedFd<'a>,
    /// The volume's mount point in that root.
    pub destination: &'a str,
    /// Whether to copy the files there.
    pub copy: bool,
    /// Readable once the start is to be aborted.
    pub interrupt: Option<BorrowedFd<'a>>,
}

/// One volume.
#[derive(Debug)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Its record.
    pub record: Record,
    dir: OwnedFd,
}

impl Volumes {
    /// The `volumes/` of a store.
    pub fn new(root: &Path) -> Self {
        Self(LazyDir::new(root, "volumes"))
    }

    fn dir(&self) -> Result<&OwnedFd> {
        self.0.get()
    }

    /// All volumes, by name.
    pub fn list(&self) -> Result<Listing<Volume>> {
        let mut names =
            files::names(self.dir()?).context(|| format!("listing {}", self.0.path().display()))?;
        names.sort();
        let mut volumes = Vec::new();
        let mut skipped = Vec::new();
        for name in names.iter().filter(|name| is_name(name)) {
            match self.get(name) {
                Ok(volume) => volumes.extend(volume),
                Err(error) => skipped.push(error),
            }
        }
        Ok(Listing {
            items: volumes,
            skipped,
        })
    }

    /// Finds a volume by its full name.
    pub fn find(&self, name: &str) -> Result<Volume> {
        check_name(name)?;
        let found = if is_name(name) { self.get(name)? } else { None };
        found.ok_or_else(|| Error::not_found(format!("get {name}: no such volume")))
    }

    /// Whether a volume exists.
    pub fn has(&self, name: &VolumeName) -> Result<bool> {
        Ok(self.get(name.as_str())?.is_some())
    }

    /// Creates a volume, or returns the existing one. The caller holds the containers' guard.
    pub fn create(&self, name: &VolumeName, new: &NewVolume) -> Result<Volume> {
        if let Some(volume) = self.get(name.as_str())? {
            return Ok(volume);
        }
        new.check().context(|| format!("create {name}"))?;
        let temporary = format!("{NEW}{}", new_id()?);
        let made = self.make(name.as_str(), &temporary, new);
        if made.is_err() {
            remove_tree(self.dir()?, &temporary)
                .context(|| format!("removing volumes/{temporary}"))?;
        }
        made.context(|| format!("creating volume {name}"))
    }

    /// Creates the volume under a temporary name and renames it, so that no volume is ever
    /// incomplete.
    fn make(&self, name: &str, temporary: &str, new: &NewVolume) -> Result<Volume> {
        let dir = files::ensure_dir_at(self.dir()?, temporary, 0o700)?;
        files::ensure_dir_at(&dir, DATA, 0o755)?;
        let record = Record {
            created: Timestamp::now(),
            anonymous: new.anonymous,
            usage: Usage::Fresh,
            labels: new.labels.clone(),
            options: new.options.clone(),
        };
        files::write_json(&dir, RECORD, &record)?;
        rustix::fs::renameat(self.dir()?, temporary, self.dir()?, name)?;
        rustix::fs::fsync(self.dir()?)?;
        Ok(Volume {
            name: name.to_owned(),
            record,
            dir,
        })
    }

    /// Renames a volume away; [`Volumes::purge`] removes its content. False if it does not exist.
    /// The caller holds the containers' guard and has checked that no container uses it.
    pub fn remove(&self, name: &str) -> Result<bool> {
        if !is_name(name) {
            return Ok(false);
        }
        match rustix::fs::renameat(
            self.dir()?,
            name,
            self.dir()?,
            format!("{GONE}{}", new_id()?),
        ) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(Error::from(errno).context(format!("removing volume {name}"))),
        }
    }

    /// Removes the content of removed volumes. Call it without the guard: it can take long.
    ///
    /// Does nothing if `volumes/` is damaged: commands that need volumes report that.
    pub fn purge(&self) -> Result<()> {
        let Some(dir) = self.0.unless_damaged()? else {
            return Ok(());
        };
        files::purge(dir, GONE, |_| Ok(())).context(|| format!("in {}", self.0.path().display()))
    }

    /// Removes volumes whose creation was killed; see [`Volumes::purge`]. The caller holds the
    /// containers' guard.
    pub fn remove_unfinished(&self) -> Result<()> {
        let Some(dir) = self.0.unless_damaged()? else {
            return Ok(());
        };
        files::purge(dir, NEW, |_| Ok(())).context(|| format!("in {}", self.0.path().display()))
    }

    /// Directory of a volume's content on the host.
    pub fn mountpoint(&self, name: &str) -> PathBuf {
        self.0.path().join(name).join(DATA)
    }

    fn get(&self, name: &str) -> Result<Option<Volume>> {
        let dir = match files::open_dir_at(self.dir()?, name) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(Error::from(errno).context(format!("opening volume {name}"))),
        };
        let record: Option<Record> = files::read_json(&dir, RECORD).context(|| {
            format!("volume {name}: its {RECORD} is damaged; cowl volume rm {name} removes it")
        })?;
        Ok(record.map(|record| Volume {
            name: name.to_owned(),
            record,
            dir,
        }))
    }
}

impl Volume {
    /// The backing of a volume with options; None without options.
    pub fn driven(&self) -> Result<Option<Driven>> {
        Driven::of(&self.record.options).context(|| format!("volume {}", self.name))
    }

    /// Opens the directory of its content on the host; for a file system, which is mounted in
    /// containers only, an empty one.
    pub fn data(&self) -> Result<OwnedFd> {
        if let Some(Driven {
            source: Backing::Directory { path, .. },
            ..
        }) = self.driven()?
        {
            return files::open_dir(&path)
                .context(|| format!("failed to mount local volume: mount {}", path.display()));
        }
        files::open_dir_at(&self.dir, DATA).context(|| format!("opening volume {}", self.name))
    }

    /// Locks its file system against being mounted by other containers' starts, until the result is
    /// dropped; waits for a start in progress.
    pub fn lock_mounts(&self, interrupt: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
        files::lock_file_until(&self.dir, MOUNTED_LOCK, interrupt)
            .context(|| format!("locking volume {}", self.name))
    }

    /// The containers that had its file system mounted when they started. The caller holds
    /// [`Volume::lock_mounts`].
    pub fn mounted_in(&self) -> Result<Vec<MountedIn>> {
        Ok(files::read_json(&self.dir, MOUNTED)?.unwrap_or_default())
    }

    /// Replaces the list of [`Volume::mounted_in`].
    pub fn set_mounted_in(&self, mounts: &[MountedIn]) -> Result<()> {
        files::write_json(&self.dir, MOUNTED, &mounts)
    }

    /// Prepares the volume for its first container: with [`Filling::copy`], copies the image's
    /// files at the mount point into it. `content` is the directory of a volume with options.
    ///
    /// Does nothing for a volume that has been used. Waits while another container's start fills
    /// it. Once the interrupt is readable, the wait or the copy fails, and the volume is as before.
    pub fn prepare(&self, content: Option<&OwnedFd>, filling: &Filling<'_>) -> Result<()> {
        let interrupt = filling.interrupt;
        let _filling = files::lock_dir_until(&self.dir, interrupt)
            .context(|| format!("locking volume {}", self.name))?;
        let record: Option<Record> = files::read_json(&self.dir, RECORD)?;
        let Some(record) = record.filter(|record| record.usage != Usage::InUse) else {
            return Ok(());
        };
        let interrupted = record.usage == Usage::Filling;
        let is_empty = || match content {
            Some(content) => Ok::<_, Error>(files::names(content)?.is_empty()),
            None => Ok(interrupted || files::names(self.data()?)?.is_empty()),
        };
        if filling.copy && is_empty()? {
            files::write_json(
                &self.dir,
                RECORD,
                &Record {
                    usage: Usage::Filling,
                    ..record.clone()
                },
            )?;
            let filled = self.fill(content, filling).context(|| {
                let (place, name) = (filling.destination, &self.name);
                format!("copying {place} of the image into volume {name}")
            });
            if let Err(error) = filled {
                return match self.empty(record) {
                    Ok(()) => Err(error),
                    Err(second) => Err(error.context(format!("{second}; before that"))),
                };
            }
        }
        files::write_json(
            &self.dir,
            RECORD,
            &Record {
                usage: Usage::InUse,
                ..record
            },
        )
    }

    /// Starts with a new directory: a killed fill may have left files, and no container uses it. A
    /// directory of the host is filled only if it is empty, and never emptied.
    fn fill(&self, content: Option<&OwnedFd>, filling: &Filling<'_>) -> Result<()> {
        let to = match content {
            Some(content) => content.try_clone()?,
            None => self.new_data()?,
        };
        fill::copy_tree(filling.root, filling.destination, to, filling.interrupt)
    }

    /// Undoes a failed fill.
    fn empty(&self, record: Record) -> Result<()> {
        if record.options.is_empty() {
            self.new_data()?;
        }
        let usage = Usage::Fresh;
        files::write_json(&self.dir, RECORD, &Record { usage, ..record })
    }

    fn new_data(&self) -> Result<OwnedFd> {
        remove_tree(&self.dir, DATA)?;
        files::ensure_dir_at(&self.dir, DATA, 0o755)
    }
}

/// Refuses an empty name, with the text of Docker's client.
pub fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::invalid("invalid volume name or ID: value is empty"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType};
    use std::os::fd::AsFd as _;

    fn volumes() -> (tempfile::TempDir, Volumes) {
        let root = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(root.path());
        (root, volumes)
    }

    #[test]
    fn create_list_and_remove() {
        let (root, volumes) = volumes();
        let name = VolumeName::parse("vol1").unwrap();
        assert!(!volumes.has(&name).unwrap());
        let made = volumes.create(&name, &NewVolume::default()).unwrap();
        assert_eq!(
            volumes.create(&name, &NewVolume::default()).unwrap().record,
            made.record
        );
        assert_eq!(volumes.list().unwrap().items.len(), 1);
        assert!(volumes.mountpoint("vol1").starts_with(root.path()));
        assert!(volumes.remove("vol1").unwrap());
        assert!(!volumes.remove("vol1").unwrap());
        assert_eq!(
            files::names(volumes.dir().unwrap()).unwrap().len(),
            1,
            "its content is for purge to remove"
        );
        volumes.purge().unwrap();
        assert_eq!(files::names(volumes.dir().unwrap()).unwrap(), [""; 0]);
        assert_eq!(
            volumes.find("vol1").unwrap_err().to_string(),
            "get vol1: no such volume"
        );
        assert!(!volumes.remove("../objects").unwrap());
    }

    /// Prepares a volume with an image that has a file with this content.
    fn prepare(
        volume: &Volume,
        content: &str,
        interrupt: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let image = tempfile::tempdir().unwrap();
        std::fs::create_dir(image.path().join("srv")).unwrap();
        std::fs::write(image.path().join("srv/a"), content).unwrap();
        let root = files::open_dir(image.path()).unwrap();
        let filling = Filling {
            root: root.as_fd(),
            destination: "/srv",
            copy: true,
            interrupt,
        };
        volume.prepare(None, &filling)
    }

    #[test]
    fn only_the_first_image_fills_a_volume() {
        let (_root, volumes) = volumes();
        let volume = volumes
            .create(&VolumeName::parse("vol1").unwrap(), &NewVolume::default())
            .unwrap();
        let file = volumes.mountpoint("vol1").join("a");
        prepare(&volume, "first", None).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "first");
        std::fs::write(&file, "mine").unwrap();
        prepare(&volume, "second", None).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    }

    #[test]
    fn prepare_repeats_a_killed_fill_and_keeps_a_users_files() {
        let (_root, volumes) = volumes();
        let volume = volumes
            .create(&VolumeName::parse("vol1").unwrap(), &NewVolume::default())
            .unwrap();
        std::fs::write(volumes.mountpoint("vol1").join("half"), "").unwrap();
        files::write_json(
            &volume.dir,
            RECORD,
            &Record {
                usage: Usage::Filling,
                ..volume.record.clone()
            },
        )
        .unwrap();
        prepare(&volume, "x", None).unwrap();
        assert_eq!(files::names(volume.data().unwrap()).unwrap(), ["a"]);

        let volume = volumes
            .create(&VolumeName::parse("vol2").unwrap(), &NewVolume::default())
            .unwrap();
        std::fs::write(volumes.mountpoint("vol2").join("mine"), "").unwrap();
        prepare(&volume, "x", None).unwrap();
        assert_eq!(files::names(volume.data().unwrap()).unwrap(), ["mine"]);
    }

    #[test]
    fn an_interrupted_fill_leaves_the_volume_empty_for_the_next() {
        let (_root, volumes) = volumes();
        let volume = volumes
            .create(&VolumeName::parse("vol1").unwrap(), &NewVolume::default())
            .unwrap();
        let interrupt = rustix::event::eventfd(1, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let interrupted = prepare(&volume, "x", Some(interrupt.as_fd())).unwrap_err();
        assert!(
            interrupted.to_string().ends_with("Interrupted system call"),
            "{interrupted}"
        );
        assert_eq!(files::names(volume.data().unwrap()).unwrap(), [""; 0]);
        assert_eq!(volumes.find("vol1").unwrap().record.usage, Usage::Fresh);
        prepare(&volume, "x", None).unwrap();
        assert_eq!(files::names(volume.data().unwrap()).unwrap(), ["a"]);
    }

    #[test]
    fn list_skips_a_damaged_record_and_remove_removes_it() {
        let (root, volumes) = volumes();
        for name in ["good", "hurt"] {
            let name = VolumeName::parse(name).unwrap();
            volumes.create(&name, &NewVolume::default()).unwrap();
        }
        let record = root.path().join("volumes/hurt").join(RECORD);
        let fifo = || {
            let mode = rustix::fs::Mode::RWXU;
            rustix::fs::mknodat(CWD, &record, FileType::Fifo, mode, 0).unwrap();
        };
        let damages: [&dyn Fn(); 3] = [
            &|| std::fs::write(&record, "{").unwrap(),
            &|| std::os::unix::fs::symlink(&record, &record).unwrap(),
            &fifo,
        ];
        for damage in damages {
            std::fs::remove_file(&record).unwrap();
            damage();
            let Listing { items, skipped } = volumes.list().unwrap();
            assert_eq!(items.len(), 1);
            let warning = skipped[0].to_string();
            assert!(
                warning.contains("volume.json is damaged; cowl volume rm hurt removes it"),
                "{warning}"
            );
        }
        assert!(volumes.remove("hurt").unwrap());
        volumes.purge().unwrap();
        assert_eq!(files::names(volumes.dir().unwrap()).unwrap(), ["good"]);
    }

    #[test]
    fn remove_unfinished_removes_a_killed_creation() {
        let (root, volumes) = volumes();
        std::fs::create_dir_all(root.path().join("volumes/.new-x/_data")).unwrap();
        assert!(volumes.list().unwrap().items.is_empty());
        volumes.remove_unfinished().unwrap();
        assert_eq!(files::names(volumes.dir().unwrap()).unwrap(), [""; 0]);
    }
}
