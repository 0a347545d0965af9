//! The upper: the directory that holds a mount's changes, and the work directory beside it.
//!
//! Invariant: whenever the worker or the machine stops, the upper is the state before or after
//! each change; unfinished files are in `work/tmp`, which the next mount empties.
//! `mountd::overlay` decides what to write; only this module knows the encoding of marks.
//!
//! # Layout
//! ```text
//! upper/                 changed files, whiteouts, marks; the directory is locked while mounted
//! work/lock              locked while mounted; where marks are: "trusted", "user" or "links", and
//!                        " .wh." if whiteouts are files
//! work/tmp/              staged files, and a link to the whiteouts of this mount; emptied at mount
//! work/index/<number>    link to each copied-up hard link of the lower: over a tree by node
//!                        number; over plain directories by any, and called work/links; emptied
//!                        for an upper that is new or, over a tree, without a stamp
//! work/orphans/<number>  removed files that are still open; emptied at mount
//! work/marks/            marks, where the file system has no extended attributes ([`mark_links`])
//! work/work/incompat     over plain directories: overlayfs's mark of a volatile upper
//! ```
//! Both directories must be on one file system.
//!
//! # Marks
//! Extended attributes below `trusted.overlay.` where the worker has `CAP_SYS_ADMIN` in the
//! initial user namespace, else below `user.overlay.`; there, symbolic links and special files
//! bear none. Where neither can be, symbolic links in `work/marks`. The first two and the whiteout
//! are overlayfs's own (Documentation/filesystems/overlayfs.rst); the kernel ignores the others.
//! [`scan`] says what they mean.
//! ```text
//! a character device 0:0    whiteout: hides the tree's file of this name; where the host makes
//!                           none, a file `.wh.NAME` ([`whiteouts`])
//! opaque        "y"         directory: hides what the tree has under this name or origin
//! impure        "y"         directory: files in it bear the mark `cowl`
//! cowl          below       what a file was copied up from
//! cowl.stamp    below       root: the chain id and the numbering of the tree that marks refer to
//! ```
//! Over plain directories the kernel's marks say what they can, so that overlayfs can mount the
//! upper and the other way round ([`spelling`]); there is no stamp.
//! ```text
//! redirect      a path    directory renamed, or file with metacopy: where it is in the lower
//! metacopy      ""        regular file: its content is the lower's, up to the length of this file
//! ```
//! A directory that is neither opaque nor marked with an origin shows the children of the tree's
//! directory of the same name, as in overlayfs. An attribute that a user of the mount calls
//! `trusted.overlay.x` is stored as `trusted.overlay.overlay.x` ([`marks::escape`]).
//!
//! Numbers are little-endian; a field is there if its flag is, in this order, and the bytes end
//! with the last.
//! ```text
//! cowl
//!   0        1        2                 4
//!  +--------+--------+--------+--------+----------------------+----------------------+--------------
//!  | 02     | flags  | 00     | 00     | 01: origin u32       | 08: link delta i32   | 10: saved
//!  +--------+--------+--------+--------+----------------------+----------------------+--------------
//!   01  origin: copied up from this tree node, whose id and `st_ino` it keeps; a directory shows
//!       its children
//!   02  metadata only: the content is the origin's, up to the length of this (sparse) file; only
//!       with 01 or 20; over plain directories `metacopy` decides
//!   04  device: this empty regular file is a character device 0:0
//!   08  in work/index: links shown = links of the host - 1 + link delta
//!   10  copying: the content is being copied; after a crash these attributes are restored;
//!       only with 02
//!   20  path: after the link delta a length u16 and the origin's path in the plain directories, in
//!       place of 01
//!
//! saved
//!  +-----------+----------------------+-----------+-----------+--------------------------------+
//!  | size u64  | mtime, seconds i64   | ns u32    | mode u32  | security.capability, the rest  |
//!  +-----------+----------------------+-----------+-----------+--------------------------------+
//!
//! cowl.stamp
//!  +--------+--------+-----------------+----------------------------------------------------+
//!  | 02     | 00     | numbering u16   | chain id, 32 bytes                                 |
//!  +--------+--------+-----------------+----------------------------------------------------+
//! ```
//! `cowl` without saved attributes, a capability of 20 bytes and ext4's own part fit into an inode
//! of 256 bytes: a copied-up file takes no block for its marks.

