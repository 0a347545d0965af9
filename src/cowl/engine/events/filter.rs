//! Docker's filters of events (moby, `daemon/events/filter.go`).

use super::{Event, Type};
use crate::engine::error::{Error, Result};
use crate::engine::list::Filters;
use crate::engine::volumes::has_label;

/// A client's filter. One value of each key must match; of labels, all.
#[derive(Debug, Clone, Default)]
pub struct EventFilter(Filters);

/// The keys. Some match nothing: cowl has no such objects.
const KEYS: [&str; 13] = [
    "type",
    "event",
    "scope",
    "label",
    "image",
    "container",
    "volume",
    "network",
    "daemon",
    "plugin",
    "service",
    "node",
    "secret",
];
/// The keys that name an object by a prefix of its id or name.
const NAME_KEYS: [&str; 8] = [
    "container",
    "volume",
    "network",
    "daemon",
    "plugin",
    "service",
    "node",
    "secret",
];
/// Actions followed by a colon and an argument.
const WITH_ARGUMENT: [&str; 3] = ["exec_create", "exec_start", "health_status"];

impl EventFilter {
    /// Reads filters.
    ///
    /// # Errors
    /// A key that is unknown.
    pub fn parse(filters: &Filters) -> Result<Self> {
        match filters.keys().find(|key| !KEYS.contains(&key.as_str())) {
            Some(key) => Err(Error::invalid(format!("invalid filter '{key}'"))),
            None => Ok(Self(filters.clone())),
        }
    }

    /// Whether an event matches.
    pub fn admits(&self, event: &Event) -> bool {
        let name = event
            .actor
            .attributes
            .get("name")
            .map_or("", String::as_str);
        let id = event.actor.id.as_str();
        let begins = |value: &str| id.starts_with(value) || name.starts_with(value);
        self.any("type", |value| value == event.kind.word())
            && self.any("scope", |value| value == event.scope)
            && self.any("event", |value| is_action(value, &event.action))
            && NAME_KEYS.iter().all(|key| self.any(key, begins))
            && self.any("image", |value| is_image(value, event))
            && self
                .values("label")
                .iter()
                .all(|label| has_label(&event.actor.attributes, label))
    }

    fn values(&self, key: &str) -> &[String] {
        self.0.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    fn any(&self, key: &str, matches: impl Fn(&str) -> bool) -> bool {
        let values = self.values(key);
        values.is_empty() || values.iter().any(|value| matches(value))
    }
}

fn is_action(value: &str, action: &str) -> bool {
    action == value || WITH_ARGUMENT.contains(&value) && action.starts_with(value)
}

/// By id or name, with or without a tag.
fn is_image(value: &str, event: &Event) -> bool {
    let attribute = match event.kind {
        Type::Image => "name",
        Type::Container | Type::Volume => "image",
    };
    let name = event
        .actor
        .attributes
        .get(attribute)
        .map_or("", String::as_str);
    let untagged = match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    };
    value == event.actor.id || value == name || value == untagged
}

#[cfg(test)]
mod tests {
    use super::super::Actor;
    use super::*;
    use std::collections::BTreeMap;

    fn event(kind: Type, action: &str, id: &str, attributes: &[(&str, &str)]) -> Event {
        let attributes = attributes.iter();
        let attributes = attributes.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Event {
            kind,
            action: action.to_owned(),
            actor: Actor {
                id: id.to_owned(),
                attributes: attributes.collect(),
            },
            scope: "local".to_owned(),
            time: 0,
            time_nano: 0,
        }
    }

    #[test]
    fn filters_match_as_dockers() {
        let start = event(
            Type::Container,
            "start",
            "1a52",
            &[("image", "busybox:1"), ("name", "web"), ("a", "b")],
        );
        let exec = event(Type::Container, "exec_create: sh -c x", "1a52", &[]);
        let tag = event(
            Type::Image,
            "tag",
            "sha256:04",
            &[("name", "host:5000/x:1")],
        );
        let table: [(&Event, &str, &str, bool); 17] = [
            (&start, "type", "container", true),
            (&start, "type", "image", false),
            (&start, "event", "start", true),
            (&start, "event", "star", false),
            (&exec, "event", "exec_create", true),
            (&exec, "event", "exec_start", false),
            (&start, "container", "web", true),
            (&start, "container", "1a", true),
            (&start, "container", "db", false),
            (&start, "image", "busybox", true),
            (&start, "image", "busybox:1", true),
            (&start, "image", "busybox:2", false),
            (&tag, "image", "host:5000/x", true),
            (&tag, "image", "host", false),
            (&start, "label", "a=b", true),
            (&start, "label", "a=c", false),
            (&start, "scope", "swarm", false),
        ];
        for (event, key, value, expected) in table {
            let filters = BTreeMap::from([(key.to_owned(), vec![value.to_owned()])]);
            let filter = EventFilter::parse(&filters).unwrap();
            assert_eq!(filter.admits(event), expected, "{key}={value}");
        }
        let unknown = BTreeMap::from([("colour".to_owned(), vec!["red".to_owned()])]);
        let refused = EventFilter::parse(&unknown).unwrap_err().to_string();
        assert_eq!(refused, "invalid filter 'colour'");
    }
}
