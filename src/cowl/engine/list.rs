//! `list`: containers by Docker's filters, newest first.

use super::container::config::{Config, MountSource};
use super::container::state::{State, Status};
use super::docker::ContainerConfig;
use super::error::{Error, Result};
use super::{Engine, Listing, duration, health, process};
use cowl_core::digest::DiffId;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Docker's filters: the values of each key. One value of each key must match; of labels, all.
pub type Filters = BTreeMap<String, Vec<String>>;

/// The parameters of [`Engine::list`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListRequest {
    /// Include those that do not run.
    pub all: bool,
    /// Only this many of the newest, running or not.
    pub limit: Option<usize>,
    /// Only those that match.
    pub filters: Filters,
}

/// A container in a list.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Its configuration.
    pub config: Config,
    /// Its state.
    pub state: State,
}

/// A parsed filter.
enum Filter {
    Id(Vec<String>),
    Name(Vec<String>),
    Label(Vec<String>),
    Exited(Vec<u8>),
    Status(Vec<String>),
    /// Image ids and stacks of layers.
    Ancestor(Vec<(String, Vec<DiffId>)>),
    /// Created before this time, at which the named container was created.
    Before(Timestamp),
    Since(Timestamp),
    Volume(Vec<String>),
    Health(Vec<String>),
    Network(Vec<String>),
}

impl Engine {
    /// The containers that match, newest first, and what could not be read.
    pub fn list(&self, request: &ListRequest) -> Result<Listing<Summary>> {
        let filters = request
            .filters
            .iter()
            .map(|(key, values)| self.filter(key, values))
            .collect::<Result<Vec<_>>>()?;
        // A filter by state implies `all`.
        let all = request.all
            || request.limit.is_some()
            || filters
                .iter()
                .any(|filter| matches!(filter, Filter::Status(_) | Filter::Exited(_)));
        let Listing { items, mut skipped } = self.containers.list()?;
        let mut found = Vec::new();
        for container in items {
            if request.limit.is_some_and(|limit| found.len() >= limit) {
                break;
            }
            let state = match container.state() {
                Ok(state) => state,
                Err(error) => {
                    skipped.push(error);
                    continue;
                }
            };
            let runs = matches!(
                state.status,
                Status::Running | Status::Paused | Status::Restarting(_)
            );
            let summary = Summary {
                config: container.config,
                state,
            };
            if (all || runs) && filters.iter().all(|filter| filter.matches(&summary)) {
                found.push(summary);
            }
        }
        Ok(Listing {
            items: found,
            skipped,
        })
    }

    /// Docker's JSON of a container in a list.
    pub fn listed(&self, summary: &Summary, now: Timestamp) -> Value {
        let config = &summary.config;
        let network = network(config);
        json!({
            "Id": config.id,
            "Names": [format!("/{}", config.name)],
            "Image": config.config.image,
            "ImageID": config.image_id.to_string(),
            "Command": summary.command(),
            "Created": config.created.as_second(),
            "Ports": [],
            "Labels": config.config.labels,
            "State": summary.state.status.word(),
            "Status": summary.status(now),
            "HostConfig": {"NetworkMode": network},
            "NetworkSettings": {"Networks": {network: super::inspect::endpoint()}},
            "Mounts": self.mount_points(config),
        })
    }

    fn filter(&self, key: &str, values: &[String]) -> Result<Filter> {
        let invalid = |value: &str| Error::invalid(format!("invalid filter '{key}={value}'"));
        let created = || {
            let mut at = None;
            for value in values {
                at = at.max(Some(self.containers.find(value)?.config.created));
            }
            at.ok_or_else(|| invalid(""))
        };
        Ok(match key {
            "id" => Filter::Id(values.to_vec()),
            "name" => Filter::Name(values.to_vec()),
            "label" => Filter::Label(values.to_vec()),
            "exited" => {
                let code = |value: &String| value.parse().map_err(|_syntax| invalid(value));
                Filter::Exited(values.iter().map(code).collect::<Result<_>>()?)
            }
            "status" => {
                const STATES: [&str; 7] = [
                    "created",
                    "running",
                    "paused",
                    "restarting",
                    "removing",
                    "exited",
                    "dead",
                ];
                if let Some(wrong) = values
                    .iter()
                    .find(|value| !STATES.contains(&value.as_str()))
                {
                    return Err(invalid(wrong));
                }
                Filter::Status(values.to_vec())
            }
            "ancestor" => {
                let mut images = Vec::new();
                for value in values {
                    // A missing image is the ancestor of no container.
                    if let Ok(image) = self.image(value) {
                        images.push((image.id.0.hex(), image.layers));
                    }
                }
                Filter::Ancestor(images)
            }
            "before" => Filter::Before(created()?),
            "since" => Filter::Since(created()?),
            "volume" => Filter::Volume(values.to_vec()),
            "health" => {
                const WORDS: [&str; 4] = ["starting", "healthy", "unhealthy", "none"];
                if let Some(wrong) = values.iter().find(|value| !WORDS.contains(&value.as_str())) {
                    return Err(Error::invalid(format!(
                        "unrecognised filter value for health: {wrong}"
                    )));
                }
                Filter::Health(values.to_vec())
            }
            "network" => Filter::Network(values.to_vec()),
            _ => return Err(Error::invalid(format!("invalid filter '{key}'"))),
        })
    }
}

