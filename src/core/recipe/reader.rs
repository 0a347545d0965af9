//! A recipe opened: its header checked in O(1), its instructions read one by one.

use std::io::{BufReader, Read};

use zerocopy::FromBytes;

use super::instructions::{BLOCK, HEADER_REST, Head, Instruction, Numbers, PIECE, with_checksum};
use super::{DIGEST_LEN, HEADER_LEN, ID_LEN, Kind, MAGIC, RawHeader, RecipeError, VERSION};
use crate::digest::{DiffId, ObjectId, Sha256Digest};

/// The base-2 logarithm of the largest zstd window that is unpacked: 8 MiB, more than the levels
/// that recipes were written with may use.
const WINDOW_LOG_MAX: u32 = 23;

/// A recipe in memory, or mapped.
#[derive(Debug, Clone, Copy)]
pub struct Recipe<'b> {
    bytes: &'b [u8],
    kind: Kind,
    diff_id: DiffId,
    tar_bytes: u64,
    tree_objects: u32,
    ids: &'b [[u8; ID_LEN]],
    packed: &'b [u8],
    unpacked_bytes: u64,
}

/// The objects that a recipe needs beside the tree's, nothing unpacked: what gc and check ask for.
pub fn own_object_ids(
    bytes: &[u8],
) -> Result<impl ExactSizeIterator<Item = ObjectId>, RecipeError> {
    Recipe::open(bytes).map(|recipe| recipe.own_object_ids())
}

impl<'b> Recipe<'b> {
    /// Checks the header and the lengths; [`Recipe::verify`] checks the rest.
    pub fn open(bytes: &'b [u8]) -> Result<Self, RecipeError> {
        let (header, rest) =
            RawHeader::ref_from_prefix(bytes).map_err(|_short| RecipeError::Length {
                expected: (HEADER_LEN + DIGEST_LEN) as u64,
                found: bytes.len() as u64,
            })?;
        if header.magic != MAGIC {
            return Err(RecipeError::Magic);
        }
        if header.version.get() != VERSION {
            return Err(RecipeError::Version(header.version.get()));
        }
        if header.incompatible.get() != 0 {
            return Err(RecipeError::Features(header.incompatible.get()));
        }
        let kind = Kind::from_byte(header.kind).ok_or(RecipeError::Kind(header.kind))?;
        if header.zeros != [0; 5] {
            return Err(RecipeError::Corrupt("bytes without a meaning are not 0"));
        }
        let ids_len = u64::from(header.own_objects.get()) * ID_LEN as u64;
        let expected = ((HEADER_LEN + DIGEST_LEN) as u64)
            .saturating_add(ids_len)
            .saturating_add(header.packed_bytes.get());
        let length = || RecipeError::Length {
            expected,
            found: bytes.len() as u64,
        };
        if expected != bytes.len() as u64 {
            return Err(length());
        }
        let (ids, rest) = usize::try_from(ids_len)
            .ok()
            .and_then(|len| rest.split_at_checked(len))
            .ok_or_else(length)?;
        let packed = rest
            .get(..rest.len().saturating_sub(DIGEST_LEN))
            .ok_or_else(length)?;
        let unpacked_bytes = header.unpacked_bytes.get();
        let tree_objects = header.tree_objects.get();
        let has_parts = tree_objects != 0 || !ids.is_empty() || !packed.is_empty();
        if kind == Kind::Canonical && (has_parts || unpacked_bytes != 0) {
            return Err(RecipeError::Corrupt(
                "a canonical recipe has no objects and no instructions",
            ));
        }
        Ok(Self {
            bytes,
            kind,
            diff_id: DiffId(Sha256Digest::from_bytes(header.diff_id)),
            tar_bytes: header.tar_bytes.get(),
            tree_objects,
            ids: ids.as_chunks().0,
            packed,
            unpacked_bytes,
        })
    }

    /// Opens a recipe that is what was written, to the last byte, and the one of this layer, whose
    /// tree has so many objects.
    pub fn open_verified(
        bytes: &'b [u8],
        diff_id: DiffId,
        tree_objects: u32,
    ) -> Result<Self, RecipeError> {
        let recipe = Self::open(bytes)?;
        recipe.verify()?;
        if recipe.diff_id != diff_id {
            return Err(RecipeError::OtherLayer);
        }
        if recipe.kind == Kind::Split && recipe.tree_objects != tree_objects {
            return Err(RecipeError::OtherTree);
        }
        Ok(recipe)
    }

    /// Whether the file is what was written, to the last byte.
    pub fn verify(&self) -> Result<(), RecipeError> {
        let digest: Option<(&[u8], &[u8; DIGEST_LEN])> = self.bytes.split_last_chunk();
        match digest {
            Some((before, digest)) if blake3::hash(before).as_bytes() == digest => Ok(()),
            _ => Err(RecipeError::Digest),
        }
    }

    /// How the tar is given back.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The layer.
    pub fn diff_id(&self) -> DiffId {
        self.diff_id
    }

    /// Bytes of the tar.
    pub fn tar_bytes(&self) -> u64 {
        self.tar_bytes
    }

