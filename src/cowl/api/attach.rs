//! `/containers/{id}/attach`.
//!
//! `docker run` attaches to a container before it starts it. So a client's pipes are kept here
//! until a start through this server takes them: the monitor then has them before the program runs,
//! and no output is lost. A start by another process is noticed, and the pipes are attached then.

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

/// Most clients that may wait for the start of one container: their descriptors go to the monitor
/// in one message.
const MAX_PENDING: usize = 32;

/// The monitor's ends of the pipes of clients that wait for a start, by the container's id.
#[derive(Debug, Default)]
pub(super) struct Pending {
    waiting: Mutex<HashMap<String, Vec<Arc<Attached>>>>,
}

impl Pending {
    /// Takes the pipes waiting for a container. Those with input come last: a program that waits
    /// for its input then writes nothing before all are attached.
    pub(super) fn take(&self, id: &str) -> Vec<Arc<Attached>> {
        let mut clients = self.lock().remove(id).unwrap_or_default();
        clients.sort_by_key(|client| client.streams().stdin.is_some());
        clients
    }

    /// Adds a client's pipes; false if there are too many.
    fn add(&self, id: &str, ends: &Arc<Attached>) -> bool {
        let mut waiting = self.lock();
        let clients = waiting.entry(id.to_owned()).or_default();
        if clients.len() >= MAX_PENDING {
            return false;
        }
        clients.push(Arc::clone(ends));
        true
    }

    /// Takes a client's pipes; None if a start has taken them.
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

/// An entry of [`Pending`]. It does not hold the pipes: they end with the program.
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
    /// Waits until the container runs with these pipes attached, or has been removed and they are
    /// closed.
    async fn wait(mut self) -> Handled<()> {
        loop {
            match look(&self.server, &self.id).await? {
                Look::Gone => return Ok(()),
                Look::Rests(_) | Look::Disposable(_) | Look::Restarts(_) | Look::Starts => {}
                Look::Runs => {
                    // Some are left only after a start by another process.
                    for ends in self.server.pending.take(&self.id) {
                        let attached = attach_now(&self.server, self.id.clone(), ends).await;
                        // If one is refused, only that one ends.
                        attached.unwrap_or_default();
                    }
                    return Ok(());
                }
            }
            self.changes.state().await;
        }
    }
}

/// Attaches pipes to a running container.
async fn attach_now(server: &Arc<Server>, id: String, ends: Arc<Attached>) -> Handled<()> {
    server
        .engine(move |engine| engine.attach(&id, ends.streams()).map(drop))
        .await
}

/// Attaches pipes to a container, or keeps them until its start.
async fn attach_or_wait(
    server: &Arc<Server>,
    id: String,
    directory: &Path,
    runs: bool,
    ends: Attached,
) -> Handled<Option<Place>> {
    let ends = Arc::new(ends);
    // Watch before the check, so that no start is missed.
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
            "{MAX_PENDING} clients wait for the start of container {id} already"
        )));
    }
    Ok(Some(Place {
        server: Arc::clone(server),
        id,
        ends: Arc::downgrade(&ends),
        changes,
    }))
}

/// A client's parameters.
struct Parameters {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    /// Send output from now on.
    stream: bool,
    /// Send the output so far.
    logs: bool,
}

pub(super) async fn attach(server: &Arc<Server>, request: Request, name: String) -> Handled {
    let query = &request.query;
    let asked = Parameters {
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
        // Always attached: its end is the end of the program.
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
        // The wait notices when a starting container runs. A container just created may look as if
        // it were starting, while a process forked by another thread holds its lock.
        let runs = status == Status::Running;
        attach_or_wait(server, id, &directory, runs, ends).await?
    } else {
        // Close the pipes at once.
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
                // An error means that the client is gone.
                let written = write_output_so_far(&client, logs, shown).await;
                written.unwrap_or_default();
            }
            serve(client, place, pipes, &format).await;
        }
    });
    Ok(reply)
}

/// Writes a container's output so far.
async fn write_output_so_far(client: &Client, mut logs: Logs, shown: Shown) -> io::Result<()> {
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
    // Concurrent with serving the client, which may leave while it waits for the start.
    let waiting = async {
        if let Some(place) = place {
            // An error drops the pipes, which ends the stream.
            place.wait().await.unwrap_or_default();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _end = client.copy(pipes, format) => {}
        () = waiting => {}
    }
    client.close().await;
}
