//! Operations of random programs as values, so that a list of them can be replayed and shortened.

use std::fmt;

/// A path below the root of a side, in bytes.
#[derive(Clone, Eq, PartialEq)]
pub(crate) struct Path(pub(crate) Vec<u8>);

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let longest = "L".repeat(255);
        let path = self.0.escape_ascii().to_string();
        write!(f, "\"{}\"", path.replace(&longest, "{255 L}"))
    }
}

/// Type of a node that mknod makes.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Special {
    Fifo,
    Socket,
    Regular,
    Char(u32, u32),
    Block(u32, u32),
}

/// How a rename treats an existing target.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Renaming {
    Replace,
    NoReplace,
    Exchange,
}

/// What fallocate does with a range.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Allocation {
    Grow,
    KeepSize,
    PunchHole,
    ZeroRange,
}

/// The new value of a time.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Time {
    At(i64, i64),
    Now,
    Omit,
}

/// An open file that operations share, by number.
pub(crate) type Slot = usize;
pub(crate) const SLOTS: usize = 4;

/// One step on a side. Bytes to write are made from `seed`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Operation {
    Create {
        path: Path,
        mode: u32,
        exclusive: bool,
        umask: u32,
    },
    Write {
        path: Path,
        offset: u64,
        length: usize,
        seed: u8,
    },
    Append {
        path: Path,
        length: usize,
        seed: u8,
    },
    OpenTruncated {
        path: Path,
    },
    Truncate {
        path: Path,
        length: u64,
    },
    Read {
        path: Path,
        offset: u64,
        length: usize,
    },
    CopyRange {
        from: Path,
        to: Path,
        length: usize,
    },
    Fallocate {
        path: Path,
        allocation: Allocation,
        offset: u64,
        length: u64,
    },
    Unlink {
        path: Path,
    },
    Rmdir {
        path: Path,
    },
    Mkdir {
        path: Path,
        mode: u32,
        umask: u32,
    },
    Symlink {
        target: Path,
        path: Path,
    },
    Link {
        from: Path,
        to: Path,
    },
    Mknod {
        path: Path,
        special: Special,
        mode: u32,
        umask: u32,
    },
    Rename {
        from: Path,
        to: Path,
        renaming: Renaming,
    },
    Chmod {
        path: Path,
        mode: u32,
    },
    Chown {
        path: Path,
        uid: Option<u32>,
        gid: Option<u32>,
        follow: bool,
    },
    Times {
        path: Path,
        modified: Time,
        follow: bool,
    },
    SetXattr {
        path: Path,
        name: &'static str,
        value: &'static [u8],
        create: bool,
        replace: bool,
    },
    RemoveXattr {
        path: Path,
        name: &'static str,
    },
    GetXattr {
        path: Path,
        name: &'static str,
    },
    ListXattr {
        path: Path,
    },
    Stat {
        path: Path,
    },
    Access {
        path: Path,
        mode: u8,
    },
    Readlink {
        path: Path,
    },
    Readdir {
        path: Path,
    },
    Tmpfile {
        directory: Path,
        length: usize,
        seed: u8,
        link: Option<Path>,
    },
    SyncDirectory {
        path: Path,
    },
    Open {
        slot: Slot,
        path: Path,
        write: bool,
        append: bool,
    },
    SlotWrite {
        slot: Slot,
        offset: u64,
        length: usize,
        seed: u8,
    },
    SlotRead {
        slot: Slot,
        offset: u64,
        length: usize,
    },
    SlotTruncate {
        slot: Slot,
        length: u64,
    },
    SlotStat {
        slot: Slot,
    },
    SlotChmod {
        slot: Slot,
        mode: u32,
    },
    SlotSync {
        slot: Slot,
    },
    SlotClose {
        slot: Slot,
    },
}

/// One step of a run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    /// The same operation on both sides, with the rights of user and group `who`.
    Do { who: u32, operation: Operation },
    /// Both whole trees are compared.
    Compare,
    /// All slots are closed and the mount is taken down and made again.
    Remount,
}
