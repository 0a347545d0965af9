//! The processes that serve FUSE mounts: those of this pid namespace that hold /dev/fuse open.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, major, minor, stat};
use rustix::io::Errno;
use rustix::process::Pid;

/// A timeout that means never: a process that has not ended or attached by then hangs.
pub(crate) const NEVER: Duration = Duration::from_mins(2);

/// `/dev/fuse` (Documentation/admin-guide/devices.txt).
const FUSE: (u32, u32) = (10, 229);

/// A process's descriptors by kind; all others are files of the host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Descriptors {
    /// `/dev/fuse`.
    pub(crate) device: BTreeSet<i32>,
    /// Pipes, sockets and eventfds, which transport data and wake-ups.
    pub(crate) wires: BTreeSet<i32>,
}

/// All processes that hold /dev/fuse open.
pub(crate) fn holders() -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").context("/proc")? {
        let name = entry.context("/proc")?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else {
            continue;
        };
        if !descriptors(pid)?.device.is_empty() {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The descriptors of a process; empty if it has ended.
pub(crate) fn descriptors(pid: Pid) -> Result<Descriptors> {
    let mut found = Descriptors::default();
    let directory = format!("/proc/{}/fd", pid.as_raw_nonzero());
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if has_ended(&error) => return Ok(found),
        Err(error) => return Err(error).context(directory),
    };
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if has_ended(&error) => return Ok(found),
            Err(error) => return Err(error).context(directory),
        };
        let Some(number) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if is_device(&entry.path()) {
            found.device.insert(number);
        } else if std::fs::read_link(entry.path()).is_ok_and(|target| is_wire(&target)) {
            found.wires.insert(number);
        }
    }
    Ok(found)
}

/// The /proc directory of a zombie belongs to the host's root, so it is unreadable in a user
/// namespace.
fn has_ended(error: &std::io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOENT | Errno::SRCH | Errno::ACCESS))
}

/// False if the descriptor has been closed meanwhile.
fn is_device(descriptor: &Path) -> bool {
    stat(descriptor).is_ok_and(|found| {
        FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice
            && (major(found.st_rdev), minor(found.st_rdev)) == FUSE
    })
}

fn is_wire(target: &Path) -> bool {
    let target = target.as_os_str().as_encoded_bytes();
    let kinds: [&[u8]; 3] = [b"pipe:", b"socket:", b"anon_inode:"];
    kinds.iter().any(|kind| target.starts_with(kind))
}

/// A pidfd, readable when the process has ended; None if it already has.
pub(crate) fn end_of(pid: Pid) -> Result<Option<OwnedFd>> {
    cowl_sys::process::open(pid).context("pidfd_open")
}

/// Waits for the end of a process.
pub(crate) fn wait_for(end: &OwnedFd) -> Result<()> {
    let limit = Instant::now() + NEVER;
    loop {
        let left = limit.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).context("a time")?;
        match poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => bail!("a process does not end"),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
    }
}
