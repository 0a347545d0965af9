//! `/containers/{id}/update`.

use super::Server;
use super::http::{self, Handled, Refusal, Request};
use crate::engine::docker::{Resources, RestartPolicy, asks_nothing};
use crate::engine::update::UpdateRequest;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Docker's `UpdateConfig`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Update {
    #[serde(flatten)]
    resources: Resources,
    #[serde(default)]
    restart_policy: Option<RestartPolicy>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

pub(super) async fn update(server: &Arc<Server>, request: Request, name: String) -> Handled {
    let asked: Update = http::json_body(request.body).await?;
    if let Some((field, _)) = asked.other.iter().find(|(_, value)| !asks_nothing(value)) {
        return Err(Refusal::invalid(format!("{field} can't be updated")));
    }
    let asked = UpdateRequest {
        resources: asked.resources,
        restart_policy: asked.restart_policy.unwrap_or_default(),
    };
    let warnings = server
        .engine(move |engine| engine.update(&name, &asked))
        .await?;
    http::json(StatusCode::OK, &json!({ "Warnings": warnings }))
}
