//! `wait`: the exit code of a container, whoever started it and however it ends.
//!
//! The monitor writes `exit.json` into the container's directory, and a removal removes the
//! directory. Both are seen by inotify(7), so a wait costs no thread, outlives no client, and works
//! for a container that is not started yet.

use super::Server;
use super::http::Handled;
use crate::engine::container::state::Exit;
use crate::engine::container::state::Status;
use crate::engine::error::{Context as _, Error, Kind, Result};
use rustix::fs::inotify;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// It does not run; true at once for one at rest.
    NotRunning,
    /// Its next end.
    NextExit,
    /// It is removed.
    Removed,
}

impl Condition {
    pub(super) fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("not-running") => Some(Self::NotRunning),
            Some("next-exit") => Some(Self::NextExit),
            Some("removed") => Some(Self::Removed),
            Some(_) => None,
        }
    }
}

/// A wait that has begun: it sees every end from now on.
#[derive(Debug)]
pub(super) struct Wait {
    id: String,
    condition: Condition,
    changes: Receiver,
    /// The container was seen running.
    ran: bool,
    /// The end that does not count.
    before: Option<Exit>,
    last: Option<Exit>,
}

/// What a look at the container gave.
enum Look {
    Rests(Option<Exit>),
    /// It has ended and waits for its restart.
    Restarts(Exit),
    Runs,
    Gone,
}

impl Wait {
    /// Begins to wait for a container by its name or id.
    pub(super) async fn begin(
        server: &Arc<Server>,
        needle: String,
        condition: Condition,
    ) -> Handled<Self> {
        let (id, directory) = server
            .engine(move |engine| {
                let id = engine.container(&needle)?.config.id;
                let directory = engine.store().containers_path().join(&id);
                Ok((id, directory))
            })
            .await?;
        let changes = watch(directory).context(|| "watching the container")?;
        let mut wait = Self {
            id,
            condition,
            changes,
            ran: false,
            before: None,
            last: None,
        };
        // After the watch was set, so that no end is missed.
        if condition == Condition::NextExit {
            wait.before = match wait.look(server).await? {
                Look::Rests(exit) => exit,
                Look::Restarts(exit) => Some(exit),
                Look::Runs | Look::Gone => None,
            };
        }
        Ok(wait)
    }

    /// Waits, and gives the exit: none if the container never ran.
    pub(super) async fn end(mut self, server: &Arc<Server>) -> Handled<Option<Exit>> {
        loop {
            match (self.look(server).await?, self.condition) {
                (Look::Gone, _) => return Ok(self.last),
                (Look::Rests(exit), Condition::NotRunning) => return Ok(exit),
                // One that waits for its restart counts as running, but its end does not go unseen.
                (Look::Restarts(exit), Condition::NotRunning) if self.ran => return Ok(Some(exit)),
                (Look::Rests(Some(exit)) | Look::Restarts(exit), Condition::NextExit)
                    if self.before.as_ref() != Some(&exit) =>
                {
                    return Ok(Some(exit));
                }
                (Look::Rests(exit), _) => self.last = exit.or(self.last),
                (Look::Restarts(exit), _) => self.last = Some(exit),
                (Look::Runs, _) => self.ran = true,
            }
            self.change().await.map_err(Error::from)?;
        }
    }

    async fn look(&self, server: &Arc<Server>) -> Handled<Look> {
        let id = self.id.clone();
        server
            .engine(move |engine| {
                let container = match engine.container(&id) {
                    Err(error) if error.kind() == Kind::NotFound => return Ok(Look::Gone),
                    other => other?,
                };
                Ok(match container.status()? {
                    Status::Exited(exit) => Look::Rests(Some(exit)),
                    Status::Restarting(exit) => Look::Restarts(exit),
                    Status::Created(exit) => Look::Rests(exit),
                    Status::Starting | Status::Running | Status::Paused => Look::Runs,
                })
            })
            .await
    }

    /// Waits until something happened in the directory, and forgets what.
    async fn change(&mut self) -> io::Result<()> {
        let mut events = [0; 4096];
        self.changes.read(&mut events).await.map(drop)
    }
}

/// Watches a directory. An inotify descriptor is read as a pipe is, which the runtime can.
fn watch(directory: PathBuf) -> Result<Receiver> {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let changes = inotify::init(flags)?;
    // Closing: the kernel's release of a dead monitor's locks.
    let events = inotify::WatchFlags::CREATE
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::CLOSE_WRITE
        | inotify::WatchFlags::MOVE_SELF
        | inotify::WatchFlags::DELETE_SELF
        | inotify::WatchFlags::ONLYDIR;
    inotify::add_watch(&changes, directory, events)?;
    Ok(Receiver::from_owned_fd_unchecked(changes)?)
}
