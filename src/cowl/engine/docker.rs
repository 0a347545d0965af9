//! Docker's `Config` and `HostConfig`: what a client asks for at a container's creation.
//!
//! The engine keeps them as they were asked for (`containers/ID/config.json`) and gives them back
//! in `inspect`. Reading is lenient, as dockerd's: null stands for a default, and a command may be
//! one string. A field of [`HostConfig`] that this module does not know is kept in
//! [`HostConfig::other`]; [`HostConfig::check_supported`] refuses one that asks for something.

use super::error::{Error, Result};
use cowl_core::handover::{IoModeChoice, NoIoMode};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Docker's `Config`: what belongs to the program and would be the same on another host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// Of the container's own UTS namespace; empty for the first 12 digits of the id.
    #[serde(deserialize_with = "or_default")]
    pub hostname: String,
    /// NIS domain name.
    #[serde(deserialize_with = "or_default")]
    pub domainname: String,
    /// `name|uid[:group|gid]`.
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    /// The client that creates it will attach to standard input.
    #[serde(deserialize_with = "or_default")]
    pub attach_stdin: bool,
    /// The same for standard output.
    #[serde(deserialize_with = "or_default")]
    pub attach_stdout: bool,
    /// The same for standard error.
    #[serde(deserialize_with = "or_default")]
    pub attach_stderr: bool,
    /// Ports that the program listens on: `80/tcp`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Map::is_empty")]
    pub exposed_ports: Map<String, Value>,
    /// The program has a terminal.
    #[serde(deserialize_with = "or_default")]
    pub tty: bool,
    /// Standard input is kept open, not /dev/null.
    #[serde(deserialize_with = "or_default")]
    pub open_stdin: bool,
    /// Standard input ends with the first client that attached to it.
    #[serde(deserialize_with = "or_default")]
    pub stdin_once: bool,
    /// `NAME=VALUE`, or a bare `NAME` to unset the image's.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Arguments of the entrypoint, or program and arguments.
    #[serde(deserialize_with = "words")]
    pub cmd: Option<Vec<String>>,
    /// How the health of the program is tested.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Option::is_none"
    )]
    pub healthcheck: Option<Healthcheck>,
    /// The image as the client names it.
    #[serde(deserialize_with = "or_default")]
    pub image: String,
    /// Paths that get an anonymous volume.
    #[serde(deserialize_with = "or_default")]
    pub volumes: Option<Map<String, Value>>,
    /// Empty: the image's, else `/`.
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    /// The program and its first arguments; one empty word removes the image's.
    #[serde(deserialize_with = "words")]
    pub entrypoint: Option<Vec<String>>,
    /// Instructions for images built from this one.
    #[serde(deserialize_with = "or_default")]
    pub on_build: Option<Vec<String>>,
    /// Labels.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// The signal of `stop`; empty for SIGTERM.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub stop_signal: String,
    /// Seconds from that signal to SIGKILL; 10 by default, negative for ever.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Option::is_none"
    )]
    pub stop_timeout: Option<i64>,
    /// The shell of the image's instructions in shell form.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Option::is_none"
    )]
    pub shell: Option<Vec<String>>,
}

/// Docker's `Healthcheck`; times in nanoseconds, 0 for the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// Empty: the image's. `NONE`, `CMD` and arguments, or `CMD-SHELL` and a command.
    #[serde(deserialize_with = "words", skip_serializing_if = "Option::is_none")]
    pub test: Option<Vec<String>>,
    /// Time between two tests.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub interval: i64,
    /// Longest time of one test.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub timeout: i64,
    /// Time after the start in which failures don't count.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub start_period: i64,
    /// Time between two tests in that time.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub start_interval: i64,
    /// Failures in a row that make it unhealthy.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub retries: i64,
}

