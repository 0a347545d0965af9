//! Pins: layers and blobs kept without a tag, one JSON file `{layers, blobs}` each in `pins/`.
//!
//! * `NAME.json` is permanent until removed: the engine's, for a container.
//! * `boot-BOOT-NAME.json` is the same until the machine boots again: the engine's, for a container
//!   that goes when it ends. `BOOT` is the boot's id, 32 hex digits. It is not synced: in another
//!   boot, where a power cut may have left it torn, nothing reads it.
//! * `held-KIND-RANDOM.json` is live while its file is flock'ed: the lease of a mount, or a
//!   running load. The lock belongs to the open file description: another process can inherit or
//!   receive the descriptor (SCM_RIGHTS), and closing the last copy releases it, be it by exit,
//!   crash or reboot. An unlocked one is stale.
//!
//! Invariants: tags and pins are gc's only roots. A pin is created under the store's lock
//! (shared), written and locked before it gets its name, so gc never sees a partial one. A
//! transaction's pin may name missing layers and blobs; all that any other pin names existed when
//! it was created.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, inotify};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::dir::{PRIVATE, StoreDir};
use super::layer::merged_name;
use super::record::{LIMIT, Versioned, decode, encode};
use super::transaction::Temporary;
use super::{RANDOM_NAME, Store, StoreError, Transaction, random_name, remove_tree};
use crate::digest::{ChainId, DiffId, ImageId, Sha256Digest};

const SUFFIX: &str = ".json";
const BOOT_PREFIX: &str = "boot-";
const HELD_PREFIX: &str = "held-";
const LOAD_PREFIX: &str = "held-load-";
const MOUNT_PREFIX: &str = "held-mount-";

/// The content of a pin's file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Pin {
    /// Informative.
    pub(super) owner: String,
    /// One stack, lowest first.
    pub(super) layers: Vec<DiffId>,
    pub(super) blobs: Vec<Sha256Digest>,
}

impl Versioned for Pin {
    const VERSION: u32 = 1;
}

/// The kind of a pin, given by its file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PinKind {
    /// Lasts until it is removed.
    Permanent,
    /// Lasts until it is removed or the machine boots again.
    ThisBoot,
    /// Lasts while its file is flock'ed.
    Lease,
    /// Like a lease, but may name missing layers and blobs.
    Load,
}

impl PinKind {
    /// None for a foreign file.
    pub(super) fn of(name: &OsStr) -> Option<Self> {
        let name = name.to_str()?.strip_suffix(SUFFIX)?;
        Some(if name.starts_with(LOAD_PREFIX) {
            Self::Load
        } else if name.starts_with(HELD_PREFIX) {
            Self::Lease
        } else if name.starts_with(BOOT_PREFIX) {
            Self::ThisBoot
        } else {
            Self::Permanent
        })
    }
}

/// How long a pin is to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinLife {
    /// Until it is removed; durable.
    Permanent,
    /// Until it is removed or the machine boots again; nothing is synced.
    ThisBoot,
}

/// A pin locked by this process. Drop removes its file.
#[derive(Debug)]
pub(super) struct HeldPin {
    file: File,
    name: PinName,
}

/// Removes the file on drop, unless disarmed.
#[derive(Debug)]
struct PinName {
    pins: StoreDir,
    name: Option<String>,
}

impl Drop for PinName {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && self.pins.remove(name).is_err()
        {
            // Unlocked, it is stale: gc removes it.
        }
    }
}

/// Keeps a mount's layers even if their image is untagged. Drop ends the lease; [`Lease::into_fd`]
/// passes it to another process.
#[derive(Debug)]
pub struct Lease(HeldPin);

