//! Who tells of the end of a container's program: the first that sees it, of the command that stays
//! with it, the one that its monitor runs, and those that start or remove it afterwards.

use super::Container;
use crate::engine::error::{Context as _, Error, Result};
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

/// An empty file: the end of the last program has been told.
const TOLD: &str = "told";

impl Container {
    /// Whether the caller is the first to tell of the end of the last program. It holds the start
    /// lock until it has told.
    pub fn claim_end(&self) -> Result<bool> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match openat(&self.dir, TOLD, flags, Mode::RUSR | Mode::WUSR) {
            Ok(_) => Ok(true),
            // NOENT: another command has removed the container, and told before.
            Err(Errno::EXIST | Errno::NOENT) => Ok(false),
            Err(errno) => {
                Err(Error::from(errno)).context(|| format!("container {}", self.config.id))
            }
        }
    }

    /// Makes ready for the end of the next program. The caller holds the start lock.
    pub fn expect_end(&self) -> Result<()> {
        match unlinkat(&self.dir, TOLD, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => {
                Err(Error::from(errno)).context(|| format!("container {}", self.config.id))
            }
        }
    }
}
