//! Lengths of what zstd makes of bytes; what it makes is not kept.

use std::io::{self, Write};

use anyhow::{Context, Result};

/// zstd's own default.
const LEVEL: i32 = 3;

/// Compresses to count bytes.
pub(crate) struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
    buffer: Vec<u8>,
}

/// Counts what is written to it.
#[derive(Debug, Default)]
pub(crate) struct Counter(pub(crate) u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Compressor {
    /// Longer pieces are compressed as streams, so that their compressed bytes need no buffer.
    const BUFFERED: usize = 1 << 20;

    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            zstd: zstd::bulk::Compressor::new(LEVEL).context("starting zstd")?,
            buffer: Vec::new(),
        })
    }

    /// The length of a piece as it would be kept.
    pub(crate) fn length(&mut self, piece: &[u8]) -> Result<u64> {
        let plain = piece.len() as u64;
        if piece.len() > Self::BUFFERED {
            let mut stream = self.stream()?;
            stream.write_all(piece).context("compressing a content")?;
            return Ok(stream
                .finish()
                .context("compressing a content")?
                .0
                .min(plain));
        }
        self.buffer.clear();
        self.buffer
            .reserve(zstd::zstd_safe::compress_bound(piece.len()));
        let length = self.zstd.compress_to_buffer(piece, &mut self.buffer);
        Ok((length.context("compressing a piece")? as u64).min(plain))
    }

    #[expect(clippy::unused_self, reason = "a stream has a context of its own")]
    pub(crate) fn stream(&self) -> Result<zstd::stream::write::Encoder<'static, Counter>> {
        zstd::stream::write::Encoder::new(Counter::default(), LEVEL).context("starting zstd")
    }
}
