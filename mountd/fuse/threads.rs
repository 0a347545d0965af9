//! The threads that read requests from the FUSE connection and answer them.
//!
//! Invariants: while there are fewer than [`MAX_THREADS`], a request is read at once, however many
//! others wait for a disk: the thread that takes a request when no other waits starts one before
//! it answers. Nothing is guessed from what a request asks. A thread holds no lock between
//! requests. [`run`](Threads::run) returns when the connection has ended, after the last answer.
//!
//! Each thread waits in an exclusive epoll of its own, which keeps its place in the kernel's wait
//! queue: the first idle thread gets the request, with its caches warm; the last ones stay idle
//! and end. (Threads that block in read(2) are woken in turn.) The device is non-blocking, so a
//! thread that lost a request to another waits again.
//!
//! At [`MAX_THREADS`] further requests wait until one is answered. A busy thread stands for a
//! client that waits, so a mount has about as many threads as clients that wait at once.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Builder, Scope};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::inbox::Inbox;
use super::reply::Reply;

/// Threads at the start, which stay: one answers while the other waits.
const THREADS: usize = 2;
/// Threads at most.
pub(super) const MAX_THREADS: usize = 512;
/// Without a request for so long, a thread beyond [`THREADS`] ends, and the others give back the
/// memory of large requests.
const PAUSE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// How the connection ended.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// The last mount of it is gone.
    Unmounted,
    /// It was aborted (`/sys/fs/fuse/connections/N/abort`, or `umount -f`).
    Aborted,
}

/// The threads of one connection.
#[derive(Debug)]
pub(super) struct Threads<'m, N, A> {
    device: BorrowedFd<'m>,
    /// Makes a thread's inbox.
    new_inbox: N,
    /// Answers a request.
    answer: A,
    /// What dead workers had read and no thread has taken yet.
    left: Mutex<Vec<Inbox>>,
    pause: Timespec,
    /// Threads that wait for a request, or are about to.
    waiting: AtomicUsize,
    count: AtomicUsize,
    /// Whether the last attempt to start a thread failed.
    refused: AtomicBool,
    /// What the first thread that left the loop saw.
    end: Mutex<Option<io::Result<End>>>,
}

impl<'m, N, A> Threads<'m, N, A>
where
    N: Fn() -> io::Result<Inbox> + Sync,
    A: Fn(&Inbox, &mut Reply) + Sync,
{
    /// Threads that have `answer` answer the requests in `left`, and then what comes over
    /// `device`, which no longer blocks from here on.
    pub(super) fn new(
        device: BorrowedFd<'m>,
        left: Vec<Inbox>,
        new_inbox: N,
        answer: A,
    ) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(device)?;
        rustix::fs::fcntl_setfl(device, flags | OFlags::NONBLOCK)?;
        Ok(Self {
            device,
            new_inbox,
            answer,
            left: Mutex::new(left),
            pause: PAUSE,
            waiting: AtomicUsize::new(0),
            count: AtomicUsize::new(0),
            refused: AtomicBool::new(false),
            end: Mutex::new(None),
        })
    }

    /// Runs until the connection ends. `started` is called once requests are being read.
    pub(super) fn run(&self, started: impl FnOnce() -> io::Result<()>) -> io::Result<End> {
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                self.start(scope, Stay::ForGood)?;
            }
            started()
        })?;
        self.end.lock().take().unwrap_or(Ok(End::Unmounted))
    }

    /// Starts a thread, which counts as waiting from here on.
    fn start<'s>(&'s self, scope: &'s Scope<'s, '_>, stay: Stay) -> io::Result<()> {
        let inbox = (self.new_inbox)()?;
        let reply = Reply::new()?;
        let place = Place::behind_all(self.device, stay);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let started = Builder::new()
            .name("fuse".to_owned())
            .spawn_scoped(scope, move || self.serve(scope, &place, inbox, reply));
        if let Err(error) = started {
            self.count.fetch_sub(1, Ordering::Relaxed);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(error);
        }
        Ok(())
    }

    /// One thread's life.
    fn serve<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        place: &Place,
        mut inbox: Inbox,
        mut reply: Reply,
    ) {
        loop {
            match self.next(place, &mut inbox, &mut reply) {
                Ok(true) => {
                    self.take(scope);
                    (self.answer)(&inbox, &mut reply);
                    inbox.clear();
                    self.waiting.fetch_add(1, Ordering::Relaxed);
                }
                // One too many, and no longer counted as waiting.
                Ok(false) => break,
                Err(end) => {
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    self.end.lock().get_or_insert(end);
                    break;
                }
            }
        }
        // There are slots for so many threads, so it goes before another may start.
        drop(inbox);
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    /// Waits for a request and reads it; `false` if this thread is to end.
    fn next(
        &self,
        place: &Place,
        inbox: &mut Inbox,
        reply: &mut Reply,
    ) -> Result<bool, io::Result<End>> {
        let left = self.left.lock().pop();
        if let Some(left) = left {
            *inbox = left;
            return Ok(true);
        }
        loop {
            let large = inbox.is_large() || reply.buffer().is_large();
            let patience = (large || place.stay == Stay::WhileNeeded).then_some(&self.pause);
            let came = place.wait(self.device, patience);
            if came.map_err(|errno| Err(errno.into()))? {
                if let Some(length) = receive(self.device, inbox.room())? {
                    inbox.fill(length);
                    return Ok(true);
                }
            } else if place.stay == Stay::WhileNeeded && self.may_end() {
                return Ok(false);
            } else if let Err(error) = inbox.give_back().and_then(|()| reply.buffer().give_back()) {
                tracing::warn!(%error, "the memory of a large request is kept");
            }
        }
    }

    /// Takes this thread off the waiting ones, unless too few would be left.
    fn may_end(&self) -> bool {
        let fewer = |waiting| (waiting > THREADS).then(|| waiting - 1);
        self.waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer)
            .is_ok()
    }

    /// Counts this thread as busy. If no other thread waits, starts one.
    fn take<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        let others = self.waiting.fetch_sub(1, Ordering::Relaxed) - 1;
        if others > 0 || self.count.load(Ordering::Relaxed) >= MAX_THREADS {
            return;
        }
        let refused = self.start(scope, Stay::WhileNeeded);
        let again = self.refused.swap(refused.is_err(), Ordering::Relaxed);
        if let (Err(error), false) = (refused, again) {
            tracing::warn!(%error, "no further thread; requests wait for those under way");
        }
    }
}

