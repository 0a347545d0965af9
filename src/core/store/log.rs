//! `mountd.log`: what keepers and workers of this store's mounts have to say, which nobody sees on a terminal.
//!
//! Lines are appended whole by any number of processes. A file that has grown too long is set aside as `mountd.log.old`, over the one
//! before, when the next mount asks for it; who has it open goes on writing there.

use std::fs::File;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::dir::PRIVATE;
use super::{Store, StoreError};

/// The name of the log, and of the one before.
pub(super) const LOG: &str = "mountd.log";
pub(super) const OLD_LOG: &str = "mountd.log.old";
/// About ten thousand lines.
const LIMIT: u64 = 1 << 20;

impl Store {
    /// The log of this store's mounts, open for appending.
    pub fn log(&self) -> Result<File, StoreError> {
        if self.root.stat(LOG)?.is_some_and(|meta| meta.size > LIMIT) {
            match self.root.rename(LOG, &self.root, OLD_LOG) {
                // Somebody else was faster.
                Err(error) if error.errno() == Some(Errno::NOENT) => {}
                renamed => renamed?,
            }
        }
        let how = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
        let safely = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::openat(&self.root, LOG, how | safely, PRIVATE)
            .map(File::from)
            .map_err(|errno| StoreError::io("open", self.root.join(LOG), errno))
    }
}
