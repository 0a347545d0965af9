//! How many requests of each kind a mount has answered: shared memory, for every process that may
//! look into the keeper.
//!
//! Keeper and worker of a mount both hold a sealed memfd called `cowl-requests`:
//!
//! ```text
//!   0            8              16                         528
//!   +------------+--------------+--------------------------+
//!   | "COWLREQS" | device       | 64 counts, one an opcode |
//!   +------------+--------------+--------------------------+
//! ```
//!
//! All are u64 (the machine's byte order); `device` is the mount's `st_dev`. Invariant: a count
//! only grows; it is raised before the request is acted on, so a client that has its answer finds
//! it counted. Counting costs one addition and no system call. A worker's successor goes on
//! counting in the same memory.
//!
//! `cowl-mountd requests DIR` finds the memory by looking for the device of `DIR` among the
//! descriptors under `/proc`.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags, SealFlags, StatxFlags};
use rustix::io::Errno;

use crate::sys::shared::SharedWords;

const MAGIC: u64 = u64::from_ne_bytes(*b"COWLREQS");
const NAME: &str = "cowl-requests";
const OPCODES: usize = 64;
const WORDS: NonZeroUsize = NonZeroUsize::new(2 + OPCODES).unwrap();
const BYTES: usize = WORDS.get() * size_of::<u64>();

/// The memory as the keeper makes it, for the mount with `st_dev` `device`.
pub(crate) fn create(device: u64) -> io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let memory = File::from(memory);
    memory.set_len(u64::try_from(BYTES).map_err(io::Error::other)?)?;
    let head = [MAGIC.to_ne_bytes(), device.to_ne_bytes()].concat();
    memory.write_all_at(&head, 0)?;
    rustix::fs::fcntl_add_seals(
        &memory,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(memory.into())
}

/// The counters as the worker raises them.
#[derive(Debug)]
pub(crate) struct Counters(SharedWords);

impl Counters {
    /// Maps memory made by [`create`].
    pub(crate) fn map(memory: BorrowedFd<'_>) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(memory)?;
        let size = rustix::fs::fstat(memory)?.st_size;
        if !seals.contains(SealFlags::SHRINK) || usize::try_from(size) != Ok(BYTES) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self(SharedWords::map(memory, WORDS)?))
    }

    /// Counts one request.
    pub(crate) fn count(&self, opcode: u32) {
        let word = usize::try_from(opcode)
            .ok()
            .and_then(|opcode| self.0.words().get(2..)?.get(opcode));
        if let Some(count) = word {
            AtomicU64::fetch_add(count, 1, Ordering::Relaxed);
        }
    }
}

/// The counts of the mount at `mount`, by opcode, without the opcodes that never came. `None`:
/// no process whose descriptors we may see serves it.
pub fn read(mount: &Path) -> io::Result<Option<Vec<(u32, u64)>>> {
    let root = rustix::fs::open(mount, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let device = device_of(&root)?;
    for process in std::fs::read_dir("/proc")? {
        let Ok(descriptors) = std::fs::read_dir(process?.path().join("fd")) else {
            // Not a process, one that ended meanwhile, or another user's.
            continue;
        };
        for descriptor in descriptors.flatten() {
            if let Some(counts) = counts_behind(&descriptor.path(), device)? {
                return Ok(Some(counts));
            }
        }
    }
    Ok(None)
}

fn counts_behind(descriptor: &Path, device: u64) -> io::Result<Option<Vec<(u32, u64)>>> {
    match std::fs::read_link(descriptor) {
        Ok(target)
            if target
                .as_os_str()
                .as_encoded_bytes()
                .starts_with(b"/memfd:cowl-requests") => {}
        _ => return Ok(None),
    }
    let memory = match rustix::fs::open(descriptor, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    {
        Ok(memory) => File::from(memory),
        // The process ended meanwhile.
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = [0; BYTES];
    memory.read_exact_at(&mut bytes, 0)?;
    let (words, _) = bytes.as_chunks::<8>();
    let mut words = words.iter().copied().map(u64::from_ne_bytes);
    if words.next() != Some(MAGIC) || words.next() != Some(device) {
        return Ok(None);
    }
    Ok(Some(
        (0..).zip(words).filter(|(_, count)| *count > 0).collect(),
    ))
}

/// The device that a mounted filesystem shows as `st_dev`, without asking the filesystem.
pub(crate) fn device_of(mount: impl AsFd) -> io::Result<u64> {
    let how = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let known = rustix::fs::statx(mount, "", how, StatxFlags::empty())?;
    Ok(rustix::fs::makedev(
        known.stx_dev_major,
        known.stx_dev_minor,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_the_mounts_device() {
        let directory = tempfile::tempdir().unwrap();
        let file = File::open(directory.path()).unwrap();
        let memory = create(device_of(&file).unwrap()).unwrap();
        let counters = Counters::map(memory.as_fd()).unwrap();
        counters.count(1);
        counters.count(1);
        counters.count(52);
        counters.count(4096);
        assert_eq!(read(directory.path()).unwrap(), Some(vec![(1, 2), (52, 1)]));
        assert_eq!(read(Path::new("/proc")).unwrap(), None);
    }

    #[test]
    fn map_refuses_memory_that_is_not_sealed() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(BYTES.try_into().unwrap()).unwrap();
        assert!(Counters::map(file.as_fd()).is_err());
    }
}
