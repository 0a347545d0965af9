//! Recipes written: a tar recorded piece by piece, or known to be canonical.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{self, Write};
use std::iter;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use zerocopy::IntoBytes;

use super::instructions::Encoder;
use super::{DIGEST_LEN, Instructions, Kind, MAGIC, RawHeader, RecipeError, VERSION};
use crate::digest::{DiffId, ObjectId};

/// Headers are much alike: of 50,000 files the fastest level packs them 65 to 1, level 6 packs them
/// 71 to 1 in fifteen times as long, which is longer than all contents take to be hashed.
const LEVEL: i32 = 1;

/// A recipe of kind canonical: 128 bytes.
pub fn canonical(diff_id: DiffId, tar_bytes: u64) -> Vec<u8> {
    let mut bytes = header(Kind::Canonical, diff_id, tar_bytes)
        .as_bytes()
        .to_vec();
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    bytes
}

fn header(kind: Kind, diff_id: DiffId, tar_bytes: u64) -> RawHeader {
    RawHeader {
        magic: MAGIC,
        version: VERSION.into(),
        kind: kind.byte(),
        zeros: [0; 5],
        compatible: 0.into(),
        incompatible: 0.into(),
        diff_id: *diff_id.0.as_bytes(),
        tar_bytes: tar_bytes.into(),
        own_objects: 0.into(),
        tree_objects: 0.into(),
        packed_bytes: 0.into(),
        unpacked_bytes: 0.into(),
    }
}

/// A tar written down while it is read: in memory, since what is in no file is little once it is
/// packed.
pub struct Recorder {
    encoder: Encoder<Packer>,
    /// The tree's objects, if it is known, then others in order of first use.
    ids: Vec<ObjectId>,
    tree_objects: u32,
    /// Places in `ids`.
    numbers: HashTable<u32>,
    hasher: RandomState,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder")
            .field("objects", &self.ids.len())
            .finish_non_exhaustive()
    }
}

impl Recorder {
    /// Without a tree: for a tar that is still read. More than `limit` bytes of instructions,
    /// packed, are an error.
    pub fn new(limit: usize) -> io::Result<Self> {
        Self::with_tree(iter::empty(), limit)
    }

    /// With the ids in the table of the layer's tree, each once, in its order: for a recipe.
    pub fn with_tree(table: impl IntoIterator<Item = ObjectId>, limit: usize) -> io::Result<Self> {
        let packed = Limited {
            bytes: Vec::new(),
            limit,
        };
        let mut recorder = Self {
            encoder: Encoder::new(Packer {
                packed: zstd::Encoder::new(packed, LEVEL)?,
                digest: blake3::Hasher::new(),
            }),
            ids: Vec::new(),
            tree_objects: 0,
            numbers: HashTable::new(),
            hasher: RandomState::new(),
        };
        for id in table {
            recorder.number(id)?;
        }
        recorder.tree_objects = count(&recorder.ids)?;
        Ok(recorder)
    }

    /// The tar goes on with these bytes.
    pub fn literal(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.encoder.literal(bytes)
    }

    /// The tar goes on with `count` zeros.
    pub fn zeros(&mut self, count: u64) -> io::Result<()> {
        self.encoder.zeros(count)
    }

    /// The tar goes on with a range of an object.
    pub fn object(&mut self, id: ObjectId, offset: u64, length: u64) -> io::Result<()> {
        let number = self.number(id)?;
        self.encoder.object(number, offset, length)
    }

    /// The object's number, which is the next if it has none.
    fn number(&mut self, id: ObjectId) -> io::Result<u32> {
        let next = count(&self.ids)?;
        let (ids, hasher) = (&self.ids, &self.hasher);
        let known = self.numbers.entry(
            hasher.hash_one(Some(&id)),
            |number| ids.get(*number as usize) == Some(&id),
            |number| hasher.hash_one(ids.get(*number as usize)),
        );
        Ok(match known {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                new.insert(next);
                self.ids.push(id);
                next
            }
        })
    }

    /// The tar is complete.
    pub fn finish(self) -> io::Result<Recording> {
        let (packer, tar_bytes, unpacked) = self.encoder.finish()?;
        Ok(Recording {
            ids: self.ids,
            tree_objects: self.tree_objects,
            packed: packer.packed.finish()?.bytes,
            unpacked,
            tar_bytes,
            digest: packer.digest.finalize().into(),
        })
    }
}

/// A tar that was written down.
#[derive(Debug)]
pub struct Recording {
    ids: Vec<ObjectId>,
    tree_objects: u32,
    packed: Vec<u8>,
    unpacked: u64,
    tar_bytes: u64,
    /// BLAKE3 of the unpacked instructions.
    digest: [u8; DIGEST_LEN],
}

impl Recording {
    /// The objects that it needs and the tree has not, in order of first use.
    pub fn own_object_ids(&self) -> &[ObjectId] {
        let tree_objects = usize::try_from(self.tree_objects);
        let own = tree_objects.ok().and_then(|from| self.ids.get(from..));
        own.unwrap_or_default()
    }

    /// The object that an instruction names.
    pub fn object(&self, number: u32) -> Result<ObjectId, RecipeError> {
        let id = usize::try_from(number).ok().and_then(|at| self.ids.get(at));
        id.copied()
            .ok_or(RecipeError::Corrupt("an instruction names no object"))
    }

    /// Bytes of the tar.
    pub fn tar_bytes(&self) -> u64 {
        self.tar_bytes
    }

    /// Whether two tars are equal, byte by byte; both were recorded without a tree.
    pub fn is_equal(&self, other: &Self) -> bool {
        (&self.ids, self.tar_bytes, self.digest) == (&other.ids, other.tar_bytes, other.digest)
    }

    /// How the tar goes on, from its beginning.
    pub fn instructions(&self) -> Result<Instructions<'_>, RecipeError> {
        let objects = self.ids.len() as u64;
        Instructions::unpack(&self.packed, objects, self.unpacked, self.tar_bytes)
    }

    /// The recipe, of kind split.
    pub fn into_recipe(self, diff_id: DiffId) -> io::Result<Vec<u8>> {
        let own = self.own_object_ids();
        let header = RawHeader {
            own_objects: count(own)?.into(),
            tree_objects: self.tree_objects.into(),
            packed_bytes: (self.packed.len() as u64).into(),
            unpacked_bytes: self.unpacked.into(),
            ..header(Kind::Split, diff_id, self.tar_bytes)
        };
        let mut recipe = header.as_bytes().to_vec();
        for id in own {
            recipe.extend_from_slice(id.as_bytes());
        }
        recipe.extend_from_slice(&self.packed);
        let digest = blake3::hash(&recipe);
        recipe.extend_from_slice(digest.as_bytes());
        Ok(recipe)
    }
}

fn count(ids: &[ObjectId]) -> io::Result<u32> {
    u32::try_from(ids.len()).map_err(io::Error::other)
}

/// Packs and hashes.
struct Packer {
    packed: zstd::Encoder<'static, Limited>,
    digest: blake3::Hasher,
}

impl Write for Packer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.packed.write(bytes)?;
        self.digest.update(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.packed.flush()
    }
}

/// Bytes in memory, so many at most.
struct Limited {
    bytes: Vec<u8>,
    limit: usize,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit.saturating_sub(self.bytes.len()) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
