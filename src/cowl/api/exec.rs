//! `/containers/{id}/exec` and `/exec/{id}`: programs in a running container.
//!
//! A client creates an exec, starts it over a connection of its own and asks for its exit code. The
//! container's monitor keeps the exec's configuration and result, so another server can continue
//! when this one is killed.

use super::Server;
use super::hijack::{self, Client, CopyEnd, Format};
use super::http::{self, Handled, Refusal, Request};
use super::life;
use super::watch;
use crate::engine::attach;
use crate::engine::container::state::Status;
use crate::engine::docker::or_default;
use crate::engine::error::Error;
use crate::engine::exec::{Exec as Program, ExecRequest};
use crate::engine::execs::KnownExec;
use cowl_launch::control::{ExecPhase, StreamSet};
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;

/// The exit code that Docker reports for an exec that could not be started for another reason.
const NOT_STARTED: u8 = 126;
/// The monitor's exit code for such an exec.
const ENGINE_ERROR: u8 = 125;
/// How often, and how long apart, a resize polls whether the exec runs: for ten seconds, as dockerd
/// waits.
const RESIZE_POLLS: u32 = 1000;
const RESIZE_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Body of `/containers/{id}/exec`.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Create {
    #[serde(deserialize_with = "or_default")]
    user: String,
    #[serde(deserialize_with = "or_default")]
    privileged: bool,
    #[serde(deserialize_with = "or_default")]
    tty: bool,
    console_size: Option<(u16, u16)>,
    #[serde(deserialize_with = "or_default")]
    attach_stdin: bool,
    #[serde(deserialize_with = "or_default")]
    attach_stdout: bool,
    #[serde(deserialize_with = "or_default")]
    attach_stderr: bool,
    #[serde(deserialize_with = "or_default")]
    detach_keys: String,
    #[serde(deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    working_dir: String,
    #[serde(deserialize_with = "or_default")]
    cmd: Vec<String>,
}

/// Body of `/exec/{id}/start`. The exec's creation says whether there is a terminal.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Start {
    #[serde(default)]
    detach: bool,
    console_size: Option<(u16, u16)>,
}

impl Create {
    fn request(&self, size: Option<(u16, u16)>, has_client: bool) -> ExecRequest {
        let given = |text: &String| (!text.is_empty()).then(|| text.clone());
        ExecRequest {
            argv: self.cmd.clone(),
            env: self.env.clone(),
            working_dir: given(&self.working_dir),
            user: given(&self.user),
            terminal: self
                .tty
                .then(|| size.or(self.console_size).unwrap_or_default()),
            privileged: self.privileged,
            open_stdin: has_client && self.attach_stdin,
        }
    }
}

/// The client's request; empty for a program that was not created through the API.
fn asked_of(known: &KnownExec) -> Handled<Create> {
    match &known.description {
        None => Ok(Create::default()),
        Some(description) => Ok(serde_json::from_slice(description).map_err(Error::from)?),
    }
}

/// An exec that is being started.
struct Starting {
    id: String,
    container: String,
    request: ExecRequest,
}

impl Starting {
    /// Starts the exec with these streams.
    async fn start(self, server: &Arc<Server>, ends: Option<attach::Attached>) -> Handled<Program> {
        server
            .engine(move |engine| {
                let streams = ends
                    .as_ref()
                    .map_or(attach::NONE, attach::Attached::streams);
                engine.exec(&self.container, &self.id, &self.request, streams)
            })
            .await
    }
}

/// Waits for the end of a program, so that its event is written.
async fn end(program: Program) {
    let answer = program.as_fd().try_clone_to_owned();
    let answer = answer.and_then(|answer| watch::poll(answer, Interest::READABLE));
    let code = match answer {
        Ok(answer) => {
            let answered = answer.readable().await.map(drop);
            answered.map_err(Error::from).and_then(|()| program.wait())
        }
        // If no descriptor is left, wait in a thread.
        Err(_error) => tokio::task::spawn_blocking(move || program.wait())
            .await
            .unwrap_or(Ok(0)),
    };
    // The monitor keeps the exit code for clients.
    code.map(drop).unwrap_or_default();
}

pub(super) async fn create(server: &Arc<Server>, request: Request, name: String) -> Handled {
    let asked: Create = http::json_body(request.body).await?;
    if asked.cmd.is_empty() {
        return Err(Refusal::invalid("No exec command specified"));
    }
    if !asked.detach_keys.is_empty() {
        Format::new(asked.tty, Some(&asked.detach_keys), true)?;
    }
    let container = require_running(server, name).await?;
    let description = serde_json::to_vec(&asked).map_err(Error::from)?;
    let id = server
        .engine(move |engine| {
            engine.reserve_exec(&container, &asked.request(None, true), &description)
        })
        .await?;
    http::json(StatusCode::CREATED, &json!({ "Id": id }))
}

