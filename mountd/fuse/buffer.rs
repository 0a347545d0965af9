//! Private memory that one request, or one answer, is put into.
//!
//! Invariant: only the pages that a request or answer reached are memory, and
//! [`give_back`](Buffer::give_back) frees those beyond [`KEPT`]. Every thread has two buffers as
//! long as the longest request; most requests fill a few hundred bytes of one.

use std::io;

use memmap2::MmapMut;

/// Bytes that a buffer keeps over a pause: what the requests that change names and look them up
/// fill.
pub(super) const KEPT: usize = 64 << 10;

/// A buffer of fixed length.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: MmapMut,
    /// How far it was ever filled since its memory was last given back.
    reached: usize,
}

impl Buffer {
    /// A mapping of its own: the allocator would take it off its heap, and zero it, as soon as one
    /// like it was ever freed.
    pub(super) fn new(length: usize) -> io::Result<Self> {
        Ok(Self {
            bytes: MmapMut::map_anon(length)?,
            reached: 0,
        })
    }

    /// All of it, to be filled; [`filled`](Self::filled) says how much was.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// All of it, to be read.
    pub(super) fn read(&self) -> &[u8] {
        &self.bytes
    }

    /// The first `length` bytes have been filled.
    pub(super) fn reach(&mut self, length: usize) {
        self.reached = self.reached.max(length);
    }

    /// The first `length` bytes have been filled; these.
    pub(super) fn filled(&mut self, length: usize) -> Option<&[u8]> {
        self.reach(length);
        self.bytes.get(..length)
    }

    /// Whether it holds memory that a pause should give back.
    pub(super) fn is_large(&self) -> bool {
        self.reached > KEPT
    }

    /// Frees the memory of a buffer that [`is_large`](Self::is_large). What it was filled with is
    /// gone.
    pub(super) fn give_back(&mut self) -> io::Result<()> {
        if self.is_large() {
            *self = Self::new(self.bytes.len())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn give_back_frees_only_large_buffers() {
        let mut buffer = Buffer::new(1 << 20).unwrap();
        buffer.bytes().fill(1);
        assert_eq!(buffer.filled(1 << 20).unwrap().len(), 1 << 20);
        assert!(buffer.is_large());
        buffer.give_back().unwrap();
        assert!(!buffer.is_large());
        // Fresh pages read as zeroes.
        assert!(buffer.bytes().iter().all(|byte| *byte == 0));
        buffer.bytes()[..KEPT].fill(1);
        buffer.filled(KEPT).unwrap();
        buffer.give_back().unwrap();
        assert_eq!(buffer.bytes()[KEPT - 1], 1);
    }

    #[test]
    fn filled_beyond_the_buffer_is_none() {
        assert_eq!(Buffer::new(4096).unwrap().filled(4097), None);
    }
}
