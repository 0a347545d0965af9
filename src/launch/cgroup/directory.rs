//! One cgroup as a directory: create, write, empty, remove.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, pidfd_send_signal};

/// How long [`Directory::remove`] waits for processes to end after SIGKILL. One in an
/// uninterruptible wait may never end.
const PATIENCE: usize = 100;
/// Pause between two checks for the end of a process in another pid namespace; version 1 has no
/// event to wait for.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

/// Makes the directory of a cgroup. The monitor's umask is 0, so the mode is given: any user who
/// may write to it could make cgroups there.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(path)
}

/// A cgroup of one container in one hierarchy.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Creates the cgroup. One that a killed monitor left under the same name is removed first.
    pub(super) fn create(path: PathBuf) -> io::Result<Self> {
        match make_directory(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Self { path: path.clone() }.remove()?;
                make_directory(&path)?;
            }
            other => other?,
        }
        Ok(Self { path })
    }

    pub(super) fn existing(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        Ok(rustix::fs::open(
            &self.path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?)
    }

    pub(super) fn write(&self, file: &str, text: &str) -> io::Result<()> {
        write(&self.path.join(file), text)
    }

    /// Writes each line with its own `write(2)`.
    pub(super) fn write_lines(
        &self,
        file: &str,
        mut lines: impl Iterator<Item = String>,
    ) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(self.path.join(file))?;
        lines.try_for_each(|line| file.write_all(line.as_bytes()))
    }

    /// Writes the file if it exists; true if it does.
    pub(super) fn write_if_present(&self, file: &str, text: &str) -> io::Result<bool> {
        match self.write(file, text) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn read(&self, file: &str) -> io::Result<String> {
        read(&self.path.join(file))
    }

    /// Reads the file if it exists.
    pub(super) fn read_if_present(&self, file: &str) -> io::Result<Option<String>> {
        match self.read(file) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The number after `key` in a file of `key number` lines.
    pub(super) fn read_counter(&self, file: &str, key: &str) -> io::Result<u64> {
        let text = read(&self.path.join(file))?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok());
        Ok(value.unwrap_or(0))
    }

    /// Removes the cgroup and all below it, and kills the processes in them.
    pub(super) fn remove(&self) -> io::Result<()> {
        remove(&self.path)
    }
}

/// Writes with one `write(2)`, as cgroup files require.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}

pub(super) fn read(path: &Path) -> io::Result<String> {
    // Files of /proc have no size; most fit in one read of this length.
    let mut text = String::with_capacity(16 << 10);
    File::open(path)?.take(1 << 20).read_to_string(&mut text)?;
    Ok(text)
}

fn remove(path: &Path) -> io::Result<()> {
    for _attempt in 0..PATIENCE {
        match std::fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => {}
            Err(error) => return Err(error),
        }
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                remove(&entry.path())?;
            }
        }
        if !kill_all(path)? {
            poll(&mut [], Some(&PAUSE))?;
        }
    }
    Err(Errno::BUSY.into())
}

/// Sends SIGKILL to every process in the cgroup and waits for the first to end; false if there is
/// none.
fn kill_all(path: &Path) -> io::Result<bool> {
    let mut last = None;
    for line in read(&path.join("cgroup.procs"))?.lines() {
        let Some(pid) = line.parse().ok().and_then(Pid::from_raw) else {
            continue;
        };
        // Look the pid up again after opening it: it may have been reused since the file was read.
        let Some(pidfd) = cowl_sys::process::open(pid)? else {
            continue;
        };
        if read(&path.join("cgroup.procs"))?
            .lines()
            .any(|again| again == line)
        {
            match pidfd_send_signal(&pidfd, Signal::KILL) {
                Ok(()) => last = Some(pidfd),
                Err(Errno::SRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    let Some(pidfd) = last else { return Ok(false) };
    let second = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&second))?;
    Ok(true)
}
