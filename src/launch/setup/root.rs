//! What the child needs to build the container's root and enter it.

use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, fstat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use super::{Host, SetupError, paths, string};
use crate::cgroup::View;
use crate::path::{InRoot, Kind, kind_of};
use crate::sandbox::{
    Attributes, CgroupNamespace, Device, Filesystem, Mount, MountSource, Namespace, Propagation,
    Sandbox, Submounts, Sysctl,
};
use crate::sys::mount::{MountAttributes, mount_setattr};

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

/// A mount, ready to be made and attached.
#[derive(Debug)]
pub(crate) struct PreparedMount {
    pub(crate) destination: InRoot,
    pub(crate) kind: Kind,
    pub(crate) source: PreparedSource,
    pub(crate) attributes: MountAttrFlags,
    pub(crate) role: Role,
}

/// See [`MountSource`].
#[derive(Debug)]
pub(crate) enum PreparedSource {
    Filesystem(CString, Vec<(CString, Option<CString>)>),
    Cgroup,
    /// A detached mount that only has to be attached.
    Detached(OwnedFd),
    /// Left out.
    Nothing,
}

/// What else happens at a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Other,
    /// Kernel parameters are written through it; no symlink may lead to it.
    Proc,
    /// No symlink may lead to it.
    Kernel,
    /// Gets the nodes and links of /dev; no symlink may lead to it.
    Dev,
    /// Gives the terminal.
    Pts,
}

/// A device node to create.
#[derive(Debug)]
pub(crate) struct PreparedDevice {
    /// Its directory, below /dev.
    pub(crate) parent: InRoot,
    pub(crate) name: CString,
    pub(crate) source: NodeSource,
}

/// How a node is created.
#[derive(Debug)]
pub(crate) enum NodeSource {
    /// By mknod.
    Mknod {
        kind: FileType,
        mode: Mode,
        number: u64,
        owner: (u32, u32),
    },
    /// As a bind of the host's, since a user namespace may not create nodes.
    Bind(OwnedFd),
}

/// Links of /dev: target and name.
pub(crate) type Links = [(&'static std::ffi::CStr, &'static std::ffi::CStr); 6];

const LINKS: Links = [
    (c"pts/ptmx", c"ptmx"),
    (c"/proc/self/fd", c"fd"),
    (c"/proc/self/fd/0", c"stdin"),
    (c"/proc/self/fd/1", c"stdout"),
    (c"/proc/self/fd/2", c"stderr"),
    (c"/proc/kcore", c"core"),
];

/// A file of /proc and what is written into it.
#[derive(Debug)]
pub(crate) struct PreparedSysctl {
    pub(crate) path: CString,
    pub(crate) value: Vec<u8>,
    pub(crate) optional: bool,
}

/// The mounts at /sys/fs/cgroup.
#[derive(Debug)]
pub(crate) enum CgroupMounts {
    None,
    Unified,
    Legacy(Vec<LegacyMount>),
}

