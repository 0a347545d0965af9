//! Pins: what is kept though no tag names it, one JSON file `{layers, blobs}` each in `pins/`.
//!
//! * `NAME.json` keeps until it is removed: the engine's, for a container.
//! * `held-WHAT-RANDOM.json` keeps as long as its file is flock'ed: a lease of a mount, a load or pull on its way. The lock
//!   belongs to the open file, so a descriptor of it can be handed on (SCM_RIGHTS, inheritance), and it ends when the last
//!   copy is closed: with the keeper, with a crash, with a reboot. One whose flock is free is stale, whatever it says.
//!
//! Invariants: tags and pins are all that gc starts from. A pin appears under the store's lock (shared), locked and complete
//! before it has its name, so no gc sees half of one. A pin of a transaction may name what is not there yet; every other
//! one names what was there when it was made.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, inotify};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::dir::{Dir, PRIVATE};
use super::layer::merged_name;
use super::record::{LIMIT, Versioned, decode, encode};
use super::{RANDOM_NAME, Store, StoreError, Transaction, random_name};
use crate::digest::{ChainId, DiffId, ImageId, Sha256Digest};

const SUFFIX: &str = ".json";
const HELD: &str = "held-";
const LOAD: &str = "held-load-";
const MOUNT: &str = "held-mount-";

/// What a pin keeps.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Pin {
    /// For people who read the file.
    pub(super) owner: String,
    /// Of one stack: lowest first.
    pub(super) layers: Vec<DiffId>,
    pub(super) blobs: Vec<Sha256Digest>,
}

impl Versioned for Pin {
    const VERSION: u32 = 1;
}

/// The name of a pin's file, and by it what ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PinKind {
    /// It is removed.
    Kept,
    /// Its flock goes free.
    Held,
    /// Likewise, and what it names need not be there yet.
    Load,
}

impl PinKind {
    /// None: a stray file.
    pub(super) fn of(name: &OsStr) -> Option<Self> {
        let name = name.to_str()?.strip_suffix(SUFFIX)?;
        Some(if name.starts_with(LOAD) {
            Self::Load
        } else if name.starts_with(HELD) {
            Self::Held
        } else {
            Self::Kept
        })
    }
}

/// A pin that is held by this process. Dropped, its file is removed.
#[derive(Debug)]
pub(super) struct HeldPin {
    file: File,
    name: PinName,
}

/// Removes the file when dropped, unless it was handed on.
#[derive(Debug)]
struct PinName {
    pins: Dir,
    name: Option<String>,
}

impl Drop for PinName {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && self.pins.remove(name).is_err()
        {
            // It is stale from now on, and gc removes stale ones.
        }
    }
}

/// What a mount relies on stays, whatever is untagged meanwhile. Dropped, the lease ends; [`Lease::into_fd`] lets it live on
/// in another process.
#[derive(Debug)]
pub struct Lease(HeldPin);

impl AsFd for Lease {
    /// The locked file, to be handed to the process that relies on it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}

impl Lease {
    /// The same, to be handed on and forgotten here. The file stays until the lock's last holder is gone and
    /// [`Store::wait_lease_end`] or gc notices.
    pub fn into_fd(self) -> OwnedFd {
        let HeldPin { file, mut name } = self.0;
        name.name = None;
        file.into()
    }
}

impl Store {
    /// Keeps layers and blobs until [`Store::unpin`], by a name of the caller's. Durable when it returns.
    ///
    /// Locking: holds the store's lock shared while it makes sure that all is there and publishes the file.
    pub fn pin(
        &self,
        name: &str,
        owner: &str,
        layers: &[DiffId],
        blobs: &[Sha256Digest],
    ) -> Result<(), StoreError> {
        check_name(name)?;
        if name.starts_with(HELD) {
            return Err(bad_name(
                name,
                "names that begin with held- are the store's",
            ));
        }
        let transaction = self.begin()?;
        let pin = Pin {
            owner: owner.to_owned(),
            layers: layers.to_vec(),
            blobs: blobs.to_vec(),
        };
        let name = format!("{name}{SUFFIX}");
        let content = encode(&pin, &self.pins.join(&name))?;
        let _lock = self.lock_shared()?;
        self.check_layers_present(layers)?;
        self.check_present([], blobs.iter().copied())?;
        self.pins
            .replace(&name, &content, &transaction.dir, &transaction.temporary())
    }

