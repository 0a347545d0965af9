//! Memory that outlives this process or that other processes read.
#![expect(unsafe_code, reason = "a shared mapping is raw memory")]

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A shared mapping of a part of a memory file that cannot shrink (a sealed memfd).
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: NonZeroUsize,
}

// SAFETY: the mapping belongs to the process, not to a thread; the types below say how it is
// touched.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes from `offset` on, which is a multiple of the page size.
    fn new(memory: BorrowedFd<'_>, offset: u64, length: NonZeroUsize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address the kernel chooses touches no memory of ours.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                length.get(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                memory,
                offset,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is the mapping made in `new`, and nothing borrows from it any more.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.length.get()) };
        debug_assert!(unmapped.is_ok(), "munmap of a whole mapping cannot fail");
    }
}

/// A row of numbers.
#[derive(Debug)]
pub(crate) struct SharedWords {
    mapping: Mapping,
    count: usize,
}

impl SharedWords {
    /// Maps the first `count` words of `memory`, a file of at least that size that cannot
    /// shrink (a sealed memfd).
    pub(crate) fn map(memory: BorrowedFd<'_>, count: NonZeroUsize) -> io::Result<Self> {
        let word = NonZeroUsize::new(size_of::<AtomicU64>()).ok_or(io::ErrorKind::InvalidData)?;
        let length = count.checked_mul(word).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            mapping: Mapping::new(memory, 0, length)?,
            count: count.get(),
        })
    }

    /// The numbers.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, `count` words long, zero-filled, only ever touched
        // atomically, and lives as long as `self`.
        unsafe { slice::from_raw_parts(self.mapping.start.as_ptr().cast(), self.count) }
    }
}

/// Bytes that only their owner touches while it lives: another process maps them, or reads the
/// file there, once this one has ended.
#[derive(Debug)]
pub(crate) struct OutlivingBytes(Mapping);

impl OutlivingBytes {
    /// Maps `length` bytes of `memory` from `offset` on, a multiple of the page size. The file is
    /// at least that long and cannot shrink (a sealed memfd), and nothing else maps this part.
    pub(crate) fn map(
        memory: BorrowedFd<'_>,
        offset: u64,
        length: NonZeroUsize,
    ) -> io::Result<Self> {
        Mapping::new(memory, offset, length).map(Self)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is as long, initialized, and lives as long as `self`; only a
        // method that borrows `self` exclusively writes to it.
        unsafe { slice::from_raw_parts(self.0.start.as_ptr(), self.0.length.get()) }
    }

    /// Maps the pages of the first `length` bytes, which stay what they are.
    pub(crate) fn populate(&mut self, length: usize) {
        const PAGE: usize = 4096;
        for byte in self.bytes_mut().iter_mut().take(length).step_by(PAGE) {
            let value = *byte;
            // SAFETY: it points to a byte that is borrowed exclusively. Volatile, so that the page
            // is written to although nothing changes.
            unsafe { std::ptr::write_volatile(byte, value) };
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.0.start.as_ptr(), self.0.length.get()) }
    }
}
