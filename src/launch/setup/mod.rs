//! Everything that the child needs, prepared before the clone: C strings, descriptors, cloned
//! mounts, buffers.
//!
//! The child ([`crate::init`], [`crate::program`]) reads it and fills the buffers within their
//! capacity. Caller: [`crate::monitor`].

mod devices;
mod mounts;
mod program;
mod root;
mod sysctls;

use std::ffi::CString;

use rustix::io::Errno;

use crate::path::InRoot;

pub(crate) use devices::{NodeSource, PreparedDevice};
pub(crate) use mounts::{
    CgroupMounts, LegacyMount, PreparedMount, PreparedSource, Role, clone_mount, opened_mount,
};
pub(crate) use program::ProgramSetup;
pub(crate) use root::RootSetup;
pub(crate) use sysctls::PreparedSysctl;

/// The user namespace that the monitor is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// It is the initial one: device nodes can be created, and have to be restricted.
    pub(crate) initial_user_namespace: bool,
    /// It has group 5, which owns terminals.
    pub(crate) terminal_group: bool,
    /// It denies `setgroups`.
    pub(crate) groups_fixed: bool,
}

impl Host {
    /// Reads the state of the user namespace (user_namespaces(7)).
    pub(crate) fn probe() -> std::io::Result<Self> {
        if cowl_sys::userns::is_initial()? {
            return Ok(Self {
                initial_user_namespace: true,
                terminal_group: true,
                groups_fixed: false,
            });
        }
        let gid_map = std::fs::read_to_string("/proc/self/gid_map")?;
        let setgroups = std::fs::read_to_string("/proc/self/setgroups")?;
        Ok(Self {
            initial_user_namespace: false,
            terminal_group: maps(&gid_map, 5),
            groups_fixed: setgroups.trim() == "deny",
        })
    }
}

/// `inside outside length` of each line of a map.
fn ranges(map: &str) -> impl Iterator<Item = [u64; 3]> {
    map.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse);
        Some([
            numbers.next()?.ok()?,
            numbers.next()?.ok()?,
            numbers.next()?.ok()?,
        ])
    })
}

fn maps(map: &str, id: u64) -> bool {
    ranges(map).any(|[inside, _, length]| (inside..inside.saturating_add(length)).contains(&id))
}

/// Why a sandbox or a program can't be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("no program to run")]
    NoProgram,
    #[error("there is a NUL byte in {0}")]
    Nul(&'static str),
    #[error("the working directory must be an absolute path")]
    RelativeWorkingDirectory,
    #[error("a volume can't be mounted at \"{0}\"")]
    Destination(String),
    #[error("a device can't be at \"{0}\", only below /dev")]
    DevicePath(String),
    #[error("the sandbox has no tmpfs at /dev, or no terminals at /dev/pts for a terminal")]
    NoDev,
    #[error("sysctl \"{0}\" belongs to no namespace of the container's own")]
    Sysctl(String),
    #[error("a descriptor of the sandbox is missing")]
    Descriptor,
    #[error("{0}")]
    System(String, #[source] Errno),
}

impl SetupError {
    pub(crate) fn errno(&self) -> i32 {
        if let Self::System(_, errno) = self {
            errno.raw_os_error()
        } else {
            0
        }
    }
}

fn string(bytes: &[u8], what: &'static str) -> Result<CString, SetupError> {
    CString::new(bytes).map_err(|_nul| SetupError::Nul(what))
}

fn strings(list: &[Vec<u8>], what: &'static str) -> Result<Vec<CString>, SetupError> {
    list.iter().map(|bytes| string(bytes, what)).collect()
}

fn paths(list: &[Vec<u8>], what: &'static str) -> Result<Vec<InRoot>, SetupError> {
    list.iter()
        .map(|path| InRoot::new(path).ok_or(SetupError::Nul(what)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_finds_an_id_in_a_range_of_the_map() {
        assert!(maps("0 1000 1\n1 100000 65536\n", 5));
        assert!(!maps("0 1000 1\n", 5));
        assert!(!maps("garbage\n-1 0 9\n", 5));
    }
}
