//! `execve` with arrays that are allocated before the clone, and the end of inherited descriptors.

use std::ffi::{CStr, CString, c_char};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;

/// A NULL-terminated array of strings for `execve`, with space reserved for one more.
#[derive(Debug)]
pub(crate) struct StringArray {
    /// Owns what `pointers` points at; unchanged after [`StringArray::new`].
    strings: Vec<CString>,
    /// One per string, then NULL; has capacity for another.
    pointers: Vec<*const c_char>,
    /// The string added by [`StringArray::push`], with its NUL.
    late: Vec<u8>,
}

impl StringArray {
    /// Reserves `late` bytes for a string that is known later.
    pub(crate) fn new(strings: Vec<CString>, late: usize) -> Self {
        let mut pointers = Vec::with_capacity(strings.len() + 2);
        pointers.extend(strings.iter().map(|string| string.as_ptr()));
        pointers.push(std::ptr::null());
        Self {
            strings,
            pointers,
            late: Vec::with_capacity(late + 1),
        }
    }

    /// Adds `key` + `value`, once and without allocation. ENAMETOOLONG if it exceeds the space or
    /// has a NUL byte.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), Errno> {
        let needed = key.len() + value.len() + 1;
        if !self.late.is_empty() || needed > self.late.capacity() || value.contains(&0) {
            return Err(Errno::NAMETOOLONG);
        }
        self.late.extend_from_slice(key);
        self.late.extend_from_slice(value);
        self.late.push(0);
        self.pointers
            .insert(self.strings.len(), self.late.as_ptr().cast());
        Ok(())
    }
}

/// Becomes the program at `path`; returns only if that fails.
pub(crate) fn execve(path: &CStr, arguments: &StringArray, environment: &StringArray) -> Errno {
    // SAFETY: both arrays end with NULL and point at NUL-terminated strings that their owner keeps
    // alive and unchanged.
    unsafe {
        libc::execve(
            path.as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
        )
    };
    super::last_errno()
}

/// Closes every descriptor but the standard three and `kept` (close_range(2), Linux 5.9).
///
/// The owners of the others must not be used, nor dropped, afterwards: between clone and exec,
/// where everything is forgotten.
pub(crate) fn close_others(kept: BorrowedFd<'_>) -> Result<(), Errno> {
    let kept = kept.as_raw_fd().cast_unsigned();
    close_range(3, kept.saturating_sub(1))?;
    close_range(kept.saturating_add(1).max(3), u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    if first > last {
        return Ok(());
    }
    // SAFETY: touches no memory; see the caller for the descriptors.
    let returned = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0_u32) };
    super::checked(returned).map(drop)
}
