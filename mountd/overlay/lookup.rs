//! Lookup: the upper's name first, then the tree's. A directory of the upper is listed once; the
//! marks of a name are read at its lookup.

use std::os::fd::AsFd;

use cowl_core::tree::{FileType, TreeIno};
use cowl_core::upper::Upper;
use cowl_core::upper::scan::{self, Listed, MarkError, Marks};
use cowl_core::upper::spot::Spot;
use rustix::fs::{FileType as HostType, Statx};

use super::event::Event;
use super::lower::Child;
use super::state::{Home, Slot, State, Target, Under, Unsynced, UpperFile};
use super::types::{Attr, Entry, Errno, NodeId};
use super::{Overlay, new_file};

/// Longest name of a file (NAME_MAX).
const NAME_MAX: usize = 255;

/// What is at a name.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Hit {
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

/// The tree's directory that a directory merges with.
pub(super) fn tree_side(state: &State, dir: NodeId) -> Option<TreeIno> {
    match state.node(dir) {
        None => dir.tree(),
        Some(node) if node.gone().is_some() => None,
        Some(node) => match &node.upper {
            Some(file) if file.opaque => None,
            _ => node.origin,
        },
    }
}

impl Overlay {
    /// Looks a name up. None: no such file; the kernel may cache that.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Option<Entry>, Errno> {
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let Some(hit) = self.resolve(parent, name)? else {
            return Ok(None);
        };
        self.entry(hit.id).map(Some)
    }

    /// A node with its attributes, counted as looked up.
    pub(super) fn entry(&self, id: NodeId) -> Result<Entry, Errno> {
        let entry = self.entry_with(id, |id| self.getattr(id, None))?;
        self.count_lookup(id);
        Ok(entry)
    }

    /// A node with the attributes that `read` returns, and whether the kernel may cache them.
    pub(super) fn entry_with(
        &self,
        id: NodeId,
        read: impl FnOnce(NodeId) -> Result<Attr, Errno>,
    ) -> Result<Entry, Errno> {
        let settled = !self.is_written_past(id);
        let attr = read(id)?;
        let settled = settled && !self.is_written_past(id);
        Ok(Entry { id, attr, settled })
    }

    /// Counts a lookup, of unchanged tree nodes too, since they may be changed later.
    pub(super) fn count_lookup(&self, id: NodeId) {
        if self.upper.is_none() {
            return;
        }
        match id.tree() {
            Some(node) => self.state.read().tree_lookups().add(node),
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
            if let (Some(node), None) = (id.tree(), state.node(id)) {
                return state.tree_lookups().subtract(node, count);
            }
        }
        self.commit(|_| [Event::Forgotten { node: id, count }]);
        self.drop_orphan(id);
    }

    /// What is at a name.
    pub(super) fn resolve(&self, dir: NodeId, name: &[u8]) -> Result<Option<Hit>, Errno> {
        self.ensure_read(dir)?;
        if let Some(Target::Unread { .. }) = self.slot(dir, name).map(|slot| slot.target) {
            self.read_name(dir, name)?;
        }
        let state = self.state.read();
        if state
            .node(dir)
            .is_some_and(|node| node.file_type != FileType::Directory)
        {
            return Err(Errno::NOTDIR);
        }
        let slot = state.dir(dir).and_then(|table| table.slot(name));
        match slot.map(|slot| slot.target) {
            Some(Target::Whiteout) => return Ok(None),
            Some(Target::Node(id, file_type)) => return Ok(Some(Hit { id, file_type })),
            Some(Target::Unread { .. }) => return Err(Errno::IO),
            None => {}
        }
        let Some(tree) = tree_side(&state, dir) else {
            return Ok(None);
        };
        let Some(child) = self.lower.lookup(tree, name)? else {
            return Ok(None);
        };
        let id = state.id_of(child.node);
        if state.is_damaged(id) {
            return Err(Errno::IO);
        }
        Ok(Some(Hit {
            id,
            file_type: child.file_type,
        }))
    }

    /// What the upper has at a name of a directory that was read.
    pub(super) fn slot(&self, dir: NodeId, name: &[u8]) -> Option<Slot> {
        self.state.read().dir(dir)?.slot(name)
    }

    /// What the tree has at a name.
    pub(super) fn under(&self, dir: NodeId, name: &[u8]) -> Result<Under, Errno> {
        let tree = tree_side(&self.state.read(), dir);
        self.under_in(tree, name)
    }

    fn under_in(&self, tree: Option<TreeIno>, name: &[u8]) -> Result<Under, Errno> {
        Ok(match self.lower_child(tree, name)? {
            None => Under::Nothing,
            Some(child) if child.file_type == FileType::Directory => Under::Directory,
            Some(_) => Under::File,
        })
    }

    fn lower_child(&self, tree: Option<TreeIno>, name: &[u8]) -> Result<Option<Child<'_>>, Errno> {
        match tree {
            Some(tree) => self.lower.lookup(tree, name),
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
        let space = self.writable()?.namespace();
        let fd = self.dir_fd(dir)?;
        let impure = scan::is_impure(fd.as_fd(), space)?;
        let tree = tree_side(&self.state.read(), dir);
        let mut names = Vec::new();
        scan::list(fd.as_fd(), |name, listed| {
            let target = match listed {
                Listed::Whiteout => Target::Whiteout,
                Listed::File { file_type, inode } => Target::Unread {
                    file_type,
                    host: inode,
                },
            };
            names.push((name.into(), target, self.under_in(tree, name)?));
            Ok(())
        })?;
        let (subdirs, visible) = match tree {
            Some(tree) => (
                self.lower.subdir_count(tree)?,
                u64::from(self.lower.child_count(tree)?),
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
        let upper = self.writable()?;
        let _guard = self.busy.lock(&[dir]);
        let (target, impure) = {
            let state = self.state.read();
            let Some(table) = state.dir(dir) else {
                return Ok(());
            };
            (table.slot(name).map(|slot| slot.target), table.impure)
        };
        let Some(Target::Unread { file_type, host }) = target else {
            return Ok(()); // another thread has read them
        };
        let fd = self.dir_fd(dir)?;
        let spot = Spot::new(fd.as_fd(), name);
        let tree = tree_side(&self.state.read(), dir);
        let same_name = self
            .lower_child(tree, name)?
            .filter(|child| child.file_type == FileType::Directory)
            .map(|child| child.node);
        let space = upper.namespace();
        let marks = scan::read_marks(spot, file_type, space, self.lower.tree(), same_name, impure)
            .map_err(|error| unreadable(spot, &error))?;
        let mut file = upper_file(host, &marks);
        if let Some(saved) = &marks.interrupted {
            self.undo_copying(spot, &marks, saved)?;
            file.copying = None;
        }
        let mut taken = None;
        self.commit(|state| {
            let (file_type, origin) = (marks.file_type, marks.origin);
            taken = state.node_of_file(host, file_type, origin);
            taken.map(|node| Event::MarksRead {
                dir,
                name: name.into(),
                node,
                origin,
                file_type,
                file,
            })
        });
        let Some(node) = taken else {
            tracing::error!(name = %name.escape_ascii(), "another file of the upper has the same origin");
            return Err(Errno::IO);
        };
        self.adopt_orphan(upper, node)
    }

    /// Reads the marks of a file in `work/index`.
    pub(super) fn read_indexed(
        &self,
        upper: &Upper,
        spot: Spot<'_>,
        node: TreeIno,
        stat: &Statx,
    ) -> Result<(Marks, UpperFile), Errno> {
        let host_type = HostType::from_raw_mode(u32::from(stat.stx_mode));
        let host_type = scan::file_type(host_type).ok_or(Errno::IO)?;
        let space = upper.namespace();
        let marks = scan::read_marks(spot, host_type, space, self.lower.tree(), None, true)
            .map_err(|error| unreadable(spot, &error))?;
        let expected = scan::stored_type(&self.lower.node(node)?) == host_type;
        if !expected || (space.marks(host_type) && marks.origin != Some(node)) {
            tracing::error!(
                node = node.0,
                "a file in work/index is not what its name says"
            );
            return Err(Errno::IO);
        }
        if let Some(saved) = &marks.interrupted {
            self.undo_copying(spot, &marks, saved)?;
        }
        let file = upper_file(stat.stx_ino, &marks);
        Ok((marks, file))
    }

    /// Removes the orphan link of a file, one of whose names was found after all.
    fn adopt_orphan(&self, upper: &Upper, node: NodeId) -> Result<(), Errno> {
        let home = self.upper_node(node).map(|(_, _, file)| file.home);
        let Some(Home::Orphan(number)) = home else {
            return Ok(());
        };
        Spot::new(upper.orphans(), number.to_string().as_bytes()).unlink()?;
        self.commit(|_| {
            [Event::Moved {
                node,
                home: Home::Named,
            }]
        });
        Ok(())
    }
}

/// The state of a file at its name. A copy-up by an earlier mount may not be durable yet.
fn upper_file(host: u64, marks: &Marks) -> UpperFile {
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

fn unreadable(spot: Spot<'_>, error: &MarkError) -> Errno {
    if let MarkError::Host(errno) = error {
        return *errno;
    }
    tracing::error!(name = %spot.name.escape_ascii(), %error, "a file of the upper cannot be used");
    Errno::IO
}
