//! Writes a tree's records. The layer builder and the merge both use it, so both number nodes
//! alike.
//!
//! Invariant: directories are written in the order of their numbers with sorted names, and a node
//! gets its number at its first name. This is the numbering rule; the writer only appends.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use hashbrown::HashTable;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::error::TreeError;
use super::format::{
    ALIGN, DIGEST_LEN, DIRENT_LINK, DIRENT_NODE, DIRENT_WHITEOUT, KIND_LAYER, KIND_MERGED, MAGIC,
    NODE_ELF, NODE_IMPLIED, NODE_OPAQUE, NONE, NUMBERING, RawDirent, RawHeader, RawLink, RawNode,
    RawObject, RawSection, Section, VERSION, header_length,
};
use super::types::{FileType, Rdev, Timestamp, TreeIno, TreeKind};
use crate::digest::{DiffId, ObjectId, Sha256Digest};

/// A tree would be larger than its 32-bit numbers allow, or two statements about one content
/// differ.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// More of something than the format can number.
    #[error("a tree can't hold more than {NONE} {0}")]
    Limit(&'static str),
    /// One object, two sizes: one of them is wrong.
    #[error("object {object} is said to have {first} bytes and {second} bytes")]
    ObjectSize {
        /// The content.
        object: ObjectId,
        /// What was said first.
        first: u64,
        /// What was said later.
        second: u64,
    },
}

/// Byte strings one after the other, each distinct one once. Equality is of the bytes; the hash
/// only finds candidates, so the result does not depend on its random key.
#[derive(Debug, Default)]
pub(super) struct Heap {
    bytes: Vec<u8>,
    /// Where each string ends, and the next begins.
    ends: Vec<u32>,
    /// The numbers of the strings, by their hash.
    numbers: HashTable<u32>,
    hasher: RandomState,
}

impl Heap {
    /// The number of a string in order of first use.
    pub(super) fn intern(&mut self, string: &[u8], what: &'static str) -> Result<u32, WriteError> {
        let Self {
            bytes,
            ends,
            numbers,
            hasher,
        } = self;
        let hash = hasher.hash_one(string);
        let text = |number: &u32| bytes.get(range(ends, *number)).unwrap_or_default();
        if let Some(number) = numbers.find(hash, |number| text(number) == string) {
            return Ok(*number);
        }
        let limit = |_too_large| WriteError::Limit(what);
        let number = u32::try_from(ends.len()).map_err(limit)?;
        let end = u32::try_from(bytes.len() + string.len()).map_err(limit)?;
        if number == NONE {
            return Err(WriteError::Limit(what));
        }
        numbers.insert_unique(hash, number, |number| hasher.hash_one(text(number)));
        bytes.extend_from_slice(string);
        ends.push(end);
        Ok(number)
    }

    /// The string of a number.
    pub(super) fn get(&self, number: u32) -> &[u8] {
        let range = range(&self.ends, number);
        self.bytes.get(range).unwrap_or_default()
    }

    /// Offset and length of a string in the heap.
    fn place(&mut self, string: &[u8], what: &'static str) -> Result<(u32, u32), WriteError> {
        let number = self.intern(string, what)?;
        let range = range(&self.ends, number);
        let limit = |_too_large| WriteError::Limit(what);
        Ok((
            u32::try_from(range.start).map_err(limit)?,
            u32::try_from(range.len()).map_err(limit)?,
        ))
    }
}

/// Where a heap's string is, given where each ends.
fn range(ends: &[u32], number: u32) -> std::ops::Range<usize> {
    let number = number as usize;
    let end = |number: usize| ends.get(number).map_or(0, |end| *end as usize);
    number.checked_sub(1).map_or(0, end)..end(number)
}

/// Bytes of header and section table with their digest, behind which the first section begins.
const HEADER: usize = header_length(Section::ALL.len());
const _: () = assert!(HEADER.is_multiple_of(ALIGN));

/// A node as its maker knows it. Numbers of links and names come from the writer.
#[derive(Copy, Clone)]
pub(super) struct NewNode<'a> {
    pub(super) file_type: FileType,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) size: u64,
    pub(super) elf: bool,
    pub(super) implied: bool,
    pub(super) opaque: bool,
    pub(super) rdev: Rdev,
    /// The number of its content in order of first use.
    pub(super) object: Option<u32>,
    pub(super) symlink: &'a [u8],
    pub(super) xattrs: Option<&'a [u8]>,
}

