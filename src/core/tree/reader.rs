//! Reads a mapped tree in place: nothing is parsed ahead, each access checks its bounds.

use std::fmt;
use std::fs::File;
use std::ops::Range;

use memmap2::Mmap;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::error::{TreeError, corrupt};
use super::format::{
    DIGEST_LEN, DIRENT_LINK, DIRENT_NODE, DIRENT_WHITEOUT, MAX_DEPTH, NODE_ELF, NODE_IMPLIED,
    NODE_OPAQUE, NONE, RawDirent, RawLink, RawNode, RawObject, Section,
};
use super::header::open_header;
use super::types::{Dirent, FileType, Node, ObjectRef, Rdev, Target, Timestamp, TreeIno, TreeKind};
use super::xattr::Set;
use crate::digest::{ChainId, DiffId, ObjectId, Sha256Digest};
use crate::sys::mmap::{let_go, map_published};

/// An extended attribute: its name with the prefix, and its value.
pub type Xattr<'t> = (&'t [u8], &'t [u8]);

enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

/// An opened tree. Cheap to share between threads: it is only read.
pub struct Tree {
    bytes: Bytes,
    kind: TreeKind,
    owner: Sha256Digest,
    numbering: u16,
    digest: [u8; DIGEST_LEN],
    sections: [Range<usize>; Section::ALL.len()],
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree")
            .field("kind", &self.kind)
            .field("nodes", &self.node_count())
            .finish_non_exhaustive()
    }
}

impl Tree {
    /// Maps a published tree (see [`map_published`]) and checks its header: the cost does not
    /// depend on its size.
    pub fn open(file: &File) -> Result<Self, TreeError> {
        Self::new(Bytes::Mapped(map_published(file)?))
    }

