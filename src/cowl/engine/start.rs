//! What the launcher is asked to do for a container: Docker's request as a sandbox and a process.

use super::CGROUP_PARENT;
use super::container::config::Config;
use super::docker::HostConfig;
use super::error::{Context, Error, Result};
use super::process::Process;
use cowl_launch::message::{LogOptions, Start};
use cowl_launch::process::{self, DEFAULT_CAPABILITIES, Seccomp, WindowSize};
use cowl_launch::sandbox::{Limits, Mount, Sandbox};

/// The names of the capabilities without `CAP_`, by number (capabilities(7)).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
const ALL: &str = "ALL";
/// All of [`CAPABILITIES`].
const ALL_CAPABILITIES: u64 = (1 << CAPABILITIES.len()) - 1;

/// What the launcher is asked for. `size` is that of its terminal, if it has one.
pub(super) fn plan(config: &Config, size: WindowSize) -> Result<Start> {
    let merged = Process::of(&config.config);
    let size = config.config.tty.then_some(size);
    let mut start = Start::new(sandbox(config), process(config, &merged, size)?);
    start.monitor.open_stdin = config.config.open_stdin;
    start.monitor.stdin_once = config.config.stdin_once;
    start.monitor.log = log(&config.host)?;
    start.monitor.health = super::health::plan(config)?;
    Ok(start)
}

fn bytes(text: &String) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn sandbox(config: &Config) -> Sandbox {
    let host = &config.host;
    let mut sandbox = Sandbox::new(config.id.clone());
    CGROUP_PARENT.clone_into(&mut sandbox.cgroup_parent);
    sandbox.hostname.clone_from(&config.config.hostname);
    let mounts = config.mounts.iter();
    sandbox
        .mounts
        .extend(mounts.map(|mount| Mount::descriptor(bytes(&mount.destination), mount.read_only)));
    // 0 and -1 are Docker's "no limit".
    let limit = |asked: i64| u64::try_from(asked).ok().filter(|limit| *limit != 0);
    sandbox.limits = Limits {
        memory: limit(host.memory),
        pids: host.pids_limit.and_then(limit),
        ..Limits::default()
    };
    sandbox.readonly_root = host.readonly_rootfs;
    sandbox
}

/// A program of the container's, its first one or another.
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
    for option in &host.security_opt {
        if option.starts_with("seccomp") {
            process.seccomp = Seccomp::Unconfined;
        } else {
            process.no_new_privileges = true;
        }
    }
    process.terminal = terminal;
    Ok(process)
}

/// Docker's json-file log; none with the driver `none`.
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

/// All that this process has: no program can have more.
pub(super) fn all_capabilities() -> Result<u64> {
    let sets = rustix::thread::capabilities(None)
        .context(|| "reading the capabilities of this process")?;
    Ok(sets.permitted.bits() & ALL_CAPABILITIES)
}

/// Docker's default capabilities, with what is added and without what is dropped. `ALL` in one list
/// leaves the exceptions to the other.
pub(super) fn capabilities(host: &HostConfig) -> Result<u64> {
    let (adds_all, added) = set("CapAdd", &host.cap_add)?;
    let (drops_all, dropped) = set("CapDrop", &host.cap_drop)?;
    Ok(match (adds_all, drops_all) {
        (true, _) => all_capabilities()? & !dropped,
        (false, true) => added,
        (false, false) => DEFAULT_CAPABILITIES & !dropped | added,
    })
}

/// Whether a list has `ALL`, and the set of its other names.
fn set(list: &str, names: &[String]) -> Result<(bool, u64)> {
    let (mut all, mut set) = (false, 0);
    for written in names {
        let upper = written.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if name == ALL {
            all = true;
            continue;
        }
        let number = CAPABILITIES.iter().position(|known| *known == name);
        let number = number.ok_or_else(|| {
            Error::invalid(format!(
                "invalid {list}: unknown capability: \"CAP_{name}\""
            ))
        })?;
        set |= 1_u64 << number;
    }
    Ok((all, set))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(add: &[&str], drop: &[&str]) -> HostConfig {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        HostConfig {
            cap_add: list(add),
            cap_drop: list(drop),
            ..HostConfig::default()
        }
    }

    #[test]
    fn capabilities_are_added_and_dropped_as_docker_does() {
        let net_admin = 1 << 12;
        let chown = 1;
        let table: [(&[&str], &[&str], u64); 6] = [
            (&[], &[], DEFAULT_CAPABILITIES),
            (&["NET_ADMIN"], &[], DEFAULT_CAPABILITIES | net_admin),
            (
                &["cap_net_admin"],
                &["CAP_CHOWN"],
                DEFAULT_CAPABILITIES & !chown | net_admin,
            ),
            (&["ALL"], &["chown"], all_capabilities().unwrap() & !chown),
            (&["CHOWN"], &["all"], chown),
            (&[], &["ALL"], 0),
        ];
        for (add, drop, expected) in table {
            let set = capabilities(&host(add, drop)).unwrap();
            assert_eq!(set, expected, "{add:?} {drop:?}");
        }
        let refused = capabilities(&host(&["FLY"], &[])).unwrap_err().to_string();
        assert_eq!(refused, "invalid CapAdd: unknown capability: \"CAP_FLY\"");
    }
}
