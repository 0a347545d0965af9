//! The kernel's side of a mount: the FUSE protocol, read and answered by our own loop.
//!
//! `negotiate` leaves INIT to `fuser`; from then on `serve`'s threads read requests, `decode` says what is asked, `dispatch` has the
//! overlay do it, `reply` writes the answer, and `backing` hands host files to the kernel. The worker sets it up.
//!
//! Invariant: no struct of the kernel leaves this room, and no rule of the filesystem enters it. Any bytes read from the connection are
//! answered or logged, never a panic.
//!
//! | request | answer |
//! |---|---|
//! | OPEN in the cached profile; OPENDIR, FLUSH, STATX, POLL, INTERRUPT, ACCESS and other codes | ENOSYS once, after which the kernel sends no more |
//! | STATX | an inode's birth time is in no tree, and answering it costs a request for each `stat` that asks |
//! | entries, attributes, absent names | valid for good: nobody else changes the mount |

mod backing;
mod decode;
mod dispatch;
mod negotiate;
mod reply;
mod serve;
mod wire;

pub(crate) use backing::probe as may_back;
pub(crate) use dispatch::Dispatcher;
pub(crate) use negotiate::Connection;
pub(crate) use serve::{End, Server};
pub use wire::opcode::name as request_name;