    /// The same over bytes in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, TreeError> {
        Self::new(Bytes::Owned(bytes))
    }

    fn new(bytes: Bytes) -> Result<Self, TreeError> {
        let all = match &bytes {
            Bytes::Mapped(map) => map.as_ref(),
            Bytes::Owned(vec) => vec,
        };
        let opened = open_header(all)?;
        let (_, digest) = all
            .split_last_chunk::<DIGEST_LEN>()
            .ok_or(TreeError::Magic)?;
        let tree = Self {
            kind: opened.kind,
            owner: opened.owner,
            numbering: opened.numbering,
            digest: *digest,
            sections: opened.sections,
            bytes,
        };
        if tree.node(TreeIno::ROOT)?.file_type != FileType::Directory {
            return Err(TreeError::NotADirectory(TreeIno::ROOT));
        }
        Ok(tree)
    }

    /// The whole file, for a tree that was made in memory without a copy.
    pub fn into_bytes(self) -> Vec<u8> {
        match self.bytes {
            Bytes::Mapped(map) => map.to_vec(),
            Bytes::Owned(vec) => vec,
        }
    }

    /// Takes what was read of a mapped tree out of the process's memory; it comes back when it is
    /// read again.
    pub(super) fn let_go(&self) -> Result<(), TreeError> {
        match &self.bytes {
            Bytes::Mapped(map) => Ok(let_go(map)?),
            Bytes::Owned(_) => Ok(()),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Owned(vec) => vec,
        }
    }

    /// A section's bytes. Opening has checked its place; were it wrong, an empty section would
    /// answer each access with an error.
    pub(super) fn section(&self, section: Section) -> &[u8] {
        let range = self
            .sections
            .get(section as usize - 1)
            .cloned()
            .unwrap_or_default();
        self.bytes().get(range).unwrap_or_default()
    }

    fn records<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &self,
        section: Section,
    ) -> &[T] {
        <[T]>::ref_from_bytes(self.section(section)).unwrap_or_default()
    }

    pub(super) fn nodes(&self) -> &[RawNode] {
        self.records(Section::Nodes)
    }

    pub(super) fn dirents(&self) -> &[RawDirent] {
        self.records(Section::Dirents)
    }

    pub(super) fn inverse_index(&self) -> &[U32] {
        self.records(Section::InverseIndex)
    }

    pub(super) fn inverse_list(&self) -> &[U32] {
        self.records(Section::InverseList)
    }

    pub(super) fn links(&self) -> &[RawLink] {
        self.records(Section::Links)
    }

    pub(super) fn objects(&self) -> &[RawObject] {
        self.records(Section::Objects)
    }

    /// The layer that this is the tree of. None: it is a merged tree.
    pub fn diff_id(&self) -> Option<DiffId> {
        (self.kind == TreeKind::Layer).then_some(DiffId(self.owner))
    }

    /// The stack that this is the merged tree of. None: it is a layer's.
    pub fn chain_id(&self) -> Option<ChainId> {
        (self.kind == TreeKind::Merged).then_some(ChainId(self.owner))
    }

    /// One layer or a whole stack.
    pub const fn kind(&self) -> TreeKind {
        self.kind
    }

    /// Nodes in the tree; their numbers are all below this.
    pub fn node_count(&self) -> u32 {
        u32::try_from(self.nodes().len()).unwrap_or(NONE)
    }

    /// Names in the tree.
    pub fn dirent_count(&self) -> u32 {
        u32::try_from(self.dirents().len()).unwrap_or(NONE)
    }

    /// The rule by which the nodes got their numbers; equal rules over equal layers give equal
    /// numbers.
    pub const fn numbering(&self) -> u16 {
        self.numbering
    }

    /// The BLAKE3 that the file says it has. [`Tree::verify`] says whether it is so.
    pub const fn digest(&self) -> [u8; DIGEST_LEN] {
        self.digest
    }

    fn raw_node(&self, ino: TreeIno) -> Result<&RawNode, TreeError> {
        self.nodes()
            .get(ino.0 as usize)
            .ok_or(TreeError::NoSuchNode(ino))
    }

    /// The attributes of a node.
    pub fn node(&self, ino: TreeIno) -> Result<Node, TreeError> {
        let raw = self.raw_node(ino)?;
        let mode = raw.mode.get();
        let file_type =
            FileType::from_mode_bits(mode).ok_or(corrupt("a node has no known type", ino.0))?;
        let [first, second] = raw.data;
        let rdev = match file_type {
            FileType::CharDevice | FileType::BlockDevice => Rdev {
                major: first.get(),
                minor: second.get(),
            },
            _ => Rdev::default(),
        };
        let flags = raw.flags.get();
        Ok(Node {
            file_type,
            mode: mode & 0o7777,
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            nlink: raw.nlink.get(),
            size: raw.size.get(),
            mtime: Timestamp {
                secs: raw.mtime_secs.get(),
                nanos: raw.mtime_nanos.get(),
            },
            rdev,
            elf: flags & NODE_ELF != 0,
            implied: flags & NODE_IMPLIED != 0,
            opaque: flags & NODE_OPAQUE != 0,
            object: (file_type == FileType::Regular && first.get() != NONE)
                .then_some(ObjectRef(first.get())),
        })
    }

    /// The numbers of a directory's names.
    pub(super) fn names_in(&self, dir: TreeIno) -> Result<Range<u32>, TreeError> {
        let raw = self.raw_node(dir)?;
        if FileType::from_mode_bits(raw.mode.get()) != Some(FileType::Directory) {
            return Err(TreeError::NotADirectory(dir));
        }
        let [first, count] = raw.data;
        match first.get().checked_add(count.get()) {
            Some(end) if end <= self.dirent_count() => Ok(first.get()..end),
            _ => Err(corrupt("a directory's names lie outside the table", dir.0)),
        }
    }

    pub(super) fn name_bytes(&self, offset: u32, length: u32) -> Option<&[u8]> {
        let start = offset as usize;
        self.section(Section::Names)
            .get(start..start.checked_add(length as usize)?)
    }

    /// A name by its number.
    pub fn dirent(&self, index: u32) -> Result<Dirent<'_>, TreeError> {
        let raw = self
            .dirents()
            .get(index as usize)
            .ok_or(corrupt("a name outside the table", index))?;
        let name = self
            .name_bytes(raw.name_offset.get(), u32::from(raw.name_length.get()))
            .ok_or(corrupt("a name's bytes lie outside the names", index))?;
        let (target, file_type) = match raw.flags {
            DIRENT_NODE => {
                let file_type = FileType::from_dirent_type(raw.file_type);
                (
                    Target::Node(TreeIno(raw.target.get())),
                    Some(file_type.ok_or(corrupt("a name has no type", index))?),
                )
            }
            DIRENT_WHITEOUT if self.kind == TreeKind::Layer => (Target::Whiteout, None),
            DIRENT_LINK if self.kind == TreeKind::Layer => (Target::LinkBelow, None),
            _ => return Err(corrupt("a name stands for nothing known", index)),
        };
        Ok(Dirent {
            index,
            parent: TreeIno(raw.parent.get()),
            name,
            target,
            file_type,
        })
    }

    /// Looks a name up in a directory: a binary search in the mapped file, without allocation.
    pub fn lookup(&self, dir: TreeIno, name: &[u8]) -> Result<Option<Dirent<'_>>, TreeError> {
        let Range {
            start: mut low,
            end: mut high,
        } = self.names_in(dir)?;
        while low < high {
            let middle = low + (high - low) / 2;
            let dirent = self.dirent(middle)?;
            match dirent.name.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(Some(dirent)),
            }
        }
        Ok(None)
    }

    /// Names in a directory.
    pub fn child_count(&self, dir: TreeIno) -> Result<u32, TreeError> {
        let names = self.names_in(dir)?;
        Ok(names.end - names.start)
    }

    /// The name at a position of a directory's sorted names.
    pub fn child(&self, dir: TreeIno, position: u32) -> Result<Option<Dirent<'_>>, TreeError> {
        let names = self.names_in(dir)?;
        match names.start.checked_add(position) {
            Some(index) if index < names.end => self.dirent(index).map(Some),
            _ => Ok(None),
        }
    }

    /// All names in a directory, sorted by their bytes.
    pub fn children(
        &self,
        dir: TreeIno,
    ) -> Result<impl Iterator<Item = Result<Dirent<'_>, TreeError>> + use<'_>, TreeError> {
        Ok(self.names_in(dir)?.map(|index| self.dirent(index)))
    }

    /// All names of a node, in the order in which the tree was numbered: the first is what gave it
    /// its number. The root has none.
    pub fn names_of(
        &self,
        ino: TreeIno,
    ) -> Result<impl Iterator<Item = Result<Dirent<'_>, TreeError>> + use<'_>, TreeError> {
        let position = ino.0 as usize;
        let bounds = self
            .inverse_index()
            .get(position..)
            .and_then(<[U32]>::first_chunk::<2>);
        let [start, end] = bounds.ok_or(TreeError::NoSuchNode(ino))?;
        let names = self
            .inverse_list()
            .get(start.get() as usize..end.get() as usize);
        let names = names.ok_or(corrupt("a node's names lie outside the table", ino.0))?;
        Ok(names.iter().map(|index| self.dirent(index.get())))
    }

    /// The path of a node by its first name, without a slash in front; empty for the root.
    pub fn path_of(&self, ino: TreeIno) -> Result<Vec<u8>, TreeError> {
        let mut upwards = Vec::new();
        let mut current = ino;
        while current != TreeIno::ROOT {
            if upwards.len() == MAX_DEPTH {
                return Err(corrupt("directories are nested without end", ino.0));
            }
            let first = self.names_of(current)?.next();
            let name = first.ok_or(corrupt("a node has no name", current.0))??;
            upwards.push(name.name);
            current = name.parent;
        }
        upwards.reverse();
        Ok(upwards.join(b"/".as_slice()))
    }

    /// The node at a path below the root; slashes in front, behind and doubled don't matter.
    /// Nothing is followed: a path through anything but directories, like one that ends at a
    /// whiteout or a link into other layers, names no node.
    pub fn resolve(&self, path: &[u8]) -> Result<Option<TreeIno>, TreeError> {
        let mut current = TreeIno::ROOT;
        for name in path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
        {
            let found = match self.lookup(current, name) {
                Err(TreeError::NotADirectory(_)) => None,
                other => other?,
            };
            match found.map(|dirent| dirent.target) {
                Some(Target::Node(ino)) => current = ino,
                Some(Target::Whiteout | Target::LinkBelow) | None => return Ok(None),
            }
        }
        Ok(Some(current))
    }

    /// Where a symbolic link points.
    pub fn symlink_target(&self, ino: TreeIno) -> Result<&[u8], TreeError> {
        let raw = self.raw_node(ino)?;
        if FileType::from_mode_bits(raw.mode.get()) != Some(FileType::Symlink) {
            return Err(TreeError::NotASymlink(ino));
        }
        let [offset, length] = raw.data;
        self.name_bytes(offset.get(), length.get())
            .ok_or(corrupt("a link's target lies outside the names", ino.0))
    }

    /// The path that a [`Target::LinkBelow`] is a hard link to, without a slash in front.
    pub fn link_target(&self, dirent: &Dirent<'_>) -> Result<&[u8], TreeError> {
        let raw = self
            .dirents()
            .get(dirent.index as usize)
            .filter(|raw| raw.flags == DIRENT_LINK);
        let position = raw.ok_or(TreeError::NotALink(dirent.index))?.target.get();
        let link = self
            .links()
            .get(position as usize)
            .ok_or(corrupt("a link outside the table", position))?;
        let target = self.name_bytes(link.offset.get(), link.length.get());
        target.ok_or(corrupt("a link's target lies outside the names", position))
    }

    /// A node's extended attributes as stored; None where it has none.
    pub(super) fn xattr_set(&self, ino: TreeIno) -> Result<Option<&[u8]>, TreeError> {
        let raw = self.raw_node(ino)?;
        let start = raw.xattr_offset.get();
        if start == NONE {
            return Ok(None);
        }
        let start = start as usize;
        let end = start.checked_add(raw.xattr_length.get() as usize);
        let set = end.and_then(|end| self.section(Section::Xattrs).get(start..end));
        set.ok_or(corrupt("attributes lie outside their heap", ino.0))
            .map(Some)
    }

    /// A node's extended attributes, sorted by name.
    pub fn xattrs(
        &self,
        ino: TreeIno,
    ) -> Result<impl Iterator<Item = Result<Xattr<'_>, TreeError>> + use<'_>, TreeError> {
        let set = match self.xattr_set(ino)? {
            None => Set::EMPTY,
            Some(bytes) => Set::parse(bytes).ok_or(corrupt("attributes without a count", ino.0))?,
        };
        Ok(set.map(move |attribute| attribute.ok_or(corrupt("attributes end early", ino.0))))
    }

    /// The value of one extended attribute.
    pub fn xattr(&self, ino: TreeIno, name: &[u8]) -> Result<Option<&[u8]>, TreeError> {
        for attribute in self.xattrs(ino)? {
            let (candidate, value) = attribute?;
            if candidate == name {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// The id of a content.
    pub fn object_id(&self, object: ObjectRef) -> Result<ObjectId, TreeError> {
        let raw = self
            .objects()
            .get(object.0 as usize)
            .ok_or(corrupt("an object outside the table", object.0))?;
        Ok(ObjectId::from_bytes(raw.id))
    }

    /// Distinct contents in the tree.
    pub fn object_count(&self) -> u32 {
        u32::try_from(self.objects().len()).unwrap_or(NONE)
    }

    /// The ids of all contents, each once.
    pub fn object_ids(&self) -> impl Iterator<Item = ObjectId> + use<'_> {
        self.object_sizes().map(|(id, _)| id)
    }

    /// The ids and sizes of all contents, each once: what gc, check and dedup read instead of the
    /// nodes.
    pub fn object_sizes(&self) -> impl Iterator<Item = (ObjectId, u64)> + use<'_> {
        let table = self.objects().iter();
        table.map(|raw| (ObjectId::from_bytes(raw.id), raw.size.get()))
    }

    /// Directories directly in a directory.
    pub fn subdir_count(&self, dir: TreeIno) -> Result<u32, TreeError> {
        self.names_in(dir)?;
        let nlink = self.raw_node(dir)?.nlink.get();
        nlink
            .checked_sub(2)
            .ok_or(corrupt("a directory has fewer than two links", dir.0))
    }
}
