//! What the file system has written of a file (Documentation/filesystems/fiemap.rst).
#![expect(unsafe_code, reason = "ioctl(2) has no safe wrapper for this request")]

use std::ops::Range;

use rustix::fd::AsFd;
use rustix::fs::fstat;
use rustix::io::Result;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `FS_IOC_FIEMAP`, whose size is that of the head alone.
const FIEMAP: Opcode = opcode::read_write::<Head>(b'f', 11);
/// `FIEMAP_FLAG_SYNC`: dirty pages are written before.
const SYNC: u32 = 1;
/// `FIEMAP_EXTENT_LAST`.
const LAST: u32 = 1;
/// `FIEMAP_EXTENT_UNWRITTEN`: allocated, reads as zeros.
const UNWRITTEN: u32 = 0x800;
/// Extents asked for in one call.
const EXTENTS: u32 = 64;

/// `struct fiemap`.
#[derive(Default)]
#[repr(C)]
struct Head {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
}

/// `struct fiemap_extent`.
#[derive(Copy, Clone, Default)]
#[repr(C)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

#[repr(C)]
struct Map {
    head: Head,
    extents: [Extent; EXTENTS as usize],
}

/// The parts of a file that were never written: holes, and space that was only allocated. Pages
/// that are not on the disk yet are written before.
///
/// # Errors
/// What the host says; EOPNOTSUPP from a file system that does not tell.
pub fn unwritten(file: impl AsFd) -> Result<Vec<Range<u64>>> {
    let size = u64::try_from(fstat(&file)?.st_size).unwrap_or(0);
    let mut gaps = Vec::new();
    // All before this is written, or in `gaps`.
    let mut known = 0;
    let mut asked = 0;
    while asked < size {
        let map = extents(&file, asked, size - asked)?;
        let found = map.extents.iter().take(map.head.mapped as usize);
        asked = size;
        for extent in found {
            let end = extent.logical.saturating_add(extent.length);
            if extent.flags & UNWRITTEN == 0 {
                if extent.logical > known {
                    gaps.push(known..extent.logical.min(size));
                }
                known = known.max(end);
            }
            asked = if extent.flags & LAST == 0 { end } else { size };
        }
    }
    if known < size {
        gaps.push(known..size);
    }
    Ok(gaps)
}

fn extents(file: impl AsFd, start: u64, length: u64) -> Result<Map> {
    let mut map = Map {
        head: Head {
            start,
            length,
            flags: SYNC,
            room: EXTENTS,
            ..Head::default()
        },
        extents: [Extent::default(); EXTENTS as usize],
    };
    // SAFETY: the request is for a `struct fiemap`, which `Map` is.
    let request = unsafe { Updater::<FIEMAP, Map>::new(&mut map) };
    // SAFETY: it reads the head and writes to it and to as many extents behind it as `room` says,
    // which is what `Map` has.
    unsafe { ioctl(file, request)? };
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;

    const BLOCK: u64 = 64 << 10;

    #[test]
    fn unwritten_names_holes_and_space_that_was_only_allocated() {
        let file = tempfile::tempfile().unwrap();
        match unwritten(&file) {
            // Of tmpfs; nothing relies on it there.
            Err(Errno::OPNOTSUPP) => return,
            gaps => assert_eq!(gaps.unwrap(), []),
        }
        let block = vec![7; usize::try_from(BLOCK).unwrap()];
        for at in [1, 3] {
            file.write_all_at(&block, at * BLOCK).unwrap();
        }
        file.set_len(6 * BLOCK).unwrap();
        fallocate(&file, FallocateFlags::empty(), 4 * BLOCK, BLOCK).unwrap();
        let gap = |from: u64, to: u64| from * BLOCK..to * BLOCK;
        assert_eq!(unwritten(&file).unwrap(), [gap(0, 1), gap(2, 3), gap(4, 6)]);
        fallocate(&file, FallocateFlags::ZERO_RANGE, 3 * BLOCK, BLOCK).unwrap();
        assert_eq!(unwritten(&file).unwrap(), [gap(0, 1), gap(2, 6)]);
    }

    #[test]
    fn unwritten_goes_through_any_number_of_extents() {
        let file = tempfile::tempfile().unwrap();
        if unwritten(&file) == Err(Errno::OPNOTSUPP) {
            return;
        }
        let pieces = 2 * u64::from(EXTENTS) + 1;
        for piece in 0..pieces {
            file.write_all_at(b"x", 2 * piece * BLOCK).unwrap();
        }
        let gaps = unwritten(&file).unwrap();
        assert_eq!(gaps.len() as u64, pieces - 1, "{gaps:?}");
    }
}
