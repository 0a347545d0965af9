//! The threads that read requests from the FUSE connection and answer them.
//!
//! Invariants: while there are fewer than [`MAX_THREADS`], a request is read at once, however many
//! others wait for a disk: the thread that takes a request when no other waits starts one before
//! it answers. Nothing is guessed from what a request asks. A thread holds no lock between
//! requests. [`run`](Threads::run) returns when the connection has ended, after the last answer.
//!
//! A thread waits in read(2), so a request costs two calls beside its work: that, and the write of
//! the answer. The kernel wakes the one that has waited longest. So threads take turns, and while
//! one goes to sleep after its answer another is woken for the next request. Waiting in place for
//! it, with the same thread for each request, takes as long or twice as long, by how dear it is to
//! wake an idle processor.
//!
//! The thread that called `run` ends the threads that were not needed for a [`PAUSE`], and has the
//! others give back the memory of large requests. It wakes them by requests, for which it asks the
//! kernel ([`wake`](Threads::new)), since nothing else ends a read.
//!
//! At [`MAX_THREADS`] further requests wait until one is answered. A busy thread stands for a
//! client that waits, so a mount has about as many threads as clients that wait at once.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Builder, Scope};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::inbox::Inbox;
use super::reply::Reply;

/// Threads at the start, as many as stay: one answers while the other waits.
const THREADS: usize = 2;
/// Threads at most.
pub(super) const MAX_THREADS: usize = 512;
/// What was not needed for so long ends, or is given back.
const PAUSE: Duration = Duration::from_secs(1);

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
pub(super) struct Threads<'m, N, A, W> {
    device: BorrowedFd<'m>,
    /// Makes a thread's inbox.
    new_inbox: N,
    /// Answers a request.
    answer: A,
    /// Has a request sent that nobody waits for.
    wake: W,
    /// What dead workers had read and no thread has taken yet.
    left: Mutex<Vec<Inbox>>,
    pause: Duration,
    /// Threads that wait for a request, or are about to.
    waiting: AtomicUsize,
    /// The fewest that waited since the last pause.
    fewest_waiting: AtomicUsize,
    count: AtomicUsize,
    /// How many are to end.
    surplus: AtomicUsize,
    /// Threads that keep the memory of a large request.
    large: AtomicUsize,
    /// Pauses so far.
    pauses: AtomicUsize,
    /// Whether the last attempt to start a thread failed.
    refused: AtomicBool,
    progress: Mutex<Progress>,
    /// Something to do after a pause, or the end.
    changed: Condvar,
}

/// What the thread that called `run` waits for.
#[derive(Debug, Default)]
struct Progress {
    /// What the first thread that left the loop saw.
    end: Option<io::Result<End>>,
    /// Whether there are threads beyond [`THREADS`], or memory to give back.
    excess: bool,
}

