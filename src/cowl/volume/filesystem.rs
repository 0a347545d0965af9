//! The file system that a volume's options name, as a detached mount.

use super::options::FilesystemMount;
use crate::engine::error::{Context, Error, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
    fsopen,
};
use std::net::{IpAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

impl FilesystemMount {
    /// Whether its content is lost when its last mount ends.
    pub fn is_in_memory(&self) -> bool {
        matches!(self.kind.as_str(), "tmpfs" | "ramfs")
    }

    /// Creates a detached mount.
    ///
    /// # Errors
    /// The kernel's, with dockerd's texts.
    pub fn mount(&self) -> Result<OwnedFd> {
        let device = &self.device;
        self.create()
            .context(|| format!("failed to mount local volume: mount {device}"))
    }

    fn create(&self) -> Result<OwnedFd> {
        let context = fsopen(self.kind.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
        let parameters = self.resolved()?;
        if let Err(errno) = configure(context.as_fd(), &self.device, &parameters) {
            let error = Error::from(errno);
            return Err(match complaint(context.as_fd()) {
                Some(text) => error.context(text),
                None => error,
            });
        }
        Ok(fsmount(
            context.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            self.times,
        )?)
    }

    /// The parameters, with a server's name resolved to its address (moby,
    /// `volume/local/local_unix.go`, `getMountOptions`): the kernel looks up no names.
    fn resolved(&self) -> Result<Vec<(String, Option<String>)>> {
        let mut parameters = self.parameters.clone();
        if !matches!(self.kind.as_str(), "nfs" | "cifs") {
            return Ok(parameters);
        }
        for (key, value) in &mut parameters {
            if let (true, Some(name)) = (key == "addr", value)
                && name.parse::<IpAddr>().is_err()
            {
                let failed = || format!("error resolving passed in network volume address {name}");
                let mut found = (name.as_str(), 0).to_socket_addrs().context(failed)?;
                let address = found.next().ok_or_else(|| Error::failed(failed()))?;
                *name = address.ip().to_string();
            }
        }
        Ok(parameters)
    }
}

fn configure(
    context: BorrowedFd<'_>,
    device: &str,
    parameters: &[(String, Option<String>)],
) -> Result<(), Errno> {
    fsconfig_set_string(context, "source", device)?;
    for (key, value) in parameters {
        match value {
            Some(value) => fsconfig_set_string(context, key.as_str(), value.as_str())?,
            None => fsconfig_set_flag(context, key.as_str())?,
        }
    }
    fsconfig_create(context)
}

/// The kernel's error message: one that begins with `e` and a space (`fsopen(2)`).
fn complaint(context: BorrowedFd<'_>) -> Option<String> {
    let mut buffer = [0; 1024];
    loop {
        // ENODATA after the last one.
        let length = rustix::io::read(context, &mut buffer).ok()?;
        let line = String::from_utf8_lossy(buffer.get(..length)?).into_owned();
        if let Some(text) = line.strip_prefix("e ") {
            return Some(text.trim_end().to_owned());
        }
    }
}

/// The root directory of a mount.
pub fn root_of(mount: impl AsFd) -> Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(mount, ".", flags, Mode::empty())?)
}
