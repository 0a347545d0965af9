//! Kernel parameters of the container, prepared: only those of a namespace that it does not share.

use std::ffi::CString;

use super::{Host, SetupError, string};
use crate::sandbox::{Namespace, Sandbox, Sysctl};

/// A file of /proc and what is written into it.
#[derive(Debug)]
pub(crate) struct PreparedSysctl {
    pub(crate) path: CString,
    pub(crate) value: Vec<u8>,
    pub(crate) optional: bool,
}

/// The file of a parameter; none if it is optional and this container can't have it.
pub(super) fn prepare_sysctl(
    sysctl: &Sysctl,
    sandbox: &Sandbox,
    host: Host,
) -> Result<Option<PreparedSysctl>, SetupError> {
    let name = if sysctl.name.contains('/') {
        sysctl.name.clone()
    } else {
        sysctl.name.replace('.', "/")
    };
    let plain = name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !plain || !is_own(&name, sandbox) {
        if sysctl.optional {
            return Ok(None);
        }
        return Err(SetupError::Sysctl(sysctl.name.clone()));
    }
    // It names groups, and another user namespace has not all of them.
    if sysctl.optional && name.ends_with("ping_group_range") && !host.initial_user_namespace {
        return Ok(None);
    }
    Ok(Some(PreparedSysctl {
        path: string(format!("sys/{name}").as_bytes(), "a sysctl")?,
        value: sysctl.value.clone().into_bytes(),
        optional: sysctl.optional,
    }))
}

/// Whether a parameter belongs to a namespace that the container does not share with the host
/// (runc, `libcontainer/configs/validate`).
fn is_own(name: &str, sandbox: &Sandbox) -> bool {
    const IPC: [&str; 11] = [
        "kernel/msgmax",
        "kernel/msgmnb",
        "kernel/msgmni",
        "kernel/sem",
        "kernel/shmall",
        "kernel/shmmax",
        "kernel/shmmni",
        "kernel/shm_rmid_forced",
        "kernel/msg_next_id",
        "kernel/sem_next_id",
        "kernel/shm_next_id",
    ];
    let namespace = if name.starts_with("net/") {
        sandbox.namespaces.net
    } else if IPC.contains(&name) || name.starts_with("fs/mqueue/") {
        sandbox.namespaces.ipc
    } else if name == "kernel/domainname" {
        sandbox.namespaces.uts
    } else {
        return false;
    };
    namespace != Namespace::Host
}
