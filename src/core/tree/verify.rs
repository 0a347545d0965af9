//! Checks a whole tree by reading it: for `cowl check` and for trees of doubtful origin.
//!
//! A tree that passes has exactly the shape that the writer produces: each node is reachable by a
//! finite path, and redundant records agree.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use zerocopy::IntoBytes;

use super::error::{TreeError, corrupt};
use super::format::{
    DIGEST_LEN, MAX_DEPTH, NANOS_PER_SEC, NODE_ELF, NODE_IMPLIED, NODE_OPAQUE, NONE, NUMBERING,
    RawNode, RawObject, valid_name, valid_symlink,
};
use super::reader::Tree;
use super::types::{Dirent, FileType, Target, TreeIno, TreeKind};
use super::xattr::{self, Set};

impl Tree {
    /// Checks the digest of the whole file, each record, and that they fit together.
    pub fn verify(&self) -> Result<(), TreeError> {
        self.verify_digest()?;
        if self.numbering() != NUMBERING {
            return Err(corrupt(
                "nodes are numbered by a rule that is not known",
                u32::from(self.numbering()),
            ));
        }
        let links = Walk::new(self).run()?;
        Contents::default().check(self, &links)?;
        check_inverse(self, &links)
    }

    /// Checks that the file is as it was written; its records are not looked at.
    pub fn verify_digest(&self) -> Result<(), TreeError> {
        let (hashed, _) = self
            .bytes()
            .split_last_chunk::<DIGEST_LEN>()
            .ok_or(TreeError::Magic)?;
        if *blake3::hash(hashed).as_bytes() != self.digest() {
            return Err(TreeError::Digest);
        }
        Ok(())
    }
}

/// Follows the numbering: directory by directory in their order, name by name.
struct Walk<'t> {
    tree: &'t Tree,
    /// Nodes that were reached have the numbers below this.
    next_node: u32,
    next_dirent: u32,
    next_link: u32,
    /// For each node its names; for a directory 2 and its subdirectories.
    links: Vec<u32>,
    depths: Vec<u16>,
}

impl<'t> Walk<'t> {
    fn new(tree: &'t Tree) -> Self {
        let count = tree.node_count() as usize;
        Self {
            tree,
            next_node: 1,
            next_dirent: 0,
            next_link: 0,
            links: vec![0; count],
            depths: vec![0; count],
        }
    }

    fn run(mut self) -> Result<Vec<u32>, TreeError> {
        for number in 0..self.tree.node_count() {
            if number >= self.next_node {
                return Err(corrupt("a node is not reached, or out of order", number));
            }
            let ino = TreeIno(number);
            if self.tree.node(ino)?.file_type == FileType::Directory {
                *self.count(ino)? += 2;
                self.directory(ino)?;
            }
        }
        if self.next_node != self.tree.node_count() {
            return Err(corrupt(
                "a name stands for a node outside the table",
                self.next_node,
            ));
        }
        if self.next_dirent != self.tree.dirent_count() {
            return Err(corrupt("a name is in no directory", self.next_dirent));
        }
        if self.next_link as usize != self.tree.links().len() {
            return Err(corrupt("a link has no name", self.next_link));
        }
        Ok(self.links)
    }

    fn directory(&mut self, ino: TreeIno) -> Result<(), TreeError> {
        let names = self.tree.names_in(ino)?;
        if names.start != self.next_dirent {
            return Err(corrupt("a directory's names are not in their place", ino.0));
        }
        self.next_dirent = names.end;
        let mut previous: &[u8] = &[];
        for index in names {
            let dirent = self.tree.dirent(index)?;
            if dirent.parent != ino {
                return Err(corrupt(
                    "a name is in another directory than its own",
                    index,
                ));
            }
            if !valid_name(dirent.name) {
                return Err(corrupt("a name that no file can have", index));
            }
            if dirent.name <= previous {
                return Err(corrupt("names are not sorted", index));
            }
            previous = dirent.name;
            self.target(ino, &dirent)?;
        }
        Ok(())
    }

