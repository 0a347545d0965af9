//! The mounts of a container, by descriptor: a file system is created detached (`fsopen`,
//! `fsmount`) and attached to an open directory (`move_mount`), so that an image's symlinks can't
//! redirect it. Runs in the child, without allocation. Caller: [`crate::init`].

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, fstatfs, mkdirat, mknodat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change,
    move_mount,
};

use crate::path::{InRoot, Kind, kind_of, open_no_symlinks};
use crate::setup::{
    CgroupMounts, LegacyMount, NodeSource, PreparedDevice, PreparedMount, PreparedSource,
    PreparedSysctl, Role, RootSetup, clone_mount,
};
use crate::step::{At as _, Failure, Step};
use crate::sys::mount::{MountAttributes, mount_setattr};

/// Attributes of the mount that covers masked directories.
const EMPTY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC)
    .union(MountAttrFlags::MOUNT_ATTR_RDONLY);
/// statfs(2), linux/magic.h.
const PROC_SUPER_MAGIC: rustix::fs::FsWord = 0x9fa0;

/// Creates a detached mount of a new file system; parameters have a value or are flags.
fn new_filesystem<'p>(
    name: &CStr,
    parameters: impl Iterator<Item = (&'p CStr, Option<&'p CStr>)>,
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), c"source", name)?;
    for (key, value) in parameters {
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), key, value)?,
            None => fsconfig_set_flag(context.as_fd(), key)?,
        }
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Attaches a detached mount to an open file or directory.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", target, c"", flags)
}

