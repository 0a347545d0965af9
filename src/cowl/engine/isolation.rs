//! Isolation of a container: security options, devices, sysctls, resource limits of its processes.

use super::capabilities::capabilities;
use super::docker::{DeviceMapping, HostConfig, Ulimit};
use super::error::{Context as _, Error, Result};
use cowl_launch::process::{Process, Resource, Rlimit, Seccomp};
use cowl_launch::sandbox::{Device, DeviceRule, Sandbox, Sysctl};
use rustix::fs::{AtFlags, CWD, FileType, Stat};
use rustix::io::Errno;
use std::path::Path;

/// Entries of /dev that a container has its own of (moby, `oci/devices_linux.go`).
const OWN: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];
/// Most levels of directories below /dev that are searched.
const DEPTH: usize = 8;

/// Parsed security options.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Security {
    seccomp: Option<SeccompOption>,
    no_new_privileges: bool,
    apparmor: String,
    labels: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SeccompOption {
    Unconfined,
    Builtin,
    /// In Docker's JSON form.
    Profile(String),
}

/// Refuses unknown options, with dockerd's texts.
pub(super) fn check(host: &HostConfig) -> Result<()> {
    let asked = security(host)?;
    confinement(&asked, Modules::probe()?)?;
    seccomp(host, asked.seccomp)?;
    host.ulimits
        .iter()
        .try_for_each(|limit| rlimit(limit).map(drop))?;
    host.sysctls
        .keys()
        .try_for_each(|name| check_sysctl(name))?;
    for rule in &host.device_cgroup_rules {
        device_rule(rule)?;
    }
    let mut unused = (Vec::new(), Vec::new());
    host.devices
        .iter()
        .try_for_each(|device| add_device(device, &mut unused.0, &mut unused.1))
}

/// moby, `daemon/daemon_unix.go`.
fn security(host: &HostConfig) -> Result<Security> {
    let mut security = Security::default();
    for option in &host.security_opt {
        let invalid = || Error::invalid(format!("invalid --security-opt 2: {option:?}"));
        if option == "no-new-privileges" {
            security.no_new_privileges = true;
            continue;
        }
        // The colon is the older form.
        let separator = if option.contains('=') { '=' } else { ':' };
        let (key, value) = option
            .split_once(separator)
            .ok_or_else(|| Error::invalid(format!("invalid --security-opt 1: {option:?}")))?;
        match key {
            "seccomp" => {
                security.seccomp = Some(match value {
                    "unconfined" => SeccompOption::Unconfined,
                    "builtin" => SeccompOption::Builtin,
                    profile => SeccompOption::Profile(profile.to_owned()),
                });
            }
            "no-new-privileges" => {
                security.no_new_privileges = match value {
                    "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                    "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                    _ => return Err(invalid()),
                };
            }
            "apparmor" => value.clone_into(&mut security.apparmor),
            "label" => security.labels.push(value.to_owned()),
            _ => return Err(invalid()),
        }
    }
    Ok(security)
}

/// The kernel's security modules that are active on this host.
#[derive(Debug, Clone, Copy)]
struct Modules {
    apparmor: bool,
    selinux: bool,
}

impl Modules {
    /// Detects them as dockerd does (containerd, `pkg/apparmor`; opencontainers/selinux).
    fn probe() -> Result<Self> {
        let enabled = match std::fs::read("/sys/module/apparmor/parameters/enabled") {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            read => read.context(|| "looking for AppArmor")?,
        };
        let selinux = Path::new("/sys/fs/selinux/enforce").try_exists();
        Ok(Self {
            apparmor: enabled.starts_with(b"Y"),
            selinux: selinux.context(|| "looking for SELinux")?,
        })
    }
}

/// Refuses a profile or label if the host has the module for it: the launcher sets none. Without
/// the module they have no effect, as in dockerd; returns a warning for each.
fn confinement(security: &Security, modules: Modules) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let profile = &security.apparmor;
    if !matches!(profile.as_str(), "" | "unconfined") {
        if modules.apparmor {
            return Err(Error::invalid(format!(
                "AppArmor profiles are not supported: {profile}"
            )));
        }
        warnings.push(format!(
            "This host has no AppArmor. Profile discarded: {profile}"
        ));
    }
    for label in security.labels.iter().filter(|label| *label != "disable") {
        if modules.selinux {
            return Err(Error::invalid(format!(
                "SELinux labels are not supported: {label}"
            )));
        }
        warnings.push(format!(
            "This host has no SELinux. Label discarded: {label}"
        ));
    }
    Ok(warnings)
}

