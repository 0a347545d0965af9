//! `/volumes`.

use super::Server;
use super::http::{self, Filters, Handled, Request};
use crate::engine::Engine;
use crate::engine::error::{Error, Result};
use crate::volume::Volume;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// A volume as `docker volume inspect` shows it.
fn shape(engine: &Engine, volume: &Volume) -> Result<Value> {
    let (_, mountpoint) = engine.volume_named(&volume.name)?;
    let labels = if volume.record.anonymous {
        json!({"com.docker.volume.anonymous": ""})
    } else {
        Value::Null
    };
    Ok(json!({
        "CreatedAt": volume.record.created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "Driver": "local",
        "Labels": labels,
        "Mountpoint": mountpoint,
        "Name": volume.name,
        "Options": null,
        "Scope": "local",
    }))
}

pub(super) fn rows(engine: &Engine) -> Result<Vec<Value>> {
    let volumes = engine.volumes()?.items;
    volumes.iter().map(|volume| shape(engine, volume)).collect()
}

pub(super) async fn list(server: &Arc<Server>, request: &Request) -> Handled {
    let filters = Filters::parse(&request.query, &["name"])?;
    let mut volumes = server.engine(rows).await?;
    volumes.retain(|volume| {
        let name = volume.get("Name").and_then(Value::as_str);
        filters.admits("name", |part| name.is_some_and(|name| name.contains(part)))
    });
    let body = json!({"Volumes": volumes, "Warnings": null});
    http::json(StatusCode::OK, &body)
}

/// Body of `/volumes/create`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Create {
    name: Option<String>,
    driver: Option<String>,
}

pub(super) async fn create(server: &Arc<Server>, request: Request) -> Handled {
    let asked: Create = http::json_body(request.body).await?;
    let body = server
        .engine(move |engine| {
            if let Some(driver) = asked.driver
                && !matches!(driver.as_str(), "" | "local")
            {
                return Err(Error::not_found(format!(
                    "error looking up volume plugin {driver}: plugin \"{driver}\" not found"
                )));
            }
            let name = asked.name.filter(|name| !name.is_empty());
            let name = engine.create_volume(name.as_deref())?;
            shape(engine, &engine.volume_named(&name)?.0)
        })
        .await?;
    http::json(StatusCode::CREATED, &body)
}

pub(super) async fn inspect(server: &Arc<Server>, name: String) -> Handled {
    let body = server
        .engine(move |engine| shape(engine, &engine.volume_named(&name)?.0))
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