/// Makes our copies of the host's mounts private and attaches the container's root over them.
pub(crate) fn attach_root(setup: &RootSetup) -> Result<(), Failure> {
    mount_change(
        c"/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )
    .at(Step::Detach)?;
    mount_setattr(setup.rootfs.as_fd(), setup.rootfs_change).at(Step::Root)?;
    // This process still has the host's root; only the descriptor leads into the container's.
    move_mount(
        setup.rootfs.as_fd(),
        c"",
        CWD,
        c"/",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .at(Step::Root)
}

/// The parts of the container's /dev that are used before exec.
#[derive(Debug, Default)]
pub(crate) struct Dev {
    pub(crate) directory: Option<OwnedFd>,
    pub(crate) pts: Option<OwnedFd>,
    pub(crate) null: Option<OwnedFd>,
}

/// Makes and attaches mounts, in their order. A later one may be inside an earlier one. `first` is
/// the number of the first of them.
pub(crate) fn attach_all(
    setup: &RootSetup,
    mounts: &[PreparedMount],
    first: usize,
    dev: &mut Dev,
) -> Result<(), Failure> {
    for (index, prepared) in mounts.iter().enumerate() {
        let index = first + index;
        match attach_one(setup, prepared).at_index(Step::Mount, index)? {
            Some(mount) if prepared.role == Role::Proc => {
                set_sysctls(mount.as_fd(), &setup.sysctls)?;
            }
            Some(mount) if prepared.role == Role::Dev => {
                nodes(setup, mount.as_fd())?;
                let null = open_no_symlinks(mount.as_fd(), c"null", OFlags::RDWR | OFlags::NOCTTY);
                dev.null = Some(null.at(Step::Null)?);
                dev.directory = Some(mount);
            }
            Some(mount) if prepared.role == Role::Pts => dev.pts = Some(mount),
            None | Some(_) => {}
        }
    }
    Ok(())
}

/// Returns the new file system, if it is one.
fn attach_one(setup: &RootSetup, prepared: &PreparedMount) -> Result<Option<OwnedFd>, Errno> {
    let root = setup.rootfs.as_fd();
    let target = || match prepared.role {
        Role::Proc | Role::Kernel | Role::Dev => prepared.destination.open_or_create_real(root),
        Role::Pts | Role::Other => prepared.destination.open_or_create(root, prepared.kind),
    };
    let attach_at = |mount: BorrowedFd<'_>| {
        let target = target()?;
        // Over /proc it would intercept what the launcher writes there.
        if fstatfs(&target)?.f_type == PROC_SUPER_MAGIC {
            return Err(Errno::PERM);
        }
        // move_mount gives EINVAL for both.
        match (kind_of(target.as_fd())?, prepared.kind) {
            (Kind::File, Kind::Directory) => return Err(Errno::NOTDIR),
            (Kind::Directory, Kind::File) => return Err(Errno::ISDIR),
            _ => {}
        }
        attach(mount, target.as_fd())
    };
    match &prepared.source {
        PreparedSource::Nothing => Ok(None),
        PreparedSource::Detached(mount) => attach_at(mount.as_fd()).map(|()| None),
        PreparedSource::Filesystem(name, parameters) => {
            let parameters = parameters
                .iter()
                .map(|(key, value)| (key.as_c_str(), value.as_deref()));
            let mount = new_filesystem(name, parameters, prepared.attributes)?;
            attach_at(mount.as_fd()).map(|()| Some(mount))
        }
        PreparedSource::Cgroup => match &setup.cgroups {
            CgroupMounts::None => Ok(None),
            CgroupMounts::Unified => {
                let mount = new_filesystem(c"cgroup2", std::iter::empty(), prepared.attributes)?;
                attach_at(mount.as_fd()).map(|()| None)
            }
            CgroupMounts::Legacy(hierarchies) => {
                legacy_cgroups(hierarchies, prepared.attributes, attach_at).map(|()| None)
            }
        },
    }
}

/// Sets parameters of the kernel, through the mount's descriptor: by path, the image could bend the
/// way (CVE-2025-52881).
fn set_sysctls(proc: BorrowedFd<'_>, sysctls: &[PreparedSysctl]) -> Result<(), Failure> {
    for (index, sysctl) in sysctls.iter().enumerate() {
        let set = match open_no_symlinks(proc, &sysctl.path, OFlags::WRONLY) {
            Ok(file) => rustix::io::write(file, &sysctl.value).map(drop),
            // This kernel lacks it.
            Err(Errno::NOENT) if sysctl.optional => Ok(()),
            Err(errno) => Err(errno),
        };
        set.at_index(Step::Sysctl, index)?;
    }
    Ok(())
}

/// Creates the nodes and links of /dev.
fn nodes(setup: &RootSetup, dev: BorrowedFd<'_>) -> Result<(), Failure> {
    for (index, device) in setup.devices.iter().enumerate() {
        node(device, dev).at_index(Step::Node, index)?;
    }
    setup
        .links
        .iter()
        .try_for_each(|(target, name)| symlinkat(*target, dev, *name))
        .at(Step::Links)
}

fn node(device: &PreparedDevice, dev: BorrowedFd<'_>) -> Result<(), Errno> {
    let parent = device.parent.open_or_create(dev, Kind::Directory)?;
    match &device.source {
        NodeSource::Mknod {
            kind,
            mode,
            number,
            owner,
        } => {
            mknodat(&parent, &device.name, *kind, *mode, *number)?;
            if *owner == (0, 0) {
                return Ok(());
            }
            rustix::fs::chownat(
                &parent,
                &device.name,
                Some(rustix::fs::Uid::from_raw(owner.0)),
                Some(rustix::fs::Gid::from_raw(owner.1)),
                rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
            )
        }
        NodeSource::Bind(mount) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let target = openat(&parent, &device.name, flags, Mode::from_raw_mode(0o666))?;
            attach(mount.as_fd(), target.as_fd())
        }
    }
}

/// A tmpfs with the version 1 hierarchies. The process must be in its cgroups, and in a cgroup
/// namespace of its own unless its cgroups were cloned before.
fn legacy_cgroups(
    hierarchies: &[LegacyMount],
    attributes: MountAttrFlags,
    attach_at: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mode: [(&CStr, Option<&CStr>); 1] = [(c"mode", Some(c"755"))];
    let writable = attributes.difference(MountAttrFlags::MOUNT_ATTR_RDONLY);
    let directory = new_filesystem(c"tmpfs", mode.into_iter(), writable)?;
    attach_at(directory.as_fd())?;
    hierarchies
        .iter()
        .try_for_each(|hierarchy| legacy_cgroup(directory.as_fd(), hierarchy, attributes))?;
    let change = MountAttributes {
        read_only: attributes.contains(MountAttrFlags::MOUNT_ATTR_RDONLY),
        ..MountAttributes::default()
    };
    mount_setattr(directory.as_fd(), change)
}

