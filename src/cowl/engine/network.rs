//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a container, as Docker writes them.
//!
//! They are files in the container's directory, rewritten at each start and bind-mounted into its
//! root. A container that shares another's network shares these files.

use super::Engine;
use super::container::Container;
use super::docker::HostConfig;
use super::error::{Context as _, Error, Result};
use super::namespaces::Mode;
use rustix::fs::{AtFlags, Mode as FileMode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Names in the container's directory, and where they are mounted.
pub(super) const FILES: [(&str, &str); 3] = [
    ("resolv.conf", "/etc/resolv.conf"),
    ("hostname", "/etc/hostname"),
    ("hosts", "/etc/hosts"),
];

/// A placeholder address, which dockerd replaces, not the client.
const HOST_GATEWAY: &str = "host-gateway";

/// moby, `libnetwork/etchosts`.
const LOCAL_HOSTS: &str = "127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::\tip6-localnet\n\
    ff00::\tip6-mcastprefix\n\
    ff02::1\tip6-allnodes\n\
    ff02::2\tip6-allrouters\n";
/// Largest file of the host that is copied.
const LIMIT: u64 = 1 << 20;
/// Most symbolic links followed on a path, as in the kernel.
const MAX_LINKS: usize = 40;

/// Refuses invalid addresses, with dockerd's texts.
pub(super) fn check(host: &HostConfig) -> Result<()> {
    for entry in &host.extra_hosts {
        extra_host(entry)?;
    }
    check_dns(host)?;
    let lines = [&host.dns_search, &host.dns_options];
    if lines
        .into_iter()
        .flatten()
        .any(|word| word.contains(char::is_whitespace))
    {
        return Err(Error::invalid(
            "a DNS search domain or option can't hold a space",
        ));
    }
    Ok(())
}

/// Refuses malformed addresses.
pub(super) fn check_syntax(host: &HostConfig) -> Result<()> {
    let known = |entry: &&String| !entry.ends_with(HOST_GATEWAY);
    for entry in host.extra_hosts.iter().filter(known) {
        extra_host(entry)?;
    }
    check_dns(host)
}

fn check_dns(host: &HostConfig) -> Result<()> {
    for address in &host.dns {
        if address.parse::<IpAddr>().is_err() {
            return Err(Error::invalid(format!(
                "bad nameserver address {address}: not an IP address"
            )));
        }
    }
    Ok(())
}

/// Parses `host:address` into address and name.
fn extra_host(entry: &str) -> Result<(IpAddr, &str)> {
    let bad = || Error::invalid(format!("bad format for add-host: \"{entry}\""));
    let (name, address) = entry.split_once([':', '=']).ok_or_else(bad)?;
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(bad());
    }
    if address == HOST_GATEWAY {
        return Err(Error::invalid(
            "unable to derive the IP value for host-gateway",
        ));
    }
    let plain = address
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let invalid = || Error::invalid(format!("invalid IP address in add-host: \"{address}\""));
    let parsed = plain.unwrap_or(address).parse();
    Ok((parsed.map_err(|_syntax| invalid())?, name))
}

fn hosts(container: &Container) -> Result<String> {
    let config = &container.config;
    let host = &config.host;
    let on_host = Mode::of(&host.network_mode) == Mode::Host;
    if on_host && host.extra_hosts.is_empty() {
        return of_host("/etc/hosts");
    }
    let mut lines = vec![LOCAL_HOSTS.to_owned()];
    for entry in &host.extra_hosts {
        let (address, name) = extra_host(entry)?;
        lines.push(format!("{address}\t{name}\n"));
    }
    if !on_host && host.network_mode != "none" {
        // Its only address is that of the loopback.
        let (name, domain) = (&config.config.hostname, &config.config.domainname);
        lines.push(if domain.is_empty() {
            format!("127.0.0.1\t{name}\n")
        } else {
            format!("127.0.0.1\t{name}.{domain} {name}\n")
        });
    }
    Ok(lines.concat())
}

/// The host's, with the container's options applied. In its own network namespace a container
/// cannot reach a name server on the host's loopback.
fn resolv_conf(host: &HostConfig) -> Result<String> {
    let of_host = of_host("/etc/resolv.conf")?;
    let on_host = Mode::of(&host.network_mode) == Mode::Host;
    if on_host && host.dns.is_empty() && host.dns_search.is_empty() && host.dns_options.is_empty() {
        return Ok(of_host);
    }
    Ok(resolvers(&of_host, host, on_host))
}

fn resolvers(of_host: &str, host: &HostConfig, on_host: bool) -> String {
    let lines = |key: &str| -> Vec<String> {
        let words = of_host.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(key)).then(|| words.map(str::to_owned).collect::<Vec<_>>())
        });
        words.flatten().collect()
    };
    let reachable = |address: &String| {
        let plain = address.split('%').next().unwrap_or_default();
        let loopback = plain
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback());
        on_host || !loopback
    };
    let or_host = |own: &Vec<String>, key: &str| {
        if own.is_empty() {
            lines(key)
        } else {
            own.clone()
        }
    };
    let servers = if host.dns.is_empty() {
        lines("nameserver").into_iter().filter(reachable).collect()
    } else {
        host.dns.clone()
    };
    let mut text = Vec::new();
    for server in servers {
        text.push(format!("nameserver {server}\n"));
    }
    // A single dot means no search domain.
    let search = or_host(&host.dns_search, "search");
    if !search.is_empty() && search != ["."] {
        text.push(format!("search {}\n", search.join(" ")));
    }
    let options = or_host(&host.dns_options, "options");
    if !options.is_empty() {
        text.push(format!("options {}\n", options.join(" ")));
    }
    text.concat()
}

