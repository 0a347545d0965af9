//! Compressed lengths by zstd; the output is discarded.

use std::io::{self, Write};

use anyhow::{Context, Result};

/// zstd's own default.
const LEVEL: i32 = 3;

/// Computes compressed lengths.
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
    /// Longer chunks are compressed as streams, so that their compressed bytes need no buffer.
    const BUFFERED: usize = 1 << 20;

    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            zstd: zstd::bulk::Compressor::new(LEVEL).context("starting zstd")?,
            buffer: Vec::new(),
        })
    }

    /// The length of a chunk as it would be stored: compressed, unless that is longer.
    pub(crate) fn length(&mut self, chunk: &[u8]) -> Result<u64> {
        let plain = chunk.len() as u64;
        if chunk.len() > Self::BUFFERED {
            let mut stream = self.stream()?;
            stream.write_all(chunk).context("compressing a content")?;
            return Ok(stream
                .finish()
                .context("compressing a content")?
                .0
                .min(plain));
        }
        self.buffer.clear();
        self.buffer
            .reserve(zstd::zstd_safe::compress_bound(chunk.len()));
        let length = self.zstd.compress_to_buffer(chunk, &mut self.buffer);
        Ok((length.context("compressing a chunk")? as u64).min(plain))
    }

    #[expect(clippy::unused_self, reason = "a stream has a context of its own")]
    pub(crate) fn stream(&self) -> Result<zstd::stream::write::Encoder<'static, Counter>> {
        zstd::stream::write::Encoder::new(Counter::default(), LEVEL).context("starting zstd")
    }
}
