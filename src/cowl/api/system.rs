//! `/_ping`, `/version`, `/info`, `/system/df`.

use super::http::{self, Handled, Refusal, Reply, Request};
use super::{API, OLDEST, Server, images};
use crate::engine::container::state::Status;
use crate::engine::error::{Context as _, Result};
use crate::engine::usage::DiskUsage;
use crate::engine::{Engine, host};
use cowl_launch::cgroup::discard_unsupported;
use cowl_launch::sandbox::Limits;
use hyper::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// The version of cowl.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The client learns the version of the API from the headers that every reply has.
pub(super) fn ping(method: &Method) -> Reply {
    let text = if method == Method::HEAD { "" } else { "OK" };
    let mut reply = http::reply(StatusCode::OK, "text/plain; charset=utf-8", text);
    for (name, value) in [
        // 1: the classic builder, without sessions of BuildKit.
        ("builder-version", "1"),
        ("swarm", "inactive"),
        ("cache-control", "no-cache, no-store, must-revalidate"),
        ("pragma", "no-cache"),
    ] {
        let value = hyper::header::HeaderValue::from_static(value);
        reply.headers_mut().insert(name, value);
    }
    reply
}

/// Go's name of this architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(super) fn version() -> Handled {
    let kernel = rustix::system::uname();
    let kernel = kernel.release().to_string_lossy();
    let (api, oldest) = (API.to_string(), OLDEST.to_string());
    let details = json!({
        "ApiVersion": api,
        "Arch": architecture(),
        "BuildTime": "",
        "Experimental": "false",
        "GitCommit": "",
        "GoVersion": "",
        "KernelVersion": kernel,
        "MinAPIVersion": oldest,
        "Os": "linux",
    });
    let body = json!({
        "Platform": {"Name": "cowl"},
        "Components": [{"Name": "Engine", "Version": VERSION, "Details": details}],
        "Version": VERSION,
        "ApiVersion": api,
        "MinAPIVersion": oldest,
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": architecture(),
        "KernelVersion": kernel,
        "BuildTime": "",
    });
    http::json(StatusCode::OK, &body)
}

pub(super) async fn info(server: &Arc<Server>) -> Handled {
    http::json(StatusCode::OK, &server.engine(describe).await?)
}

fn describe(engine: &Engine) -> Result<Value> {
    let mut whole = Map::new();
    for part in [facts_of_store(engine)?, facts_of_host()?, facts_of_server()] {
        if let Value::Object(part) = part {
            whole.extend(part);
        }
    }
    Ok(whole.into())
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
        "Driver": "cowl",
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
    // One limit of each kind; those that can't be enforced go.
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
        // Version 2 has no such switch.
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

/// What `/system/df` can be asked for.
const TYPES: [&str; 4] = ["container", "image", "volume", "build-cache"];

pub(super) async fn disk_usage(server: &Arc<Server>, request: &Request) -> Handled {
    let (asked, version) = (request.query.all("type"), request.version);
    let asked: Vec<String> = asked.map(str::to_owned).collect();
    if let Some(unknown) = asked.iter().find(|kind| !TYPES.contains(&kind.as_str())) {
        return Err(Refusal::invalid(format!("unknown object type: {unknown}")));
    }
    let body = server
        .engine(move |engine| {
            let mut usage = engine.disk_usage()?;
            let wants = |kind| asked.is_empty() || asked.iter().any(|asked| asked == kind);
            let mut body = Map::new();
            if wants("image") {
                let listed = std::mem::take(&mut usage.images);
                let mut rows = images::rows(listed, version, Some(&usage.unique));
                for row in &mut rows {
                    count_containers(row, &usage);
                }
                body.insert("LayersSize".into(), json!(usage.layers));
                body.insert("Images".into(), json!(rows));
            }
            if wants("container") {
                body.insert("Containers".into(), containers(engine, &usage)?);
            }
            if wants("volume") {
                body.insert("Volumes".into(), volumes(engine, &usage));
            }
            if wants("build-cache") {
                body.insert("BuildCache".into(), json!([]));
            }
            Ok(Value::Object(body))
        })
        .await?;
    http::json(StatusCode::OK, &body)
}

fn count_containers(row: &mut Value, usage: &DiskUsage) {
    let id = row.get("Id").and_then(Value::as_str).unwrap_or_default();
    let mut of = usage.containers_of.iter();
    let count = of.find(|(image, _)| image.to_string() == id);
    let count = count.map_or(0, |(_, count)| *count);
    if let Some(row) = row.as_object_mut() {
        row.insert("Containers".into(), json!(count));
    }
}

fn containers(engine: &Engine, usage: &DiskUsage) -> Result<Value> {
    let now = Timestamp::now();
    let rows = usage.containers.iter().map(|(summary, changed)| {
        let mut row = engine.listed(summary, now);
        let whole = engine.layers_bytes(&summary.config)? + changed;
        if let Some(row) = row.as_object_mut() {
            row.insert("SizeRootFs".into(), json!(whole));
            // As Docker, which leaves out zeros.
            if *changed > 0 {
                row.insert("SizeRw".into(), json!(changed));
            }
        }
        Ok(row)
    });
    Ok(Value::Array(rows.collect::<Result<_>>()?))
}

fn volumes(engine: &Engine, usage: &DiskUsage) -> Value {
    let rows = usage.volumes.iter().map(|(volume, bytes, links)| {
        let mut row = engine.volume_shown(volume);
        if let Some(row) = row.as_object_mut() {
            let usage = json!({"RefCount": links, "Size": bytes});
            row.insert("UsageData".into(), usage);
        }
        row
    });
    rows.collect()
}

/// There is no cache of builds.
pub(super) fn prune_builds() -> Handled {
    let body = json!({"CachesDeleted": null, "SpaceReclaimed": 0});
    http::json(StatusCode::OK, &body)
}
