//! `/images`.

use super::Server;
use super::http::{self, Handled, Refusal, Request, Version};
use super::progress::LoadProgress;
use super::stream;
use crate::engine::Engine;
use crate::engine::commit::{Changed, CommitRequest};
use crate::engine::docker::ContainerConfig;
use crate::engine::error::Error;
use crate::engine::image::{Listed, Removed};
use crate::engine::load::{ImportRequest, LoadRequest};
use cowl_core::digest::ImageId;
use cowl_core::image::Watch;
use cowl_core::store::Reference;
use hyper::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, BufWriter};
use std::path::Path;
use std::sync::Arc;

/// Bytes of an archive sent at a time.
const CHUNK: usize = 256 << 10;
/// What messages call an uploaded archive.
const UPLOAD: &str = "the request's body";

fn seconds(time: Option<Timestamp>) -> i64 {
    time.map_or(0, Timestamp::as_second)
}

/// Images as `docker images` lists them, in the order of `listed`. `sizes` are the bytes unique to
/// each image, if requested.
pub(super) fn rows(
    listed: Vec<Listed>,
    version: Version,
    unique: Option<&BTreeMap<ImageId, u64>>,
) -> Vec<Value> {
    let mut rows: Vec<(ImageId, Value)> = Vec::new();
    for image in listed {
        let name = image.reference.as_ref();
        let tag = name.filter(|name| name.digest().is_none());
        let digest = name.and_then(|name| {
            let digest = name.digest().or(image.digest)?;
            Some(format!("{}@{digest}", name.repository()))
        });
        let tag = tag.map(Reference::to_string);
        if let Some((_, row)) = rows.iter_mut().find(|(id, _)| *id == image.id) {
            for (list, name) in [("RepoTags", tag), ("RepoDigests", digest)] {
                if let Some(names) = row.get_mut(list).and_then(Value::as_array_mut) {
                    names.extend(name.map(Value::from));
                }
            }
            continue;
        }
        let shared = unique.map_or(-1, |unique| {
            let own = unique.get(&image.id).copied().unwrap_or_default();
            i64::try_from(image.size.saturating_sub(own)).unwrap_or(i64::MAX)
        });
        let labels = Some(image.labels).filter(|labels| !labels.is_empty());
        let mut row = json!({
            "Containers": -1,
            "Created": seconds(image.created),
            "Id": image.id.to_string(),
            "Labels": labels,
            "ParentId": "",
            "RepoDigests": digest.into_iter().collect::<Vec<_>>(),
            "RepoTags": tag.into_iter().collect::<Vec<_>>(),
            "SharedSize": shared,
            "Size": image.size,
        });
        if version < Version(1, 44)
            && let Some(row) = row.as_object_mut()
        {
            row.insert("VirtualSize".into(), json!(image.size));
        }
        rows.push((image.id, row));
    }
    rows.into_iter().map(|(_, row)| row).collect()
}

/// `all` changes nothing, since there are no intermediate images, and `manifests` is ignored as by
/// a dockerd without the containerd image store.
pub(super) async fn list(server: &Arc<Server>, request: &Request) -> Handled {
    let version = request.version;
    let shared = request.query.flag("shared-size");
    let filters = http::filters(&request.query)?;
    let rows = server
        .engine(move |engine| {
            let mut images = engine.images()?.items;
            engine.filter_images(&mut images, &filters)?;
            let unique = if shared {
                Some(engine.unique_bytes()?)
            } else {
                None
            };
            Ok(rows(images, version, unique.as_ref()))
        })
        .await?;
    http::json(StatusCode::OK, &rows)
}

/// The platforms that a request names in JSON.
fn platforms(request: &Request, parameter: &str) -> Handled<Vec<String>> {
    let given = request.query.all(parameter);
    given
        .filter(|text| !text.is_empty())
        .map(platform)
        .collect()
}

pub(super) async fn inspect(server: &Arc<Server>, request: &Request, name: String) -> Handled {
    let version = request.version;
    let platforms = platforms(request, "platform")?;
    let body = server
        .engine(move |engine| {
            engine.check_platforms(&name, platforms.iter().map(String::as_str))?;
            let mut shown = engine.inspect_image(&name)?;
            if version < Version(1, 44)
                && let Some(fields) = shown.as_object_mut()
                && let Some(size) = fields.get("Size").cloned()
            {
                fields.insert("VirtualSize".into(), size);
            }
            Ok(shown)
        })
        .await?;
    http::json(StatusCode::OK, &body)
}

/// Removes unused images.
pub(super) async fn prune(server: &Arc<Server>, request: &Request) -> Handled {
    let filters = http::filters(&request.query)?;
    let pruned = server
        .engine(move |engine| engine.prune_images(&filters))
        .await?;
    let removed: Vec<Value> = pruned.removed.into_iter().filter_map(removed).collect();
    let body = json!({"ImagesDeleted": removed, "SpaceReclaimed": pruned.bytes});
    http::json(StatusCode::OK, &body)
}

