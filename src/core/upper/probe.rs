//! Probes what the upper's file system and this process can do, once, when an upper is opened.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::mark_links;
use super::marks::{Mark, MarkStore, Namespace, Stamp};
use super::name_at::{NameAt, is_whiteout};
use super::whiteouts::Whiteouts;
use super::{Condition, UpperError, each_entry, host, try_lock};

/// Opens and locks `work/lock`.
pub(super) fn lock_work(work: BorrowedFd<'_>) -> Result<OwnedFd, UpperError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(work, "lock", flags, Mode::RUSR | Mode::WUSR)
        .map_err(host("opening work/lock"))?;
    try_lock(std::os::fd::AsFd::as_fd(&file))?;
    Ok(file)
}

/// Locks the upper's root through a new open file description: other processes may hold the given
/// one longer.
pub(super) fn lock_root(root: BorrowedFd<'_>) -> Result<OwnedFd, UpperError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir =
        rustix::fs::openat(root, ".", flags, Mode::empty()).map_err(host("opening the upper"))?;
    try_lock(std::os::fd::AsFd::as_fd(&dir))?;
    Ok(dir)
}

/// Upper and work must be one file system: a change ends in a rename from one to the other.
pub(super) fn check_same_file_system(
    root: BorrowedFd<'_>,
    tmp: BorrowedFd<'_>,
) -> Result<(), UpperError> {
    let device = |dir| -> Result<(u32, u32), UpperError> {
        let stat = NameAt::new(dir, b".")
            .stat()
            .map_err(host("reading the upper"))?;
        Ok((stat.stx_dev_major, stat.stx_dev_minor))
    };
    if device(root)? == device(tmp)? {
        Ok(())
    } else {
        Err(UpperError::TwoFileSystems)
    }
}

/// Removes a default ACL that the work directory inherited, so that files created in it do not
/// inherit it.
pub(super) fn drop_default_acl(tmp: BorrowedFd<'_>) -> Result<(), UpperError> {
    match NameAt::new(tmp, b".").remove_xattr(b"system.posix_acl_default") {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(errno) => Err(host("removing the default ACL of work/tmp")(errno)),
    }
}

/// Where overlayfs keeps the names of features that a kernel without them would do harm to
/// (`OVL_WORKDIR_NAME` and `ovl_workdir_cleanup_recurse` in fs/overlayfs).
const INCOMPATIBLE: &str = "work/incompat";

/// Refuses an upper whose work directory names such a feature, as overlayfs does. A volatile mount
/// leaves one for good, also when it was unmounted: nothing says whether the machine has run on
/// since.
pub(super) fn refuse_incompatible(work: BorrowedFd<'_>) -> Result<(), UpperError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let features = match rustix::fs::openat(work, INCOMPATIBLE, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(host("opening work/incompat of the work directory")(errno)),
    };
    let mut found = None;
    each_entry(std::os::fd::AsFd::as_fd(&features), |name, _, _| {
        found = Some(String::from_utf8_lossy(name).into_owned());
        Ok(())
    })
    .map_err(host("reading work/incompat of the work directory"))?;
    found.map_or(Ok(()), |feature| Err(UpperError::Incompatible(feature)))
}

/// Leaves overlayfs's mark of a volatile upper. It is not synced: a journal writes it no later than
/// what the mount changes after it.
pub(super) fn mark_volatile(work: BorrowedFd<'_>) -> Result<(), UpperError> {
    let what = "marking the upper as volatile";
    let path = INCOMPATIBLE.to_owned() + "/volatile";
    for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
        let directory = path.get(..end).unwrap_or_default();
        match rustix::fs::mkdirat(work, directory, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(host(what)(errno)),
        }
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(work, path + "/dirty", flags, Mode::empty()) {
        Ok(_) => Ok(()),
        Err(errno) => Err(host(what)(errno)),
    }
}