impl NewNode<'_> {
    /// A directory of which nothing is known.
    pub(super) const DIRECTORY: Self = Self {
        file_type: FileType::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Timestamp { secs: 0, nanos: 0 },
        size: 0,
        elf: false,
        implied: false,
        opaque: false,
        rdev: Rdev { major: 0, minor: 0 },
        object: None,
        symlink: &[],
        xattrs: None,
    };
}

/// What a new name stands for.
pub(super) enum NewTarget<'a> {
    Node(TreeIno),
    Whiteout,
    LinkBelow(&'a [u8]),
}

pub(super) struct Writer {
    kind: TreeKind,
    /// The file as far as it can be written: room for its header, then the nodes, which are the
    /// first section and the most of it.
    file: Vec<u8>,
    nodes: u32,
    dirents: Vec<RawDirent>,
    links: Vec<RawLink>,
    names: Heap,
    xattrs: Heap,
}

impl Writer {
    pub(super) fn new(kind: TreeKind) -> Self {
        Self {
            kind,
            file: vec![0; HEADER],
            nodes: 0,
            dirents: Vec::new(),
            links: Vec::new(),
            names: Heap::default(),
            xattrs: Heap::default(),
        }
    }

    /// Makes the next node; the first is the root.
    pub(super) fn node(&mut self, new: &NewNode<'_>) -> Result<TreeIno, WriteError> {
        let number = self.nodes;
        if number >= NONE - 1 {
            return Err(WriteError::Limit("files"));
        }
        let data = match new.file_type {
            FileType::Regular => [new.object.unwrap_or(NONE), 0],
            FileType::Symlink => {
                let (offset, length) = self.names.place(new.symlink, "bytes of names")?;
                [offset, length]
            }
            FileType::CharDevice | FileType::BlockDevice => [new.rdev.major, new.rdev.minor],
            FileType::Directory | FileType::Fifo | FileType::Socket => [0, 0],
        };
        let (xattr_offset, xattr_length) = match new.xattrs {
            None => (NONE, 0),
            Some(set) => self.xattrs.place(set, "bytes of extended attributes")?,
        };
        let flags = [
            (new.elf, NODE_ELF),
            (new.implied, NODE_IMPLIED),
            (new.opaque, NODE_OPAQUE),
        ];
        let flags = flags
            .into_iter()
            .filter_map(|(set, flag)| set.then_some(flag))
            .sum::<u32>();
        let node = RawNode {
            mode: (new.file_type.to_mode_bits() | new.mode & 0o7777).into(),
            uid: new.uid.into(),
            gid: new.gid.into(),
            nlink: if new.file_type == FileType::Directory {
                2
            } else {
                0
            }
            .into(),
            size: new.size.into(),
            mtime_secs: new.mtime.secs.into(),
            mtime_nanos: new.mtime.nanos.into(),
            flags: flags.into(),
            data: data.map(U32::new),
            xattr_offset: xattr_offset.into(),
            xattr_length: xattr_length.into(),
            reserved: [0; 8],
        };
        self.file.extend_from_slice(node.as_bytes());
        self.nodes += 1;
        Ok(TreeIno(number))
    }

    /// Names that follow are this directory's.
    pub(super) fn begin_directory(&mut self, dir: TreeIno) -> Result<(), WriteError> {
        let first = self.next_dirent()?;
        self.node_mut(dir)?.data = [first.into(), 0.into()];
        Ok(())
    }

    /// A node that this writer made; there is no other.
    fn node_mut(&mut self, ino: TreeIno) -> Result<&mut RawNode, WriteError> {
        let start = HEADER + ino.0 as usize * size_of::<RawNode>();
        let bytes = self.file.get_mut(start..start + size_of::<RawNode>());
        let node = bytes.and_then(|bytes| RawNode::mut_from_bytes(bytes).ok());
        node.ok_or(WriteError::Limit("files"))
    }

    fn next_dirent(&self) -> Result<u32, WriteError> {
        let number = u32::try_from(self.dirents.len())
            .ok()
            .filter(|number| *number != NONE);
        number.ok_or(WriteError::Limit("names"))
    }

