//! Which namespaces a container has: its own, the host's, or another container's.

use super::container::Container;
use super::docker::{ContainerConfig, HostConfig};
use super::error::{Context as _, Error, Result};
use super::{Engine, names};
use cowl_launch::control::Control;
use cowl_launch::sandbox::{CgroupNamespace, Namespace, Namespaces};
use rustix::fs::{Mode as FileMode, OFlags};
use std::os::fd::{AsFd as _, OwnedFd};

const CONTAINER: &str = "container:";

/// Where one namespace of a container comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode<'a> {
    Own,
    Host,
    Container(&'a str),
}

impl<'a> Mode<'a> {
    /// Reads a mode that has been [checked](check).
    pub(super) fn of(text: &'a str) -> Self {
        match text.strip_prefix(CONTAINER) {
            Some(container) => Self::Container(container),
            None if text == "host" => Self::Host,
            None => Self::Own,
        }
    }

    fn namespace(self) -> Namespace {
        match self {
            Self::Own => Namespace::New,
            Self::Host => Namespace::Host,
            Self::Container(_) => Namespace::Join,
        }
    }
}

/// The namespaces of a container, with the descriptors of those that it joins.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) namespaces: Namespaces,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Refuses unknown modes, and options that contradict a mode, with dockerd's texts (moby,
/// `runconfig/hostconfig_unix.go`).
pub(super) fn check(config: &ContainerConfig, host: &HostConfig) -> Result<()> {
    let unknown = |what: &str, mode: &str| Err(Error::invalid(format!("invalid {what}: {mode}")));
    let joins = |mode: &str| {
        mode.strip_prefix(CONTAINER)
            .is_some_and(|id| !id.is_empty())
    };
    if !matches!(host.pid_mode.as_str(), "" | "host") && !joins(&host.pid_mode) {
        return unknown("PID mode", &host.pid_mode);
    }
    match host.ipc_mode.as_str() {
        "" | "none" | "private" | "shareable" | "host" => {}
        mode if joins(mode) => {}
        mode => return unknown("IPC mode", mode),
    }
    if !matches!(host.uts_mode.as_str(), "" | "host") {
        return unknown("UTS mode", &host.uts_mode);
    }
    if !matches!(host.cgroupns_mode.as_str(), "" | "private" | "host") {
        return unknown("cgroup namespace mode", &host.cgroupns_mode);
    }
    // Without remapping, every container has the host's user namespace.
    if !matches!(host.userns_mode.as_str(), "" | "host") {
        return unknown("userns mode", &host.userns_mode);
    }
    check_network(config, host)
}

fn check_network(config: &ContainerConfig, host: &HostConfig) -> Result<()> {
    let conflict = |what: &str| Err(Error::invalid(format!("conflicting options: {what}")));
    if host.uts_mode == "host" && !config.hostname.is_empty() {
        return conflict("hostname and the UTS mode");
    }
    let mode = host.network_mode.as_str();
    if !mode.starts_with("container") {
        if matches!(mode, "" | "default" | "bridge" | "none" | "host") {
            return Ok(());
        }
        // On "not found" a client would pull the image.
        return Err(Error::invalid(format!("network {mode} not found")));
    }
    if mode.strip_prefix(CONTAINER).is_none_or(str::is_empty) {
        return Err(Error::invalid(
            "Invalid network mode: invalid container format container:<name|id>",
        ));
    }
    if !config.hostname.is_empty() {
        return conflict("hostname and the network mode");
    }
    if !host.dns.is_empty() {
        return conflict("dns and the network mode");
    }
    if !host.extra_hosts.is_empty() {
        return conflict("custom host-to-IP mapping and the network mode");
    }
    Ok(())
}

