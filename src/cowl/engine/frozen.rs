//! Keeps the files of a running container as they are while they are read.
//!
//! Its processes are frozen, as `docker commit` does by default, and the kernel's cached writes are
//! flushed to the upper. Where they cannot be frozen, or are not to be, its mount's worker holds
//! their changes back instead ([`Hold`]): they run on until they change a file.

use super::Engine;
use super::container::state::Status;
use super::container::{Container, WORKER_SOCKET};
use super::error::{Context, Error, Result};
use cowl_core::handover::{Hold, IoMode};
use cowl_launch::control::{Control, ControlError};
use rustix::fs::{Mode, OFlags};

/// How a running container's files are kept as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    /// By freezing it; else its changes are held back, if that holds all of them.
    Pause,
    /// The same, or as many of its changes as can be held back.
    PauseOrHold,
    /// As many of its changes as can be held back are.
    Hold,
}

/// A container whose files stay as they are until this is dropped.
#[derive(Debug)]
pub(super) enum Frozen {
    /// Its processes are frozen. None if it was already paused, and stays so.
    Paused(Option<Control>),
    /// Its changes wait.
    Held(Hold),
}

impl Engine {
    /// Keeps the files of a container as they are; None if it does not run.
    ///
    /// # Errors
    /// A container for which no means works, and one that is about to start.
    pub(super) fn freeze(&self, container: &Container, means: Means) -> Result<Option<Frozen>> {
        let Some(control) = self.control(container)? else {
            return Ok(None);
        };
        let frozen = if container.status()? == Status::Paused {
            Frozen::Paused(None)
        } else if means == Means::Hold {
            return hold(container).map(Some);
        } else {
            match control.pause() {
                Ok(()) => Frozen::Paused(Some(control)),
                Err(error) => return hold_instead(container, means, &error).map(Some),
            }
        };
        sync(container)?;
        Ok(Some(frozen))
    }
}

/// Has the changes of a container held back that cannot be paused for this reason.
fn hold_instead(container: &Container, means: Means, no_pause: &ControlError) -> Result<Frozen> {
    let id = &container.config.id;
    let refusal = || format!("cannot read the files of container {id}, which runs");
    let io_mode = container.config.host.io_mode()?.mode();
    if means == Means::Pause && io_mode != IoMode::Cached {
        return Err(Error::conflict(format!(
            "{}: it cannot be paused ({no_pause}), and with --io {io_mode} not all of its changes can be held back; --pause=false commits what there is",
            refusal()
        )));
    }
    hold(container).map_err(|error| error.context(no_pause.to_string()).context(refusal()))
}

fn hold(container: &Container) -> Result<Frozen> {
    // Before: what is written back may make changes that would wait.
    sync(container)?;
    let id = &container.config.id;
    let held = Hold::begin(container.status_dir(), WORKER_SOCKET);
    let held = held.context(|| format!("having the changes of container {id} wait"))?;
    Ok(Frozen::Held(held))
}

/// Has the kernel write to the upper what it caches.
fn sync(container: &Container) -> Result<()> {
    let id = &container.config.id;
    let pid = container.monitor_record()?.map_or(0, |record| record.pid);
    if pid == 0 {
        return Err(Error::conflict(format!("container {id} is starting")));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty())
        .and_then(rustix::fs::syncfs)
        .context(|| format!("syncing the files of container {id}"))
}

impl Frozen {
    /// Fails if the files may have changed since.
    pub(super) fn confirm(&self) -> Result<()> {
        match self {
            Self::Paused(_) => Ok(()),
            Self::Held(hold) => hold.confirm().context(|| {
                "the container's files may have changed while they were read: its changes could not be held back to the end; try again, or stop it"
            }),
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // If the monitor does not answer, it has ended, and its container with it.
        if let Self::Paused(Some(control)) = self {
            drop(control.unpause());
        }
    }
}
