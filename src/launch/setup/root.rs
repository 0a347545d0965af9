//! What the child needs to build the container's root and enter it.

use std::os::fd::OwnedFd;

use super::devices::{LINKS, Links, PreparedDevice, prepare_device};
use super::mounts::{CgroupMounts, PreparedMount, Role, cgroup_mounts, prepare};
use super::sysctls::{PreparedSysctl, prepare_sysctl};
use super::{Host, SetupError, paths};
use crate::cgroup::View;
use crate::path::InRoot;
use crate::sandbox::{CgroupNamespace, MountSource, Namespace, Propagation, Sandbox};
use crate::sys::mount::MountAttributes;

/// The prepared root of a container.
#[derive(Debug)]
pub(crate) struct RootSetup {
    pub(crate) rootfs: OwnedFd,
    pub(crate) rootfs_change: MountAttributes,
    pub(crate) readonly_root: bool,
    /// Namespaces to enter first: ipc, uts, net.
    pub(crate) joined: Vec<OwnedFd>,
    pub(crate) init: bool,
    pub(crate) own_uts: bool,
    pub(crate) own_net: bool,
    pub(crate) own_cgroup: bool,
    pub(crate) hostname: Vec<u8>,
    pub(crate) domainname: Vec<u8>,
    pub(crate) mounts: Vec<PreparedMount>,
    /// The first of [`RootSetup::mounts`] that comes after masking.
    pub(crate) late: usize,
    pub(crate) devices: Vec<PreparedDevice>,
    pub(crate) links: Links,
    pub(crate) cgroups: CgroupMounts,
    pub(crate) sysctls: Vec<PreparedSysctl>,
    pub(crate) masked: Vec<InRoot>,
    pub(crate) readonly: Vec<InRoot>,
}

impl RootSetup {
    /// `joined`: of ipc, uts and net. `descriptors`: of the mounts. Both in the sandbox's order.
    pub(crate) fn new(
        sandbox: &Sandbox,
        rootfs: OwnedFd,
        joined: Vec<OwnedFd>,
        descriptors: Vec<OwnedFd>,
        host: Host,
        view: View,
        no_devices: bool,
    ) -> Result<Self, SetupError> {
        let mut descriptors = descriptors.into_iter();
        let mounts = sandbox
            .mounts
            .iter()
            .map(|mount| prepare(sandbox, mount, &mut descriptors, host, no_devices))
            .collect::<Result<Vec<_>, _>>()?;
        let late = sandbox.mounts.iter().position(|mount| {
            matches!(
                mount.source,
                MountSource::Cgroup | MountSource::Descriptor { .. } | MountSource::Detached
            )
        });
        let own_cgroup = sandbox.namespaces.cgroup == CgroupNamespace::New;
        Ok(Self {
            rootfs,
            rootfs_change: MountAttributes {
                no_devices,
                propagation: Some(Propagation::Private),
                recursive: true,
                ..MountAttributes::default()
            },
            readonly_root: sandbox.readonly_root,
            joined,
            init: sandbox.init,
            own_uts: sandbox.namespaces.uts == Namespace::New,
            own_net: sandbox.namespaces.net == Namespace::New,
            own_cgroup,
            hostname: sandbox.hostname.clone().into_bytes(),
            domainname: sandbox.domainname.clone().into_bytes(),
            late: late.unwrap_or(mounts.len()),
            mounts,
            devices: sandbox
                .devices
                .iter()
                .map(|device| prepare_device(device, host))
                .collect::<Result<_, _>>()?,
            links: LINKS,
            cgroups: cgroup_mounts(view, own_cgroup)?,
            sysctls: sandbox
                .sysctls
                .iter()
                .filter_map(|sysctl| prepare_sysctl(sysctl, sandbox, host).transpose())
                .collect::<Result<_, _>>()?,
            masked: paths(&sandbox.masked_paths, "a masked path")?,
            readonly: paths(&sandbox.readonly_paths, "a read-only path")?,
        })
    }

    /// Whether a mount has this role.
    pub(crate) fn has(&self, role: Role) -> bool {
        self.mounts.iter().any(|mount| mount.role == role)
    }
}
