//! `/containers/{id}/attach`.
//!
//! `docker run` attaches to a container before it starts it. So the pipes of a client wait here
//! until a start through this server takes them: then the monitor has them before the program runs,
//! and not a byte is missed. A start through another door is noticed, and all of them are attached
//! then.

use super::Server;
use super::hijack::{self, Client, Format};
use super::http::{Handled, Refusal, Request};
use super::logs::{self, Shown};
use super::wait::{Look, look};
use super::watch::Watch;
use crate::engine::attach::{self, Attached, Pipes};
use crate::engine::container::state::Status;
use crate::engine::error::{Context as _, Error};
use crate::engine::logs::{LogRequest, Logs};
use cowl_launch::control::StreamSet;
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::mpsc;

/// Most clients that wait for the start of one container: their descriptors go to the monitor in
/// one message.
const MOST: usize = 32;

/// The monitor's ends of the pipes of clients that wait for a start, by the container's id.
#[derive(Debug, Default)]
pub(super) struct Pending {
    waiting: Mutex<HashMap<String, Vec<Arc<Attached>>>>,
}

impl Pending {
    /// Takes those that wait for a container. Those with input are last: a program that waits for
    /// its input writes nothing before all are attached.
    pub(super) fn take(&self, id: &str) -> Vec<Arc<Attached>> {
        let mut clients = self.lock().remove(id).unwrap_or_default();
        clients.sort_by_key(|client| client.streams().stdin.is_some());
        clients
    }

    /// Adds one; false if there are too many.
    fn add(&self, id: &str, ends: &Arc<Attached>) -> bool {
        let mut waiting = self.lock();
        let clients = waiting.entry(id.to_owned()).or_default();
        if clients.len() >= MOST {
            return false;
        }
        clients.push(Arc::clone(ends));
        true
    }

    /// Takes one; none if a start has.
    fn remove(&self, id: &str, ends: &Weak<Attached>) -> Option<Arc<Attached>> {
        let mut waiting = self.lock();
        let clients = waiting.get_mut(id)?;
        let position = clients
            .iter()
            .position(|other| ends.ptr_eq(&Arc::downgrade(other)))?;
        let found = clients.swap_remove(position);
        if clients.is_empty() {
            waiting.remove(id);
        }
        Some(found)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Arc<Attached>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of [`Pending`]. It does not hold the pipes: they end with the program.
struct Place {
    server: Arc<Server>,
    id: String,
    ends: Weak<Attached>,
    changes: Watch,
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.server.pending.remove(&self.id, &self.ends));
    }
}

impl Place {
    /// Waits until the container runs, with these pipes attached; or it is gone, and they are
    /// closed.
    async fn wait(mut self) -> Handled<()> {
        loop {
            match look(&self.server, &self.id).await? {
                Look::Gone => return Ok(()),
                Look::Rests(_) | Look::Disposable(_) | Look::Restarts(_) | Look::Starts => {}
                Look::Runs => {
                    // Any are left only of a start through another door.
                    for ends in self.server.pending.take(&self.id) {
                        let attached = attach_now(&self.server, self.id.clone(), ends).await;
                        // One that is refused ends; the others go on.
                        attached.unwrap_or_default();
                    }
                    return Ok(());
                }
            }
            self.changes.state().await;
        }
    }
}

/// Attaches pipes to a container that runs.
async fn attach_now(server: &Arc<Server>, id: String, ends: Arc<Attached>) -> Handled<()> {
    server
        .engine(move |engine| engine.attach(&id, ends.streams()).map(drop))
        .await
}