/// Reads a file of the host; empty if it is missing.
fn of_host(path: &str) -> Result<String> {
    let mut text = Vec::new();
    match File::open(path) {
        Ok(file) => {
            let read = file.take(LIMIT).read_to_end(&mut text);
            read.context(|| format!("reading {path}"))?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::from(error).context(format!("opening {path}"))),
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

impl Engine {
    /// Writes the files for a container that is about to start. Returns each with its path below
    /// `root`, but for those where something else is mounted.
    pub(super) fn network_files(
        &self,
        container: &Container,
        root: BorrowedFd<'_>,
    ) -> Result<Vec<(Vec<u8>, OwnedFd)>> {
        let donor = self.network_owner(&container.config.host)?;
        let dir = donor.as_ref().unwrap_or(container).status_dir();
        if donor.is_none() {
            let config = &container.config;
            let texts = [
                resolv_conf(&config.host)?,
                format!("{}\n", config.config.hostname),
                hosts(container)?,
            ];
            for ((name, _), text) in FILES.iter().zip(texts) {
                write(dir, name, &text).context(|| format!("writing {name}"))?;
            }
        }
        let mut opened = Vec::new();
        for (name, destination) in FILES {
            let mut mounts = container.config.mounts.iter();
            if mounts.any(|mount| mount.destination == destination) {
                continue;
            }
            let destination = followed(root, destination)?;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(dir, name, flags, FileMode::empty());
            opened.push((destination, file.context(|| format!("opening {name}"))?));
        }
        Ok(opened)
    }
}

/// Creates a new file in place of the old one, which a program may still have open.
fn write(dir: BorrowedFd<'_>, name: &str, text: &str) -> Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = FileMode::from_raw_mode(0o644);
    let mut file = File::from(rustix::fs::openat(dir, name, flags, mode)?);
    // Whatever the umask.
    rustix::fs::fchmod(&file, mode)?;
    Ok(file.write_all(text.as_bytes())?)
}

/// Resolves a path below the root, following links, as if missing directories existed (runc,
/// filepath-securejoin). The root has no process yet, and the result is looked up below the root
/// again when it is mounted.
fn followed(root: BorrowedFd<'_>, path: &str) -> Result<Vec<u8>> {
    let looking = |errno: Errno| Error::from(errno).context(format!("looking at {path}"));
    let mut found: Vec<u8> = Vec::new();
    let mut rest: Vec<Vec<u8>> = names(path.as_bytes());
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == b".." {
            found.truncate(found.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
            continue;
        }
        let next = [found.as_slice(), b"/", &name].concat();
        let below = next.get(1..).unwrap_or_default();
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let target = match cowl_sys::open::openat2(root, below, flags, resolve) {
            Ok(file) => rustix::fs::readlinkat(&file, c"", Vec::new()),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(Errno::NOENT),
            Err(errno) => return Err(looking(errno)),
        };
        match target {
            // A link.
            Ok(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(looking(Errno::LOOP));
                }
                if target.as_bytes().starts_with(b"/") {
                    found.clear();
                }
                rest.extend(names(target.as_bytes()));
            }
            // Not a link, or missing.
            Err(Errno::NOENT | Errno::INVAL) => found = next,
            Err(errno) => return Err(looking(errno)),
        }
    }
    Ok(found)
}

/// The components of a path, last first.
fn names(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').rev();
    names
        .filter(|name| !matches!(*name, b"" | b"."))
        .map(<[u8]>::to_vec)
        .collect()
}

/// The host's host name.
pub(super) fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(dns: &[&str], search: &[&str], options: &[&str]) -> HostConfig {
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        HostConfig {
            dns: list(dns),
            dns_search: list(search),
            dns_options: list(options),
            ..HostConfig::default()
        }
    }

    #[test]
    fn resolvers_are_the_hosts_unless_given_and_never_on_its_loopback() {
        let of_host = "# comment\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nnameserver ::1\nsearch a.example\noptions ndots:2\n";
        let table = [
            (
                host(&[], &[], &[]),
                "nameserver 10.0.0.1\nsearch a.example\noptions ndots:2\n",
            ),
            (
                host(&["127.0.0.1"], &["."], &["rotate", "timeout:1"]),
                "nameserver 127.0.0.1\noptions rotate timeout:1\n",
            ),
            (
                host(&[], &["b.example", "c.example"], &[]),
                "nameserver 10.0.0.1\nsearch b.example c.example\noptions ndots:2\n",
            ),
        ];
        for (asked, expected) in table {
            assert_eq!(resolvers(of_host, &asked, false), expected);
        }
    }

    #[test]
    fn an_extra_host_is_a_name_and_an_address() {
        let shown = |entry| extra_host(entry).map(|(address, name)| format!("{address} {name}"));
        assert_eq!(shown("db:10.0.0.2").unwrap(), "10.0.0.2 db");
        assert_eq!(shown("db:[::2]").unwrap(), "::2 db");
        assert_eq!(shown("db:::2").unwrap(), "::2 db");
        let table = [
            ("db", "bad format for add-host: \"db\""),
            (":1.2.3.4", "bad format for add-host: \":1.2.3.4\""),
            ("db:10.0.0", "invalid IP address in add-host: \"10.0.0\""),
            (
                "db:host-gateway",
                "unable to derive the IP value for host-gateway",
            ),
        ];
        for (entry, text) in table {
            assert_eq!(shown(entry).unwrap_err().to_string(), text);
        }
    }
}
