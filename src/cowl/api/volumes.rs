//! `/volumes`.

use super::http::{self, Handled, Request, Version};
use super::{Server, route};
use crate::engine::volumes::VolumeRequest;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) async fn list(server: &Arc<Server>, request: &Request) -> Handled {
    let filters = http::filters(&request.query)?;
    let volumes = server
        .engine(move |engine| {
            let mut volumes = engine.volumes()?.items;
            engine.filter_volumes(&mut volumes, &filters)?;
            let shown = volumes.iter().map(|volume| engine.volume_shown(volume));
            Ok(shown.collect::<Vec<_>>())
        })
        .await?;
    let body = json!({"Volumes": volumes, "Warnings": null});
    http::json(StatusCode::OK, &body)
}

/// Body of `/volumes/create`; null means the default.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Create {
    name: Option<String>,
    driver: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    driver_opts: Option<BTreeMap<String, String>>,
    cluster_volume_spec: Option<Value>,
}

pub(super) async fn create(server: &Arc<Server>, request: Request) -> Handled {
    let asked: Create = http::json_body(request.body).await?;
    if asked.cluster_volume_spec.is_some() {
        return Err(route::no_swarm());
    }
    let asked = VolumeRequest {
        name: asked.name,
        driver: asked.driver.unwrap_or_default(),
        labels: asked.labels.unwrap_or_default(),
        options: asked.driver_opts.unwrap_or_default(),
    };
    let body = server
        .engine(move |engine| engine.inspect_volume(&engine.create_volume(&asked)?))
        .await?;
    http::json(StatusCode::CREATED, &body)
}

pub(super) async fn inspect(server: &Arc<Server>, name: String) -> Handled {
    let body = server
        .engine(move |engine| engine.inspect_volume(&name))
        .await?;
    http::json(StatusCode::OK, &body)
}

pub(super) async fn remove(server: &Arc<Server>, request: &Request, name: String) -> Handled {
    let force = request.query.flag("force");
    server
        .engine(move |engine| engine.remove_volume(&name, force))
        .await?;
    Ok(http::empty(StatusCode::NO_CONTENT))
}

/// Removes unused volumes: before API 1.42 all of them, since then only anonymous ones.
pub(super) async fn prune(server: &Arc<Server>, request: &Request) -> Handled {
    let mut filters = http::filters(&request.query)?;
    if request.version < Version(1, 42) {
        filters.insert("all".to_owned(), vec!["true".to_owned()]);
    }
    let pruned = server
        .engine(move |engine| engine.prune_volumes(&filters))
        .await?;
    let body = json!({"VolumesDeleted": pruned.removed, "SpaceReclaimed": pruned.bytes});
    http::json(StatusCode::OK, &body)
}
