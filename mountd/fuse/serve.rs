//! The request loop: threads that read requests from the connection and answer them.
//!
//! Two threads to begin with. One that takes up work that may last (copying a file up, waiting for a disk) first makes sure that another
//! one is waiting for requests, so a `stat` is never behind it in a queue; threads beyond what the load needs end again.
//!
//! The first thread gets every request it is free for. The kernel wakes threads that wait in read(2) in turn, each of them on a processor
//! where it ran last and whose caches know nothing of what the others just did; who waits by an exclusive epoll keeps its place at the head
//! of that queue, and is passed over while it is at work.
//!
//! Invariants: a request is answered exactly once, also when answering it panics (EIO); a thread that serves holds no lock between
//! requests; [`run`](Server::run) returns when the connection is gone, after the last answer.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, Scope};

use memmap2::MmapMut;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::io::Errno;

use super::decode::{Dialect, Header, Malformed};
use super::dispatch::{Answer, Dispatcher};
use super::negotiate::{Connection, MAX_WRITE};
use super::reply::Reply;
use crate::counters::Counters;

/// Threads at the start: one works while the other waits.
const THREADS: usize = 2;
/// Waiting threads that are kept once there are more. Above [`THREADS`], so that a steady load doesn't start and end threads all the time.
const KEEP_WAITING: usize = 4;
/// Threads at most: as many clients can wait for a disk at once before a `stat` waits too.
const MAX_THREADS: usize = 64;
/// A request's greatest length: the longest write and its headers, which the kernel asks room for (one page is plenty).
const REQUEST: usize = MAX_WRITE as usize + 4096;

/// How the connection came to its end.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// The last mount of it is gone.
    Unmounted,
    /// Somebody cut it (`/sys/fs/fuse/connections/N/abort`, or `umount -f`).
    Aborted,
}

/// Serves one connection.
#[derive(Debug)]
pub(crate) struct Server<'m> {
    device: BorrowedFd<'m>,
    dialect: Dialect,
    dispatcher: Dispatcher<'m>,
    counters: &'m Counters,
    /// Threads that wait for a request, or are about to.
    waiting: AtomicUsize,
    threads: AtomicUsize,
    /// What the first thread that left the loop saw.
    end: Mutex<Option<io::Result<End>>>,
}

impl<'m> Server<'m> {
    /// A server of `connection`.
    pub(crate) fn new(
        connection: &'m Connection,
        dispatcher: Dispatcher<'m>,
        counters: &'m Counters,
    ) -> Self {
        Self {
            device: connection.as_fd(),
            dialect: connection.dialect,
            dispatcher,
            counters,
            waiting: AtomicUsize::new(0),
            threads: AtomicUsize::new(0),
            end: Mutex::new(None),
        }
    }

    /// Serves until the connection ends. `started` is called once requests are being read.
    pub(crate) fn run(&self, started: impl FnOnce() -> io::Result<()>) -> io::Result<End> {
        let first = Precedence::over(self.device)?;
        std::thread::scope(|scope| {
            self.start_thread(scope, Some(first))?;
            for _ in 1..THREADS {
                self.grow(scope);
            }
            started()
        })?;
        self.end.lock().take().unwrap_or(Ok(End::Unmounted))
    }