/// Makes a whiteout by RENAME_WHITEOUT, which tests device nodes and the flag at once; returns why
/// that cannot be.
fn try_devices(tmp: BorrowedFd<'_>) -> Result<Result<(), Errno>, UpperError> {
    let (from, to) = (NameAt::new(tmp, b"probe"), NameAt::new(tmp, b"probed"));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    drop(
        rustix::fs::openat(tmp, from.name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(host("writing to work/tmp"))?,
    );
    let tried = from.rename(to, RenameFlags::WHITEOUT);
    let made = from.stat().map(|stat| is_whiteout(&stat));
    for name_at in [from, to] {
        match name_at.unlink() {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(host("writing to work/tmp")(errno)),
        }
    }
    Ok(match (tried, made) {
        (Ok(()), Ok(true)) => Ok(()),
        (Err(errno), _) => Err(errno),
        (Ok(()), _) => Err(Errno::OPNOTSUPP),
    })
}

/// Whether no mount has written to the upper: it has no entries and no stamp. (A stamp in
/// `trusted.` is invisible without privilege, but there is nothing to lose.)
pub(super) fn is_new(root: BorrowedFd<'_>) -> Result<bool, UpperError> {
    let name_at = NameAt::new(root, b".");
    for space in [Namespace::Trusted, Namespace::User] {
        let stamp = name_at.xattr(Mark::Stamp.name(space).as_bytes());
        if stamp.map_err(host("reading the upper's stamp"))?.is_some() {
            return Ok(false);
        }
    }
    has_entries(root).map(|entries| !entries)
}

fn has_entries(root: BorrowedFd<'_>) -> Result<bool, UpperError> {
    let mut entries = false;
    each_entry(root, |_, _, _| {
        entries = true;
        Ok(())
    })
    .map_err(host("reading the upper"))?;
    Ok(entries)
}

/// How an upper is written, as its first mount found out and `work/lock` keeps it.
///
/// It is recorded, durably, before the first mark: without privilege marks in `trusted.` are
/// invisible, and where both namespaces work marks in the other one would be ignored. So would
/// whiteouts of the other kind.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Record {
    /// The namespace of the marks; None: they are links in `work/marks`.
    pub(super) space: Option<Namespace>,
    pub(super) whiteouts: Whiteouts,
}

const RECORDS: [(&[u8], Record); 6] = {
    const fn record(space: Option<Namespace>, whiteouts: Whiteouts) -> Record {
        Record { space, whiteouts }
    }
    const TRUSTED: Option<Namespace> = Some(Namespace::Trusted);
    const USER: Option<Namespace> = Some(Namespace::User);
    [
        (b"trusted\n", record(TRUSTED, Whiteouts::Devices)),
        (b"user\n", record(USER, Whiteouts::Devices)),
        (b"links\n", record(None, Whiteouts::Devices)),
        (b"trusted .wh.\n", record(TRUSTED, Whiteouts::Files)),
        (b"user .wh.\n", record(USER, Whiteouts::Files)),
        (b"links .wh.\n", record(None, Whiteouts::Files)),
    ]
};

impl Record {
    /// Refuses a way that does not work here.
    pub(super) fn check(self, tmp: BorrowedFd<'_>) -> Result<Self, UpperError> {
        match self.space {
            None => {}
            Some(space) if accepts(tmp, space)? => {}
            Some(Namespace::Trusted) => return Err(UpperError::NeedsPrivilege),
            Some(Namespace::User) => return Err(UpperError::NoXattrs("user.")),
        }
        if self.whiteouts == Whiteouts::Devices {
            try_devices(tmp)?.map_err(UpperError::NoWhiteouts)?;
        }
        Ok(self)
    }
}

/// What is recorded, if anything is.
pub(super) fn record(lock: BorrowedFd<'_>) -> Result<Option<Record>, UpperError> {
    let mut text = [0; 32];
    let length = rustix::io::pread(lock, &mut text, 0).map_err(host("reading work/lock"))?;
    let text = text.get(..length).unwrap_or_default();
    // New, or zeroed by a power cut before it was synced: there are no marks yet.
    if text.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let found = RECORDS.iter().find(|(known, _)| *known == text);
    found.map(|(_, record)| Some(*record)).ok_or_else(|| {
        host("reading work/lock, which has no words that this version of cowl knows")(Errno::INVAL)
    })
}