    fn target(&mut self, parent: TreeIno, dirent: &Dirent<'_>) -> Result<(), TreeError> {
        let raw = self
            .tree
            .dirents()
            .get(dirent.index as usize)
            .map(|raw| (raw.target.get(), raw.file_type));
        match dirent.target {
            Target::Node(ino) => self.node(parent, ino, dirent),
            Target::Whiteout if raw == Some((0, 0)) => Ok(()),
            Target::LinkBelow if raw == Some((self.next_link, 0)) => {
                self.next_link += 1;
                let mut path = self.tree.link_target(dirent)?.split(|byte| *byte == b'/');
                if path.all(valid_name) {
                    Ok(())
                } else {
                    Err(corrupt("a link to what no path can be", dirent.index))
                }
            }
            Target::Whiteout | Target::LinkBelow => {
                Err(corrupt("a whiteout or link has other data", dirent.index))
            }
        }
    }

    fn node(
        &mut self,
        parent: TreeIno,
        ino: TreeIno,
        dirent: &Dirent<'_>,
    ) -> Result<(), TreeError> {
        let file_type = self.tree.node(ino)?.file_type;
        if dirent.file_type != Some(file_type) {
            return Err(corrupt(
                "a name has another type than its node",
                dirent.index,
            ));
        }
        let directory = file_type == FileType::Directory;
        if ino.0 == self.next_node {
            self.next_node += 1;
            let depth = self
                .depths
                .get(parent.0 as usize)
                .copied()
                .unwrap_or_default()
                + 1;
            if usize::from(depth) > MAX_DEPTH {
                return Err(corrupt("directories are nested too deep", dirent.index));
            }
            if let Some(own) = self.depths.get_mut(ino.0 as usize) {
                *own = depth;
            }
        } else if ino.0 > self.next_node || directory {
            return Err(corrupt(
                "a name's node is out of order, or a directory has two names",
                dirent.index,
            ));
        }
        *self.count(if directory { parent } else { ino })? += 1;
        Ok(())
    }

    fn count(&mut self, ino: TreeIno) -> Result<&mut u32, TreeError> {
        self.links
            .get_mut(ino.0 as usize)
            .ok_or(TreeError::NoSuchNode(ino))
    }
}

/// Checks each node by itself, and the objects by their order of first use.
#[derive(Default)]
struct Contents {
    /// For each object that was used the size of its content.
    sizes: Vec<u64>,
}

/// Whether no id is there twice: without a copy of the ids, since there may be millions.
fn are_distinct(objects: &[RawObject]) -> bool {
    let hasher = RandomState::new();
    let mut seen: HashTable<&RawObject> = HashTable::with_capacity(objects.len());
    objects.iter().all(|object| {
        let entry = seen.entry(
            hasher.hash_one(object.id),
            |known| known.id == object.id,
            |known| hasher.hash_one(known.id),
        );
        match entry {
            Entry::Occupied(_) => false,
            Entry::Vacant(new) => {
                new.insert(object);
                true
            }
        }
    })
}

impl Contents {
    fn check(mut self, tree: &Tree, links: &[u32]) -> Result<(), TreeError> {
        for (number, (raw, links)) in (0..).zip(tree.nodes().iter().zip(links)) {
            if raw.nlink.get() != *links {
                return Err(corrupt(
                    "a node has another number of names than it says",
                    number,
                ));
            }
            check_attributes(tree, number, raw)?;
            check_xattrs(tree, number, raw)?;
            self.check_content(tree, number, raw)?;
        }
        if self.sizes.len() != tree.objects().len() {
            return Err(corrupt("an object is not used", tree.object_count()));
        }
        if !tree.object_sizes().map(|(_, size)| size).eq(self.sizes) {
            return Err(corrupt(
                "an object has another size than its files",
                tree.object_count(),
            ));
        }
        if !are_distinct(tree.objects()) {
            return Err(corrupt("an object is there twice", tree.object_count()));
        }
        Ok(())
    }

