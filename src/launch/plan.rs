//! What the engine asks for, and what the monitor answers.
//!
//! These are the payloads of the records of [`crate::wire`]; a record's fields never change once released, a new need is a new record
//! version. Nothing here touches the system. Callers: the engine (through [`crate::client`]) and the monitor.

use bincode::{Decode, Encode};

/// Everything that defines a container but its descriptors, which travel beside it in the order of [`crate::client::Launch`].
///
/// Names, paths and arguments are bytes as the kernel has them; a NUL byte in one is refused by the monitor.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Plan {
    /// Names the container's cgroups below [`Plan::cgroup_parent`]: one path component, no slash, not `.` or `..`.
    pub id: String,
    /// Program and arguments, at least the program; without a slash it is searched in the container's own `PATH`.
    pub argv: Vec<Vec<u8>>,
    /// `KEY=VALUE` each; of two with one key the later wins. `PATH`, `HOSTNAME`, `HOME` (from the container's passwd) and, with a
    /// terminal, `TERM` are added where missing, as Docker does.
    pub env: Vec<Vec<u8>>,
    /// Absolute, or empty for `/`. Made (0755, root's) where missing.
    pub cwd: Vec<u8>,
    /// `user`, `uid`, `user:group`, ... as in an image's `User`; empty for root. Resolved in the container's /etc/passwd and /etc/group.
    pub user: Vec<u8>,
    /// Of the container's own UTS namespace; at most 64 bytes.
    pub hostname: String,
    /// The n-th entry belongs to the n-th volume descriptor. Mounted in this order.
    pub volumes: Vec<VolumeMount>,
    /// Limits, enforced by cgroups.
    pub limits: Limits,
    /// Where the container's cgroups are made in each hierarchy, e.g. `/cowl`: absolute, no `.` or `..`.
    pub cgroup_parent: String,
    /// A terminal of the container's own; without one the three stdio descriptors are used as they are.
    pub terminal: Option<WindowSize>,
    /// The bounding, permitted and effective set: bit n is capability number n of linux/capability.h.
    pub capabilities: u64,
    /// Paths below /proc and /sys that are covered: files by /dev/null, directories by an empty read-only one. Missing ones are skipped.
    pub masked_paths: Vec<Vec<u8>>,
    /// Paths below /proc and /sys that are made read-only. Missing ones are skipped.
    pub readonly_paths: Vec<Vec<u8>>,
    /// The root itself read-only (volumes, /dev and the like stay as they are).
    pub readonly_root: bool,
    /// `PR_SET_NO_NEW_PRIVS`: set-user-ID programs and file capabilities give nothing.
    pub no_new_privileges: bool,
    /// Which system calls the program may make.
    pub seccomp: Seccomp,
}

/// See [`Plan::seccomp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Seccomp {
    /// What Docker's default profile gives to [`Plan::capabilities`].
    Default,
    /// All that the kernel lets it.
    Unconfined,
}

/// One volume's place in the container.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct VolumeMount {
    /// Absolute; resolved inside the container's root, symlinks included. Made where missing: a directory, or an empty file if the
    /// volume's descriptor is not a directory. Never below /proc.
    pub destination: Vec<u8>,
    /// The whole mount tree read-only.
    pub read_only: bool,
}

/// What the container may use at most; `None` is no limit.
///
/// A limit that the host's cgroups can't enforce is an error, never ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Limits {
    /// Bytes of memory. Swap is not an escape: memory and swap together have the same limit.
    pub memory: Option<u64>,
    /// Tasks (processes and threads).
    pub pids: Option<u64>,
}

/// Size of a terminal in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// Docker's default capabilities (moby, `oci/caps/defaults.go`): CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP,
/// NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
pub const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

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

impl Plan {
    /// A plan with Docker's defaults for what isn't named here.
    pub fn new(id: impl Into<String>, argv: Vec<Vec<u8>>) -> Self {
        let id = id.into();
        let hostname = id.chars().take(12).collect();
        let bytes = |paths: &[&str]| paths.iter().map(|path| path.as_bytes().to_vec()).collect();
        Self {
            id,
            argv,
            env: Vec::new(),
            cwd: Vec::new(),
            user: Vec::new(),
            hostname,
            volumes: Vec::new(),
            limits: Limits::default(),
            cgroup_parent: "/cowl".to_owned(),
            terminal: None,
            capabilities: DEFAULT_CAPABILITIES,
            masked_paths: bytes(&DEFAULT_MASKED_PATHS),
            readonly_paths: bytes(&DEFAULT_READONLY_PATHS),
            readonly_root: false,
            no_new_privileges: false,
            seccomp: Seccomp::Default,
        }
    }
}

/// What a client may ask of a running monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Send a signal to the container's first process.
    Signal(Signal),
    /// Set the size of the container's terminal; without one it does nothing.
    Resize(WindowSize),
}

/// A signal number of the kernel, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Signal {
    /// As in signal(7).
    pub number: u8,
}

/// What a monitor tells its client. After `Failed` or `Exited` nothing more comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The program runs. With a terminal, its master end comes with this message.
    Started(Started),
    /// The program did not start, and nothing is left of it.
    Failed(Failed),
    /// The program ran and ended, and nothing is left of it but what [`crate::status`] says.
    Exited(Exited),
}

/// See [`Event::Started`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Started {
    /// Of the container's first process, in the monitor's pid namespace.
    pub pid: u32,
}

/// See [`Event::Failed`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Failed {
    /// What was tried, to be read by a person: `mount /proc`.
    pub what: String,
    /// Why, from the kernel; 0 where `what` says all.
    pub errno: i32,
    /// Docker's: 127 program not found, 126 found but can't be run, 125 all else.
    pub exit_code: u8,
}

/// See [`Event::Exited`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Exited {
    /// The program's, or 128 + the signal that ended it.
    pub exit_code: u8,
    /// The signal that ended it, if one did.
    pub signal: Option<u8>,
    /// The kernel killed at least one process of the container for want of memory.
    pub oom_killed: bool,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.what)?;
        if self.errno != 0 {
            write!(
                formatter,
                ": {}",
                std::io::Error::from_raw_os_error(self.errno)
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for Failed {}