impl AsFd for Lease {
    /// The locked file, for the process that uses the layers.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}

impl Lease {
    /// Gives the locked file away. It stays until its last descriptor is closed and
    /// [`Store::wait_lease_end`] or gc removes it.
    pub fn into_fd(self) -> OwnedFd {
        let HeldPin { file, mut name } = self.0;
        name.name = None;
        file.into()
    }
}

impl Store {
    /// Keeps layers and blobs until [`Store::unpin`] of the same name, or as `life` says.
    ///
    /// Locking: holds the store's lock shared while it checks that everything exists and publishes
    /// the file.
    pub fn pin(
        &self,
        name: &str,
        life: PinLife,
        owner: &str,
        layers: &[DiffId],
        blobs: &[Sha256Digest],
    ) -> Result<(), StoreError> {
        check_name(name)?;
        if name.starts_with(HELD_PREFIX) || name.starts_with(BOOT_PREFIX) {
            return Err(bad_name(
                name,
                "names that begin with held- or boot- are the store's",
            ));
        }
        self.check_writable()?;
        let pin = Pin {
            owner: owner.to_owned(),
            layers: layers.to_vec(),
            blobs: blobs.to_vec(),
        };
        let name = match life {
            PinLife::Permanent => format!("{name}{SUFFIX}"),
            PinLife::ThisBoot => this_boots_file(name)?,
        };
        let content = encode(&pin, &self.pin_files()?.join(&name))?;
        let _lock = self.lock_shared()?;
        self.check_layers_present(layers)?;
        self.check_present([], blobs.iter().copied())?;
        let Temporary { dir, name: new } = &self.temporary()?;
        match life {
            PinLife::Permanent => self.pin_files()?.replace(&name, &content, dir, new),
            PinLife::ThisBoot => {
                dir.create_with(new, PRIVATE, &content)?;
                dir.rename(new, self.pin_files()?, &name)
            }
        }
    }

    /// Removes a pin; false if there was none. Durable on return, unless it was of this boot only;
    /// the next gc frees what nothing else keeps.
    pub fn unpin(&self, name: &str) -> Result<bool, StoreError> {
        check_name(name)?;
        if self.pin_files()?.remove(this_boots_file(name)?)? {
            return Ok(true);
        }
        let removed = self.pin_files()?.remove(format!("{name}{SUFFIX}"))?;
        self.pin_files()?.sync()?;
        Ok(removed)
    }

    /// The names of all live pins created by [`Store::pin`].
    pub fn pins(&self) -> Result<Vec<String>, StoreError> {
        let mut pins = Vec::new();
        for name in self.pin_files()?.names()? {
            if let Some(kind) = PinKind::of(&name)
                && self.is_pin_live(&name, kind)?
            {
                pins.extend(name_of(&name).map(str::to_owned));
            }
        }
        Ok(pins)
    }

    /// The layers of each live pin: of containers, running loads, and those mounts whose id
    /// `counts`. A load's may be missing.
    pub fn pinned_layers(
        &self,
        counts: impl Fn(&str) -> bool,
    ) -> Result<Vec<Vec<DiffId>>, StoreError> {
        let mut pinned = Vec::new();
        for name in self.pin_files()?.names()? {
            if let Some(kind) = PinKind::of(&name)
                && mount_of(&name).is_none_or(&counts)
            {
                pinned.extend(self.read_pin(&name, kind)?.map(|pin| pin.layers));
            }
        }
        Ok(pinned)
    }

    /// Keeps a stack of layers for the mount with this id (letters, digits, `_.-`).
    ///
    /// Locking: holds the store's lock shared while it checks that the layers exist and publishes
    /// the file. From its return on gc keeps the layers and their merged tree.
    pub fn lease(
        &self,
        mount: &str,
        image: Option<ImageId>,
        layers: &[DiffId],
    ) -> Result<Lease, StoreError> {
        check_name(mount)?;
        let of = image.map_or_else(String::new, |image| format!(" of image {image}"));
        let pin = Pin {
            owner: format!("mount {mount}{of}"),
            layers: layers.to_vec(),
            blobs: image.iter().map(|image| image.0).collect(),
        };
        // The random part makes each name unique: no stale file is ever reused.
        let name = format!("{MOUNT_PREFIX}{mount}-{}{SUFFIX}", random_name()?);
        self.check_writable()?;
        let _lock = self.lock_shared()?;
        self.check_layers_present(layers)?;
        self.check_present([], pin.blobs.iter().copied())?;
        let Temporary { dir, name: new } = &self.temporary()?;
        self.create_held_pin(&name, &pin, (dir, new)).map(Lease)
    }

    /// The ids of the live mounts of an image: those that have a lease.
    pub fn mounts_of(&self, image: ImageId) -> Result<Vec<String>, StoreError> {
        let mut mounts = Vec::new();
        for name in self.pin_files()?.names()? {
            let Some(mount) = mount_of(&name) else {
                continue;
            };
            let used = match self.read_pin(&name, PinKind::Lease) {
                Ok(pin) => pin.is_some_and(|pin| pin.blobs.contains(&image.0)),
                // What it keeps is unknown, so it may be this image.
                Err(_damaged) => true,
            };
            if used {
                mounts.push(mount.to_owned());
            }
        }
        Ok(mounts)
    }

    /// A merged tree is published after its layers and removed before them: if it exists, they do.
    /// So 500 layers cost one lookup.
    fn check_layers_present(&self, layers: &[DiffId]) -> Result<(), StoreError> {
        let merged = merged_name(ChainId::of(layers));
        if self.merged_trees()?.stat(merged)?.is_some() {
            return Ok(());
        }
        self.check_present(layers.iter().copied(), [])
    }

