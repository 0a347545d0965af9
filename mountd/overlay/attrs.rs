//! Attributes: getattr, readlink and setattr. A change copies up metadata; only a change of size
//! copies up content.

use cowl_core::tree::{FileType, Rdev, Timestamp};
use cowl_core::upper::name_at::NameAt;
use rustix::fs::{OFlags, Statx, Timespec, Timestamps};

use super::Overlay;
use super::busy::Guard;
use super::event::Event;
use super::lookup::lower_side;
use super::node::{Home, Node, UpperFile};
use super::opens::Serving;
use super::types::{Attr, Errno, LowerIno, NodeId, SetAttr, SetTime};

const SUID: u32 = 0o4000;
const SGID: u32 = 0o2000;
const GROUP_EXEC: u32 = 0o010;

/// Attribute reads without a guard that may lose a race with a change, before the node is guarded.
const MAX_ATTEMPTS: u32 = 3;

impl Overlay {
    /// `d_ino` and `st_ino` of a node.
    pub(super) fn ino(&self, source: InoSource) -> u64 {
        match source {
            InoSource::Lower(node) => self.lower.ino(node),
            InoSource::Host(host) => self.lower.ino_of_host(host),
            InoSource::Known(ino) => ino,
        }
    }

    /// The attributes of an upper file that has no origin.
    pub(super) fn attr_of_host(&self, stat: &Statx, file: &UpperFile, file_type: FileType) -> Attr {
        attr_of_host(stat, file, file_type, self.lower.ino_of_host(stat.stx_ino))
    }

    /// The attributes of a node.
    ///
    /// # Locking
    /// Takes no guard, unless it lost a race with a change three times.
    pub fn getattr(&self, id: NodeId) -> Result<Attr, Errno> {
        for _ in 0..MAX_ATTEMPTS {
            let id = self.current(id);
            let snapshot = self.masked.snapshot(id);
            let read = self.try_attr(id)?;
            if let Some(attr) = read.and_then(|attr| self.masked.apply(&snapshot, attr)) {
                return Ok(attr);
            }
        }
        let (id, _guard) = self.guard_current(id);
        self.attr_guarded(id)
    }

    /// Whether the node was renumbered: its attributes are then its successor's, and change
    /// without a request for this id.
    pub fn is_succeeded(&self, id: NodeId) -> bool {
        self.current(id) != id
    }

    /// The id of a node, or of its successor if it was renumbered.
    pub(super) fn current(&self, id: NodeId) -> NodeId {
        if self.upper.is_none() {
            return id;
        }
        let state = self.state.read();
        state.node(id).and_then(Node::successor).unwrap_or(id)
    }

    /// Guards a node, or its successor, which may itself be removed while this waits for its
    /// guard.
    pub(super) fn guard_current(&self, id: NodeId) -> (NodeId, Guard<'_>) {
        loop {
            let now = self.current(id);
            let guard = self.busy.lock(&[now]);
            if self.current(id) == now {
                return (now, guard);
            }
        }
    }

    /// Attributes of a node that the caller guards.
    pub(super) fn attr_guarded(&self, id: NodeId) -> Result<Attr, Errno> {
        if self.unread(id) {
            self.read_upper(id)?;
        }
        let read = self.try_attr(id)?.ok_or(Errno::STALE)?;
        Ok(self.masked.snapshot(id).apply_guarded(read))
    }

    /// None: the file was renamed, replaced or forgotten between reading the state and stat on the
    /// host.
    fn try_attr(&self, id: NodeId) -> Result<Option<Attr>, Errno> {
        let (file, origin, file_type) = {
            let state = self.state.read();
            let Some(node) = state.node(id) else {
                drop(state);
                let node = id.lower();
                return node.map(|node| Ok(self.lower.node(node)?.attr)).transpose();
            };
            match (&node.upper, node.gone()) {
                (Some(file), _) => (file.clone(), node.origin, node.file_type),
                (None, Some(attr)) => return Ok(Some(*attr)),
                (None, None) => return Ok(None),
            }
        };
        let Some(stat) = self.host_stat(id, &file)? else {
            return Ok(None);
        };
        let mut attr = self.attr_of_host(&stat, &file, file_type);
        if let Some(origin) = origin {
            attr.ino = self.lower.ino(origin);
        }
        if file_type == FileType::Directory {
            attr.nlink = self.directory_links(id, attr.nlink)?;
        }
        Ok(Some(attr))
    }

