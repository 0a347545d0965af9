//! What the host lets this process do.

use super::error::{Context, Error, Result};
use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Whether this process is root of the machine, not of a user namespace.
pub fn is_privileged() -> bool {
    rustix::process::geteuid().is_root() && in_initial_namespace()
}

/// Without /proc there is no telling; no mount can be made then either.
fn in_initial_namespace() -> bool {
    cowl_sys::userns::is_initial().unwrap_or(false)
}

/// The store when none is named: the machine's for root, else the user's own.
pub fn default_root() -> Result<PathBuf> {
    if is_privileged() {
        return Ok(PathBuf::from("/var/lib/cowl"));
    }
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("cowl"))
        .ok_or_else(|| {
            Error::invalid(
                "neither XDG_DATA_HOME nor HOME says where your store is; name it with --root DIR",
            )
        })
}

/// For `cowl info`.
#[derive(Debug, Clone)]
pub struct Host {
    /// Whether and as whom this process may mount.
    pub privilege: &'static str,
    /// Whether mounts can be served.
    pub fuse: String,
}

/// What the host lets this process do, in words.
pub fn describe() -> Host {
    let privilege = match (rustix::process::geteuid().is_root(), in_initial_namespace()) {
        (true, true) => "root",
        (true, false) => "root of a user namespace",
        (false, _) => "none; mount and run work in unshare -Urm",
    };
    let fuse = open_fuse().map_or_else(
        |errno| format!("/dev/fuse: {errno}"),
        |_| "/dev/fuse".to_owned(),
    );
    Host { privilege, fuse }
}

/// Opened as the keeper will: a device that is there and forbidden is as good as none.
fn open_fuse() -> rustix::io::Result<OwnedFd> {
    rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// Refuses what needs mounts before anything is made for it, and says how an ordinary user gets there.
pub fn require_mounts(command: &str) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::failed(format!(
            "cowl {command} has to mount, which user {} may not; run it as root, or in a shell with a user namespace of its own: unshare -Urm",
            rustix::process::geteuid().as_raw()
        )));
    }
    open_fuse()
        .map(drop)
        .context(|| "no mount without /dev/fuse (load the kernel module: modprobe fuse; in a container or VM, hand the device in)")
}
