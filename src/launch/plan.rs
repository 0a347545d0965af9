//! The payloads of the records of [`crate::wire`]: what the engine asks for and what the monitor
//! answers.
//!
//! A released record's fields never change; a new field is a new record version. Plain data,
//! without system calls. Callers: the engine (through [`crate::client`]) and the monitor.

use bincode::{Decode, Encode};

/// Everything that defines a container except its descriptors, which are sent beside it.
///
/// Names, paths and arguments are bytes, as the kernel has them. The monitor refuses a NUL byte in
/// one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Plan {
    /// Names the container's cgroups below [`Plan::cgroup_parent`]: one path component, no slash,
    /// not `.` or `..`.
    pub id: String,
    /// Program and arguments. A program without a slash is looked up in the container's `PATH`.
    pub argv: Vec<Vec<u8>>,
    /// `KEY=VALUE` each, no key twice. `HOME` is added from the container's passwd if it is missing.
    pub env: Vec<Vec<u8>>,
    /// Absolute, or empty for `/`. Made (0755, root's) where missing.
    pub cwd: Vec<u8>,
    /// `user`, `uid`, `user:group`, ... as in an image's `User`; empty for root. Resolved in the
    /// container's /etc/passwd and /etc/group.
    pub user: Vec<u8>,
    /// Of the container's own UTS namespace; at most 64 bytes.
    pub hostname: String,
    /// The n-th entry belongs to the n-th volume descriptor. Mounted in this order.
    pub volumes: Vec<VolumeMount>,
    /// Limits, enforced by cgroups.
    pub limits: Limits,
    /// Where the container's cgroups are made in each hierarchy, e.g. `/cowl`: absolute, no `.` or
    /// `..`.
    pub cgroup_parent: String,
    /// Gives the container a terminal of its own. Without, the three stdio descriptors are used as
    /// they are.
    pub terminal: Option<WindowSize>,
    /// The bounding, permitted and effective set: bit n is capability number n of
    /// linux/capability.h.
    pub capabilities: u64,
    /// Masked paths below /proc and /sys: files by /dev/null, directories by an empty read-only
    /// one. Missing ones are skipped.
    pub masked_paths: Vec<Vec<u8>>,
    /// Read-only paths below /proc and /sys. Missing ones are skipped.
    pub readonly_paths: Vec<Vec<u8>>,
    /// Makes the root mount read-only, but not volumes, /dev and the other mounts.
    pub readonly_root: bool,
    /// `PR_SET_NO_NEW_PRIVS`: set-user-ID programs and file capabilities give nothing.
    pub no_new_privileges: bool,
    /// Which system calls the program may make.
    pub seccomp: Seccomp,
}

/// See [`Plan::seccomp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Seccomp {
    /// Those that Docker's default profile allows with [`Plan::capabilities`].
    Default,
    /// All.
    Unconfined,
}

/// One volume's place in the container.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct VolumeMount {
    /// Absolute; resolved inside the container's root, symlinks included. Made where missing: a
    /// directory, or an empty file if the volume's descriptor is not a directory. Never below
    /// /proc.
    pub destination: Vec<u8>,
    /// The whole mount tree read-only.
    pub read_only: bool,
}

/// Resource limits; `None` is no limit.
///
/// A limit that the host's cgroups can't enforce is an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Limits {
    /// Bytes of memory, and of memory and swap together.
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

/// Docker's default capabilities (moby, `oci/caps/defaults.go`): CHOWN, DAC_OVERRIDE, FOWNER,
/// FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD,
/// AUDIT_WRITE, SETFCAP.
pub const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

/// Docker's `PATH` for an image that sets none (moby, `oci/defaults.go`).
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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
    /// A plan with Docker's defaults for everything else.
    pub fn new(id: impl Into<String>, argv: Vec<Vec<u8>>) -> Self {
        let id = id.into();
        let hostname = id.chars().take(12).collect();
        let bytes = |paths: &[&str]| paths.iter().map(|path| path.as_bytes().to_vec()).collect();
        Self {
            id,
            argv,
            env: vec![DEFAULT_PATH.as_bytes().to_vec()],
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

/// A message of the client to a running monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlRequest {
    /// Send a signal to the container's first process.
    Signal(Signal),
    /// Set the size of the container's terminal, if it has one.
    Resize(WindowSize),
}

/// A signal number of the kernel, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Signal {
    /// As in signal(7).
    pub number: u8,
}

/// A message of the monitor to its client. `Failed` or `Exited` is the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The program runs. The master end of its terminal comes with this message.
    Started(Started),
    /// The program did not start. Everything is cleaned up.
    Failed(Failed),
    /// The program has ended. Everything is cleaned up but the [exit record](crate::status).
    Exited(Exited),
}

/// See [`Event::Started`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Started {
    /// Pid of the container's first process in the monitor's pid namespace.
    pub pid: u32,
}

/// See [`Event::Failed`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Failed {
    /// The step that failed, in words: `mount /proc`.
    pub what: String,
    /// The error of the kernel; 0 if there is none.
    pub errno: i32,
    /// As Docker's: 127 program not found, 126 program can't be run, 125 everything else.
    pub exit_code: u8,
}

/// See [`Event::Exited`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Exited {
    /// The program's, or 128 + the signal that killed it.
    pub exit_code: u8,
    /// The signal that killed it, if one did.
    pub signal: Option<u8>,
    /// The OOM killer has killed a process of the container.
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
