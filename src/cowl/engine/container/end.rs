//! Which process writes the event of a container's end: the first to see it among the attached
//! command, the command that the monitor runs, and later commands that start or remove the
//! container.

use super::Container;
use crate::engine::error::{Context as _, Error, Result};
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

/// An empty file: the end of the last program is among the events.
const TOLD: &str = "told";

impl Container {
    /// Whether the caller is to write the event of the last program's end. It holds the start lock
    /// until it has.
    pub fn claim_end(&self) -> Result<bool> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match openat(&self.dir, TOLD, flags, Mode::RUSR | Mode::WUSR) {
            Ok(_) => Ok(true),
            // NOENT: another command has removed the container, and wrote the event before.
            Err(Errno::EXIST | Errno::NOENT) => Ok(false),
            Err(errno) => {
                Err(Error::from(errno)).context(|| format!("container {}", self.config.id))
            }
        }
    }

    /// Marks the end of the next program as not yet among the events. The caller holds the start
    /// lock.
    pub fn expect_end(&self) -> Result<()> {
        match unlinkat(&self.dir, TOLD, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => {
                Err(Error::from(errno)).context(|| format!("container {}", self.config.id))
            }
        }
    }
}
