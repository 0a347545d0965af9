//! A program in a container: what a start, `exec` and an OCI front end need beside the
//! [sandbox](crate::sandbox).
//!
//! Plain data, without system calls. Names, paths and arguments are bytes, as the kernel has them;
//! the monitor refuses a NUL byte in one.

use bincode::{Decode, Encode};

use crate::seccomp::CompiledFilter;

/// A program in a container.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Process {
    /// Program and arguments. A program without a slash is looked up in the container's `PATH`.
    pub argv: Vec<Vec<u8>>,
    /// `KEY=VALUE` each, no key twice. `HOME` is added from the container's passwd if it is missing.
    pub env: Vec<Vec<u8>>,
    /// Absolute, or empty for `/`. Made (0755, root's) where missing.
    pub cwd: Vec<u8>,
    /// `user`, `uid`, `user:group`, ... as in an image's `User`; empty for root. Resolved in the
    /// container's /etc/passwd and /etc/group.
    pub user: Vec<u8>,
    /// Names or numbers of further groups, resolved in the container's /etc/group.
    pub groups: Vec<Vec<u8>>,
    /// Gives the program a terminal of its own. Without, the three stdio descriptors are used as
    /// they are.
    pub terminal: Option<WindowSize>,
    /// The bounding, permitted and effective set: bit n is capability number n of
    /// linux/capability.h.
    pub capabilities: u64,
    /// `PR_SET_NO_NEW_PRIVS`: set-user-ID programs and file capabilities give nothing.
    pub no_new_privileges: bool,
    /// Which system calls the program may make.
    pub seccomp: Seccomp,
    /// In this order; the others are the monitor's.
    pub rlimits: Vec<Rlimit>,
    /// Its value in /proc/PID/oom_score_adj: -1000 to 1000, 0 if none.
    pub oom_score_adj: Option<i16>,
}

/// See [`Process::seccomp`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Seccomp {
    /// Those that Docker's default profile allows with [`Process::capabilities`].
    Default,
    /// All.
    Unconfined,
    /// Those that a profile allows.
    Filter(CompiledFilter),
}

/// Size of a terminal in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A resource limit of the program's process, as in setrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Rlimit {
    /// Of what.
    pub resource: Resource,
    /// The limit; none is unlimited.
    pub soft: Option<u64>,
    /// As far as the program may raise it; none is unlimited.
    pub hard: Option<u64>,
}

macro_rules! resources {
    ($($name:ident = $word:literal,)*) => {
        /// What an [`Rlimit`] limits.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
        pub enum Resource {
            $(#[doc = concat!("`", $word, "` of `--ulimit`.")] $name,)*
        }

        impl Resource {
            /// By its name in `--ulimit` (docker/go-units, `ulimit.go`).
            pub fn named(name: &str) -> Option<Self> {
                match name {
                    $($word => Some(Self::$name),)*
                    _ => None,
                }
            }

            pub(crate) fn number(self) -> rustix::process::Resource {
                match self {
                    $(Self::$name => rustix::process::Resource::$name,)*
                }
            }
        }
    };
}

resources! {
    As = "as",
    Core = "core",
    Cpu = "cpu",
    Data = "data",
    Fsize = "fsize",
    Locks = "locks",
    Memlock = "memlock",
    Msgqueue = "msgqueue",
    Nice = "nice",
    Nofile = "nofile",
    Nproc = "nproc",
    Rss = "rss",
    Rtprio = "rtprio",
    Rttime = "rttime",
    Sigpending = "sigpending",
    Stack = "stack",
}

/// Docker's default capabilities (moby, `oci/caps/defaults.go`): CHOWN, DAC_OVERRIDE, FOWNER,
/// FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD,
/// AUDIT_WRITE, SETFCAP.
pub const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

/// Docker's `PATH` for an image that sets none (moby, `oci/defaults.go`).
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Process {
    /// A program with Docker's defaults for everything else.
    pub fn new(argv: Vec<Vec<u8>>) -> Self {
        Self {
            argv,
            env: vec![DEFAULT_PATH.as_bytes().to_vec()],
            cwd: Vec::new(),
            user: Vec::new(),
            groups: Vec::new(),
            terminal: None,
            capabilities: DEFAULT_CAPABILITIES,
            no_new_privileges: false,
            seccomp: Seccomp::Default,
            rlimits: Vec::new(),
            oom_score_adj: None,
        }
    }
}
