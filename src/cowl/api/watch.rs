//! Waits for changes of containers' directories and for clients that close their connections.
//!
//! One inotify(7) descriptor serves all waits, since a user may have only 128
//! (`fs.inotify.max_user_instances`). A wait costs no thread.

use rustix::fs::inotify;
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// Events that may change a container's state: records and sockets are created and removed, its
/// directory is removed, a dead monitor's locks are released (closing).
const STATE: inotify::WatchFlags = inotify::WatchFlags::CREATE
    .union(inotify::WatchFlags::MOVED_TO)
    .union(inotify::WatchFlags::CLOSE_WRITE)
    .union(inotify::WatchFlags::MOVE_SELF)
    .union(inotify::WatchFlags::DELETE_SELF);
/// The log has grown or has been rotated.
const LOG: inotify::WatchFlags = inotify::WatchFlags::MODIFY;

/// The watched directories.
#[derive(Debug)]
pub(super) struct Watches {
    inotify: Arc<OwnedFd>,
    table: Arc<Mutex<Table>>,
}

type Table = HashMap<i32, Watched>;

/// A watched directory. Each channel counts changes.
#[derive(Debug)]
struct Watched {
    watches: usize,
    state: watch::Sender<u64>,
    log: watch::Sender<u64>,
}

/// A directory that is watched until this is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    descriptor: i32,
    inotify: Arc<OwnedFd>,
    table: Arc<Mutex<Table>>,
    state: watch::Receiver<u64>,
    log: watch::Receiver<u64>,
}

impl Watches {
    /// Starts the task that reads the changes; the runtime must run.
    pub(super) fn new() -> io::Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags)?;
        let table = Arc::new(Mutex::new(Table::new()));
        let reader = poll(inotify.try_clone()?, Interest::READABLE)?;
        let inotify = Arc::new(inotify);
        tokio::spawn(read(reader, Arc::clone(&table)));
        Ok(Self { inotify, table })
    }

    /// Watches a container's directory: sees every change from now on, and with `with_log` those of
    /// the log.
    pub(super) fn watch(&self, directory: &Path, with_log: bool) -> io::Result<Watch> {
        let mut table = lock(&self.table);
        // Add to the flags of other watches of this directory.
        let mut flags = STATE | inotify::WatchFlags::MASK_ADD | inotify::WatchFlags::ONLYDIR;
        flags.set(LOG, with_log);
        let descriptor = inotify::add_watch(&self.inotify, directory, flags)?;
        let watched = table.entry(descriptor).or_insert_with(|| Watched {
            watches: 0,
            state: watch::Sender::new(0),
            log: watch::Sender::new(0),
        });
        watched.watches += 1;
        Ok(Watch {
            descriptor,
            inotify: Arc::clone(&self.inotify),
            table: Arc::clone(&self.table),
            state: watched.state.subscribe(),
            log: watched.log.subscribe(),
        })
    }
}

impl Watch {
    /// Waits until the container's state may have changed.
    pub(super) async fn state(&mut self) {
        // The sender is in the table as long as `self` exists.
        self.state.changed().await.unwrap_or_default();
    }

    /// Waits until its log or its state may have changed.
    pub(super) async fn log(&mut self) {
        tokio::select! {
            changed = self.log.changed() => changed.unwrap_or_default(),
            changed = self.state.changed() => changed.unwrap_or_default(),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        if let Some(watched) = table.get_mut(&self.descriptor) {
            watched.watches -= 1;
            if watched.watches == 0 {
                table.remove(&self.descriptor);
                // EINVAL: the directory is gone, and its watch with it.
                inotify::remove_watch(&self.inotify, self.descriptor).unwrap_or_default();
            }
        }
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    // The counters are valid even after a panic.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read(inotify: AsyncFd<OwnedFd>, table: Arc<Mutex<Table>>) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    loop {
        let Ok(mut ready) = inotify.readable().await else {
            return;
        };
        let mut reader = inotify::Reader::new(inotify.as_fd(), &mut buffer);
        // EAGAIN: all events are read.
        while let Ok(event) = reader.next() {
            let table = lock(&table);
            let notify = |watched: &Watched| {
                if event.events().contains(inotify::ReadFlags::MODIFY) {
                    watched.log.send_modify(|changes| *changes += 1);
                } else {
                    watched.state.send_modify(|changes| *changes += 1);
                }
            };
            if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                // The queue overflowed: wake all waits.
                table.values().for_each(notify);
            } else if let Some(watched) = table.get(&event.wd()) {
                notify(watched);
            }
        }
        ready.clear_ready();
    }
}

/// Registers a descriptor with the runtime.
#[expect(
    deprecated,
    reason = "AsyncFd's replacement is unsafe for what may not own its descriptor; an OwnedFd does"
)]
pub(super) fn poll(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, interest)
}

/// A client's connection, to notice when the client closes it.
#[derive(Debug)]
pub(super) struct Peer(AsyncFd<OwnedFd>);

impl Peer {
    /// Watches a connection through a duplicate descriptor.
    pub(super) fn of(connection: &impl AsFd) -> io::Result<Self> {
        let connection = connection.as_fd().try_clone_to_owned()?;
        // Urgent data, which is never sent, and what epoll(7) always reports: both halves closed.
        poll(connection, Interest::PRIORITY).map(Self)
    }

    /// Waits until the client has closed the connection, not only its sending half.
    pub(super) async fn gone(&self) {
        while let Ok(mut ready) = self.0.ready(Interest::PRIORITY).await {
            if ready.ready().is_read_closed() {
                return;
            }
            ready.clear_ready();
        }
    }
}
