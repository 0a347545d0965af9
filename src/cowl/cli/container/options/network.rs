//! Names, name servers and namespaces.

use crate::engine::docker::{ContainerConfig, HostConfig};
use crate::engine::error::{Error, Result};
use clap::Args;

#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "they name the options")]
pub(in crate::cli::container) struct Network {
    /// Container host name
    #[arg(short = 'h', long, value_name = "NAME")]
    hostname: Option<String>,
    /// Container NIS domain name
    #[arg(long, value_name = "NAME")]
    domainname: Option<String>,
    /// Add a custom host-to-IP mapping (host:ip)
    #[arg(long, value_name = "HOST:IP")]
    add_host: Vec<String>,
    /// Set custom DNS servers
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// Set custom DNS search domains
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Set DNS options
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Network: none, host, container:NAME, or bridge (as yet a loopback of its own)
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    network: Option<String>,
}

impl Network {
    pub(in crate::cli::container) fn apply(
        self,
        config: &mut ContainerConfig,
        host: &mut HostConfig,
    ) -> Result<()> {
        config.hostname = self.hostname.unwrap_or_default();
        config.domainname = self.domainname.unwrap_or_default();
        host.network_mode = self.network.unwrap_or_else(|| "default".to_owned());
        if host.network_mode.is_empty() {
            return Err(Error::invalid("no name set for network"));
        }
        for entry in self.add_host {
            // As in Docker's client, an equals sign becomes a colon.
            let separator = entry
                .find(['=', ':'])
                .ok_or_else(|| Error::invalid(format!("bad format for add-host: \"{entry}\"")))?;
            let (name, rest) = entry.split_at_checked(separator).unwrap_or((&entry, ""));
            let address = rest.get(1..).unwrap_or_default();
            host.extra_hosts.push(format!("{name}:{address}"));
        }
        host.dns = self.dns;
        let domains = self.dns_search.iter().map(|text| search_domain(text));
        host.dns_search = domains.collect::<Result<_>>()?;
        host.dns_options = self.dns_option;
        Ok(())
    }
}

/// A domain without its trailing dot (docker/cli, `opts/opts.go`).
fn search_domain(text: &str) -> Result<String> {
    let domain = text.trim_matches(' ');
    if domain == "." {
        return Ok(domain.to_owned());
    }
    let trimmed = domain.trim_end();
    let trimmed = trimmed.strip_suffix('.').unwrap_or(trimmed);
    let is_label = |label: &str| {
        let at_ends = |c: char| c.is_ascii_alphanumeric();
        label.starts_with(at_ends)
            && label.ends_with(at_ends)
            && label.chars().all(|c| at_ends(c) || c == '-')
    };
    let has_letter = trimmed.contains(|c: char| c.is_ascii_alphabetic());
    if !has_letter || trimmed.len() >= 255 || !trimmed.split('.').all(is_label) {
        return Err(Error::invalid(format!("{domain} is not a valid domain")));
    }
    Ok(trimmed.to_owned())
}

#[derive(Debug, Args)]
pub(in crate::cli::container) struct Namespaces {
    /// PID namespace to use: host, container:NAME
    #[arg(long, value_name = "MODE")]
    pid: Option<String>,
    /// IPC mode to use: none, private, shareable, host, container:CONTAINER
    #[arg(long, value_name = "MODE")]
    ipc: Option<String>,
    /// UTS namespace to use: host
    #[arg(long, value_name = "MODE")]
    uts: Option<String>,
    /// User namespace to use: host
    #[arg(long, value_name = "MODE")]
    userns: Option<String>,
    /// Cgroup namespace to use: host, private
    #[arg(long, value_name = "MODE")]
    cgroupns: Option<String>,
}

impl Namespaces {
    /// Checks the modes with the texts of Docker's client; the engine checks what they refer to.
    pub(in crate::cli::container) fn apply(self, host: &mut HostConfig) -> Result<()> {
        let joins = |mode: &str| {
            mode.strip_prefix("container:")
                .is_some_and(|id| !id.is_empty())
        };
        let invalid =
            |flag: &str, what: &str| Err(Error::invalid(format!("--{flag}: invalid {what} mode")));
        host.pid_mode = self.pid.unwrap_or_default();
        if !matches!(host.pid_mode.as_str(), "" | "host") && !joins(&host.pid_mode) {
            return invalid("pid", "PID");
        }
        host.uts_mode = self.uts.unwrap_or_default();
        if !matches!(host.uts_mode.as_str(), "" | "host") {
            return invalid("uts", "UTS");
        }
        host.userns_mode = self.userns.unwrap_or_default();
        if !matches!(host.userns_mode.as_str(), "" | "host") {
            return invalid("userns", "USER");
        }
        host.cgroupns_mode = self.cgroupns.unwrap_or_default();
        if !matches!(host.cgroupns_mode.as_str(), "" | "host" | "private") {
            return invalid("cgroupns", "CGROUP");
        }
        host.ipc_mode = self.ipc.unwrap_or_default();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What docker 28.2 accepts, and its normalised form.
    #[test]
    fn search_domains_are_checked_as_docker_does() {
        for (text, domain) in [
            (".", "."),
            ("example.com", "example.com"),
            (" a-b.c. ", "a-b.c"),
            ("1a", "1a"),
        ] {
            assert_eq!(search_domain(text).unwrap(), domain, "{text:?}");
        }
        let long = "a.".repeat(128);
        for text in ["", "1.2", "-a", "a-", "a..b", "a b", "a_b", &long] {
            let refused = search_domain(text).unwrap_err().to_string();
            assert_eq!(refused, format!("{text} is not a valid domain"));
        }
    }
}
