//! Copies a file's content: a reflink where the host can, else `copy_file_range`. Holes stay
//! holes.
//!
//! No `unsafe` here; it is beside the wrappers since several modules use it.

use std::cell::Cell;

use rustix::fd::AsFd;
use rustix::fs::{SeekFrom, copy_file_range, fstat, ftruncate, ioctl_ficlone, seek};
use rustix::io::{Errno, Result, pread, pwrite};

use super::writeback::start_writeback;

/// How a content came over.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Copied {
    /// Both files share the host's blocks.
    Reflinked,
    /// Bytes were copied; holes were kept.
    Copied,
}

/// Asked before each chunk, with where it begins; an error ends the copy.
type Check<'c> = &'c dyn Fn(u64) -> Result<()>;

/// How much is asked for in one call, so that a [`Check`] or a full disk is noticed in time. Also
/// how much [`copy_data_to_sync`] gives to the disk at once: few large writes.
const CHUNK: usize = 8 << 20;

/// Makes the first `len` bytes of `to` those of `from`; `to` ends up `len` long, with zeros where
/// `from` is shorter. `to` must hold nothing but holes. Moves the offset of `from`, so its
/// description may not be in other use. After an error `to` is partly written and of any length.
///
/// # Errors
/// What the host says; ENOSPC and EDQUOT among it.
pub fn copy_data(from: impl AsFd, to: impl AsFd, len: u64) -> Result<Copied> {
    copy_data_checked(from, to, len, &|_| Ok(()))
}

/// [`copy_data`] for a caller that syncs `to` next, and then waits for less: what was copied is
/// being written to the disk while the next chunk is copied.
///
/// # Errors
/// What the host says; ENOSPC and EDQUOT among it.
pub fn copy_data_to_sync(from: impl AsFd, to: impl AsFd, len: u64) -> Result<Copied> {
    let handed_over = Cell::new(0);
    copy_data_checked(from, &to, len, &|position| {
        let copied = position.saturating_sub(handed_over.get());
        if copied >= CHUNK as u64 {
            start_writeback(&to, handed_over.replace(position), copied)?;
        }
        Ok(())
    })
}

/// [`copy_data`] for a caller that may have to stop: `check` is asked before each chunk that is
/// copied, with where it begins.
///
/// # Errors
/// What `check` says, and what the host says.
pub fn copy_data_checked(
    from: impl AsFd,
    to: impl AsFd,
    len: u64,
    check: Check<'_>,
) -> Result<Copied> {
    if reflink(&from, &to, len)? {
        return Ok(Copied::Reflinked);
    }
    ftruncate(&to, len)?;
    let mut position = 0;
    while position < len {
        let Some(start) = next(&from, SeekFrom::Data(position))? else {
            break;
        };
        if start >= len {
            break;
        }
        let end = next(&from, SeekFrom::Hole(start))?.unwrap_or(len).min(len);
        copy_range(&from, &to, start, end, check)?;
        position = end;
    }
    Ok(Copied::Copied)
}

