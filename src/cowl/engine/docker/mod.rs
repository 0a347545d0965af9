//! Docker's `Config` and `HostConfig`: a client's request to create a container.
//!
//! The engine keeps them as requested (`containers/ID/config.json`) and shows them in `inspect`.
//! Parsing is as lenient as dockerd's: null means the default, and a command may be one string. A
//! field of [`HostConfig`] that this module does not know is kept in [`HostConfig::other`];
//! [`HostConfig::check_supported`] refuses one that asks for something.

mod devices;
mod host;
mod mount;
mod resources;

pub use devices::{DeviceMapping, Ulimit};
pub use host::{HostConfig, RestartPolicy, asks_nothing};
pub use mount::{BindOptions, DriverConfig, MountRequest, TmpfsOptions, VolumeOptions};
pub use resources::{Resources, ThrottleDevice, WeightDevice};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Docker's `Config`: the portable settings, which would be the same on another host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// Host name; empty for the first 12 digits of the id.
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
    /// The health check.
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
    /// The program and its first arguments; one empty string removes the image's.
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
    /// Seconds from that signal to SIGKILL; 10 by default, negative to wait for ever.
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
    /// Interval between two checks.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub interval: i64,
    /// Timeout of one check.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub timeout: i64,
    /// Time after the start during which failures do not count.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub start_period: i64,
    /// Interval between two checks during that time.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub start_interval: i64,
    /// Failures in a row that make it unhealthy.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub retries: i64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Null stands for the default.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A command: a list of strings, or one string for a single word.
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
    use serde_json::json;

    #[test]
    fn a_command_may_be_a_string() {
        let text = json!({"Cmd": "true", "Entrypoint": null, "Labels": null});
        let config: ContainerConfig = serde_json::from_value(text).unwrap();
        assert_eq!(config.cmd, Some(vec!["true".to_owned()]));
        assert_eq!(config.entrypoint, None);
    }
}