    fn host_stat(&self, id: NodeId, file: &UpperFile) -> Result<Option<Statx>, Errno> {
        if let Some(open) = self.files.upper_file(id) {
            let flags = rustix::fs::AtFlags::EMPTY_PATH;
            let stat = rustix::fs::statx(&*open, "", flags, rustix::fs::StatxFlags::BASIC_STATS)?;
            if stat.stx_ino == file.host {
                return Ok(Some(stat));
            }
        }
        let place = match self.place_of(id) {
            Ok(place) => place,
            Err(Errno::STALE | Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        match place.name_at().stat() {
            Ok(stat) if stat.stx_ino == file.host => Ok(Some(stat)),
            Ok(_) | Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// 2 + subdirectories. The host's count is right where the lower has no subdirectories; else
    /// the merged directory is counted.
    fn directory_links(&self, id: NodeId, host: u32) -> Result<u32, Errno> {
        let lower = lower_side(&self.state.read(), id);
        match lower
            .map(|lower| self.lower.subdir_count(lower))
            .transpose()?
        {
            None | Some(0) => return Ok(host),
            Some(_) => {}
        }
        self.ensure_read(id)?;
        Ok(self
            .state
            .read()
            .dir(id)
            .map_or(host, |table| table.subdirs.saturating_add(2)))
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, id: NodeId) -> Result<Vec<u8>, Errno> {
        if let Some(target) = id.lower().filter(|_| !self.in_upper(id)) {
            return Ok(self.lower.symlink_target(target)?.into_owned());
        }
        let _guard = self.busy.lock(&[id]);
        let place = self.place_of(id)?;
        let NameAt { dir, name } = place.name_at();
        Ok(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
    }

    /// Changes attributes and returns the new ones. `kill_priv` alone copies nothing up if there
    /// is no privilege to drop.
    pub fn setattr(&self, id: NodeId, set: &SetAttr) -> Result<Attr, Errno> {
        self.writable()?;
        let id = self.current(id);
        let wanted = SetAttr {
            kill_priv: false,
            ..*set
        };
        if wanted == SetAttr::default() {
            let attr = self.getattr(id)?;
            if !(set.kill_priv && self.has_privilege(id, &attr)?) {
                return Ok(attr);
            }
        }
        let file_type = self.type_of(id)?;
        if set.size.is_some() && file_type != FileType::Regular {
            return Err(if file_type == FileType::Directory {
                Errno::ISDIR
            } else {
                Errno::INVAL
            });
        }
        let no_file = file_type == FileType::Directory
            || set.is_times_only()
            || (set.size.is_none() && self.is_lost(id));
        if self.is_gone(id) && no_file {
            let _guard = self.busy.lock(&[id]);
            if !self.in_upper(id) {
                return self.change_removed(id, set);
            }
        }
        match set.size {
            Some(size) => self.copy_up_to_write(id, size)?,
            None => self.copy_up(id)?,
        }
        let _content = self.lock_content(id);
        let _guard = self.busy.lock(&[id]);
        // The host drops them itself where it changes an owner, for privileged callers too.
        if set.kill_priv && set.uid.is_none() && set.gid.is_none() {
            self.drop_privilege(id)?;
        }
        if let Some(size) = set.size {
            self.resize(id, size)?;
        }
        self.change_attributes(id, set)?;
        self.attr_guarded(id)
    }

    /// Changes the attributes of a removed node that has no upper file, in memory: directories
    /// that are still open; times of files, which the kernel's writeback cache sends for every
    /// unlinked file; files that were not open, as far as the kernel said (it opens devices and
    /// fifos itself, and `O_PATH` descriptors are never told). The caller guards it.
    fn change_removed(&self, id: NodeId, set: &SetAttr) -> Result<Attr, Errno> {
        let before = self.attr_guarded(id)?;
        let now = coarse_now();
        let time = |wanted, before| match wanted {
            None => before,
            Some(SetTime::Now) => now,
            Some(SetTime::At(moment)) => moment,
        };
        let attr = Attr {
            mode: set.mode.unwrap_or(before.mode),
            uid: set.uid.unwrap_or(before.uid),
            gid: set.gid.unwrap_or(before.gid),
            atime: time(set.atime, before.atime),
            mtime: time(set.mtime, before.mtime),
            ctime: now,
            ..before
        };
        let origin = self.origin_of(id);
        self.commit(|_| {
            [Event::Gone {
                node: id,
                file_type: attr.file_type,
                origin,
                attr,
            }]
        });
        Ok(attr)
    }

    fn resize(&self, id: NodeId, size: u64) -> Result<(), Errno> {
        if self.serving(id) == Some(Serving::Lower) {
            self.renumber(id)?;
            return Err(Errno::STALE); // the kernel retries after a new lookup
        }
        rustix::fs::ftruncate(self.place_of(id)?.open(OFlags::WRONLY)?, size)
    }

    fn change_attributes(&self, id: NodeId, set: &SetAttr) -> Result<(), Errno> {
        let place = self.place_of(id)?;
        let name_at = place.name_at();
        if set.uid.is_some() || set.gid.is_some() {
            name_at.chown(set.uid, set.gid)?;
        }
        if let Some(mode) = set.mode {
            if self
                .state
                .read()
                .node(id)
                .is_some_and(|node| node.file_type == FileType::Symlink)
            {
                return Err(Errno::OPNOTSUPP);
            }
            name_at.chmod(mode)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let times = Timestamps {
                last_access: timespec(set.atime),
                last_modification: timespec(set.mtime),
            };
            name_at.utimens(&times)?;
        }
        Ok(())
    }

    /// Whether a write without CAP_FSETID would drop a set-id bit or a capability.
    fn has_privilege(&self, id: NodeId, attr: &Attr) -> Result<bool, Errno> {
        if attr.file_type == FileType::Directory {
            return Ok(false);
        }
        if attr.mode & SUID != 0 || attr.mode & (SGID | GROUP_EXEC) == SGID | GROUP_EXEC {
            return Ok(true);
        }
        match self.getxattr(id, b"security.capability") {
            Ok(_) => Ok(true),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Clears set-user-id, set-group-id if the group may execute the file, and capabilities, as
    /// the kernel does before a write without `CAP_FSETID`. The caller guards the node, which must
    /// have an upper file.
    pub(super) fn drop_privilege(&self, id: NodeId) -> Result<(), Errno> {
        let place = self.place_of(id)?;
        let name_at = place.name_at();
        let mode = u32::from(name_at.stat()?.stx_mode);
        let mut kept = mode & !SUID;
        if mode & GROUP_EXEC != 0 {
            kept &= !SGID;
        }
        if kept != mode {
            name_at.chmod(kept)?;
        }
        match name_at.remove_xattr(b"security.capability") {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether a file has a capability. Writes to it must be requests, as to one with set-id bits:
    /// in passthrough the host would not clear them.
    pub(super) fn has_capability(&self, id: NodeId) -> Result<bool, Errno> {
        Ok(self.find_xattr(id, b"security.capability")?.is_some())
    }
}

/// The current time, by the clock that the host uses for files.
fn coarse_now() -> Timestamp {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    Timestamp {
        secs: now.tv_sec,
        nanos: u32::try_from(now.tv_nsec).unwrap_or(0),
    }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        Some(SetTime::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        },
        Some(SetTime::At(Timestamp { secs, nanos })) => Timespec {
            tv_sec: secs,
            tv_nsec: i64::from(nanos),
        },
    }
}

/// The attributes of an upper file without an origin, whose `st_ino` is `ino`.
fn attr_of_host(stat: &Statx, file: &UpperFile, file_type: FileType, ino: u64) -> Attr {
    let links = match file.home {
        Home::Named => i64::from(stat.stx_nlink),
        // One link is the one in work/index.
        Home::Index(_) => i64::from(stat.stx_nlink) - 1 + i64::from(file.link_delta),
        Home::Orphan(_) => i64::from(stat.stx_nlink) - 1,
    };
    let blocks = if file.metadata_only {
        stat.stx_size.div_ceil(512)
    } else {
        stat.stx_blocks
    };
    let rdev = if file.device {
        Rdev { major: 0, minor: 0 }
    } else {
        rdev_of(stat)
    };
    Attr {
        ino,
        size: stat.stx_size,
        blocks,
        atime: timestamp(stat.stx_atime),
        mtime: timestamp(stat.stx_mtime),
        ctime: timestamp(stat.stx_ctime),
        file_type,
        mode: u32::from(stat.stx_mode) & 0o7777,
        nlink: u32::try_from(links).unwrap_or(0),
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        rdev,
        blksize: stat.stx_blksize,
    }
}

pub(super) fn timestamp(time: rustix::fs::StatxTimestamp) -> Timestamp {
    Timestamp {
        secs: time.tv_sec,
        nanos: time.tv_nsec,
    }
}

pub(super) fn rdev_of(stat: &Statx) -> Rdev {
    Rdev {
        major: stat.stx_rdev_major,
        minor: stat.stx_rdev_minor,
    }
}

/// Where a node's `st_ino` comes from: from the state, without a call to the lower.
#[derive(Copy, Clone, Debug)]
pub(super) enum InoSource {
    /// A node of the lower, copied up or not.
    Lower(LowerIno),
    /// A file created in the upper, with this inode on the host.
    Host(u64),
    /// The number itself.
    Known(u64),
}

impl InoSource {
    pub(super) fn of(id: NodeId, node: Option<&Node>) -> InoSource {
        match node {
            Some(node) => match (node.origin, &node.upper) {
                (Some(origin), _) => InoSource::Lower(origin),
                (None, Some(file)) => InoSource::Host(file.host),
                (None, None) => InoSource::Known(node.gone().map_or(id.0, |attr| attr.ino)),
            },
            None => id.lower().map_or(InoSource::Known(id.0), InoSource::Lower),
        }
    }
}
