//! Disk space as `du` counts it: each inode once, and none for a file that stays under another
//! name.

use std::collections::HashMap;
use std::ffi::OsStr;

use rustix::fs::FileType;

use super::super::StoreError;
use super::super::dir::{Meta, StoreDir};

/// Bytes of a block of `stat`.
const BLOCK: u64 = 512;

/// Links of files with several, by inode: how many are not counted yet.
#[derive(Debug, Default)]
pub(super) struct Disk {
    left: HashMap<u64, u32>,
}

impl Disk {
    /// The space that the removal of one name frees, after those counted before.
    pub(super) fn of(&mut self, meta: &Meta) -> u64 {
        if meta.links > 1 && meta.file_type != FileType::Directory {
            let left = self.left.entry(meta.stamp.inode).or_insert(meta.links);
            *left = left.saturating_sub(1);
            if *left > 0 {
                return 0;
            }
        }
        meta.blocks * BLOCK
    }

    /// The space of a file or of a whole directory; `opened` if it is one that can be listed.
    pub(super) fn below(
        &mut self,
        parent: &StoreDir,
        name: &OsStr,
        opened: Option<&StoreDir>,
    ) -> Result<u64, StoreError> {
        let Some(meta) = parent.stat(name)? else {
            return Ok(0);
        };
        let mut bytes = self.of(&meta);
        let mut pending = Vec::new();
        if let Some(dir) = opened {
            pending.push(dir.try_clone()?);
        }
        while let Some(dir) = pending.pop() {
            for name in dir.names()? {
                let Some(meta) = dir.stat(&name)? else {
                    continue;
                };
                bytes += self.of(&meta);
                if meta.file_type == FileType::Directory {
                    pending.extend(dir.open_dir_if_exists(&name)?);
                }
            }
        }
        Ok(bytes)
    }
}
