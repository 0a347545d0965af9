//! Numbers the nodes of a [`LayerBuilder`] and hands them to the writer.
//!
//! Joins a layer's entries with its whiteouts: a whiteout is written only where the layer has no
//! entry.

use std::collections::VecDeque;

use super::builder::{Attributes, BuilderDir, Entry, LayerBuilder, Leaf, LeafId, LeafKind, ROOT};
use super::format::NONE;
use super::types::{FileType, ObjectRef, TreeIno, TreeKind};
use super::writer::{NewNode, NewTarget, WriteError, Writer};
use crate::digest::{DiffId, ObjectId};

/// Where the contents that a builder was given are.
#[derive(Debug)]
pub struct PlacedContents {
    /// For each content in order of first use, its place in the tree's table; beyond that table, its
    /// place in `replaced`.
    places: Vec<u32>,
    tree_objects: u32,
    replaced: Vec<ObjectId>,
}

/// Where one content is.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum ContentPlace {
    /// In the tree.
    Tree(ObjectRef),
    /// In none of its files: what had it was replaced.
    Replaced(ObjectId),
}

impl PlacedContents {
    /// Where the content of a number is; None if there is no such content.
    pub fn get(&self, number: u32) -> Option<ContentPlace> {
        let place = *self.places.get(number as usize)?;
        match place.checked_sub(self.tree_objects) {
            None => Some(ContentPlace::Tree(ObjectRef(place))),
            Some(replaced) => {
                let id = self.replaced.get(replaced as usize)?;
                Some(ContentPlace::Replaced(*id))
            }
        }
    }

    /// The numbers of the contents in the tree's table.
    pub fn numbers(&self) -> Vec<u32> {
        let mut numbers = vec![0; self.tree_objects as usize];
        for (number, place) in (0..).zip(&self.places) {
            if let Some(of_place) = numbers.get_mut(*place as usize) {
                *of_place = number;
            }
        }
        numbers
    }

    /// All, in order of first use.
    pub fn iter(&self) -> impl Iterator<Item = ContentPlace> {
        (0..).map_while(|number| self.get(number))
    }
}

/// Numbers and writes everything below the root, directory by directory.
pub(super) fn write(
    mut builder: LayerBuilder,
    diff: DiffId,
) -> Result<(Vec<u8>, PlacedContents), WriteError> {
    let ids = std::mem::take(&mut builder.contents).into_ids();
    let mut contents = Contents {
        places: vec![NONE; ids.len()],
        ids,
        used: Vec::new(),
    };
    let mut writer = Writer::new(TreeKind::Layer);
    number(builder, &mut writer, &mut contents)?;
    // The builder is gone: its memory is not needed beside the file's.
    let (placed, table) = contents.finish();
    Ok((writer.finish(diff.0, table)?, placed))
}

/// The contents of the builder, as they are numbered in the tree.
struct Contents {
    ids: Vec<ObjectId>,
    /// For each, its place in `used`; [`NONE`] if it is not there.
    places: Vec<u32>,
    /// Their places in `ids`, in the order of the tree.
    used: Vec<u32>,
}

impl Contents {
    /// The content's number in the tree.
    fn place(&mut self, number: u32) -> Option<u32> {
        let place = self.places.get_mut(number as usize)?;
        if *place == NONE {
            // There are no more than numbers.
            *place = u32::try_from(self.used.len()).ok()?;
            self.used.push(number);
        }
        Some(*place)
    }

    /// Where each is, and the ids of the tree's table.
    fn finish(self) -> (PlacedContents, impl Iterator<Item = ObjectId>) {
        let Self {
            ids,
            mut places,
            used,
        } = self;
        // used has no more entries than places, whose numbers fit.
        let tree_objects = u32::try_from(used.len()).unwrap_or(NONE);
        let mut replaced = Vec::new();
        let unused = places
            .iter_mut()
            .zip(&ids)
            .filter(|(place, _)| **place == NONE);
        for (next, (place, id)) in (tree_objects..).zip(unused) {
            *place = next;
            replaced.push(*id);
        }
        let placed = PlacedContents {
            places,
            tree_objects,
            replaced,
        };
        let id = move |number: u32| ids.get(number as usize).copied();
        (placed, used.into_iter().filter_map(id))
    }
}

