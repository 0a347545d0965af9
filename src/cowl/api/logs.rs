//! `/containers/{id}/logs`.

use super::Server;
use super::hijack::{self, STDERR, STDOUT, header};
use super::http::{Handled, Query, Refusal, Request};
use super::stream;
use crate::engine::duration;
use crate::engine::error::{Context as _, Error, Result};
use crate::engine::logs::{LogEntry, LogRequest, Logs};
use jiff::Timestamp;
use std::io;
use std::sync::Arc;

/// Bytes sent at a time, if available.
const CHUNK: usize = 32 << 10;

/// How entries are shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown {
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) timestamps: bool,
    /// With the log's attributes; json-file has none here.
    pub(super) details: bool,
}

pub(super) async fn logs(server: &Arc<Server>, request: Request, name: String) -> Handled {
    let query = &request.query;
    let shown = Shown {
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        timestamps: query.flag("timestamps"),
        details: query.flag("details"),
    };
    if !shown.stdout && !shown.stderr {
        return Err(Refusal::invalid(
            "Bad parameters: you must choose at least one stream",
        ));
    }
    let asked = LogRequest {
        follow: query.flag("follow"),
        // As in dockerd, what is not a number means all.
        tail: query.get("tail").and_then(|tail| tail.parse().ok()),
        since: time(query, "since")?,
        until: time(query, "until")?,
    };
    let (mut logs, directory) = server
        .engine(move |engine| {
            let id = engine.container(&name)?.config.id;
            let directory = engine.store().containers_path().join(&id);
            Ok((engine.open_logs(&id, asked)?, directory))
        })
        .await?;
    let mut changes = server
        .watches
        .watch(&directory, true)
        .context(|| "watching the log")?;
    let kind = hijack::media_type(logs.has_terminal(), request.version);
    Ok(stream::live(kind, move |stream| async move {
        loop {
            let sender = stream.clone();
            // In a blocking thread: it waits for files and for the client.
            let read = tokio::task::spawn_blocking(move || {
                let more = send(&mut logs, shown, |bytes| sender.send(bytes));
                (logs, more)
            });
            let (back, more) = read.await.map_err(io::Error::other)?;
            logs = back;
            if !more.map_err(|error| io::Error::other(error.to_string()))? {
                return Ok(());
            }
            tokio::select! {
                () = changes.log() => {}
                () = stream.closed() => return Ok(()),
            }
        }
    }))
}

/// A time parameter; 0 counts as absent.
fn time(query: &Query, name: &str) -> Handled<Option<Timestamp>> {
    let given = query.get(name).filter(|text| *text != "0");
    let now = Timestamp::now();
    Ok(given.map(|text| duration::moment(text, now)).transpose()?)
}

/// Sends new entries: unframed with a terminal, else in frames. Returns whether more may come.
pub(super) fn send(
    logs: &mut Logs,
    shown: Shown,
    mut take: impl FnMut(Vec<u8>) -> io::Result<()>,
) -> Result<bool> {
    let terminal = logs.has_terminal();
    let mut buffer = Vec::new();
    let mut flush = |buffer: &mut Vec<u8>| match take(std::mem::take(buffer)) {
        Ok(()) => Ok(true),
        // The client is gone.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::from(error)),
    };
    let more = logs.read(|entry| {
        append(entry, terminal, shown, &mut buffer);
        if buffer.len() < CHUNK {
            return Ok(true);
        }
        flush(&mut buffer)
    })?;
    if !buffer.is_empty() && !flush(&mut buffer)? {
        return Ok(false);
    }
    Ok(more)
}

fn append(entry: &LogEntry, terminal: bool, shown: Shown, buffer: &mut Vec<u8>) {
    let (stream, wanted) = if entry.stream == "stderr" {
        (STDERR, shown.stderr)
    } else {
        (STDOUT, shown.stdout)
    };
    if !wanted {
        return;
    }
    let mut text = String::new();
    if shown.timestamps {
        text = format!("{:.9} ", entry.time);
    }
    if shown.details {
        text.push(' ');
    }
    text.push_str(&entry.log);
    if !terminal {
        buffer.extend(header(stream, text.len()));
    }
    buffer.extend_from_slice(text.as_bytes());
}