pub mod changes;
mod directories;
mod mark_links;
pub mod marks;
pub mod name_at;
mod probe;
pub mod scan;
pub mod spelling;
pub mod whiteouts;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

pub use directories::{each_entry, empty, remove_temporary};

use directories::{last_number, numbers_in, open_directory, subdirectory};
use mark_links::MarkLinks;
use marks::{Mark, MarkStore, Stamp};
use name_at::NameAt;
use probe::Record;
use spelling::Spelling;
use whiteouts::Whiteouts;

/// Why an upper cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpperError {
    /// Another mount holds one of the locks.
    #[error("the upper or its work directory is in use by another mount")]
    InUse,
    /// Written over another stack of layers.
    #[error(
        "the upper was written over another image (chain {found}, this one is {wanted}): use an empty upper, or that image"
    )]
    OtherChain {
        /// The upper's.
        found: crate::digest::ChainId,
        /// The one to be mounted.
        wanted: crate::digest::ChainId,
    },
    /// Written over the same stack as another version of cowl numbers it.
    #[error(
        "the upper was written by a version of cowl that numbers files differently ({found}, this one {wanted})"
    )]
    OtherNumbering {
        /// The upper's.
        found: u16,
        /// The one to be mounted.
        wanted: u16,
    },
    /// The stamp's bytes.
    #[error("the upper's stamp: {0}")]
    Stamp(#[from] marks::UnknownMark),
    /// Written over an image, and now over plain directories.
    #[error("the upper was written over an image: use an empty upper, or mount it with that image")]
    OverImage,
    /// Marks in `trusted.`, and no privilege to read them.
    #[error(
        "the upper was written with privilege (marks in trusted.overlay.*) and cannot be read without: mount it as root"
    )]
    NeedsPrivilege,
    /// No extended attributes for marks.
    #[error(
        "the upper's file system has no extended attributes in {0}: use another file system for the upper"
    )]
    NoXattrs(&'static str),
    /// Marks by inode number, beside an upper or in a directory with another number than then.
    #[error(
        "the upper's marks are by inode number (work/marks), and these files have others: mount the directories that were copied, and copy the mount"
    )]
    CopiedMarks,
    /// Whiteouts as devices in the upper, where they cannot be made.
    #[error(
        "the upper's whiteouts are character devices 0:0, which cannot be made here (with RENAME_WHITEOUT): {0}"
    )]
    NoWhiteouts(Errno),
    /// A feature that overlayfs marks an upper with.
    #[error(
        "the upper was written with the feature \"{0}\", which may have left it incomplete: use an empty upper and work directory, or remove work/incompat/{0} from the work directory if it is whole"
    )]
    Incompatible(String),
    /// Renames between them fail.
    #[error("the upper and its work directory are on different file systems")]
    TwoFileSystems,
    /// The host.
    #[error("{what}: {errno}")]
    Host {
        /// The attempted step.
        what: &'static str,
        /// The error.
        errno: Errno,
    },
}

/// Adds the step that failed.
fn host(what: &'static str) -> impl FnOnce(Errno) -> UpperError {
    move |errno| UpperError::Host { what, errno }
}

/// What an upper held when it was opened.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Condition {
    /// Empty and unstamped: apply the tree root's attributes, then call [`Upper::stamp`].
    Empty,
    /// Files without a stamp: keep the root's attributes, then call [`Upper::stamp`].
    Unstamped,
    /// Stamped with the chain and numbering of this tree.
    Stamped,
    /// Over plain directories: it bears no stamp, and its root has the attributes to show.
    Plain,
}

/// What the files in `work/orphans` are.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Orphans {
    /// Of a mount that has ended.
    Left,
    /// Of this mount.
    Open,
}

/// What an upper covers.
#[derive(Copy, Clone, Debug)]
pub enum Base<'s> {
    /// A merged tree.
    Tree {
        /// What the upper is bound to it by.
        stamp: &'s Stamp,
        /// Nothing is synced: the caller drops the upper if the machine has booted again.
        volatile: bool,
    },
    /// Plain directories.
    Plain {
        /// Marks are in `user.` also where `trusted.` works.
        user_marks: bool,
        /// Nothing is synced: the upper is marked, and refused afterwards.
        volatile: bool,
    },
}

