//! `cowl serve`: options and `daemon.json`, with dockerd's names and rules.

use super::args::Serve;
use super::image::warn;
use super::table::printable;
use super::{Stdout, host};
use crate::api;
use crate::engine::error::{Context as _, Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Read if it exists; a file given with --config-file must exist.
const DEFAULT_FILE: &str = "/etc/cowl/daemon.json";
/// The supported keys.
const KEYS: [&str; 4] = ["data-root", "group", "hosts", "storage-driver"];
/// dockerd's drivers. Their error says what cowl uses instead.
const FOREIGN_DRIVERS: [&str; 8] = [
    "overlay2",
    "overlay",
    "fuse-overlayfs",
    "aufs",
    "devicemapper",
    "btrfs",
    "zfs",
    "vfs",
];

/// `daemon.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct File {
    data_root: Option<PathBuf>,
    group: Option<String>,
    hosts: Option<Vec<String>>,
    storage_driver: Option<String>,
}

/// The server's settings.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    root: PathBuf,
    socket: PathBuf,
    group: Option<String>,
}

pub(super) fn serve(root: Option<PathBuf>, args: &Serve, out: &mut Stdout) -> Result<u8> {
    let file = read(args.config_file.as_deref())?;
    let settings = settings(root, args, file)?;
    let socket = &settings.socket;
    api::serve(
        settings.root.clone(),
        socket,
        settings.group.as_deref(),
        || {
            out.line(&printable(&format!("API listen on {}", socket.display())))?;
            Ok(out.flush()?)
        },
        |failed| warn(&failed),
    )?;
    Ok(0)
}

fn read(named: Option<&Path>) -> Result<File> {
    let path = named.unwrap_or(Path::new(DEFAULT_FILE));
    let text = match std::fs::read_to_string(path) {
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(File::default());
        }
        other => other.context(|| format!("reading {}", path.display()))?,
    };
    parse(&text).map_err(|error| error.context(format!("configuration file {}", path.display())))
}

fn parse(text: &str) -> Result<File> {
    let map: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| Error::invalid(error.to_string()))?;
    let unknown: Vec<&str> = map
        .keys()
        .map(String::as_str)
        .filter(|key| !KEYS.contains(key))
        .collect();
    if !unknown.is_empty() {
        return Err(Error::invalid(format!(
            "the following directives don't match any configuration option: {}",
            unknown.join(", ")
        )));
    }
    serde_json::from_value(map.into()).map_err(|error| Error::invalid(error.to_string()))
}

fn settings(root: Option<PathBuf>, args: &Serve, file: File) -> Result<Settings> {
    let both = |key: &str, flag: Option<String>, value: Option<String>| match (flag, value) {
        (Some(flag), Some(value)) => Err(Error::invalid(format!(
            "the following directives are specified both as a flag and in the configuration file: {key}: (from flag: {flag}, from file: {value})"
        ))),
        _ => Ok(()),
    };
    let shown = |path: &PathBuf| path.display().to_string();
    both(
        "data-root",
        root.as_ref().map(shown),
        file.data_root.as_ref().map(shown),
    )?;
    both("group", args.group.clone(), file.group.clone())?;
    let list = |hosts: &[String]| (!hosts.is_empty()).then(|| format!("[{}]", hosts.join(" ")));
    both(
        "hosts",
        list(&args.host),
        file.hosts.as_deref().and_then(list),
    )?;
    both(
        "storage-driver",
        args.storage_driver.clone(),
        file.storage_driver.clone(),
    )?;
    if let Some(driver) = args
        .storage_driver
        .as_ref()
        .or(file.storage_driver.as_ref())
    {
        check_driver(driver)?;
    }
    let hosts = if args.host.is_empty() {
        file.hosts.unwrap_or_default()
    } else {
        args.host.clone()
    };
    let socket = match hosts.as_slice() {
        [] => default_socket()?,
        [host] => socket_of(host)?,
        _ => {
            return Err(Error::invalid(
                "cowl serve listens on one socket: give one host",
            ));
        }
    };
    let root = root.or(file.data_root).or_else(super::root_of_environment);
    Ok(Settings {
        root: root.map_or_else(host::default_root, Ok)?,
        socket,
        group: args.group.clone().or(file.group),
    })
}

