//! The container's mounts, prepared: new file systems, and detached copies of the host's.

use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use super::{Host, SetupError, string};
use crate::cgroup::View;
use crate::path::{InRoot, Kind, kind_of};
use crate::sandbox::{
    Attributes, Filesystem, Mount, MountSource, Namespace, Propagation, Sandbox, Submounts,
};
use crate::sys::mount::{MountAttributes, mount_setattr};

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

pub(super) fn prepare(
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
        MountSource::Descriptor { .. } | MountSource::Detached => {
            let failed =
                |errno| SetupError::System(format!("open the volume for \"{name}\""), errno);
            let descriptor = descriptors.next().ok_or(SetupError::Descriptor)?;
            let kind = kind_of(descriptor.as_fd()).map_err(failed)?;
            let opened = opened_mount(mount, descriptor, no_devices).map_err(failed)?;
            (PreparedSource::Detached(opened), kind, Role::Other)
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

/// The detached mount that a descriptor stands for, with the attributes that were asked for.
pub(crate) fn opened_mount(
    mount: &Mount,
    descriptor: OwnedFd,
    no_devices: bool,
) -> Result<OwnedFd, Errno> {
    let MountSource::Descriptor {
        submounts,
        propagation,
    } = &mount.source
    else {
        confine(
            descriptor.as_fd(),
            mount.attributes,
            Submounts::Same,
            Propagation::Private,
        )?;
        return Ok(descriptor);
    };
    let cloned = clone_mount(descriptor.as_fd(), *submounts != Submounts::None)?;
    let attributes = Attributes {
        no_devices: mount.attributes.no_devices || no_devices,
        ..mount.attributes
    };
    confine(cloned.as_fd(), attributes, *submounts, *propagation)?;
    Ok(cloned)
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

/// Clones the mount at this descriptor, detached.
pub(crate) fn clone_mount(descriptor: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(descriptor, c"", flags)
}

pub(super) fn cgroup_mounts(view: View, own_namespace: bool) -> Result<CgroupMounts, SetupError> {
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
