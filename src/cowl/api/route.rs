//! Maps paths to handlers.

use super::http::{self, Handled, Refusal, Reply, Request};
use super::{
    Server, archive, attach, containers, events, exec, images, life, logs, network, stats, system,
    update, volumes,
};
use hyper::{Method, StatusCode};
use std::sync::Arc;

/// Docker's reply to an unknown path.
pub(super) fn no_page() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "page not found")
}

/// Docker's reply to requests that need a swarm.
pub(super) fn no_swarm() -> Refusal {
    Refusal::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
    )
}

pub(super) async fn route(server: &Arc<Server>, request: Request) -> Handled {
    let path = request.path.clone();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path.first().copied() {
        Some("images") => images(server, request, path.get(1..).unwrap_or_default()).await,
        Some("volumes") => volumes(server, request, path.get(1..).unwrap_or_default()).await,
        Some("containers") => containers(server, request, path.get(1..).unwrap_or_default()).await,
        Some("exec") => exec(server, request, path.get(1..).unwrap_or_default()).await,
        Some("networks") => network::route(&request, path.get(1..).unwrap_or_default()),
        _ => system(server, request, &path).await,
    }
}

async fn system(server: &Arc<Server>, request: Request, path: &[&str]) -> Handled {
    match (&request.method, path) {
        (&Method::GET | &Method::HEAD, ["_ping"]) => Ok(system::ping(&request.method)),
        (&Method::GET, ["version"]) => http::json(StatusCode::OK, &system::version()),
        (&Method::GET, ["info"]) => system::info(server).await,
        (&Method::GET, ["events"]) => events::events(server, &request),
        (&Method::GET, ["system", "df"]) => system::disk_usage(server, &request).await,
        (&Method::POST, ["commit"]) => images::commit(server, request).await,
        (&Method::GET, ["plugins"]) => Ok(empty_list()),
        (&Method::POST, ["build", "prune"]) => system::prune_builds(),
        (&Method::POST, ["auth"]) => Err(not_implemented("cowl does not log in to registries")),
        (&Method::GET, ["distribution", .., "json"]) => {
            Err(not_implemented("cowl does not ask registries"))
        }
        (&Method::POST, ["build"]) => Err(not_implemented(
            "cowl does not build images: build elsewhere and load the image from an archive (docker load)",
        )),
        (&Method::POST, ["session" | "grpc"]) => {
            Err(not_implemented("cowl has no sessions of BuildKit"))
        }
        (
            _,
            [
                "swarm" | "services" | "nodes" | "tasks" | "secrets" | "configs",
                ..,
            ],
        ) => Err(no_swarm()),
        _ => Err(no_page()),
    }
}

/// The reply to a part of Docker's API that cowl does not implement.
fn not_implemented(text: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_IMPLEMENTED, text)
}

fn empty_list() -> Reply {
    http::reply(StatusCode::OK, "application/json", "[]\n")
}

/// Image names contain slashes, so paths are matched from the end.
async fn images(server: &Arc<Server>, request: Request, path: &[&str]) -> Handled {
    match (&request.method.clone(), path) {
        (&Method::GET, ["json"]) => images::list(server, &request).await,
        (&Method::POST, ["load"]) => images::load(server, request),
        (&Method::POST, ["create"]) => images::create(server, request),
        (&Method::GET, ["get"]) => images::save(server, &request, None).await,
        (&Method::GET, [name @ .., "get"]) => {
            images::save(server, &request, Some(name.join("/"))).await
        }
        (&Method::POST, ["prune"]) => images::prune(server, &request).await,
        (&Method::GET, ["search"]) => Err(not_implemented("cowl does not search registries")),
        (&Method::POST, [_, .., "push"]) => Err(not_implemented(
            "cowl does not push to registries: save the image to an archive (docker save)",
        )),
        (&Method::GET, [name @ .., "json"]) => {
            images::inspect(server, &request, name.join("/")).await
        }
        (&Method::GET, [name @ .., "history"]) => {
            images::history(server, &request, name.join("/")).await
        }
        (&Method::POST, [name @ .., "tag"]) => images::tag(server, &request, name.join("/")).await,
        (&Method::DELETE, name @ [_, ..]) => images::remove(server, &request, name.join("/")).await,
        _ => Err(no_page()),
    }
}