/// Docker's `HostConfig`: what belongs to the host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    /// `-v`: `source:destination[:options]`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub binds: Vec<String>,
    /// `--mount`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountRequest>,
    /// Containers whose volumes this one mounts too: `container[:ro]`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub volumes_from: Vec<String>,
    /// The container is removed when it ends, with its anonymous volumes.
    #[serde(deserialize_with = "or_default")]
    pub auto_remove: bool,
    /// `none`, or empty, `default` and `bridge` for a loopback of its own.
    #[serde(deserialize_with = "or_default")]
    pub network_mode: String,
    /// What happens when the program ends by itself.
    #[serde(deserialize_with = "or_default")]
    pub restart_policy: RestartPolicy,
    /// Capabilities beyond Docker's default ones, with or without `CAP_`; `ALL`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// Capabilities that are taken away; `ALL`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// The root is read-only.
    #[serde(deserialize_with = "or_default")]
    pub readonly_rootfs: bool,
    /// `seccomp=unconfined`, `no-new-privileges`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub security_opt: Vec<String>,
    /// `io`: an [`IoModeChoice`].
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub storage_opt: BTreeMap<String, String>,
    /// Limit of memory in bytes; 0 for none.
    #[serde(deserialize_with = "or_default")]
    pub memory: i64,
    /// Limit of processes and threads; none, 0 or -1 for none.
    #[serde(deserialize_with = "or_default")]
    pub pids_limit: Option<i64>,
    /// Everything else, as it was asked for.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Docker's `Mount` of a request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MountRequest {
    /// `volume`, `bind` or `tmpfs`.
    #[serde(rename = "Type", deserialize_with = "or_default")]
    pub kind: String,
    /// Volume or path of the host; empty for an anonymous volume.
    #[serde(deserialize_with = "or_default")]
    pub source: String,
    /// Path in the container.
    #[serde(deserialize_with = "or_default")]
    pub target: String,
    /// Mounted read-only.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// Of `bind`.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Option::is_none"
    )]
    pub bind_options: Option<BindOptions>,
    /// Of `volume`.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Option::is_none"
    )]
    pub volume_options: Option<VolumeOptions>,
    /// Keys that this module does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Docker's `BindOptions`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BindOptions {
    /// A missing directory of the host is created.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub create_mountpoint: bool,
    /// Keys that this module does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Docker's `VolumeOptions`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeOptions {
    /// A new volume begins empty instead of with what the image has there.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub no_copy: bool,
    /// Labels of a new volume.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    /// Keys that this module does not know.
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

    /// Refuses what asks for something that the engine does not do, by its name.
    pub fn check_supported(&self) -> Result<()> {
        let network = self.network_mode.as_str();
        if !matches!(network, "" | "default" | "bridge" | "none") {
            return Err(not_supported("NetworkMode", &json!(network)));
        }
        self.restart_policy.check(self.auto_remove)?;
        for mount in &self.mounts {
            let options = [
                Some(&mount.other),
                mount.bind_options.as_ref().map(|options| &options.other),
                mount.volume_options.as_ref().map(|options| &options.other),
            ];
            for (key, value) in options.into_iter().flatten().flatten() {
                if !asks_nothing(value) {
                    return Err(not_supported(&format!("Mounts.{key}"), value));
                }
            }
        }
        for (key, value) in &self.other {
            let is_default = match key.as_str() {
                // How large the client's terminal is, and where it wrote the id. The log's options
                // are checked by `create`.
                "ConsoleSize" | "ContainerIDFile" | "LogConfig" => true,
                // What a client sends for "as the host does".
                "MemorySwappiness" => *value == json!(-1),
                "IpcMode" | "CgroupnsMode" => *value == json!("private"),
                _ => false,
            };
            if !is_default && !asks_nothing(value) {
                return Err(not_supported(key, value));
            }
        }
        Ok(())
    }

    /// The whole `HostConfig` as `inspect` shows it: Docker's defaults, and what was asked for.
    pub fn shown(&self) -> Result<Value> {
        let mut shown = defaults()?;
        let Value::Object(asked) = serde_json::to_value(self)? else {
            return Err(Error::failed("HostConfig is no object"));
        };
        for (key, value) in asked {
            if key != "MemorySwappiness" && !value.is_null() {
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

/// Whether a value of an unknown field is a default: null, false, 0, or empty.
fn asks_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.values().all(asks_nothing),
    }
}

/// What dockerd 28.5 shows for a container that asks for nothing.
fn defaults() -> Result<Map<String, Value>> {
    let mut fields: Map<String, Value> = serde_json::from_str(include_str!("hostconfig.json"))?;
    let masked = json!(cowl_launch::sandbox::DEFAULT_MASKED_PATHS);
    let readonly = json!(cowl_launch::sandbox::DEFAULT_READONLY_PATHS);
    fields.insert("MaskedPaths".to_owned(), masked);
    fields.insert("ReadonlyPaths".to_owned(), readonly);
    Ok(fields)
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Null stands for the default.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A command: a list of words, or one string for one word.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(String),
        List(Vec<String>),
    }
    Ok(match Option::deserialize(deserializer)? {
        None => None,
        Some(Words::One(word)) => Some(vec![word]),
        Some(Words::List(words)) => Some(words),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_kept_as_it_was_asked_for() {
        let text = json!({"Memory": 1 << 20, "NanoCpus": 1_500_000_000, "Binds": null, "Dns": []});
        let asked: HostConfig = serde_json::from_value(text).unwrap();
        assert_eq!(asked.memory, 1 << 20);
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
    fn what_is_not_done_is_refused_by_its_name() {
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
                json!({"NetworkMode": "my"}),
                "NetworkMode is not supported: \"my\"",
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

    #[test]
    fn a_command_may_be_a_string() {
        let text = json!({"Cmd": "true", "Entrypoint": null, "Labels": null});
        let config: ContainerConfig = serde_json::from_value(text).unwrap();
        assert_eq!(config.cmd, Some(vec!["true".to_owned()]));
        assert_eq!(config.entrypoint, None);
    }
}
