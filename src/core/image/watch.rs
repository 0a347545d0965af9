//! How far a load or an import is, and what it leaves out.

use std::fmt;

use super::Absent;
use crate::digest::DiffId;

/// Is told how far it is, by several threads; must not block.
pub trait Watch: Sync + fmt::Debug {
    /// Something was read.
    fn step(&self, step: Step);

    /// The archive was loaded, but for this.
    fn absent(&self, absent: &Absent);
}

/// What was read. Numbers of bytes are from the beginning on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Of an archive that cannot be read twice, which is copied first.
    Copied {
        /// Bytes of the copy.
        bytes: u64,
    },
    /// The layers are about to be read.
    Layers {
        /// Bytes of all their parts of the archive.
        bytes: u64,
    },
    /// Of a layer. One that turns out to be damaged in the store is read once more.
    Layer {
        /// Which, as the image's configuration names it.
        diff_id: DiffId,
        /// Bytes of its part of the archive.
        read: u64,
        /// All of them.
        size: u64,
    },
    /// Of the tar of a root file system.
    Root {
        /// Bytes of the tar as it came.
        read: u64,
        /// All of them, if it is a file.
        size: Option<u64>,
    },
}
