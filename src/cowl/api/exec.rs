//! `/containers/{id}/exec` and `/exec/{id}`: programs in a running container.
//!
//! A client creates an exec, starts it over a connection of its own and asks for its exit code.
//! What it asked for is kept here in between; the monitor knows the exec once it is started. An exec
//! is lost with the server, as the client's connection is, and its program runs on.

use super::Server;
use super::hijack::{self, Client, Format, Passed};
use super::http::{self, Handled, Refusal, Request};
use super::life;
use super::watch;
use crate::engine::attach;
use crate::engine::container::state::Status;
use crate::engine::docker::or_default;
use crate::engine::error::{Error, Kind};
use crate::engine::exec::{Exec as Program, ExecRequest};
use crate::engine::new_id;
use cowl_launch::control::StreamSet;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;
use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::Interest;

/// Execs that do not run and are remembered, the last ones.
const REMEMBERED: usize = 1024;
/// Exit code of a program that was killed with its container.
const KILLED: u8 = 137;

/// All execs of this server.
#[derive(Debug, Default)]
pub(super) struct Execs {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<String, Arc<Exec>>,
    /// The ids, oldest first.
    order: VecDeque<String>,
}

/// One program.
#[derive(Debug)]
struct Exec {
    id: String,
    /// The container's id.
    container: String,
    asked: Create,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Created,
    Starting,
    Running { pid: u32 },
    Ended { pid: u32, code: u8 },
}

/// Body of `/containers/{id}/exec`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
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

/// Body of `/exec/{id}/start`. Whether there is a terminal was said before.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Start {
    #[serde(default)]
    detach: bool,
    console_size: Option<(u16, u16)>,
}

impl Execs {
    fn add(&self, exec: Exec) {
        let mut table = self.lock();
        table.order.push_back(exec.id.clone());
        table.by_id.insert(exec.id.clone(), Arc::new(exec));
        // Most have ended: the oldest of them go.
        for _ in REMEMBERED..table.order.len() {
            let Some(id) = table.order.pop_front() else {
                return;
            };
            let rests = table.by_id.get(&id).is_none_or(|exec| exec.rests());
            if rests {
                table.by_id.remove(&id);
            } else {
                table.order.push_back(id);
            }
        }
    }

    fn get(&self, id: &str) -> Handled<Arc<Exec>> {
        let found = self.lock().by_id.get(id).map(Arc::clone);
        found.ok_or_else(|| {
            Refusal::new(
                StatusCode::NOT_FOUND,
                format!("No such exec instance: {id}"),
            )
        })
    }

