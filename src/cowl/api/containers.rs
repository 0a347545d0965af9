//! `/containers`.

use super::Server;
use super::http::{self, Handled, Refusal, Request};
use super::network::{self, NetworkingConfig};
use super::stream;
use super::wait::{Condition, Wait};
use crate::engine::commit::{ChangeKind, Changed};
use crate::engine::create::CreateRequest;
use crate::engine::docker::{ContainerConfig, HostConfig};
use crate::engine::error::Result;
use crate::engine::list::ListRequest;
use cowl_core::image::PlatformError;
use hyper::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// Body of `/containers/create`: Docker's `Config` with a `HostConfig` inside.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    #[serde(flatten)]
    config: ContainerConfig,
    #[serde(default)]
    host_config: Option<HostConfig>,
    #[serde(default)]
    networking_config: Option<NetworkingConfig>,
}

pub(super) async fn create(server: &Arc<Server>, request: Request) -> Handled {
    let name = request.query.get("name").map(str::to_owned);
    let platform = request
        .query
        .get("platform")
        .filter(|text| !text.is_empty());
    let platform = platform.map(str::parse).transpose();
    let platform = platform.map_err(|error: PlatformError| Refusal::invalid(error.to_string()))?;
    let asked: Create = http::json_body(request.body).await?;
    network::check(&asked.networking_config.unwrap_or_default())?;
    let asked = CreateRequest {
        name,
        config: asked.config,
        host: asked.host_config.unwrap_or_default(),
        platform,
    };
    let created = server.engine(move |engine| engine.create(&asked)).await?;
    let body = json!({"Id": created.id, "Warnings": created.warnings});
    http::json(StatusCode::CREATED, &body)
}

pub(super) async fn list(server: &Arc<Server>, request: &Request) -> Handled {
    let limit = match request.query.get("limit").map(str::parse::<i64>) {
        None => None,
        Some(Ok(limit)) => usize::try_from(limit).ok().filter(|limit| *limit > 0),
        Some(Err(error)) => return Err(Refusal::invalid(format!("invalid limit: {error}"))),
    };
    let asked = ListRequest {
        all: request.query.flag("all"),
        limit,
        filters: http::filters(&request.query)?,
    };
    let with_sizes = request.query.flag("size");
    let rows = server
        .engine(move |engine| {
            let now = Timestamp::now();
            let found = engine.list(&asked)?.items;
            let rows = found.iter().map(|summary| {
                let mut row = engine.listed(summary, now);
                if with_sizes && let Some(row) = row.as_object_mut() {
                    let (changed, whole) = engine.sizes(&summary.config)?;
                    row.insert("SizeRootFs".to_owned(), whole.into());
                    // As in Docker, zeros are left out here.
                    if changed > 0 {
                        row.insert("SizeRw".to_owned(), changed.into());
                    }
                }
                Ok(row)
            });
            rows.collect::<Result<Vec<_>>>()
        })
        .await?;
    http::json(StatusCode::OK, &rows)
}

pub(super) async fn inspect(server: &Arc<Server>, request: &Request, name: String) -> Handled {
    let with_sizes = request.query.flag("size");
    let body = server
        .engine(move |engine| {
            let mut body = engine.inspect(&name)?;
            if with_sizes && let Some(body) = body.as_object_mut() {
                let config = engine.container(&name)?.config;
                let (changed, whole) = engine.sizes(&config)?;
                body.insert("SizeRw".to_owned(), changed.into());
                body.insert("SizeRootFs".to_owned(), whole.into());
            }
            Ok(body)
        })
        .await?;
    http::json(StatusCode::OK, &body)
}

pub(super) async fn remove(server: &Arc<Server>, request: &Request, name: String) -> Handled {
    let (force, volumes) = (request.query.flag("force"), request.query.flag("v"));
    if request.query.flag("link") {
        return Err(Refusal::invalid("cowl has no links between containers"));
    }
    server
        .engine(move |engine| engine.remove(&name, force, volumes))
        .await?;
    Ok(http::empty(StatusCode::NO_CONTENT))
}

/// Removes the stopped containers.
pub(super) async fn prune(server: &Arc<Server>, request: &Request) -> Handled {
    let filters = http::filters(&request.query)?;
    let pruned = server
        .engine(move |engine| engine.prune_containers(&filters))
        .await?;
    let body = json!({"ContainersDeleted": pruned.removed, "SpaceReclaimed": pruned.bytes});
    http::json(StatusCode::OK, &body)
}

pub(super) async fn rename(server: &Arc<Server>, request: &Request, name: String) -> Handled {
    let to = request.query.get("name").unwrap_or_default().to_owned();
    server
        .engine(move |engine| engine.rename(&name, &to))
        .await?;
    Ok(http::empty(StatusCode::NO_CONTENT))
}

/// `docker diff`.
pub(super) async fn changes(server: &Arc<Server>, name: String) -> Handled {
    let changes = server
        .engine(move |engine| engine.diff(Changed::Container(&name)))
        .await?;
    let rows: Vec<_> = changes
        .into_iter()
        .map(|(kind, path)| {
            let kind = match kind {
                ChangeKind::Changed => 0,
                ChangeKind::Added => 1,
                ChangeKind::Deleted => 2,
            };
            json!({"Path": format!("/{}", String::from_utf8_lossy(&path)), "Kind": kind})
        })
        .collect();
    http::json(StatusCode::OK, &rows)
}

/// Sends the status at once and the exit code when it is known: clients wait before they start the
/// container.
pub(super) async fn wait(server: &Arc<Server>, request: &Request, name: String) -> Handled {
    let condition = request.query.get("condition");
    let condition = Condition::parse(condition).ok_or_else(|| {
        Refusal::invalid(format!(
            "invalid condition: \"{}\"",
            condition.unwrap_or_default()
        ))
    })?;
    let wait = Wait::begin(server, name, condition).await?;
    let server = Arc::clone(server);
    Ok(stream::later("application/json", async move {
        let code = wait.end(&server).await?;
        // The start reports why it failed.
        Ok(json!({ "StatusCode": code }))
    }))
}