impl<'m, N, A, W> Threads<'m, N, A, W>
where
    N: Fn() -> io::Result<Inbox> + Sync,
    A: Fn(&Inbox, &mut Reply) + Sync,
    W: Fn() -> io::Result<()> + Sync,
{
    /// Threads that have `answer` answer the requests in `left`, and then what comes over
    /// `device`, which blocks from here on. `wake` makes one come to which no answer is due.
    pub(super) fn new(
        device: BorrowedFd<'m>,
        left: Vec<Inbox>,
        new_inbox: N,
        answer: A,
        wake: W,
    ) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(device)?;
        rustix::fs::fcntl_setfl(device, flags - OFlags::NONBLOCK)?;
        Ok(Self {
            device,
            new_inbox,
            answer,
            wake,
            left: Mutex::new(left),
            pause: PAUSE,
            waiting: AtomicUsize::new(0),
            fewest_waiting: AtomicUsize::new(0),
            count: AtomicUsize::new(0),
            surplus: AtomicUsize::new(0),
            large: AtomicUsize::new(0),
            pauses: AtomicUsize::new(0),
            refused: AtomicBool::new(false),
            progress: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Runs until the connection ends. `started` is called once requests are being read.
    pub(super) fn run(&self, started: impl FnOnce() -> io::Result<()>) -> io::Result<End> {
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                self.start(scope)?;
            }
            started()?;
            self.shrink();
            Ok::<(), io::Error>(())
        })?;
        self.progress
            .lock()
            .end
            .take()
            .unwrap_or(Ok(End::Unmounted))
    }

    /// Ends threads and has memory given back that were not needed for a pause, until the
    /// connection ends.
    fn shrink(&self) {
        let mut progress = self.progress.lock();
        while progress.end.is_none() {
            if !progress.excess {
                self.changed.wait(&mut progress);
                continue;
            }
            self.changed.wait_for(&mut progress, self.pause);
            if progress.end.is_some() {
                return;
            }
            let count = self.count.load(Ordering::Relaxed);
            let large = self.large.load(Ordering::Relaxed);
            progress.excess = count > THREADS || large > 0;
            drop(progress);
            self.end_pause(count, large);
            progress = self.progress.lock();
        }
    }

    /// Wakes the threads that are to end or to give memory back, of `count`.
    fn end_pause(&self, count: usize, large: usize) {
        self.pauses.fetch_add(1, Ordering::Relaxed);
        let waiting = self.waiting.load(Ordering::Relaxed);
        let fewest = self.fewest_waiting.swap(waiting, Ordering::Relaxed);
        let surplus = fewest.saturating_sub(1).min(count.saturating_sub(THREADS));
        self.surplus.store(surplus, Ordering::Relaxed);
        let to_wake = if large > 0 { waiting } else { surplus };
        for _ in 0..to_wake {
            if let Err(error) = (self.wake)() {
                tracing::warn!(%error, "threads and memory that are not needed stay a while");
                return;
            }
        }
    }

    /// Has [`shrink`](Self::shrink) look after a pause.
    fn note_excess(&self) {
        let mut progress = self.progress.lock();
        if !progress.excess {
            progress.excess = true;
            self.changed.notify_one();
        }
    }

    /// Starts a thread, which counts as waiting from here on.
    fn start<'s>(&'s self, scope: &'s Scope<'s, '_>) -> io::Result<()> {
        let inbox = (self.new_inbox)()?;
        let reply = Reply::new()?;
        self.count.fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let started = Builder::new()
            .name("fuse".to_owned())
            .spawn_scoped(scope, move || self.serve(scope, inbox, reply));
        if let Err(error) = started {
            self.count.fetch_sub(1, Ordering::Relaxed);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(error);
        }
        Ok(())
    }

    /// One thread's life.
    fn serve<'s>(&'s self, scope: &'s Scope<'s, '_>, mut inbox: Inbox, mut reply: Reply) {
        // At how many pauses memory was found to be large.
        let mut large_since = None;
        loop {
            if let Err(end) = self.next(&mut inbox) {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                self.progress.lock().end.get_or_insert(end);
                self.changed.notify_one();
                break;
            }
            self.take(scope);
            (self.answer)(&inbox, &mut reply);
            inbox.clear();
            if self.is_one_too_many() {
                break;
            }
            self.look_after_memory(&mut large_since, &mut inbox, &mut reply);
            self.waiting.fetch_add(1, Ordering::Relaxed);
        }
        if large_since.is_some() {
            self.large.fetch_sub(1, Ordering::Relaxed);
        }
        // There are slots for so many threads, so it goes before another may start.
        drop(inbox);
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    /// Waits for a request and reads it.
    fn next(&self, inbox: &mut Inbox) -> Result<(), io::Result<End>> {
        let left = self.left.lock().pop();
        if let Some(left) = left {
            *inbox = left;
            return Ok(());
        }
        loop {
            if let Some(length) = receive(self.device, inbox.room())? {
                inbox.fill(length);
                return Ok(());
            }
        }
    }

    /// Counts this thread as busy. If no other thread waits, starts one.
    fn take<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        let others = self.waiting.fetch_sub(1, Ordering::Relaxed) - 1;
        if others < self.fewest_waiting.load(Ordering::Relaxed) {
            self.fewest_waiting.fetch_min(others, Ordering::Relaxed);
        }
        if others > 0 || self.count.load(Ordering::Relaxed) >= MAX_THREADS {
            return;
        }
        let started = self.start(scope);
        let again = self.refused.swap(started.is_err(), Ordering::Relaxed);
        match started {
            Ok(()) => self.note_excess(),
            Err(error) if !again => {
                tracing::warn!(%error, "no further thread; requests wait for those under way");
            }
            Err(_) => {}
        }
    }

    /// Whether this thread, which is busy, is to end.
    fn is_one_too_many(&self) -> bool {
        if self.surplus.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let one_less = |surplus: usize| surplus.checked_sub(1);
        self.surplus
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
            .is_ok()
    }

    /// Gives memory back that was large for a whole pause. `since`: at how many pauses it was
    /// found to be.
    fn look_after_memory(&self, since: &mut Option<usize>, inbox: &mut Inbox, reply: &mut Reply) {
        if !inbox.is_large() && !reply.buffer().is_large() {
            return;
        }
        let now = self.pauses.load(Ordering::Relaxed);
        match *since {
            None => {
                *since = Some(now);
                self.large.fetch_add(1, Ordering::Relaxed);
                self.note_excess();
            }
            // The pause that was under way then is the first.
            Some(then) if now < then + 2 => {}
            Some(_) => {
                *since = None;
                self.large.fetch_sub(1, Ordering::Relaxed);
                let freed = inbox.give_back().and_then(|()| reply.buffer().give_back());
                if let Err(error) = freed {
                    tracing::warn!(%error, "the memory of a large request is kept");
                }
            }
        }
    }
}

/// The length of a request; none if there is none (it was withdrawn); or the connection's end.
fn receive(device: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<usize>, io::Result<End>> {
    match rustix::io::read(device, &mut *buffer) {
        Ok(0) => Err(Err(io::ErrorKind::UnexpectedEof.into())),
        Ok(length) => Ok(Some(length)),
        Err(Errno::NOENT | Errno::INTR) => Ok(None),
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