impl Base<'_> {
    /// How marks over it are spelled.
    pub const fn spelling(self) -> Spelling {
        match self {
            Self::Tree { .. } => Spelling::Tree,
            Self::Plain { .. } => Spelling::Plain,
        }
    }

    const fn is_volatile(self) -> bool {
        match self {
            Self::Tree { volatile, .. } | Self::Plain { volatile, .. } => volatile,
        }
    }
}

/// The locks of an upper, for one mount: they hold as long as any process has these descriptors.
#[derive(Debug)]
pub struct Locks {
    work: OwnedFd,
    _root: OwnedFd,
}

impl Locks {
    /// Locks an upper, or says that it is in use.
    ///
    /// # Locking
    /// `work/lock` and the upper's root, exclusively, without waiting. Both, since a second mount
    /// may use the same upper with another work directory.
    pub fn take(root: BorrowedFd<'_>, work: BorrowedFd<'_>) -> Result<Self, UpperError> {
        Ok(Self {
            work: probe::lock_work(work)?,
            _root: probe::lock_root(root)?,
        })
    }
}

/// An upper, locked for one mount. The caller orders changes.
#[derive(Debug)]
pub struct Upper {
    root: OwnedFd,
    tmp: OwnedFd,
    index: OwnedFd,
    orphans: OwnedFd,
    _locks: Option<Locks>,
    store: MarkStore,
    spelling: Spelling,
    whiteouts: Whiteouts,
    volatile: bool,
    condition: Condition,
    next_link: AtomicU64,
    next_number: AtomicU64,
    /// The number in `work/tmp` of the whiteout to link to; 0: none yet.
    whiteout: AtomicU64,
}

impl Upper {
    /// Locks the upper for the life of the value, removes an earlier mount's unfinished files,
    /// probes the file system and compares the stamp. What the work directory has of a removed
    /// upper is dropped.
    pub fn open(root: OwnedFd, work: &OwnedFd, base: Base<'_>) -> Result<Self, UpperError> {
        let locks = Locks::take(root.as_fd(), work.as_fd())?;
        Self::open_locked(root, work, locks, base)
    }

    /// As [`open`](Self::open), of an upper that is locked.
    pub fn open_locked(
        root: OwnedFd,
        work: &OwnedFd,
        locks: Locks,
        base: Base<'_>,
    ) -> Result<Self, UpperError> {
        probe::refuse_incompatible(work.as_fd())?;
        Self::open_with(root, work, locks, base, Orphans::Left)
    }

    /// As [`open_locked`](Self::open_locked), after a worker that died while the mount lives:
    /// removed files that are still open stay, and so does its own mark of a volatile upper.
    pub fn reopen(
        root: OwnedFd,
        work: &OwnedFd,
        locks: Locks,
        base: Base<'_>,
    ) -> Result<Self, UpperError> {
        Self::open_with(root, work, locks, base, Orphans::Open)
    }

