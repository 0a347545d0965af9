//! Mapping a published file for reading.
#![expect(
    unsafe_code,
    reason = "mapping a file is unsafe since others may change it; see the promise below"
)]

use std::fs::File;
use std::io;

use memmap2::{Mmap, MmapOptions, UncheckedAdvice};

/// Maps a whole file read-only and private.
///
/// The caller promises that the file is *published*: it is never truncated or changed in place,
/// as holds for everything in the store (written aside, renamed into place, mode 0444, replaced by
/// rename only). A file that shrinks while it is mapped ends the process with SIGBUS at the next
/// touch of a lost page, so no file of a stranger goes in here.
pub fn map_published(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is private and never writable; by the promise above its bytes do not
    // change while it lives.
    unsafe { MmapOptions::new().map_copy_read_only(file) }
}

/// Takes the pages of a mapping of [`map_published`] out of the process's memory; they come back
/// when they are touched.
pub fn let_go(map: &Mmap) -> io::Result<()> {
    // SAFETY: the mapping is private and was never written, so each page comes back with the bytes
    // of the file, which do not change by the promise above.
    unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) }
}
