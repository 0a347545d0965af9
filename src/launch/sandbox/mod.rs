//! What a container is made of, but for the program: namespaces, mounts, devices, limits.
//!
//! Plain data; only [`Sandbox::new`] looks at the host, for its processors. The descriptors that
//! belong to it are sent beside it, in this order: one for each namespace that is joined
//! ([`Namespaces::joined`]), then one for each mount of a descriptor ([`Sandbox::descriptors`]).
//! Names and paths are bytes, as the kernel has them; the monitor refuses a NUL byte in one.
//! Callers: the engine (through [`crate::client`]) and the monitor.

mod devices;
mod limits;

pub use devices::{Device, DeviceRule};
pub use limits::{DeviceWeight, Limits, Throttle, ThrottleKind};

use std::path::Path;

use bincode::{Decode, Encode};

/// What a container is made of. It passes between binaries of one build only.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Sandbox {
    /// Names the container's cgroups below [`Sandbox::cgroup_parent`]: one path component, no
    /// slash, not `.` or `..`.
    pub id: String,
    /// Where the container's cgroups are made in each hierarchy, e.g. `/cowl`: absolute, no `.` or
    /// `..`.
    pub cgroup_parent: String,
    /// Where its processes are.
    pub namespaces: Namespaces,
    /// Of a new UTS namespace; at most 64 bytes.
    pub hostname: String,
    /// NIS domain name of a new UTS namespace; empty to leave the kernel's.
    pub domainname: String,
    /// Attached in this order. All before the first [`MountSource::Cgroup`],
    /// [`MountSource::Descriptor`] or [`MountSource::Detached`] are there before paths are masked.
    pub mounts: Vec<Mount>,
    /// A first process of the launcher's own, which starts the program, forwards signals to it and
    /// reaps orphans.
    pub init: bool,
    /// Nodes in /dev, which must be a tmpfs of [`Sandbox::mounts`].
    pub devices: Vec<Device>,
    /// What its processes may open and create, beyond Docker's list.
    pub device_rules: Vec<DeviceRule>,
    /// Masked paths below /proc and /sys: files by /dev/null, directories by an empty read-only
    /// one. Missing ones are skipped.
    pub masked_paths: Vec<Vec<u8>>,
    /// Read-only paths below /proc and /sys. Missing ones are skipped.
    pub readonly_paths: Vec<Vec<u8>>,
    /// Makes the root mount read-only, but not volumes, /dev and the other mounts.
    pub readonly_root: bool,
    /// Kernel parameters of its namespaces, set in this order.
    pub sysctls: Vec<Sysctl>,
    /// Limits, enforced by cgroups.
    pub limits: Limits,
    /// Weights of single block devices, whose scheduler must be BFQ
    /// ([`crate::cgroup::discard_device_weights`]).
    pub device_weights: Vec<DeviceWeight>,
    /// At the limit of memory processes wait instead of being killed. Of control groups of version
    /// 1 only ([`crate::cgroup::can_disable_oom_killer`]).
    pub oom_kill_disable: bool,
}

/// Which namespaces a container has. Its mount namespace is always new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Namespaces {
    /// Process ids.
    pub pid: Namespace,
    /// System V IPC and message queues.
    pub ipc: Namespace,
    /// Host and domain name.
    pub uts: Namespace,
    /// Network interfaces, addresses, ports.
    pub net: Namespace,
    /// What of the cgroup hierarchies is visible; it can't be joined.
    pub cgroup: CgroupNamespace,
}

/// Where one kind of namespace comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum Namespace {
    /// A new one.
    #[default]
    New,
    /// The monitor's.
    Host,
    /// The one behind a descriptor.
    Join,
}

/// See [`Namespaces::cgroup`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum CgroupNamespace {
    /// The container's cgroups are the roots.
    #[default]
    New,
    /// The monitor's.
    Host,
}

