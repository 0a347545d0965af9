//! The bare system calls of a container's start, which every runtime needs: namespaces, the file
//! systems of Docker's containers, the nodes of /dev, masked and read-only paths, pivot_root. Used
//! by [`crate::starts`].

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{CWD, FileType, Mode, makedev, mkdir, mknodat, stat, symlink};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change,
    mount_remount, unmount,
};
use rustix::process::{WaitOptions, chdir, pivot_root, waitpid};

use crate::sys::fork_into_namespaces;

/// Directories that the root must have.
pub(crate) const MOUNT_POINTS: [&str; 3] = ["dev", "proc", "sys"];
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Starts `/bin/true` in a root with these calls, and waits for its end.
pub(crate) fn start(root: &Path) -> Result<()> {
    let Some(pid) = fork_into_namespaces().context("clone")? else {
        let Err(error) = enter(root);
        crate::output::print_error(&format!("bare calls: {error:#}"), crate::FAILURE);
        // The child must not return.
        std::process::abort();
    };
    let ended = waitpid(Some(pid), WaitOptions::empty()).context("waitpid")?;
    match ended.and_then(|(_, status)| status.exit_status()) {
        Some(0) => Ok(()),
        code => bail!("the bare start ended with {code:?}"),
    }
}

/// Sets the container up and executes the program.
fn enter(root: &Path) -> Result<std::convert::Infallible> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    mount_bind(root, root)?;
    chdir(root)?;
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "proc", "proc", safe, None)?;
    devices()?;
    mount("sysfs", "sys", "sysfs", safe | MountFlags::RDONLY, None)?;
    mask()?;
    // Stacks the old root on the new one, to be unmounted there (pivot_root(2), NOTES).
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    Err(Command::new("/bin/true").env_clear().exec().into())
}

fn devices() -> Result<()> {
    let nosuid = MountFlags::NOSUID;
    let data = Some(c"mode=755,size=65536k");
    mount(
        "tmpfs",
        "dev",
        "tmpfs",
        nosuid | MountFlags::STRICTATIME,
        data,
    )?;
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_raw_mode(0o666);
        let node = format!("dev/{name}");
        mknodat(
            CWD,
            node,
            FileType::CharacterDevice,
            mode,
            makedev(major, minor),
        )?;
    }
    for (target, name) in LINKS {
        symlink(target, format!("dev/{name}"))?;
    }
    let safe = nosuid | MountFlags::NODEV | MountFlags::NOEXEC;
    for (name, kind, data) in [
        ("pts", "devpts", c"newinstance,ptmxmode=0666,mode=0620"),
        ("shm", "tmpfs", c"mode=1777,size=65536k"),
        ("mqueue", "mqueue", c""),
    ] {
        let point = format!("dev/{name}");
        mkdir(&point, Mode::from_raw_mode(0o755))?;
        mount(kind, &point, kind, safe, Some(data))?;
    }
    Ok(())
}

/// Masks those of Docker's masked paths that exist.
fn mask() -> Result<()> {
    use cowl_launch::sandbox::{DEFAULT_MASKED_PATHS, DEFAULT_READONLY_PATHS};
    for path in DEFAULT_MASKED_PATHS {
        let path = path.trim_start_matches('/');
        match kind_of(path)? {
            Some(FileType::Directory) => {
                mount("tmpfs", path, "tmpfs", MountFlags::RDONLY, Some(c"size=0"))?;
            }
            Some(_) => mount_bind("dev/null", path)?,
            None => {}
        }
    }
    for path in DEFAULT_READONLY_PATHS {
        let path = path.trim_start_matches('/');
        if kind_of(path)?.is_some() {
            mount_bind(path, path)?;
            mount_remount(path, MountFlags::BIND | MountFlags::RDONLY, "")?;
        }
    }
    Ok(())
}

/// None if the path is missing.
fn kind_of(path: &str) -> Result<Option<FileType>> {
    match stat(path) {
        Ok(found) => Ok(Some(FileType::from_raw_mode(found.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error).with_context(|| path.to_owned()),
    }
}
