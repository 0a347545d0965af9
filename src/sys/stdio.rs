//! A standard output that the caller closed (`>&-`) stays closed: writing to it fails with EBADF.
//!
//! Before `main`, Rust's runtime opens `/dev/null` for each standard stream that is closed, so that
//! no other file gets its number; and [`std::io::Stdout`] takes EBADF for success. A command would
//! end well, and what it had to say would be lost.

use std::io::{self, Write};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, FdFlags};

use crate::sys;

/// Whether standard output was closed when the process began.
pub fn was_output_closed() -> bool {
    sys::was_output_closed()
}

/// EBADF if standard output was closed when the process began: for what writes to
/// [`std::io::Stdout`] next.
pub fn check_output() -> io::Result<()> {
    if was_output_closed() {
        Err(Errno::BADF.into())
    } else {
        Ok(())
    }
}

/// If standard output was closed when the process began, puts a file there that cannot be written
/// to, so that [`Output`] and duplicates of the descriptor fail with EBADF. A program that is
/// executed finds it closed again. To be called before anything is written.
pub fn keep_output_closed() -> Result<(), Errno> {
    if !was_output_closed() {
        return Ok(());
    }
    let unwritable = rustix::fs::open(
        c"/dev/null",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::stdio::dup2_stdout(&unwritable)?;
    rustix::io::fcntl_setfd(rustix::stdio::stdout(), FdFlags::CLOEXEC)
}

/// Standard output, unbuffered; EBADF is an error.
#[derive(Debug, Clone, Copy, Default)]
pub struct Output;

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(rustix::stdio::stdout(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
