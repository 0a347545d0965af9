//! A recipe written to a file.

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

use zerocopy::IntoBytes;

use super::instructions::Encoder;
use super::{Kind, MAGIC, RawHeader, VERSION};
use crate::digest::{DiffId, ObjectId};

/// The highest level that does not show beside hashing the layer.
const LEVEL: i32 = 6;

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
        objects: 0.into(),
        more_zeros: [0; 4],
        packed_bytes: 0.into(),
        unpacked_bytes: 0.into(),
    }
}

/// Takes a tar piece by piece and makes a recipe of kind split of it.
///
/// The object ids stand before the instructions and are not known before the last, so the instructions are packed into a file of
/// their own, `scratch`, first. Memory: 32 bytes an object and some pieces.
pub struct RecipeWriter<F: Write> {
    encoder: Encoder<zstd::Encoder<'static, F>>,
    ids: Vec<ObjectId>,
    numbers: HashMap<ObjectId, u32>,
}

impl<F: Write> std::fmt::Debug for RecipeWriter<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecipeWriter")
            .field("objects", &self.ids.len())
            .finish_non_exhaustive()
    }
}

impl<F: Read + Write + Seek> RecipeWriter<F> {
    /// `scratch` is empty.
    pub fn new(scratch: F) -> io::Result<Self> {
        Ok(Self {
            encoder: Encoder::new(zstd::Encoder::new(scratch, LEVEL)?),
            ids: Vec::new(),
            numbers: HashMap::new(),
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
    pub fn object(&mut self, id: ObjectId, offset: u64, length: u64) -> io::Result<()> {
        let next = u32::try_from(self.ids.len()).map_err(io::Error::other)?;
        let index = *self.numbers.entry(id).or_insert(next);
        if index == next {
            self.ids.push(id);
        }
        self.encoder.object(index, offset, length)
    }

    /// Writes the recipe to `out`.
    pub fn finish(self, diff_id: DiffId, out: impl Write) -> io::Result<()> {
        let (packer, tar_bytes, unpacked) = self.encoder.finish()?;
        let mut scratch = packer.finish()?;
        let packed = scratch.stream_position()?;
        scratch.seek(SeekFrom::Start(0))?;
        let mut out = Hashed {
            inner: out,
            hasher: blake3::Hasher::new(),
        };
        let header = RawHeader {
            objects: u32::try_from(self.ids.len())
                .map_err(io::Error::other)?
                .into(),
            packed_bytes: packed.into(),
            unpacked_bytes: unpacked.into(),
            ..header(Kind::Split, diff_id, tar_bytes)
        };
        out.write_all(header.as_bytes())?;
        for id in &self.ids {
            out.write_all(id.as_bytes())?;
        }
        io::copy(&mut scratch.take(packed), &mut out)?;
        let digest = out.hasher.finalize();
        out.inner.write_all(digest.as_bytes())?;
        out.inner.flush()
    }
}

struct Hashed<W> {
    inner: W,
    hasher: blake3::Hasher,
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