    /// Adds the next name of the directory begun last.
    pub(super) fn dirent(
        &mut self,
        parent: TreeIno,
        name: &[u8],
        target: &NewTarget<'_>,
    ) -> Result<(), WriteError> {
        self.next_dirent()?;
        let (name_offset, _) = self.names.place(name, "bytes of names")?;
        let name_length =
            u16::try_from(name.len()).map_err(|_long| WriteError::Limit("bytes in a name"))?;
        let (number, file_type, flags) = match target {
            NewTarget::Node(ino) => (ino.0, self.link(parent, *ino)?, DIRENT_NODE),
            NewTarget::Whiteout => (0, 0, DIRENT_WHITEOUT),
            NewTarget::LinkBelow(path) => (self.link_below(path)?, 0, DIRENT_LINK),
        };
        self.dirents.push(RawDirent {
            target: number.into(),
            parent: parent.0.into(),
            name_offset: name_offset.into(),
            name_length: name_length.into(),
            file_type,
            flags,
        });
        let [_, count] = &mut self.node_mut(parent)?.data;
        *count += 1;
        Ok(())
    }

    /// Counts a name of a node, or a subdirectory of the parent; gives the node's type.
    fn link(&mut self, parent: TreeIno, ino: TreeIno) -> Result<u8, WriteError> {
        let file_type = FileType::from_mode_bits(self.node_mut(ino)?.mode.get());
        let counted = if file_type == Some(FileType::Directory) {
            parent
        } else {
            ino
        };
        self.node_mut(counted)?.nlink += 1;
        Ok(file_type.map_or(0, FileType::dirent_type))
    }

    fn link_below(&mut self, path: &[u8]) -> Result<u32, WriteError> {
        // There is at most one for each name, so that limit holds here too.
        let number =
            u32::try_from(self.links.len()).map_err(|_too_many| WriteError::Limit("names"))?;
        let (offset, length) = self.names.place(path, "bytes of names")?;
        self.links.push(RawLink {
            offset: offset.into(),
            length: length.into(),
        });
        Ok(number)
    }

