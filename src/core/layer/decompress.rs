//! The compression of a layer or archive, told by its first bytes, never by a name or media type.
//!
//! Taken: gzip, bzip2, xz and zstd, as by `docker load` and `docker import`. Streams behind one another are one stream, as the
//! formats say. Zeros behind a gzip or bzip2 stream are padding, as for GNU gzip; anything else there is damage.
//!
//! Invariant: memory is bounded whatever the stream asks for ([`ZSTD_WINDOW_LOG`], [`XZ_MEMORY_KIB`]).

use std::fmt;
use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};

use bzip2::bufread::BzDecoder;
use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;
use thiserror::Error;

/// The largest zstd window, 128 MiB: what `zstd -d` takes without `--long`, and more than any level makes by itself.
const ZSTD_WINDOW_LOG: u32 = 27;

/// What an xz stream may need: the dictionary of `xz -9`, 64 MiB, twice over.
const XZ_MEMORY_KIB: u32 = 128 * 1024;

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
    #[error(
        "the stream is compressed with {0}, which is not supported; gzip, bzip2, xz, zstd and plain tar are"
    )]
    Unsupported(Compression),
}

/// A stream without its compression.
pub struct Decompressed<R: Read> {
    compression: Compression,
    inner: Inner<R>,
    failed: bool,
}

/// The bytes that were looked at, then the rest.
type Sniffed<R> = io::Chain<Cursor<Vec<u8>>, R>;

type Buffered<R> = BufReader<Source<Sniffed<R>>>;

/// Marks errors of the source, which a decoder passes on, since they say nothing of the compression.
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
    Xz(Box<XzReader<Filling<Buffered<R>>>>),
    Zstd(zstd::Decoder<'static, Buffered<R>>),
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
    let buffered = |sniffed| BufReader::with_capacity(INPUT, Source(sniffed));
    let inner = match compression {
        Compression::None => Inner::Plain(sniffed),
        Compression::Gzip => Inner::Gzip(Members::new(buffered(sniffed))),
        Compression::Bzip2 => Inner::Bzip2(Members::new(buffered(sniffed))),
        Compression::Xz => Inner::Xz(Box::new(XzReader::new_mem_limit(
            Filling(buffered(sniffed)),
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
        inner,
        failed: false,
    })
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
    type Source: BufRead;

    fn open(source: Self::Source) -> Self;

    /// The source, right behind the member if that was read to its end.
    fn close(self) -> Self::Source;
}

impl<S: BufRead> Member for GzDecoder<S> {
    type Source = S;

    fn open(source: S) -> Self {
        Self::new(source)
    }

    fn close(self) -> S {
        self.into_inner()
    }
}

impl<S: BufRead> Member for BzDecoder<S> {
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
                && let Some(source) = behind_a_member(member.close())?
            {
                *self = Self::new(source);
            }
        }
        Ok(0)
    }
}

/// The source if another member begins there. Padding is skipped; what is neither is an error.
fn behind_a_member<S: BufRead>(mut source: S) -> io::Result<Option<S>> {
    let mut padded = false;
    loop {
        let bytes = match source.fill_buf() {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        };
        match bytes.first() {
            None => return Ok(None),
            Some(0) => {}
            Some(_) if padded => {
                return Err(io::Error::new(
                    ErrorKind::InvalidData,
                    "other data behind the padding",
                ));
            }
            Some(_) => return Ok(Some(source)),
        }
        padded = true;
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        source.consume(zeros);
    }
}

/// Fills what it is given but at the end, as the xz decoder expects where it looks for another stream.
struct Filling<R>(R);

impl<R: Read> Read for Filling<R> {
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
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

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

