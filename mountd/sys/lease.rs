//! Whether a file is being written.
#![expect(unsafe_code, reason = "F_SETLEASE and F_SETSIG have no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `fcntl.h`; the libc crate lacks it.
const F_SETSIG: libc::c_int = 10;

/// Whether a process has the file open for writing, or mapped shared and writable. `file` is open
/// for reading only.
///
/// The kernel grants a read lease only on a file without writers (`i_writecount`). A mapping
/// outlives its descriptor, and no other call tells of it.
///
/// # Errors
/// Where the file system has no leases, or this process may not take one.
pub(crate) fn has_writers(file: BorrowedFd<'_>) -> io::Result<bool> {
    // An open for writing in between breaks the lease, and signals it: by default SIGURG is
    // ignored.
    fcntl(file, F_SETSIG, libc::SIGURG)?;
    match fcntl(file, libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(()) => fcntl(file, libc::F_SETLEASE, libc::F_UNLCK).map(|()| false),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(true),
        Err(error) => Err(error),
    }
}

fn fcntl(file: BorrowedFd<'_>, command: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: these commands take a number; the descriptor is open.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, value) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_writer_is_seen_as_a_descriptor_and_as_a_mapping() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "content").unwrap();
        let reader = File::open(&path).unwrap();
        assert!(!has_writers(reader.as_fd()).unwrap());
        let writer = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        assert!(has_writers(reader.as_fd()).unwrap());
        // SAFETY: the file is this test's alone.
        let mapping = unsafe { memmap2::MmapMut::map_mut(&writer) }.unwrap();
        drop(writer);
        assert!(has_writers(reader.as_fd()).unwrap());
        drop(mapping);
        assert!(!has_writers(reader.as_fd()).unwrap());
    }
}