    /// Ends a pin; false when there was none. Durable when it returns; gc then frees what nothing else keeps.
    pub fn unpin(&self, name: &str) -> Result<bool, StoreError> {
        check_name(name)?;
        let removed = self.pins.remove(format!("{name}{SUFFIX}"))?;
        self.pins.sync()?;
        Ok(removed)
    }

    /// The names of all pins made by [`Store::pin`].
    pub fn pins(&self) -> Result<Vec<String>, StoreError> {
        let names = self.pins.names()?;
        let kept = names
            .iter()
            .filter(|name| PinKind::of(name) == Some(PinKind::Kept));
        let stems = kept.filter_map(|name| name.to_str()?.strip_suffix(SUFFIX));
        Ok(stems.map(str::to_owned).collect())
    }

    /// Keeps a stack of layers for `mount` (an id of the caller's: letters, digits, `_.-`).
    ///
    /// Locking: holds the store's lock shared while it makes sure that the layers are there and publishes the file; so
    /// from its return on they stay, and so does everything built of them.
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
            blobs: Vec::new(),
        };
        // Its random part makes each file new: nothing ever has to decide whether an old one may be taken over.
        let name = format!("{MOUNT}{mount}-{}{SUFFIX}", random_name()?);
        let transaction = self.begin()?;
        let _lock = self.lock_shared()?;
        ChainId::of(layers).ok_or(StoreError::NoLayers)?;
        self.check_layers_present(layers)?;
        transaction.hold_pin(&name, &pin).map(Lease)
    }

    /// A merged tree is placed after its layers and taken before them, so it speaks for all of them: 500 cost what one does.
    fn check_layers_present(&self, layers: &[DiffId]) -> Result<(), StoreError> {
        match ChainId::of(layers) {
            Some(chain) if self.merged.stat(merged_name(chain))?.is_some() => Ok(()),
            _ => self.check_present(layers.iter().copied(), []),
        }
    }

    /// Waits until no process holds a lease of `mount` any more, and removes its file. Ends at once when there is none.
    pub fn wait_lease_end(&self, mount: &str) -> Result<(), StoreError> {
        self.wait_lease(mount, None).map(drop)
    }

    /// The same, but for no longer than `patience`; false if a lease is still held.
    pub fn lease_ends_within(&self, mount: &str, patience: Duration) -> Result<bool, StoreError> {
        self.wait_lease(mount, Some(patience))
    }

    fn wait_lease(&self, mount: &str, patience: Option<Duration>) -> Result<bool, StoreError> {
        for name in self.pins.names()? {
            let random = name.to_str().and_then(|name| {
                name.strip_prefix(MOUNT)?
                    .strip_prefix(mount)?
                    .strip_prefix('-')?
                    .strip_suffix(SUFFIX)
            });
            if random.is_none_or(|random| random.len() != RANDOM_NAME) {
                continue;
            }
            let Some(file) = self.pins.open(&name)? else {
                continue;
            };
            let path = self.pins.join(&name);
            if !is_released(&file, &path, patience)
                .map_err(|errno| StoreError::io("wait for", path, errno))?
            {
                return Ok(false);
            }
            self.pins.remove(&name)?;
        }
        Ok(true)
    }

    /// What a pin keeps; None when it is stale or gone.
    pub(super) fn read_pin(&self, name: &OsStr, kind: PinKind) -> Result<Option<Pin>, StoreError> {
        if kind != PinKind::Kept && !self.is_pin_held(name)? {
            return Ok(None);
        }
        let Some(bytes) = self.pins.read(name, LIMIT)? else {
            return Ok(None);
        };
        decode(&bytes, &self.pins.join(name)).map(Some)
    }

    fn is_pin_held(&self, name: &OsStr) -> Result<bool, StoreError> {
        let Some(file) = self.pins.open(name)? else {
            return Ok(false);
        };
        // Shared, so that two who look do not take each other for a holder.
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(errno) => Err(StoreError::io("lock", self.pins.join(name), errno)),
        }
    }

    /// The caller holds the exclusive lock, so none is between being written and being named.
    pub(super) fn remove_stale_pins(&self) -> Result<u64, StoreError> {
        let mut stale = 0;
        for name in self.pins.names()? {
            let held = matches!(PinKind::of(&name), Some(PinKind::Held | PinKind::Load));
            if held && !self.is_pin_held(&name)? && self.pins.remove(&name)? {
                stale += 1;
            }
        }
        Ok(stale)
    }
}