    /// The objects that it needs and the tree has not.
    pub fn own_object_ids(&self) -> impl ExactSizeIterator<Item = ObjectId> + use<'b> {
        self.ids.iter().copied().map(ObjectId::from_bytes)
    }

    /// Objects in the table of the tree that it was written with; 0 if it names none of them.
    pub fn tree_objects(&self) -> u32 {
        self.tree_objects
    }

    /// The object that an instruction names, where that is not one of the tree's.
    pub fn own_object(&self, number: u32) -> Option<ObjectId> {
        let index = number.checked_sub(self.tree_objects)?;
        let id = self.ids.get(usize::try_from(index).ok()?);
        id.copied().map(ObjectId::from_bytes)
    }

    /// The instructions from the first on. A canonical recipe has none.
    pub fn instructions(&self) -> Result<Instructions<'b>, RecipeError> {
        match self.kind {
            Kind::Canonical => Ok(Instructions::none()),
            Kind::Split => Instructions::unpack(
                self.packed,
                u64::from(self.tree_objects).saturating_add(self.ids.len() as u64),
                self.unpacked_bytes,
                self.tar_bytes,
            ),
        }
    }
}

/// Reads instructions. Literals come in pieces, so memory is bounded whatever their length.
pub struct Instructions<'b> {
    source: Box<dyn Read + 'b>,
    objects: u64,
    numbers: Numbers,
    unpacked_left: u64,
    /// What the instructions may still give.
    tar_left: u64,
    literal_left: u64,
    headers_left: u64,
    piece: Vec<u8>,
}

impl std::fmt::Debug for Instructions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instructions")
            .field("tar_left", &self.tar_left)
            .finish_non_exhaustive()
    }
}

impl<'b> Instructions<'b> {
    fn none() -> Self {
        Self {
            source: Box::new(std::io::empty()),
            objects: 0,
            numbers: Numbers::default(),
            unpacked_left: 0,
            tar_left: 0,
            literal_left: 0,
            headers_left: 0,
            piece: Vec::new(),
        }
    }

    pub(super) fn unpack(
        packed: &'b [u8],
        objects: u64,
        unpacked: u64,
        tar_bytes: u64,
    ) -> Result<Self, RecipeError> {
        let mut decoder = zstd::Decoder::with_buffer(packed)
            .map_err(RecipeError::Unpack)?
            .single_frame();
        decoder
            .window_log_max(WINDOW_LOG_MAX)
            .map_err(RecipeError::Unpack)?;
        Ok(Self {
            source: Box::new(BufReader::with_capacity(PIECE, decoder)),
            objects,
            unpacked_left: unpacked,
            tar_left: tar_bytes,
            ..Self::none()
        })
    }

    /// The next one. None: the tar is complete.
    #[expect(
        clippy::should_implement_trait,
        reason = "what it gives borrows from it"
    )]
    pub fn next(&mut self) -> Result<Option<Instruction<'_>>, RecipeError> {
        if self.literal_left > 0 {
            return self.piece().map(Some);
        }
        if self.headers_left > 0 {
            return self.header().map(Some);
        }
        if self.unpacked_left == 0 {
            return if self.tar_left == 0 {
                Ok(None)
            } else {
                Err(RecipeError::Corrupt("the instructions end too early"))
            };
        }
        let head = self.number()?;
        match Head::parse(head)? {
            Head::Literal(count) => {
                self.give(count)?;
                self.literal_left = count;
                self.piece().map(Some)
            }
            Head::Zeros(count) => {
                self.give(count)?;
                Ok(Some(Instruction::Zeros(count)))
            }
            Head::Object(length) => {
                self.give(length)?;
                let step = self.number()?;
                let offset = self.number()?;
                let number = self.numbers.after(step);
                let number = number
                    .filter(|&number| u64::from(number) < self.objects)
                    .ok_or(RecipeError::Corrupt("an instruction names no object"))?;
                if offset.checked_add(length).is_none() {
                    return Err(RecipeError::Corrupt("a range beyond 2^64"));
                }
                Ok(Some(Instruction::Object {
                    number,
                    offset,
                    length,
                }))
            }
            Head::Headers(count) => {
                self.give(count.saturating_mul(BLOCK as u64))?;
                self.headers_left = count;
                self.header().map(Some)
            }
        }
    }

    fn give(&mut self, count: u64) -> Result<(), RecipeError> {
        self.tar_left = self
            .tar_left
            .checked_sub(count)
            .ok_or(RecipeError::Corrupt("the instructions give too much"))?;
        Ok(())
    }

    fn piece(&mut self) -> Result<Instruction<'_>, RecipeError> {
        let count = usize::try_from(self.literal_left)
            .unwrap_or(PIECE)
            .min(PIECE);
        let mut piece = std::mem::take(&mut self.piece);
        piece.resize(count, 0);
        self.fill(&mut piece)?;
        self.literal_left = self.literal_left.saturating_sub(count as u64);
        self.piece = piece;
        Ok(Instruction::Literal(&self.piece))
    }

    /// One header, its checksum filled in.
    fn header(&mut self) -> Result<Instruction<'_>, RecipeError> {
        let mut header = [0; HEADER_REST];
        self.fill(&mut header)?;
        self.headers_left = self.headers_left.saturating_sub(1);
        self.piece.clear();
        self.piece.extend_from_slice(&with_checksum(&header));
        Ok(Instruction::Literal(&self.piece))
    }

    fn number(&mut self) -> Result<u64, RecipeError> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let mut byte = [0];
            self.fill(&mut byte)?;
            let [byte] = byte;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && byte > 1 || shift > 0 && byte == 0 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(RecipeError::Corrupt("a number that is none"))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), RecipeError> {
        self.unpacked_left = self
            .unpacked_left
            .checked_sub(bytes.len() as u64)
            .ok_or(RecipeError::Corrupt("the instructions end too early"))?;
        self.source.read_exact(bytes).map_err(RecipeError::Unpack)
    }
}