/// The id of a container that is running and not paused.
async fn require_running(server: &Arc<Server>, name: String) -> Handled<String> {
    server
        .engine(move |engine| {
            let container = engine.container(&name)?;
            let id = container.config.id.clone();
            match container.status()? {
                Status::Running => Ok(id),
                Status::Paused => Err(Error::conflict(format!(
                    "Container {id} is paused, unpause the container before exec"
                ))),
                _ => Err(Error::conflict(format!("container {id} is not running"))),
            }
        })
        .await
}

pub(super) async fn start(server: &Arc<Server>, request: Request, id: &str) -> Handled {
    let body: Start = http::json_body(request.body).await?;
    let id = id.to_owned();
    let known = {
        let id = id.clone();
        server
            .engine(move |engine| engine.check_startable(&id))
            .await?
    };
    require_running(server, known.container.clone()).await?;
    let asked = asked_of(&known)?;
    let starting = Starting {
        id,
        container: known.container,
        request: asked.request(body.console_size, !body.detach),
    };
    if body.detach {
        let program = starting.start(server, None).await?;
        tokio::spawn(end(program));
        return Ok(http::empty(StatusCode::OK));
    }
    let keys = Some(asked.detach_keys.as_str()).filter(|keys| !keys.is_empty());
    let format = Format::new(asked.tty, keys, asked.attach_stdout)?;
    let (ends, pipes) = attach::pipes(StreamSet {
        stdin: asked.attach_stdin,
        // Always attached: its end is the end of the program.
        stdout: true,
        stderr: asked.attach_stderr && !asked.tty,
    })?;
    let reply = hijack::switching(request.wants_upgrade, asked.tty, request.version);
    let server = Arc::clone(server);
    tokio::spawn(async move {
        // The exec is started even if the client is already gone.
        let client = Client::take(request.takeover).await;
        let started = starting.start(&server, Some(ends)).await;
        let ended = started.map(|program| tokio::spawn(end(program)));
        let Ok(mut client) = client else { return };
        match ended {
            Ok(ended) => {
                if matches!(client.copy(pipes, &format).await, Ok(CopyEnd::OutputEnded)) {
                    // The client asks for the exit code as soon as the output ends.
                    ended.await.unwrap_or_default();
                }
            }
            Err(refusal) => {
                let text = format!("{}\r\n", refusal.message);
                // If the client is gone, nobody needs the reason.
                client.say(&text, &format).await.unwrap_or_default();
            }
        }
        client.close().await;
    });
    Ok(reply)
}

pub(super) async fn inspect(server: &Arc<Server>, id: &str) -> Handled {
    let wanted = id.to_owned();
    let known = server
        .engine(move |engine| engine.find_exec(&wanted))
        .await?;
    let asked = asked_of(&known)?;
    let code = match (known.pid, known.exit_code) {
        (0, Some(ENGINE_ERROR)) => Some(NOT_STARTED),
        (_, code) => code,
    };
    let (entrypoint, arguments) = asked.cmd.split_first().unzip();
    let mut process = json!({
        "tty": asked.tty,
        "entrypoint": entrypoint,
        "arguments": arguments,
        "privileged": asked.privileged,
    });
    if !asked.user.is_empty()
        && let Some(process) = process.as_object_mut()
    {
        process.insert("user".to_owned(), json!(asked.user));
    }
    let body = json!({
        "ID": id,
        "Running": known.phase == ExecPhase::Running,
        "ExitCode": code,
        "ProcessConfig": process,
        "OpenStdin": asked.attach_stdin,
        "OpenStderr": asked.attach_stderr,
        "OpenStdout": asked.attach_stdout,
        "CanRemove": false,
        "ContainerID": known.container,
        "DetachKeys": asked.detach_keys,
        "Pid": known.pid,
    });
    http::json(StatusCode::OK, &body)
}

/// Waits for an exec that is not started yet: its client may be faster than the start.
pub(super) async fn resize(server: &Arc<Server>, request: &Request, id: &str) -> Handled {
    let (rows, columns) = life::size(&request.query)?;
    for _look in 0..RESIZE_POLLS {
        let wanted = id.to_owned();
        let known = server
            .engine(move |engine| engine.find_exec(&wanted))
            .await?;
        match known.phase {
            ExecPhase::Created | ExecPhase::Starting => {
                tokio::time::sleep(RESIZE_POLL_INTERVAL).await;
            }
            ExecPhase::Running => {
                let id = id.to_owned();
                server
                    .engine(move |engine| engine.resize_exec(&known.container, &id, rows, columns))
                    .await?;
                return Ok(http::empty(StatusCode::OK));
            }
            ExecPhase::Ended => {
                let text = format!("exec {id} is not running");
                return Err(Refusal::new(StatusCode::CONFLICT, text));
            }
        }
    }
    Err(Refusal::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "timeout waiting for exec session ready",
    ))
}
