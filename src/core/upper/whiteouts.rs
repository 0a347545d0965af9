//! Whiteouts: how an upper hides a name of the lower.
//!
//! Where the host makes devices 0:0 and has `RENAME_WHITEOUT`: as overlayfs does. Elsewhere (an
//! overlayfs or FUSE file system below, NFS, ramfs): a file `.wh.NAME`, as aufs and layer archives
//! have it, and as fuse-overlayfs falls back to. overlayfs's whiteouts by attribute are not
//! written: in an upper it hides such a name, and still lists it.
//!
//! Invariant of `.wh.` files: beside a file of its name, one says nothing. So it is made before its
//! name is taken away and removed after the name is there again, and the one rename or creation in
//! between is the commit.

use std::sync::atomic::Ordering;

use rustix::fs::{Mode, OFlags, RenameFlags};
use rustix::io::{Errno, Result};

use super::Upper;
use super::name_at::NameAt;
use super::spelling::Spelling;

/// The two ways.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Whiteouts {
    /// A character device 0:0 of the hidden name.
    Devices,
    /// A regular file `.wh.NAME`. No file of the mount has a name with this prefix.
    Files,
}

impl std::fmt::Display for Whiteouts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Devices => "devices",
            Self::Files => "files",
        })
    }
}

/// A directory with this file is opaque over plain directories: fuse-overlayfs makes one in each
/// opaque directory, and as an ordinary user no mark that overlayfs reads.
pub const OPAQUE_FILE: &[u8] = b".wh..wh..opq";

/// The prefix of whiteouts that are files.
const PREFIX: &[u8] = b".wh.";

/// The names of a rename in the view.
#[derive(Copy, Clone, Debug)]
pub struct Renamed {
    /// The file is a directory.
    pub directory: bool,
    /// The lower has the old name: a whiteout is left there.
    pub hides: bool,
    /// The new name is a whiteout.
    pub over_whiteout: bool,
}

/// What a file of this name hides; None: it is no `.wh.` file. Empty: it hides nothing, as aufs's
/// marks of a directory (`.wh..wh.`).
pub(super) fn hidden_by(name: &[u8]) -> Option<&[u8]> {
    let hidden = name.strip_prefix(PREFIX)?;
    let is_name = !matches!(hidden, b"." | b"..") && !hidden.starts_with(PREFIX);
    Some(if is_name { hidden } else { b"" })
}

/// The name of the file that hides a name.
fn file_for(hidden: &[u8]) -> Vec<u8> {
    [PREFIX, hidden].concat()
}

impl Upper {
    /// How it hides names.
    pub fn whiteouts(&self) -> Whiteouts {
        self.whiteouts
    }

    /// Whether a file of the mount can have this name.
    pub fn can_name(&self, name: &[u8]) -> bool {
        match self.whiteouts {
            Whiteouts::Files => !name.starts_with(PREFIX),
            Whiteouts::Devices => self.spelling == Spelling::Tree || name != OPAQUE_FILE,
        }
    }

    /// Hides a name that the upper does not have.
    ///
    /// # Errors
    /// ENAMETOOLONG if a `.wh.` file of this name cannot be: it has more than 251 bytes.
    pub fn make_whiteout(&self, at: NameAt<'_>) -> Result<()> {
        match self.whiteouts {
            Whiteouts::Devices => self.link_device(at),
            Whiteouts::Files => make_file(at),
        }
    }

    /// As in overlayfs, whiteouts are links to one inode: a mknod for each takes the host ten times
    /// as long.
    fn link_device(&self, at: NameAt<'_>) -> Result<()> {
        let shared = self.whiteout.load(Ordering::Relaxed);
        if shared != 0 {
            match NameAt::new(self.tmp(), shared.to_string().as_bytes()).link(at) {
                // Too many links, or linking is refused (protected_hardlinks, a file system
                // without links).
                Err(Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => {}
                linked => return linked,
            }
        }
        at.make_whiteout()?;
        let number = self.new_number();
        // If this fails, the next whiteout gets its own inode, too.
        if at
            .link(NameAt::new(self.tmp(), number.to_string().as_bytes()))
            .is_ok()
        {
            self.whiteout.store(number, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Removes the `.wh.` file beside a file that has taken the name.
    pub fn drop_whiteout_file(&self, at: NameAt<'_>) -> Result<()> {
        NameAt::new(at.dir, &file_for(at.name)).unlink()
    }

    /// Replaces a device 0:0 by a `.wh.` file.
    pub fn respell(&self, device: NameAt<'_>) -> Result<()> {
        make_file(device)?;
        device.unlink()
    }

    /// Moves a file out of the view, to a new name in `work/tmp` or `work/orphans`. `hides` leaves a
    /// whiteout.
    pub fn move_away(&self, from: NameAt<'_>, to: NameAt<'_>, hides: bool) -> Result<()> {
        match (hides, self.whiteouts) {
            (false, _) => from.rename_new(to),
            (true, Whiteouts::Devices) => from.rename(to, RenameFlags::WHITEOUT),
            (true, Whiteouts::Files) => hiding(from, || from.rename_new(to)),
        }
    }

    /// Moves a file into the view, to a name that is free or a whiteout. A directory can take a
    /// device's place only in exchange.
    pub fn move_in(
        &self,
        from: NameAt<'_>,
        to: NameAt<'_>,
        directory: bool,
        over_whiteout: bool,
    ) -> Result<()> {
        match (over_whiteout, self.whiteouts) {
            (false, _) | (true, Whiteouts::Files) => from.rename_new(to),
            (true, Whiteouts::Devices) if directory => from.rename(to, RenameFlags::EXCHANGE),
            (true, Whiteouts::Devices) => from.rename(to, RenameFlags::empty()),
        }
    }

    /// Renames a file in the view, over what the new name has. If it [`swaps`](Self::swaps), the
    /// whiteout there goes to the old name.
    pub fn rename(&self, from: NameAt<'_>, to: NameAt<'_>, renamed: Renamed) -> Result<()> {
        let plain = RenameFlags::empty();
        match (self.whiteouts, renamed.hides) {
            _ if self.swaps(renamed) => from.rename(to, RenameFlags::EXCHANGE),
            (Whiteouts::Devices, true) => from.rename(to, RenameFlags::WHITEOUT),
            (Whiteouts::Files, true) => hiding(from, || from.rename(to, plain)),
            (_, false) => from.rename(to, plain),
        }
    }

    /// Whether a rename is an exchange: a directory cannot replace a device.
    pub fn swaps(&self, renamed: Renamed) -> bool {
        self.whiteouts == Whiteouts::Devices && renamed.directory && renamed.over_whiteout
    }
}

/// Makes a `.wh.` file, then what takes its name away. If that fails the file goes again; one that
/// stays says nothing.
fn hiding(at: NameAt<'_>, take_away: impl FnOnce() -> Result<()>) -> Result<()> {
    make_file(at)?;
    take_away().map_err(
        |error| match NameAt::new(at.dir, &file_for(at.name)).unlink() {
            Ok(()) | Err(_) => error,
        },
    )
}

/// There may be one, left beside the file that now goes.
fn make_file(at: NameAt<'_>) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::openat(at.dir, file_for(at.name), flags, mode).map(drop)
}
