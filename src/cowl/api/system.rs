//! `/_ping`, `/version`, `/info`, `/system/df`.

use super::http::{self, Handled, Refusal, Reply, Request};
use super::{API, OLDEST, Server, images};
use crate::engine::Engine;
use crate::engine::error::Result;
use crate::engine::info::VERSION;
use crate::engine::usage::DiskUsage;
use hyper::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Clients learn the API version from the headers of every reply.
pub(super) fn ping(method: &Method) -> Reply {
    let text = if method == Method::HEAD { "" } else { "OK" };
    let mut reply = http::reply(StatusCode::OK, "text/plain; charset=utf-8", text);
    for (name, value) in [
        // 1: the classic builder, without BuildKit sessions.
        ("builder-version", "1"),
        ("swarm", "inactive"),
        ("cache-control", "no-cache, no-store, must-revalidate"),
        ("pragma", "no-cache"),
    ] {
        let value = hyper::header::HeaderValue::from_static(value);
        reply.headers_mut().insert(name, value);
    }
    reply
}

/// Go's name of this architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The answer to `/version`.
pub(crate) fn version() -> Value {
    let kernel = rustix::system::uname();
    let kernel = kernel.release().to_string_lossy();
    let (api, oldest) = (API.to_string(), OLDEST.to_string());
    let details = json!({
        "ApiVersion": api,
        "Arch": architecture(),
        "BuildTime": "",
        "Experimental": "false",
        "GitCommit": "",
        "GoVersion": "",
        "KernelVersion": kernel,
        "MinAPIVersion": oldest,
        "Os": "linux",
    });
    json!({
        "Platform": {"Name": "cowl"},
        "Components": [{"Name": "Engine", "Version": VERSION, "Details": details}],
        "Version": VERSION,
        "ApiVersion": api,
        "MinAPIVersion": oldest,
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": architecture(),
        "KernelVersion": kernel,
        "BuildTime": "",
    })
}

pub(super) async fn info(server: &Arc<Server>) -> Handled {
    http::json(StatusCode::OK, &server.engine(Engine::info).await?)
}

/// The object types of `/system/df`.
const TYPES: [&str; 4] = ["container", "image", "volume", "build-cache"];

pub(super) async fn disk_usage(server: &Arc<Server>, request: &Request) -> Handled {
    let (asked, version) = (request.query.all("type"), request.version);
    let asked: Vec<String> = asked.map(str::to_owned).collect();
    if let Some(unknown) = asked.iter().find(|kind| !TYPES.contains(&kind.as_str())) {
        return Err(Refusal::invalid(format!("unknown object type: {unknown}")));
    }
    let body = server
        .engine(move |engine| {
            let mut usage = engine.disk_usage()?;
            let wants = |kind| asked.is_empty() || asked.iter().any(|asked| asked == kind);
            let mut body = Map::new();
            if wants("image") {
                let listed = std::mem::take(&mut usage.images);
                let mut rows = images::rows(listed, version, Some(&usage.unique));
                for row in &mut rows {
                    count_containers(row, &usage);
                }
                body.insert("LayersSize".into(), json!(usage.layers));
                body.insert("Images".into(), json!(rows));
            }
            if wants("container") {
                body.insert("Containers".into(), containers(engine, &usage)?);
            }
            if wants("volume") {
                body.insert("Volumes".into(), volumes(engine, &usage));
            }
            if wants("build-cache") {
                body.insert("BuildCache".into(), json!([]));
            }
            Ok(Value::Object(body))
        })
        .await?;
    http::json(StatusCode::OK, &body)
}

fn count_containers(row: &mut Value, usage: &DiskUsage) {
    let id = row.get("Id").and_then(Value::as_str).unwrap_or_default();
    let mut of = usage.containers_of.iter();
    let count = of.find(|(image, _)| image.to_string() == id);
    let count = count.map_or(0, |(_, count)| *count);
    if let Some(row) = row.as_object_mut() {
        row.insert("Containers".into(), json!(count));
    }
}

fn containers(engine: &Engine, usage: &DiskUsage) -> Result<Value> {
    let now = Timestamp::now();
    let rows = usage.containers.iter().map(|(summary, changed)| {
        let mut row = engine.listed(summary, now);
        let whole = engine.layers_bytes(&summary.config)? + changed;
        if let Some(row) = row.as_object_mut() {
            row.insert("SizeRootFs".into(), json!(whole));
            // As in Docker, zeros are left out.
            if *changed > 0 {
                row.insert("SizeRw".into(), json!(changed));
            }
        }
        Ok(row)
    });
    Ok(Value::Array(rows.collect::<Result<_>>()?))
}

fn volumes(engine: &Engine, usage: &DiskUsage) -> Value {
    let rows = usage.volumes.iter().map(|(volume, bytes, links)| {
        let mut row = engine.volume_shown(volume);
        if let Some(row) = row.as_object_mut() {
            let usage = json!({"RefCount": links, "Size": bytes});
            row.insert("UsageData".into(), usage);
        }
        row
    });
    rows.collect()
}

/// There is no build cache.
pub(super) fn prune_builds() -> Handled {
    let body = json!({"CachesDeleted": null, "SpaceReclaimed": 0});
    http::json(StatusCode::OK, &body)
}
