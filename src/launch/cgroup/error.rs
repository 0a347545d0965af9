//! Why a container has no cgroups.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::Controller;

/// Why a container has no cgroups.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No controller can enforce a limit that was asked for.
    #[error("a {what} limit needs the {controller} cgroup controller, which is not available here")]
    NoController {
        /// What was to be limited.
        what: &'static str,
        /// The controller that would enforce it.
        controller: &'static str,
        /// Why it is not available, if it is mounted.
        source: Option<io::Error>,
    },
    /// In Docker's words: this host can't enforce a limit.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A step failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The name could leave the hierarchy.
    #[error("{0:?} is not the name of a cgroup")]
    BadName(String),
}

/// Whether the host refuses the cgroup, as opposed to a step that failed.
pub(super) fn is_refusal(error: &CgroupError) -> bool {
    let CgroupError::Io { source, .. } = error else {
        return false;
    };
    let refusals = [
        Errno::ACCESS,
        Errno::PERM,
        Errno::ROFS,
        Errno::NOENT,
        Errno::NOSYS,
        Errno::OPNOTSUPP,
    ];
    Errno::from_io_error(source).is_some_and(|errno| refusals.contains(&errno))
}

pub(super) fn unavailable(
    what: &'static str,
    controller: Controller,
    error: CgroupError,
) -> CgroupError {
    let source = if let CgroupError::Io { source, .. } = error {
        Some(source)
    } else {
        None
    };
    CgroupError::NoController {
        what,
        controller: controller.name(),
        source,
    }
}

pub(super) fn io_error(what: &'static str, path: &Path, source: io::Error) -> CgroupError {
    CgroupError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}