impl Filter {
    fn matches(&self, summary: &Summary) -> bool {
        let config = &summary.config;
        match self {
            Self::Id(ids) => ids.iter().any(|id| matches(id, &config.id)),
            Self::Name(names) => names.iter().any(|name| {
                matches(name, &config.name) || matches(name, &format!("/{}", config.name))
            }),
            Self::Label(labels) => labels.iter().all(|label| has_label(&config.config, label)),
            Self::Exited(codes) => match &summary.state.status {
                Status::Exited(exit) => codes.contains(&exit.exit_code),
                _ => false,
            },
            Self::Status(words) => words
                .iter()
                .any(|word| word == summary.state.status.word()),
            Self::Ancestor(images) => images.iter().any(|(id, layers)| {
                config.image_id.0.hex() == *id
                    || !layers.is_empty() && config.layers.starts_with(layers)
            }),
            Self::Before(at) => config.created < *at,
            Self::Since(at) => config.created > *at,
            Self::Volume(volumes) => volumes.iter().any(|wanted| {
                config.mounts.iter().any(|mount| {
                    mount.destination == *wanted
                        || matches!(&mount.source, MountSource::Volume { name, .. } if name == wanted)
                })
            }),
            Self::Health(words) => {
                let health = summary.state.health.as_ref();
                let own = health.map_or("none", health::word);
                words.iter().any(|word| word == own)
            }
            Self::Network(networks) => networks.contains(&network(config)),
        }
    }
}

fn has_label(config: &ContainerConfig, label: &str) -> bool {
    match label.split_once('=') {
        Some((name, value)) => config.labels.get(name).is_some_and(|own| own == value),
        None => config.labels.contains_key(label),
    }
}

/// The network's name as Docker shows it.
pub fn network(config: &Config) -> String {
    match config.host.network_mode.as_str() {
        "" | "default" => "bridge".to_owned(),
        other => other.to_owned(),
    }
}

/// Whether a filter's pattern occurs in a text: `^ $ . *` as in regular expressions, everything
/// else literally.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    match pattern.split_first() {
        Some(('^', rest)) => matches_here(rest, &text),
        _ => (0..=text.len()).any(|at| matches_here(&pattern, text.get(at..).unwrap_or_default())),
    }
}

fn matches_here(pattern: &[char], text: &[char]) -> bool {
    match pattern {
        [] => true,
        ['$'] => text.is_empty(),
        [one, '*', rest @ ..] => {
            let run = text.iter().take_while(|c| *one == '.' || *c == one).count();
            (0..=run).any(|at| matches_here(rest, text.get(at..).unwrap_or_default()))
        }
        [one, rest @ ..] => match text.split_first() {
            Some((c, after)) => (*one == '.' || one == c) && matches_here(rest, after),
            None => false,
        },
    }
}

impl Summary {
    /// Docker's text for its state: `Up 3 minutes`.
    pub fn status(&self, now: Timestamp) -> String {
        let age = |then: Timestamp| {
            let seconds = now.duration_since(then).as_secs();
            duration::human(u64::try_from(seconds).unwrap_or_default())
        };
        match &self.state.status {
            Status::Created(_) | Status::Starting => "Created".to_owned(),
            Status::Running | Status::Paused => {
                let since = self.state.started_at.unwrap_or(self.config.created);
                let more = match (&self.state.status, &self.state.health) {
                    (Status::Paused, _) => " (Paused)".to_owned(),
                    (_, Some(health)) => match health::word(health) {
                        "starting" => " (health: starting)".to_owned(),
                        word => format!(" ({word})"),
                    },
                    (_, None) => String::new(),
                };
                format!("Up {}{more}", age(since))
            }
            Status::Restarting(exit) => {
                let ended = exit.finished_at.unwrap_or(self.config.created);
                format!("Restarting ({}) {} ago", exit.exit_code, age(ended))
            }
            Status::Exited(exit) => match exit.finished_at {
                Some(at) => format!("Exited ({}) {} ago", exit.exit_code, age(at)),
                None => format!("Exited ({})", exit.exit_code),
            },
        }
    }

    /// Its command on one line.
    pub fn command(&self) -> String {
        process::shown(&process::argv(&self.config.config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_a_part_unless_it_is_anchored() {
        let table = [
            ("web", "my-web2", true),
            ("^web", "my-web", false),
            ("^/web$", "/web", true),
            ("^/web$", "/web2", false),
            ("w.b", "wub", true),
            ("^w.*2$", "web-12", true),
            ("w*x", "wwx", true),
            ("", "any", true),
            ("x", "web", false),
        ];
        for (pattern, text, expected) in table {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
