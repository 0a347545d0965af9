//! What a name means: the upper's word first, then the tree's; and the reading of an upper's directory, once.

use std::os::fd::AsFd;

use cowl_core::tree::{FileType, TreeIno};
use cowl_core::upper::marks::{self, Mark};
use cowl_core::upper::spot::{Spot, is_whiteout};
use cowl_core::upper::{Upper, each_entry};
use rustix::fs::FileType as HostType;

use super::event::{Event, Found, FoundWhat};
use super::state::{Content, Home, Slot, State, Target, Under, UpperFile};
use super::types::{Entry, Errno, NodeId};
use super::{Overlay, new_file};

/// Longest name of a file (NAME_MAX).
const NAME_MAX: usize = 255;

/// What is at a name.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Hit {
    pub(super) id: NodeId,
    pub(super) file_type: FileType,
}

/// What the marks of a file say.
#[derive(Debug)]
pub(super) struct Marked {
    pub(super) file_type: FileType,
    pub(super) origin: Option<TreeIno>,
    pub(super) file: UpperFile,
}

/// Which marks can be there, so that the others need not be asked for.
#[derive(Copy, Clone, Debug)]
pub(super) struct Wanted {
    /// A directory over one of the tree.
    pub(super) opaque: bool,
    /// In a directory that is impure.
    pub(super) others: bool,
}

impl Wanted {
    pub(super) const ALL: Wanted = Wanted {
        opaque: true,
        others: true,
    };
}

