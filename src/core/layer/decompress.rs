//! The compression of a layer or archive, told by its first bytes, never by a name or media type.
//!
//! Taken: gzip, bzip2, xz and zstd, as by `docker load` and `docker import`. Streams behind one
//! another are one stream, as the formats say. Zeros behind a gzip or bzip2 stream are padding, as
//! for GNU gzip; anything else there is damage.
//!
//! Invariant: memory is bounded whatever the stream asks for ([`ZSTD_WINDOW_LOG`],
//! [`XZ_MEMORY_KIB`]).

use std::fmt;
use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};

use bzip2::bufread::BzDecoder;
use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;
use thiserror::Error;

/// The largest zstd window, 128 MiB: what `zstd -d` takes without `--long`, and more than any
/// level makes by itself.
const ZSTD_WINDOW_LOG: u32 = 27;

/// What an xz stream may need: the dictionary of `xz -9`, 64 MiB, twice over.
const XZ_MEMORY_KIB: u32 = 128 * 1024;

/// What a decoder holds that keeps to a fixed size: the windows of gzip, the blocks of bzip2.
const SMALL_DECODER: u64 = 4 << 20;

/// What a stream is compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952; several members are one stream.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// xz, with LZMA2 in it.
    Xz,
    /// bzip2.
    Bzip2,
    /// Recognised, not read: Docker takes none.
    Lz4,
}

/// The longest header below: zstd's, with its content size.
const MAGIC_MAX: usize = 18;

impl Compression {
    /// By the first bytes of a stream, at least [`MAGIC_MAX`] of them if there are as many.
    fn detect(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // a frame, or a skippable frame before one (RFC 8878, 3.1)
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            // `BZh9` alone could begin a file name: the block's magic, or that of the end, has to
            // follow
            [
                b'B',
                b'Z',
                b'h',
                b'1'..=b'9',
                0x31,
                0x41,
                0x59,
                0x26,
                0x53,
                0x59,
                ..,
            ]
            | [
                b'B',
                b'Z',
                b'h',
                b'1'..=b'9',
                0x17,
                0x72,
                0x45,
                0x38,
                0x50,
                0x90,
                ..,
            ] => Self::Bzip2,
            [0x04, 0x22, 0x4d, 0x18, ..] => Self::Lz4,
            _ => Self::None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
            Self::Lz4 => "lz4",
        })
    }
}

/// Why a stream cannot be decompressed.
#[derive(Debug, Error)]
pub enum DecompressError {
    /// Not even its first bytes could be read.
    #[error("cannot read the beginning of the stream")]
    Read(#[from] io::Error),
    /// Known, and not supported.
    #[error(
        "the stream is compressed with {0}, which is not supported; gzip, bzip2, xz, zstd and plain tar are"
    )]
    Unsupported(Compression),
}

/// A stream without its compression.
pub struct Decompressed<R: Read> {
    compression: Compression,
    memory: u64,
    inner: Inner<R>,
    failed: bool,
}

/// The bytes that were looked at, then the rest.
type Sniffed<R> = io::Chain<Cursor<Vec<u8>>, R>;

type Buffered<R> = BufReader<Source<Sniffed<R>>>;

/// Marks errors of the source, which a decoder passes on, since they say nothing of the
/// compression.
struct Source<R>(R);

#[derive(Debug, Error)]
#[error(transparent)]
struct SourceError(io::Error);

impl<R: Read> Read for Source<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out).map_err(|error| match error.kind() {
            ErrorKind::Interrupted => error,
            kind => io::Error::new(kind, SourceError(error)),
        })
    }
}

enum Inner<R: Read> {
    Plain(Sniffed<R>),
    Gzip(Members<GzDecoder<Buffered<R>>>),
    Bzip2(Members<BzDecoder<Buffered<R>>>),
    Xz(Box<XzReader<FullReads<Buffered<R>>>>),
    Zstd(zstd::Decoder<'static, Buffered<R>>),
}

/// Compressed bytes are read in pieces of this size.
const INPUT: usize = 64 * 1024;

/// Looks at the first bytes and gives the stream without its compression. An empty stream is an
/// empty one.
///
/// Damage shows as an error of [`Read::read`], also of a last member that is cut off.
pub fn decompress<R: Read>(mut source: R) -> Result<Decompressed<R>, DecompressError> {
    let head = read_head(&mut source)?;
    let compression = Compression::detect(&head);
    let memory = match compression {
        Compression::Zstd => zstd_window(&head).unwrap_or(1 << ZSTD_WINDOW_LOG),
        Compression::Xz => u64::from(XZ_MEMORY_KIB) << 10,
        _ => SMALL_DECODER,
    };
    let sniffed = Cursor::new(head).chain(source);
    let buffered = |sniffed| BufReader::with_capacity(INPUT, Source(sniffed));
    let inner = match compression {
        Compression::None => Inner::Plain(sniffed),
        Compression::Gzip => Inner::Gzip(Members::new(buffered(sniffed))),
        Compression::Bzip2 => Inner::Bzip2(Members::new(buffered(sniffed))),
        Compression::Xz => Inner::Xz(Box::new(XzReader::new_mem_limit(
            FullReads(buffered(sniffed)),
            true,
            XZ_MEMORY_KIB,
        ))),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(buffered(sniffed))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Inner::Zstd(decoder)
        }
        Compression::Lz4 => return Err(DecompressError::Unsupported(compression)),
    };
    Ok(Decompressed {
        compression,
        memory,
        inner,
        failed: false,
    })
}

