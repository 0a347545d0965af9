//! The kernel's side of a mount: the FUSE protocol, read and answered by our own loop.
//!
//! `negotiate` leaves INIT to `fuser`; from then on the threads of `threads` read requests into an
//! `inbox` and `serve` answers them: `decode` says what is asked, `dispatch` has the overlay do
//! it, `reply` writes the answer, `owners` maps owners, and `backing` hands host files to the
//! kernel; `gate` has changes wait while the engine reads the upper. The worker sets it up.
//!
//! Invariant: no struct of the kernel leaves this module, and no rule of the filesystem enters it.
//! Any bytes read from the connection are answered or logged, never a panic.
//!
//! | request | answer |
//! |---|---|
//! | OPENDIR, FLUSH, POLL, INTERRUPT, unknown codes | ENOSYS: the kernel sends no more |
//! | OPEN, CREATE but for passthrough | the same |
//! | LSEEK under the writeback cache | the same: dirty pages would be taken for a hole |
//! | STATX | the same: it adds only the birth time, which trees lack |
//! | IOCTL | ENOTTY: no file is a terminal or has flags of its own |
//! | entries, attributes, absent names | valid for good: all changes come as requests |

mod backing;
mod buffer;
mod decode;
mod dispatch;
mod files;
mod gate;
mod inbox;
mod negotiate;
mod notify;
mod owners;
mod reply;
mod serve;
mod shortage;
mod threads;
mod unanswered;
mod wire;

pub(crate) use backing::probe as probe_backing;
pub(crate) use dispatch::Dispatcher;
pub(crate) use gate::ChangeGate;
pub(crate) use negotiate::{Agreed, Connection, Wanted};
pub(crate) use owners::Owners;
pub(crate) use serve::Server;
pub(crate) use threads::End;

/// Decodes `request` as the request loop does, for the fuzz target: any bytes give a request or an
/// error, none a panic.
///
/// `long_setxattr` is what INIT would have settled (`FUSE_SETXATTR_EXT`). Returns whether the
/// bytes were a request.
#[doc(hidden)]
pub fn decodes(request: &[u8], long_setxattr: bool) -> bool {
    let dialect = decode::Dialect { long_setxattr };
    match decode::Header::read(request).and_then(|header| header.operation(request, dialect)) {
        // A batch is decoded as it is walked.
        Ok(decode::Operation::BatchForget(nodes)) => nodes.count() > 0,
        Ok(_) => true,
        Err(decode::Malformed) => false,
    }
}
