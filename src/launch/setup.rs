//! Everything that the child needs, prepared before the clone: C strings, descriptors, cloned
//! mounts, buffers.
//!
//! The child ([`crate::init`]) reads it and fills the buffers within their capacity. Caller:
//! [`crate::monitor`].

use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, fstat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::thread::CapabilitySet;

use crate::cgroup::View;
use crate::environment;
use crate::path::{InRoot, Kind, kind_of};
use crate::plan::{Plan, Seccomp, WindowSize};
use crate::seccomp::{self, Filter};
use crate::sys::exec::StringArray;
use crate::sys::mount::{MountAttributes, mount_setattr};

/// Longest passwd or group file that is read; an image's have a few KiB.
const USER_FILE: usize = 1 << 20;
/// Groups of one user; the kernel allows 65536.
const GROUPS: usize = 1024;
/// Longest path.
const PATH_MAX: usize = 4096;
/// Highest capability number in 64 bits. The kernel gives EINVAL beyond its last.
const CAPABILITIES: u32 = 63;

/// The descriptors sent with the plan.
#[derive(Debug)]
pub(crate) struct Descriptors {
    pub(crate) rootfs: OwnedFd,
    pub(crate) stdio: Option<[OwnedFd; 3]>,
    pub(crate) volumes: Vec<OwnedFd>,
}

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

/// Nodes of /dev: name and device number (admin-guide/devices.txt).
pub(crate) const NODES: [(&std::ffi::CStr, u32, u32); 6] = [
    (c"null", 1, 3),
    (c"zero", 1, 5),
    (c"full", 1, 7),
    (c"random", 1, 8),
    (c"urandom", 1, 9),
    (c"tty", 5, 0),
];

/// A file of /proc and what is written into it.
pub(crate) type Sysctl = (&'static std::ffi::CStr, &'static [u8]);

/// Set in the container's network namespace, as by Docker: any user may listen on any port, and any
/// group may open ping sockets (moby, `daemon/oci_linux.go`). The last needs the initial user
/// namespace, since it names groups that another has not.
const SYSCTLS: [Sysctl; 2] = [
    (c"sys/net/ipv4/ip_unprivileged_port_start", b"0"),
    (c"sys/net/ipv4/ping_group_range", b"0 2147483647"),
];

/// How the nodes of /dev are created.
#[derive(Debug)]
pub(crate) enum Nodes {
    /// By mknod.
    Mknod,
    /// As binds of the host's, in the order of [`NODES`], since a user namespace may not create
    /// nodes.
    Bind(Vec<OwnedFd>),
}

/// The mounts at /sys/fs/cgroup.
#[derive(Debug)]
pub(crate) enum CgroupMounts {
    None,
    Unified,
    Legacy(Vec<LegacyMount>),
}

#[derive(Debug)]
pub(crate) struct LegacyMount {
    pub(crate) name: CString,
    pub(crate) controllers: Vec<CString>,
    /// Controllers that get a link to `name`, if several are mounted together.
    pub(crate) links: Vec<CString>,
}

/// A cloned volume, ready to be attached.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) mount: OwnedFd,
    pub(crate) destination: InRoot,
    pub(crate) kind: Kind,
}

/// The prepared state of the child.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) rootfs: OwnedFd,
    pub(crate) rootfs_change: MountAttributes,
    pub(crate) readonly_root: bool,
    pub(crate) nodes: Nodes,
    pub(crate) terminal_group: bool,
    pub(crate) cgroups: CgroupMounts,
    pub(crate) sysctls: &'static [Sysctl],
    pub(crate) masked: Vec<InRoot>,
    pub(crate) readonly: Vec<InRoot>,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) terminal: Option<WindowSize>,
    pub(crate) stdio: Option<[OwnedFd; 3]>,
    pub(crate) hostname: Vec<u8>,
    pub(crate) user: Vec<u8>,
    pub(crate) set_groups: bool,
    pub(crate) cwd: InRoot,
    pub(crate) capabilities: CapabilitySet,
    pub(crate) dropped: Vec<CapabilitySet>,
    pub(crate) no_new_privileges: bool,
    pub(crate) filter: Option<Filter>,
    pub(crate) arguments: StringArray,
    pub(crate) environment: StringArray,
    pub(crate) needs_home: bool,
    pub(crate) programs: Vec<CString>,
    /// Buffers that the child fills.
    pub(crate) passwd: Vec<u8>,
    pub(crate) group: Vec<u8>,
    pub(crate) groups: Vec<rustix::fs::Gid>,
    pub(crate) cwd_text: Vec<u8>,
}

/// Why a plan can't be run.
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