fn number(
    mut builder: LayerBuilder,
    writer: &mut Writer,
    contents: &mut Contents,
) -> Result<(), WriteError> {
    let names = std::mem::take(&mut builder.names).sorted();
    let mut numbers = vec![NONE; builder.leaves.len()];
    let root = writer.node(&directory(&builder, builder.dir(ROOT), false))?;
    let mut queue = VecDeque::from([(root, ROOT)]);
    while let Some((ino, dir)) = queue.pop_front() {
        writer.begin_directory(ino)?;
        for (bytes, name) in names.of(dir) {
            let target = match name.entry {
                Some(Entry::Dir(child)) => {
                    let new = directory(&builder, builder.dir(child), name.whiteout);
                    let number = writer.node(&new)?;
                    queue.push_back((number, child));
                    NewTarget::Node(number)
                }
                Some(Entry::Leaf(id)) => {
                    let number = number_leaf(writer, &builder, contents, &mut numbers, id)?;
                    NewTarget::Node(number)
                }
                Some(Entry::LinkBelow(place)) => {
                    let target = builder.links_below.get(place as usize);
                    NewTarget::LinkBelow(target.map(Box::as_ref).unwrap_or_default())
                }
                None if name.whiteout => NewTarget::Whiteout,
                // Unreachable: every name has an entry or a whiteout.
                None => continue,
            };
            writer.dirent(ino, bytes, &target)?;
        }
    }
    Ok(())
}

/// A directory with a whiteout in the same layer replaces the one below: it is opaque and keeps
/// none of its attributes.
fn directory<'b>(builder: &'b LayerBuilder, dir: &BuilderDir, whiteout: bool) -> NewNode<'b> {
    let new = NewNode {
        opaque: dir.opaque || whiteout,
        ..NewNode::DIRECTORY
    };
    match &dir.attributes {
        None => NewNode {
            implied: !whiteout,
            ..new
        },
        Some(attributes) => attributes.of(builder, new),
    }
}

#[expect(
    clippy::indexing_slicing,
    reason = "every LeafId was made by the builder, and numbers is as long as leaves"
)]
fn number_leaf(
    writer: &mut Writer,
    builder: &LayerBuilder,
    contents: &mut Contents,
    numbers: &mut [u32],
    id: LeafId,
) -> Result<TreeIno, WriteError> {
    let place = id.0 as usize;
    if numbers[place] != NONE {
        return Ok(TreeIno(numbers[place]));
    }
    let Leaf { attributes, kind } = &builder.leaves[place];
    let new = attributes.of(builder, NewNode::DIRECTORY);
    let number = writer.node(&match kind {
        LeafKind::Regular { size, object, elf } => NewNode {
            file_type: FileType::Regular,
            size: *size,
            object: contents.place(*object),
            elf: *elf,
            ..new
        },
        LeafKind::Symlink(target) => {
            let symlink = builder.symlinks.get(*target);
            NewNode {
                file_type: FileType::Symlink,
                size: symlink.len() as u64,
                symlink,
                ..new
            }
        }
        LeafKind::Special(file_type, rdev) => NewNode {
            file_type: *file_type,
            rdev: *rdev,
            ..new
        },
    })?;
    numbers[place] = number.0;
    Ok(number)
}

impl Attributes {
    fn of<'b>(&self, builder: &'b LayerBuilder, new: NewNode<'b>) -> NewNode<'b> {
        let Self {
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        } = self;
        NewNode {
            mode: *mode,
            uid: *uid,
            gid: *gid,
            mtime: *mtime,
            xattrs: (*xattrs != NONE).then(|| builder.xattrs.get(*xattrs)),
            ..new
        }
    }
}