impl Namespaces {
    /// Number of descriptors of namespaces: of pid, ipc, uts and net, in this order, those that
    /// are joined.
    pub fn joined(&self) -> usize {
        [self.pid, self.ipc, self.uts, self.net]
            .into_iter()
            .filter(|namespace| *namespace == Namespace::Join)
            .count()
    }
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Mount {
    /// Absolute; resolved inside the container's root, symlinks included. Made where missing: a
    /// directory, or an empty file for a descriptor of a file. Never below /proc; a file system
    /// directly below the root must not be reached through a symlink.
    pub destination: Vec<u8>,
    /// What is mounted.
    pub source: MountSource,
    /// How.
    pub attributes: Attributes,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum MountSource {
    /// A new file system.
    Filesystem {
        /// Its kind.
        kind: Filesystem,
        /// Its parameters: with a value, or flags.
        parameters: Vec<(String, Option<String>)>,
    },
    /// The container's cgroups.
    Cgroup,
    /// The directory or file behind the next descriptor.
    Descriptor {
        /// What becomes of the mounts below it.
        submounts: Submounts,
        /// Whether mounts made later are passed on.
        propagation: Propagation,
    },
    /// The mount behind the next descriptor, which is attached nowhere.
    Detached,
}

/// A file system that a container may have of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Filesystem {
    /// Of the container's pid namespace.
    Proc,
    /// Of its network namespace.
    Sysfs,
    /// Empty.
    Tmpfs,
    /// Terminals of its own.
    Devpts,
    /// Of its IPC namespace.
    Mqueue,
}

/// Attributes of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Attributes {
    /// Nothing can be written through it.
    pub read_only: bool,
    /// Set-user-ID and set-group-ID bits and file capabilities give nothing.
    pub no_suid: bool,
    /// Device nodes can't be opened.
    pub no_devices: bool,
    /// Programs can't be run.
    pub no_exec: bool,
    /// Access times are kept at each access; of a new file system only.
    pub strict_atime: bool,
}

/// The mounts below a descriptor's directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum Submounts {
    /// Come along and get the same attributes.
    #[default]
    Same,
    /// Come along as they are.
    Unchanged,
    /// Stay away.
    None,
}

/// Whether mounts that are made later below a descriptor's directory are passed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum Propagation {
    /// Neither way.
    #[default]
    Private,
    /// From the host to the container.
    Slave,
    /// Both ways.
    Shared,
}

/// A kernel parameter.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Sysctl {
    /// `net.ipv4.ip_forward`, or with slashes.
    pub name: String,
    /// What is written.
    pub value: String,
    /// Passed over where this kernel, or the container's user namespace, has no such parameter.
    pub optional: bool,
}

/// Paths that Docker masks by default (moby, `oci/defaults.go`).
pub const DEFAULT_MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths that Docker makes read-only by default (moby, `oci/defaults.go`).
pub const DEFAULT_READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Where each processor counts how often it was too hot, which tells what else the host does (moby,
/// `oci/defaults.go`). None where the processors don't.
fn thermal_throttle(processors: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(processors) else {
        return Vec::new();
    };
    let is_processor = |name: &str| {
        let number = name.strip_prefix("cpu").unwrap_or_default();
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    let mut paths: Vec<Vec<u8>> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.to_owned()))
        .filter(|name| is_processor(name))
        .map(|name| processors.join(name).join("thermal_throttle"))
        .filter(|path| path.try_exists().unwrap_or(false))
        .map(|path| path.into_os_string().into_encoded_bytes())
        .collect();
    paths.sort();
    paths
}

/// Docker's size of /dev/shm, in bytes.
pub const DEFAULT_SHM_SIZE: u64 = 64 << 20;

/// Nodes of /dev: name and device number of a character device (admin-guide/devices.txt).
const NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Set in a new network namespace, as by Docker: any user may listen on any port, and any group may
/// open ping sockets (moby, `daemon/oci_linux.go`). The last names groups that a user namespace may
/// lack.
const SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

impl Sandbox {
    /// Docker's defaults.
    pub fn new(id: impl Into<String>) -> Self {
        let id = id.into();
        let hostname = id.chars().take(12).collect();
        let bytes = |paths: &[&str]| paths.iter().map(|path| path.as_bytes().to_vec()).collect();
        Self {
            id,
            cgroup_parent: "/cowl".to_owned(),
            namespaces: Namespaces::default(),
            hostname,
            domainname: String::new(),
            mounts: default_mounts(),
            init: false,
            device_rules: Vec::new(),
            devices: NODES.into_iter().map(Device::character).collect(),
            masked_paths: [
                bytes(&DEFAULT_MASKED_PATHS),
                thermal_throttle(Path::new("/sys/devices/system/cpu")),
            ]
            .concat(),
            readonly_paths: bytes(&DEFAULT_READONLY_PATHS),
            readonly_root: false,
            sysctls: SYSCTLS
                .into_iter()
                .map(|(name, value)| Sysctl {
                    name: name.to_owned(),
                    value: value.to_owned(),
                    optional: true,
                })
                .collect(),
            limits: Limits::default(),
            device_weights: Vec::new(),
            oom_kill_disable: false,
        }
    }

