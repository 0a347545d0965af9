//! `wait`: the exit code of a container, whichever process started it.
//!
//! The monitor writes `exit.json` into the container's directory, and a removal deletes the
//! directory. [`super::watch`] sees both, so a wait costs no thread, ends with its client and works
//! for a container that is not started yet.

use super::Server;
use super::http::Handled;
use super::watch::Watch;
use crate::engine::container::state::{Exit, Status};
use crate::engine::error::{Context as _, Kind};
use std::sync::Arc;

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// It does not run, which may be true at once.
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

/// A wait, which sees every end since its creation.
#[derive(Debug)]
pub(super) struct Wait {
    id: String,
    condition: Condition,
    changes: Watch,
    /// The container was seen running.
    ran: bool,
    /// The previous end, which does not count.
    before: Option<Exit>,
    last: Option<Exit>,
}

/// A container's state, as far as a wait needs it.
pub(super) enum Look {
    Rests(Option<Exit>),
    /// It has ended and `--rm` is set: the command that its monitor runs removes it.
    Disposable(Exit),
    /// It has ended and is to be restarted.
    Restarts(Exit),
    /// It is being created or started; a start causes another change.
    Starts,
    Runs,
    Gone,
}

impl Wait {
    /// Begins a wait for a container by name or id.
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
        let changes = server
            .watches
            .watch(&directory, false)
            .context(|| "watching the container")?;
        let mut wait = Self {
            id,
            condition,
            changes,
            ran: false,
            before: None,
            last: None,
        };
        // After the watch is set, so that no end is missed.
        if condition == Condition::NextExit {
            wait.before = match look(server, &wait.id).await? {
                Look::Rests(exit) => exit,
                Look::Restarts(exit) | Look::Disposable(exit) => Some(exit),
                Look::Starts | Look::Runs | Look::Gone => None,
            };
        }
        Ok(wait)
    }

    /// Waits, and returns the exit code: 0 if the container never ran.
    pub(super) async fn end(mut self, server: &Arc<Server>) -> Handled<u8> {
        let code = |exit: Option<Exit>| exit.map_or(0, |exit| exit.exit_code);
        loop {
            match (look(server, &self.id).await?, self.condition) {
                (Look::Gone, _) if self.last.is_some() => return Ok(code(self.last)),
                (Look::Gone, _) => {
                    // It ended and was removed between two checks: its events have the exit code.
                    let told = server.engine(move |engine| engine.told_exit_code(&self.id));
                    return Ok(told.await?.unwrap_or_default());
                }
                (Look::Rests(exit), Condition::NotRunning) => return Ok(code(exit)),
                (Look::Disposable(exit), Condition::NotRunning) => return Ok(exit.exit_code),
                (Look::Disposable(exit), Condition::Removed) => {
                    self.last = Some(exit);
                    // That command, or the monitor before it ran it, may have been killed.
                    let id = self.id.clone();
                    server.engine(move |engine| engine.finish(&id)).await?;
                    continue;
                }
                // A container to be restarted counts as running, but an end that was waited for
                // counts.
                (Look::Restarts(exit), Condition::NotRunning) if self.ran => {
                    return Ok(exit.exit_code);
                }
                (
                    Look::Rests(Some(exit)) | Look::Restarts(exit) | Look::Disposable(exit),
                    Condition::NextExit,
                ) if self.before.as_ref() != Some(&exit) => {
                    return Ok(exit.exit_code);
                }
                (Look::Rests(exit), _) => self.last = exit.or(self.last),
                (Look::Restarts(exit) | Look::Disposable(exit), _) => self.last = Some(exit),
                (Look::Starts | Look::Runs, _) => self.ran = true,
            }
            self.changes.state().await;
        }
    }
}

/// Reads a container's state by its id.
pub(super) async fn look(server: &Arc<Server>, id: &str) -> Handled<Look> {
    let id = id.to_owned();
    server
        .engine(move |engine| {
            let container = match engine.container(&id) {
                Err(error) if error.kind() == Kind::NotFound => return Ok(Look::Gone),
                other => other?,
            };
            let status = container.status()?;
            if status == Status::Created(None) && engine.is_gone(&id)? {
                // A removal deletes its records; without them it looks as if it had never run.
                return Ok(Look::Gone);
            }
            let disposable = container.is_disposable(&status);
            Ok(match status {
                Status::Exited(exit) | Status::Created(Some(exit)) if disposable => {
                    Look::Disposable(exit)
                }
                Status::Exited(exit) => Look::Rests(Some(exit)),
                Status::Restarting(exit) => Look::Restarts(exit),
                Status::Created(exit) => Look::Rests(exit),
                Status::Starting => Look::Starts,
                Status::Running | Status::Paused => Look::Runs,
            })
        })
        .await
}