impl Transaction<'_> {
    /// Keeps these layers for the transaction, whether they are there or not: from the return on gc passes them by.
    ///
    /// Locking: holds the store's lock shared while the pin changes.
    pub fn keep_layers(&self, layers: &[DiffId]) -> Result<(), StoreError> {
        self.extend_pin(layers, &[])
    }

    /// Adds to what the transaction's pin names.
    pub(super) fn extend_pin(
        &self,
        layers: &[DiffId],
        blobs: &[Sha256Digest],
    ) -> Result<(), StoreError> {
        let mut pinned = self.pinned.borrow_mut();
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
        let name = format!("{LOAD}{}{SUFFIX}", self.name());
        let _lock = self.store.lock_shared()?;
        let held = self.hold_pin(&name, &pin)?;
        // The name stands for the new file now, so the one before must not take it along.
        if let Some(mut before) = pinned.held.replace(held) {
            before.name.name = None;
        }
        Ok(())
    }

    /// Writes a pin, locks it and gives it its name, in this order. The caller holds the store's lock.
    fn hold_pin(&self, name: &str, pin: &Pin) -> Result<HeldPin, StoreError> {
        let pins = self.store.root.sub("pins")?;
        let path = pins.join(name);
        let temporary = self.temporary();
        let file = self
            .dir
            .create_with(&temporary, PRIVATE, &encode(pin, &path)?)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| StoreError::io("lock", &path, errno))?;
        self.dir.rename(&temporary, &pins, name)?;
        let name = PinName {
            pins,
            name: Some(name.to_owned()),
        };
        Ok(HeldPin { file, name })
    }
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

/// How often a lease is looked at that no event was seen of.
const PAUSE: Duration = Duration::from_millis(100);

/// Waits until no process holds the lease that `file`, at `path`, is; false if that takes longer than `patience`.
fn is_released(file: &File, path: &Path, patience: Option<Duration>) -> Result<bool, Errno> {
    let lock = |how| rustix::io::retry_on_intr(|| rustix::fs::flock(file, how));
    let Some(mut left) = patience else {
        return lock(FlockOperation::LockShared).map(|()| true);
    };
    // Only its holders have it open for writing, and their lock goes with the last of them. The watch comes before the look.
    let closed = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    match inotify::add_watch(&closed, path, inotify::WatchFlags::CLOSE_WRITE) {
        // Another process saw its end.
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
            // A file is said to be closed before its lock goes (__fput in fs/file_table.c): that may have been before the watch.
            0 => match lock(FlockOperation::NonBlockingLockShared) {
                Err(Errno::WOULDBLOCK) => left = left.saturating_sub(PAUSE),
                locked => return locked.map(|()| true),
            },
            _ => return lock(FlockOperation::LockShared).map(|()| true),
        }
    }
    Ok(false)
}