    /// Replaces the mount at the same destination, in its place, or adds it at the end.
    pub fn set_mount(&mut self, mount: Mount) {
        let same = |other: &&mut Mount| other.destination == mount.destination;
        match self.mounts.iter_mut().find(same) {
            Some(other) => *other = mount,
            None => self.mounts.push(mount),
        }
    }

    /// Number of descriptors of mounts: one for each [`MountSource::Descriptor`] and
    /// [`MountSource::Detached`], in their order.
    pub fn descriptors(&self) -> usize {
        let has_one = |mount: &&Mount| {
            let source = &mount.source;
            matches!(
                source,
                MountSource::Descriptor { .. } | MountSource::Detached
            )
        };
        self.mounts.iter().filter(has_one).count()
    }
}

impl Device {
    fn character((name, major, minor): (&str, u32, u32)) -> Self {
        let path = format!("/dev/{name}").into_bytes();
        Self {
            host: path.clone(),
            path,
            block: false,
            major,
            minor,
            mode: 0o666,
            owner: (0, 0),
        }
    }
}

impl Mount {
    /// A directory or file of the host.
    pub fn descriptor(destination: impl Into<Vec<u8>>, read_only: bool) -> Self {
        Self {
            destination: destination.into(),
            source: MountSource::Descriptor {
                submounts: Submounts::default(),
                propagation: Propagation::default(),
            },
            attributes: Attributes {
                read_only,
                ..Attributes::default()
            },
        }
    }

    /// Another container's /dev/shm, attached nowhere.
    pub fn joined_shm() -> Self {
        Self {
            destination: b"/dev/shm".to_vec(),
            source: MountSource::Detached,
            attributes: NO_EXEC,
        }
    }

    /// A new file system; `parameters` are `key=value` or flags.
    pub fn filesystem(
        destination: &str,
        kind: Filesystem,
        parameters: &[&str],
        attributes: Attributes,
    ) -> Self {
        let parameters = parameters
            .iter()
            .map(|parameter| match parameter.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => ((*parameter).to_owned(), None),
            })
            .collect();
        Self {
            destination: destination.as_bytes().to_vec(),
            source: MountSource::Filesystem { kind, parameters },
            attributes,
        }
    }

    /// Docker's /dev/shm, of this many bytes.
    pub fn shm(bytes: u64) -> Self {
        Self::filesystem(
            "/dev/shm",
            Filesystem::Tmpfs,
            &["mode=1777", &format!("size={bytes}")],
            NO_EXEC,
        )
    }
}

const NO_EXEC: Attributes = Attributes {
    read_only: false,
    no_suid: true,
    no_devices: true,
    no_exec: true,
    strict_atime: false,
};

/// moby, `oci/defaults.go`.
fn default_mounts() -> Vec<Mount> {
    let read_only = Attributes {
        read_only: true,
        ..NO_EXEC
    };
    let no_suid = Attributes {
        no_suid: true,
        ..Attributes::default()
    };
    let terminals = Attributes {
        no_exec: true,
        ..no_suid
    };
    let pts = ["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    vec![
        Mount::filesystem("/proc", Filesystem::Proc, &[], NO_EXEC),
        Mount::filesystem("/sys", Filesystem::Sysfs, &[], read_only),
        Mount::filesystem(
            "/dev",
            Filesystem::Tmpfs,
            &["mode=755", "size=65536k"],
            Attributes {
                strict_atime: true,
                ..no_suid
            },
        ),
        Mount::filesystem("/dev/pts", Filesystem::Devpts, &pts, terminals),
        Mount::shm(DEFAULT_SHM_SIZE),
        Mount::filesystem("/dev/mqueue", Filesystem::Mqueue, &[], NO_EXEC),
        Mount {
            destination: b"/sys/fs/cgroup".to_vec(),
            source: MountSource::Cgroup,
            attributes: read_only,
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_processors_thermal_throttle_is_masked() {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "cpu0/thermal_throttle",
            "cpu10/thermal_throttle",
            "cpu2/cache",
            "cpufreq/thermal_throttle",
        ] {
            std::fs::create_dir_all(root.path().join(path)).unwrap();
        }
        let path = |name: &str| root.path().join(name).into_os_string().into_encoded_bytes();
        assert_eq!(
            thermal_throttle(root.path()),
            [
                path("cpu0/thermal_throttle"),
                path("cpu10/thermal_throttle")
            ]
        );
        assert!(thermal_throttle(&root.path().join("none")).is_empty());
    }
}
