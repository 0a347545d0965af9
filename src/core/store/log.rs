//! `mountd.log`: messages of the keepers and workers of this store's mounts, which have no
//! terminal.
//!
//! Any number of processes append whole lines. When a mount opens a log that is too long, it is
//! renamed to `mountd.log.old`, replacing the previous one; processes that have it open keep
//! writing there.

use std::fs::File;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::dir::PRIVATE;
use super::{Store, StoreError};

/// The log and its predecessor.
pub(super) const LOG: &str = "mountd.log";
pub(super) const OLD_LOG: &str = "mountd.log.old";
/// About ten thousand lines.
const LIMIT: u64 = 1 << 20;

impl Store {
    /// The log of this store's mounts, open for appending.
    pub fn log(&self) -> Result<File, StoreError> {
        let damaged = |name: &str| {
            let reason = "it is not a regular file; move it away";
            StoreError::malformed(self.root.join(name), reason)
        };
        let found = self.root.stat(LOG)?;
        if found.is_some_and(|meta| meta.file_type != FileType::RegularFile) {
            return Err(damaged(LOG));
        }
        if found.is_some_and(|meta| meta.size > LIMIT) {
            match self.root.rename(LOG, &self.root, OLD_LOG) {
                // Another process renamed it first.
                Err(error) if error.errno() == Some(Errno::NOENT) => {}
                Err(error) if error.errno() == Some(Errno::ISDIR) => return Err(damaged(OLD_LOG)),
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
