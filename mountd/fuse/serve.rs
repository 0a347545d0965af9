//! Requests, answered: from the bytes of one to the bytes of its answer.
//!
//! Invariant: a request is answered exactly once, also when answering it panics (EIO).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cowl_sys::opcode;
use rustix::io::Errno;

use super::decode::{Dialect, Header, Malformed};
use super::dispatch::{Answer, Dispatcher};
use super::gate::{ChangeGate, is_change};
use super::inbox::Inbox;
use super::negotiate::{Connection, MAX_WRITE};
use super::notify;
use super::reply::{self, Reply};
use super::threads::{End, MAX_THREADS, Threads};
use super::unanswered::Unanswered;
use crate::counters::Counters;
use crate::journal::{Journal, LONGEST_REQUEST, SLOTS, Slot};

/// A request's greatest length: the longest write and its headers, which the kernel asks room for
/// (one page is plenty).
const REQUEST: usize = MAX_WRITE as usize + 4096;
const _: () = assert!(REQUEST <= LONGEST_REQUEST);
// While there are requests that dead workers left, of each thread one at most, no other is read;
// and a thread has a slot of its own before it takes one of those.
const _: () = assert!(2 * MAX_THREADS <= SLOTS);

/// Serves one connection.
#[derive(Debug)]
pub(crate) struct Server<'m> {
    device: BorrowedFd<'m>,
    dialect: Dialect,
    dispatcher: Dispatcher<'m>,
    counters: &'m Counters,
    /// Where requests are read to for a successor.
    journal: Option<&'m Arc<Journal>>,
    gate: Arc<ChangeGate>,
}

impl<'m> Server<'m> {
    /// A server of `connection`.
    pub(crate) fn new(
        connection: &'m Connection,
        dispatcher: Dispatcher<'m>,
        counters: &'m Counters,
        journal: Option<&'m Arc<Journal>>,
    ) -> Self {
        Self {
            device: connection.as_fd(),
            dialect: connection.dialect(),
            dispatcher,
            counters,
            journal,
            gate: Arc::default(),
        }
    }

    /// What its changes pass.
    pub(crate) fn gate(&self) -> Arc<ChangeGate> {
        Arc::clone(&self.gate)
    }

    /// Serves until the connection ends. `started` is called once requests are being read.
    pub(crate) fn run(&self, started: impl FnOnce() -> io::Result<()>) -> io::Result<End> {
        let left = self.left_requests()?;
        let new_inbox = || match self.journal {
            Some(journal) => journal.free_slot().map(Inbox::journaled),
            None => Inbox::private(REQUEST),
        };
        let answer = |inbox: &Inbox, reply: &mut Reply| self.handle(inbox, reply);
        let wake = || notify::wake(self.device);
        Threads::new(self.device, left, new_inbox, answer, wake)?.run(started)
    }

    /// What dead workers had read and not answered.
    fn left_requests(&self) -> io::Result<Vec<Inbox>> {
        let mut left = Vec::new();
        let Some(journal) = self.journal.filter(|journal| journal.is_inherited()) else {
            return Ok(left);
        };
        for slot in journal.left_slots()? {
            match Inbox::left(slot) {
                Ok((inbox, header)) if reply::is_awaited(self.device, header.unique)? => {
                    left.push(inbox);
                }
                // The kernel has the answer, or none is due.
                Ok(_) => {}
                Err(Malformed) => tracing::error!("a dead worker left no request that can be read"),
            }
        }
        Ok(left)
    }

    fn handle(&self, inbox: &Inbox, reply: &mut Reply) {
        let request = inbox.request();
        let Ok(header) = Header::read(request) else {
            tracing::error!(length = request.len(), "a request without a header");
            return;
        };
        if header.opcode == opcode::NOTIFY_REPLY {
            // Of [`notify::wake`].
            return;
        }
        self.counters.count(header.opcode);
        reply.clear();
        let slot = inbox.slot();
        if slot.is_some_and(Slot::is_fatal) {
            tracing::error!(
                opcode = header.opcode,
                node = header.node,
                "a request that workers died of is answered with EIO"
            );
            return self.send(&header, reply, Err(Errno::IO));
        }
        let unanswered = inbox.is_left().then(|| Unanswered {
            intent: slot.and_then(Slot::intent),
        });
        let outcome = match unpanicked(|| self.answer(&header, request, unanswered, reply)) {
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
        unanswered: Option<Unanswered>,
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
        let _change = is_change(&operation).then(|| self.gate.pass());
        if let Some(unanswered) = unanswered
            && self
                .dispatcher
                .is_done(header, &operation, unanswered, reply)?
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
