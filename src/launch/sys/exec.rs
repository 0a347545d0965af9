//! `execve` with vectors that are made before the clone.

use std::ffi::{CStr, CString, c_char};

use rustix::io::Errno;

/// A NULL-terminated array of strings, as `execve` wants it, with room for one more that is only known later.
#[derive(Debug)]
pub(crate) struct Vectors {
    /// Owns what `pointers` points at; never changed after [`Vectors::new`].
    strings: Vec<CString>,
    /// One per string, and one NULL; another fits without allocation.
    pointers: Vec<*const c_char>,
    /// The late string, NUL included.
    late: Vec<u8>,
}

impl Vectors {
    /// With room for a late string of `late` bytes.
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

    /// Adds `key` + `value` once, without allocation; refused if there is no room or a NUL byte in it.
    pub(crate) fn push_late(&mut self, key: &[u8], value: &[u8]) -> Result<(), Errno> {
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
pub(crate) fn execve(path: &CStr, arguments: &Vectors, environment: &Vectors) -> Errno {
    // SAFETY: both arrays end with NULL and point at NUL-terminated strings that their owner keeps alive and unchanged.
    unsafe {
        libc::execve(
            path.as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
        )
    };
    super::last_errno()
}

/// Marks every descriptor from `first` on as close-on-exec.
pub(crate) fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: changes a flag of descriptors, no memory.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    super::checked(returned).map(drop)
}
