//! The kernel's side of a mount: the FUSE protocol, read and answered by our own loop.
//!
//! `negotiate` leaves INIT to `fuser`; from then on the threads of `threads` read requests into a
//! `buffer` and `serve` answers them: `decode` says what is asked, `dispatch` has the overlay do
//! it, `reply` writes the answer, and `backing` hands host files to the kernel. The worker sets it
//! up.
//!
//! Invariant: no struct of the kernel leaves this module, and no rule of the filesystem enters it.
//! Any bytes read from the connection are answered or logged, never a panic.
//!
//! | request | answer |
//! |---|---|
//! | OPEN in the cached mode; OPENDIR, FLUSH, POLL, INTERRUPT and other codes | ENOSYS, after which the kernel sends no more |
//! | LSEEK under the writeback cache | the same: what the kernel has not written yet would be taken for a hole |
//! | STATX | the same: it would add the birth time, which no tree has, to what GETATTR says |
//! | IOCTL | ENOTTY: no file here is a terminal, and none has flags or extents of its own to show |
//! | entries, attributes, absent names | valid for good: nobody else changes the mount |

mod backing;
mod buffer;
mod decode;
mod dispatch;
mod negotiate;
mod opcode;
mod reply;
mod serve;
mod threads;
mod wire;

pub(crate) use backing::probe as probe_backing;
pub(crate) use dispatch::Dispatcher;
pub(crate) use negotiate::Connection;
pub use opcode::name as request_name;
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
