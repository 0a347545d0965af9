//! Directories of the work directory, and what is in them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType as HostType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::name_at::NameAt;
use super::{UpperError, host};

/// The files in a directory that have numbers as names; others are left alone.
pub(super) fn numbers_in(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    each_entry(dir, |name, _, _| {
        let number = std::str::from_utf8(name).ok();
        numbers.extend(number.and_then(|name| name.parse::<u64>().ok()));
        Ok(())
    })?;
    Ok(numbers)
}

pub(super) fn last_number(dir: BorrowedFd<'_>) -> rustix::io::Result<u64> {
    let last = numbers_in(dir)?.into_iter().max().unwrap_or(0);
    // Nothing of ours has such a number.
    Ok(last.min(u64::MAX - 1))
}

/// Opens a subdirectory of the work directory, and creates it if it does not exist.
pub(super) fn subdirectory(
    work: BorrowedFd<'_>,
    name: &'static [u8],
) -> Result<OwnedFd, UpperError> {
    match rustix::fs::mkdirat(work, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(host("preparing the work directory")(errno)),
    }
    open_directory(work, name).map_err(host("preparing the work directory"))
}

pub(super) fn open_directory(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Calls `f` with name, type and inode number of every entry but `.` and `..`.
pub fn each_entry(
    dir: BorrowedFd<'_>,
    mut f: impl FnMut(&[u8], HostType, u64) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    let dir = open_directory(dir, b".")?;
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            f(name, entry.file_type(), entry.ino())?;
        }
    }
    Ok(())
}

/// Empties a directory: one of the work directory, in which nothing is more than two levels deep,
/// or one that holds only whiteouts.
pub fn empty(dir: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let mut names = Vec::new();
    each_entry(dir, |name, file_type, _| {
        names.push((name.to_vec(), file_type));
        Ok(())
    })?;
    for (name, file_type) in names {
        if file_type == HostType::Directory {
            empty(open_directory(dir, &name)?.as_fd())?;
            NameAt::new(dir, &name).rmdir()?;
        } else {
            rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
        }
    }
    Ok(())
}

/// Removes a directory of `work/tmp` and its contents.
pub fn remove_temporary(name_at: NameAt<'_>) -> rustix::io::Result<()> {
    empty(open_directory(name_at.dir, name_at.name)?.as_fd())?;
    name_at.rmdir()
}