/// Refuses malformed ulimits, sysctls and device rules.
pub(super) fn check_syntax(host: &HostConfig) -> Result<()> {
    for asked in &host.ulimits {
        rlimit(asked)?;
    }
    for name in host.sysctls.keys() {
        check_sysctl(name)?;
    }
    for rule in &host.device_cgroup_rules {
        device_rule(rule)?;
    }
    Ok(())
}

/// Warnings for security options that have no effect on this host.
pub(super) fn warnings(host: &HostConfig) -> Result<Vec<String>> {
    confinement(&security(host)?, Modules::probe()?)
}

/// The seccomp filter of a container.
fn seccomp(host: &HostConfig, asked: Option<SeccompOption>) -> Result<Seccomp> {
    Ok(match asked {
        Some(SeccompOption::Unconfined) => Seccomp::Unconfined,
        Some(SeccompOption::Profile(text)) => {
            let filter = super::seccomp::compile(&text, capabilities(host)?)?;
            filter.map_or(Seccomp::Unconfined, Seccomp::Filter)
        }
        Some(SeccompOption::Builtin) | None if host.privileged => Seccomp::Unconfined,
        Some(SeccompOption::Builtin) | None => Seccomp::Default,
    })
}

/// Allows the sysctls that belong to a namespace, as runc does (docker/cli, `opts.ValidateSysctl`).
fn check_sysctl(name: &str) -> Result<()> {
    const NAMED: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let dotted = name.replace('/', ".");
    let known = NAMED.contains(&dotted.as_str())
        || dotted.starts_with("net.")
        || dotted.starts_with("fs.mqueue.");
    if known {
        return Ok(());
    }
    Err(Error::invalid(format!("sysctl '{name}' is not allowed")))
}

fn rlimit(asked: &Ulimit) -> Result<Rlimit> {
    let resource = Resource::named(&asked.name)
        .ok_or_else(|| Error::invalid(format!("invalid ulimit type: {}", asked.name)))?;
    let (soft, hard) = (
        u64::try_from(asked.soft).ok(),
        u64::try_from(asked.hard).ok(),
    );
    let above = match (soft, hard) {
        (Some(soft), Some(hard)) => soft > hard,
        (soft, hard) => soft.is_none() && hard.is_some(),
    };
    if above {
        return Err(Error::invalid(format!(
            "ulimit soft limit must be less than or equal to hard limit: {} > {}",
            asked.soft, asked.hard
        )));
    }
    Ok(Rlimit {
        resource,
        soft,
        hard,
    })
}

/// `c 42:* rmw`.
fn device_rule(text: &str) -> Result<DeviceRule> {
    let parse = || {
        let mut words = text.split(' ');
        let (kind, numbers, access) = (words.next()?, words.next()?, words.next()?);
        let (major, minor) = numbers.split_once(':')?;
        let number = |text: &str| match text {
            "*" => Some(None),
            digits => digits.parse().ok().map(Some),
        };
        let block = match kind {
            "a" => None,
            "b" => Some(true),
            "c" => Some(false),
            _ => return None,
        };
        let known = !access.is_empty() && access.chars().all(|letter| "rwm".contains(letter));
        (known && words.next().is_none()).then_some(DeviceRule {
            block,
            major: number(major)?,
            minor: number(minor)?,
            ..access_of(access)
        })
    };
    parse().ok_or_else(|| Error::invalid(format!("invalid device cgroup rule format: '{text}'")))
}

fn access_of(letters: &str) -> DeviceRule {
    DeviceRule {
        read: letters.contains('r'),
        write: letters.contains('w'),
        create: letters.contains('m'),
        ..DeviceRule::ALL
    }
}

