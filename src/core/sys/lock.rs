//! Waiting for a flock(2), with a way to end the wait.

use std::os::fd::OwnedFd;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, Result, fcntl_dupfd_cloexec, retry_on_intr};
use rustix::pipe::{PipeFlags, pipe_with};

/// Waits for a lock on an open file; `how` is [`FlockOperation::LockShared`] or
/// [`FlockOperation::LockExclusive`].
///
/// The wait ends with EINTR as soon as `interrupt` is readable. The caller then closes the file,
/// and with it gives up a lock that may still be granted.
///
/// # Errors
/// EINTR after an interrupt, else what the host says.
pub fn lock(file: impl AsFd, how: FlockOperation, interrupt: Option<BorrowedFd<'_>>) -> Result<()> {
    let Some(interrupt) = interrupt else {
        return retry_on_intr(|| flock(&file, how));
    };
    let at_once = match how {
        FlockOperation::LockShared => FlockOperation::NonBlockingLockShared,
        FlockOperation::LockExclusive => FlockOperation::NonBlockingLockExclusive,
        _ => return Err(Errno::INVAL),
    };
    match flock(&file, at_once) {
        Err(Errno::WOULDBLOCK) => wait(file.as_fd(), how, interrupt),
        other => other,
    }
}

/// No system call waits for a lock and a descriptor, so a thread waits for the lock. An interrupt
/// leaves the thread behind: it holds a duplicate of the file, and closes it when the lock is
/// granted.
fn wait(file: BorrowedFd<'_>, how: FlockOperation, interrupt: BorrowedFd<'_>) -> Result<()> {
    let (done, waiting) = pipe_with(PipeFlags::CLOEXEC)?;
    let own = fcntl_dupfd_cloexec(file, 0)?;
    let thread = thread::Builder::new()
        .name("lock".to_owned())
        .spawn(move || {
            // Closed in this order, so that the lock is the caller's alone when the pipe says so.
            let (_waiting, own): (OwnedFd, OwnedFd) = (waiting, own);
            retry_on_intr(|| flock(&own, how))
        })
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
    loop {
        let mut events = [
            PollFd::new(&done, PollFlags::IN),
            PollFd::from_borrowed_fd(interrupt, PollFlags::IN),
        ];
        retry_on_intr(|| poll(&mut events, None))?;
        let [done, interrupt] = events;
        if !done.revents().is_empty() {
            return thread.join().unwrap_or(Err(Errno::CANCELED));
        }
        if !interrupt.revents().is_empty() {
            return Err(Errno::INTR);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::fs::File;

    fn opened(path: &std::path::Path) -> File {
        File::open(path).unwrap()
    }

    fn is_locked(path: &std::path::Path) -> bool {
        flock(opened(path), FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
    }

    #[test]
    fn lock_is_granted_when_its_holder_releases_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let never = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let holder = opened(file.path());
        flock(&holder, FlockOperation::LockExclusive).unwrap();
        let waiter = opened(file.path());
        thread::scope(|scope| {
            let waiting =
                scope.spawn(|| lock(&waiter, FlockOperation::LockExclusive, Some(never.as_fd())));
            drop(holder);
            waiting.join().unwrap().unwrap();
        });
        assert!(is_locked(file.path()));
        drop(waiter);
        assert!(!is_locked(file.path()), "the thread has left no duplicate");
    }

    #[test]
    fn an_interrupt_ends_the_wait_and_releases_a_later_grant() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let interrupt = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let holder = opened(file.path());
        flock(&holder, FlockOperation::LockExclusive).unwrap();
        rustix::io::write(&interrupt, &1_u64.to_ne_bytes()).unwrap();
        let waiter = opened(file.path());
        let waited = lock(&waiter, FlockOperation::LockShared, Some(interrupt.as_fd()));
        assert_eq!(waited, Err(Errno::INTR));
        drop((waiter, holder));
        // The thread may be granted the lock for a moment; it lets go at once.
        retry_on_intr(|| flock(opened(file.path()), FlockOperation::LockExclusive)).unwrap();
        // A lock that is free is taken whatever the interrupt says. That of the file above may not
        // be: the lock that was just taken may have come before the thread's.
        let file = tempfile::NamedTempFile::new().unwrap();
        let free = opened(file.path());
        lock(
            &free,
            FlockOperation::LockExclusive,
            Some(interrupt.as_fd()),
        )
        .unwrap();
        assert!(is_locked(file.path()));
    }
}
