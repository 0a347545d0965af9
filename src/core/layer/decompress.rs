//! The compression of a layer or archive, told by its first bytes, never by a name or media type.

use std::fmt;
use std::io::{self, BufReader, Cursor, ErrorKind, Read};

use flate2::bufread::MultiGzDecoder;
use thiserror::Error;

/// What a stream is compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952; several members are one stream.
    Gzip,
    /// RFC 8878. Recognised, not read yet.
    Zstd,
    /// Recognised, not read: no writer of layers makes it.
    Xz,
    /// Recognised, not read.
    Bzip2,
    /// Recognised, not read.
    Lz4,
}

/// The longest magic below.
const MAGIC_MAX: usize = 10;

impl Compression {
    /// By the first bytes of a stream, at least [`MAGIC_MAX`] of them if there are as many.
    fn detect(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // a frame, or a skippable frame before one (RFC 8878, 3.1)
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            // `BZh9` alone could begin a file name: the block's magic, or that of the end, has to follow
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
    #[error("the stream is compressed with {0}, which is not supported; gzip and plain tar are")]
    Unsupported(Compression),
}

/// A stream without its compression.
pub struct Decompressed<R: Read> {
    compression: Compression,
    inner: Inner<R>,
}

/// The bytes that were looked at, then the rest.
type Sniffed<R> = io::Chain<Cursor<Vec<u8>>, R>;

enum Inner<R: Read> {
    Plain(Sniffed<R>),
    Gzip(Box<MultiGzDecoder<BufReader<Sniffed<R>>>>),
}

/// Compressed bytes are read in pieces of this size.
const INPUT: usize = 64 * 1024;

/// Looks at the first bytes and gives the stream without its compression. An empty stream is an empty one.
///
/// Damage shows as an error of [`Read::read`], also of a last member that is cut off.
pub fn decompress<R: Read>(mut source: R) -> Result<Decompressed<R>, DecompressError> {
    let head = read_head(&mut source)?;
    let compression = Compression::detect(&head);
    let sniffed = Cursor::new(head).chain(source);
    let inner = match compression {
        Compression::None => Inner::Plain(sniffed),
        Compression::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(BufReader::with_capacity(
            INPUT, sniffed,
        )))),
        other => return Err(DecompressError::Unsupported(other)),
    };
    Ok(Decompressed { compression, inner })
}

fn read_head(source: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(MAGIC_MAX);
    source.take(MAGIC_MAX as u64).read_to_end(&mut head)?;
    Ok(head)
}

impl<R: Read> Decompressed<R> {
    /// What the stream was compressed with.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// The source, wherever reading has come to; after the end of the stream it is at its own end.
    pub fn into_inner(self) -> R {
        match self.inner {
            Inner::Plain(sniffed) => sniffed.into_inner().1,
            Inner::Gzip(decoder) => decoder.into_inner().into_inner().into_inner().1,
        }
    }
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match &mut self.inner {
            Inner::Plain(sniffed) => sniffed.read(out),
            Inner::Gzip(decoder) => decoder.read(out).map_err(|error| match error.kind() {
                // flate2 says no more than this
                ErrorKind::UnexpectedEof => {
                    io::Error::new(ErrorKind::UnexpectedEof, "the gzip stream is cut off")
                }
                ErrorKind::InvalidInput | ErrorKind::InvalidData => io::Error::new(
                    ErrorKind::InvalidData,
                    format!("the gzip stream is damaged: {error}"),
                ),
                _ => error,
            }),
        }
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
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn all(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(bytes)
            .map_err(io::Error::other)?
            .read_to_end(&mut out)
            .map(|_| out)
    }

    #[test]
    fn gzip_of_any_number_of_members_and_plain_bytes_are_read() {
        assert_eq!(all(&gzip(b"hello")).unwrap(), b"hello");
        assert_eq!(
            all(&[gzip(b"hello "), gzip(b""), gzip(b"world")].concat()).unwrap(),
            b"hello world"
        );
        for plain in [&b""[..], b"x", b"BZh91.txt\0", b"usr/bin/\0\0\0"] {
            assert_eq!(all(plain).unwrap(), plain);
        }
    }

    #[test]
    fn a_damaged_or_cut_gzip_stream_is_an_error_that_says_so() {
        let good = [gzip(b"first"), gzip(&vec![7; 100_000])].concat();
        for cut in [3, 12, 30, good.len() - 4] {
            assert!(
                all(&good[..cut]).unwrap_err().to_string().contains("gzip"),
                "{cut}"
            );
        }
        let mut flipped = good.clone();
        let last = flipped.len() - 6;
        flipped[last] ^= 1;
        assert!(all(&flipped).unwrap_err().to_string().contains("gzip"));
        assert!(
            all(&[&good[..], b"garbage"].concat())
                .unwrap_err()
                .to_string()
                .contains("gzip")
        );
    }

    #[test]
    fn other_compressions_are_refused_by_name() {
        for (head, name) in [
            (&b"\x28\xb5\x2f\xfd\x04\0"[..], "zstd"),
            (b"\x50\x2a\x4d\x18\0\0\0\0", "zstd"),
            (b"\xfd7zXZ\0\0\x04", "xz"),
            (b"BZh91AY&SY\xff", "bzip2"),
            (b"\x04\x22\x4d\x18@@", "lz4"),
        ] {
            let message = decompress(head).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }
}