/// Adds a device node of the host, or all nodes below a directory.
fn add_device(
    asked: &DeviceMapping,
    devices: &mut Vec<Device>,
    rules: &mut Vec<DeviceRule>,
) -> Result<()> {
    let host = asked.path_on_host.as_str();
    let inside = match asked.path_in_container.as_str() {
        "" => host,
        inside => inside,
    };
    let letters = match asked.cgroup_permissions.as_str() {
        "" => "rwm",
        letters => letters,
    };
    if letters.chars().any(|letter| !"rwm".contains(letter)) {
        return Err(Error::invalid(format!("bad mode specified: {letters}")));
    }
    if inside.strip_prefix("/dev/").is_none_or(str::is_empty) {
        return Err(Error::invalid(format!(
            "a device can't be at \"{inside}\", only below /dev"
        )));
    }
    let failed =
        || format!("error gathering device information while adding custom device \"{host}\"");
    let found = rustix::fs::stat(host).map_err(|errno| {
        let text = match errno {
            Errno::NOENT => "no such file or directory".to_owned(),
            errno => errno.to_string(),
        };
        Error::invalid(format!("{}: {text}", failed()))
    })?;
    let before = devices.len();
    if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
        nodes(Path::new(host), inside, DEPTH, devices).context(failed)?;
    } else {
        devices.extend(node(Path::new(host), inside, &found));
    }
    let added = devices.get(before..).unwrap_or_default();
    if added.is_empty() {
        return Err(Error::invalid(format!("{}: not a device node", failed())));
    }
    rules.extend(added.iter().map(|device| DeviceRule {
        block: Some(device.block),
        major: Some(device.major),
        minor: Some(device.minor),
        ..access_of(letters)
    }));
    Ok(())
}

fn node(host: &Path, inside: &str, found: &Stat) -> Option<Device> {
    let block = match FileType::from_raw_mode(found.st_mode) {
        FileType::BlockDevice => true,
        FileType::CharacterDevice => false,
        _ => return None,
    };
    Some(Device {
        path: inside.as_bytes().to_vec(),
        host: host.as_os_str().as_encoded_bytes().to_vec(),
        block,
        major: rustix::fs::major(found.st_rdev),
        minor: rustix::fs::minor(found.st_rdev),
        mode: found.st_mode & 0o777,
        owner: (found.st_uid, found.st_gid),
    })
}

/// All device nodes below a directory, but for those that a container has its own of.
fn nodes(dir: &Path, inside: &str, depth: usize, devices: &mut Vec<Device>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        // No device has a name that is not UTF-8.
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        let (path, inside) = (entry.path(), format!("{inside}/{name}"));
        let found = match rustix::fs::statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            found => found?,
        };
        if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
            devices.extend(node(&path, &inside, &found).filter(|_| name != "console"));
        } else if depth > 0 && !OWN.contains(&name.as_str()) {
            nodes(&path, &inside, depth - 1, devices)?;
        }
    }
    Ok(())
}

/// Adds the requested devices, device rules, sysctls and paths to a sandbox.
pub(super) fn apply(host: &HostConfig, sandbox: &mut Sandbox) -> Result<()> {
    sandbox.init = host.init == Some(true);
    if let Some(paths) = &host.masked_paths {
        sandbox.masked_paths = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
    }
    if let Some(paths) = &host.readonly_paths {
        sandbox.readonly_paths = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
    }
    for (name, value) in &host.sysctls {
        sandbox.sysctls.push(Sysctl {
            name: name.clone(),
            value: value.clone(),
            optional: false,
        });
    }
    let mut devices = Vec::new();
    for device in &host.devices {
        add_device(device, &mut devices, &mut sandbox.device_rules)?;
    }
    for rule in &host.device_cgroup_rules {
        sandbox.device_rules.push(device_rule(rule)?);
    }
    if host.privileged {
        nodes(Path::new("/dev"), "/dev", DEPTH, &mut devices).context(|| "listing /dev")?;
        sandbox.device_rules.push(DeviceRule::ALL);
        sandbox.masked_paths.clear();
        sandbox.readonly_paths.clear();
        for mount in &mut sandbox.mounts {
            if mount.destination.starts_with(b"/sys") {
                mount.attributes.read_only = false;
            }
        }
    }
    for device in devices {
        // /dev/ptmx is that of the container's own devpts.
        let is_there = |other: &Device| other.path == device.path;
        if device.path != b"/dev/ptmx" && !sandbox.devices.iter().any(is_there) {
            sandbox.devices.push(device);
        }
    }
    Ok(())
}

