//! `/images`.

use super::Server;
use super::http::{self, Filters, Handled, Refusal, Request, Version};
use crate::engine::Engine;
use crate::engine::commit::{Changed, CommitRequest};
use crate::engine::error::{Error, Result};
use crate::engine::image::Removed;
use crate::engine::load::{ImportRequest, LoadRequest};
use cowl_core::digest::ImageId;
use cowl_core::store::Reference;
use hyper::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{self, BufWriter};
use std::path::Path;
use std::sync::Arc;

/// Bytes of an archive that are sent at once.
const CHUNK: usize = 256 << 10;
/// What messages call an uploaded archive.
const UPLOAD: &str = "the request's body";

fn seconds(time: Option<Timestamp>) -> i64 {
    time.map_or(0, Timestamp::as_second)
}

/// Images as `docker images` lists them, newest first.
pub(super) fn rows(engine: &Engine, version: Version) -> Result<Vec<Value>> {
    let mut rows: Vec<(ImageId, Value)> = Vec::new();
    for image in engine.images()?.items {
        let names: Vec<String> = image.reference.iter().map(Reference::to_string).collect();
        if let Some((_, row)) = rows.iter_mut().find(|(id, _)| *id == image.id) {
            if let Some(tags) = row.get_mut("RepoTags").and_then(Value::as_array_mut) {
                tags.extend(names.into_iter().map(Value::from));
            }
            continue;
        }
        let mut row = json!({
            "Containers": -1,
            "Created": seconds(image.created),
            "Id": image.id.to_string(),
            "Labels": null,
            "ParentId": "",
            "RepoDigests": [],
            "RepoTags": names,
            "SharedSize": -1,
            "Size": image.size,
        });
        if version < Version(1, 44)
            && let Some(row) = row.as_object_mut()
        {
            row.insert("VirtualSize".into(), json!(image.size));
        }
        rows.push((image.id, row));
    }
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

pub(super) async fn list(server: &Arc<Server>, request: &Request) -> Handled {
    let version = request.version;
    // None yet: an unknown key is refused, not ignored.
    Filters::parse(&request.query, &[])?;
    let rows = server.engine(move |engine| rows(engine, version)).await?;
    http::json(StatusCode::OK, &rows)
}

pub(super) async fn history(server: &Arc<Server>, name: String) -> Handled {
    let steps = server.engine(move |engine| engine.history(&name)).await?;
    let rows: Vec<Value> = steps
        .into_iter()
        .map(|step| {
            json!({
                "Comment": step.comment,
                "Created": seconds(step.created),
                "CreatedBy": step.created_by,
                "Id": step.image.map_or_else(|| "<missing>".to_owned(), |id| id.to_string()),
                "Size": step.size,
                "Tags": null,
            })
        })
        .collect();
    http::json(StatusCode::OK, &rows)
}

pub(super) async fn remove(server: &Arc<Server>, request: &Request, name: String) -> Handled {
    let force = request.query.flag("force");
    let rows = server
        .engine(move |engine| {
            let mut removed = Vec::new();
            engine.remove_image(&name, force, &mut removed)?;
            let row = |removed| match removed {
                Removed::Untagged(name) => Some(json!({"Untagged": name})),
                Removed::Deleted(id) => Some(json!({"Deleted": id.to_string()})),
                // The image is gone; `cowl check` names what is damaged.
                Removed::NotFreed(_) => None,
            };
            Ok(removed.into_iter().filter_map(row).collect::<Vec<_>>())
        })
        .await?;
    http::json(StatusCode::OK, &rows)
}

pub(super) fn load(server: &Arc<Server>, request: Request) -> Handled {
    let archive = http::upload(request.body).map_err(Error::from)?;
    let server = Arc::clone(server);
    let produce = move |stream: &http::Stream| {
        let load =
            |engine: &Engine| engine.load_file(archive, Path::new(UPLOAD), &LoadRequest::default());
        match server.open().and_then(|engine| load(&engine)) {
            Err(error) => stream.json_error(&error),
            Ok(loaded) => loaded.iter().try_for_each(|image| {
                for name in &image.tags {
                    stream.json(&json!({"stream": format!("Loaded image: {name}\n")}))?;
                }
                if image.tags.is_empty() {
                    let text = format!("Loaded image ID: {}\n", image.image);
                    stream.json(&json!({ "stream": text }))?;
                }
                Ok(())
            }),
        }
    };
    Ok(http::stream("application/json", produce))
}

/// The name that `repo` and `tag` of a request give an image.
fn target(request: &Request) -> Handled<Option<Reference>> {
    let Some(name) = request.query.get("repo") else {
        return Ok(None);
    };
    let name = match request.query.get("tag") {
        Some(tag) => format!("{name}:{tag}"),
        None => name.to_owned(),
    };
    name.parse()
        .map(Some)
        .map_err(|error| Refusal::invalid(format!("invalid reference format: {error}")))
}

pub(super) async fn tag(server: &Arc<Server>, request: &Request, name: String) -> Handled {
    let target = target(request)?.ok_or_else(|| Refusal::invalid("no repository is named"))?;
    server
        .engine(move |engine| engine.tag_image(&name, &target))
        .await?;
    Ok(http::empty(StatusCode::CREATED))
}

/// `docker commit`.
pub(super) async fn commit(server: &Arc<Server>, request: &Request) -> Handled {
    let get = |name| request.query.get(name).unwrap_or_default().to_owned();
    let (container, author, comment) = (get("container"), get("author"), get("comment"));
    let changes: Vec<String> = request
        .query
        .all("changes")
        .flat_map(str::lines)
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect();
    let name = target(request)?;
    let id = server
        .engine(move |engine| {
            engine.commit(&CommitRequest {
                changed: Changed::Container(&container),
                name: name.as_ref(),
                author: &author,
                comment: &comment,
                changes: &changes,
            })
        })
        .await?;
    http::json(StatusCode::CREATED, &json!({"Id": id.to_string()}))
}

/// `docker import` and `docker pull` share a path.
pub(super) fn create(server: &Arc<Server>, request: Request) -> Handled {
    if let Some(image) = request.query.get("fromImage") {
        let tag = request.query.get("tag").unwrap_or("latest");
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            format!(
                "pull access denied for {image}:{tag}, repository does not exist here and cowl does not pull: load the image from an archive (docker load, docker import)"
            ),
        ));
    }
    if request.query.get("fromSrc") != Some("-") {
        return Err(Refusal::invalid(
            "only an import from the request's body is supported (fromSrc=-)",
        ));
    }
    let name = target(&request)?
        .ok_or_else(|| Refusal::invalid("an imported image needs a name: docker import - NAME"))?;
    let archive = http::upload(request.body).map_err(Error::from)?;
    let server = Arc::clone(server);
    let produce = move |stream: &http::Stream| {
        let import = |engine: &Engine| {
            let request = ImportRequest {
                name: Some(&name),
                ..ImportRequest::default()
            };
            engine.import_file(&archive, &request)
        };
        match server.open().and_then(|engine| import(&engine)) {
            Err(error) => stream.json_error(&error),
            Ok(id) => stream.json(&json!({"status": id.to_string()})),
        }
    };
    Ok(http::stream("application/json", produce))
}