/// Makes `to`, an empty file, share the first `len` bytes of `from`, with zeros where that is
/// shorter. False if the host cannot: `to` is as it was.
///
/// # Errors
/// What the host says; ENOSPC and EDQUOT among it.
pub fn reflink(from: impl AsFd, to: impl AsFd, len: u64) -> Result<bool> {
    match ioctl_ficlone(&to, &from) {
        // XFS copies the last block in a truncate, even to the length that the file has.
        Ok(()) if u64::try_from(fstat(&to)?.st_size) == Ok(len) => Ok(true),
        Ok(()) => ftruncate(&to, len).map(|()| true),
        // ENOTTY and EOPNOTSUPP: the file system has none; EXDEV: two of them; EINVAL: not these
        // files; EPERM: a seal or flag.
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::PERM) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Where data or a hole comes next; None behind the last of it. A host that keeps no holes says
/// "here" to both questions.
fn next(file: impl AsFd, from: SeekFrom) -> Result<Option<u64>> {
    match seek(file, from) {
        Ok(position) => Ok(Some(position)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

fn copy_range(
    from: impl AsFd,
    to: impl AsFd,
    start: u64,
    end: u64,
    check: Check<'_>,
) -> Result<()> {
    let mut position = start;
    while position < end {
        check(position)?;
        let want = usize::try_from(end - position).unwrap_or(CHUNK).min(CHUNK);
        let (mut source, mut target) = (position, position);
        match copy_file_range(&from, Some(&mut source), &to, Some(&mut target), want) {
            Ok(0) => return Ok(()), // the source is shorter than it was
            Ok(copied) => position += copied as u64,
            Err(Errno::INTR) => {}
            // Not between these two (before 5.19 not over file systems at all): through memory.
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::PERM) => {
                return copy_by_hand(from, to, position, end, check);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn copy_by_hand(
    from: impl AsFd,
    to: impl AsFd,
    mut position: u64,
    end: u64,
    check: Check<'_>,
) -> Result<()> {
    let mut buffer = vec![0; 256 << 10];
    while position < end {
        check(position)?;
        let want = usize::try_from(end - position)
            .unwrap_or(buffer.len())
            .min(buffer.len());
        let got = match pread(&from, buffer.get_mut(..want).unwrap_or_default(), position) {
            Ok(0) => return Ok(()),
            Ok(got) => got,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error),
        };
        let mut piece = buffer.get(..got).unwrap_or_default();
        while !piece.is_empty() {
            match pwrite(&to, piece, position) {
                Ok(0) => return Err(Errno::IO),
                Ok(written) => {
                    position += written as u64;
                    piece = piece.get(written..).unwrap_or_default();
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn copy_data_keeps_holes() {
        let from = tempfile::tempfile().unwrap();
        from.set_len(8 << 20).unwrap();
        from.write_all_at(b"begin", 0).unwrap();
        from.write_all_at(b"middle", 4 << 20).unwrap();
        let to = tempfile::tempfile().unwrap();
        copy_data(&from, &to, 8 << 20).unwrap();
        assert_eq!(to.metadata().unwrap().len(), 8 << 20);
        assert!(
            to.metadata().unwrap().blocks() * 512 < 1 << 20,
            "holes were filled"
        );
        let mut bytes = [0; 6];
        to.read_exact_at(&mut bytes, 4 << 20).unwrap();
        assert_eq!(&bytes, b"middle");
    }

    #[test]
    fn copy_data_to_sync_copies_every_chunk_and_no_hole() {
        let chunk = CHUNK as u64;
        let from = tempfile::tempfile().unwrap();
        from.set_len(5 * chunk).unwrap();
        let data = vec![b'x'; 2 * CHUNK + 5];
        from.write_all_at(&data, 0).unwrap();
        from.write_all_at(&data, 3 * chunk - 5).unwrap();
        let to = tempfile::tempfile().unwrap();
        copy_data_to_sync(&from, &to, 5 * chunk).unwrap();
        to.sync_data().unwrap();
        let mut copied = vec![0; 5 * CHUNK];
        to.read_exact_at(&mut copied, 0).unwrap();
        let mut expected = vec![0; 5 * CHUNK];
        for start in [0, 3 * CHUNK - 5] {
            expected[start..start + data.len()].copy_from_slice(&data);
        }
        assert!(copied == expected, "the copy differs");
        let blocks = |file: &std::fs::File| file.metadata().unwrap().blocks();
        assert!(blocks(&to) <= blocks(&from), "holes were filled");
    }

    #[test]
    fn copy_data_checked_stops_between_two_chunks() {
        let from = tempfile::tempfile().unwrap();
        from.write_all_at(b"x", 2 * CHUNK as u64 - 1).unwrap();
        from.write_all_at(b"x", 0).unwrap();
        let to = tempfile::tempfile().unwrap();
        let left = Cell::new(1);
        let check = |_| match left.replace(left.get() - 1) {
            0 => Err(Errno::INTR),
            _ => Ok(()),
        };
        let copied = copy_range(&from, &to, 0, 2 * CHUNK as u64, &check);
        assert_eq!((copied, left.get()), (Err(Errno::INTR), -1));
        left.set(1);
        let copied = copy_by_hand(&from, &to, 0, CHUNK as u64, &check);
        assert_eq!((copied, left.get()), (Err(Errno::INTR), -1));
    }

    #[test]
    fn copy_data_truncates_or_pads_with_zeros() {
        let from = tempfile::tempfile().unwrap();
        from.write_all_at(b"0123456789", 0).unwrap();
        for (len, want) in [(0, &b""[..]), (4, b"0123"), (12, b"0123456789\0\0")] {
            let to = tempfile::tempfile().unwrap();
            copy_data(&from, &to, len).unwrap();
            let mut got = vec![0; want.len()];
            to.read_exact_at(&mut got, 0).unwrap();
            assert_eq!((got.as_slice(), to.metadata().unwrap().len()), (want, len));
        }
    }
}
