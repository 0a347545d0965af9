//! What the monitor waits for: descriptors, each under a key of its own.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

/// Names a descriptor that is waited for. It is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(u64);

/// See the module.
#[derive(Debug)]
pub(super) struct Poller {
    epoll: OwnedFd,
    next: u64,
}

impl Poller {
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            next: 0,
        })
    }

    /// None for a file that can't be waited for, as it is always ready.
    pub(super) fn add(
        &mut self,
        descriptor: BorrowedFd<'_>,
        flags: EventFlags,
    ) -> Result<Option<Key>, Errno> {
        let key = self.next;
        self.next += 1;
        match epoll::add(&self.epoll, descriptor, EventData::new_u64(key), flags) {
            Ok(()) => Ok(Some(Key(key))),
            Err(Errno::PERM) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn modify(
        &mut self,
        key: Key,
        descriptor: BorrowedFd<'_>,
        flags: EventFlags,
    ) -> Result<(), Errno> {
        epoll::modify(&self.epoll, descriptor, EventData::new_u64(key.0), flags)
    }

    pub(super) fn remove(&mut self, _key: Key, descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
        epoll::delete(&self.epoll, descriptor)
    }

    /// Watches a descriptor for input, or no longer; `key` is none while it is not watched.
    pub(super) fn wait_for_input(
        &mut self,
        wanted: bool,
        key: &mut Option<Key>,
        descriptor: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        match (wanted, *key) {
            (true, None) => *key = self.add(descriptor, EventFlags::IN)?,
            (false, Some(held)) => {
                self.remove(held, descriptor)?;
                *key = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
        Ok(())
    }

    /// Waits until something is ready or the time is over.
    pub(super) fn wait(&mut self, limit: Option<Duration>) -> Result<Vec<Key>, Errno> {
        let limit = limit.map(|limit| rustix::time::Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        });
        let mut ready = Vec::with_capacity(16);
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut ready),
            limit.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        let key = |event: &epoll::Event| Key(event.data.u64());
        Ok(ready.iter().map(key).collect())
    }
}
