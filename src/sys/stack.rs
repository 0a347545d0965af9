//! Work on a stack of its own.

use std::io;
use std::thread::{self, Builder};

/// Bytes: far above what decoders of archives and the definition of a command line take, and free
/// until it is used.
const STACK: usize = 8 << 20;

/// Runs `work` on a thread whose stack the caller's limit (`ulimit -s`) does not shrink. A panic
/// goes on in the caller.
///
/// # Errors
/// What the system says if it has no thread to give.
pub fn on_own_stack<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = Builder::new().stack_size(STACK).spawn_scoped(scope, work)?;
        Ok(thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
