//! `inspect`: everything about a container, in Docker's JSON.

use super::container::config::{Config, Mount, MountSource};
use super::container::state::{State, Status};
use super::error::Result;
use super::list::network;
use super::{Engine, process};
use cowl_core::upper::recorded_whiteouts;
use jiff::Timestamp;
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use std::os::fd::AsFd;
use std::path::Path;

/// Go's zero time.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// The kind of whiteouts in an upper, which its first mount determines; empty before that.
fn whiteouts(work: &Path) -> String {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(work) = rustix::fs::open(work, flags, Mode::empty()) else {
        return String::new();
    };
    match recorded_whiteouts(work.as_fd()) {
        Ok(recorded) => recorded.map_or_else(String::new, |kind| kind.to_string()),
        Err(error) => error.to_string(),
    }
}

impl Engine {
    /// A container by id, name or prefix of its id, in Docker's JSON.
    pub fn inspect(&self, needle: &str) -> Result<Value> {
        let container = self.containers.find(needle)?;
        let state = container.state()?;
        let config = &container.config;
        // Null if there are none, as in Docker.
        let execs = Some(self.running_execs(&container)?).filter(|execs| !execs.is_empty());
        let argv = process::argv(&config.config);
        let (path, arguments) = argv
            .split_first()
            .map_or(("", &[][..]), |(path, rest)| (path.as_str(), rest));
        let dir = self.store.root().join("containers").join(&config.id);
        let file = |name: &str| dir.join(name).display().to_string();
        Ok(json!({
            "Id": config.id,
            "Created": format!("{:.9}", config.created),
            "Path": path,
            "Args": arguments,
            "State": shown(&state),
            "Image": config.image_id.to_string(),
            "ResolvConfPath": file("resolv.conf"),
            "HostnamePath": file("hostname"),
            "HostsPath": file("hosts"),
            "LogPath": "",
            "Name": format!("/{}", config.name),
            "RestartCount": container.restart_record()?.count,
            "Driver": "cowl",
            "Platform": "linux",
            "MountLabel": "",
            "ProcessLabel": "",
            "AppArmorProfile": "",
            "ExecIDs": execs,
            "HostConfig": config.host.shown()?,
            "GraphDriver": {
                "Name": "cowl",
                "Data": {
                    "UpperDir": file("upper"),
                    "WorkDir": file("work"),
                    // The start fails if the host cannot provide the mode, so a started container
                    // has it.
                    "IoMode": config.host.io_mode()?.outcome(),
                    "Whiteouts": whiteouts(&dir.join("work")),
                },
            },
            "Mounts": self.mount_points(config),
            "Config": config.config,
            "NetworkSettings": network_settings(config),
        }))
    }

    /// The container's mounts as Docker's list of mount points.
    pub fn mount_points(&self, config: &Config) -> Value {
        let unlisted =
            |mount: &&Mount| matches!(mount.source, MountSource::Tmpfs { listed: false, .. });
        let mounts = config.mounts.iter().filter(|mount| !unlisted(mount));
        mounts.map(|mount| self.mount_point(mount)).collect()
    }

    fn mount_point(&self, mount: &Mount) -> Value {
        match &mount.source {
            MountSource::Volume {
                name, anonymous, ..
            } => json!({
                "Type": "volume",
                "Name": name,
                "Source": self.volumes.mountpoint(name),
                "Destination": mount.destination,
                "Driver": "local",
                // Docker's default for named volumes, though it relabels nothing here.
                "Mode": if mount.mode.is_empty() && !anonymous { "z" } else { &mount.mode },
                "RW": !mount.read_only,
                "Propagation": "",
            }),
            MountSource::Tmpfs { .. } => json!({
                "Type": "tmpfs",
                "Source": "",
                "Destination": mount.destination,
                "Mode": mount.mode,
                "RW": !mount.read_only,
                "Propagation": "",
            }),
            MountSource::Bind(path) => json!({
                "Type": "bind",
                "Source": path,
                "Destination": mount.destination,
                "Mode": mount.mode,
                "RW": !mount.read_only,
                "Propagation": match mount.bind.propagation.as_str() {
                    "" => "rprivate",
                    propagation => propagation,
                },
            }),
        }
    }
}

/// A network endpoint without addresses.
pub(super) fn endpoint() -> Value {
    json!({
        "IPAMConfig": null, "Links": null, "Aliases": null, "MacAddress": "", "DriverOpts": null,
        "GwPriority": 0, "NetworkID": "", "EndpointID": "", "Gateway": "", "IPAddress": "",
        "IPPrefixLen": 0, "IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0,
        "DNSNames": null,
    })
}

fn network_settings(config: &Config) -> Value {
    json!({
        "Bridge": "", "SandboxID": "", "SandboxKey": "", "Ports": {}, "HairpinMode": false,
        "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0, "SecondaryIPAddresses": null,
        "SecondaryIPv6Addresses": null, "EndpointID": "", "Gateway": "",
        "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "IPAddress": "", "IPPrefixLen": 0,
        "IPv6Gateway": "", "MacAddress": "", "Networks": {network(config): endpoint()},
    })
}

fn shown(state: &State) -> Value {
    let exit = match &state.status {
        Status::Exited(exit) | Status::Restarting(exit) => Some(exit),
        Status::Created(failed) => failed.as_ref(),
        Status::Starting | Status::Running | Status::Paused => None,
    };
    let time = |at: Option<Timestamp>| at.map_or(ZERO_TIME.to_owned(), |at| format!("{at:.9}"));
    let mut shown = json!({
        "Status": state.status.word(),
        // As in Docker, a container about to be restarted counts as running.
        "Running": matches!(
            state.status,
            Status::Running | Status::Paused | Status::Restarting(_)
        ),
        "Paused": state.status == Status::Paused,
        "Restarting": matches!(state.status, Status::Restarting(_)),
        "OOMKilled": exit.is_some_and(|exit| exit.oom_killed),
        "Dead": false,
        "Pid": state.pid,
        "ExitCode": exit.map_or(0, |exit| exit.exit_code),
        "Error": exit.map_or("", |exit| exit.error.as_str()),
        "StartedAt": time(state.started_at),
        "FinishedAt": time(exit.and_then(|exit| match state.status {
            Status::Exited(_) | Status::Restarting(_) => exit.finished_at,
            _ => None,
        })),
    });
    if let (Some(health), Value::Object(shown)) = (&state.health, &mut shown) {
        shown.insert("Health".to_owned(), health.clone());
    }
    shown
}