fn legacy_cgroup(
    directory: BorrowedFd<'_>,
    hierarchy: &LegacyMount,
    attributes: MountAttrFlags,
) -> Result<(), Errno> {
    mkdirat(directory, &hierarchy.name, Mode::from_raw_mode(0o755))?;
    let target = open_no_symlinks(directory, &hierarchy.name, OFlags::PATH | OFlags::DIRECTORY)?;
    if let Some(own) = &hierarchy.own {
        attach(own.as_fd(), target.as_fd())?;
    } else {
        let controllers = hierarchy
            .controllers
            .iter()
            .map(|name| (name.as_c_str(), None));
        let mount = new_filesystem(c"cgroup", controllers, attributes)?;
        attach(mount.as_fd(), target.as_fd())?;
    }
    hierarchy
        .links
        .iter()
        .try_for_each(|link| symlinkat(&*hierarchy.name, directory, link.as_c_str()))
}

/// Masks paths: a file with our /dev/null, a directory with an empty tmpfs of ours. No file of the
/// image is used (CVE-2025-31133).
pub(crate) fn mask(
    root: BorrowedFd<'_>,
    null: BorrowedFd<'_>,
    paths: &[InRoot],
) -> Result<(), Failure> {
    let mut empty: Option<OwnedFd> = None;
    for (index, path) in paths.iter().enumerate() {
        let mut cover = || {
            let target = match path.open(root) {
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
                other => other?,
            };
            if kind_of(target.as_fd())? != Kind::Directory {
                return attach(clone_mount(null, false)?.as_fd(), target.as_fd());
            }
            if let Some(first) = &empty {
                return attach(clone_mount(first.as_fd(), false)?.as_fd(), target.as_fd());
            }
            // Only an attached mount can be cloned.
            let size: [(&CStr, Option<&CStr>); 1] = [(c"size", Some(c"0"))];
            let first = new_filesystem(c"tmpfs", size.into_iter(), EMPTY)?;
            attach(first.as_fd(), target.as_fd())?;
            empty = Some(first);
            Ok(())
        };
        cover().at_index(Step::Mask, index)?;
    }
    Ok(())
}

/// Makes parts of /proc and /sys read-only, by a bind mount of each over itself.
pub(crate) fn read_only(root: BorrowedFd<'_>, paths: &[InRoot]) -> Result<(), Failure> {
    for (index, path) in paths.iter().enumerate() {
        let protect = || {
            let target = match path.open(root) {
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
                other => other?,
            };
            let mount = clone_mount(target.as_fd(), true)?;
            mount_setattr(
                mount.as_fd(),
                MountAttributes {
                    read_only: true,
                    recursive: true,
                    ..MountAttributes::default()
                },
            )?;
            attach(mount.as_fd(), target.as_fd())
        };
        protect().at_index(Step::ReadOnly, index)?;
    }
    Ok(())
}

/// Binds the container's terminal to /dev/console: by descriptor, onto a file created for it
/// (CVE-2025-52565).
pub(crate) fn console(dev: BorrowedFd<'_>, terminal: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = openat(dev, c"console", flags, Mode::from_raw_mode(0o620))?;
    attach(clone_mount(terminal, false)?.as_fd(), target.as_fd())
}

/// Makes the container's root the root of this process and unmounts the host's.
pub(crate) fn pivot(setup: &RootSetup) -> Result<(), Errno> {
    if setup.readonly_root {
        mount_setattr(
            setup.rootfs.as_fd(),
            MountAttributes {
                read_only: true,
                ..MountAttributes::default()
            },
        )?;
    }
    rustix::process::fchdir(&setup.rootfs)?;
    // Stacks the host's root on the new one and unmounts it there, which needs no directory for it
    // (pivot_root(2), NOTES).
    rustix::process::pivot_root(c".", c".")?;
    rustix::mount::unmount(c".", rustix::mount::UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}