fn read_head(source: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(MAGIC_MAX);
    source.take(MAGIC_MAX as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// The window of a zstd frame (RFC 8878, 3.1.1.1). None if it has no header.
fn zstd_window(head: &[u8]) -> Option<u64> {
    let [0x28, 0xb5, 0x2f, 0xfd, descriptor, fields @ ..] = head else {
        return None;
    };
    let single_segment = descriptor & 0x20 != 0;
    if !single_segment {
        let window = fields.first()?;
        let base = 1_u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // The content is the window; its size stands behind the dictionary's id.
    let id = [0, 1, 2, 4].get(usize::from(descriptor & 3))?;
    let length = 1_usize << (descriptor >> 6);
    let mut size = [0; 8];
    size.get_mut(..length)?
        .copy_from_slice(fields.get(*id..)?.get(..length)?);
    Some(u64::from_le_bytes(size))
}

impl<R: Read> Decompressed<R> {
    /// What the stream was compressed with.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Bytes that decompressing takes, by the stream's header; at most what is allowed.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    fn describe(&self, error: io::Error) -> io::Error {
        let compression = self.compression;
        let error = match error.downcast::<SourceError>() {
            Ok(SourceError(error)) => return error,
            Err(error) => error,
        };
        match error.kind() {
            ErrorKind::Interrupted => error,
            ErrorKind::UnexpectedEof => io::Error::new(
                ErrorKind::UnexpectedEof,
                format!("the {compression} stream is cut off"),
            ),
            ErrorKind::OutOfMemory => io::Error::new(
                ErrorKind::OutOfMemory,
                format!("the {compression} stream needs more than {XZ_MEMORY_KIB} KiB of memory"),
            ),
            _ => damaged(compression, &error),
        }
    }
}

fn damaged(compression: Compression, error: &io::Error) -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        format!("the {compression} stream is damaged: {error}"),
    )
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.failed {
            return Err(damaged(self.compression, &ErrorKind::InvalidData.into()));
        }
        let result = match &mut self.inner {
            Inner::Plain(sniffed) => return sniffed.read(out),
            Inner::Gzip(members) => members.read(out),
            Inner::Bzip2(members) => members.read(out),
            Inner::Xz(reader) => reader.read(out),
            Inner::Zstd(decoder) => decoder.read(out),
        };
        result.map_err(|error| {
            // a decoder that has failed is not asked again: what it would do then is not specified
            self.failed = error.kind() != ErrorKind::Interrupted;
            self.describe(error)
        })
    }
}

/// A decoder of one member.
trait Member: Read {
    /// What a member begins with.
    const MAGIC: u8;

    type Source: BufRead;

    fn open(source: Self::Source) -> Self;

    /// The source, right behind the member if that was read to its end.
    fn close(self) -> Self::Source;
}

impl<S: BufRead> Member for GzDecoder<S> {
    const MAGIC: u8 = 0x1f;

    type Source = S;

    fn open(source: S) -> Self {
        Self::new(source)
    }

    fn close(self) -> S {
        self.into_inner()
    }
}

impl<S: BufRead> Member for BzDecoder<S> {
    const MAGIC: u8 = b'B';

    type Source = S;

    fn open(source: S) -> Self {
        Self::new(source)
    }

    fn close(self) -> S {
        self.into_inner()
    }
}

/// Members behind one another, then maybe zeros. None: all was read.
struct Members<D: Member>(Option<Box<D>>);

impl<D: Member> Members<D> {
    fn new(source: D::Source) -> Self {
        Self(Some(Box::new(D::open(source))))
    }
}

impl<D: Member> Read for Members<D> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let count = member.read(out)?;
            if count > 0 || out.is_empty() {
                return Ok(count);
            }
            if let Some(member) = self.0.take()
                && let Some(source) = next_member(member.close(), D::MAGIC)?
            {
                *self = Self::new(source);
            }
        }
        Ok(0)
    }
}

/// The source if another member begins there. Padding is skipped; what is neither is an error.
fn next_member<S: BufRead>(mut source: S, magic: u8) -> io::Result<Option<S>> {
    let other = |what| Err(io::Error::new(ErrorKind::InvalidData, what));
    let mut padded = false;
    loop {
        let bytes = match source.fill_buf() {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        };
        match bytes.first() {
            None => return Ok(None),
            Some(0) => {}
            Some(_) if padded => return other("other data behind the padding"),
            // A decoder would call what is too short for a header cut off.
            Some(byte) if *byte != magic => return other("other data behind its end"),
            Some(_) => return Ok(Some(source)),
        }
        padded = true;
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        source.consume(zeros);
    }
}

/// Fills what it is given but at the end, as the xz decoder expects where it looks for another
/// stream.
struct FullReads<R>(R);

impl<R: Read> Read for FullReads<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(free) = out.get_mut(filled..).filter(|free| !free.is_empty()) {
            match self.0.read(free) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

impl<R: Read> fmt::Debug for Decompressed<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressed")
            .field("compression", &self.compression)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