    fn open_with(
        root: OwnedFd,
        work: &OwnedFd,
        locks: Locks,
        base: Base<'_>,
        kept: Orphans,
    ) -> Result<Self, UpperError> {
        let lock = locks.work.as_fd();
        let tmp = subdirectory(work.as_fd(), b"tmp")?;
        // The kernel's overlayfs has an index/ of its own.
        let index = match base {
            Base::Tree { .. } => subdirectory(work.as_fd(), b"index")?,
            Base::Plain { .. } => subdirectory(work.as_fd(), b"links")?,
        };
        let orphans = subdirectory(work.as_fd(), b"orphans")?;
        empty(tmp.as_fd()).map_err(host("emptying work/tmp"))?;
        if kept == Orphans::Left {
            empty(orphans.as_fd()).map_err(host("emptying work/orphans"))?;
        }
        probe::check_same_file_system(root.as_fd(), tmp.as_fd())?;
        probe::drop_default_acl(tmp.as_fd())?;
        let (is_new, recorded) = find_record(root.as_fd(), work.as_fd(), lock)?;
        let only_user = matches!(
            base,
            Base::Plain {
                user_marks: true,
                ..
            }
        );
        let record = if let Some(record) = recorded {
            record.check(tmp.as_fd())?
        } else {
            let record = probe::write_record(lock, tmp.as_fd(), only_user)?;
            if !base.is_volatile() {
                probe::sync_record(work.as_fd(), lock)?;
            }
            record
        };
        let store = match record.space {
            Some(space) => MarkStore::Xattrs(space),
            None => MarkStore::Links(MarkLinks::open(work.as_fd(), root.as_fd(), is_new)?),
        };
        let (condition, is_of_this_upper) = match base {
            Base::Tree { stamp, .. } => {
                let condition = probe::compare_stamp(root.as_fd(), &store, stamp)?;
                (condition, condition == Condition::Stamped)
            }
            Base::Plain { .. } => {
                // A mount that changed hard links only has left the upper empty, but for the mark.
                let impure = scan::is_impure(root.as_fd(), &store);
                let impure = impure.map_err(host("reading the upper's marks"))?;
                let condition = probe::refuse_stamp(root.as_fd(), &store)?;
                (condition, !is_new || impure)
            }
        };
        if !is_of_this_upper {
            // Left by a removed upper. Durable before the stamp: an old index must not come back
            // to a stamped upper.
            empty(index.as_fd()).map_err(host("emptying work/index"))?;
            if !base.is_volatile() {
                rustix::fs::fsync(&index).map_err(host("emptying work/index"))?;
            }
        }
        if let MarkStore::Links(links) = &store
            && !is_of_this_upper
        {
            links.clear().map_err(host("emptying work/marks"))?;
        }
        if matches!(base, Base::Plain { volatile: true, .. }) {
            probe::mark_volatile(work.as_fd())?;
        }
        let last_link = last_number(index.as_fd()).map_err(host("reading work/index"))?;
        let last_orphan = last_number(orphans.as_fd()).map_err(host("reading work/orphans"))?;
        let upper = Self {
            root,
            tmp,
            index,
            orphans,
            _locks: Some(locks),
            store,
            spelling: base.spelling(),
            whiteouts: record.whiteouts,
            volatile: base.is_volatile(),
            condition,
            next_link: AtomicU64::new(last_link + 1),
            next_number: AtomicU64::new(last_orphan + 1),
            whiteout: AtomicU64::new(0),
        };
        Ok(upper)
    }

    /// Opens the upper of a mount over a tree, to be read while nothing changes in the mount. It
    /// takes no lock and writes nothing.
    ///
    /// # Errors
    /// An upper that no mount has written to, or one over another tree.
    pub fn of_mount(root: OwnedFd, work: &OwnedFd, stamp: &Stamp) -> Result<Self, UpperError> {
        let recorded = probe::recorded(work.as_fd())?;
        let recorded = recorded.ok_or_else(|| host("reading work/lock")(Errno::INVAL));
        let Record { space, whiteouts } = recorded?;
        let store = match space {
            Some(space) => MarkStore::Xattrs(space),
            None => MarkStore::Links(MarkLinks::of_mount(work.as_fd(), root.as_fd())?),
        };
        let condition = probe::compare_stamp(root.as_fd(), &store, stamp)?;
        let open = |name: &[u8]| {
            open_directory(work.as_fd(), name).map_err(host("opening the work directory"))
        };
        Ok(Self {
            tmp: open(b"tmp")?,
            index: open(b"index")?,
            orphans: open(b"orphans")?,
            _locks: None,
            root,
            store,
            spelling: Spelling::Tree,
            whiteouts,
            volatile: false,
            condition,
            next_link: AtomicU64::new(0),
            next_number: AtomicU64::new(0),
            whiteout: AtomicU64::new(0),
        })
    }