/// Adds the requested groups, resource limits and restrictions to a program.
pub(super) fn restrict(host: &HostConfig, process: &mut Process) -> Result<()> {
    let security = security(host)?;
    process.seccomp = seccomp(host, security.seccomp)?;
    process.no_new_privileges = security.no_new_privileges;
    process.groups = host
        .group_add
        .iter()
        .map(|group| group.as_bytes().to_vec())
        .collect();
    process.rlimits = host.ulimits.iter().map(rlimit).collect::<Result<_>>()?;
    let score = i16::try_from(host.oom_score_adj).ok();
    process.oom_score_adj = score.filter(|score| *score != 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn check_refuses_unknown_options() {
        let table = [
            (
                json!({"SecurityOpt": ["fly"]}),
                "invalid --security-opt 1: \"fly\"",
            ),
            (
                json!({"SecurityOpt": ["fly=high"]}),
                "invalid --security-opt 2: \"fly=high\"",
            ),
            (
                json!({"SecurityOpt": ["no-new-privileges:maybe"]}),
                "invalid --security-opt 2: \"no-new-privileges:maybe\"",
            ),
            (
                json!({"SecurityOpt": ["seccomp={]"]}),
                "decoding seccomp profile failed: key must be a string at line 1 column 2",
            ),
            (
                json!({"Sysctls": {"vm.swappiness": "1"}}),
                "sysctl 'vm.swappiness' is not allowed",
            ),
            (
                json!({"Ulimits": [{"Name": "fly", "Soft": 1, "Hard": 1}]}),
                "invalid ulimit type: fly",
            ),
            (
                json!({"Ulimits": [{"Name": "nofile", "Soft": 2, "Hard": 1}]}),
                "ulimit soft limit must be less than or equal to hard limit: 2 > 1",
            ),
            (
                json!({"DeviceCgroupRules": ["c 1:3"]}),
                "invalid device cgroup rule format: 'c 1:3'",
            ),
            (
                json!({"Devices": [{"PathOnHost": "/dev/nowhere"}]}),
                "error gathering device information while adding custom device \"/dev/nowhere\": no such file or directory",
            ),
            (
                json!({"Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/null"}]}),
                "a device can't be at \"/null\", only below /dev",
            ),
        ];
        for (asked, text) in table {
            let asked: HostConfig = serde_json::from_value(asked).unwrap();
            assert_eq!(check(&asked).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn profiles_and_labels_are_refused_where_the_host_has_their_module() {
        let asked = |option: &str| HostConfig {
            security_opt: vec![option.to_owned()],
            ..HostConfig::default()
        };
        for (option, refused, warning) in [
            (
                "apparmor=mine",
                "AppArmor profiles are not supported: mine",
                "This host has no AppArmor. Profile discarded: mine",
            ),
            (
                "label=type:x",
                "SELinux labels are not supported: type:x",
                "This host has no SELinux. Label discarded: type:x",
            ),
        ] {
            let with = |there: bool| {
                let modules = Modules {
                    apparmor: there,
                    selinux: there,
                };
                confinement(&security(&asked(option)).unwrap(), modules)
            };
            assert_eq!(with(true).unwrap_err().to_string(), refused);
            assert_eq!(with(false).unwrap(), [warning]);
        }
        for what_is in ["apparmor=unconfined", "label=disable", "label:disable"] {
            let modules = Modules {
                apparmor: true,
                selinux: true,
            };
            let warnings = confinement(&security(&asked(what_is)).unwrap(), modules).unwrap();
            assert!(warnings.is_empty());
        }
    }

    #[test]
    fn a_device_rule_is_a_kind_numbers_and_access() {
        let rule = device_rule("b 8:* rm").unwrap();
        assert_eq!(
            (rule.block, rule.major, rule.minor),
            (Some(true), Some(8), None)
        );
        assert_eq!((rule.read, rule.write, rule.create), (true, false, true));
        for wrong in [
            "x 1:1 r",
            "c 1:1 x",
            "c 1:1",
            "c 1 r",
            "c a:1 r",
            "c 1:1 r r",
        ] {
            device_rule(wrong).unwrap_err();
        }
    }
}
