//! A layer's recipe: composed while its tar is imported, and restored to the exact tar.
//!
//! Invariant: what is restored is the tar, or an error: its DiffID is checked while it is written.
//! A caller that must not hand on wrong bytes, even with an error at the end, writes to a file
//! first.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Seek, SeekFrom, Write};

use thiserror::Error;

use super::export::{ExportError, ObjectSource, export, record};
use super::stream::LiteralSink;
use super::{ImportError, ObjectSink};
use crate::digest::{DiffId, ObjectId, Sha256Hasher};
use crate::recipe::{Instruction, Kind, Recipe, RecipeError, Recorder, Recording, canonical};
use crate::tree::{ContentPlace, ObjectRef, PlacedContents, Tree};

/// Packed bytes of what is in no file: a hundred times those of a large layer. They are in memory
/// while a layer is imported.
pub(super) const RECIPE_BYTES: usize = 64 << 20;

/// Contents that a later entry replaced are kept inline up to so many bytes; beyond, they stay
/// objects, which the recipe keeps.
const INLINE_BYTES: u64 = 32 << 20;

/// Bytes of a content that are read at once.
const PIECE: usize = 64 * 1024;

const NO_OBJECT: RecipeError = RecipeError::Corrupt("an instruction names no object");

impl LiteralSink for Recorder {
    fn literal(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        Self::literal(self, bytes).map_err(|error| too_large(&error))
    }
}

/// Recording is in memory: the only thing that can go wrong is its limit.
pub(super) fn too_large(_: &io::Error) -> ImportError {
    ImportError::Limit {
        what: "packed bytes outside of its files",
        limit: RECIPE_BYTES as u64,
    }
}

/// The recipe of a layer that was recorded while it was imported into `sink`, its objects by the
/// numbers of the tree's builder.
pub(super) fn compose<S: ObjectSink>(
    recording: &Recording,
    tree: &Tree,
    placed: &PlacedContents,
    diff_id: DiffId,
    sink: &S,
) -> Result<Vec<u8>, ImportError> {
    let broken = |error: ExportError| ImportError::Recipe(error.into());
    match record(tree, placed) {
        Ok(own) if own.is_equal(recording) => {
            return Ok(canonical(diff_id, recording.tar_bytes()));
        }
        // what a tar cannot say, or not within the limit, was in another form in this one
        Ok(_) | Err(ExportError::WhiteoutName { .. } | ExportError::Write(_)) => {}
        Err(error) => return Err(broken(error)),
    }
    let (numbered, own) = number(recording, tree, placed, sink)?;
    numbered
        .into_recipe(diff_id, tree.object_count(), &own)
        .map_err(|error| ImportError::Recipe(error.into()))
}

/// The same tar, its objects by their numbers in the recipe, and the recipe's own objects. Contents
/// that nothing in the tree has come inline, and are gone from the sink.
fn number<S: ObjectSink>(
    recording: &Recording,
    tree: &Tree,
    placed: &PlacedContents,
    sink: &S,
) -> Result<(Recording, Vec<ObjectId>), ImportError> {
    let broken = |error: RecipeError| ImportError::Recipe(error.into());
    let unreadable = |id: ObjectId| {
        move |source| ImportError::Sink {
            path: format!("a replaced file ({id})").into(),
            source,
        }
    };
    let inlined = choose(recording, placed).map_err(broken)?;
    let mut own = Vec::new();
    // Those of the recipe's own objects, by the builder's.
    let mut own_numbers: HashMap<u32, u32> = HashMap::new();
    let mut out = Recorder::new(RECIPE_BYTES).map_err(|error| too_large(&error))?;
    let mut instructions = recording.instructions().map_err(broken)?;
    let mut last = None;
    while let Some(instruction) = instructions.next().map_err(broken)? {
        let written = match instruction {
            Instruction::Literal(bytes) => out.literal(bytes),
            Instruction::Zeros(count) => out.zeros(count),
            Instruction::Object {
                number,
                offset,
                length,
            } => match placed.get(number) {
                None => return Err(broken(NO_OBJECT)),
                Some(ContentPlace::Tree(ObjectRef(number))) => out.object(number, offset, length),
                Some(ContentPlace::Replaced(id)) if inlined.contains(&number) => {
                    let content =
                        reader(&mut last, id, || sink.read_back(id)).map_err(unreadable(id))?;
                    copy_range(content, offset, length, |piece| out.literal(piece)).map_err(
                        |error| match error {
                            CopyError::Read(source) => unreadable(id)(source),
                            CopyError::Write(error) => too_large(&error),
                        },
                    )?;
                    continue;
                }
                Some(ContentPlace::Replaced(id)) => {
                    // Both kinds together are no more than the builder's numbers.
                    let next = u32::try_from(own.len()).unwrap_or(u32::MAX);
                    let next = tree.object_count().saturating_add(next);
                    let number = *own_numbers.entry(number).or_insert_with(|| {
                        own.push(id);
                        next
                    });
                    out.object(number, offset, length)
                }
            },
        };
        written.map_err(|error| too_large(&error))?;
    }
    drop(last);
    for number in inlined {
        if let Some(ContentPlace::Replaced(id)) = placed.get(number) {
            sink.discard(id).map_err(unreadable(id))?;
        }
    }
    Ok((out.finish().map_err(|error| too_large(&error))?, own))
}