fn check_driver(driver: &str) -> Result<()> {
    if driver == "cowl" {
        return Ok(());
    }
    let text = if FOREIGN_DRIVERS.contains(&driver) {
        format!(
            "storage driver {driver}: not supported; cowl keeps layers content-addressed and mounts them itself, as root and as a user, on any file system: use \"cowl\" or leave storage-driver out"
        )
    } else {
        format!("storage driver {driver}: unknown; the only one is \"cowl\"")
    };
    Err(Error::invalid(text))
}

fn socket_of(host: &str) -> Result<PathBuf> {
    match host.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(PathBuf::from(path)),
        Some(_) => Err(Error::invalid(format!(
            "host {host}: the socket's path must be absolute: unix:///PATH"
        ))),
        None => Err(Error::invalid(format!(
            "host {host}: cowl serve listens on unix sockets only (unix:///PATH): whoever connects is root here"
        ))),
    }
}

fn default_socket() -> Result<PathBuf> {
    if host::is_privileged() {
        return Ok(PathBuf::from("/run/cowl/cowl.sock"));
    }
    std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .map(|path| path.join("cowl/cowl.sock"))
        .ok_or_else(|| {
            Error::invalid("no default socket: XDG_RUNTIME_DIR is unset; use --host unix:///PATH")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(args: &Serve, file: &str) -> Result<Settings, String> {
        let file = parse(file).map_err(|error| error.to_string())?;
        settings(Some(PathBuf::from("/r")), args, file).map_err(|error| error.to_string())
    }

    fn args() -> Serve {
        Serve {
            host: vec!["unix:///s".to_owned()],
            group: None,
            config_file: None,
            storage_driver: None,
        }
    }

    #[test]
    fn unknown_keys_are_named() {
        assert_eq!(
            with(&args(), r#"{"group": "g", "bip": "", "zzz": 1}"#).unwrap_err(),
            "the following directives don't match any configuration option: bip, zzz"
        );
    }

    #[test]
    fn a_key_given_as_flag_and_in_the_file_is_refused() {
        assert_eq!(
            with(&args(), r#"{"data-root": "/other"}"#).unwrap_err(),
            "the following directives are specified both as a flag and in the configuration file: data-root: (from flag: /r, from file: /other)"
        );
        assert_eq!(
            with(&args(), r#"{"hosts": ["unix:///t"]}"#).unwrap_err(),
            "the following directives are specified both as a flag and in the configuration file: hosts: (from flag: [unix:///s], from file: [unix:///t])"
        );
    }

    #[test]
    fn drivers_of_docker_are_answered_by_name() {
        for driver in ["overlay2", "aufs", "devicemapper"] {
            let error = with(&args(), &format!(r#"{{"storage-driver": "{driver}"}}"#));
            assert!(
                error
                    .unwrap_err()
                    .starts_with(&format!("storage driver {driver}: not supported;"))
            );
        }
        assert!(
            with(&args(), r#"{"storage-driver": "overlay3"}"#)
                .unwrap_err()
                .contains("unknown")
        );
        assert!(with(&args(), r#"{"storage-driver": "cowl"}"#).is_ok());
    }

    #[test]
    fn hosts_are_unix_sockets() {
        for host in ["tcp://0.0.0.0:2375", "unix://relative", "fd://"] {
            let args = Serve {
                host: vec![host.to_owned()],
                ..args()
            };
            assert!(
                with(&args, "{}")
                    .unwrap_err()
                    .starts_with(&format!("host {host}:"))
            );
        }
    }
}
