//! What the caller of an operation sees, as a line that two file systems can agree on.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, RawDir, StatxFlags, statx};
use rustix::io::{Errno, pread};

use cowl_tests::tree::SET_BEFORE;

/// What the caller sees: a value, or the error number.
pub(crate) type Seen = Result<String, Errno>;

pub(crate) fn read_all(file: &OwnedFd, offset: u64, length: usize) -> Seen {
    let mut buffer = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match pread(file, &mut buffer[filled..], offset + filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    let sum = buffer[..filled].iter().fold(0u64, |sum, &byte| {
        sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte)
    });
    Ok(format!("{filled} bytes, {sum:016x}"))
}

pub(crate) fn listing(directory: &OwnedFd) -> Seen {
    let mut buffer = vec![MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(directory, &mut buffer);
    let mut lines = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        lines.push(format!(
            "{}:{:?}",
            entry.file_name().to_bytes().escape_ascii(),
            entry.file_type()
        ));
    }
    lines.sort_unstable();
    Ok(lines.join(" "))
}

pub(crate) fn sorted(list: &[u8]) -> String {
    let mut names: Vec<String> = list
        .split(|&byte| byte == 0)
        .map(|name| name.escape_ascii().to_string())
        .collect();
    names.sort_unstable();
    names.join(" ")
}

/// The result of stat without what two file systems cannot agree on: inode and block numbers, times
/// set by the clock.
pub(crate) fn status(directory: &OwnedFd, path: &[u8]) -> Seen {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    let status = statx(directory, path, flags, StatxFlags::BASIC_STATS)?;
    let is_directory = FileType::from_raw_mode(u32::from(status.stx_mode)) == FileType::Directory;
    let mtime = match status.stx_mtime {
        time if time.tv_sec < SET_BEFORE => format!("{}.{:09}", time.tv_sec, time.tv_nsec),
        _ => "now".to_owned(),
    };
    Ok(format!(
        "{:o} {}:{} nlink {} size {} rdev {}:{} mtime {mtime}",
        status.stx_mode,
        status.stx_uid,
        status.stx_gid,
        status.stx_nlink,
        if is_directory { 0 } else { status.stx_size },
        status.stx_rdev_major,
        status.stx_rdev_minor,
    ))
}
