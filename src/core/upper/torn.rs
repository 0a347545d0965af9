//! Contents that were copied up and not synced.
//!
//! A copy-up does not wait for the disk where the file system can tell afterwards what it wrote.
//! The file's mark says `unsynced` from its first moment until the content is synced. While it
//! does, a power cut may take blocks of the copy, and with them what the client wrote there. A
//! block that was taken is a hole where the lower has data: the next mount fills it with the
//! lower's bytes. So the file then has, block by block, what was written and had reached the disk,
//! or what it had before: as any file of the file system after a power cut.
//!
//! For that, while a file bears the mark:
//! * Each block of the copy was written by one call. Its extent counts as written only after its
//!   bytes are on the disk, so it is never seen half copied.
//! * Nobody makes holes in the first bytes that the lower has: before a truncation, or a hole that
//!   a client asks for, the content is synced and the mark removed. Journaled file systems keep
//!   that order.
//! * A worker's death changes nothing: the kernel has the pages. Neither does `sync`, which leaves
//!   a mark and no hole.
//!
//! fsync through the mount, its end, and the first lookup by the next mount sync the content and
//! remove the mark. Between a mount that was killed and the next one, an upper must not be copied
//! in a way that makes holes of zeros (`cp --sparse=always`).

use std::fs::File;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::{Errno, Result};

use crate::sys::copy::{BLOCK, copy_data, fill};
use crate::sys::fiemap::unwritten;

/// `EXT4_SUPER_MAGIC`.
const EXT4: u64 = 0xef53;

/// Whether a lost block of a new file is a hole after a power cut. It is on ext4, whose extents
/// are unwritten until their bytes are on the disk, or committed after these. (Not with
/// `data=writeback` and `nodelalloc` or `dioread_lock`: then ext4 promises nothing for any file.)
/// On others a copy-up waits.
pub(super) fn shows_lost_blocks(regular: BorrowedFd<'_>) -> Result<bool> {
    let host = rustix::fs::fstatfs(regular)?;
    let is_ext4 = u64::try_from(host.f_type) == Ok(EXT4);
    let has_blocks = u64::try_from(host.f_bsize).is_ok_and(|size| size <= BLOCK);
    if !is_ext4 || !has_blocks {
        return Ok(false);
    }
    // With DAX, new extents are written zeros first.
    let flags = AtFlags::EMPTY_PATH;
    let stat = rustix::fs::statx(regular, "", flags, StatxFlags::empty())?;
    if stat.stx_attributes.contains(StatxAttributes::DAX) {
        return Ok(false);
    }
    match unwritten(regular) {
        Ok(_) => Ok(true),
        Err(Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The blocks that a power cut may have taken of an unsynced copy of a file of `len` bytes, and
/// its holes. None behind its end: a copy has its length before it has its mark, so it was somebody
/// else who cut it off.
///
/// # Errors
/// What the host says.
pub fn lost(copy: &File, len: u64) -> Result<Vec<Range<u64>>> {
    let gaps = match unwritten(copy) {
        // The upper was copied here from another file system.
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        gaps => gaps?,
    };
    Ok(gaps
        .into_iter()
        .filter(|gap| gap.start < len)
        .map(|gap| gap.start..gap.end.min(len))
        .collect())
}

/// Gives a copy of `origin` the bytes that it has [`lost`]. Returns whether there were any.
///
/// # Errors
/// What the host says. The mark stays true, so it can be done again.
pub fn mend(copy: &File, origin: &File, lost: &[Range<u64>]) -> Result<bool> {
    let mut mended = false;
    for range in lost {
        mended |= fill(origin, copy, range.clone())?;
    }
    Ok(mended)
}

/// As [`mend`] in a new file without a name in `tmp`, for a reader that may not change the upper.
///
/// # Errors
/// What the host says.
pub fn mended(
    copy: &File,
    origin: &File,
    lost: &[Range<u64>],
    tmp: BorrowedFd<'_>,
) -> Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let whole = rustix::fs::openat(tmp, ".", flags, Mode::RUSR | Mode::WUSR)?;
    let whole = File::from(whole);
    let size = u64::try_from(rustix::fs::fstat(copy)?.st_size).unwrap_or(0);
    copy_data(copy, &whole, size)?;
    mend(&whole, origin, lost)?;
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    use rustix::fs::{FallocateFlags, fallocate};
    use std::os::fd::AsFd;

    const PIECE: usize = 64 << 10;

    /// A lower file with a hole in its second piece of four, and a copy with a write of the client
    /// in its fourth; what a power cut takes of it is punched out.
    fn copied() -> Option<(File, File)> {
        let [origin, copy] = [(); 2].map(|()| tempfile::tempfile().unwrap());
        if !shows_lost_blocks(copy.as_fd()).unwrap() {
            return None;
        }
        for (piece, byte) in [(0, b'a'), (2, b'c'), (3, b'd')] {
            origin
                .write_all_at(&vec![byte; PIECE], (piece * PIECE) as u64)
                .unwrap();
        }
        copy_data(&origin, &copy, 4 * PIECE as u64).unwrap();
        copy.write_all_at(b"client", 3 * PIECE as u64 + 5).unwrap();
        copy.write_all_at(b"appended", 4 * PIECE as u64).unwrap();
        Some((origin, copy))
    }

    fn lose(copy: &File, piece: usize) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let at = (piece * PIECE) as u64;
        fallocate(copy, flags, at, PIECE as u64).unwrap();
    }

    fn bytes(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; 4 * PIECE + 8];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn mend_gives_lost_blocks_the_lowers_bytes_and_leaves_all_others() {
        let Some((origin, copy)) = copied() else {
            return;
        };
        let lost = || lost(&copy, 4 * PIECE as u64).unwrap();
        let whole = bytes(&copy);
        assert!(!mend(&copy, &origin, &lost()).unwrap());
        assert_eq!(bytes(&copy), whole);
        lose(&copy, 0);
        lose(&copy, 2);
        let tmp = tempfile::tempdir().unwrap();
        let tmp = File::open(tmp.path()).unwrap();
        let aside = mended(&copy, &origin, &lost(), tmp.as_fd()).unwrap();
        assert_eq!(bytes(&aside), whole);
        assert_ne!(bytes(&copy), whole, "it is only read");
        assert!(mend(&copy, &origin, &lost()).unwrap());
        assert_eq!(bytes(&copy), whole);
        lose(&copy, 3);
        assert!(mend(&copy, &origin, &lost()).unwrap());
        let mut as_before = whole;
        as_before[3 * PIECE..4 * PIECE].fill(b'd');
        assert_eq!(bytes(&copy), as_before);
    }

    #[test]
    fn lost_names_nothing_behind_the_end() {
        let Some((_, copy)) = copied() else {
            return;
        };
        copy.set_len(PIECE as u64).unwrap();
        assert_eq!(lost(&copy, 4 * PIECE as u64).unwrap(), []);
    }
}
