//! A lower that is a stack of plain directories.
//!
//! Its nodes are numbered as they are met: a directory is listed as a whole, over all layers, at
//! the first look into it, and its names are kept for the life of the mount, since layers do not
//! change beneath one. So a lookup, also of an absent name, costs no system call afterwards,
//! however many layers there are; the price is a table of everything met.
//!
//! A file is reached by descriptor and name in one layer ([`Part`]). A directory has a part in each
//! layer that contributes to it, top first; they are found when it is first listed.
//!
//! Numbers follow from what the layers have and the order in which directories were listed. So
//! that order is all that a worker's successor needs ([`Listing`]): it lists the same directories
//! again.

mod listing;
mod marks;
mod part;
mod successor;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use cowl_core::digest::ObjectHasher;
use cowl_core::tree::FileType;
use cowl_core::upper::marks::{FUSE_OVERLAYFS, Namespace, escape, unescape};
use cowl_core::upper::name_at::NameAt;
use cowl_core::upper::scan;
use cowl_core::upper::spelling::Redirect;
use parking_lot::RwLock;
use rustix::fs::{FileType as HostType, Mode, OFlags};

use super::{Child, ChildName, LowerNode};
use crate::journal::{Journal, Listing};
use crate::overlay::attrs::{rdev_of, timestamp};
use crate::overlay::types::{Attr, Errno, LowerIno, Statfs};
use listing::Listed;
use part::{Part, Parts};

/// Bits of `st_ino` that are the inode number on the host; above them is the number of its device.
const INODE_BITS: u32 = 52;

/// Numbers of nodes end here.
pub(super) const MOST_NODES: u32 = 1 << 31;

/// The layers of a plain lower.
#[derive(Debug)]
pub struct Layers {
    /// The directories, the top one first.
    pub roots: Vec<OwnedFd>,
    /// Where marks are read: `user.` without the privilege for `trusted.`, or if asked for.
    pub space: Namespace,
    /// Directories of several layers have a link count of 1, so that `stat` need not list them.
    pub static_nlink: bool,
}

/// A stack of plain directories.
#[derive(Debug)]
pub(in crate::overlay) struct DirsLower {
    parts: Parts,
    space: Namespace,
    static_nlink: bool,
    /// Devices by the number that they have in `st_ino`; the upper's is the first.
    devices: Vec<(u32, u32)>,
    /// The number of each layer's device.
    device_of: Vec<u64>,
    table: RwLock<Table>,
    /// Where listings are noted for a worker's successor.
    journal: Option<Arc<Journal>>,
}

#[derive(Debug, Default)]
struct Table {
    /// None: a number of a dead worker's whose file is not there any more.
    nodes: Vec<Option<Arc<PlainNode>>>,
    /// Of non-directories by `st_ino`: how a hard link is known again.
    files: HashMap<u64, LowerIno>,
}

/// A file of the lower.
#[derive(Debug)]
struct PlainNode {
    parent: LowerIno,
    /// The name by which it was met first; also that in its layer.
    name: Arc<[u8]>,
    /// The directory, of the topmost layer that has it, that holds it.
    holder: Arc<Part>,
    file_type: FileType,
    ino: u64,
    dir: Option<PlainDir>,
}

/// A name of a directory.
type Entry = (Arc<[u8]>, Child);

/// A directory of the lower.
#[derive(Debug, Default)]
struct PlainDir {
    /// Directories of its name, top first, as far as no file or whiteout ends them.
    candidates: Vec<Arc<Part>>,
    /// Those that contribute, once known.
    parts: OnceLock<Vec<Arc<Part>>>,
    /// Sorted by name, once listed.
    children: OnceLock<Vec<Entry>>,
}

/// The names of a directory with their numbers, before they hold.
#[derive(Debug, Default)]
struct Numbered {
    children: Vec<Entry>,
    /// Those met first, in the order of their numbers.
    nodes: Vec<Arc<PlainNode>>,
    /// As in the table.
    files: HashMap<u64, LowerIno>,
}

impl Numbered {
    fn listing(&self, dir: LowerIno) -> Listing {
        let mut hasher = ObjectHasher::new();
        for (name, Child { node, file_type }) in &self.children {
            hasher.update(name);
            hasher.update(&[0]);
            hasher.update(&file_type.to_mode_bits().to_le_bytes());
            hasher.update(&node.0.to_le_bytes());
        }
        let digest = hasher.finish();
        let digest = digest.as_bytes().first_chunk().copied();
        Listing {
            dir: dir.0,
            added: u32::try_from(self.nodes.len()).unwrap_or(u32::MAX),
            digest: u64::from_le_bytes(digest.unwrap_or_default()),
        }
    }