impl Engine {
    /// Replaces the names of containers whose namespaces are joined by their ids, which a rename
    /// does not change.
    pub(super) fn resolve_namespaces(&self, host: &mut HostConfig) -> Result<()> {
        let modes = [
            &mut host.network_mode,
            &mut host.pid_mode,
            &mut host.ipc_mode,
        ];
        for mode in modes {
            if let Mode::Container(needle) = Mode::of(mode) {
                let missing = |error: Error| Error::invalid(error.to_string());
                let id = self.containers.find(needle).map_err(missing)?.config.id;
                *mode = format!("{CONTAINER}{id}");
            }
        }
        Ok(())
    }

    /// The namespaces for a container that is about to start.
    pub(super) fn namespaces(&self, host: &HostConfig) -> Result<Joined> {
        let (pid, net) = (Mode::of(&host.pid_mode), Mode::of(&host.network_mode));
        let mut descriptors = Vec::new();
        // In the launcher's order.
        if let Mode::Container(id) = pid {
            let donor = self.donor("PID namespace", id)?;
            let own = donor.namespaces()?.pid;
            descriptors.push(own.ok_or_else(|| shares("PID", id))?);
        }
        if let Mode::Container(id) = Mode::of(&host.ipc_mode) {
            let own = self.ipc_donor(id)?.namespaces()?.ipc;
            descriptors.push(own.ok_or_else(|| shares("IPC", id))?);
        }
        if let Mode::Container(id) = net {
            let donor = self.donor("network", id)?;
            let own = donor.namespaces()?.net;
            descriptors.push(own.ok_or_else(|| shares("network", id))?);
        }
        Ok(Joined {
            namespaces: Namespaces {
                pid: pid.namespace(),
                ipc: Mode::of(&host.ipc_mode).namespace(),
                uts: Mode::of(&host.uts_mode).namespace(),
                net: net.namespace(),
                cgroup: match host.cgroupns_mode.as_str() {
                    "host" => CgroupNamespace::Host,
                    _ => CgroupNamespace::New,
                },
            },
            descriptors,
        })
    }

    fn donor(&self, what: &str, id: &str) -> Result<Control> {
        let container = self.containers.find(id)?;
        self.control(&container)?.ok_or_else(|| {
            let id = names::short(id);
            Error::conflict(format!(
                "cannot join {what} of a non running container: {id}"
            ))
        })
    }

    /// A running container that lets others share its IPC namespace (moby,
    /// `daemon/container_operations_unix.go`).
    fn ipc_donor(&self, id: &str) -> Result<Control> {
        let control = self.donor("IPC", id)?;
        let mode = self.containers.find(id)?.config.host.ipc_mode;
        match mode.as_str() {
            "shareable" | "host" => Ok(control),
            mode if mode.starts_with(CONTAINER) => Ok(control),
            _ => Err(Error::conflict(format!(
                "can't join IPC of container {id}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)"
            ))),
        }
    }

    /// A detached copy of another container's /dev/shm.
    pub(super) fn shared_memory(&self, id: &str) -> Result<OwnedFd> {
        let control = self.ipc_donor(id)?;
        let pid = control.inspect()?.pid;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let namespace = rustix::fs::open(format!("/proc/{pid}/ns/mnt"), flags, FileMode::empty())
            .context(|| format!("opening the mount namespace of container {id}"))?;
        // The monitor still answers, so it has not reaped the pid, and the namespace is its
        // container's.
        control.inspect()?;
        cowl_launch::joined_mount::shared_memory(namespace.as_fd())
            .context(|| format!("opening /dev/shm of container {id}"))?
            .ok_or_else(|| {
                Error::conflict(format!(
                    "can't join IPC of container {id}: it has no /dev/shm"
                ))
            })
    }

    /// The container whose network a container shares.
    pub(super) fn network_owner(&self, host: &HostConfig) -> Result<Option<Container>> {
        match Mode::of(&host.network_mode) {
            Mode::Container(id) => self.containers.find(id).map(Some),
            Mode::Own | Mode::Host => Ok(None),
        }
    }
}

/// The error if the other container has the host's namespace, so that there is none to join.
fn shares(what: &str, id: &str) -> Error {
    Error::invalid(format!(
        "cannot join the {what} namespace of container {}: it has the host's; use host",
        names::short(id)
    ))
}