    /// The upper's root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// `work/tmp`.
    pub fn tmp(&self) -> BorrowedFd<'_> {
        self.tmp.as_fd()
    }

    /// `work/index`.
    pub fn index(&self) -> BorrowedFd<'_> {
        self.index.as_fd()
    }

    /// `work/orphans`.
    pub fn orphans(&self) -> BorrowedFd<'_> {
        self.orphans.as_fd()
    }

    /// Where the marks are.
    pub fn mark_store(&self) -> &MarkStore {
        &self.store
    }

    /// Whether a new file must be made in `work/tmp`, and [`mark_new`](Self::mark_new) called for
    /// it before it gets its name.
    pub fn stages_new_files(&self) -> bool {
        matches!(self.store, MarkStore::Links(_))
    }

    /// Frees a new file from the marks that an earlier one of its inode number had.
    pub fn mark_new(&self, name_at: NameAt<'_>) -> rustix::io::Result<()> {
        match &self.store {
            MarkStore::Xattrs(_) => Ok(()),
            MarkStore::Links(links) => links.forget(name_at),
        }
    }

    /// Drops the marks of a file that is gone, by its inode number.
    pub fn drop_marks(&self, inode: u64) -> rustix::io::Result<()> {
        match &self.store {
            MarkStore::Xattrs(_) => Ok(()),
            MarkStore::Links(links) => links.remove_all(inode),
        }
    }

    /// Drops the marks of files that are gone. Reads every directory of an upper whose marks are
    /// links, and nothing of others. The caller changes nothing meanwhile.
    pub fn sweep_marks(&self) -> rustix::io::Result<()> {
        match &self.store {
            MarkStore::Xattrs(_) => Ok(()),
            MarkStore::Links(links) => links.sweep([self.root(), self.index(), self.orphans()]),
        }
    }

    /// Makes the marks of a file durable that is not synced itself with them.
    pub fn sync_marks(&self) -> rustix::io::Result<()> {
        match &self.store {
            MarkStore::Xattrs(_) => Ok(()),
            MarkStore::Links(links) => links.sync(),
        }
    }

    /// How the marks are spelled.
    pub fn spelling(&self) -> Spelling {
        self.spelling
    }

    /// A number that no file in `work/index` has.
    pub fn new_link_number(&self) -> u64 {
        self.next_link.fetch_add(1, Ordering::Relaxed)
    }

    /// What it held when it was opened.
    pub fn condition(&self) -> Condition {
        self.condition
    }

    /// Writes the stamp on the root and makes it durable, unless the upper is volatile: from here
    /// on the upper belongs to this tree.
    pub fn stamp(&self, stamp: &Stamp) -> Result<(), UpperError> {
        let root = NameAt::new(self.root(), b".");
        root.set_mark(&self.store, Mark::Stamp, &stamp.encode())
            .map_err(host("stamping the upper"))?;
        if self.volatile {
            return Ok(());
        }
        rustix::fs::fsync(&self.root)
            .and_then(|()| self.sync_marks())
            .map_err(host("stamping the upper"))
    }

    /// A number that no file in `work/tmp` or `work/orphans` has or ever had in this mount.
    pub fn new_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Such a number as the name of a file.
    pub fn new_name(&self) -> Vec<u8> {
        self.new_number().to_string().into_bytes()
    }

    /// The numbers of the files in `work/index`: over a tree, of their nodes.
    pub fn indexed(&self) -> rustix::io::Result<Vec<u64>> {
        numbers_in(self.index())
    }

    /// The numbers of the files in `work/orphans`.
    pub fn orphaned(&self) -> rustix::io::Result<Vec<u64>> {
        numbers_in(self.orphans())
    }

    /// The name of the file with a number in `work/index`.
    pub fn index_name(number: u64) -> Vec<u8> {
        number.to_string().into_bytes()
    }
}

/// Whether an upper is new, and how it is written. What is recorded for a new one is a removed
/// one's.
fn find_record(
    root: BorrowedFd<'_>,
    work: BorrowedFd<'_>,
    lock: BorrowedFd<'_>,
) -> Result<(bool, Option<Record>), UpperError> {
    let recorded = probe::record(lock)?;
    let has_links = recorded.is_some_and(|record| record.space.is_none());
    let is_new = probe::is_new(root)? && !(has_links && MarkLinks::mark_upper(work, root)?);
    Ok((is_new, recorded.filter(|_| !is_new)))
}

/// How an upper hides names, by its work directory; None before its first mount.
pub fn recorded_whiteouts(work: BorrowedFd<'_>) -> Result<Option<Whiteouts>, UpperError> {
    Ok(probe::recorded(work)?.map(|record| record.whiteouts))
}

/// Locks an open file without waiting; the lock ends with the process.
fn try_lock(file: BorrowedFd<'_>) -> Result<(), UpperError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(UpperError::InUse),
        Err(errno) => Err(host("locking the upper")(errno)),
    }
}

#[cfg(test)]
mod tests;