    /// From here on the numbers hold.
    fn enter(self, table: &mut Table, dir: &PlainDir) {
        table.nodes.extend(self.nodes.into_iter().map(Some));
        table.files.extend(self.files);
        dir.children.get_or_init(|| self.children);
    }
}

impl DirsLower {
    /// `upper`: the upper's root, whose inode numbers are shown as they are. What dead workers
    /// numbered has the same numbers again.
    pub(super) fn new(
        layers: Layers,
        upper: Option<&OwnedFd>,
        journal: Option<Arc<Journal>>,
    ) -> Result<Self, Errno> {
        let device = |dir: &OwnedFd| -> Result<(u32, u32), Errno> {
            let stat = NameAt::new(dir.as_fd(), b".").stat()?;
            Ok((stat.stx_dev_major, stat.stx_dev_minor))
        };
        let mut devices: Vec<(u32, u32)> = upper.map(device).transpose()?.into_iter().collect();
        let mut device_of = Vec::new();
        for root in &layers.roots {
            let device = device(root)?;
            let known = devices.iter().position(|known| *known == device);
            let number = known.unwrap_or(devices.len());
            if known.is_none() {
                devices.push(device);
            }
            device_of.push(number as u64);
        }
        let top = layers.roots.first().ok_or(Errno::INVAL)?;
        let inode = NameAt::new(top.as_fd(), b".").stat()?.stx_ino;
        let parts = Parts::new(layers.roots);
        let lower = Self {
            space: layers.space,
            static_nlink: layers.static_nlink,
            devices,
            device_of,
            table: RwLock::default(),
            journal,
            parts,
        };
        let root = PlainNode {
            parent: LowerIno::ROOT,
            name: Arc::from(&b"."[..]),
            holder: lower.parts.root(0),
            file_type: FileType::Directory,
            ino: lower.ino_in(0, inode),
            dir: Some(PlainDir {
                candidates: (0..lower.parts.layers())
                    .map(|layer| lower.parts.root(layer))
                    .collect(),
                ..PlainDir::default()
            }),
        };
        lower.table.write().nodes.push(Some(Arc::new(root)));
        lower.take_over();
        tracing::debug!(
            layers = lower.parts.layers(),
            devices = lower.devices.len(),
            "opened"
        );
        Ok(lower)
    }

    /// `st_ino` of a file of a layer: unique over devices, and the host's own on the upper's.
    fn ino_in(&self, layer: u16, inode: u64) -> u64 {
        let device = self.device_of.get(usize::from(layer)).copied();
        (device.unwrap_or(0) << INODE_BITS) ^ inode
    }

    fn get(&self, node: LowerIno) -> Result<Arc<PlainNode>, Errno> {
        let table = self.table.read();
        let number = usize::try_from(node.0).map_err(|_beyond| Errno::STALE)?;
        let node = table.nodes.get(number).and_then(Option::as_ref);
        node.map(Arc::clone).ok_or(Errno::STALE)
    }

    /// The descriptor and name that a node is reached by.
    fn place(&self, node: &PlainNode) -> Result<(Arc<OwnedFd>, Arc<[u8]>), Errno> {
        Ok((self.parts.open(&node.holder)?, Arc::clone(&node.name)))
    }

    pub(super) fn ino(&self, node: LowerIno) -> u64 {
        self.get(node).map_or(0, |node| node.ino)
    }

    pub(super) fn node(&self, node: LowerIno) -> Result<LowerNode, Errno> {
        let found = self.get(node)?;
        let (dir, name) = self.place(&found)?;
        let stat = NameAt::new(dir.as_fd(), &name).stat()?;
        let host_type = HostType::from_raw_mode(u32::from(stat.stx_mode));
        if scan::file_type(host_type) != Some(found.file_type) {
            tracing::error!(name = %name.escape_ascii(), "a file of a lower layer was replaced");
            return Err(Errno::IO);
        }
        let nlink = match &found.dir {
            Some(dir) => self.directory_links(node, &found, dir, stat.stx_nlink)?,
            None => stat.stx_nlink,
        };
        let regular = found.file_type == FileType::Regular;
        Ok(LowerNode {
            attr: Attr {
                ino: found.ino,
                size: stat.stx_size,
                blocks: stat.stx_blocks,
                atime: timestamp(stat.stx_atime),
                mtime: timestamp(stat.stx_mtime),
                ctime: timestamp(stat.stx_ctime),
                file_type: found.file_type,
                mode: u32::from(stat.stx_mode) & 0o7777,
                nlink,
                uid: stat.stx_uid,
                gid: stat.stx_gid,
                rdev: rdev_of(&stat),
                blksize: stat.stx_blksize,
            },
            has_content: regular && stat.stx_size > 0,
            elf: false,
        })
    }