/// Finds out how an upper is to be written, and records it: marks in `trusted.` if that works and
/// unless `only_user`, else in `user.`, else as links; whiteouts as devices, else as files.
pub(super) fn write_record(
    lock: BorrowedFd<'_>,
    tmp: BorrowedFd<'_>,
    only_user: bool,
) -> Result<Record, UpperError> {
    let space = if !only_user && accepts(tmp, Namespace::Trusted)? {
        Some(Namespace::Trusted)
    } else if accepts(tmp, Namespace::User)? {
        Some(Namespace::User)
    } else if mark_links::are_possible(tmp)? {
        None
    } else {
        return Err(UpperError::NoXattrs("trusted. or user."));
    };
    let whiteouts = match try_devices(tmp)? {
        Ok(()) => Whiteouts::Devices,
        Err(_cannot_be_made) => Whiteouts::Files,
    };
    let record = Record { space, whiteouts };
    let text = RECORDS.iter().find(|(_, known)| *known == record);
    let text = text.map(|(text, _)| *text).unwrap_or_default();
    rustix::fs::ftruncate(lock, 0).map_err(host("writing work/lock"))?;
    rustix::io::pwrite(lock, text, 0).map_err(host("writing work/lock"))?;
    Ok(record)
}

/// Makes what [`write_record`] has written durable.
pub(super) fn sync_record(work: BorrowedFd<'_>, lock: BorrowedFd<'_>) -> Result<(), UpperError> {
    for written in [lock, work] {
        rustix::fs::fsync(written).map_err(host("writing work/lock"))?;
    }
    Ok(())
}

/// What a mount has recorded in a work directory, if there was one.
pub(super) fn recorded(work: BorrowedFd<'_>) -> Result<Option<Record>, UpperError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(work, "lock", flags, Mode::empty()) {
        Ok(lock) => record(std::os::fd::AsFd::as_fd(&lock)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(host("opening work/lock")(errno)),
    }
}

/// Whether marks of a namespace work: sets one on `work/tmp` and reads it back. In a user
/// namespace either may fail.
fn accepts(tmp: BorrowedFd<'_>, space: Namespace) -> Result<bool, UpperError> {
    let name_at = NameAt::new(tmp, b".");
    match name_at.set_xattr(
        Mark::Impure.name(space).as_bytes(),
        b"y",
        XattrFlags::empty(),
    ) {
        Ok(()) => {}
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::ACCESS) => return Ok(false),
        Err(errno) => return Err(host("writing a mark")(errno)),
    }
    let store = &MarkStore::Xattrs(space);
    let read = name_at
        .mark(store, Mark::Impure)
        .map_err(host("reading a mark"))?;
    name_at
        .clear_mark(store, Mark::Impure)
        .map_err(host("removing a mark"))?;
    Ok(read.as_deref() == Some(b"y"))
}

/// An upper over plain directories must not have been written over an image.
pub(super) fn refuse_stamp(
    root: BorrowedFd<'_>,
    store: &MarkStore,
) -> Result<Condition, UpperError> {
    match NameAt::new(root, b".").mark(store, Mark::Stamp) {
        Ok(None) => Ok(Condition::Plain),
        Ok(Some(_)) => Err(UpperError::OverImage),
        Err(errno) => Err(host("reading the upper's stamp")(errno)),
    }
}

/// How the upper was found; an error if it belongs to another tree.
pub(super) fn compare_stamp(
    root: BorrowedFd<'_>,
    store: &MarkStore,
    wanted: &Stamp,
) -> Result<Condition, UpperError> {
    let read = NameAt::new(root, b".")
        .mark(store, Mark::Stamp)
        .map_err(host("reading the upper's stamp"))?;
    let Some(bytes) = read else {
        return Ok(if has_entries(root)? {
            Condition::Unstamped
        } else {
            Condition::Empty
        });
    };
    let found = Stamp::decode(&bytes)?;
    if found.chain != wanted.chain {
        return Err(UpperError::OtherChain {
            found: found.chain,
            wanted: wanted.chain,
        });
    }
    if found.numbering != wanted.numbering {
        return Err(UpperError::OtherNumbering {
            found: found.numbering,
            wanted: wanted.numbering,
        });
    }
    Ok(Condition::Stamped)
}
