//! Translates a container's configuration into the launcher's sandbox and process.

use super::capabilities::capabilities;
use super::container::config::Config;
use super::docker::HostConfig;
use super::error::{Error, Result};
use super::process::Process;
use cowl_launch::message::{LogOptions, Start};
use cowl_launch::process::{self, WindowSize};
use cowl_launch::sandbox::{Mount, Namespaces, Sandbox};

/// The launcher's request. `size` is that of the terminal, if it has one.
pub(super) fn plan(
    config: &Config,
    size: WindowSize,
    namespaces: Namespaces,
    mounts: Vec<Mount>,
) -> Result<Start> {
    let merged = Process::of(&config.config);
    let size = config.config.tty.then_some(size);
    let sandbox = sandbox(config, namespaces, mounts)?;
    let mut start = Start::new(sandbox, process(config, &merged, size)?);
    start.monitor.open_stdin = config.config.open_stdin;
    start.monitor.stdin_once = config.config.stdin_once;
    start.monitor.log = log(&config.host)?;
    start.monitor.health = super::health::plan(config)?;
    Ok(start)
}

fn bytes(text: &String) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn sandbox(config: &Config, namespaces: Namespaces, mounts: Vec<Mount>) -> Result<Sandbox> {
    const SHM: &[u8] = b"/dev/shm";
    let host = &config.host;
    let mut sandbox = Sandbox::new(config.id.clone());
    sandbox.cgroup_parent = config.cgroup_parent();
    sandbox.namespaces = namespaces;
    sandbox.hostname.clone_from(&config.config.hostname);
    sandbox.domainname.clone_from(&config.config.domainname);
    match (host.ipc_mode.as_str(), u64::try_from(host.shm_size)) {
        (mode, _) if matches!(mode, "none" | "host") || mode.starts_with("container:") => {
            sandbox.mounts.retain(|mount| mount.destination != SHM);
        }
        (_, Ok(size)) if size > 0 => sandbox.set_mount(Mount::shm(size)),
        _ => {}
    }
    (sandbox.limits, _) = super::limits::supported(&host.resources)?;
    (sandbox.device_weights, _) = super::limits::device_weights(&host.resources)?;
    sandbox.oom_kill_disable = super::limits::disables_oom_killer(&host.resources)?;
    super::isolation::apply(host, &mut sandbox)?;
    sandbox.mounts.extend(mounts);
    sandbox.readonly_root = host.readonly_rootfs;
    Ok(sandbox)
}

/// A program in a container: its first process or an exec.
pub(super) fn process(
    config: &Config,
    merged: &Process,
    terminal: Option<WindowSize>,
) -> Result<process::Process> {
    let host = &config.host;
    let mut process = process::Process::new(merged.argv.iter().map(bytes).collect());
    process.env = merged.env.iter().map(bytes).collect();
    process.cwd = bytes(&merged.cwd);
    process.user = bytes(&merged.user);
    process.capabilities = capabilities(host)?;
    process.terminal = terminal;
    super::isolation::restrict(host, &mut process)?;
    Ok(process)
}

/// The options of Docker's json-file log; None with the driver `none`.
pub(super) fn log(host: &HostConfig) -> Result<Option<LogOptions>> {
    let Some(asked) = host.other.get("LogConfig") else {
        return Ok(Some(LogOptions {
            max_size: 0,
            max_file: 1,
        }));
    };
    let driver = asked.get("Type").and_then(serde_json::Value::as_str);
    match driver.unwrap_or_default() {
        "none" => return Ok(None),
        "" | "json-file" => {}
        other => {
            return Err(Error::invalid(format!(
                "logger: no log driver named '{other}' is registered"
            )));
        }
    }
    let mut options = LogOptions {
        max_size: 0,
        max_file: 1,
    };
    let settings = asked.get("Config").and_then(serde_json::Value::as_object);
    for (key, value) in settings.into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        let invalid = || Error::invalid(format!("invalid value for log-opt {key}: {text}"));
        match key.as_str() {
            "max-size" => {
                options.max_size = parse_size(text)
                    .filter(|size| *size > 0)
                    .ok_or_else(invalid)?;
            }
            "max-file" => {
                options.max_file = text.parse().map_err(|_syntax| invalid())?;
                if options.max_file == 0 {
                    return Err(invalid());
                }
            }
            _ => {
                return Err(Error::invalid(format!(
                    "unknown log opt '{key}' for json-file log driver"
                )));
            }
        }
    }
    if options.max_file > 1 && options.max_size == 0 {
        return Err(Error::invalid("max-file cannot be set without max-size"));
    }
    Ok(Some(options))
}

/// Bytes with a unit of b, k, m or g.
fn parse_size(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (number, shift) = match lower.chars().last()? {
        'k' => (lower.strip_suffix('k')?, 10),
        'm' => (lower.strip_suffix('m')?, 20),
        'g' => (lower.strip_suffix('g')?, 30),
        _ => (lower, 0),
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}