    /// The inverse: for each node where its part of the list begins, and the list of names.
    fn inverse(&self) -> (Vec<U32>, Vec<U32>) {
        let targets = || {
            let numbered = (0u32..).zip(&self.dirents);
            numbered
                .filter(|(_, raw)| raw.flags == DIRENT_NODE)
                .map(|(index, raw)| (index, raw.target.get() as usize))
        };
        // Counts, shifted by two so that filling in below leaves beginnings shifted by one, as the
        // file has them.
        let mut index = vec![0u32; self.nodes as usize + 2];
        for (_, node) in targets() {
            if let Some(count) = index.get_mut(node + 2) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for entry in &mut index {
            sum += *entry;
            *entry = sum;
        }
        let mut list = vec![U32::ZERO; sum as usize];
        for (dirent, node) in targets() {
            let Some(next) = index.get_mut(node + 1) else {
                continue;
            };
            if let Some(entry) = list.get_mut(*next as usize) {
                *entry = dirent.into();
            }
            *next += 1;
        }
        index.pop();
        (index.into_iter().map(U32::new).collect(), list)
    }

    /// The table of the contents, given their ids by number. Their sizes are those of the nodes.
    fn object_table(
        &self,
        ids: impl IntoIterator<Item = ObjectId>,
    ) -> Result<Vec<RawObject>, WriteError> {
        let nodes = self.file.get(HEADER..).unwrap_or_default();
        let nodes =
            <[RawNode]>::ref_from_bytes(nodes).map_err(|_odd| WriteError::Limit("files"))?;
        let mut ids = ids.into_iter();
        let mut table: Vec<RawObject> = Vec::new();
        for node in nodes {
            let [number, _] = node.data;
            let file_type = FileType::from_mode_bits(node.mode.get());
            if file_type != Some(FileType::Regular) || number == NONE {
                continue;
            }
            match table.get(number.get() as usize) {
                Some(known) if known.size == node.size => {}
                Some(known) => {
                    return Err(WriteError::ObjectSize {
                        object: ObjectId::from_bytes(known.id),
                        first: known.size.get(),
                        second: node.size.get(),
                    });
                }
                // In order of first use, so this is the next.
                None => table.extend(ids.next().map(|id| RawObject {
                    id: *id.as_bytes(),
                    size: node.size,
                })),
            }
        }
        Ok(table)
    }

    /// The whole file: the tree of the layer or stack called `owner`, with the ids of its contents
    /// by number. Each section is freed once it is in the file, so the tree is not in memory twice.
    pub(super) fn finish(
        mut self,
        owner: Sha256Digest,
        ids: impl IntoIterator<Item = ObjectId>,
    ) -> Result<Vec<u8>, WriteError> {
        // No string follows.
        self.names.numbers = HashTable::new();
        self.xattrs.numbers = HashTable::new();
        let objects = self.object_table(ids)?;
        let (inverse_index, inverse_list) = self.inverse();
        let lengths = [
            self.file.len() - HEADER,
            self.dirents.as_bytes().len(),
            inverse_index.as_bytes().len(),
            inverse_list.as_bytes().len(),
            self.links.as_bytes().len(),
            self.names.bytes.len(),
            self.xattrs.bytes.len(),
            objects.as_bytes().len(),
        ];
        let mut end = header_length(lengths.len());
        let mut table = Vec::with_capacity(lengths.len());
        for (section, length) in Section::ALL.into_iter().zip(lengths) {
            let offset = end.next_multiple_of(ALIGN);
            end = offset + length;
            table.push(RawSection {
                id: (section as u32).into(),
                record: U32::new(u32::try_from(section.record()).unwrap_or(NONE)),
                offset: (offset as u64).into(),
                length: (length as u64).into(),
            });
        }
        let length = end + DIGEST_LEN;
        let header = self.header(&table, objects.len(), length, owner);
        let mut head = [header.as_bytes(), table.as_bytes()].concat();
        append_digest(&mut head);
        let Self {
            mut file,
            dirents,
            links,
            names,
            xattrs,
            kind: _,
            nodes: _,
        } = self;
        let (names, xattrs) = (names.bytes, xattrs.bytes);
        if let Some(room) = file.get_mut(..HEADER) {
            room.copy_from_slice(&head);
        }
        file.reserve_exact(length - file.len());
        append_section(&mut file, dirents);
        append_section(&mut file, inverse_index);
        append_section(&mut file, inverse_list);
        append_section(&mut file, links);
        append_section(&mut file, names);
        append_section(&mut file, xattrs);
        append_section(&mut file, objects);
        append_digest(&mut file);
        Ok(file)
    }

    fn header(
        &self,
        table: &[RawSection],
        objects: usize,
        length: usize,
        owner: Sha256Digest,
    ) -> RawHeader {
        // The makers of nodes, names and objects have kept these counts below NONE.
        let count = |records: usize| U32::new(u32::try_from(records).unwrap_or(NONE));
        RawHeader {
            magic: MAGIC,
            version: VERSION.into(),
            numbering: NUMBERING.into(),
            kind: match self.kind {
                TreeKind::Layer => KIND_LAYER,
                TreeKind::Merged => KIND_MERGED,
            },
            reserved: [0; 3],
            compat: 0.into(),
            incompat: 0.into(),
            nodes: self.nodes.into(),
            dirents: count(self.dirents.len()),
            objects: count(objects),
            sections: count(table.len()),
            length: (length as u64).into(),
            reserved_too: [0; 8],
            owner: *owner.as_bytes(),
        }
    }
}

/// Appends a section at its place and frees it.
fn append_section<T: IntoBytes + Immutable>(file: &mut Vec<u8>, records: Vec<T>) {
    file.resize(file.len().next_multiple_of(ALIGN), 0);
    file.extend_from_slice(records.as_bytes());
    drop(records);
}

/// The same layer's tree under another DiffID, which is known only once the layer's tar is written
/// from its tree.
pub(super) fn rename(mut file: Vec<u8>, diff: DiffId) -> Result<Vec<u8>, TreeError> {
    let (header, _) = RawHeader::mut_from_prefix(&mut file).map_err(|_short| TreeError::Magic)?;
    header.owner = *diff.0.as_bytes();
    let body = header_length(header.sections.get() as usize);
    for end in [body, file.len()] {
        let digested = file.get_mut(..end).and_then(<[u8]>::split_last_chunk_mut);
        let (bytes, digest): (&mut [u8], &mut [u8; DIGEST_LEN]) =
            digested.ok_or(TreeError::HeaderDigest)?;
        *digest = *blake3::hash(bytes).as_bytes();
    }
    Ok(file)
}

fn append_digest(file: &mut Vec<u8>) {
    let digest = blake3::hash(file);
    file.extend_from_slice(digest.as_bytes());
}
