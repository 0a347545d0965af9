//! `/_ping`, `/version`, `/info`, `/system/df`.

use super::http::{self, Handled, Reply, Request};
use super::{API, OLDEST, Server, images, volumes};
use crate::engine::container::state::Status;
use crate::engine::error::{Context as _, Result};
use crate::engine::{Engine, host};
use hyper::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
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
    let mut whole = serde_json::Map::new();
    for part in [facts_of_store(engine)?, facts_of_host()?, facts_of_server()] {
        if let Value::Object(part) = part {
            whole.extend(part);
        }
    }
    Ok(whole.into())
}

fn facts_of_store(engine: &Engine) -> Result<Value> {
    let containers = engine.containers()?.items;
    let running = containers
        .iter()
        .filter(|(_, status)| *status == Status::Running)
        .count();
    let mut images: Vec<_> = engine.images()?.items.iter().map(|one| one.id).collect();
    images.sort();
    images.dedup();
    let host = host::describe();
    let objects = engine.store().usage()?.objects;
    Ok(json!({
        "ID": "",
        "Containers": containers.len(),
        "ContainersRunning": running,
        "ContainersPaused": 0,
        "ContainersStopped": containers.len() - running,
        "Images": images.len(),
        "Driver": "cowl",
        "DriverStatus": [
            ["Objects", objects.number.to_string()],
            ["Object Bytes", objects.bytes.to_string()],
            ["FUSE", host.fuse],
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
    Ok(json!({
        "MemoryLimit": true,
        "SwapLimit": true,
        "CpuCfsPeriod": true,
        "CpuCfsQuota": true,
        "CPUShares": true,
        "CPUSet": true,
        "PidsLimit": true,
        "IPv4Forwarding": true,
        "OomKillDisable": !unified,
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

pub(super) async fn disk_usage(server: &Arc<Server>, request: &Request) -> Handled {
    let version = request.version;
    let body = server
        .engine(move |engine| {
            let mut images = images::rows(engine, version)?;
            for image in &mut images {
                if let Some(row) = image.as_object_mut() {
                    row.insert("SharedSize".into(), json!(0));
                    row.insert("Containers".into(), json!(0));
                }
            }
            Ok(json!({
                "LayersSize": engine.store().usage()?.objects.bytes,
                "Images": images,
                "Containers": [],
                "Volumes": volumes::rows(engine)?,
                "BuildCache": [],
            }))
        })
        .await?;
    http::json(StatusCode::OK, &body)
}
