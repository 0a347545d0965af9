//! The mounts of a container, by descriptor: a file system is created detached (`fsopen`,
//! `fsmount`) and attached to an open directory (`move_mount`), so that an image's symlinks can't
//! redirect it. Runs in the child, without allocation. Caller: [`crate::init`].

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{
    CWD, FileType, Mode, OFlags, fstatfs, makedev, mkdirat, mknodat, openat, symlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change,
    move_mount,
};

use crate::path::{InRoot, Kind, kind_of, open_no_symlinks, real_directory};
use crate::setup::{CgroupMounts, LegacyMount, NODES, Nodes, Setup, Volume, clone_mount};
use crate::step::{At as _, Failure, Step};
use crate::sys::mount::{MountAttributes, mount_setattr};

const NO_EXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);
const NO_EXEC_READ_ONLY: MountAttrFlags = NO_EXEC.union(MountAttrFlags::MOUNT_ATTR_RDONLY);
/// statfs(2), linux/magic.h.
const PROC_SUPER_MAGIC: rustix::fs::FsWord = 0x9fa0;

/// A parameter of a file system: with a value, or a flag.
type Parameter<'p> = (&'p CStr, Option<&'p CStr>);

/// Creates a detached mount of a new file system.
fn new_filesystem(
    name: &CStr,
    parameters: &[Parameter<'_>],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), c"source", name)?;
    configure_and_mount(context.as_fd(), parameters.iter().copied(), attributes)
}

fn configure_and_mount<'p>(
    context: BorrowedFd<'_>,
    parameters: impl Iterator<Item = Parameter<'p>>,
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    for (key, value) in parameters {
        match value {
            Some(value) => fsconfig_set_string(context, key, value)?,
            None => fsconfig_set_flag(context, key)?,
        }
    }
    fsconfig_create(context)?;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Attaches a detached mount to an open file or directory.
fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", target, c"", flags)
}

/// Creates a directory in one of our own mounts, which no other process can reach yet.
fn new_directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    open_no_symlinks(parent, name, OFlags::PATH | OFlags::DIRECTORY)
}

