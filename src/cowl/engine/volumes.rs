//! Creating, listing and removing named volumes. [`crate::volume`] defines what a volume is.

use super::error::{Error, Result};
use super::list::{Filters, matches};
use super::{Engine, Listing, new_id};
use crate::volume::{NewVolume, Volume, VolumeName, check_name};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The label that Docker gives to volumes with a generated name.
const ANONYMOUS: &str = "com.docker.volume.anonymous";
/// The only driver.
pub const DRIVER: &str = "local";

/// The parameters of [`Engine::create_volume`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeRequest {
    /// Generated if None.
    pub name: Option<String>,
    /// [`DRIVER`], or empty.
    pub driver: String,
    /// Labels by name.
    pub labels: BTreeMap<String, String>,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
}

/// Refuses any driver but [`DRIVER`].
pub(super) fn check_driver(driver: &str) -> Result<()> {
    if matches!(driver, "" | DRIVER) {
        return Ok(());
    }
    Err(Error::not_found(format!(
        "error looking up volume plugin {driver}: plugin \"{driver}\" not found"
    )))
}

impl Engine {
    /// All volumes, sorted by name.
    pub fn volumes(&self) -> Result<Listing<Volume>> {
        self.volumes.list()
    }

    /// Keeps the volumes that match Docker's filters.
    pub fn filter_volumes(&self, volumes: &mut Vec<Volume>, filters: &Filters) -> Result<()> {
        for (key, values) in filters {
            match key.as_str() {
                "name" => {
                    volumes.retain(|volume| values.iter().any(|part| matches(part, &volume.name)));
                }
                "driver" => volumes.retain(|_| values.iter().any(|driver| driver == DRIVER)),
                "label" => volumes.retain(|volume| {
                    let labels = labels_of(volume);
                    values.iter().all(|label| has_label(&labels, label))
                }),
                "dangling" => {
                    let wanted = values
                        .iter()
                        .map(|value| parse_bool("dangling", value))
                        .collect::<Result<Vec<_>>>()?;
                    let links = self.volume_links()?;
                    volumes.retain(|volume| {
                        let dangling = !links.contains_key(&volume.name);
                        wanted.contains(&dangling)
                    });
                }
                _ => return Err(Error::invalid(format!("invalid filter '{key}'"))),
            }
        }
        Ok(())
    }

    /// A volume in Docker's JSON.
    pub fn inspect_volume(&self, name: &str) -> Result<Value> {
        Ok(self.volume_shown(&self.volumes.find(name)?))
    }

    /// [`Engine::inspect_volume`] of a volume that was looked up already.
    pub fn volume_shown(&self, volume: &Volume) -> Value {
        let filled = |map: &BTreeMap<String, String>| {
            if map.is_empty() {
                Value::Null
            } else {
                json!(map)
            }
        };
        json!({
            "CreatedAt": volume.record.created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "Driver": DRIVER,
            "Labels": filled(&labels_of(volume)),
            "Mountpoint": self.volumes.mountpoint(&volume.name),
            "Name": volume.name,
            "Options": filled(&volume.record.options),
            "Scope": "local",
        })
    }

    /// Creates a volume and returns its name. An existing volume stays as it is.
    pub fn create_volume(&self, request: &VolumeRequest) -> Result<String> {
        check_driver(&request.driver)?;
        let wanted = request.name.as_deref().filter(|name| !name.is_empty());
        let name = match wanted {
            Some(name) => VolumeName::parse(name),
            None => VolumeName::parse(&new_id()?),
        };
        let name = name.map_err(Error::invalid)?;
        let asked = NewVolume {
            anonymous: wanted.is_none(),
            labels: request.labels.clone(),
            options: request.options.clone(),
        };
        let _guard = self.containers.guard()?;
        if !self.volumes.has(&name)? {
            self.volumes.create(&name, &asked)?;
            self.tell_volume(name.as_str(), "create", &[]);
        }
        Ok(name.to_string())
    }

    /// Removes a volume that no container uses. With `force` a missing volume is no error.
    pub fn remove_volume(&self, name: &str, force: bool) -> Result<()> {
        check_name(name)?;
        let guard = self.containers.guard()?;
        let users = self.users_of_volume(name)?;
        if !users.is_empty() {
            return Err(Error::conflict(format!(
                "remove {name}: volume is in use - [{}]",
                users.join(", ")
            )));
        }
        match (self.volumes.remove(name)?, force) {
            (true, _) => self.tell_volume(name, "destroy", &[]),
            (false, true) => {}
            (false, false) => {
                return Err(Error::not_found(format!("get {name}: no such volume")));
            }
        }
        drop(guard);
        self.volumes.purge()
    }

    /// Ids of the containers that use a volume.
    pub(super) fn users_of_volume(&self, name: &str) -> Result<Vec<String>> {
        let Listing { items, skipped } = self.containers.list()?;
        let users = items
            .into_iter()
            .filter(|container| container.config.volumes().any(|used| used == name))
            .map(|container| container.config.id);
        // It is unknown which volumes a damaged container uses, so it may use this one.
        let damaged = skipped.iter().map(|_| "a damaged container".to_owned());
        Ok(users.chain(damaged).collect())
    }

    /// The number of containers that use each volume, if any does.
    pub fn volume_links(&self) -> Result<BTreeMap<String, usize>> {
        let mut links = BTreeMap::new();
        for container in self.containers.list()?.items {
            for name in container.config.volumes() {
                *links.entry(name.to_owned()).or_default() += 1;
            }
        }
        Ok(links)
    }
}

/// Its labels, with the one that Docker adds to an anonymous volume.
pub fn labels_of(volume: &Volume) -> BTreeMap<String, String> {
    let mut labels = volume.record.labels.clone();
    if volume.record.anonymous {
        labels.insert(ANONYMOUS.to_owned(), String::new());
    }
    labels
}

/// Whether the labels match `NAME` or `NAME=VALUE`.
pub(super) fn has_label(labels: &BTreeMap<String, String>, label: &str) -> bool {
    match label.split_once('=') {
        Some((name, value)) => labels.get(name).is_some_and(|own| own == value),
        None => labels.contains_key(label),
    }
}

/// The value of a boolean filter.
pub(super) fn parse_bool(key: &str, value: &str) -> Result<bool> {
    match value {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(Error::invalid(format!("invalid filter '{key}={value}'"))),
    }
}
