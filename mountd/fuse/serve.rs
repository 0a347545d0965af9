//! Requests, answered: from the bytes of one to the bytes of its answer.
//!
//! Invariant: a request is answered exactly once, also when answering it panics (EIO).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::Errno;

use super::decode::{Dialect, Header, Malformed};
use super::dispatch::{Answer, Dispatcher};
use super::negotiate::{Connection, MAX_WRITE};
use super::reply::Reply;
use super::resent::Resent;
use super::threads::{End, Threads};
use crate::counters::Counters;
use crate::journal::{Journal, Request};

/// A request's greatest length: the longest write and its headers, which the kernel asks room for
/// (one page is plenty).
const REQUEST: usize = MAX_WRITE as usize + 4096;

/// Serves one connection.
#[derive(Debug)]
pub(crate) struct Server<'m> {
    device: BorrowedFd<'m>,
    dialect: Dialect,
    dispatcher: Dispatcher<'m>,
    counters: &'m Counters,
    /// Where requests are noted for a successor.
    journal: Option<&'m Journal>,
}

impl<'m> Server<'m> {
    /// A server of `connection`.
    pub(crate) fn new(
        connection: &'m Connection,
        dispatcher: Dispatcher<'m>,
        counters: &'m Counters,
        journal: Option<&'m Journal>,
    ) -> Self {
        Self {
            device: connection.as_fd(),
            dialect: connection.dialect(),
            dispatcher,
            counters,
            journal,
        }
    }

    /// Serves until the connection ends. `started` is called once requests are being read.
    pub(crate) fn run(&self, started: impl FnOnce() -> io::Result<()>) -> io::Result<End> {
        let answer = |request: &[u8], reply: &mut Reply| self.handle(request, reply);
        Threads::new(self.device, REQUEST, answer)?.run(started)
    }

    fn handle(&self, request: &[u8], reply: &mut Reply) {
        let Ok(header) = Header::read(request) else {
            tracing::error!(length = request.len(), "a request without a header");
            return;
        };
        self.counters.count(header.opcode);
        reply.clear();
        // Dropped once the kernel has the answer.
        let noted = self
            .journal
            .map(|journal| journal.begin(header.first_unique(), header.is_resent()));
        if noted.as_ref().is_some_and(Request::is_fatal) {
            tracing::error!(
                opcode = header.opcode,
                node = header.node,
                "a request that workers died of is answered with EIO"
            );
            return self.send(&header, reply, Err(Errno::IO));
        }
        let intent = noted.as_ref().and_then(Request::intent);
        let resent = header.is_resent().then_some(Resent { intent });
        let outcome = match unpanicked(|| self.answer(&header, request, resent, reply)) {
            Ok(Answer::Reply) => Ok(()),
            Ok(Answer::Silence) => return,
            Err(errno) => Err(errno),
        };
        self.send(&header, reply, outcome);
    }

    fn send(&self, header: &Header, reply: &mut Reply, outcome: Result<(), Errno>) {
        match reply.send(self.device, header.unique, outcome) {
            Ok(()) => {}
            // The connection was aborted meanwhile: no client waits for this answer.
            Err(error)
                if error.raw_os_error() == Some(libc::ENOENT)
                    || error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => {
                tracing::error!(opcode = header.opcode, node = header.node, %error, "the kernel refuses an answer");
                if let Err(error) = reply.send(self.device, header.unique, Err(Errno::IO)) {
                    tracing::error!(opcode = header.opcode, %error, "nor does it take an error");
                }
            }
        }
    }

    fn answer(
        &self,
        header: &Header,
        request: &[u8],
        resent: Option<Resent>,
        reply: &mut Reply,
    ) -> Result<Answer, Errno> {
        let malformed = |Malformed| {
            tracing::error!(
                opcode = header.opcode,
                length = request.len(),
                "a malformed request"
            );
            Errno::INVAL
        };
        let operation = header.operation(request, self.dialect).map_err(malformed)?;
        if let Some(resent) = resent
            && self.dispatcher.is_done(header, &operation, resent, reply)?
        {
            return Ok(Answer::Reply);
        }
        self.dispatcher.dispatch(header, operation, reply)
    }
}

/// What `answer` answers; EIO if it panics, of which the panic hook has written what and where.
fn unpanicked(answer: impl FnOnce() -> Result<Answer, Errno>) -> Result<Answer, Errno> {
    catch_unwind(AssertUnwindSafe(answer)).unwrap_or_else(|_payload| {
        tracing::error!("a request panicked and is answered with EIO");
        Err(Errno::IO)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_in_a_request_is_answered_with_eio() {
        assert_eq!(unpanicked(|| Ok(Answer::Silence)), Ok(Answer::Silence));
        assert_eq!(unpanicked(|| Err(Errno::NOENT)), Err(Errno::NOENT));
        assert_eq!(unpanicked(|| panic!("one bad request")), Err(Errno::IO));
    }
}
