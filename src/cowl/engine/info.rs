//! `info`: the store, the host and this program's features, in Docker's JSON.

use super::container::state::Status;
use super::error::{Context as _, Result};
use super::{Engine, host};
use cowl_launch::cgroup::discard_unsupported;
use cowl_launch::sandbox::Limits;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// The version of cowl.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Docker's "storage driver".
pub const STORAGE_DRIVER: &str = "cowl";

impl Engine {
    /// The whole answer.
    pub fn info(&self) -> Result<Value> {
        let mut whole = Map::new();
        for part in [facts_of_store(self)?, facts_of_host()?, facts_of_server()] {
            if let Value::Object(part) = part {
                whole.extend(part);
            }
        }
        Ok(whole.into())
    }
}

fn facts_of_store(engine: &Engine) -> Result<Value> {
    let containers = engine.containers()?.items;
    let count = |wanted: fn(&Status) -> bool| {
        let states = containers.iter().map(|(_, status)| status);
        states.filter(|status| wanted(status)).count()
    };
    let running = count(|status| matches!(status, Status::Running | Status::Restarting(_)));
    let paused = count(|status| *status == Status::Paused);
    let mut images: Vec<_> = engine.images()?.items.iter().map(|one| one.id).collect();
    images.sort();
    images.dedup();
    let host = host::describe();
    let objects = engine.store().usage()?.objects;
    Ok(json!({
        "ID": "",
        "Containers": containers.len(),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": containers.len() - running - paused,
        "Images": images.len(),
        "Driver": STORAGE_DRIVER,
        "DriverStatus": [
            ["Objects", objects.number.to_string()],
            ["Object Bytes", objects.bytes.to_string()],
            ["FUSE", host.fuse],
            ["I/O Modes", host.io_modes],
            ["Privilege", host.privilege],
        ],
        "DockerRootDir": engine.store().root(),
    }))
}

fn facts_of_host() -> Result<Value> {
    let kernel = rustix::system::uname();
    let memory = rustix::system::sysinfo();
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").try_exists()?;
    // One limit of each kind; those that cannot be enforced are removed.
    let mut limits = Limits {
        memory: Some(1 << 30),
        memory_swap: Some(1 << 30),
        pids: Some(1),
        cpu_shares: Some(1024),
        cpu_quota: Some(100_000),
        cpu_period: Some(100_000),
        cpuset_cpus: Some("0".to_owned()),
        ..Limits::default()
    };
    discard_unsupported(&mut limits)?;
    Ok(json!({
        "MemoryLimit": limits.memory.is_some(),
        "SwapLimit": limits.memory_swap.is_some(),
        "CpuCfsPeriod": limits.cpu_period.is_some(),
        "CpuCfsQuota": limits.cpu_quota.is_some(),
        "CPUShares": limits.cpu_shares.is_some(),
        "CPUSet": limits.cpuset_cpus.is_some(),
        "PidsLimit": limits.pids.is_some(),
        "IPv4Forwarding": forwards_ipv4()?,
        // cgroup v2 has no such switch.
        "OomKillDisable": limits.memory.is_some() && !unified,
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": if unified { "2" } else { "1" },
        "KernelVersion": kernel.release().to_string_lossy(),
        "OperatingSystem": os_release("PRETTY_NAME")?,
        "OSVersion": os_release("VERSION_ID")?,
        "OSType": "linux",
        "Architecture": kernel.machine().to_string_lossy(),
        "NCPU": processors,
        "MemTotal": u64::from(memory.mem_unit) * memory.totalram,
        "Name": kernel.nodename().to_string_lossy(),
        "SystemTime": Timestamp::now().to_string(),
    }))
}

fn facts_of_server() -> Value {
    json!({
        "Plugins": {
            "Volume": ["local"],
            "Network": ["host", "null"],
            "Authorization": null,
            "Log": ["json-file", "none"],
        },
        "Debug": false,
        "NFd": 0,
        "NGoroutines": 0,
        "LoggingDriver": "json-file",
        "NEventsListener": 0,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {"IndexConfigs": {}, "InsecureRegistryCIDRs": [], "Mirrors": null},
        "GenericResources": null,
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Labels": [],
        "ExperimentalBuild": false,
        "ServerVersion": VERSION,
        "Runtimes": {"cowl-runtime": {"path": "cowl-runtime"}},
        "DefaultRuntime": "cowl-runtime",
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": false,
            "Error": "",
            "RemoteManagers": null,
        },
        "LiveRestoreEnabled": true,
        "Isolation": "",
        "InitBinary": "",
        "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": ""},
        "InitCommit": {"ID": ""},
        "SecurityOptions": ["name=seccomp,profile=builtin"],
        "Warnings": null,
    })
}

/// net.ipv4.ip_forward (proc_sys_net(5), ip-sysctl); false in a kernel without IPv4.
fn forwards_ipv4() -> Result<bool> {
    let path = "/proc/sys/net/ipv4/ip_forward";
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim() != "0"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context(|| format!("reading {path}")),
    }
}

/// A value of /etc/os-release (os-release(5)); empty without one.
fn os_release(key: &str) -> Result<String> {
    let text = match std::fs::read_to_string("/etc/os-release") {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        other => other.context(|| "reading /etc/os-release")?,
    };
    let line = |line: &str| Some(line.strip_prefix(key)?.strip_prefix('=')?.to_owned());
    let value = text.lines().find_map(line).unwrap_or_default();
    Ok(value.trim_matches(['"', '\'']).to_owned())
}
