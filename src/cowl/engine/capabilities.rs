//! Capabilities by Docker's names.

use super::docker::HostConfig;
use super::error::{Context as _, Error, Result};
use cowl_launch::process::DEFAULT_CAPABILITIES;

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

/// The number of a capability by its whole name: `CAP_CHOWN`.
pub(super) fn number(name: &str) -> Option<usize> {
    let name = name.strip_prefix("CAP_")?;
    CAPABILITIES.iter().position(|known| *known == name)
}

/// The capabilities of this process, which no program can exceed.
pub(super) fn all_capabilities() -> Result<u64> {
    let sets = rustix::thread::capabilities(None)
        .context(|| "reading the capabilities of this process")?;
    Ok(sets.permitted.bits() & ALL_CAPABILITIES)
}

/// Docker's default capabilities, plus those added, minus those dropped. With `ALL` in one list,
/// the other list has the exceptions.
pub(super) fn capabilities(host: &HostConfig) -> Result<u64> {
    if host.privileged {
        return all_capabilities();
    }
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
