//! Docker's `HostConfig`: the part of a container's configuration that depends on the host.

use super::devices::{DeviceMapping, Ulimit};
use super::mount::MountRequest;
use super::resources::Resources;
use super::{is_default, or_default};
use crate::engine::error::{Error, Result};
use cowl_core::handover::{IoModeChoice, NoIoMode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Docker's `HostConfig`: settings that depend on the host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    /// `-v`: `source:destination[:options]`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub binds: Vec<String>,
    /// `--tmpfs`: options by path.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub tmpfs: BTreeMap<String, String>,
    /// `--mount`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountRequest>,
    /// Containers whose volumes this one mounts too: `container[:ro]`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub volumes_from: Vec<String>,
    /// The container is removed when it ends, with its anonymous volumes.
    #[serde(deserialize_with = "or_default")]
    pub auto_remove: bool,
    /// `none`; empty, `default` and `bridge` for a loopback of its own; `host`; `container:ID`.
    #[serde(deserialize_with = "or_default")]
    pub network_mode: String,
    /// What happens when the program ends by itself.
    #[serde(deserialize_with = "or_default")]
    pub restart_policy: RestartPolicy,
    /// Capabilities beyond Docker's default ones, with or without `CAP_`; `ALL`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// Capabilities to drop; `ALL`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// The root is read-only.
    #[serde(deserialize_with = "or_default")]
    pub readonly_rootfs: bool,
    /// `seccomp=unconfined` or with a profile's text, `no-new-privileges`, `apparmor=`, `label=`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub security_opt: Vec<String>,
    /// `io`: an [`IoModeChoice`].
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub storage_opt: BTreeMap<String, String>,
    /// `inspect` shows them.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    /// Limits.
    #[serde(flatten)]
    pub resources: Resources,
    /// Adjusts the kernel's OOM score: -1000 to 1000.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub oom_score_adj: i64,
    /// Size of its /dev/shm in bytes.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub shm_size: i64,
    /// Name servers instead of the host's.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub dns: Vec<String>,
    /// Options of the resolver instead of the host's.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub dns_options: Vec<String>,
    /// Search domains instead of the host's; one dot for none.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub dns_search: Vec<String>,
    /// `name:address`, for /etc/hosts.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub extra_hosts: Vec<String>,
    /// Empty for its own, `host`, `container:ID`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub pid_mode: String,
    /// Empty, `private` and `shareable` for its own, `none` for its own without /dev/shm, `host`,
    /// `container:ID`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub ipc_mode: String,
    /// Empty for its own, `host`.
    #[serde(
        rename = "UTSMode",
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    pub uts_mode: String,
    /// Empty and `private` for its own, `host`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub cgroupns_mode: String,
    /// Empty and `host`: no container has one of its own.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub userns_mode: String,
    /// All capabilities and all devices.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub privileged: bool,
    /// The first process is cowl's own, which forwards signals and reaps orphans.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub init: Option<bool>,
    /// Devices of the host.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub devices: Vec<DeviceMapping>,
    /// Further devices that it may use: `c 42:* rwm`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub device_cgroup_rules: Vec<String>,
    /// Supplementary groups of the program, by name or number.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub group_add: Vec<String>,
    /// Kernel parameters (sysctls) of its namespaces.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub sysctls: BTreeMap<String, String>,
    /// Resource limits of its processes.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub ulimits: Vec<Ulimit>,
    /// Instead of Docker's list.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub masked_paths: Option<Vec<String>>,
    /// Instead of Docker's list.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub readonly_paths: Option<Vec<String>>,
    /// All other fields, as requested.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Docker's `RestartPolicy`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    /// Empty and `no`, `always`, `unless-stopped`, `on-failure`.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// Of `on-failure`: 0 for no limit.
    #[serde(deserialize_with = "or_default")]
    pub maximum_retry_count: i64,
}

impl HostConfig {
    /// How the files of the container's root are read and written.
    ///
    /// # Errors
    /// An unknown mode, or another storage option.
    pub fn io_mode(&self) -> Result<IoModeChoice> {
        let mut io_mode = IoModeChoice::Auto;
        for (name, value) in &self.storage_opt {
            if name != "io" {
                return Err(Error::invalid(format!(
                    "invalid storage option: {name:?} (known: io)"
                )));
            }
            let known = |error: NoIoMode| Error::invalid(error.to_string());
            io_mode = value.parse().map_err(known)?;
        }
        Ok(io_mode)
    }