impl Setup {
    pub(crate) fn new(
        plan: &Plan,
        descriptors: Descriptors,
        host: Host,
        view: View,
        devices_restricted: bool,
    ) -> Result<Self, SetupError> {
        let program = plan.argv.first().ok_or(SetupError::NoProgram)?;
        if !plan.cwd.is_empty() && !plan.cwd.starts_with(b"/") {
            return Err(SetupError::RelativeWorkingDirectory);
        }
        // Where the device rules can't be enforced, a container may neither create nor open device
        // nodes: it could open the host's disks.
        let no_devices = host.initial_user_namespace && !devices_restricted;
        let mut capabilities = CapabilitySet::from_bits_retain(plan.capabilities);
        capabilities.set(
            CapabilitySet::MKNOD,
            capabilities.contains(CapabilitySet::MKNOD) && !no_devices,
        );
        Ok(Self {
            rootfs: descriptors.rootfs,
            rootfs_change: MountAttributes {
                private: true,
                recursive: true,
                no_devices,
                ..MountAttributes::default()
            },
            readonly_root: plan.readonly_root,
            nodes: if host.initial_user_namespace {
                Nodes::Mknod
            } else {
                Nodes::Bind(host_nodes()?)
            },
            terminal_group: host.terminal_group,
            cgroups: cgroup_mounts(view)?,
            sysctls: match &SYSCTLS {
                all if host.initial_user_namespace => all,
                [port, _] => std::slice::from_ref(port),
            },
            masked: paths(&plan.masked_paths, "a masked path")?,
            readonly: paths(&plan.readonly_paths, "a read-only path")?,
            volumes: volumes(plan, &descriptors.volumes, no_devices)?,
            terminal: plan.terminal,
            stdio: descriptors.stdio,
            hostname: plan.hostname.clone().into_bytes(),
            user: plan.user.clone(),
            set_groups: !host.groups_fixed,
            cwd: InRoot::new(&plan.cwd).ok_or(SetupError::Nul("the working directory"))?,
            capabilities,
            dropped: (0..=CAPABILITIES)
                .map(|number| CapabilitySet::from_bits_retain(1 << number))
                .filter(|capability| !capabilities.contains(*capability))
                .collect(),
            no_new_privileges: plan.no_new_privileges,
            filter: match plan.seccomp {
                Seccomp::Default => Some(seccomp::default_filter(
                    capabilities.bits(),
                    seccomp::NATIVE,
                )),
                Seccomp::Unconfined => None,
            },
            arguments: StringArray::new(strings(&plan.argv, "an argument")?, 0),
            programs: strings(
                &environment::search(&plan.env, program),
                "the program's path",
            )?,
            needs_home: environment::value(&plan.env, b"HOME").is_none(),
            environment: StringArray::new(
                strings(&plan.env, "the environment")?,
                b"HOME=".len() + PATH_MAX,
            ),
            passwd: Vec::with_capacity(USER_FILE),
            group: Vec::with_capacity(USER_FILE),
            groups: Vec::with_capacity(GROUPS),
            cwd_text: Vec::with_capacity(PATH_MAX),
        })
    }
}

fn strings(list: &[Vec<u8>], what: &'static str) -> Result<Vec<CString>, SetupError> {
    list.iter()
        .map(|bytes| CString::new(bytes.as_slice()).map_err(|_nul| SetupError::Nul(what)))
        .collect()
}

fn paths(list: &[Vec<u8>], what: &'static str) -> Result<Vec<InRoot>, SetupError> {
    list.iter()
        .map(|path| InRoot::new(path).ok_or(SetupError::Nul(what)))
        .collect()
}

fn volumes(
    plan: &Plan,
    descriptors: &[OwnedFd],
    no_devices: bool,
) -> Result<Vec<Volume>, SetupError> {
    let mut volumes = Vec::with_capacity(descriptors.len());
    for (volume, descriptor) in plan.volumes.iter().zip(descriptors) {
        let name = String::from_utf8_lossy(&volume.destination).into_owned();
        let failed = |errno| SetupError::System(format!("open the volume for \"{name}\""), errno);
        let destination = InRoot::new(&volume.destination)
            .filter(|path| !path.is_root() && volume.destination.starts_with(b"/"));
        let destination = destination.ok_or_else(|| SetupError::Destination(name.clone()))?;
        let kind = kind_of(descriptor.as_fd()).map_err(failed)?;
        let mount = clone_mount(descriptor.as_fd(), true).map_err(failed)?;
        let change = MountAttributes {
            read_only: volume.read_only,
            no_devices,
            private: true,
            recursive: true,
            ..MountAttributes::default()
        };
        mount_setattr(mount.as_fd(), change).map_err(failed)?;
        volumes.push(Volume {
            mount,
            destination,
            kind,
        });
    }
    Ok(volumes)
}

/// Clones the mount at this descriptor, detached.
pub(crate) fn clone_mount(descriptor: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(descriptor, c"", flags)
}

fn host_nodes() -> Result<Vec<OwnedFd>, SetupError> {
    let open = |(name, major, minor): (&std::ffi::CStr, u32, u32)| {
        let path = [b"/dev/", name.to_bytes()].concat();
        let node = open_tree(
            CWD,
            path.as_slice(),
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )?;
        // Inside a container it may be anything.
        let status = fstat(&node)?;
        let expected = rustix::fs::makedev(major, minor);
        if FileType::from_raw_mode(status.st_mode) != FileType::CharacterDevice
            || status.st_rdev != expected
        {
            return Err(Errno::NODEV);
        }
        Ok(node)
    };
    NODES
        .into_iter()
        .map(|node| {
            open(node).map_err(|errno| {
                SetupError::System(format!("clone /dev/{}", node.0.to_string_lossy()), errno)
            })
        })
        .collect()
}

fn cgroup_mounts(view: View) -> Result<CgroupMounts, SetupError> {
    let string = |text: &String| {
        CString::new(text.as_bytes()).map_err(|_nul| SetupError::Nul("a cgroup's name"))
    };
    match view {
        View::None => Ok(CgroupMounts::None),
        View::Unified => Ok(CgroupMounts::Unified),
        View::Legacy(hierarchies) => {
            let mount = |view: &crate::cgroup::LegacyView| {
                let controllers = view
                    .controllers
                    .iter()
                    .map(string)
                    .collect::<Result<Vec<_>, _>>()?;
                let links = controllers
                    .iter()
                    .filter(|name| name.as_bytes() != view.name.as_bytes())
                    .cloned()
                    .collect();
                Ok(LegacyMount {
                    name: string(&view.name)?,
                    controllers,
                    links,
                })
            };
            hierarchies
                .iter()
                .map(mount)
                .collect::<Result<_, _>>()
                .map(CgroupMounts::Legacy)
        }
    }
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
