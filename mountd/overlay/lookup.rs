//! Lookup: the upper's name first, then the lower's. A directory of the upper is listed once; the
//! marks of a name are read at its lookup.

use std::os::fd::{AsFd, BorrowedFd};

use cowl_core::tree::FileType;
use cowl_core::upper::Upper;
use cowl_core::upper::name_at::{NameAt, times};
use cowl_core::upper::scan::{self, Listed, MarkError, Marks};
use rustix::fs::{FileType as HostType, Statx};

use super::attrs::timestamp;
use super::dir::{Dirent, Target, Under};
use super::event::Event;
use super::lower::Child;
use super::node::{Home, Unsynced, UpperFile};
use super::state::State;
use super::types::{Attr, Entry, Errno, LowerIno, NodeId};
use super::{Overlay, new_file};

/// Longest name of a file (NAME_MAX).
const NAME_MAX: usize = 255;

/// What is at a name.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Resolved {
    pub(super) id: NodeId,
    pub(super) file_type: FileType,
}

/// Checks that a name is one component and not too long.
pub(super) fn check_name(name: &[u8]) -> Result<(), Errno> {
    match name {
        b"" => Err(Errno::NOENT),
        b"." | b".." => Err(Errno::INVAL),
        _ if name.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
        _ if name.iter().any(|byte| matches!(byte, b'/' | 0)) => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

/// As [`check_name`], for a name that the upper is to have: EINVAL for one that only whiteouts
/// have.
pub(super) fn check_new_name(upper: &Upper, name: &[u8]) -> Result<(), Errno> {
    check_name(name)?;
    if upper.can_name(name) {
        Ok(())
    } else {
        Err(Errno::INVAL)
    }
}

/// The lower directory that a directory merges with.
pub(super) fn lower_side(state: &State, dir: NodeId) -> Option<LowerIno> {
    match state.node(dir) {
        None => dir.lower(),
        Some(node) if node.gone().is_some() => None,
        Some(node) => match &node.upper {
            Some(file) if file.opaque => None,
            _ => node.origin,
        },
    }
}

/// What came of reading the marks of a name.
enum Named {
    Read,
    /// Not yet: a crash interrupted the copy of this node's content, which is to be guarded.
    Interrupted(NodeId),
}

/// Where a name of a directory that was read is to be found.
enum Found {
    /// The upper says what it is, or that it is nothing.
    Upper(Option<Resolved>),
    /// In this directory of the lower, if in any.
    Below(Option<LowerIno>),
}

fn found_in_upper(state: &State, dir: NodeId, name: &[u8]) -> Result<Found, Errno> {
    if state
        .node(dir)
        .is_some_and(|node| node.file_type != FileType::Directory)
    {
        return Err(Errno::NOTDIR);
    }
    let dirent = state.dir(dir).and_then(|table| table.dirent(name));
    match dirent.map(|dirent| dirent.target) {
        Some(Target::Whiteout) => Ok(Found::Upper(None)),
        Some(Target::Node(id, file_type)) => Ok(Found::Upper(Some(Resolved { id, file_type }))),
        Some(Target::Unread { .. }) => Err(Errno::IO),
        None => Ok(Found::Below(lower_side(state, dir))),
    }
}

impl Overlay {
    /// Looks a name up. None: no such file; the kernel may cache that.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Option<Entry>, Errno> {
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let Some(resolved) = self.resolve(parent, name)? else {
            return Ok(None);
        };
        self.entry(resolved.id).map(Some)
    }

    /// A node with its attributes, counted as looked up.
    pub(super) fn entry(&self, id: NodeId) -> Result<Entry, Errno> {
        let entry = self.entry_with(id, |id| self.getattr(id))?;
        self.count_lookup(id);
        Ok(entry)
    }

    /// A node with the attributes that `read` returns, and whether the kernel may cache them.
    pub(super) fn entry_with(
        &self,
        id: NodeId,
        read: impl FnOnce(NodeId) -> Result<Attr, Errno>,
    ) -> Result<Entry, Errno> {
        let settled = !self.is_written_in_passthrough(id);
        let attr = read(id)?;
        let settled = settled && !self.is_written_in_passthrough(id);
        Ok(Entry { id, attr, settled })
    }

    /// Counts a lookup, of unchanged lower nodes too, since they may be changed later.
    pub(super) fn count_lookup(&self, id: NodeId) {
        if self.upper.is_none() {
            return;
        }
        match id.lower() {
            Some(node) => self.state.read().lower_lookups().add(node),
            None => self.commit(|_| [Event::Looked { node: id }]),
        }
    }

    /// Subtracts `count` lookups of a node (FORGET).
    pub fn forget(&self, id: NodeId, count: u64) {
        if self.upper.is_none() {
            return;
        }
        {
            let state = self.state.read();
            if let (Some(node), None) = (id.lower(), state.node(id)) {
                return state.lower_lookups().subtract(node, count);
            }
        }
        self.commit(|_| [Event::Forgotten { node: id, count }]);
        self.drop_orphan(id);
    }

    /// What is at a name.
    pub(super) fn resolve(&self, dir: NodeId, name: &[u8]) -> Result<Option<Resolved>, Errno> {
        self.ensure_read(dir)?;
        if let Some(Target::Unread { .. }) = self.dirent(dir, name).map(|dirent| dirent.target) {
            self.read_name(dir, name)?;
        }
        loop {
            let found = found_in_upper(&self.state.read(), dir, name)?;
            let lower = match found {
                Found::Upper(resolved) => return Ok(resolved),
                Found::Below(lower) => lower,
            };
            let child = self.lower_child(lower, name)?;
            let state = self.state.read();
            match found_in_upper(&state, dir, name)? {
                Found::Upper(resolved) => return Ok(resolved),
                Found::Below(now) if now != lower => {} // changed by another thread meanwhile
                Found::Below(_) => {
                    let Some(Child { node, file_type }) = child else {
                        return Ok(None);
                    };
                    let id = state.id_of(node);
                    if state.is_damaged(id) {
                        return Err(Errno::IO);
                    }
                    return Ok(Some(Resolved { id, file_type }));
                }
            }
        }
    }

    /// What the upper has at a name of a directory that was read.
    pub(super) fn dirent(&self, dir: NodeId, name: &[u8]) -> Option<Dirent> {
        self.state.read().dir(dir)?.dirent(name)
    }

    /// What the lower has at a name.
    pub(super) fn under(&self, dir: NodeId, name: &[u8]) -> Result<Under, Errno> {
        let lower = lower_side(&self.state.read(), dir);
        self.under_in(lower, name)
    }

    fn under_in(&self, lower: Option<LowerIno>, name: &[u8]) -> Result<Under, Errno> {
        Ok(match self.lower_child(lower, name)? {
            None => Under::Nothing,
            Some(child) if child.file_type == FileType::Directory => Under::Directory,
            Some(_) => Under::File,
        })
    }

    fn lower_child(&self, dir: Option<LowerIno>, name: &[u8]) -> Result<Option<Child>, Errno> {
        match dir {
            Some(dir) => self.lower.lookup(dir, name),
            None => Ok(None),
        }
    }

    /// Whether a directory's upper part is still to be read.
    pub(super) fn unread(&self, dir: NodeId) -> bool {
        let state = self.state.read();
        state.dir(dir).is_none()
            && state
                .node(dir)
                .is_some_and(|node| node.file_type == FileType::Directory && node.upper.is_some())
    }

    /// Reads the upper's part of a directory, if there is one and it was not read yet.
    pub(super) fn ensure_read(&self, dir: NodeId) -> Result<(), Errno> {
        if !self.unread(dir) {
            return Ok(());
        }
        let _guard = self.busy.lock(&[dir]);
        if self.unread(dir) {
            self.read_upper(dir)
        } else {
            Ok(())
        }
    }

    /// Lists a directory's upper part. The marks of a name are read when it is looked up. The
    /// caller guards the directory.
    pub(super) fn read_upper(&self, dir: NodeId) -> Result<(), Errno> {
        let upper = self.writable()?;
        let fd = self.dir_fd(dir)?;
        let impure = scan::is_impure(fd.as_fd(), upper.mark_store())?;
        let lower = lower_side(&self.state.read(), dir);
        let mut names = Vec::new();
        let mut strays = Vec::new();
        let (whiteouts, spelling) = (upper.whiteouts(), upper.spelling());
        scan::list(fd.as_fd(), whiteouts, spelling, |name, listed| {
            if matches!(listed, Listed::DeviceWhiteout | Listed::NeedlessWhiteout) {
                strays.push((name.to_vec(), listed));
            }
            let target = match listed {
                Listed::NeedlessWhiteout => return Ok(()),
                Listed::Whiteout | Listed::DeviceWhiteout => Target::Whiteout,
                Listed::File { file_type, inode } => Target::Unread {
                    file_type,
                    host: inode,
                },
            };
            names.push((name.into(), target, self.under_in(lower, name)?));
            Ok(())
        })?;
        tidy_whiteouts(upper, fd.as_fd(), &strays)?;
        let (subdirs, visible) = match lower {
            Some(lower) => (
                self.lower.subdir_count(lower)?,
                u64::from(self.lower.child_count(lower)?),
            ),
            None => (0, 0),
        };
        self.commit(|_| {
            [Event::DirRead {
                dir,
                subdirs,
                visible,
                impure,
                names,
            }]
        });
        Ok(())
    }

    /// Reads the marks of a listed name. EIO if they are invalid.
    ///
    /// # Locking
    /// Guards the directory; the caller must hold no guard, so look names up before taking guards.
    fn read_name(&self, dir: NodeId, name: &[u8]) -> Result<(), Errno> {
        let mut guarded = vec![dir];
        while let Named::Interrupted(node) = self.read_name_guarded(dir, name, &guarded)? {
            guarded = vec![dir, node];
        }
        Ok(())
    }

    /// As [`read_name`](Self::read_name), under these guards. A copy of content that a crash
    /// interrupted is undone with its node guarded as well: another name of the file may be looked
    /// up at this moment. Of a file that this mount knows by another name, the copy is running.
    fn read_name_guarded(
        &self,
        dir: NodeId,
        name: &[u8],
        guarded: &[NodeId],
    ) -> Result<Named, Errno> {
        let upper = self.writable()?;
        let _guard = self.busy.lock(guarded);
        let (target, impure) = {
            let state = self.state.read();
            let Some(table) = state.dir(dir) else {
                return Ok(Named::Read);
            };
            (table.dirent(name).map(|dirent| dirent.target), table.impure)
        };
        let Some(Target::Unread { file_type, host }) = target else {
            return Ok(Named::Read); // by another thread
        };
        let fd = self.dir_fd(dir)?;
        let name_at = NameAt::new(fd.as_fd(), name);
        let below = lower_side(&self.state.read(), dir);
        let store = upper.mark_store();
        let marks = scan::read_marks(name_at, file_type, store, &self.lower, below, impure)
            .map_err(|error| unreadable(name_at, &error))?;
        let file = upper_file(host, &marks);
        if let Some(saved) = &marks.interrupted {
            let (is_known, node) = {
                let state = self.state.read();
                let node = state.node_of_file(host, marks.file_type, marks.origin);
                (state.knows_file(host), node)
            };
            let node = node.ok_or_else(|| same_origin(name))?;
            if !is_known {
                if !guarded.contains(&node) {
                    return Ok(Named::Interrupted(node));
                }
                self.undo_copying(name_at, &marks, saved)?;
            }
        }
        let mut taken = None;
        self.commit(|state| {
            let file_type = marks.file_type;
            taken = state.node_of_file(host, file_type, marks.origin);
            // A file that cannot bear marks is known by what a dead worker told of it.
            let origin = marks.origin.or(taken.and_then(NodeId::lower));
            taken.map(|node| Event::MarksRead {
                dir,
                name: name.into(),
                node,
                origin,
                file_type,
                file,
            })
        });
        let node = taken.ok_or_else(|| same_origin(name))?;
        self.adopt_orphan(upper, node)?;
        Ok(Named::Read)
    }

    /// Reads the marks of a file in `work/index`, with its node in the lower; `node` is what its
    /// number says it is, if that says anything.
    pub(super) fn read_indexed(
        &self,
        upper: &Upper,
        name_at: NameAt<'_>,
        node: Option<LowerIno>,
        stat: &Statx,
    ) -> Result<(Marks<LowerIno>, UpperFile), Errno> {
        let host_type = HostType::from_raw_mode(u32::from(stat.stx_mode));
        let host_type = scan::file_type(host_type).ok_or(Errno::IO)?;
        let store = upper.mark_store();
        let marks = scan::read_marks(name_at, host_type, store, &self.lower, None, true)
            .map_err(|error| unreadable(name_at, &error))?;
        let origin = node
            .or(marks.origin)
            .or_else(|| self.inherited_origin(stat.stx_ino));
        let origin = origin.ok_or(Errno::IO)?;
        let expected = self.lower.node(origin)?.stored_type() == host_type;
        if !expected || (store.marks(host_type) && marks.origin != Some(origin)) {
            tracing::error!(name = %name_at.name.escape_ascii(), "a file in work/index is not what its name says");
            return Err(Errno::IO);
        }
        if let Some(saved) = &marks.interrupted {
            self.undo_copying(name_at, &marks, saved)?;
        }
        let marks = Marks {
            origin: Some(origin),
            ..marks
        };
        let file = upper_file(stat.stx_ino, &marks);
        Ok((marks, file))
    }

    /// The node of the lower that a dead worker had copied up to a file of the upper, by its inode.
    fn inherited_origin(&self, host: u64) -> Option<LowerIno> {
        let node = self.state.read().inherited().node_of(host)?.lower()?;
        self.lower.node(node).is_ok().then_some(node)
    }

    /// Removes the orphan link of a file after one of its names was found.
    fn adopt_orphan(&self, upper: &Upper, node: NodeId) -> Result<(), Errno> {
        let home = self.upper_node(node).map(|(_, _, file)| file.home);
        let Some(Home::Orphan(number)) = home else {
            return Ok(());
        };
        NameAt::new(upper.orphans(), number.to_string().as_bytes()).unlink()?;
        self.commit(|_| {
            [Event::Moved {
                node,
                home: Home::Named,
            }]
        });
        Ok(())
    }
}

/// Makes the whiteouts of a directory what the state takes them for: files, and none beside its
/// name. A crash leaves such a file, and another overlay file system has devices. The directory
/// keeps its times.
fn tidy_whiteouts(
    upper: &Upper,
    dir: BorrowedFd<'_>,
    strays: &[(Vec<u8>, Listed)],
) -> Result<(), Errno> {
    if strays.is_empty() {
        return Ok(());
    }
    crate::sys::identity::own()?;
    let own = NameAt::new(dir, b".");
    let before = own.stat()?;
    for (name, listed) in strays {
        let name_at = NameAt::new(dir, name);
        match listed {
            Listed::NeedlessWhiteout => upper.drop_whiteout_file(name_at)?,
            _ => upper.respell(name_at)?,
        }
    }
    own.utimens(&times(
        timestamp(before.stx_atime),
        timestamp(before.stx_mtime),
    ))
}

/// The state of a file at its name. A copy-up by an earlier mount may not be durable yet.
pub(super) fn upper_file(host: u64, marks: &Marks<LowerIno>) -> UpperFile {
    let copied_up = marks.origin.is_some();
    UpperFile {
        metadata_only: marks.metadata_only,
        opaque: marks.opaque,
        device: marks.device,
        link_delta: marks.link_delta.unwrap_or(0),
        unsynced: Unsynced {
            inode: copied_up,
            name: copied_up,
        },
        ..new_file(host)
    }
}

fn same_origin(name: &[u8]) -> Errno {
    tracing::error!(name = %name.escape_ascii(), "another file of the upper has the same origin");
    Errno::IO
}

fn unreadable(name_at: NameAt<'_>, error: &MarkError) -> Errno {
    if let MarkError::Host(errno) = error {
        return *errno;
    }
    tracing::error!(name = %name_at.name.escape_ascii(), %error, "a file of the upper cannot be used");
    Errno::IO
}
