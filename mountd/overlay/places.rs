//! Where a node's file is in the upper: a directory by descriptor and a name in it.
//!
//! Invariant: paths are built from the state, never from a request, and resolved without leaving
//! the upper, crossing a mount or following a link.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use cowl_core::tree::FileType;
use cowl_core::upper::Upper;
use cowl_core::upper::name_at::NameAt;
use cowl_sys::open::openat2;
use parking_lot::{Mutex, RwLock};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::Overlay;
use super::node::Home;
use super::types::{Errno, NodeId};
use crate::lru::Lru;

/// Descriptors of directories that are kept.
const CACHED: usize = 256;
/// Bytes of a path for one openat2, well below PATH_MAX.
const MAX_WALK: usize = 2048;
/// Most components of a path; a longer one means a loop in the state.
const MAX_DEPTH: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Places {
    /// Shared while a path is built and walked; exclusive from the rename of a directory to its
    /// event.
    pub(super) moves: RwLock<()>,
    cache: Mutex<Lru<NodeId, Arc<OwnedFd>>>,
}

impl Places {
    pub(super) fn new() -> Self {
        Self {
            moves: RwLock::default(),
            cache: Mutex::new(Lru::new(CACHED)),
        }
    }

    fn get(&self, id: NodeId) -> Option<Arc<OwnedFd>> {
        self.cache.lock().get(id).map(Arc::clone)
    }

    fn put(&self, id: NodeId, dir: &Arc<OwnedFd>) {
        let dropped = self.cache.lock().insert(id, Arc::clone(dir));
        // Close the evicted descriptor without the lock.
        drop(dropped);
    }

    /// Closes all descriptors, and keeps none until [`resume`](Self::resume).
    pub(super) fn pause(&self) {
        let dropped = self.cache.lock().pause();
        // Close them without the lock.
        dropped.for_each(drop);
    }

    pub(super) fn resume(&self) {
        self.cache.lock().resume();
    }

    /// Drops the descriptor of a removed directory.
    pub(super) fn forget(&self, id: NodeId) {
        let dropped = self.cache.lock().remove(id);
        drop(dropped);
    }
}

/// A file of the upper: its directory is open, so it stays valid while the node is guarded.
#[derive(Debug)]
pub(super) struct Place<'o> {
    dir: DirFd<'o>,
    name: Vec<u8>,
}

#[derive(Debug)]
enum DirFd<'o> {
    Upper(BorrowedFd<'o>),
    Cached(Arc<OwnedFd>),
}

impl Place<'_> {
    pub(super) fn name_at(&self) -> NameAt<'_> {
        let dir = match &self.dir {
            DirFd::Upper(dir) => *dir,
            DirFd::Cached(dir) => dir.as_fd(),
        };
        NameAt::new(dir, &self.name)
    }

    /// Opens the regular file.
    pub(super) fn open(&self, access: OFlags) -> Result<std::fs::File, Errno> {
        let NameAt { dir, name } = self.name_at();
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        rustix::fs::openat(dir, name, flags, Mode::empty()).map(std::fs::File::from)
    }
}

impl Overlay {
    /// The parent of a directory.
    pub(super) fn parent_of(&self, id: NodeId) -> Result<NodeId, Errno> {
        if id == NodeId::ROOT {
            return Ok(id);
        }
        self.name_of(id).map(|(dir, _)| dir)
    }

    /// The name, in a directory, of a node that has one name: the state's, else the lower's.
    pub(super) fn name_of(&self, id: NodeId) -> Result<(NodeId, Vec<u8>), Errno> {
        if let Some((dir, name)) = self.state.read().node(id).and_then(|node| node.name()) {
            return Ok((dir, name.to_vec()));
        }
        let node = id.lower().ok_or(Errno::STALE)?;
        let (dir, name) = self.lower.name_of(node)?.ok_or(Errno::STALE)?;
        Ok((NodeId::of_lower(dir), name))
    }

    /// A descriptor (`O_PATH`) of a directory that the upper has.
    pub(super) fn dir_fd(&self, id: NodeId) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(dir) = self.places.get(id) {
            return Ok(dir);
        }
        let upper = self.writable()?;
        let _still = self.places.moves.read();
        let mut names = Vec::new();
        let mut at = id;
        let mut from = None;
        while at != NodeId::ROOT {
            if let Some(dir) = self.places.get(at) {
                from = Some(dir);
                break;
            }
            if names.len() >= MAX_DEPTH {
                return Err(Errno::LOOP);
            }
            let (dir, name) = self.name_of(at)?;
            names.push(name);
            at = dir;
        }
        names.reverse();
        let dir = match &from {
            Some(from) => walk(from.as_fd(), &names)?,
            None => walk(upper.root(), &names)?,
        };
        let dir = Arc::new(dir);
        self.places.put(id, &dir);
        Ok(dir)
    }

    /// A name in a directory that the upper has.
    pub(super) fn place_in(&self, dir: NodeId, name: &[u8]) -> Result<Place<'static>, Errno> {
        Ok(Place {
            dir: DirFd::Cached(self.dir_fd(dir)?),
            name: name.to_vec(),
        })
    }

    /// The file of a node that has one in the upper. It stays there while the node is guarded.
    pub(super) fn place_of(&self, id: NodeId) -> Result<Place<'_>, Errno> {
        let upper = self.writable()?;
        let named = {
            let state = self.state.read();
            let node = state.node(id).ok_or(Errno::STALE)?;
            let file = node.upper.as_ref().ok_or(Errno::STALE)?;
            match file.home {
                Home::Index(number) => {
                    return Ok(Place {
                        dir: DirFd::Upper(upper.index()),
                        name: Upper::index_name(number),
                    });
                }
                Home::Orphan(number) => {
                    return Ok(Place {
                        dir: DirFd::Upper(upper.orphans()),
                        name: number.to_string().into_bytes(),
                    });
                }
                Home::Named if node.file_type == FileType::Directory => None,
                Home::Named => {
                    let (dir, name) = node.name().ok_or(Errno::STALE)?;
                    Some((dir, name.to_vec()))
                }
            }
        };
        match named {
            Some((dir, name)) => self.place_in(dir, &name),
            // A directory is found by its own descriptor, which no rename disturbs.
            None => self.place_in(id, b"."),
        }
    }
}

/// Opens (`O_PATH`) the directory that some names lead to.
pub(super) fn walk(from: BorrowedFd<'_>, names: &[Vec<u8>]) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_XDEV
        | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let mut chunk = b".".to_vec();
    let mut at: Option<OwnedFd> = None;
    for name in names {
        if chunk.len() + name.len() > MAX_WALK {
            at = Some(openat2(
                at.as_ref().map_or(from, |at| at.as_fd()),
                &*chunk,
                flags,
                resolve,
            )?);
            chunk = b".".to_vec();
        }
        chunk.push(b'/');
        chunk.extend_from_slice(name);
    }
    openat2(
        at.as_ref().map_or(from, |at| at.as_fd()),
        &*chunk,
        flags,
        resolve,
    )
}
