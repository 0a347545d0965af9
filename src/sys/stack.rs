//! Work on a stack of its own.

use std::io;
use std::thread::{self, Builder};

use rustix::process::{Resource, getrlimit};

/// Bytes: far above what decoders of archives and the definition of a command line take, and free
/// until it is used. Linux's limit of a first thread's stack by default.
const STACK: u32 = 8 << 20;

/// Runs `work` on a thread whose stack the caller's limit (`ulimit -s`) does not shrink. A panic
/// goes on in the caller.
///
/// # Errors
/// What the system says if it has no thread to give.
pub fn on_own_stack<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = Builder::new().stack_size(STACK as usize);
        let thread = thread.spawn_scoped(scope, work)?;
        Ok(thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// For a program's first thread: runs `work` where it is if the stack may grow as large there
/// (`ulimit -s`), else as [`on_own_stack`], which takes a thread.
///
/// # Errors
/// As [`on_own_stack`].
pub fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    match getrlimit(Resource::Stack).current {
        Some(limit) if limit < u64::from(STACK) => on_own_stack(work),
        _ => Ok(work()),
    }
}