/// Attaches pipes to a container, or has them wait for its start.
async fn attach_or_wait(
    server: &Arc<Server>,
    id: String,
    directory: &Path,
    runs: bool,
    ends: Attached,
) -> Handled<Option<Place>> {
    let ends = Arc::new(ends);
    // Before it is looked whether they wait, so that no start is missed.
    let changes = server
        .watches
        .watch(directory, false)
        .context(|| "watching the container")?;
    if runs {
        attach_now(server, id, ends).await?;
        return Ok(None);
    }
    if !server.pending.add(&id, &ends) {
        return Err(Refusal::invalid(format!(
            "{MOST} clients wait for the start of container {id} already"
        )));
    }
    Ok(Some(Place {
        server: Arc::clone(server),
        id,
        ends: Arc::downgrade(&ends),
        changes,
    }))
}

/// What a client asks for.
struct Asked {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    /// What the container does from now on.
    stream: bool,
    /// What it did before.
    logs: bool,
}

pub(super) async fn attach(server: &Arc<Server>, request: Request, name: String) -> Handled {
    let query = &request.query;
    let asked = Asked {
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        stream: query.flag("stream"),
        logs: query.flag("logs"),
    };
    if !asked.stdin && !asked.stdout && !asked.stderr {
        return Err(Refusal::invalid(
            "Either the stdin, stdout or stderr parameter must be set",
        ));
    }
    let (config, directory, status) = server
        .engine(move |engine| {
            let container = engine.container(&name)?;
            let status = container.status()?;
            if status == Status::Paused {
                return Err(Error::conflict(format!(
                    "container {name} is paused, unpause the container before attach"
                )));
            }
            let directory = engine.store().containers_path().join(&container.config.id);
            Ok((container.config, directory, status))
        })
        .await?;
    let terminal = config.config.tty;
    let format = Format::new(terminal, query.get("detachKeys"), asked.stdout)?;
    let streams = StreamSet {
        stdin: asked.stdin && config.config.open_stdin,
        // Always: its end is the end of the program.
        stdout: true,
        stderr: asked.stderr && !terminal,
    };
    let id = config.id;
    let logs = if asked.logs {
        let id = id.clone();
        let request = LogRequest::default();
        Some(
            server
                .engine(move |engine| engine.open_logs(&id, request))
                .await?,
        )
    } else {
        None
    };
    let (ends, pipes) = attach::pipes(streams)?;
    let place = if asked.stream {
        // One that is being started tells the wait when it runs. One that has just been created may
        // look so for a moment, while a process that another thread forks holds its lock.
        let runs = status == Status::Running;
        attach_or_wait(server, id, &directory, runs, ends).await?
    } else {
        // The pipes end at once.
        None
    };
    let reply = hijack::switching(request.wants_upgrade, terminal, request.version);
    tokio::spawn(async move {
        if let Ok(client) = Client::take(request.takeover).await {
            let shown = Shown {
                stdout: asked.stdout,
                stderr: asked.stderr,
                timestamps: false,
                details: false,
            };
            if let Some(logs) = logs {
                // An error is the end of a client that is gone.
                let told = tell_before(&client, logs, shown).await;
                told.unwrap_or_default();
            }
            serve(client, place, pipes, &format).await;
        }
    });
    Ok(reply)
}

/// Writes what a container has written before.
async fn tell_before(client: &Client, mut logs: Logs, shown: Shown) -> io::Result<()> {
    let (sender, mut chunks) = mpsc::channel(1);
    let read = tokio::task::spawn_blocking(move || {
        logs::send(&mut logs, shown, |bytes| {
            let sent = sender.blocking_send(bytes);
            sent.map_err(|_gone| io::ErrorKind::BrokenPipe.into())
        })
    });
    while let Some(bytes) = chunks.recv().await {
        client.write(&bytes).await?;
    }
    let read = read.await.map_err(io::Error::other)?;
    read.map(drop)
        .map_err(|error| io::Error::other(error.to_string()))
}

async fn serve(mut client: Client, place: Option<Place>, pipes: Pipes, format: &Format) {
    // Beside the client: while it waits for the start, it may leave.
    let waiting = async {
        if let Some(place) = place {
            // An error drops the pipes, which ends the stream.
            place.wait().await.unwrap_or_default();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _passed = client.pass(pipes, format) => {}
        () = waiting => {}
    }
    client.close().await;
}
