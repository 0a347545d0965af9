//! Recipes written: a tar recorded piece by piece, or known to be canonical.

use std::io::{self, Write};

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
///
/// Objects have numbers, which are the caller's: in the recipe of a layer those of the format.
pub struct Recorder {
    encoder: Encoder<Packer>,
    /// Numbers are below.
    objects: u64,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder")
            .field("objects", &self.objects)
            .finish_non_exhaustive()
    }
}

impl Recorder {
    /// An empty tar. More than `limit` bytes of instructions, packed, are an error.
    pub fn new(limit: usize) -> io::Result<Self> {
        let packed = Limited {
            bytes: Vec::new(),
            limit,
        };
        Ok(Self {
            encoder: Encoder::new(Packer {
                packed: zstd::Encoder::new(packed, LEVEL)?,
                digest: blake3::Hasher::new(),
            }),
            objects: 0,
        })
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
    pub fn object(&mut self, number: u32, offset: u64, length: u64) -> io::Result<()> {
        self.objects = self.objects.max(u64::from(number) + 1);
        self.encoder.object(number, offset, length)
    }

    /// The tar is complete.
    pub fn finish(self) -> io::Result<Recording> {
        let (packer, tar_bytes, unpacked) = self.encoder.finish()?;
        Ok(Recording {
            objects: self.objects,
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
    /// Numbers of objects are below.
    objects: u64,
    packed: Vec<u8>,
    unpacked: u64,
    tar_bytes: u64,
    /// BLAKE3 of the unpacked instructions.
    digest: [u8; DIGEST_LEN],
}

impl Recording {
    /// Bytes of the tar.
    pub fn tar_bytes(&self) -> u64 {
        self.tar_bytes
    }

    /// Whether two tars are equal, byte by byte, if equal numbers stand for equal objects.
    pub fn is_equal(&self, other: &Self) -> bool {
        (self.tar_bytes, self.digest) == (other.tar_bytes, other.digest)
    }

    /// How the tar goes on, from its beginning.
    pub fn instructions(&self) -> Result<Instructions<'_>, RecipeError> {
        Instructions::unpack(&self.packed, self.objects, self.unpacked, self.tar_bytes)
    }

    /// The recipe, of kind split. Its numbers are those of the objects of the layer's tree, and
    /// behind them those of its own.
    pub fn into_recipe(
        self,
        diff_id: DiffId,
        tree_objects: u32,
        own: &[ObjectId],
    ) -> io::Result<Vec<u8>> {
        let header = RawHeader {
            own_objects: count(own)?.into(),
            tree_objects: tree_objects.into(),
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
