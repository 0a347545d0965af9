//! The nodes and links of the container's /dev, prepared.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, FileType, Mode, fstat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::{Host, SetupError};
use crate::path::InRoot;
use crate::sandbox::Device;

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

pub(super) const LINKS: Links = [
    (c"pts/ptmx", c"ptmx"),
    (c"/proc/self/fd", c"fd"),
    (c"/proc/self/fd/0", c"stdin"),
    (c"/proc/self/fd/1", c"stdout"),
    (c"/proc/self/fd/2", c"stderr"),
    (c"/proc/kcore", c"core"),
];

pub(super) fn prepare_device(device: &Device, host: Host) -> Result<PreparedDevice, SetupError> {
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