/// The contents that come inline: those that nothing in the tree has, in the order of the tar, as
/// many as may be.
fn choose(recording: &Recording, placed: &PlacedContents) -> Result<HashSet<u32>, RecipeError> {
    let is_replaced = |place| matches!(place, Some(ContentPlace::Replaced(_)));
    if !placed.iter().any(|place| is_replaced(Some(place))) {
        return Ok(HashSet::new());
    }
    let mut sizes: HashMap<u32, u64> = HashMap::new();
    let mut instructions = recording.instructions()?;
    while let Some(instruction) = instructions.next()? {
        if let Instruction::Object { number, length, .. } = instruction
            && is_replaced(placed.get(number))
        {
            let size = sizes.entry(number).or_default();
            *size = size.saturating_add(length);
        }
    }
    let mut left = INLINE_BYTES;
    Ok((0..)
        .zip(placed.iter())
        .filter(|(_, place)| is_replaced(Some(*place)))
        .map(|(number, _)| number)
        .filter(|number| {
            let rest = left.checked_sub(sizes.get(number).copied().unwrap_or_default());
            left = rest.unwrap_or(left);
            rest.is_some()
        })
        .collect())
}

enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// The reader of a content. The last one stays open: the ranges of a sparse file come one after
/// the other, and there may be millions.
fn reader<R>(
    last: &mut Option<(ObjectId, R)>,
    id: ObjectId,
    open: impl FnOnce() -> io::Result<R>,
) -> io::Result<&mut R> {
    let reader = match last.take() {
        Some((open, reader)) if open == id => reader,
        _ => open()?,
    };
    Ok(&mut last.insert((id, reader)).1)
}

/// Gives a range of a content to `write`, piece by piece. Reads nothing else of it: before the
/// range there may be a hole of terabytes.
fn copy_range(
    content: &mut (impl Read + Seek),
    offset: u64,
    length: u64,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), CopyError> {
    content
        .seek(SeekFrom::Start(offset))
        .map_err(CopyError::Read)?;
    let mut buffer = vec![0; usize::try_from(length).map_or(PIECE, |length| length.min(PIECE))];
    let mut left = length;
    while left > 0 {
        let wanted = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let piece = buffer.get_mut(..wanted).unwrap_or_default();
        content.read_exact(piece).map_err(CopyError::Read)?;
        write(piece).map_err(CopyError::Write)?;
        left = left.saturating_sub(wanted as u64);
    }
    Ok(())
}

/// Why a tar was not restored.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The recipe is damaged.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The tree cannot be written out.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The tar cannot be written.
    #[error("cannot write the layer's tar")]
    Write(#[source] io::Error),
    /// A content cannot be read.
    #[error("cannot read object {id}")]
    Content {
        /// The object.
        id: ObjectId,
        /// What the source said.
        source: io::Error,
    },
    /// The recipe was not written with this tree.
    #[error(
        "the recipe of layer {diff_id} numbers the objects of a tree with {expected}; this tree has {found}"
    )]
    OtherTree {
        /// The recipe's layer.
        diff_id: DiffId,
        /// Objects of the recipe's tree.
        expected: u32,
        /// Objects of the tree.
        found: u32,
    },
    /// The bytes are not the layer's.
    #[error("the recipe of layer {expected} gives another tar, {found}")]
    DiffId {
        /// The layer.
        expected: DiffId,
        /// What was written.
        found: DiffId,
    },
}

/// Writes the exact tar of a layer: the bytes that were imported.
pub fn restore<S: ObjectSource, W: Write>(
    recipe: &Recipe<'_>,
    tree: &Tree,
    source: &S,
    out: W,
) -> Result<(), RestoreError> {
    let mut out = Hashed {
        inner: out,
        hasher: Sha256Hasher::new(),
    };
    match recipe.kind() {
        Kind::Canonical => {
            export(tree, source, &mut out)?;
        }
        Kind::Split => follow(recipe, tree, source, &mut out)?,
    }
    let found = DiffId(out.hasher.finish());
    if found == recipe.diff_id() {
        Ok(())
    } else {
        Err(RestoreError::DiffId {
            expected: recipe.diff_id(),
            found,
        })
    }
}

fn follow<S: ObjectSource, W: Write>(
    recipe: &Recipe<'_>,
    tree: &Tree,
    source: &S,
    out: &mut W,
) -> Result<(), RestoreError> {
    let (expected, found) = (recipe.tree_objects(), tree.object_count());
    if expected != found {
        return Err(RestoreError::OtherTree {
            diff_id: recipe.diff_id(),
            expected,
            found,
        });
    }
    let mut instructions = recipe.instructions()?;
    let mut last = None;
    while let Some(instruction) = instructions.next()? {
        match instruction {
            Instruction::Literal(bytes) => out.write_all(bytes).map_err(RestoreError::Write)?,
            Instruction::Zeros(count) => {
                io::copy(&mut io::repeat(0).take(count), out).map_err(RestoreError::Write)?;
            }
            Instruction::Object {
                number,
                offset,
                length,
            } => {
                let id = match recipe.own_object(number) {
                    Some(id) => id,
                    None => tree
                        .object_id(ObjectRef(number))
                        .map_err(ExportError::from)?,
                };
                let unreadable = |source| RestoreError::Content { id, source };
                let content = reader(&mut last, id, || source.open(id)).map_err(unreadable)?;
                copy_range(content, offset, length, |piece| out.write_all(piece)).map_err(
                    |error| match error {
                        CopyError::Read(source) => unreadable(source),
                        CopyError::Write(source) => RestoreError::Write(source),
                    },
                )?;
            }
        }
    }
    Ok(())
}

struct Hashed<W> {
    inner: W,
    hasher: Sha256Hasher,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