/// Makes our copies of the host's mounts private and attaches the container's root over them.
pub(crate) fn attach_root(setup: &Setup) -> Result<(), Failure> {
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

/// /proc and /sys, with the network namespace set up as Docker does.
pub(crate) fn kernel_filesystems(setup: &Setup) -> Result<(), Failure> {
    let root = setup.rootfs.as_fd();
    let proc = new_filesystem(c"proc", &[], NO_EXEC).at(Step::Proc)?;
    // Through the descriptor of the mount: by path, the image could bend the way (CVE-2025-52881).
    for (path, value) in setup.sysctls {
        set_sysctl(proc.as_fd(), path, value).at(Step::Sysctl)?;
    }
    real_directory(root, c"proc")
        .and_then(|target| attach(proc.as_fd(), target.as_fd()))
        .at(Step::Proc)?;
    let sys = || {
        attach(
            new_filesystem(c"sysfs", &[], NO_EXEC_READ_ONLY)?.as_fd(),
            real_directory(root, c"sys")?.as_fd(),
        )
    };
    sys().at(Step::Sys)
}

/// Sets a parameter of the kernel. One that this kernel lacks is passed over, as by Docker.
fn set_sysctl(proc: BorrowedFd<'_>, path: &CStr, value: &[u8]) -> Result<(), Errno> {
    match open_no_symlinks(proc, path, OFlags::WRONLY) {
        Ok(file) => rustix::io::write(file, value).map(drop),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The container's /dev, and the parts of it that are used before exec.
pub(crate) struct Dev {
    pub(crate) directory: OwnedFd,
    pub(crate) pts: OwnedFd,
    pub(crate) null: OwnedFd,
}

/// Mounts /dev, with its nodes, links, pts, shm and mqueue.
pub(crate) fn dev(setup: &Setup) -> Result<Dev, Failure> {
    let root = setup.rootfs.as_fd();
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
    let directory = new_filesystem(
        c"tmpfs",
        &[(c"mode", Some(c"755")), (c"size", Some(c"65536k"))],
        attributes,
    )
    .at(Step::Dev)?;
    real_directory(root, c"dev")
        .and_then(|target| attach(directory.as_fd(), target.as_fd()))
        .at(Step::Dev)?;
    nodes(&setup.nodes, directory.as_fd()).at(Step::Node)?;
    links(directory.as_fd()).at(Step::Node)?;
    let null = open_no_symlinks(directory.as_fd(), c"null", OFlags::RDWR | OFlags::NOCTTY)
        .at(Step::Node)?;

    let group: Parameter<'_> = (c"gid", Some(c"5"));
    let parameters = [
        (c"newinstance", None),
        (c"ptmxmode", Some(c"0666")),
        (c"mode", Some(c"0620")),
        group,
    ];
    let parameters = if setup.terminal_group {
        &parameters[..]
    } else {
        parameters.split_last().map_or(&[][..], |(_, rest)| rest)
    };
    let no_suid_exec = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let pts = new_filesystem(c"devpts", parameters, no_suid_exec).at(Step::Pts)?;
    new_directory(directory.as_fd(), c"pts")
        .and_then(|target| attach(pts.as_fd(), target.as_fd()))
        .at(Step::Pts)?;

    let shm = || {
        let mount = new_filesystem(
            c"tmpfs",
            &[(c"mode", Some(c"1777")), (c"size", Some(c"65536k"))],
            NO_EXEC,
        )?;
        attach(
            mount.as_fd(),
            new_directory(directory.as_fd(), c"shm")?.as_fd(),
        )
    };
    shm().at(Step::Shm)?;
    let mqueue = || {
        attach(
            new_filesystem(c"mqueue", &[], NO_EXEC)?.as_fd(),
            new_directory(directory.as_fd(), c"mqueue")?.as_fd(),
        )
    };
    mqueue().at(Step::Mqueue)?;
    Ok(Dev {
        directory,
        pts,
        null,
    })
}

fn nodes(nodes: &Nodes, dev: BorrowedFd<'_>) -> Result<(), Errno> {
    match nodes {
        Nodes::Mknod => NODES.iter().try_for_each(|(name, major, minor)| {
            mknodat(
                dev,
                *name,
                FileType::CharacterDevice,
                Mode::from_raw_mode(0o666),
                makedev(*major, *minor),
            )
        }),
        Nodes::Bind(mounts) => NODES
            .iter()
            .zip(mounts)
            .try_for_each(|((name, _, _), mount)| {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                attach(
                    mount.as_fd(),
                    openat(dev, *name, flags, Mode::from_raw_mode(0o666))?.as_fd(),
                )
            }),
    }
}

fn links(dev: BorrowedFd<'_>) -> Result<(), Errno> {
    const LINKS: [(&CStr, &CStr); 6] = [
        (c"pts/ptmx", c"ptmx"),
        (c"/proc/self/fd", c"fd"),
        (c"/proc/self/fd/0", c"stdin"),
        (c"/proc/self/fd/1", c"stdout"),
        (c"/proc/self/fd/2", c"stderr"),
        (c"/proc/kcore", c"core"),
    ];
    LINKS
        .iter()
        .try_for_each(|(target, name)| symlinkat(*target, dev, *name))
}

/// /sys/fs/cgroup, read-only. The process must be in its cgroups and in a cgroup namespace of its
/// own.
pub(crate) fn cgroups(root: BorrowedFd<'_>, mounts: &CgroupMounts) -> Result<(), Errno> {
    let target = || open_no_symlinks(root, c"sys/fs/cgroup", OFlags::PATH | OFlags::DIRECTORY);
    match mounts {
        CgroupMounts::None => Ok(()),
        CgroupMounts::Unified => attach(
            new_filesystem(c"cgroup2", &[], NO_EXEC_READ_ONLY)?.as_fd(),
            target()?.as_fd(),
        ),
        CgroupMounts::Legacy(hierarchies) => {
            let directory = new_filesystem(c"tmpfs", &[(c"mode", Some(c"755"))], NO_EXEC)?;
            attach(directory.as_fd(), target()?.as_fd())?;
            hierarchies
                .iter()
                .try_for_each(|hierarchy| legacy_cgroup(directory.as_fd(), hierarchy))?;
            mount_setattr(
                directory.as_fd(),
                MountAttributes {
                    read_only: true,
                    ..MountAttributes::default()
                },
            )
        }
    }
}

fn legacy_cgroup(directory: BorrowedFd<'_>, hierarchy: &LegacyMount) -> Result<(), Errno> {
    let context = fsopen(c"cgroup", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), c"source", c"cgroup")?;
    let controllers = hierarchy
        .controllers
        .iter()
        .map(|name| (name.as_c_str(), None));
    let mount = configure_and_mount(context.as_fd(), controllers, NO_EXEC_READ_ONLY)?;
    attach(
        mount.as_fd(),
        new_directory(directory, &hierarchy.name)?.as_fd(),
    )?;
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
            let first = new_filesystem(c"tmpfs", &[(c"size", Some(c"0"))], NO_EXEC_READ_ONLY)?;
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

/// Mounts the volumes in their order. A later one may be inside an earlier one.
pub(crate) fn volumes(root: BorrowedFd<'_>, volumes: &[Volume]) -> Result<(), Failure> {
    for (index, volume) in volumes.iter().enumerate() {
        let mount = || {
            let target = volume.destination.open_or_create(root, volume.kind)?;
            // Over /proc it would intercept what the launcher writes there.
            if fstatfs(&target)?.f_type == PROC_SUPER_MAGIC {
                return Err(Errno::PERM);
            }
            // move_mount gives EINVAL for both.
            match (kind_of(target.as_fd())?, volume.kind) {
                (Kind::File, Kind::Directory) => return Err(Errno::NOTDIR),
                (Kind::Directory, Kind::File) => return Err(Errno::ISDIR),
                _ => {}
            }
            attach(volume.mount.as_fd(), target.as_fd())
        };
        mount().at_index(Step::Volume, index)?;
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
pub(crate) fn pivot(setup: &Setup) -> Result<(), Errno> {
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