pub(super) async fn history(server: &Arc<Server>, request: &Request, name: String) -> Handled {
    let platforms = platforms(request, "platform")?;
    let steps = server
        .engine(move |engine| {
            engine.check_platforms(&name, platforms.iter().map(String::as_str))?;
            engine.history(&name)
        })
        .await?;
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

fn removed(removed: Removed) -> Option<Value> {
    match removed {
        Removed::Untagged(name) => Some(json!({"Untagged": name})),
        Removed::Deleted(id) => Some(json!({"Deleted": id.to_string()})),
        Removed::DeletedLayers(chain) => Some(json!({"Deleted": chain.to_string()})),
        // The image is gone; `cowl check` names what is damaged.
        Removed::NotFreed(_) => None,
    }
}

/// `noprune` keeps untagged parents, which do not exist here.
pub(super) async fn remove(server: &Arc<Server>, request: &Request, name: String) -> Handled {
    let force = request.query.flag("force");
    if !platforms(request, "platforms")?.is_empty() {
        return Err(Refusal::invalid(
            "cowl removes an image with all its platforms: platforms is not supported",
        ));
    }
    let rows = server
        .engine(move |engine| {
            let mut done = Vec::new();
            engine.remove_image(&name, force, &mut done)?;
            Ok(done.into_iter().filter_map(removed).collect::<Vec<_>>())
        })
        .await?;
    http::json(StatusCode::OK, &rows)
}

pub(super) fn load(server: &Arc<Server>, request: Request) -> Handled {
    let platforms = platforms(&request, "platform")?;
    let quiet = request.query.flag("quiet");
    let archive = stream::upload(request.body).map_err(Error::from)?;
    let server = Arc::clone(server);
    let produce = move |stream: &stream::Stream| {
        let progress = LoadProgress::new(stream, quiet);
        let load = |engine: &Engine| {
            let request = LoadRequest {
                platforms: &platforms,
                watch: Some(&progress as &dyn Watch),
                ..LoadRequest::default()
            };
            engine.load_file(archive, Path::new(UPLOAD), &request)
        };
        match server.open().and_then(|engine| load(&engine)) {
            Err(error) => stream.json_error(&error),
            Ok(loaded) => progress.warn().and_then(|()| {
                loaded.iter().try_for_each(|image| {
                    for name in &image.tags {
                        stream.json(&json!({"stream": format!("Loaded image: {name}\n")}))?;
                    }
                    if image.tags.is_empty() {
                        let text = format!("Loaded image ID: {}\n", image.image);
                        stream.json(&json!({ "stream": text }))?;
                    }
                    Ok(())
                })
            }),
        }
    };
    Ok(stream::produce("application/json", produce))
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

/// The Dockerfile instructions of a request, one per parameter or line.
fn changes(request: &Request) -> Vec<String> {
    let all = request.query.all("changes").flat_map(str::lines);
    let lines = all.filter(|line| !line.is_empty());
    lines.map(str::to_owned).collect()
}

/// `docker commit`.
pub(super) async fn commit(server: &Arc<Server>, request: Request) -> Handled {
    let get = |name| request.query.get(name).unwrap_or_default().to_owned();
    let (container, author, comment) = (get("container"), get("author"), get("comment"));
    let changes = changes(&request);
    // The default is true (since API 1.13).
    let pause = request.query.get("pause").is_none() || request.query.flag("pause");
    let name = target(&request)?;
    let config: Option<ContainerConfig> = http::json_body_if_any(request.body).await?;
    let id = server
        .engine(move |engine| {
            engine.commit(&CommitRequest {
                changed: Changed::Container(&container),
                name: name.as_ref(),
                author: &author,
                comment: &comment,
                changes: &changes,
                pause,
                config: config.as_ref(),
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
    let name = target(&request)?;
    let changes = changes(&request);
    let get = |name| request.query.get(name).map(str::to_owned);
    let (message, platform) = (get("message").unwrap_or_default(), get("platform"));
    let archive = stream::upload(request.body).map_err(Error::from)?;
    let server = Arc::clone(server);
    let produce = move |stream: &stream::Stream| {
        let import = |engine: &Engine| {
            let request = ImportRequest {
                name: name.as_ref(),
                changes: &changes,
                message: &message,
                platform: platform.as_deref(),
                ..ImportRequest::default()
            };
            engine.import_file(&archive, &request)
        };
        match server.open().and_then(|engine| import(&engine)) {
            Err(error) => stream.json_error(&error),
            Ok(id) => stream.json(&json!({"status": id.to_string()})),
        }
    };
    Ok(stream::produce("application/json", produce))
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
        .engine(move |engine| {
            let selected = engine.select(&names, platform.as_deref())?;
            // Check first: the reply's status is sent before the archive.
            engine.check_selected(&selected)?;
            Ok(selected)
        })
        .await?;
    let server = Arc::clone(server);
    let produce = move |stream: &stream::Stream| {
        let out = BufWriter::with_capacity(CHUNK, stream);
        let saved = server
            .open()
            .and_then(|engine| engine.save_selected(&selected, out));
        saved.map_err(|error| io::Error::other(error.to_string()))
    };
    Ok(stream::produce("application/x-tar", produce))
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
