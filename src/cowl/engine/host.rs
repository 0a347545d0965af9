//! The privileges of this process, and the host's features.

use super::error::{Error, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Whether this process is root in the initial user namespace.
pub fn is_privileged() -> bool {
    rustix::process::geteuid().is_root() && in_initial_namespace()
}

/// False without /proc, where no mount can be made either.
fn in_initial_namespace() -> bool {
    cowl_sys::userns::is_initial().unwrap_or(false)
}

/// The default store: /var/lib/cowl for root, else a directory of the user.
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
            Error::invalid("no default store: XDG_DATA_HOME and HOME are unset; use --root DIR")
        })
}

/// What `cowl info` prints about the host.
#[derive(Debug, Clone)]
pub struct Host {
    /// The privilege that mounts are made with.
    pub privilege: &'static str,
    /// Whether /dev/fuse can be opened.
    pub fuse: String,
    /// How mounts can read and write files, see `docs/io-modes.md`.
    pub io_modes: &'static str,
}

/// Describes the host.
pub fn describe() -> Host {
    let (is_root, is_initial) = (rustix::process::geteuid().is_root(), in_initial_namespace());
    let privilege = match (is_root, is_initial) {
        (true, true) => "root",
        (true, false) if cowl_sys::userns::maps_one_id().unwrap_or(false) => {
            "root of a user namespace of one id; unshare --map-auto maps more"
        }
        (true, false) => "root of a user namespace",
        (false, _) => "none; mount and run work in unshare -Urm",
    };
    let fuse = open_fuse().map_or_else(
        |errno| format!("/dev/fuse: {errno}"),
        |_| "/dev/fuse".to_owned(),
    );
    let io_modes = if !(is_root && is_initial) {
        "cached (default), writeback; passthrough needs root of the initial user namespace"
    } else if kernel() < PASSTHROUGH {
        "cached (default), writeback; passthrough needs Linux 6.9"
    } else {
        "cached (default), writeback, passthrough"
    };
    Host {
        privilege,
        fuse,
        io_modes,
    }
}

/// The first kernel whose FUSE has passthrough.
const PASSTHROUGH: (u32, u32) = (6, 9);

/// The kernel's major and minor version; 0 for what is not a number.
fn kernel() -> (u32, u32) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Opens the device as the keeper will, which also checks the permission.
fn open_fuse() -> rustix::io::Result<OwnedFd> {
    rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// Fails early where mounting is impossible, and says what an ordinary user can do.
pub fn require_mounts(command: &str) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::failed(format!(
            "cowl {command} needs the right to mount, which user {} lacks; run it as root or in a user namespace: unshare -Urm (and --map-auto for images with several owners)",
            rustix::process::geteuid().as_raw()
        )));
    }
    open_fuse().map(drop).map_err(|errno| {
        let hint = match errno {
            Errno::ACCESS | Errno::PERM => "it must be readable and writable for this user",
            _ => "load the module: modprobe fuse; in a container, pass the device in",
        };
        Error::from(errno).context(format!("cannot open /dev/fuse ({hint})"))
    })
}