    /// The ids of those that run in a container.
    pub(super) fn running_in(&self, container: &str) -> Vec<String> {
        let table = self.lock();
        let ids = table.order.iter().filter(|id| {
            let exec = table.by_id.get(*id);
            exec.is_some_and(|exec| exec.container == container && !exec.rests())
        });
        ids.cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Exec {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It does not run; one that is created may be started yet.
    fn rests(&self) -> bool {
        matches!(*self.state(), State::Created | State::Ended { .. })
    }

    /// Takes the right to start it.
    fn begin(&self) -> Handled<()> {
        let mut state = self.state();
        let why = match *state {
            State::Created => {
                *state = State::Starting;
                return Ok(());
            }
            State::Starting | State::Running { .. } => "is already running",
            State::Ended { .. } => "has already run",
        };
        let text = format!("Error: Exec command {} {why}", self.id);
        Err(Refusal::new(StatusCode::CONFLICT, text))
    }

    /// Starts it with these streams.
    async fn start(
        &self,
        server: &Arc<Server>,
        size: Option<(u16, u16)>,
        ends: Option<attach::Attached>,
    ) -> Handled<Program> {
        let asked = &self.asked;
        let given = |text: &String| (!text.is_empty()).then(|| text.clone());
        let request = ExecRequest {
            argv: asked.cmd.clone(),
            env: asked.env.clone(),
            working_dir: given(&asked.working_dir),
            user: given(&asked.user),
            terminal: asked
                .tty
                .then(|| size.or(asked.console_size).unwrap_or_default()),
            privileged: asked.privileged,
            open_stdin: ends.is_some() && asked.attach_stdin,
        };
        let (container, id) = (self.container.clone(), self.id.clone());
        let started = server
            .engine(move |engine| {
                let streams = ends
                    .as_ref()
                    .map_or(attach::NONE, attach::Attached::streams);
                Ok(engine.exec(&container, &id, &request, streams))
            })
            .await
            .and_then(|started| {
                started.map_err(|error| {
                    let code = match error.kind() {
                        Kind::CommandNotFound => 127,
                        _ => 126,
                    };
                    *self.state() = State::Ended { pid: 0, code };
                    error.into()
                })
            })?;
        *self.state() = State::Running { pid: started.pid };
        Ok(started)
    }

    /// Waits for its end.
    async fn end(self: Arc<Self>, program: Program) {
        let pid = program.pid;
        let answer = program.as_fd().try_clone_to_owned();
        let answer = answer.and_then(|answer| watch::poll(answer, Interest::READABLE));
        let code = match answer {
            Ok(answer) => {
                let answered = answer.readable().await.map(drop);
                answered.map_err(Error::from).and_then(|()| program.wait())
            }
            // Without a descriptor left, a thread waits.
            Err(_error) => tokio::task::spawn_blocking(move || program.wait())
                .await
                .unwrap_or(Ok(KILLED)),
        };
        let code = code.unwrap_or(KILLED);
        *self.state() = State::Ended { pid, code };
    }
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
    let id = new_id()?;
    server.execs.add(Exec {
        id: id.clone(),
        container,
        asked,
        state: Mutex::new(State::Created),
    });
    http::json(StatusCode::CREATED, &json!({ "Id": id }))
}

/// The id of a container that runs and is not paused.
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
    let exec = server.execs.get(id)?;
    let asked: Start = http::json_body(request.body).await?;
    require_running(server, exec.container.clone()).await?;
    let tty = exec.asked.tty;
    if asked.detach {
        exec.begin()?;
        let program = exec.start(server, asked.console_size, None).await?;
        tokio::spawn(exec.end(program));
        return Ok(http::empty(StatusCode::OK));
    }
    let keys = Some(exec.asked.detach_keys.as_str()).filter(|keys| !keys.is_empty());
    let format = Format::new(tty, keys, exec.asked.attach_stdout)?;
    let (ends, pipes) = attach::pipes(StreamSet {
        stdin: exec.asked.attach_stdin,
        // Always: its end is the end of the program.
        stdout: true,
        stderr: exec.asked.attach_stderr && !tty,
    })?;
    exec.begin()?;
    let reply = hijack::switching(request.wants_upgrade, tty, request.version);
    let server = Arc::clone(server);
    tokio::spawn(async move {
        // One that is gone already has started it all the same.
        let client = Client::take(request.takeover).await;
        let started = exec.start(&server, asked.console_size, Some(ends)).await;
        let ended = started.map(|program| tokio::spawn(Arc::clone(&exec).end(program)));
        let Ok(mut client) = client else { return };
        match ended {
            Ok(ended) => {
                if matches!(client.pass(pipes, &format).await, Ok(Passed::Whole)) {
                    // The client asks for the exit code as soon as the output has ended.
                    ended.await.unwrap_or_default();
                }
            }
            Err(refusal) => {
                let text = format!("{}\r\n", refusal.message);
                // A client that is gone needs no reason.
                client.say(&text, &format).await.unwrap_or_default();
            }
        }
        client.close().await;
    });
    Ok(reply)
}

pub(super) async fn inspect(server: &Arc<Server>, id: &str) -> Handled {
    let exec = server.execs.get(id)?;
    let container = exec.container.clone();
    server
        .engine(move |engine| engine.container(&container).map(drop))
        .await?;
    let asked = &exec.asked;
    let state = *exec.state();
    let (pid, code) = match state {
        State::Created | State::Starting => (0, None),
        State::Running { pid } => (pid, None),
        State::Ended { pid, code } => (pid, Some(code)),
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
        "ID": exec.id,
        "Running": matches!(state, State::Running { .. }),
        "ExitCode": code,
        "ProcessConfig": process,
        "OpenStdin": asked.attach_stdin,
        "OpenStderr": asked.attach_stderr,
        "OpenStdout": asked.attach_stdout,
        "CanRemove": false,
        "ContainerID": exec.container,
        "DetachKeys": asked.detach_keys,
        "Pid": pid,
    });
    http::json(StatusCode::OK, &body)
}

pub(super) async fn resize(server: &Arc<Server>, request: &Request, id: &str) -> Handled {
    let exec = server.execs.get(id)?;
    let (rows, columns) = life::size(&request.query)?;
    if !matches!(*exec.state(), State::Running { .. }) {
        let text = format!("exec {} is not running", exec.id);
        return Err(Refusal::new(StatusCode::CONFLICT, text));
    }
    server
        .engine(move |engine| engine.resize_exec(&exec.container, &exec.id, rows, columns))
        .await?;
    Ok(http::empty(StatusCode::OK))
}