/// How long a thread stays.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Stay {
    ForGood,
    WhileNeeded,
}

/// A thread's place in the queue of those that wait for requests.
#[derive(Debug)]
struct Place {
    /// None where half of the descriptors are in use: the rest is for what requests open. The
    /// thread is then woken together with others.
    queue: Option<OwnedFd>,
    stay: Stay,
}

impl Place {
    /// The last place.
    fn behind_all(device: BorrowedFd<'_>, stay: Stay) -> Self {
        let queue = epoll::create(epoll::CreateFlags::CLOEXEC).and_then(|queue| {
            let how = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
            epoll::add(&queue, device, epoll::EventData::new_u64(0), how)?;
            Ok(queue)
        });
        let room = getrlimit(Resource::Nofile).current.map(|limit| limit / 2);
        let leaves_room = |queue: &OwnedFd| {
            let number = u64::try_from(queue.as_raw_fd());
            room.is_none_or(|room| number.is_ok_and(|number| number < room))
        };
        Self {
            queue: queue.ok().filter(leaves_room),
            stay,
        }
    }

    /// Waits until there is a request, which another thread may take first, or the connection's
    /// end. `false`: neither came in time.
    fn wait(&self, device: BorrowedFd<'_>, patience: Option<&Timespec>) -> Result<bool, Errno> {
        let events = match &self.queue {
            Some(queue) => epoll::wait(queue, &mut [MaybeUninit::uninit()], patience)
                .map(|(events, _)| events.len()),
            None => poll(
                &mut [PollFd::from_borrowed_fd(device, PollFlags::IN)],
                patience,
            ),
        };
        match events {
            Ok(events) => Ok(events > 0),
            Err(Errno::INTR) => Ok(true),
            Err(errno) => Err(errno),
        }
    }
}

/// The length of a request; none if there is none (another thread has it, or it was withdrawn); or
/// the connection's end.
fn receive(device: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<usize>, io::Result<End>> {
    match rustix::io::read(device, &mut *buffer) {
        Ok(0) => Err(Err(io::ErrorKind::UnexpectedEof.into())),
        Ok(length) => Ok(Some(length)),
        Err(Errno::AGAIN | Errno::NOENT | Errno::INTR) => Ok(None),
        Err(Errno::NODEV) => Err(Ok(End::Unmounted)),
        Err(Errno::CONNABORTED) => Err(end_of(device, buffer)),
        Err(errno) => Err(Err(errno.into())),
    }
}

/// How the connection ended. A thread that is just taking a request up is told that it was cut,
/// also when it was unmounted (fuse_dev_do_read in fs/fuse/dev.c); once the end is complete, a
/// read tells the truth.
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
mod tests;
