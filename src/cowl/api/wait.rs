//! `wait`: the exit code of a container, also of one that another process started.
//!
//! The monitor writes `exit.json` into the container's directory, and a removal removes the
//! directory. Both are seen by [`super::watch`], so a wait costs no thread, outlives no client, and
//! works for a container that is not started yet.

use super::Server;
use super::http::Handled;
use super::watch::Watch;
use crate::engine::container::state::{Exit, Status};
use crate::engine::error::{Context as _, Kind};
use std::sync::Arc;

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
    changes: Watch,
    /// The container was seen running.
    ran: bool,
    /// The end that does not count.
    before: Option<Exit>,
    last: Option<Exit>,
}

/// What a look at the container gave.
pub(super) enum Look {
    Rests(Option<Exit>),
    /// It has ended, and `--rm` asks for its removal, which its monitor leaves to a command.
    Disposable(Exit),
    /// It has ended and waits for its restart.
    Restarts(Exit),
    /// It is being created or started: a change follows if it is started.
    Starts,
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
        // After the watch was set, so that no end is missed.
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
                    // Ended and removed between two looks: its events say how.
                    let told = server.engine(move |engine| engine.told_exit_code(&self.id));
                    return Ok(told.await?.unwrap_or_default());
                }
                (Look::Rests(exit), Condition::NotRunning) => return Ok(code(exit)),
                (Look::Disposable(exit), Condition::NotRunning) => return Ok(exit.exit_code),
                (Look::Disposable(exit), Condition::Removed) => {
                    self.last = Some(exit);
                    // That command may have been killed, or the monitor before it.
                    let id = self.id.clone();
                    server.engine(move |engine| engine.finish(&id)).await?;
                    continue;
                }
                // One that waits for its restart counts as running, but its end does not go unseen.
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

/// Looks at a container by its id.
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
                // A removal takes its records: without them it looks as if it had never run.
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