/// Whether a name can be looked up or given at all.
pub(super) fn check_name(name: &[u8]) -> Result<(), Errno> {
    match name {
        b"" => Err(Errno::NOENT),
        b"." | b".." => Err(Errno::INVAL),
        _ if name.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
        _ if name.iter().any(|byte| matches!(byte, b'/' | 0)) => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

/// The directory of the tree whose children a directory shows.
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
    /// Finds a name. None: there is no such file, which the kernel may remember.
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
        let attr = self.getattr(id, None)?;
        self.count_lookup(id);
        Ok(Entry { id, attr })
    }

    /// Untouched nodes of the tree are not counted: forgetting them costs nothing either.
    pub(super) fn count_lookup(&self, id: NodeId) {
        if self.upper.is_some() && self.state.read().node(id).is_some() {
            self.commit(|_| [Event::Looked { node: id }]);
        }
    }

    /// The kernel gives lookups back.
    pub fn forget(&self, id: NodeId, count: u64) {
        if self.upper.is_none() || self.state.read().node(id).is_none() {
            return;
        }
        self.commit(|_| [Event::Forgotten { node: id, count }]);
        self.drop_orphan(id);
    }

    /// What is at a name.
    pub(super) fn resolve(&self, dir: NodeId, name: &[u8]) -> Result<Option<Hit>, Errno> {
        self.ensure_read(dir)?;
        let state = self.state.read();
        if state
            .node(dir)
            .is_some_and(|node| node.file_type != FileType::Directory)
        {
            return Err(Errno::NOTDIR);
        }
        match state
            .dir(dir)
            .and_then(|table| table.slot(name))
            .map(|slot| slot.target)
        {
            Some(Target::Whiteout) => return Ok(None),
            Some(Target::Node(id, file_type)) => return Ok(Some(Hit { id, file_type })),
            None => {}
        }
        let Some(tree) = tree_side(&state, dir) else {
            return Ok(None);
        };
        let child = self.lower.lookup(tree, name)?;
        Ok(child.map(|child| Hit {
            id: state.id_of(child.node),
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
        Ok(
            match tree
                .map(|tree| self.lower.lookup(tree, name))
                .transpose()?
                .flatten()
            {
                None => Under::Nothing,
                Some(child) if child.file_type == FileType::Directory => Under::Directory,
                Some(_) => Under::File,
            },
        )
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

    /// Reads a directory's upper part. The caller guards it.
    pub(super) fn read_upper(&self, dir: NodeId) -> Result<(), Errno> {
        let upper = self.writable()?;
        let fd = self.dir_fd(dir)?;
        let own = Spot::new(fd.as_fd(), b".");
        let impure = own.mark(upper.namespace(), Mark::Impure)?.is_some();
        let tree = tree_side(&self.state.read(), dir);
        let mut listed = Vec::new();
        each_entry(fd.as_fd(), |name, file_type, inode| {
            listed.push((name.to_vec(), file_type, inode));
            Ok(())
        })?;
        let mut found = Vec::with_capacity(listed.len());
        for (name, host_type, inode) in listed {
            found.push(self.read_name(
                upper,
                Spot::new(fd.as_fd(), &name),
                (host_type, inode),
                tree,
                impure,
            )?);
        }
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
                found,
            }]
        });
        self.adopt_orphans(dir)
    }

    fn read_name(
        &self,
        upper: &Upper,
        spot: Spot<'_>,
        (host_type, inode): (HostType, u64),
        tree: Option<TreeIno>,
        impure: bool,
    ) -> Result<Found, Errno> {
        let child = tree
            .map(|tree| self.lower.lookup(tree, spot.name))
            .transpose()?
            .flatten();
        let under = match child {
            None => Under::Nothing,
            Some(child) if child.file_type == FileType::Directory => Under::Directory,
            Some(_) => Under::File,
        };
        let name = spot.name.into();
        let host_type = match host_type {
            HostType::Unknown => HostType::from_raw_mode(u32::from(spot.stat()?.stx_mode)),
            known => known,
        };
        if host_type == HostType::CharacterDevice && is_whiteout(&spot.stat()?) {
            return Ok(Found {
                name,
                under,
                what: FoundWhat::Whiteout,
            });
        }
        let file_type = from_host(host_type)?;
        let wanted = Wanted {
            opaque: impure || under == Under::Directory,
            others: impure,
        };
        let mut marked = self.read_marks(upper, spot, file_type, wanted)?;
        marked.file.host = inode;
        if let (FileType::Directory, None, false, Under::Directory, Some(child)) =
            (file_type, marked.origin, marked.file.opaque, under, child)
        {
            marked.origin = Some(child.node); // by name, as in overlayfs
        }
        let Marked {
            file_type,
            origin,
            file,
        } = marked;
        Ok(Found {
            name,
            under,
            what: FoundWhat::File {
                file_type,
                origin,
                file,
            },
        })
    }

    /// Reads a file's marks; `host` of the result is left to the caller.
    pub(super) fn read_marks(
        &self,
        upper: &Upper,
        spot: Spot<'_>,
        file_type: FileType,
        wanted: Wanted,
    ) -> Result<Marked, Errno> {
        let space = upper.namespace();
        let read = |mark| {
            if space.marks(file_type) {
                spot.mark(space, mark)
            } else {
                Ok(None)
            }
        };
        let mut marked = Marked {
            file_type,
            origin: None,
            file: new_file(0),
        };
        if file_type == FileType::Directory && wanted.opaque {
            marked.file.opaque = read(Mark::Opaque)?.as_deref() == Some(marks::YES);
        }
        if !wanted.others {
            return Ok(marked);
        }
        if let Some(bytes) = read(Mark::Origin)? {
            let origin = known(marks::decode_origin(&bytes), spot)?;
            let record = self
                .lower
                .node(origin)
                .map_err(|_errno| damaged(spot, "an origin that the tree does not have"))?;
            if record.file_type != file_type && !is_escaped_device(record, file_type) {
                return Err(damaged(spot, "an origin of another type"));
            }
            marked.origin = Some(origin);
        }
        if file_type == FileType::Regular {
            if let Some(bytes) = read(Mark::Data)? {
                marked.file.content = Content::Object(known(marks::decode_data(&bytes), spot)?);
            }
            if let Some(bytes) = read(Mark::Device)? {
                known(marks::decode_device(&bytes), spot)?;
                marked.file.device = true;
                marked.file_type = FileType::CharDevice;
            }
        }
        if let Some(bytes) = read(Mark::Nlink)? {
            marked.file.nlink_delta = known(marks::decode_nlink(&bytes), spot)?;
        }
        Ok(marked)
    }

    /// A file that was put aside since none of its names was known, and turns out to have one here, is found by that from now on.
    fn adopt_orphans(&self, dir: NodeId) -> Result<(), Errno> {
        let upper = self.writable()?;
        let orphans: Vec<(NodeId, u64)> = {
            let state = self.state.read();
            let Some(table) = state.dir(dir) else {
                return Ok(());
            };
            let home = |id| {
                state
                    .node(id)
                    .and_then(|node| node.upper.as_ref())
                    .map(|file| file.home)
            };
            table
                .nodes()
                .filter_map(|id| match home(id) {
                    Some(Home::Orphan(number)) => Some((id, number)),
                    _ => None,
                })
                .collect()
        };
        for (node, number) in orphans {
            Spot::new(upper.orphans(), number.to_string().as_bytes()).unlink()?;
            self.commit(|_| {
                [Event::Moved {
                    node,
                    home: Home::Named,
                }]
            });
        }
        Ok(())
    }
}

fn is_escaped_device(record: cowl_core::tree::Node, file_type: FileType) -> bool {
    file_type == FileType::Regular
        && record.file_type == FileType::CharDevice
        && (record.rdev.major, record.rdev.minor) == (0, 0)
}

fn known<T>(decoded: Result<T, marks::UnknownMark>, spot: Spot<'_>) -> Result<T, Errno> {
    decoded.map_err(|error| {
        tracing::error!(name = %spot.name.escape_ascii(), %error, "the upper cannot be read");
        Errno::IO
    })
}

fn damaged(spot: Spot<'_>, what: &str) -> Errno {
    tracing::error!(name = %spot.name.escape_ascii(), what, "the upper cannot be read");
    Errno::IO
}

pub(super) fn from_host(host: HostType) -> Result<FileType, Errno> {
    FileType::from_mode_bits(host.as_raw_mode()).ok_or(Errno::IO)
}
