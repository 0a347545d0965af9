//! `/containers/{id}/archive` and `/containers/{id}/export`: `docker cp` and `docker export`.

use super::Server;
use super::http::{self, Handled, Refusal, Request};
use super::stream;
use crate::engine::archive::{Extraction, Files, PathStat};
use crate::engine::error::Error;
use data_encoding::BASE64;
use hyper::StatusCode;
use hyper::header::HeaderValue;
use std::io::{self, BufWriter};
use std::sync::Arc;

/// Bytes sent at a time.
const CHUNK: usize = 64 << 10;
/// The reply header with the path's stat.
const STAT: &str = "x-docker-container-path-stat";

fn path(request: &Request) -> Handled<String> {
    let path = request.query.get("path").map(str::to_owned);
    path.ok_or_else(|| Refusal::invalid("missing parameter: path"))
}

fn stat_header(stat: &PathStat) -> Handled<HeaderValue> {
    let text = serde_json::to_vec(stat).map_err(Error::from)?;
    Ok(HeaderValue::from_str(&BASE64.encode(&text)).map_err(Error::from)?)
}

/// Closes a container's files, after an error too.
fn finish<T>(
    engine: &crate::engine::Engine,
    files: Files,
    done: Result<T, Error>,
) -> Result<T, Error> {
    match (done, engine.close_files(files)) {
        (Ok(done), Ok(())) => Ok(done),
        (Err(error), _) | (Ok(_), Err(error)) => Err(error),
    }
}

pub(super) async fn stat(server: &Arc<Server>, request: &Request, name: String) -> Handled {
    let path = path(request)?;
    let stat = server
        .engine(move |engine| {
            let files = engine.open_files(&name)?;
            let stat = files.stat(&path);
            finish(engine, files, stat)
        })
        .await?;
    let mut reply = http::empty(StatusCode::OK);
    reply.headers_mut().insert(STAT, stat_header(&stat)?);
    Ok(reply)
}

pub(super) async fn read(server: &Arc<Server>, request: &Request, name: String) -> Handled {
    let asked = path(request)?;
    let path = asked.clone();
    let (files, stat) = server
        .engine(move |engine| {
            let files = engine.open_files(&name)?;
            match files.stat(&path) {
                Ok(stat) => Ok((files, stat)),
                Err(error) => finish(engine, files, Err(error)),
            }
        })
        .await?;
    let server = Arc::clone(server);
    let mut reply = stream::produce("application/x-tar", move |stream| {
        let sent = server.open().and_then(|engine| {
            let read = files.read(&asked, BufWriter::with_capacity(CHUNK, stream));
            finish(&engine, files, read)
        });
        sent.map_err(|error| io::Error::other(error.to_string()))
    });
    reply.headers_mut().insert(STAT, stat_header(&stat)?);
    Ok(reply)
}

pub(super) async fn write(server: &Arc<Server>, request: Request, name: String) -> Handled {
    let path = path(&request)?;
    let how = Extraction {
        keep_kinds: request.query.flag("noOverwriteDirNonDir"),
        keep_owners: request.query.flag("copyUIDGID"),
    };
    let tar = stream::upload(request.body)?;
    server
        .engine(move |engine| {
            let files = engine.open_files(&name)?;
            let written = files.write(&path, tar, how);
            finish(engine, files, written)
        })
        .await?;
    Ok(http::empty(StatusCode::OK))
}

/// All files of a container as one tar.
pub(super) async fn export(server: &Arc<Server>, name: String) -> Handled {
    let server = Arc::clone(server);
    stream::produce_or_refuse("application/octet-stream", move |stream| {
        let out = BufWriter::with_capacity(CHUNK, stream);
        server.open()?.export_container(&name, out)
    })
    .await
}