/// A version 1 hierarchy.
#[derive(Debug)]
pub(crate) struct LegacyMount {
    pub(crate) name: CString,
    pub(crate) controllers: Vec<CString>,
    /// Controllers that get a link to `name`, if several are mounted together.
    pub(crate) links: Vec<CString>,
    /// The container's own cgroup, where its namespace does not make it the root.
    pub(crate) own: Option<OwnedFd>,
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
                MountSource::Cgroup | MountSource::Descriptor { .. }
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

fn prepare(
    sandbox: &Sandbox,
    mount: &Mount,
    descriptors: &mut impl Iterator<Item = OwnedFd>,
    host: Host,
    no_devices: bool,
) -> Result<PreparedMount, SetupError> {
    let name = String::from_utf8_lossy(&mount.destination).into_owned();
    let destination = InRoot::new(&mount.destination)
        .filter(|path| !path.is_root() && mount.destination.starts_with(b"/"))
        .ok_or_else(|| SetupError::Destination(name.clone()))?;
    let (source, kind, role) = match &mount.source {
        MountSource::Cgroup => (PreparedSource::Cgroup, Kind::Directory, Role::Kernel),
        MountSource::Filesystem { kind, parameters } => (
            filesystem(sandbox, *kind, parameters, mount.attributes, host)?,
            Kind::Directory,
            role(*kind, &mount.destination),
        ),
        MountSource::Descriptor {
            submounts,
            propagation,
        } => {
            let failed =
                |errno| SetupError::System(format!("open the volume for \"{name}\""), errno);
            let descriptor = descriptors.next().ok_or(SetupError::Descriptor)?;
            let kind = kind_of(descriptor.as_fd()).map_err(failed)?;
            let cloned = clone_mount(descriptor.as_fd(), *submounts != Submounts::None)
                .and_then(|cloned| {
                    let attributes = Attributes {
                        no_devices: mount.attributes.no_devices || no_devices,
                        ..mount.attributes
                    };
                    confine(cloned.as_fd(), attributes, *submounts, *propagation)?;
                    Ok(cloned)
                })
                .map_err(failed)?;
            (PreparedSource::Detached(cloned), kind, Role::Other)
        }
    };
    Ok(PreparedMount {
        destination,
        kind,
        source,
        attributes: flags(mount.attributes),
        role,
    })
}

fn role(kind: Filesystem, destination: &[u8]) -> Role {
    match (kind, destination) {
        (Filesystem::Proc, _) => Role::Proc,
        (Filesystem::Sysfs, _) => Role::Kernel,
        (Filesystem::Tmpfs, b"/dev") => Role::Dev,
        (Filesystem::Devpts, b"/dev/pts") => Role::Pts,
        _ => Role::Other,
    }
}

/// A new file system; in a user namespace, one that belongs to a namespace of the host can't be
/// mounted, so the host's mount stands in for it.
fn filesystem(
    sandbox: &Sandbox,
    kind: Filesystem,
    parameters: &[(String, Option<String>)],
    attributes: Attributes,
    host: Host,
) -> Result<PreparedSource, SetupError> {
    let namespaces = sandbox.namespaces;
    let (name, of_host) = match kind {
        Filesystem::Proc => (
            "proc",
            (namespaces.pid == Namespace::Host).then_some("/proc"),
        ),
        Filesystem::Sysfs => (
            "sysfs",
            (namespaces.net == Namespace::Host).then_some("/sys"),
        ),
        Filesystem::Mqueue => (
            "mqueue",
            (namespaces.ipc == Namespace::Host).then_some("/dev/mqueue"),
        ),
        Filesystem::Tmpfs => ("tmpfs", None),
        Filesystem::Devpts => ("devpts", None),
    };
    if let Some(path) = of_host.filter(|_path| !host.initial_user_namespace) {
        let failed = |errno| SetupError::System(format!("clone {path}"), errno);
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let cloned = match open_tree(CWD, path, flags) {
            // A host that has no message queues mounted has none to show.
            Err(Errno::NOENT) if kind == Filesystem::Mqueue => return Ok(PreparedSource::Nothing),
            cloned => cloned.map_err(failed)?,
        };
        confine(
            cloned.as_fd(),
            attributes,
            Submounts::Same,
            Propagation::Private,
        )
        .map_err(failed)?;
        return Ok(PreparedSource::Detached(cloned));
    }
    let text = |text: &String| string(text.as_bytes(), "a mount's parameter");
    let parameters = parameters
        .iter()
        .filter(|(key, _)| kind != Filesystem::Devpts || key != "gid" || host.terminal_group)
        .map(|(key, value)| Ok((text(key)?, value.as_ref().map(text).transpose()?)))
        .collect::<Result<_, SetupError>>()?;
    Ok(PreparedSource::Filesystem(
        string(name.as_bytes(), "a file system")?,
        parameters,
    ))
}

/// Sets what a cloned tree of the host may be used for.
fn confine(
    mount: BorrowedFd<'_>,
    attributes: Attributes,
    submounts: Submounts,
    propagation: Propagation,
) -> Result<(), Errno> {
    let change = MountAttributes {
        read_only: attributes.read_only,
        no_suid: attributes.no_suid,
        no_devices: attributes.no_devices,
        no_exec: attributes.no_exec,
        propagation: Some(propagation),
        recursive: submounts == Submounts::Same,
    };
    if submounts == Submounts::Unchanged {
        // What keeps the container from the host's devices and mounts holds for all of them.
        let all = MountAttributes {
            no_devices: attributes.no_devices,
            propagation: Some(propagation),
            recursive: true,
            ..MountAttributes::default()
        };
        mount_setattr(mount, all)?;
    }
    mount_setattr(mount, change)
}

fn flags(attributes: Attributes) -> MountAttrFlags {
    let mut flags = MountAttrFlags::empty();
    for (wanted, flag) in [
        (attributes.read_only, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (attributes.no_suid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (attributes.no_devices, MountAttrFlags::MOUNT_ATTR_NODEV),
        (attributes.no_exec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (
            attributes.strict_atime,
            MountAttrFlags::MOUNT_ATTR_STRICTATIME,
        ),
    ] {
        flags.set(flag, wanted);
    }
    flags
}

fn prepare_device(device: &Device, host: Host) -> Result<PreparedDevice, SetupError> {
    let bad = || SetupError::DevicePath(String::from_utf8_lossy(&device.path).into_owned());
    let below = device.path.strip_prefix(b"/dev/").ok_or_else(bad)?;
    let (parent, name) = InRoot::new(below)
        .and_then(|path| path.split_last())
        .ok_or_else(bad)?;
    let source = if host.initial_user_namespace {
        NodeSource::Mknod {
            kind: device_type(device),
            mode: Mode::from_raw_mode(device.mode),
            number: rustix::fs::makedev(device.major, device.minor),
            owner: device.owner,
        }
    } else {
        let shown = String::from_utf8_lossy(&device.host).into_owned();
        NodeSource::Bind(
            host_node(device)
                .map_err(|errno| SetupError::System(format!("clone {shown}"), errno))?,
        )
    };
    Ok(PreparedDevice {
        parent,
        name,
        source,
    })
}

fn device_type(device: &Device) -> FileType {
    if device.block {
        FileType::BlockDevice
    } else {
        FileType::CharacterDevice
    }
}

fn host_node(device: &Device) -> Result<OwnedFd, Errno> {
    let node = open_tree(
        CWD,
        device.host.as_slice(),
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?;
    // Inside a container it may be anything.
    let status = fstat(&node)?;
    let expected = rustix::fs::makedev(device.major, device.minor);
    if FileType::from_raw_mode(status.st_mode) != device_type(device) || status.st_rdev != expected
    {
        return Err(Errno::NODEV);
    }
    Ok(node)
}

/// The file of a parameter; none if it is optional and this container can't have it.
fn prepare_sysctl(
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

/// Clones the mount at this descriptor, detached.
pub(crate) fn clone_mount(descriptor: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(descriptor, c"", flags)
}

fn cgroup_mounts(view: View, own_namespace: bool) -> Result<CgroupMounts, SetupError> {
    let name = |text: &String| string(text.as_bytes(), "a cgroup's name");
    let View::Legacy(hierarchies) = view else {
        return Ok(match view {
            View::Unified => CgroupMounts::Unified,
            View::None | View::Legacy(_) => CgroupMounts::None,
        });
    };
    let mount = |view: &crate::cgroup::LegacyView| {
        let controllers = view
            .controllers
            .iter()
            .map(name)
            .collect::<Result<Vec<_>, _>>()?;
        let links = controllers
            .iter()
            .filter(|name| name.as_bytes() != view.name.as_bytes())
            .cloned()
            .collect();
        let own = if own_namespace {
            None
        } else {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let failed =
                |errno| SetupError::System(format!("clone {}", view.directory.display()), errno);
            let cloned = open_tree(CWD, &view.directory, flags).map_err(failed)?;
            let read_only = Attributes {
                read_only: true,
                no_suid: true,
                no_devices: true,
                no_exec: true,
                ..Attributes::default()
            };
            confine(
                cloned.as_fd(),
                read_only,
                Submounts::None,
                Propagation::Private,
            )
            .map_err(failed)?;
            Some(cloned)
        };
        Ok(LegacyMount {
            name: name(&view.name)?,
            controllers,
            links,
            own,
        })
    };
    hierarchies
        .iter()
        .map(mount)
        .collect::<Result<_, _>>()
        .map(CgroupMounts::Legacy)
}
