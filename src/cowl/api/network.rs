//! `/networks`: `host` and `none`, and `bridge`, which is only a loopback as yet.

use super::http::{self, Handled, Refusal, Request};
use super::route::no_page;
use crate::engine::docker::asks_nothing;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Name and driver of each network.
const NETWORKS: [(&str, &str); 3] = [("bridge", "bridge"), ("host", "host"), ("none", "null")];

/// Docker's `NetworkingConfig`: the endpoints of a new container by network.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct NetworkingConfig {
    endpoints_config: Option<BTreeMap<String, Option<Map<String, Value>>>>,
}

/// Refuses endpoint settings by name: no network has addresses or aliases.
pub(super) fn check(config: &NetworkingConfig) -> Handled<()> {
    for (network, endpoint) in config.endpoints_config.iter().flatten() {
        let known = network == "default"
            || network.starts_with("container:")
            || NETWORKS.iter().any(|(name, _)| name == network);
        if !known {
            return Err(not_found(network));
        }
        let mut fields = endpoint.iter().flatten();
        if let Some((field, value)) = fields.find(|(_, value)| !asks_nothing(value)) {
            return Err(Refusal::invalid(format!(
                "NetworkingConfig.EndpointsConfig.{network}.{field} is not supported: {value}"
            )));
        }
    }
    Ok(())
}

fn not_found(network: &str) -> Refusal {
    let text = format!("network {network} not found");
    Refusal::new(StatusCode::NOT_FOUND, text)
}

fn shape(name: &str, driver: &str) -> Value {
    json!({
        "Name": name,
        "Id": name,
        "Created": "0001-01-01T00:00:00Z",
        "Scope": "local",
        "Driver": driver,
        "EnableIPv4": true,
        "EnableIPv6": false,
        "IPAM": {"Driver": "default", "Options": null, "Config": null},
        "Internal": false,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": false,
        "Containers": {},
        "Options": {},
        "Labels": {},
    })
}

fn list(request: &Request) -> Handled {
    let filters = http::filters(&request.query)?;
    let mut found = Vec::new();
    for (name, driver) in NETWORKS {
        let mut wanted = true;
        for (key, values) in &filters {
            let is = |text: &str| values.iter().any(|value| value == text);
            wanted &= match key.as_str() {
                "name" | "id" => values.iter().any(|part| name.contains(part.as_str())),
                "driver" => is(driver),
                "scope" => is("local"),
                "type" => is("builtin"),
                // They have no labels, and are never dangling.
                "label" => false,
                "dangling" => is("false") || is("0"),
                _ => return Err(Refusal::invalid(format!("invalid filter '{key}'"))),
            };
        }
        if wanted {
            found.push(shape(name, driver));
        }
    }
    http::json(StatusCode::OK, &found)
}

pub(super) fn route(request: &Request, path: &[&str]) -> Handled {
    match (&request.method, path) {
        (&Method::GET, []) => list(request),
        (&Method::POST, ["prune"]) => http::json(StatusCode::OK, &json!({"NetworksDeleted": null})),
        (&Method::POST, ["create"]) => Err(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            "cowl has no networks of its own yet: use none, host or container:ID",
        )),
        (method, [name]) => match NETWORKS.iter().find(|(own, _)| own == name) {
            None => Err(not_found(name)),
            Some((name, driver)) if method == Method::GET => {
                http::json(StatusCode::OK, &shape(name, driver))
            }
            Some((name, _)) if method == Method::DELETE => Err(Refusal::new(
                StatusCode::FORBIDDEN,
                format!("{name} is a pre-defined network and cannot be removed"),
            )),
            Some(_) => Err(no_page()),
        },
        _ => Err(no_page()),
    }
}
