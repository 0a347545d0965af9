//! The options for privileges and devices.

use crate::engine::docker::{DeviceMapping, HostConfig, Ulimit};
use crate::engine::error::{Error, Result};
use clap::Args;

#[derive(Debug, Args)]
pub(in crate::cli::container) struct Isolation {
    /// Add Linux capabilities
    #[arg(long, value_name = "NAME")]
    cap_add: Vec<String>,
    /// Drop Linux capabilities
    #[arg(long, value_name = "NAME")]
    cap_drop: Vec<String>,
    /// Security option: seccomp=FILE or unconfined, no-new-privileges, systempaths=unconfined
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Give extended privileges to this container
    #[arg(long)]
    privileged: bool,
    /// Add a host device to the container
    #[arg(long, value_name = "DEVICE[:PATH][:rwm]", value_parser = parse_device)]
    device: Vec<DeviceMapping>,
    /// Add a rule to the cgroup allowed devices list
    #[arg(long, value_name = "RULE")]
    device_cgroup_rule: Vec<String>,
    /// Add additional groups to join
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Run an init inside the container that forwards signals and reaps processes
    #[arg(long)]
    init: bool,
    /// Sysctl options
    #[arg(long, value_name = "NAME=VALUE")]
    sysctl: Vec<String>,
    /// Ulimit options
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = parse_ulimit)]
    ulimit: Vec<Ulimit>,
}

impl Isolation {
    pub(in crate::cli::container) fn apply(self, host: &mut HostConfig) -> Result<()> {
        host.cap_add = self.cap_add;
        host.cap_drop = self.cap_drop;
        host.privileged = self.privileged;
        host.devices = self.device;
        host.device_cgroup_rules = self.device_cgroup_rule;
        host.group_add = self.group_add;
        host.init = self.init.then_some(true);
        host.ulimits = self.ulimit;
        for option in self.security_opt {
            // As in Docker, the client translates this one.
            if option == "systempaths=unconfined" {
                host.masked_paths = Some(Vec::new());
                host.readonly_paths = Some(Vec::new());
            } else {
                host.security_opt.push(security_option(option)?);
            }
        }
        for text in &self.sysctl {
            let invalid = || Error::invalid(format!("sysctl '{text}' is not allowed"));
            let (name, value) = text.split_once('=').ok_or_else(invalid)?;
            host.sysctls.insert(name.to_owned(), value.to_owned());
        }
        Ok(())
    }
}

/// Replaces a seccomp profile's file name by its text (docker/cli,
/// `cli/command/container/opts.go`).
fn security_option(option: String) -> Result<String> {
    let invalid = || Error::invalid(format!("invalid --security-opt: {option:?}"));
    if option == "no-new-privileges" {
        return Ok(option);
    }
    let (key, value) = option.split_once(['=', ':']).ok_or_else(invalid)?;
    if value.is_empty() {
        return Err(invalid());
    }
    if key != "seccomp" || matches!(value, "unconfined" | "builtin") {
        return Ok(option);
    }
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Error::invalid(format!("{what} seccomp profile ({value}) failed: {error}"))
    };
    let text = std::fs::read(value).map_err(|error| failed("opening", &error))?;
    let profile: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| failed("compacting json for", &error))?;
    crate::engine::seccomp::compile(&profile.to_string(), 0)
        .map_err(|error| error.context(value.to_owned()))?;
    Ok(format!("seccomp={profile}"))
}

/// `device[:path][:rwm]` (docker/cli, `cli/command/container/opts.go`).
fn parse_device(text: &str) -> Result<DeviceMapping, String> {
    let is_mode = |part: &str| !part.is_empty() && part.chars().all(|c| "rwm".contains(c));
    let parts: Vec<&str> = text.split(':').collect();
    let (host, inside, letters) = match parts.as_slice() {
        [host] => (*host, *host, "rwm"),
        [host, letters] if is_mode(letters) => (*host, *host, *letters),
        [host, inside] => (*host, *inside, "rwm"),
        [host, inside, letters] if is_mode(letters) => (*host, *inside, *letters),
        [_, _, letters] => return Err(format!("bad mode specified: {letters}")),
        _ => return Err(format!("bad format for path: {text}")),
    };
    if !inside.starts_with('/') {
        return Err(format!("{inside} is not an absolute path"));
    }
    Ok(DeviceMapping {
        path_on_host: host.to_owned(),
        path_in_container: inside.to_owned(),
        cgroup_permissions: letters.to_owned(),
    })
}

/// `name=soft[:hard]` (docker/go-units, `ulimit.go`).
fn parse_ulimit(text: &str) -> Result<Ulimit, String> {
    let invalid = || format!("invalid ulimit argument: {text}");
    let (name, limits) = text.split_once('=').ok_or_else(invalid)?;
    let number = |part: &str| {
        part.parse::<i64>()
            .map_err(|error| format!("{}: {error}", invalid()))
    };
    let (soft, hard) = match limits.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(limits)?, number(limits)?),
    };
    Ok(Ulimit {
        name: name.to_owned(),
        soft,
        hard,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_a_path_a_place_and_a_mode() {
        let shown = |text| {
            parse_device(text).map(|device| {
                [
                    device.path_on_host,
                    device.path_in_container,
                    device.cgroup_permissions,
                ]
                .join(" ")
            })
        };
        assert_eq!(shown("/dev/fuse").unwrap(), "/dev/fuse /dev/fuse rwm");
        assert_eq!(shown("/dev/fuse:r").unwrap(), "/dev/fuse /dev/fuse r");
        assert_eq!(shown("/dev/fuse:/dev/x").unwrap(), "/dev/fuse /dev/x rwm");
        assert_eq!(shown("/dev/fuse:/dev/x:rw").unwrap(), "/dev/fuse /dev/x rw");
        assert_eq!(
            shown("/dev/fuse:/dev/x:q").unwrap_err(),
            "bad mode specified: q"
        );
        assert_eq!(
            shown("/dev/fuse:x").unwrap_err(),
            "x is not an absolute path"
        );
        assert_eq!(
            shown("a:b:c:d").unwrap_err(),
            "bad format for path: a:b:c:d"
        );
    }

    #[test]
    fn an_ulimit_has_one_number_or_two() {
        let limit = parse_ulimit("nofile=10:20").unwrap();
        assert_eq!(
            (limit.name.as_str(), limit.soft, limit.hard),
            ("nofile", 10, 20)
        );
        let limit = parse_ulimit("core=-1").unwrap();
        assert_eq!((limit.soft, limit.hard), (-1, -1));
        for wrong in ["nofile", "nofile=", "nofile=a", "nofile=1:2:3"] {
            parse_ulimit(wrong).unwrap_err();
        }
    }
}
