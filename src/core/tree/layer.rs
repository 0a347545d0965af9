//! Numbers the nodes of a [`LayerBuilder`] and hands them to the writer.
//!
//! Joins a layer's entries with its whiteouts: a whiteout is written only where the layer has no
//! entry.

use std::collections::VecDeque;

use super::builder::{Attributes, BuilderDir, Entry, LayerBuilder, Leaf, LeafId, ROOT};
use super::types::{FileType, Kind, TreeIno, TreeKind};
use super::writer::{NewNode, NewTarget, WriteError, Writer};
use crate::digest::DiffId;

/// Numbers and writes everything below the root, directory by directory.
pub(super) fn write(mut builder: LayerBuilder, diff: DiffId) -> Result<Vec<u8>, WriteError> {
    let mut writer = Writer::new(TreeKind::Layer);
    let mut numbers: Vec<Option<TreeIno>> = vec![None; builder.leaves.len()];
    let mut queue = VecDeque::from([(writer.node(&directory(builder.dir(ROOT), false))?, ROOT)]);
    while let Some((ino, dir)) = queue.pop_front() {
        writer.begin_directory(ino)?;
        for (bytes, name) in std::mem::take(&mut builder.dir_mut(dir).names) {
            let target = match name.entry {
                Some(Entry::Dir(child)) => {
                    let number = writer.node(&directory(builder.dir(child), name.whiteout))?;
                    queue.push_back((number, child));
                    NewTarget::Node(number)
                }
                Some(Entry::Leaf(id)) => {
                    NewTarget::Node(number_leaf(&mut writer, &builder.leaves, &mut numbers, id)?)
                }
                Some(Entry::LinkBelow(ref target)) => NewTarget::LinkBelow(target),
                None if name.whiteout => NewTarget::Whiteout,
                // Unreachable: every name has an entry or a whiteout.
                None => continue,
            };
            writer.dirent(ino, &bytes, &target)?;
        }
    }
    Ok(writer.finish(diff.0))
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
    leaves: &[Leaf],
    numbers: &mut [Option<TreeIno>],
    id: LeafId,
) -> Result<TreeIno, WriteError> {
    if let Some(known) = numbers[id.0] {
        return Ok(known);
    }
    let Leaf { attributes, kind } = &leaves[id.0];
    let new = attributes.of(NewNode::DIRECTORY);
    let number = writer.node(&match kind {
        Kind::Directory => new,
        Kind::Regular { size, object, elf } => NewNode {
            file_type: FileType::Regular,
            size: *size,
            object: *object,
            elf: *elf,
            ..new
        },
        Kind::Symlink(target) => NewNode {
            file_type: FileType::Symlink,
            size: target.len() as u64,
            symlink: target,
            ..new
        },
        Kind::CharDevice(rdev) => NewNode {
            file_type: FileType::CharDevice,
            rdev: *rdev,
            ..new
        },
        Kind::BlockDevice(rdev) => NewNode {
            file_type: FileType::BlockDevice,
            rdev: *rdev,
            ..new
        },
        Kind::Fifo => NewNode {
            file_type: FileType::Fifo,
            ..new
        },
        Kind::Socket => NewNode {
            file_type: FileType::Socket,
            ..new
        },
    })?;
    numbers[id.0] = Some(number);
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