    /// Bytes as a program of the system compresses them.
    fn squeezed(program: &str, arguments: &[&str], bytes: &[u8]) -> Vec<u8> {
        let mut child = Command::new(program)
            .args(arguments)
            .arg("-c")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let mut input = child.stdin.take().unwrap();
        let mut output = child.stdout.take().unwrap();
        let mut out = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(move || input.write_all(bytes).unwrap());
            output.read_to_end(&mut out).unwrap();
        });
        assert!(child.wait().unwrap().success());
        out
    }

    const PROGRAMS: [(&str, Compression); 4] = [
        ("gzip", Compression::Gzip),
        ("bzip2", Compression::Bzip2),
        ("xz", Compression::Xz),
        ("zstd", Compression::Zstd),
    ];

    /// More than a block of any of them, and not all alike.
    fn sample() -> Vec<u8> {
        (0..3_000_000_u32)
            .map(|n| n.wrapping_mul(n).to_le_bytes()[2])
            .collect()
    }

    /// Gives few bytes at a time, as a pipe may.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = self.0.len().min(out.len()).min(4093);
            out[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    #[test]
    fn what_the_usual_programs_compress_is_read_also_in_several_streams() {
        let sample = sample();
        for (program, compression) in PROGRAMS {
            let whole = squeezed(program, &[], &sample);
            assert_eq!(decompress(&whole[..]).unwrap().compression(), compression);
            assert_eq!(all(&whole).unwrap(), sample, "{program}");
            let (first, second) = sample.split_at(1_234_567);
            let parts = [
                squeezed(program, &["-1"], first),
                squeezed(program, &[], b""),
                squeezed(program, &[], second),
            ]
            .concat();
            let mut out = Vec::new();
            decompress(Trickle(&parts))
                .unwrap()
                .read_to_end(&mut out)
                .unwrap();
            assert_eq!(out, sample, "{program}, three streams");
        }
    }

    #[test]
    fn damage_and_cuts_are_errors_that_name_the_compression() {
        let sample = sample();
        for (program, _) in PROGRAMS {
            let whole = squeezed(program, &[], &sample[..100_000]);
            for cut in [whole.len() - 1, whole.len() - 9, whole.len() / 2, 12] {
                let error = all(&whole[..cut]).unwrap_err().to_string();
                assert!(error.contains(program), "{program} cut at {cut}: {error}");
            }
            for at in [whole.len() / 3, whole.len() - 6] {
                let mut flipped = whole.clone();
                flipped[at] ^= 4;
                let error = all(&flipped).unwrap_err().to_string();
                assert!(
                    error.contains(program),
                    "{program} flipped at {at}: {error}"
                );
            }
            let error = all(&[&whole[..], b"garbage"].concat())
                .unwrap_err()
                .to_string();
            assert!(error.contains(program), "{program}: {error}");
        }
    }

    #[test]
    fn zeros_behind_a_stream_are_padding_where_the_usual_programs_take_them() {
        for (program, _) in PROGRAMS.iter().filter(|(program, _)| *program != "zstd") {
            let padded = [squeezed(program, &[], b"hello"), vec![0; 100_000]].concat();
            assert_eq!(all(&padded).unwrap(), b"hello", "{program}");
            let more = [&padded[..], b"more"].concat();
            assert!(all(&more).is_err(), "{program}");
        }
    }

    #[test]
    fn streams_that_want_too_much_memory_are_refused() {
        // the window that `zstd --long=31` asks for; a dictionary of 1.5 GiB, as `xz --lzma2=dict=1536MiB` writes
        let long = squeezed("zstd", &["--long=31", "-q"], &vec![7; 200 << 20]);
        let error = all(&long).unwrap_err().to_string();
        assert!(
            error.contains("zstd") && error.contains("memory"),
            "{error}"
        );
        let xz = squeezed("xz", &["--lzma2=preset=0,dict=192MiB"], b"hello");
        let error = all(&xz).unwrap_err().to_string();
        assert!(error.contains("xz") && error.contains("memory"), "{error}");
    }

    /// A disk that is gone.
    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is gone"))
        }
    }

    #[test]
    fn an_error_of_the_source_is_not_taken_for_damage() {
        for (program, _) in PROGRAMS {
            let whole = squeezed(program, &[], &sample()[..100_000]);
            let mut stream = decompress(whole[..whole.len() / 2].chain(Broken)).unwrap();
            let error = io::copy(&mut stream, &mut io::sink()).unwrap_err();
            assert_eq!(error.to_string(), "the disk is gone", "{program}");
        }
    }

    #[test]
    fn a_decoder_that_failed_is_not_asked_again() {
        for (program, _) in PROGRAMS {
            let mut whole = squeezed(program, &[], &sample()[..100_000]);
            let middle = whole.len() / 2;
            whole[middle..].fill(0x55);
            let mut stream = decompress(&whole[..]).unwrap();
            assert!(io::copy(&mut stream, &mut io::sink()).is_err());
            assert!(stream.read(&mut [0; 10]).is_err(), "{program}");
        }
    }

    #[test]
    fn what_is_not_taken_is_refused_by_name() {
        let message = decompress(&b"\x04\x22\x4d\x18@@"[..])
            .unwrap_err()
            .to_string();
        assert!(message.contains("lz4"), "{message}");
    }
}
