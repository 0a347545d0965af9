//! Instructions and their encoding.

use std::io::{self, Write};

use super::RecipeError;

/// Literal bytes are cut where the tar reaches a multiple of this; what an encoder and a reader hold
/// in memory.
pub(super) const PIECE: usize = 64 * 1024;

/// A tar's block, and within it the checksum of a header (POSIX.1-1988, ustar).
pub(super) const BLOCK: usize = 512;
const CHECKSUM: std::ops::Range<usize> = 148..156;
pub(super) const HEADER_REST: usize = BLOCK - 8;

const LITERAL: u64 = 0;
const ZEROS: u64 = 1;
const OBJECT: u64 = 2;
const HEADERS: u64 = 3;

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
        /// Its number: the tree's objects come first, then the recipe's own.
        number: u32,
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
    Headers(u64),
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
            _headers => Ok(Self::Headers(count)),
        }
    }
}

/// The numbers of objects that follow one another, each as the step from the one that is expected:
/// the next. So files in the order of the tree have equal instructions.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    next: u32,
}

impl Numbers {
    /// Even steps lead forwards, odd ones backwards.
    fn step_to(&mut self, number: u32) -> u64 {
        let (from, to) = (u64::from(self.next), u64::from(number));
        self.next = number.saturating_add(1);
        match to.checked_sub(from) {
            Some(forwards) => forwards << 1,
            None => (from.saturating_sub(to) << 1).saturating_sub(1),
        }
    }

    /// None: no number of 32 bits.
    pub(super) fn after(&mut self, step: u64) -> Option<u32> {
        let from = u64::from(self.next);
        let to = if step & 1 == 0 {
            from.checked_add(step >> 1)
        } else {
            from.checked_sub((step >> 1).saturating_add(1))
        };
        let number = u32::try_from(to?).ok()?;
        self.next = number.checked_add(1)?;
        Some(number)
    }
}

/// A header's block without its checksum. None: a block that has another there, or none.
fn without_checksum(block: &[u8; BLOCK]) -> Option<[u8; HEADER_REST]> {
    let (before, rest) = block.split_at(CHECKSUM.start);
    let (found, after) = rest.split_at(CHECKSUM.len());
    if found != checksum(sum(before) + sum(after)) {
        return None;
    }
    let mut header = [0; HEADER_REST];
    let (start, end) = header.split_at_mut(CHECKSUM.start);
    start.copy_from_slice(before);
    end.copy_from_slice(after);
    Some(header)
}

/// The block of a header whose other bytes these are.
pub(super) fn with_checksum(header: &[u8; HEADER_REST]) -> [u8; BLOCK] {
    let (before, after) = header.split_at(CHECKSUM.start);
    let mut block = [0; BLOCK];
    let (start, rest) = block.split_at_mut(CHECKSUM.start);
    let (middle, end) = rest.split_at_mut(CHECKSUM.len());
    start.copy_from_slice(before);
    middle.copy_from_slice(&checksum(sum(header)));
    end.copy_from_slice(after);
    block
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.iter().map(|&byte| u32::from(byte)).sum()
}

/// Six octal digits, a NUL and a space: the sum of the header's other bytes, and of spaces in this
/// place.
fn checksum(of_others: u32) -> [u8; 8] {
    let sum = of_others + 8 * u32::from(b' ');
    let digit = |shift: u32| b'0' + (sum >> shift & 7).to_le_bytes()[0];
    [
        digit(15),
        digit(12),
        digit(9),
        digit(6),
        digit(3),
        digit(0),
        0,
        b' ',
    ]
}

/// Encodes a tar as instructions. Equal calls but for how literal bytes are divided over them give
/// equal bytes.
#[derive(Debug)]
pub(super) struct Encoder<W> {
    out: W,
    /// The tar's last literal bytes, which are not written yet; fewer than [`PIECE`].
    pending: Vec<u8>,
    /// Zeros before them, up to a multiple of [`PIECE`] in the tar.
    zeros: u64,
    numbers: Numbers,
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
            numbers: Numbers::default(),
            tar_bytes: 0,
            unpacked: 0,
        }
    }

    /// The tar goes on with these bytes.
    pub(super) fn literal(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.room().min(bytes.len());
            let (piece, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            self.pending.extend_from_slice(piece);
            self.tar_bytes = self.tar_bytes.saturating_add(piece.len() as u64);
            bytes = rest;
            if self.room() == PIECE {
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
        let room = self.room();
        if room < PIECE {
            let first = usize::try_from(left).map_or(room, |left| left.min(room));
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
    pub(super) fn object(&mut self, number: u32, offset: u64, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        self.flush_literals()?;
        self.tar_bytes = self.tar_bytes.saturating_add(length);
        self.number(head(OBJECT, length)?)?;
        let step = self.numbers.step_to(number);
        self.number(step)?;
        self.number(offset)
    }

    /// Writes what is pending. The writer, bytes of the tar, and bytes of the instructions.
    pub(super) fn finish(mut self) -> io::Result<(W, u64, u64)> {
        self.flush_literals()?;
        Ok((self.out, self.tar_bytes, self.unpacked))
    }

    /// Bytes up to the next cut, 1 to [`PIECE`].
    fn room(&self) -> usize {
        let into = self.tar_bytes % PIECE as u64;
        usize::try_from(into).map_or(PIECE, |into| PIECE.saturating_sub(into))
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
        self.blocks(&pending)?;
        pending.clear();
        self.pending = pending;
        Ok(())
    }

    /// Writes the tar's last bytes, the headers among them without their checksums.
    fn blocks(&mut self, bytes: &[u8]) -> io::Result<()> {
        let start = self.tar_bytes.saturating_sub(bytes.len() as u64);
        let unaligned = usize::try_from(start.next_multiple_of(BLOCK as u64).saturating_sub(start));
        let unaligned = unaligned.unwrap_or(0).min(bytes.len());
        let (mut plain, mut rest) = (unaligned, bytes);
        while let Some(block) = rest.get(plain..).and_then(<[u8]>::first_chunk) {
            let Some(header) = without_checksum(block) else {
                plain = plain.saturating_add(BLOCK);
                continue;
            };
            let (before, after) = rest.split_at_checked(plain).unwrap_or((rest, &[]));
            self.plain(before)?;
            self.number(head(HEADERS, 1)?)?;
            self.write(&header)?;
            rest = after.get(BLOCK..).unwrap_or_default();
            plain = 0;
        }
        self.plain(rest)
    }

    fn plain(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.number(head(LITERAL, bytes.len() as u64)?)?;
        self.write(bytes)
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
