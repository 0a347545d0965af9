//! `prune`: removes what nothing uses, by Docker's filters.

use super::container::state::Status;
use super::error::{Error, Kind, Result};
use super::events::Type;
use super::image::Removed;
use super::list::Filters;
use super::volumes::{has_label, labels_of, parse_bool};
use super::{Engine, duration};
use jiff::Timestamp;
use std::collections::BTreeMap;

/// The result of a prune.
#[derive(Debug)]
pub struct Pruned<T> {
    /// What was removed, in order.
    pub removed: Vec<T>,
    /// The bytes freed.
    pub bytes: u64,
}

impl<T> Default for Pruned<T> {
    fn default() -> Self {
        Self {
            removed: Vec::new(),
            bytes: 0,
        }
    }
}

/// Parsed filters.
#[derive(Debug, Default)]
struct Selection {
    until: Option<Timestamp>,
    labels: Vec<String>,
    other_labels: Vec<String>,
    /// Boolean filters of one kind of prune.
    switches: BTreeMap<String, bool>,
}

impl Selection {
    /// Parses the filters; `switches` are the boolean ones.
    fn parse(filters: &Filters, has_until: bool, switches: &[&str]) -> Result<Self> {
        let mut selection = Self::default();
        for (key, values) in filters {
            match key.as_str() {
                "label" => selection.labels.clone_from(values),
                "label!" => selection.other_labels.clone_from(values),
                "until" if has_until => {
                    let [value] = values.as_slice() else {
                        return Err(Error::invalid("more than one until filter specified"));
                    };
                    selection.until = Some(duration::moment(value, Timestamp::now())?);
                }
                key if switches.contains(&key) => {
                    for value in values {
                        let set = parse_bool(key, value)?;
                        selection.switches.insert(key.to_owned(), set);
                    }
                }
                _ => return Err(Error::invalid(format!("invalid filter '{key}'"))),
            }
        }
        Ok(selection)
    }

    fn admits(&self, created: Option<Timestamp>, labels: &BTreeMap<String, String>) -> bool {
        let is_old = match (self.until, created) {
            (Some(until), Some(created)) => created <= until,
            _ => true,
        };
        is_old
            && self.labels.iter().all(|label| has_label(labels, label))
            && !self
                .other_labels
                .iter()
                .any(|label| has_label(labels, label))
    }

    fn is_set(&self, switch: &str, default: bool) -> bool {
        self.switches.get(switch).copied().unwrap_or(default)
    }
}

impl Engine {
    /// Removes the stopped containers. Filters: `until`, `label`, `label!`.
    pub fn prune_containers(&self, filters: &Filters) -> Result<Pruned<String>> {
        let selection = Selection::parse(filters, true, &[])?;
        let mut pruned = Pruned::default();
        for (container, status) in self.containers()?.items {
            let config = &container.config;
            if !matches!(status, Status::Created(_) | Status::Exited(_))
                || !selection.admits(Some(config.created), &config.config.labels)
            {
                continue;
            }
            let size = self.changed_bytes(&container)?;
            match self.remove(&config.id, false, false) {
                Ok(()) => {}
                // Started or removed in the meantime.
                Err(error) if matches!(error.kind(), Kind::Conflict | Kind::NotFound) => continue,
                Err(error) => return Err(error),
            }
            pruned.bytes += size;
            pruned.removed.push(config.id.clone());
        }
        self.tell_prune(Type::Container, pruned.bytes);
        Ok(pruned)
    }

    /// Removes the anonymous volumes that no container uses; with the filter `all`, the named ones
    /// too. Filters: `all`, `label`, `label!`.
    pub fn prune_volumes(&self, filters: &Filters) -> Result<Pruned<String>> {
        let selection = Selection::parse(filters, false, &["all"])?;
        let all = selection.is_set("all", false);
        let links = self.volume_links()?;
        let mut pruned = Pruned::default();
        for volume in self.volumes()?.items {
            let name = &volume.name;
            if links.contains_key(name)
                || !(all || volume.record.anonymous)
                || !selection.admits(None, &labels_of(&volume))
            {
                continue;
            }
            let size = self.volume_bytes(&volume)?;
            match self.remove_volume(name, false) {
                Ok(()) => {}
                // Used or removed in the meantime.
                Err(error) if matches!(error.kind(), Kind::Conflict | Kind::NotFound) => continue,
                Err(error) => return Err(error),
            }
            pruned.bytes += size;
            pruned.removed.push(name.clone());
        }
        self.tell_prune(Type::Volume, pruned.bytes);
        Ok(pruned)
    }

    /// Removes the images without a name that nothing uses; with `dangling=false`, those with names
    /// too. Filters: `dangling`, `until`, `label`, `label!`.
    pub fn prune_images(&self, filters: &Filters) -> Result<Pruned<Removed>> {
        let selection = Selection::parse(filters, true, &["dangling"])?;
        let dangling = selection.is_set("dangling", true);
        let mut pruned = Pruned::default();
        for image in self.images()?.items {
            let wanted = image.damage.is_none()
                && (image.reference.is_none() || !dangling)
                && selection.admits(image.created, &image.labels);
            if !wanted || !self.users_of_image(image.id)?.is_empty() {
                continue;
            }
            let needle = match &image.reference {
                Some(name) => name.to_string(),
                None => image.id.to_string(),
            };
            match self.remove_image(&needle, false, &mut pruned.removed) {
                Ok(bytes) => pruned.bytes += bytes,
                // Used or removed in the meantime.
                Err(error) if matches!(error.kind(), Kind::Conflict | Kind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        self.tell_prune(Type::Image, pruned.bytes);
        Ok(pruned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(filters: &[(&str, &str)]) -> Result<Selection> {
        let filters = filters
            .iter()
            .map(|(key, value)| ((*key).to_owned(), vec![(*value).to_owned()]))
            .collect();
        Selection::parse(&filters, true, &["dangling"])
    }

    #[test]
    fn filters_of_prunes_select_by_age_and_labels() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        let (old, new) = (at("2020-01-01T00:00:00Z"), at("2026-01-01T00:00:00Z"));
        let table = [
            (vec![], new, true),
            (vec![("until", "2022-01-01T00:00:00Z")], old, true),
            (vec![("until", "2022-01-01T00:00:00Z")], new, false),
            (vec![("label", "a")], new, true),
            (vec![("label", "a=2")], new, false),
            (vec![("label!", "a=1")], new, false),
            (vec![("label!", "b")], new, true),
        ];
        for (filters, created, expected) in table {
            let selected = selection(&filters).unwrap().admits(created, &labels);
            assert_eq!(selected, expected, "{filters:?}");
        }
        for filters in [
            [("until", "soon")],
            [("colour", "red")],
            [("dangling", "2")],
        ] {
            selection(&filters).unwrap_err();
        }
    }
}
