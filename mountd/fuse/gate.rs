//! The gate that every request passes that may change a file: while it is closed, they wait.
//!
//! Invariant: when [`close`](ChangeGate::close) returns, no change is under way, and none begins as
//! long as [`is_closed`](Closed::is_closed) says so. Reads never pass it. A thread that waits here
//! serves no other request, so the gate opens by itself before more than [`MOST_WAITING`] do; and
//! requests that waited through one closing pass before the next.
//!
//! Pages that the kernel writes back do not pass it either: clients were told long ago that they
//! are written, and while a number of such requests waits, the kernel sends no READ.

use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::decode::Operation;
use super::files::open_flags;
use super::threads::MAX_THREADS;

/// Half of the threads are left for reads.
const MOST_WAITING: usize = MAX_THREADS / 2;
/// How often [`ChangeGate::close`] looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(500);

/// Whether a request passes the gate.
pub(super) fn is_change(operation: &Operation<'_>) -> bool {
    match operation {
        Operation::Write { from_cache, .. } => !from_cache,
        Operation::Open { flags, .. } => {
            let flags = open_flags(*flags, false);
            flags.write || flags.truncate
        }
        Operation::Setattr(_)
        | Operation::Symlink { .. }
        | Operation::Mknod { .. }
        | Operation::Mkdir { .. }
        | Operation::Unlink { .. }
        | Operation::Rmdir { .. }
        | Operation::Rename { .. }
        | Operation::Link { .. }
        | Operation::Create { .. }
        | Operation::Tmpfile { .. }
        | Operation::Setxattr { .. }
        | Operation::Removexattr { .. }
        | Operation::Fallocate { .. }
        | Operation::CopyFileRange(_) => true,
        Operation::Lookup { .. }
        | Operation::Forget { .. }
        | Operation::BatchForget(_)
        | Operation::Getattr
        | Operation::Readlink
        | Operation::Read { .. }
        | Operation::Release { .. }
        | Operation::Fsync { .. }
        | Operation::Fsyncdir { .. }
        | Operation::Syncfs
        | Operation::Statfs
        | Operation::Getxattr { .. }
        | Operation::Listxattr { .. }
        | Operation::Readdir { .. }
        | Operation::Lseek { .. }
        | Operation::Interrupt
        | Operation::Ioctl
        | Operation::Destroy
        | Operation::Unknown => false,
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct ChangeGate {
    state: Mutex<State>,
    opened: Condvar,
    /// The last change under way is done, or the last that waited has passed.
    settled: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_closed: bool,
    /// Changes under way.
    running: usize,
    waiting: usize,
}

/// A change that has passed the gate and is under way until this is dropped.
#[derive(Debug)]
pub(super) struct Change<'g>(&'g ChangeGate);

/// A gate that is closed until this is dropped.
#[derive(Debug)]
pub(crate) struct Closed<'g>(&'g ChangeGate);

impl ChangeGate {
    /// Passes, when it is open.
    pub(super) fn pass(&self) -> Change<'_> {
        let mut state = self.state.lock();
        if state.is_closed {
            self.wait(&mut state);
        }
        state.running += 1;
        Change(self)
    }

    fn wait(&self, state: &mut MutexGuard<'_, State>) {
        if state.waiting == MOST_WAITING {
            tracing::warn!(
                "so many clients wait to change files that they are held back no longer"
            );
            self.open(state);
            return;
        }
        state.waiting += 1;
        while state.is_closed {
            self.opened.wait(state);
        }
        state.waiting -= 1;
        if state.waiting == 0 {
            self.settled.notify_all();
        }
    }

    /// Closes it and waits until the changes under way are done. None: it has been opened
    /// meanwhile, or is not wanted any more. Only one thread closes it.
    pub(crate) fn close(&self, is_wanted: impl Fn() -> bool) -> Option<Closed<'_>> {
        let mut state = self.state.lock();
        while state.waiting > 0 {
            self.settled.wait(&mut state);
        }
        state.is_closed = true;
        while state.is_closed && state.running > 0 {
            let waited = self.settled.wait_for(&mut state, LOOK);
            if waited.timed_out() && !MutexGuard::unlocked(&mut state, &is_wanted) {
                self.open(&mut state);
            }
        }
        state.is_closed.then(|| Closed(self))
    }

    fn open(&self, state: &mut State) {
        state.is_closed = false;
        self.opened.notify_all();
        self.settled.notify_all();
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.running -= 1;
        if state.running == 0 && state.is_closed {
            self.0.settled.notify_all();
        }
    }
}

impl Closed<'_> {
    /// Whether it has been closed all the time.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.state.lock().is_closed
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        self.0.open(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread::scope;

    use super::*;

    fn waiting(gate: &ChangeGate, count: usize) {
        while gate.state.lock().waiting != count {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_change_waits_while_the_gate_is_closed() {
        let gate = ChangeGate::default();
        let closed = gate.close(|| true).unwrap();
        let (passed, passes) = channel();
        scope(|scope| {
            let change = scope.spawn(|| {
                let _change = gate.pass();
                passed.send(()).unwrap();
            });
            waiting(&gate, 1);
            assert!(passes.try_recv().is_err());
            assert!(closed.is_closed());
            drop(closed);
            passes.recv().unwrap();
            change.join().unwrap();
        });
    }

    #[test]
    fn close_waits_for_the_changes_under_way() {
        let gate = ChangeGate::default();
        let change = gate.pass();
        scope(|scope| {
            let closing = scope.spawn(|| gate.close(|| true).is_some());
            while !gate.state.lock().is_closed {
                std::thread::yield_now();
            }
            assert!(!closing.is_finished());
            drop(change);
            assert!(closing.join().unwrap());
        });
        assert!(!gate.state.lock().is_closed);
    }

    #[test]
    fn close_gives_up_when_it_is_not_wanted_any_more() {
        let gate = ChangeGate::default();
        let _change = gate.pass();
        assert!(gate.close(|| false).is_none());
        let _another = gate.pass();
    }

    #[test]
    fn the_gate_opens_before_every_thread_waits() {
        let gate = ChangeGate::default();
        let closed = gate.close(|| true).unwrap();
        scope(|scope| {
            for _ in 0..MOST_WAITING {
                scope.spawn(|| drop(gate.pass()));
            }
            waiting(&gate, MOST_WAITING);
            drop(gate.pass());
        });
        assert!(!closed.is_closed());
    }

    /// A second closing begins while clients of the first still wait to be woken.
    #[test]
    fn a_change_waits_for_one_closing_only() {
        let gate = ChangeGate::default();
        let mut closed = gate.close(|| true).unwrap();
        scope(|scope| {
            let change = scope.spawn(|| drop(gate.pass()));
            waiting(&gate, 1);
            for _ in 0..10 {
                drop(closed);
                closed = gate.close(|| true).unwrap();
            }
            change.join().unwrap();
        });
    }
}
