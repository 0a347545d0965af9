//! Freezes a running container, so that its files can be read in a consistent state.
//!
//! Its processes are frozen, as `docker commit` does by default, and the kernel's cached writes are
//! flushed to the upper.

use super::Engine;
use super::container::Container;
use super::container::state::Status;
use super::error::{Context, Error, Result};
use cowl_launch::control::Control;
use rustix::fs::{Mode, OFlags};

/// A container that is frozen until this is dropped.
#[derive(Debug)]
pub(super) struct Frozen {
    /// None if it was already paused, and stays so.
    thaw: Option<Control>,
}

impl Engine {
    /// Freezes a container; None if it does not run.
    ///
    /// # Errors
    /// A host without a freezer, and a container that is about to start.
    pub(super) fn freeze(&self, container: &Container) -> Result<Option<Frozen>> {
        let Some(control) = self.control(container)? else {
            return Ok(None);
        };
        let id = &container.config.id;
        let was_paused = container.status()? == Status::Paused;
        if !was_paused {
            control
                .pause()
                .context(|| format!("cannot read the files of container {id}, which runs"))?;
        }
        let frozen = Frozen {
            thaw: (!was_paused).then_some(control),
        };
        let pid = container.monitor_record()?.map_or(0, |record| record.pid);
        if pid == 0 {
            return Err(Error::conflict(format!("container {id} is starting")));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty())
            .and_then(rustix::fs::syncfs)
            .context(|| format!("syncing the files of container {id}"))?;
        Ok(Some(frozen))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // If the monitor does not answer, it has ended, and its container with it.
        if let Some(control) = self.thaw.take() {
            drop(control.unpause());
        }
    }
}
