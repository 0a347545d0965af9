//! Descriptors run out where many requests are answered at a time, each with some of its own. One
//! that finds none waits for others to end, and is tried again: a request that fails changes
//! nothing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

/// How long to wait for another request's end, so many times: half a second in all.
const PATIENCE: Duration = Duration::from_millis(25);
const TRIES: usize = 20;

/// The requests that wait for descriptors.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    waiting: AtomicUsize,
    /// Requests that ended while others waited.
    ended: Mutex<u64>,
    end: Condvar,
}

impl Shortage {
    /// Has `answer` answer a request. `close_kept` closes what is open only to be used again, and
    /// keeps it closed while its result lives.
    pub(super) fn outlast<K>(
        &self,
        mut answer: impl FnMut() -> Result<(), Errno>,
        close_kept: impl FnOnce() -> K,
    ) -> Result<(), Errno> {
        let mut outcome = answer();
        if is_short(outcome) {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let _nothing_kept = close_kept();
            for _ in 0..TRIES {
                let seen = *self.ended.lock();
                outcome = answer();
                if !is_short(outcome) {
                    break;
                }
                let mut ended = self.ended.lock();
                if *ended == seen {
                    self.end.wait_for(&mut ended, PATIENCE);
                }
            }
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        if self.waiting.load(Ordering::SeqCst) > 0 {
            *self.ended.lock() += 1;
            self.end.notify_all();
        }
        outcome
    }
}

fn is_short(outcome: Result<(), Errno>) -> bool {
    matches!(outcome, Err(Errno::MFILE | Errno::NFILE))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::thread;

    use super::*;

    #[test]
    fn a_request_without_descriptors_waits_for_another_to_end() {
        let shortage = Shortage::default();
        let free = AtomicUsize::new(0);
        thread::scope(|scope| {
            let starved = scope.spawn(|| {
                let answer = || match free.load(Ordering::SeqCst) {
                    0 => Err(Errno::MFILE),
                    _ => Ok(()),
                };
                shortage.outlast(answer, || ())
            });
            while shortage.waiting.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            let other = || {
                free.store(1, Ordering::SeqCst);
                Ok(())
            };
            assert_eq!(shortage.outlast(other, || ()), Ok(()));
            assert_eq!(starved.join().unwrap(), Ok(()));
        });
        assert_eq!(shortage.waiting.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_request_that_alone_finds_no_descriptors_fails() {
        let shortage = Shortage::default();
        let (tried, closed) = (Cell::new(0), Cell::new(0));
        let answer = || {
            tried.set(tried.get() + 1);
            Err(Errno::NFILE)
        };
        let outcome = shortage.outlast(answer, || closed.set(closed.get() + 1));
        assert_eq!(outcome, Err(Errno::NFILE));
        assert_eq!((tried.get(), closed.get()), (TRIES + 1, 1));
    }
}
