//! Numbers the nodes of a [`LayerBuilder`] and hands them to the writer.
//!
//! Joins a layer's entries with its whiteouts: a whiteout is written only where the layer has no
//! entry.

use std::collections::VecDeque;

use super::builder::{Attributes, BuilderDir, Entry, LayerBuilder, Leaf, LeafId, LeafKind, ROOT};
use super::types::{FileType, TreeIno, TreeKind};
use super::writer::{NewNode, NewTarget, WriteError, Writer};
use crate::digest::DiffId;

/// Numbers and writes everything below the root, directory by directory.
pub(super) fn write(builder: LayerBuilder, diff: DiffId) -> Result<Vec<u8>, WriteError> {
    let mut writer = Writer::new(TreeKind::Layer);
    number(builder, &mut writer)?;
    // The builder is gone: its memory is not needed beside the file's.
    Ok(writer.finish(diff.0))
}

fn number(mut builder: LayerBuilder, writer: &mut Writer) -> Result<(), WriteError> {
    let names = std::mem::take(&mut builder.names).sorted();
    let mut numbers: Vec<Option<TreeIno>> = vec![None; builder.leaves.len()];
    let mut queue = VecDeque::from([(writer.node(&directory(builder.dir(ROOT), false))?, ROOT)]);
    while let Some((ino, dir)) = queue.pop_front() {
        writer.begin_directory(ino)?;
        for (bytes, name) in names.of(dir) {
            let target = match name.entry {
                Some(Entry::Dir(child)) => {
                    let number = writer.node(&directory(builder.dir(child), name.whiteout))?;
                    queue.push_back((number, child));
                    NewTarget::Node(number)
                }
                Some(Entry::Leaf(id)) => {
                    NewTarget::Node(number_leaf(writer, &builder, &mut numbers, id)?)
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
fn directory(dir: &BuilderDir, whiteout: bool) -> NewNode<'_> {
    let new = NewNode {
        opaque: dir.opaque || whiteout,
        ..NewNode::DIRECTORY
    };
    match &dir.attributes {
        None => NewNode {
            implied: !whiteout,
            ..new
        },
        Some(attributes) => attributes.of(new),
    }
}

#[expect(
    clippy::indexing_slicing,
    reason = "every LeafId was made by the builder, and numbers is as long as leaves"
)]
fn number_leaf(
    writer: &mut Writer,
    builder: &LayerBuilder,
    numbers: &mut [Option<TreeIno>],
    id: LeafId,
) -> Result<TreeIno, WriteError> {
    let place = id.0 as usize;
    if let Some(known) = numbers[place] {
        return Ok(known);
    }
    let Leaf { attributes, kind } = &builder.leaves[place];
    let new = attributes.of(NewNode::DIRECTORY);
    let number = writer.node(&match kind {
        LeafKind::Regular { size, object, elf } => NewNode {
            file_type: FileType::Regular,
            size: *size,
            object: object.and_then(|place| builder.objects.get(place as usize).copied()),
            elf: *elf,
            ..new
        },
        LeafKind::Symlink(target) => NewNode {
            file_type: FileType::Symlink,
            size: target.len() as u64,
            symlink: target,
            ..new
        },
        LeafKind::Special(file_type, rdev) => NewNode {
            file_type: *file_type,
            rdev: *rdev,
            ..new
        },
    })?;
    numbers[place] = Some(number);
    Ok(number)
}

impl Attributes {
    fn of<'a>(&'a self, new: NewNode<'a>) -> NewNode<'a> {
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
            xattrs: xattrs.as_deref(),
            ..new
        }
    }
}