    /// The host's count if one layer has the directory, else 2 + subdirectories.
    fn directory_links(
        &self,
        node: LowerIno,
        found: &PlainNode,
        dir: &PlainDir,
        host: u32,
    ) -> Result<u32, Errno> {
        if self.parts_of(found, dir)?.len() == 1 {
            return Ok(host);
        }
        if self.static_nlink {
            return Ok(1);
        }
        Ok(self.subdir_count(node)?.saturating_add(2))
    }

    /// The names of a directory; ENOTDIR if it is none.
    fn with_children<T>(
        &self,
        dir: LowerIno,
        read: impl FnOnce(&[Entry]) -> T,
    ) -> Result<T, Errno> {
        let node = self.get(dir)?;
        let plain = node.dir.as_ref().ok_or(Errno::NOTDIR)?;
        if let Some(children) = plain.children.get() {
            return Ok(read(children));
        }
        let listed = self.list(self.parts_of(&node, plain)?)?;
        {
            let mut table = self.table.write();
            // Another thread may have listed it meanwhile.
            if plain.children.get().is_none() {
                let numbered = self.number(&table, dir, listed)?;
                if let Some(journal) = &self.journal {
                    journal.note_listing(numbered.listing(dir));
                }
                numbered.enter(&mut table, plain);
            }
        }
        plain
            .children
            .get()
            .map(|children| read(children))
            .ok_or(Errno::IO)
    }

    /// Numbers the names of a directory.
    fn number(&self, table: &Table, dir: LowerIno, listed: Vec<Listed>) -> Result<Numbered, Errno> {
        let mut numbered = Numbered {
            children: Vec::with_capacity(listed.len()),
            ..Numbered::default()
        };
        let (first, mut files) = (table.nodes.len(), HashMap::new());
        for found in listed {
            let ino = self.ino_in(found.holder.layer, found.inode);
            let is_dir = found.file_type == FileType::Directory;
            let linked = table.files.get(&ino).or_else(|| files.get(&ino)).copied();
            let node = if let Some(node) = linked.filter(|_| !is_dir) {
                node
            } else {
                let number = u32::try_from(first + numbered.nodes.len()).unwrap_or(u32::MAX);
                if number >= MOST_NODES {
                    return Err(Errno::NOMEM);
                }
                let node = LowerIno(number);
                numbered.nodes.push(Arc::new(PlainNode {
                    parent: dir,
                    name: Arc::clone(&found.name),
                    holder: found.holder,
                    file_type: found.file_type,
                    ino,
                    dir: is_dir.then(|| PlainDir {
                        candidates: found.candidates,
                        ..PlainDir::default()
                    }),
                }));
                if !is_dir {
                    files.insert(ino, node);
                }
                node
            };
            let file_type = found.file_type;
            numbered
                .children
                .push((found.name, Child { node, file_type }));
        }
        numbered.files = files;
        Ok(numbered)
    }

    pub(super) fn lookup(&self, dir: LowerIno, name: &[u8]) -> Result<Option<Child>, Errno> {
        self.with_children(dir, |children| {
            let found = children.binary_search_by(|(known, _)| (**known).cmp(name));
            found
                .ok()
                .and_then(|at| children.get(at))
                .map(|(_, child)| *child)
        })
    }

    pub(super) fn child_count(&self, dir: LowerIno) -> Result<u32, Errno> {
        self.with_children(dir, |children| {
            u32::try_from(children.len()).unwrap_or(u32::MAX)
        })
    }

    pub(super) fn subdir_count(&self, dir: LowerIno) -> Result<u32, Errno> {
        self.with_children(dir, |children| {
            let is_dir = |child: &Child| child.file_type == FileType::Directory;
            let count = children.iter().filter(|(_, child)| is_dir(child)).count();
            u32::try_from(count).unwrap_or(u32::MAX)
        })
    }

