//! Instructions and their encoding.

use std::io::{self, Write};

use super::RecipeError;

/// A run of literal bytes is cut after so many; what an encoder and a reader hold in memory.
pub(super) const PIECE: usize = 64 * 1024;

const LITERAL: u64 = 0;
const ZEROS: u64 = 1;
const OBJECT: u64 = 2;

/// What an instruction's first number holds beside the code.
const MAX_COUNT: u64 = u64::MAX >> 2;

/// How the tar goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instruction<'b> {
    /// With these bytes.
    Literal(&'b [u8]),
    /// With so many zeros.
    Zeros(u64),
    /// With a range of an object.
    Object {
        /// The place of its id in the recipe's array.
        index: u32,
        /// Where the range begins.
        offset: u64,
        /// Its length.
        length: u64,
    },
}

/// The head of an instruction, as its first number says.
pub(super) enum Head {
    Literal(u64),
    Zeros(u64),
    Object(u64),
}

impl Head {
    pub(super) fn parse(number: u64) -> Result<Self, RecipeError> {
        let count = number >> 2;
        if count == 0 {
            return Err(RecipeError::Corrupt("an instruction that gives nothing"));
        }
        match number & 3 {
            LITERAL => Ok(Self::Literal(count)),
            ZEROS => Ok(Self::Zeros(count)),
            OBJECT => Ok(Self::Object(count)),
            _ => Err(RecipeError::Corrupt("an unknown instruction")),
        }
    }
}

/// Encodes a tar as instructions. Equal calls but for how literal bytes are divided over them give
/// equal bytes.
#[derive(Debug)]
pub(super) struct Encoder<W> {
    out: W,
    /// Literal bytes that are not written yet; fewer than [`PIECE`].
    pending: Vec<u8>,
    /// Zeros before them, already cut into whole pieces.
    zeros: u64,
    tar_bytes: u64,
    unpacked: u64,
}

impl<W: Write> Encoder<W> {
    /// Encodes into `out`.
    pub(super) fn new(out: W) -> Self {
        Self {
            out,
            pending: Vec::with_capacity(PIECE),
            zeros: 0,
            tar_bytes: 0,
            unpacked: 0,
        }
    }

    /// The tar goes on with these bytes.
    pub(super) fn literal(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.tar_bytes = self.tar_bytes.saturating_add(bytes.len() as u64);
        while !bytes.is_empty() {
            let room = PIECE.saturating_sub(self.pending.len()).min(bytes.len());
            let (piece, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            self.pending.extend_from_slice(piece);
            bytes = rest;
            if self.pending.len() >= PIECE {
                self.cut()?;
            }
        }
        Ok(())
    }

    /// The tar goes on with `count` zeros.
    pub(super) fn zeros(&mut self, count: u64) -> io::Result<()> {
        static SOME: [u8; PIECE] = [0; PIECE];
        let mut left = count;
        // to the next cut, then whole pieces at once
        let room = PIECE.saturating_sub(self.pending.len()) as u64;
        if !self.pending.is_empty() {
            let first = usize::try_from(room.min(left)).unwrap_or(0);
            self.literal(SOME.get(..first).unwrap_or_default())?;
            left = left.saturating_sub(first as u64);
        }
        let whole = left - left % PIECE as u64;
        self.zeros = self.zeros.saturating_add(whole);
        self.tar_bytes = self.tar_bytes.saturating_add(whole);
        let rest = usize::try_from(left - whole).unwrap_or(0);
        self.literal(SOME.get(..rest).unwrap_or_default())
    }

    /// The tar goes on with `length` bytes of an object.
    pub(super) fn object(&mut self, index: u32, offset: u64, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        self.flush_literals()?;
        self.tar_bytes = self.tar_bytes.saturating_add(length);
        self.number(head(OBJECT, length)?)?;
        self.number(index.into())?;
        self.number(offset)
    }

    /// Writes what is pending. The writer, bytes of the tar, and bytes of the instructions.
    pub(super) fn finish(mut self) -> io::Result<(W, u64, u64)> {
        self.flush_literals()?;
        Ok((self.out, self.tar_bytes, self.unpacked))
    }

    /// A whole piece, which is held back if it is all zeros, as more may follow.
    fn cut(&mut self) -> io::Result<()> {
        if self.pending.iter().all(|&byte| byte == 0) {
            self.zeros = self.zeros.saturating_add(self.pending.len() as u64);
            self.pending.clear();
            return Ok(());
        }
        self.flush_literals()
    }

    fn flush_literals(&mut self) -> io::Result<()> {
        let mut pending = std::mem::take(&mut self.pending);
        if pending.iter().all(|&byte| byte == 0) {
            self.zeros = self.zeros.saturating_add(pending.len() as u64);
            pending.clear();
        }
        if self.zeros > 0 {
            let number = head(ZEROS, self.zeros)?;
            self.number(number)?;
            self.zeros = 0;
        }
        if !pending.is_empty() {
            self.number(head(LITERAL, pending.len() as u64)?)?;
            self.write(&pending)?;
            pending.clear();
        }
        self.pending = pending;
        Ok(())
    }

    fn number(&mut self, mut value: u64) -> io::Result<()> {
        let mut bytes = [0_u8; 10];
        let mut used = 0;
        for byte in &mut bytes {
            used += 1;
            *byte = value.to_le_bytes().first().copied().unwrap_or(0) & 0x7f;
            value >>= 7;
            if value == 0 {
                break;
            }
            *byte |= 0x80;
        }
        self.write(bytes.get(..used).unwrap_or_default())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.unpacked = self.unpacked.saturating_add(bytes.len() as u64);
        self.out.write_all(bytes)
    }
}

fn head(code: u64, count: u64) -> io::Result<u64> {
    if count > MAX_COUNT {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "more bytes than an instruction can count",
        ));
    }
    Ok(count << 2 | code)
}