    /// Waits until no process holds a lease of `mount`, then removes its file. Returns at once if
    /// there is none.
    pub fn wait_lease_end(&self, mount: &str) -> Result<(), StoreError> {
        self.wait_lease(mount, None).map(drop)
    }

    /// Like [`Store::wait_lease_end`], but for at most `patience`; false if a lease is still held.
    pub fn lease_ends_within(&self, mount: &str, patience: Duration) -> Result<bool, StoreError> {
        self.wait_lease(mount, Some(patience))
    }

    fn wait_lease(&self, mount: &str, patience: Option<Duration>) -> Result<bool, StoreError> {
        for name in self.pin_files()?.names()? {
            if mount_of(&name) != Some(mount) {
                continue;
            }
            let Some(file) = self.open_held_pin(&name)? else {
                continue;
            };
            let path = self.pin_files()?.join(&name);
            if !is_released(&file, &path, patience)
                .map_err(|errno| StoreError::io("wait for", path, errno))?
            {
                return Ok(false);
            }
            remove_tree(self.pin_files()?, &name)?;
        }
        Ok(true)
    }

    /// Reads a pin; None if it is stale or gone.
    pub(super) fn read_pin(&self, name: &OsStr, kind: PinKind) -> Result<Option<Pin>, StoreError> {
        if !self.is_pin_live(name, kind)? {
            return Ok(None);
        }
        let Some(bytes) = self.pin_files()?.read(name, LIMIT)? else {
            return Ok(None);
        };
        decode(&bytes, &self.pin_files()?.join(name)).map(Some)
    }

    /// Whether a pin keeps anything; one that does not is to be removed.
    pub(super) fn is_pin_live(&self, name: &OsStr, kind: PinKind) -> Result<bool, StoreError> {
        match kind {
            PinKind::Permanent => Ok(true),
            PinKind::ThisBoot => {
                let boot = boot_and_name(name).map(|(boot, _)| boot);
                Ok(boot == Some(boot_id()?.as_str()))
            }
            PinKind::Lease | PinKind::Load => self.is_pin_held(name),
        }
    }

    pub(super) fn is_pin_held(&self, name: &OsStr) -> Result<bool, StoreError> {
        let Some(file) = self.open_held_pin(name)? else {
            return Ok(false);
        };
        // Shared: two concurrent probes must not see each other as the holder.
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(errno) => Err(StoreError::io("lock", self.pin_files()?.join(name), errno)),
        }
    }

    /// Opens the file of a pin that is held by a flock; None if it is gone, or a symbolic link or a
    /// socket, which no process holds.
    fn open_held_pin(&self, name: &OsStr) -> Result<Option<File>, StoreError> {
        match self.pin_files()?.open(name) {
            Err(error) if matches!(error.errno(), Some(Errno::LOOP | Errno::NXIO)) => Ok(None),
            opened => opened,
        }
    }
}

impl Transaction<'_> {
    /// Keeps these layers, present or not, for the transaction: from the return on gc skips them.
    ///
    /// Locking: holds the store's lock shared while the pin changes.
    pub fn keep_layers(&self, layers: &[DiffId]) -> Result<(), StoreError> {
        self.extend_pin(layers, &[])
    }

    /// Keeps all that a tag names for the transaction.
    pub fn keep_tag(&self, tag: &super::Tag) -> Result<(), StoreError> {
        let layers: Vec<_> = tag.layers().collect();
        let blobs: Vec<_> = tag.blobs().collect();
        self.extend_pin(&layers, &blobs)
    }

    /// Adds layers and blobs to the transaction's pin.
    pub(super) fn extend_pin(
        &self,
        layers: &[DiffId],
        blobs: &[Sha256Digest],
    ) -> Result<(), StoreError> {
        let mut pinned = self.pinned.lock();
        let before = (pinned.layers.len(), pinned.blobs.len());
        pinned.layers.extend(layers);
        pinned.blobs.extend(blobs);
        if before == (pinned.layers.len(), pinned.blobs.len()) {
            return Ok(());
        }
        let pin = Pin {
            owner: "an addition on its way".to_owned(),
            layers: pinned.layers.iter().copied().collect(),
            blobs: pinned.blobs.iter().copied().collect(),
        };
        let name = format!("{LOAD_PREFIX}{}{SUFFIX}", self.name());
        let _lock = self.store.lock_shared()?;
        let place = (&self.dir, &*self.temporary());
        let held = self.store.create_held_pin(&name, &pin, place)?;
        // The name belongs to the new file now: dropping the old pin must not remove it.
        if let Some(mut before) = pinned.held.replace(held) {
            before.name.name = None;
        }
        Ok(())
    }
}