    pub(super) fn each_child(
        &self,
        dir: LowerIno,
        from: u32,
        visit: &mut dyn FnMut(ChildName<'_>) -> bool,
    ) -> Result<(), Errno> {
        self.with_children(dir, |children| {
            let first = usize::try_from(from).unwrap_or(usize::MAX);
            for (position, (name, child)) in (from..).zip(children.iter().skip(first)) {
                let child = *child;
                if !visit(ChildName {
                    position,
                    name,
                    child,
                }) {
                    break;
                }
            }
        })
    }

    pub(super) fn name_of(&self, node: LowerIno) -> Result<Option<(LowerIno, Vec<u8>)>, Errno> {
        if node == LowerIno::ROOT {
            return Ok(None);
        }
        let found = self.get(node)?;
        Ok(Some((found.parent, found.name.to_vec())))
    }

    /// The path of a node from the root, as [`Origin::Path`](cowl_core::upper::marks::Origin).
    pub(super) fn path(&self, node: LowerIno) -> Result<Vec<u8>, Errno> {
        let mut names = Vec::new();
        let mut at = node;
        while at != LowerIno::ROOT {
            let found = self.get(at)?;
            names.push(Arc::clone(&found.name));
            at = found.parent;
        }
        names.reverse();
        let mut path = Vec::new();
        for name in &names {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        Ok(path)
    }

    /// The node at a path.
    pub(super) fn find(&self, path: &[u8]) -> Result<Option<LowerIno>, Errno> {
        let mut at = LowerIno::ROOT;
        for name in path.split(|byte| *byte == b'/').skip(1) {
            match self.lookup(at, name) {
                Ok(Some(child)) => at = child.node,
                Ok(None) | Err(Errno::NOTDIR) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(at))
    }

    pub(super) fn symlink_target(&self, node: LowerIno) -> Result<Vec<u8>, Errno> {
        let (dir, name) = self.place(&*self.get(node)?)?;
        Ok(rustix::fs::readlinkat(&*dir, &*name, Vec::new())?.into_bytes())
    }

    pub(super) fn xattr(&self, node: LowerIno, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        let (dir, at) = self.place(&*self.get(node)?)?;
        NameAt::new(dir.as_fd(), &at).xattr(&escape(name))
    }

    /// The names of all attributes but marks, as they are shown.
    pub(super) fn xattr_names(&self, node: LowerIno) -> Result<Vec<Vec<u8>>, Errno> {
        let (dir, at) = self.place(&*self.get(node)?)?;
        let stored = NameAt::new(dir.as_fd(), &at).xattr_names()?;
        let names = stored.split(|byte| *byte == 0);
        Ok(names
            .filter(|name| !name.is_empty())
            .filter_map(unescape)
            .filter(|name| !name.starts_with(FUSE_OVERLAYFS))
            .collect())
    }

    /// Opens the content of a regular file, in whichever layer it is.
    pub(super) fn open_content(&self, node: LowerIno) -> Result<File, Errno> {
        let found = self.get(node)?;
        let (dir, name) = self.place(&found)?;
        let name_at = NameAt::new(dir.as_fd(), &name);
        if found.holder.layer + 1 < self.parts.layers() && marks::is_metacopy(name_at, self.space)?
        {
            return self.open_below(&found);
        }
        open_file(&dir, &name)
    }

    /// Follows a file of which a layer has the metadata only.
    fn open_below(&self, node: &PlainNode) -> Result<File, Errno> {
        let parent = self.get(node.parent)?;
        let parent_dir = parent.dir.as_ref().ok_or(Errno::IO)?;
        let siblings = self.parts_of(&parent, parent_dir)?;
        let (mut holder, mut name) = (Arc::clone(&node.holder), Arc::clone(&node.name));
        let mut path: Option<Vec<Vec<u8>>> = None;
        loop {
            let dir = self.parts.open(&holder)?;
            let name_at = NameAt::new(dir.as_fd(), &name);
            if !marks::is_metacopy(name_at, self.space)? {
                return open_file(&dir, &name);
            }
            match marks::redirect_of(name_at, self.space)? {
                Some(Redirect::Path(names)) => path = Some(names),
                Some(Redirect::Sibling(other)) => name = Arc::from(other),
                None => {}
            }
            let next = match &path {
                Some(names) => self.file_at(holder.layer, names)?,
                None => self.file_among(holder.layer, siblings, &name)?,
            };
            (holder, name) = next.ok_or(Errno::IO)?;
        }
    }

    pub(super) fn statfs(&self) -> Result<Statfs, Errno> {
        super::statfs_of(&*self.parts.open(&self.parts.root(0))?)
    }
}

fn open_file(dir: &OwnedFd, name: &[u8]) -> Result<File, Errno> {
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    rustix::fs::openat(dir, name, flags, Mode::empty()).map(File::from)
}
