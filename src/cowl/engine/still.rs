//! A running container held still, so that its files can be read as they are at one moment.
//!
//! Its processes are frozen, as `docker commit` does by default, and what the kernel has cached of
//! their writes is handed to the upper.

use super::Engine;
use super::container::Container;
use super::container::state::Status;
use super::error::{Context, Error, Result};
use cowl_launch::control::Control;
use rustix::fs::{Mode, OFlags};

/// A container that is frozen for as long as this lives.
#[derive(Debug)]
pub(super) struct Still {
    /// None: it was paused before, and stays so.
    thaw: Option<Control>,
}

impl Engine {
    /// Holds a container still; None if it does not run.
    ///
    /// # Errors
    /// A host without a freezer, and a container that is about to start.
    pub(super) fn hold_still(&self, container: &Container) -> Result<Option<Still>> {
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
        let still = Still {
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
        Ok(Some(still))
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        // A monitor that does not answer has ended, and its container with it.
        if let Some(control) = self.thaw.take() {
            drop(control.unpause());
        }
    }
}