async fn volumes(server: &Arc<Server>, request: Request, path: &[&str]) -> Handled {
    match (&request.method.clone(), path) {
        (&Method::GET, []) => volumes::list(server, &request).await,
        (&Method::POST, ["create"]) => volumes::create(server, request).await,
        (&Method::POST, ["prune"]) => volumes::prune(server, &request).await,
        (&Method::GET, [name]) => volumes::inspect(server, (*name).to_owned()).await,
        (&Method::DELETE, [name]) => volumes::remove(server, &request, (*name).to_owned()).await,
        _ => Err(no_page()),
    }
}

async fn containers(server: &Arc<Server>, request: Request, path: &[&str]) -> Handled {
    match (&request.method.clone(), path) {
        (&Method::GET, ["json"]) => containers::list(server, &request).await,
        (&Method::POST, ["create"]) => containers::create(server, request).await,
        (&Method::POST, ["prune"]) => containers::prune(server, &request).await,
        (&Method::GET, [name, "json"]) => {
            containers::inspect(server, &request, (*name).to_owned()).await
        }
        (&Method::HEAD, [name, "archive"]) => {
            archive::stat(server, &request, (*name).to_owned()).await
        }
        (&Method::GET, [name, "archive"]) => {
            archive::read(server, &request, (*name).to_owned()).await
        }
        (&Method::PUT, [name, "archive"]) => {
            archive::write(server, request, (*name).to_owned()).await
        }
        (&Method::GET, [name, "top"]) => stats::top(server, &request, (*name).to_owned()).await,
        (&Method::GET, [name, "stats"]) => stats::stats(server, &request, (*name).to_owned()).await,
        (&Method::GET, [name, "logs"]) => logs::logs(server, request, (*name).to_owned()).await,
        (&Method::GET, [name, "export"]) => archive::export(server, (*name).to_owned()).await,
        (&Method::GET, [name, "changes"]) => containers::changes(server, (*name).to_owned()).await,
        (&Method::POST, [name, verb]) => {
            verb_of_container(server, request, (*name).to_owned(), verb).await
        }
        (&Method::DELETE, [name]) => containers::remove(server, &request, (*name).to_owned()).await,
        _ => Err(no_page()),
    }
}

async fn exec(server: &Arc<Server>, request: Request, path: &[&str]) -> Handled {
    match (&request.method.clone(), path) {
        (&Method::GET, [id, "json"]) => exec::inspect(server, id).await,
        (&Method::POST, [id, "start"]) => exec::start(server, request, id).await,
        (&Method::POST, [id, "resize"]) => exec::resize(server, &request, id).await,
        _ => Err(no_page()),
    }
}

async fn verb_of_container(
    server: &Arc<Server>,
    request: Request,
    name: String,
    verb: &str,
) -> Handled {
    match verb {
        "attach" => attach::attach(server, request, name).await,
        "exec" => exec::create(server, request, name).await,
        "kill" => life::kill(server, &request, name).await,
        "pause" => life::pause(server, name).await,
        "rename" => containers::rename(server, &request, name).await,
        "resize" => life::resize(server, &request, name).await,
        "restart" => life::restart(server, &request, name).await,
        "start" => life::start(server, request, name).await,
        "stop" => life::stop(server, &request, name).await,
        "update" => update::update(server, request, name).await,
        "unpause" => life::unpause(server, name).await,
        "wait" => containers::wait(server, &request, name).await,
        _ => Err(no_page()),
    }
}
