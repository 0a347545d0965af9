//! The raw bytes of a layer, read once.
//!
//! The digest that [`TarStream::finish`] returns is that of the whole stream whatever its end looks
//! like. Memory: one fixed buffer.

use std::io::{self, ErrorKind, Read};
use std::ops::Range;

use super::error::ImportError;
use super::header::BLOCK;
use crate::digest::Sha256Digest;

/// Large enough that refilling it does not show; a multiple of the block size.
const BUFFER: usize = 256 * 1024;

/// A stream that is hashed while it is read.
pub(super) trait HashedRead: Read {
    /// Reads on to the end of the stream; the SHA-256 of all its bytes.
    fn digest(&mut self) -> io::Result<Sha256Digest>;
}

/// Records bytes that belong to no file, for the recipe.
pub(super) trait LiteralSink {
    fn literal(&mut self, bytes: &[u8]) -> Result<(), ImportError>;
}

/// Records nothing.
impl LiteralSink for () {
    fn literal(&mut self, _: &[u8]) -> Result<(), ImportError> {
        Ok(())
    }
}

pub(super) struct TarStream<R, T> {
    source: R,
    recorder: T,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes taken from the source.
    read: u64,
    limit: u64,
}

impl<R: HashedRead, T: LiteralSink> TarStream<R, T> {
    /// `limit`: bytes of the whole stream, beyond which reading fails.
    pub(super) fn new(source: R, recorder: T, limit: u64) -> Self {
        Self {
            source,
            recorder,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            read: 0,
            limit,
        }
    }

    /// Position in the uncompressed stream of the next byte to be consumed.
    pub(super) fn offset(&self) -> u64 {
        self.read.saturating_sub(self.available() as u64)
    }

    fn available(&self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// Adds at least one byte to the buffer; false at the end of the stream. The buffer must not
    /// be full.
    fn fill(&mut self) -> Result<bool, ImportError> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end = self.available();
            self.start = 0;
        }
        let free = self.buffer.get_mut(self.end..).unwrap_or_default();
        let count = loop {
            match self.source.read(free) {
                Ok(count) => break count.min(free.len()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(ImportError::Read {
                        offset: self.read,
                        source,
                    });
                }
            }
        };
        self.end = self.end.saturating_add(count);
        self.read = self.read.saturating_add(count as u64);
        if self.read > self.limit {
            return Err(ImportError::Limit {
                what: "bytes",
                limit: self.limit,
            });
        }
        Ok(count > 0)
    }

    /// The next block, or `None` where the stream ends at its beginning.
    pub(super) fn block(&mut self) -> Result<Option<[u8; BLOCK]>, ImportError> {
        while self.available() < BLOCK {
            if !self.fill()? {
                return match self.available() {
                    0 => Ok(None),
                    _ => Err(ImportError::Truncated {
                        offset: self.read,
                        what: "a header",
                    }),
                };
            }
        }
        let block = self
            .buffer
            .get(self.start..)
            .and_then(<[u8]>::first_chunk)
            .copied();
        self.start = self.start.saturating_add(BLOCK);
        if let Some(block) = &block {
            self.recorder.literal(block)?;
        }
        Ok(block)
    }

    /// Up to `at_most` bytes that are in no file, which the recorder takes down; empty as
    /// [`TarStream::content`].
    pub(super) fn chunk(&mut self, at_most: u64) -> Result<&[u8], ImportError> {
        let taken = self.take(at_most)?;
        let bytes = self.buffer.get(taken).unwrap_or_default();
        self.recorder.literal(bytes)?;
        Ok(bytes)
    }

    /// Up to `at_most` bytes of a file's content, as many as are at hand without copying; empty
    /// only for `at_most == 0` or at the end of the stream.
    pub(super) fn content(&mut self, at_most: u64) -> Result<&[u8], ImportError> {
        let taken = self.take(at_most)?;
        Ok(self.buffer.get(taken).unwrap_or_default())
    }

    /// The recorder, for what the caller knows better.
    pub(super) fn recorder(&mut self) -> &mut T {
        &mut self.recorder
    }

    fn take(&mut self, at_most: u64) -> Result<Range<usize>, ImportError> {
        if at_most > 0 && self.available() == 0 {
            self.fill()?;
        }
        let count = usize::try_from(at_most)
            .unwrap_or(usize::MAX)
            .min(self.available());
        let from = self.start;
        self.start = self.start.saturating_add(count);
        Ok(from..self.start)
    }

    /// Consumes the rest; the digest of all bytes, how many they were, and the recorder.
    pub(super) fn finish(mut self) -> Result<(Sha256Digest, u64, T), ImportError> {
        while !self.chunk(u64::MAX)?.is_empty() {}
        let digest = self.source.digest().map_err(|source| ImportError::Read {
            offset: self.read,
            source,
        })?;
        Ok((digest, self.read, self.recorder))
    }
}

/// Any reader, hashed.
#[cfg(test)]
pub(super) struct Hashed<R>(pub(super) R, pub(super) crate::digest::Sha256Hasher);

#[cfg(test)]
impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(out)?;
        self.1.update(&out[..count]);
        Ok(count)
    }
}

#[cfg(test)]
impl<R: Read> HashedRead for Hashed<R> {
    fn digest(&mut self) -> io::Result<Sha256Digest> {
        Ok(std::mem::take(&mut self.1).finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Sha256Hasher;

    fn limited<R: Read>(source: R, limit: u64) -> TarStream<Hashed<R>, ()> {
        TarStream::new(Hashed(source, Sha256Hasher::new()), (), limit)
    }

    /// Gives its bytes in pieces of the sizes asked for, over and over.
    struct Dribble<'a>(&'a [u8], Vec<usize>, usize);

    impl Read for Dribble<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            self.2 += 1;
            let count = self.1[self.2 % self.1.len()]
                .min(out.len())
                .min(self.0.len());
            out[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    #[test]
    fn finish_digests_every_byte_once() {
        let bytes: Vec<u8> = (0..1_000_003_u32)
            .map(|n| n.to_le_bytes()[n as usize % 3])
            .collect();
        for sizes in [vec![1 << 20], vec![511, 513], vec![1, 70_000, 3]] {
            let mut stream = limited(Dribble(&bytes, sizes, 0), u64::MAX);
            let mut seen = Vec::new();
            for turn in 0..40_u64 {
                if turn % 3 == 0 {
                    seen.extend_from_slice(&stream.block().unwrap().unwrap());
                } else {
                    seen.extend_from_slice(stream.chunk(turn * 1000).unwrap());
                }
                assert_eq!(stream.offset(), seen.len() as u64);
            }
            assert_eq!(seen, bytes[..seen.len()]);
            assert_eq!(
                stream.finish().unwrap(),
                (Sha256Digest::of(&bytes), bytes.len() as u64, ())
            );
        }
    }

    #[test]
    fn block_refuses_a_partial_block() {
        let mut stream = limited(&[7_u8; 1024][..], u64::MAX);
        assert!(stream.block().unwrap().is_some());
        assert!(stream.block().unwrap().is_some());
        assert!(stream.block().unwrap().is_none());
        let mut stream = limited(&[7_u8; 513][..], u64::MAX);
        assert!(stream.block().unwrap().is_some());
        assert!(matches!(
            stream.block(),
            Err(ImportError::Truncated { offset: 513, .. })
        ));
    }

    #[test]
    fn finish_stops_at_the_stream_limit() {
        let stream = limited(io::repeat(0), 10_000_000);
        assert!(matches!(
            stream.finish(),
            Err(ImportError::Limit {
                limit: 10_000_000,
                ..
            })
        ));
    }
}