impl Store {
    /// Writes a pin as a new file of a directory, locks it and renames it into place, in this
    /// order. The caller holds the store's lock.
    fn create_held_pin(
        &self,
        name: &str,
        pin: &Pin,
        (dir, new): (&StoreDir, &str),
    ) -> Result<HeldPin, StoreError> {
        let pins = self.root.open_dir("pins")?;
        let path = pins.join(name);
        let file = dir.create_with(new, PRIVATE, &encode(pin, &path)?)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| StoreError::io("lock", &path, errno))?;
        dir.rename(new, &pins, name)?;
        let name = PinName {
            pins,
            name: Some(name.to_owned()),
        };
        Ok(HeldPin { file, name })
    }
}

/// The id of the mount whose lease has this file name.
fn mount_of(name: &OsStr) -> Option<&str> {
    let stem = name.to_str()?.strip_prefix(MOUNT_PREFIX)?;
    let (mount, random) = stem.strip_suffix(SUFFIX)?.rsplit_once('-')?;
    (random.len() == RANDOM_NAME).then_some(mount)
}

/// The file of a pin of this boot.
fn this_boots_file(name: &str) -> Result<String, StoreError> {
    Ok(format!("{BOOT_PREFIX}{}-{name}{SUFFIX}", boot_id()?))
}

/// What the name of a [`PinKind::ThisBoot`]'s file says.
fn boot_and_name(file: &OsStr) -> Option<(&str, &str)> {
    let stem = file.to_str()?.strip_suffix(SUFFIX)?;
    stem.strip_prefix(BOOT_PREFIX)?.split_once('-')
}

/// The name that a pin was given to [`Store::pin`]; None for the store's own and foreign files.
pub(super) fn name_of(file: &OsStr) -> Option<&str> {
    match PinKind::of(file)? {
        PinKind::Permanent => file.to_str()?.strip_suffix(SUFFIX),
        PinKind::ThisBoot => boot_and_name(file).map(|(_, name)| name),
        PinKind::Lease | PinKind::Load => None,
    }
}

/// The id of the machine's boot, 32 hex digits.
fn boot_id() -> Result<String, StoreError> {
    let id = cowl_sys::boot::id().map_err(|error| StoreError::io("read", "the boot id", error))?;
    Ok(id.replace('-', ""))
}

fn check_name(name: &str) -> Result<(), StoreError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.bytes().all(good) {
        return Err(bad_name(name, "letters, digits, _ . - only"));
    }
    Ok(())
}

fn bad_name(name: &str, reason: &'static str) -> StoreError {
    StoreError::Name {
        name: name.to_owned(),
        reason,
    }
}

/// How often a lease is probed without an event.
const PAUSE: Duration = Duration::from_millis(100);

/// Waits until no process holds the lease `file` at `path`; false after `patience`.
fn is_released(file: &File, path: &Path, patience: Option<Duration>) -> Result<bool, Errno> {
    let lock = |how| rustix::io::retry_on_intr(|| rustix::fs::flock(file, how));
    let Some(mut left) = patience else {
        return lock(FlockOperation::LockShared).map(|()| true);
    };
    // Only the holders have it open for writing, so the last close ends the lock. Watch before
    // probing the lock, so that no close is missed.
    let closed = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    match inotify::add_watch(&closed, path, inotify::WatchFlags::CLOSE_WRITE) {
        // Another waiter removed it.
        Err(Errno::NOENT) => return Ok(true),
        watched => drop(watched?),
    }
    match lock(FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => {}
        locked => return locked.map(|()| true),
    }
    while !left.is_zero() {
        let pause = Timespec::try_from(left.min(PAUSE)).map_err(|_too_long| Errno::INVAL)?;
        let mut events = [PollFd::new(&closed, PollFlags::IN)];
        match rustix::io::retry_on_intr(|| poll(&mut events, Some(&pause)))? {
            // The kernel reports the close before it releases the lock (__fput in
            // fs/file_table.c), perhaps before the watch existed: probe again after a pause.
            0 => match lock(FlockOperation::NonBlockingLockShared) {
                Err(Errno::WOULDBLOCK) => left = left.saturating_sub(PAUSE),
                locked => return locked.map(|()| true),
            },
            _ => return lock(FlockOperation::LockShared).map(|()| true),
        }
    }
    Ok(false)
}