/// `docker save`: the names of the query, or the one of the path.
pub(super) async fn save(server: &Arc<Server>, request: &Request, name: Option<String>) -> Handled {
    let names = match name {
        Some(name) => vec![name],
        None => request.query.all("names").map(str::to_owned).collect(),
    };
    if names.is_empty() {
        return Err(Refusal::invalid("no image is named"));
    }
    let platform = request.query.get("platform").map(platform).transpose()?;
    let selected = server
        .engine(move |engine| engine.select(&names, platform.as_deref()))
        .await?;
    let server = Arc::clone(server);
    let produce = move |stream: &http::Stream| {
        let out = BufWriter::with_capacity(CHUNK, stream);
        let saved = server
            .open()
            .and_then(|engine| engine.save_selected(&selected, out));
        saved.map_err(|error| io::Error::other(error.to_string()))
    };
    Ok(http::stream("application/x-tar", produce))
}

/// A platform as the API has it.
#[derive(Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

/// `OS/ARCHITECTURE[/VARIANT]` of a platform in JSON.
fn platform(text: &str) -> Handled<String> {
    let platform: Platform = serde_json::from_str(text)
        .map_err(|error| Refusal::invalid(format!("failed to parse platform: {error}")))?;
    let os = platform.os.unwrap_or_else(|| "linux".to_owned());
    let parts = [os, platform.architecture, platform.variant];
    let given: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    Ok(given.join("/"))
}
