//! `/containers/{id}/start`, `stop`, `kill`, `restart`, `pause`, `unpause`, `resize`.

use super::Server;
use super::http::{self, Handled, Query, Refusal, Request};
use super::watch;
use crate::engine::life::StopOptions;
use hyper::StatusCode;
use hyper::body::Body as _;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::process::Child;
use std::sync::Arc;
use tokio::io::Interest;

/// Starts a container, with the clients that are already attached to it.
pub(super) async fn start(server: &Arc<Server>, request: Request, name: String) -> Handled {
    if request.query.get("checkpoint").is_some() {
        return Err(Refusal::invalid("cowl has no checkpoints"));
    }
    // As in moby, `{}` and null count as an empty body.
    if !request.body.is_end_stream() && request.body.size_hint().upper().is_none_or(|size| size > 7)
    {
        return Err(Refusal::invalid(
            "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24",
        ));
    }
    let pending = Arc::clone(server);
    let children = server
        .engine(move |engine| {
            let id = engine.container(&name)?.config.id;
            let attached = pending.pending.take(&id);
            let streams: Vec<_> = attached.iter().map(|ends| ends.streams()).collect();
            let children = engine.start(&id, &streams)?;
            if children.is_none() {
                // It already runs: attach them from now on.
                for streams in streams {
                    engine.attach(&id, streams)?;
                }
            }
            Ok(children)
        })
        .await?;
    Ok(http::empty(changed(children.map(reap).is_some())))
}

pub(super) async fn stop(server: &Arc<Server>, request: &Request, name: String) -> Handled {
    let (signal, timeout) = stop_options(&request.query)?;
    let stopped = server
        .engine(move |engine| {
            let signal = signal.as_deref();
            engine.stop(&name, StopOptions { signal, timeout })
        })
        .await?;
    Ok(http::empty(changed(stopped)))
}

pub(super) async fn restart(server: &Arc<Server>, request: &Request, name: String) -> Handled {
    let (signal, timeout) = stop_options(&request.query)?;
    let children = server
        .engine(move |engine| {
            let signal = signal.as_deref();
            engine.restart(&name, StopOptions { signal, timeout })
        })
        .await?;
    if let Some(children) = children {
        reap(children);
    }
    Ok(http::empty(StatusCode::NO_CONTENT))
}

pub(super) async fn kill(server: &Arc<Server>, request: &Request, name: String) -> Handled {
    let signal = request.query.get("signal").unwrap_or("KILL").to_owned();
    server
        .engine(move |engine| engine.kill(&name, &signal))
        .await?;
    Ok(http::empty(StatusCode::NO_CONTENT))
}

pub(super) async fn pause(server: &Arc<Server>, name: String) -> Handled {
    server.engine(move |engine| engine.pause(&name)).await?;
    Ok(http::empty(StatusCode::NO_CONTENT))
}

pub(super) async fn unpause(server: &Arc<Server>, name: String) -> Handled {
    server.engine(move |engine| engine.unpause(&name)).await?;
    Ok(http::empty(StatusCode::NO_CONTENT))
}

pub(super) async fn resize(server: &Arc<Server>, request: &Request, name: String) -> Handled {
    let (rows, columns) = size(&request.query)?;
    server
        .engine(move |engine| engine.resize(&name, rows, columns))
        .await?;
    Ok(http::empty(StatusCode::OK))
}

/// The terminal size in a request, in lines and columns.
pub(super) fn size(query: &Query) -> Handled<(u16, u16)> {
    let number = |name: &str| {
        let text = query.get(name).unwrap_or_default();
        text.parse::<u16>()
            .map_err(|error| Refusal::invalid(format!("invalid {name} \"{text}\": {error}")))
    };
    Ok((number("h")?, number("w")?))
}

fn changed(changed: bool) -> StatusCode {
    if changed {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::NOT_MODIFIED
    }
}

fn stop_options(query: &Query) -> Handled<(Option<String>, Option<i64>)> {
    let timeout = match query.get("t").map(str::parse) {
        None => None,
        Some(Ok(seconds)) => Some(seconds),
        Some(Err(error)) => return Err(Refusal::invalid(format!("invalid t: {error}"))),
    };
    Ok((query.get("signal").map(str::to_owned), timeout))
}

/// Reaps the processes that serve a container, whenever they end.
pub(super) fn reap(children: [Child; 2]) {
    for child in children {
        tokio::spawn(async move {
            let mut child = child;
            let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
            let ended = match pidfd {
                Ok(pidfd) => watch::poll(pidfd, Interest::READABLE),
                Err(errno) => Err(errno.into()),
            };
            match ended {
                Ok(ended) => {
                    // A pidfd becomes readable only at the end.
                    let event = ended.readable().await.map(drop);
                    if event.is_ok() {
                        child.wait().map(drop).unwrap_or_default();
                    }
                }
                // If no descriptor is left, wait in a thread.
                Err(_error) => {
                    tokio::task::spawn_blocking(move || child.wait());
                }
            }
        });
    }
}
