//! What each long-lived process of cowl starts with, whatever its caller had.
//!
//! The monitor of a container and the processes of a mount live on when their caller is gone. A
//! `RLIMIT_FSIZE`, an ignored SIGTERM or an open lock of the caller would hold for as long as they
//! do; so each of them calls [`reset`] first of all, and nothing else of the caller's reaches it
//! but standard streams, environment, ids, niceness, and what these have no business with (the
//! limits of cores, stacks and locked memory).

use std::fmt;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};

use crate::sys;

/// Limits that end a process, or fail its calls, for what its caller wanted for itself.
const UNLIMITED: [Resource; 5] = [
    Resource::As,
    Resource::Cpu,
    Resource::Data,
    Resource::Fsize,
    Resource::Nproc,
];

/// Open files a process may have at least, where it may raise its own limit: systemd's for every
/// service.
const OPEN_FILES: u64 = 524_288;

/// What could not be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    what: &'static str,
    errno: Errno,
}

impl Error {
    /// Why, from the kernel.
    pub fn errno(&self) -> Errno {
        self.errno
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.what, self.errno)
    }
}

impl std::error::Error for Error {}

fn at(what: &'static str) -> impl FnOnce(Errno) -> Error {
    move |errno| Error { what, errno }
}

/// Drops what the process inherited. To be called first of all, with one thread and nothing open
/// but the standard streams: every other descriptor is closed.
///
/// Afterwards no signal is blocked or ignored but SIGPIPE (Rust's start-up ignores it, so that a
/// closed pipe is an error of `write`), the working directory is `/`, the umask 0 (callers give
/// whole modes), the OOM killer treats the process like any other, and limits that are not its own
/// are as high as it may set them. `open_files` is the soft limit of descriptors: 1024 where a
/// program may be run that uses `select`, else `u64::MAX`.
pub fn reset(open_files: u64) -> Result<(), Error> {
    sys::close_from(3).map_err(at("close inherited descriptors"))?;
    sys::unignore_signals().map_err(at("reset signal dispositions"))?;
    sys::unblock_signals().map_err(at("unblock signals"))?;
    rustix::process::chdir(c"/").map_err(at("change to /"))?;
    umask(Mode::empty());
    reset_oom_score().map_err(at("reset oom_score_adj"))?;
    for resource in UNLIMITED {
        raise(resource, None, None).map_err(at("raise a resource limit"))?;
    }
    raise(Resource::Nofile, Some(open_files), Some(OPEN_FILES))
        .map_err(at("raise the limit of open files"))
}

/// Makes a write beyond `RLIMIT_FSIZE` an error (EFBIG) and no more: for processes that go on
/// serving where [`reset`] was not allowed to raise the hard limit. A program that is run inherits
/// this.
pub fn survive_file_size_limit() -> Result<(), Error> {
    sys::ignore_signal(libc::SIGXFSZ).map_err(at("ignore SIGXFSZ"))
}

/// Sets a limit to `soft`, or as high as the hard one goes, and the hard one to `hard` at least,
/// where that is allowed (CAP_SYS_RESOURCE). None is no limit.
fn raise(resource: Resource, soft: Option<u64>, hard: Option<u64>) -> Result<(), Errno> {
    let now = getrlimit(resource);
    let maximum = now.maximum.and_then(|now| Some(hard?.max(now)));
    let lower = |soft: Option<u64>, hard: Option<u64>| match (soft, hard) {
        (Some(soft), Some(hard)) => Some(soft.min(hard)),
        (soft, hard) => soft.or(hard),
    };
    let wanted = Rlimit {
        current: lower(soft, maximum),
        maximum,
    };
    match setrlimit(resource, wanted) {
        Err(Errno::PERM) => setrlimit(
            resource,
            Rlimit {
                current: lower(soft, now.maximum),
                maximum: now.maximum,
            },
        ),
        other => other,
    }
}

/// A caller's protection from the OOM killer is not meant for a container, which its memory limit
/// could not stop then; a caller that offers itself does not offer the mount that others use.
/// Lowering the score takes CAP_SYS_RESOURCE: without it the score stays where the caller put it.
fn reset_oom_score() -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(c"/proc/self/oom_score_adj", flags, Mode::empty())?;
    match rustix::io::write(file, b"0") {
        Ok(_) | Err(Errno::ACCESS) => Ok(()),
        Err(errno) => Err(errno),
    }
}