    fn check_content(&mut self, tree: &Tree, number: u32, raw: &RawNode) -> Result<(), TreeError> {
        let size = raw.size.get();
        let [first, second] = raw.data.map(zerocopy::little_endian::U32::get);
        let good = match FileType::from_mode_bits(raw.mode.get()) {
            Some(FileType::Regular) => {
                second == 0 && i64::try_from(size).is_ok() && self.check_object(first, size)
            }
            Some(FileType::Symlink) => {
                size == u64::from(second) && valid_symlink(tree.symlink_target(TreeIno(number))?)
            }
            // A directory's data were checked on the walk, a device's can be anything.
            Some(FileType::Directory | FileType::CharDevice | FileType::BlockDevice) => size == 0,
            _ => size == 0 && first == 0 && second == 0,
        };
        if good {
            Ok(())
        } else {
            Err(corrupt("a node's content is not what its type has", number))
        }
    }

    fn check_object(&mut self, object: u32, size: u64) -> bool {
        if size == 0 || object == NONE {
            return size == 0 && object == NONE;
        }
        if let Some(known) = self.sizes.get(object as usize) {
            return *known == size;
        }
        let in_order = self.sizes.len() == object as usize;
        self.sizes.push(size);
        in_order
    }
}

fn check_attributes(tree: &Tree, number: u32, raw: &RawNode) -> Result<(), TreeError> {
    let mode = raw.mode.get();
    let file_type = FileType::from_mode_bits(mode);
    let flags = match (file_type, tree.kind()) {
        (Some(FileType::Regular), _) => NODE_ELF,
        (Some(FileType::Directory), TreeKind::Layer) => NODE_IMPLIED | NODE_OPAQUE,
        _ => 0,
    };
    let good = mode >> 16 == 0
        && raw.mtime_nanos.get() < NANOS_PER_SEC
        && raw.flags.get() & !flags == 0
        && raw.reserved.as_bytes().iter().all(|byte| *byte == 0);
    if good {
        Ok(())
    } else {
        Err(corrupt(
            "a node's attributes are not what its type has",
            number,
        ))
    }
}

fn check_xattrs(tree: &Tree, number: u32, raw: &RawNode) -> Result<(), TreeError> {
    let wrong = corrupt("extended attributes are not sorted, or not whole", number);
    let Some(bytes) = tree.xattr_set(TreeIno(number))? else {
        return if raw.xattr_length.get() == 0 {
            Ok(())
        } else {
            Err(wrong)
        };
    };
    let Some(mut set) = Set::parse(bytes) else {
        return Err(wrong);
    };
    let mut previous: &[u8] = &[];
    for attribute in set.by_ref() {
        match attribute {
            Some((name, _)) if name > previous && xattr::valid_name(name) => previous = name,
            _ => return Err(wrong),
        }
    }
    if set.is_at_end() && !previous.is_empty() {
        Ok(())
    } else {
        Err(wrong)
    }
}

/// With the counts known to be right it is enough that each entry is a name of its node, and that
/// none comes twice.
fn check_inverse(tree: &Tree, links: &[u32]) -> Result<(), TreeError> {
    let index = tree.inverse_index();
    let mut begin = 0;
    for (number, (entry, links)) in (0u32..).zip(index.iter().zip(links)) {
        if entry.get() != begin {
            return Err(corrupt("the inverse is not in the order of nodes", number));
        }
        let ino = TreeIno(number);
        let mut previous = None;
        for name in tree.names_of(ino)? {
            let name = name?;
            if name.target != Target::Node(ino) || previous >= Some(name.index) {
                return Err(corrupt(
                    "the inverse has a name that is not its node's",
                    number,
                ));
            }
            previous = Some(name.index);
            begin += 1;
        }
        let names = match tree.node(ino)?.file_type {
            FileType::Directory => u32::from(ino != TreeIno::ROOT),
            _ => *links,
        };
        if begin != entry.get() + names {
            return Err(corrupt("the inverse lacks a name", number));
        }
    }
    if index.last().map(|entry| entry.get()) != Some(begin)
        || tree.inverse_list().len() != begin as usize
    {
        return Err(corrupt("the inverse is longer than its nodes", begin));
    }
    Ok(())
}