    fn start_thread<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        first: Option<Precedence>,
    ) -> io::Result<()> {
        // As with the reply: mapped, so that what no request fills is no memory.
        let request = MmapMut::map_anon(REQUEST)?;
        let reply = Reply::new()?;
        let number = self.threads.fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let started =
            Builder::new()
                .name(format!("fuse-{number}"))
                .spawn_scoped(scope, move || {
                    self.serve(scope, first.as_ref(), request, reply);
                });
        if let Err(error) = started {
            self.threads.fetch_sub(1, Ordering::Relaxed);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(error);
        }
        Ok(())
    }

    fn grow<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        if let Err(error) = self.start_thread(scope, None) {
            tracing::warn!(%error, "no further thread; requests may have to wait for the others");
        }
    }

    /// One thread's life. It counts as waiting when it comes here.
    fn serve<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        first: Option<&Precedence>,
        mut request: MmapMut,
        mut reply: Reply,
    ) {
        loop {
            if let Some(first) = first {
                first.wait();
            }
            let received = receive(self.device, &mut request);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            match received {
                Ok(Some(length)) => {
                    self.handle(scope, request.get(..length).unwrap_or_default(), &mut reply);
                }
                Ok(None) => {}
                Err(end) => {
                    self.end.lock().get_or_insert(end);
                    break;
                }
            }
            let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
            if waiting >= KEEP_WAITING && first.is_none() {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                break;
            }
        }
        self.threads.fetch_sub(1, Ordering::Relaxed);
    }

    fn handle<'s>(&'s self, scope: &'s Scope<'s, '_>, request: &[u8], reply: &mut Reply) {
        let Ok(header) = Header::read(request) else {
            tracing::error!(length = request.len(), "a request without a header");
            return;
        };
        self.counters.count(header.opcode);
        reply.clear();
        let outcome = match unpanicked(|| self.answer(scope, &header, request, reply)) {
            Ok(Answer::Reply) => Ok(()),
            Ok(Answer::Silence) => return,
            Err(errno) => Err(errno),
        };
        match reply.send(self.device, header.unique, outcome) {
            Ok(()) => {}
            // The connection was cut while we worked: nobody waits for this answer.
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

    fn answer<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        header: &Header,
        request: &[u8],
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
        if operation.may_take_long()
            && self.waiting.load(Ordering::Relaxed) == 0
            && self.threads.load(Ordering::Relaxed) < MAX_THREADS
        {
            self.grow(scope);
        }
        self.dispatcher.dispatch(header, operation, reply)
    }
}

/// The first place among the threads that wait for requests.
#[derive(Debug)]
struct Precedence(OwnedFd);

impl Precedence {
    /// Before anybody waits: who comes later stands behind.
    fn over(device: BorrowedFd<'_>) -> io::Result<Self> {
        let queue = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let how = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
        epoll::add(&queue, device, epoll::EventData::new_u64(0), how)?;
        Ok(Self(queue))
    }

    /// Waits until there is a request or the connection's end. Another thread may still take the request first.
    fn wait(&self) {
        let mut event = [MaybeUninit::uninit()];
        match epoll::wait(&self.0, &mut event, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => tracing::warn!(%error, "the first thread waits in turn with the others"),
        }
    }
}

/// What `answer` answers; EIO if it panics, of which the panic hook has written what and where.
fn unpanicked(answer: impl FnOnce() -> Result<Answer, Errno>) -> Result<Answer, Errno> {
    catch_unwind(AssertUnwindSafe(answer)).unwrap_or_else(|_payload| {
        tracing::error!("a request panicked and is answered with EIO");
        Err(Errno::IO)
    })
}

/// One request, or none (it was withdrawn), or the connection's end.
fn receive(device: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<usize>, io::Result<End>> {
    match rustix::io::read(device.as_fd(), &mut *buffer) {
        Ok(length) => Ok(Some(length)),
        Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => Ok(None),
        Err(Errno::NODEV) => Err(Ok(End::Unmounted)),
        Err(Errno::CONNABORTED) => Err(end_of(device, buffer)),
        Err(errno) => Err(Err(errno.into())),
    }
}

/// How the connection ended. Whoever is just taking up a request is told that it was cut, also when it was unmounted (fuse_dev_do_read in
/// fs/fuse/dev.c); who asks once the end is complete gets the truth.
fn end_of(device: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<End> {
    // No event is asked for: what is reported is the end alone.
    let mut ended = [PollFd::from_borrowed_fd(device, PollFlags::empty())];
    rustix::io::retry_on_intr(|| poll(&mut ended, None))?;
    match rustix::io::read(device, buffer) {
        Err(Errno::NODEV) => Ok(End::Unmounted),
        Err(Errno::CONNABORTED) => Ok(End::Aborted),
        Err(errno) => Err(errno.into()),
        Ok(_) => Err(io::Error::other(
            "a connection that has ended gives requests",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_input_output_error_of_one_request() {
        assert_eq!(unpanicked(|| Ok(Answer::Silence)), Ok(Answer::Silence));
        assert_eq!(unpanicked(|| Err(Errno::NOENT)), Err(Errno::NOENT));
        assert_eq!(unpanicked(|| panic!("one bad request")), Err(Errno::IO));
    }
}
