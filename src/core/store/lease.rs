//! Leases: what a mount uses stays, whoever untags it meanwhile.
//!
//! A lease is a JSON file in `leases/`, flock'ed by whoever relies on it. The lock belongs to the open file, so the
//! descriptor can be handed on (SCM_RIGHTS, inheritance) and the lease ends when the last copy is closed: with the
//! keeper, with a crash, with a reboot. Invariant: a lease whose flock is free is stale, whatever it says; gc removes it.

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
use super::{RANDOM_NAME, Store, StoreError, random_name};
use crate::digest::{ChainId, DiffId, ImageId};

const LIMIT: u64 = 4 * 1024 * 1024;
const SUFFIX: &str = ".json";

/// What the file says; for people and for gc.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeaseRecord {
    /// The mount it was taken for.
    pub(super) mount: String,
    pub(super) image: Option<ImageId>,
    pub(super) chain: ChainId,
    /// `/proc/sys/kernel/random/boot_id`, for people who find the file after a crash.
    pub(super) boot: String,
    /// What it keeps, lowest first.
    pub(super) layers: Vec<DiffId>,
}

/// A held lease. Dropped, it ends and its file is removed; [`Lease::into_fd`] lets it live on in another process.
#[derive(Debug)]
pub struct Lease {
    file: File,
    name: Removed,
}

/// Removes the lease's file when dropped, unless the lease was handed on.
#[derive(Debug)]
struct Removed {
    leases: Dir,
    name: Option<String>,
}

impl Store {
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
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if mount.is_empty()
            || mount.len() > 128
            || mount.starts_with('.')
            || !mount.bytes().all(good)
        {
            return Err(StoreError::Name {
                name: mount.to_owned(),
                reason: "a mount id is letters, digits, _ . - only",
            });
        }
        let chain = ChainId::of(layers).ok_or(StoreError::NoLayers)?;
        let transaction = self.begin()?;
        // A merged tree is placed after its layers and taken before them, so it speaks for all of them: 500 cost what one
        // does.
        if self.merged.stat(merged_name(chain))?.is_none() {
            self.check_present(layers, &[])?;
        }
        let record = LeaseRecord {
            mount: mount.to_owned(),
            image,
            chain,
            boot: boot_id()?,
            layers: layers.to_vec(),
        };
        // Locked and complete before it has its name. Its random part makes each file new: nobody ever has to decide
        // whether an old one may be taken over.
        let name = format!("{mount}-{}{SUFFIX}", random_name()?);
        let path = self.leases.join(&name);
        let temporary = transaction.temporary();
        let file =
            transaction
                .dir
                .create_with(&temporary, PRIVATE, &super::to_json(&record, &path)?)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| StoreError::io("lock", &path, errno))?;
        transaction.dir.rename(&temporary, &self.leases, &name)?;
        Ok(Lease {
            file,
            name: Removed {
                leases: self.root.sub("leases")?,
                name: Some(name),
            },
        })
    }

    /// Waits until no process holds a lease of `mount` any more, and removes its file. Ends at once when there is none.
    pub fn wait_lease_end(&self, mount: &str) -> Result<(), StoreError> {
        self.wait_lease(mount, None).map(drop)
    }

    /// The same, but for no longer than `patience`; false if somebody holds one still.
    pub fn lease_ends_within(&self, mount: &str, patience: Duration) -> Result<bool, StoreError> {
        self.wait_lease(mount, Some(patience))
    }

    fn wait_lease(&self, mount: &str, patience: Option<Duration>) -> Result<bool, StoreError> {
        for name in self.leases.names()? {
            let random = name.to_str().and_then(|name| {
                name.strip_prefix(mount)?
                    .strip_prefix('-')?
                    .strip_suffix(SUFFIX)
            });
            if random.is_none_or(|random| random.len() != RANDOM_NAME) {
                continue;
            }
            let Some(file) = self.leases.open(&name)? else {
                continue;
            };
            let path = self.leases.join(&name);
            if !is_released(&file, &path, patience)
                .map_err(|errno| StoreError::io("wait for", path, errno))?
            {
                return Ok(false);
            }
            self.leases.remove(&name)?;
        }
        Ok(true)
    }

    /// The record of a lease that is held; None when it is stale or gone.
    pub(super) fn held_lease(
        &self,
        name: &std::ffi::OsStr,
    ) -> Result<Option<LeaseRecord>, StoreError> {
        let path = self.leases.join(name);
        let Some(file) = self.leases.open(name)? else {
            return Ok(None);
        };
        // Shared, so that two who look do not take each other for a holder.
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(None),
            Err(Errno::WOULDBLOCK) => {}
            Err(errno) => return Err(StoreError::io("lock", path, errno)),
        }
        let Some(bytes) = self.leases.read(name, LIMIT)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| StoreError::malformed(path, error.to_string()))
    }
}

impl AsFd for Lease {
    /// The locked file, to be handed to the process that relies on it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Lease {
    /// The same, for one who hands it on and forgets it. The file stays until the lock's last holder is gone and somebody
    /// notices: [`Store::wait_lease_end`] or gc.
    pub fn into_fd(self) -> OwnedFd {
        let Self { file, mut name } = self;
        name.name = None;
        file.into()
    }
}

impl Drop for Removed {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && self.leases.remove(name).is_err()
        {
            // It is free from now on, and gc removes free ones.
        }
    }
}

/// How often a lease is looked at that no event was seen of.
const PAUSE: Duration = Duration::from_millis(100);

/// Waits until nobody holds the lease that `file`, at `path`, is; false if that takes longer than `patience`.
fn is_released(file: &File, path: &Path, patience: Option<Duration>) -> Result<bool, Errno> {
    let lock = |how| rustix::io::retry_on_intr(|| rustix::fs::flock(file, how));
    let Some(mut left) = patience else {
        return lock(FlockOperation::LockShared).map(|()| true);
    };
    // Only its holders have it open for writing, and their lock goes with the last of them. The watch comes before the look.
    let closed = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    match inotify::add_watch(&closed, path, inotify::WatchFlags::CLOSE_WRITE) {
        // Somebody else saw its end.
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

fn boot_id() -> Result<String, StoreError> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text =
        std::fs::read_to_string(path).map_err(|source| StoreError::io("read", path, source))?;
    Ok(text.trim_end().to_owned())
}