    /// Refuses fields that ask for something unsupported, by name.
    pub fn check_supported(&self) -> Result<()> {
        self.restart_policy.check(self.auto_remove)?;
        for mount in &self.mounts {
            let volume = mount.volume_options.as_ref();
            let driver = volume.and_then(|options| options.driver_config.as_ref());
            let options = [
                Some(&mount.other),
                mount.bind_options.as_ref().map(|options| &options.other),
                volume.map(|options| &options.other),
                driver.map(|driver| &driver.other),
                mount.tmpfs_options.as_ref().map(|options| &options.other),
            ];
            for (key, value) in options.into_iter().flatten().flatten() {
                if !asks_nothing(value) {
                    return Err(not_supported(&format!("Mounts.{key}"), value));
                }
            }
        }
        for (key, value) in &self.other {
            let is_default = match key.as_str() {
                // The client's terminal size and id file. `create` checks the log's options.
                "ConsoleSize" | "ContainerIDFile" | "LogConfig" => true,
                _ => false,
            };
            if !is_default && !asks_nothing(value) {
                return Err(not_supported(key, value));
            }
        }
        Ok(())
    }

    /// The whole `HostConfig` as `inspect` shows it: Docker's defaults and the request.
    pub fn shown(&self) -> Result<Value> {
        let mut shown = defaults()?;
        let Value::Object(asked) = serde_json::to_value(self)? else {
            return Err(Error::failed("HostConfig is not an object"));
        };
        for (key, value) in asked {
            if !value.is_null() {
                shown.insert(key, value);
            }
        }
        if matches!(self.network_mode.as_str(), "" | "default") {
            shown.insert("NetworkMode".to_owned(), json!("bridge"));
        }
        if self.restart_policy.name.is_empty() {
            let policy = json!({"Name": "no", "MaximumRetryCount": 0});
            shown.insert("RestartPolicy".to_owned(), policy);
        }
        Ok(Value::Object(shown))
    }
}

fn not_supported(key: &str, value: &Value) -> Error {
    Error::invalid(format!("{key} is not supported: {value}"))
}

/// Whether an unknown field has a default value: null, false, 0 or empty.
pub fn asks_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.values().all(asks_nothing),
    }
}

/// What dockerd 28.5 shows for a container created without options.
fn defaults() -> Result<Map<String, Value>> {
    let mut fields: Map<String, Value> = serde_json::from_str(include_str!("host.json"))?;
    let masked = json!(cowl_launch::sandbox::DEFAULT_MASKED_PATHS);
    let readonly = json!(cowl_launch::sandbox::DEFAULT_READONLY_PATHS);
    fields.insert("MaskedPaths".to_owned(), masked);
    fields.insert("ReadonlyPaths".to_owned(), readonly);
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_kept_unchanged() {
        let text = json!({"Memory": 1 << 20, "NanoCpus": 1_500_000_000, "Binds": null, "Dns": []});
        let asked: HostConfig = serde_json::from_value(text).unwrap();
        assert_eq!(asked.resources.memory, 1 << 20);
        let shown = asked.shown().unwrap();
        assert_eq!(shown["NanoCpus"], json!(1_500_000_000));
        assert_eq!(shown["NetworkMode"], json!("bridge"));
        assert_eq!(shown["Binds"], Value::Null);
        let again: HostConfig =
            serde_json::from_value(serde_json::to_value(&asked).unwrap()).unwrap();
        assert_eq!(again, asked);
    }

    #[test]
    fn storage_option_io_is_the_io_mode() {
        let read = |options: Value| {
            let asked: HostConfig = serde_json::from_value(options).unwrap();
            asked.io_mode().map_err(|error| error.to_string())
        };
        let with = |name: &str, value: &str| read(json!({"StorageOpt": {name: value}}));
        assert_eq!(read(json!({"StorageOpt": null})), Ok(IoModeChoice::Auto));
        assert_eq!(with("io", "passthrough"), Ok(IoModeChoice::Passthrough));
        let said = "`fast` is no I/O mode: use auto, cached, passthrough or writeback";
        assert_eq!(with("io", "fast"), Err(said.to_owned()));
        let said = "invalid storage option: \"size\" (known: io)";
        assert_eq!(with("size", "1G"), Err(said.to_owned()));
    }

    #[test]
    fn check_supported_refuses_fields_by_name() {
        let refused = |request: Value| {
            let asked: HostConfig = serde_json::from_value(request).unwrap();
            asked.check_supported().unwrap_err().to_string()
        };
        let table = [
            (
                json!({"Runtime": "kata"}),
                "Runtime is not supported: \"kata\"",
            ),
            (
                json!({"Mounts": [{"Type": "volume", "Consistency": "cached"}]}),
                "Mounts.Consistency is not supported: \"cached\"",
            ),
        ];
        for (request, text) in table {
            assert_eq!(refused(request), text);
        }
    }

    /// What docker 28.2 sends for `run busybox`.
    #[test]
    fn a_clients_defaults_are_accepted() {
        let request = json!({
            "Binds": null, "ContainerIDFile": "", "LogConfig": {"Type": "", "Config": {}},
            "NetworkMode": "default", "PortBindings": {},
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": true,
            "ConsoleSize": [24, 80], "MemorySwappiness": -1, "PidsLimit": 0, "Dns": [],
            "OomKillDisable": false, "MaskedPaths": null
        });
        let asked: HostConfig = serde_json::from_value(request).unwrap();
        asked.check_supported().unwrap();
    }
}
