//! Memory that the threads of a load share out among them.

use parking_lot::{Condvar, Mutex};

/// Memory that is shared out. Who wants more than there is waits until it has all of it.
pub(super) struct Budget {
    size: u64,
    left: Mutex<u64>,
    given_back: Condvar,
}

/// A share of a [`Budget`], given back when it is dropped.
pub(super) struct Held<'b> {
    budget: &'b Budget,
    bytes: u64,
}

impl Budget {
    pub(super) fn new(size: u64) -> Self {
        Self {
            size,
            left: Mutex::new(size),
            given_back: Condvar::new(),
        }
    }

    pub(super) fn take(&self, bytes: u64) -> Held<'_> {
        let bytes = bytes.min(self.size);
        let mut left = self.left.lock();
        self.given_back.wait_while(&mut left, |left| *left < bytes);
        *left = left.saturating_sub(bytes);
        Held {
            budget: self,
            bytes,
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut left = self.budget.left.lock();
        *left = left.saturating_add(self.bytes);
        self.budget.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_gives_all_of_it_to_one_that_wants_more() {
        let budget = Budget::new(10);
        let (first, second) = (budget.take(4), budget.take(6));
        assert_eq!(*budget.left.lock(), 0);
        std::thread::scope(|scope| {
            let all = scope.spawn(|| drop(budget.take(u64::MAX)));
            drop((first, second));
            all.join().unwrap();
        });
        assert_eq!(*budget.left.lock(), 10);
    }
}
