//! Numbers in memory that other processes read.
#![expect(unsafe_code, reason = "a shared mapping is raw memory")]

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A shared mapping of a memory file, as a row of numbers.
#[derive(Debug)]
pub(crate) struct SharedWords {
    start: NonNull<AtomicU64>,
    count: NonZeroUsize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only ever touched
// atomically.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the first `count` words of `memory`, a file of at least that size that cannot
    /// shrink (a sealed memfd).
    pub(crate) fn map(memory: BorrowedFd<'_>, count: NonZeroUsize) -> io::Result<Self> {
        let length = count.get() * size_of::<AtomicU64>();
        // SAFETY: a new mapping at an address the kernel chooses touches no memory of ours.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                memory,
                0,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, count })
    }

    /// The numbers.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, `count` words long, zero-filled, and lives as long
        // as `self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.count.get()) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        let length = self.count.get() * size_of::<AtomicU64>();
        // SAFETY: it is the mapping made in `map`, and nothing borrows from it any more.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), length) };
        debug_assert!(unmapped.is_ok(), "munmap of a whole mapping cannot fail");
    }
}
