//! Random access to an archive's bytes: a file in place, or a copy of a stream that is extended on
//! demand.
//!
//! Input that cannot be read twice (a pipe, compressed data) is copied to an unnamed file, up to
//! the tar's end marker, so a bomb behind it takes no disk. Zeros become holes, so a bomb of zeros
//! takes none either.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use super::ImageError;
use super::watch::{Step, Watch};
use crate::store::{Store, StoreError};

/// Limit of an archive's bytes: far above real ones, and within the file size limit of most file
/// systems.
pub(super) const ARCHIVE_BYTES: u64 = 1 << 40;

/// Bytes read and dropped after the end marker: covers the padding of real writers, so that a
/// writer into a pipe gets no SIGPIPE.
const TAIL_BYTES: u64 = 1 << 20;

const PIECE: usize = 128 * 1024;

/// Where an archive's bytes come from.
pub(super) enum Input<'a> {
    File { file: File, length: u64 },
    Stream(Spool<'a>),
}

/// A stream and the file it is copied to.
pub(super) struct Spool<'a> {
    /// For messages.
    name: String,
    /// None after the end of the stream.
    stream: Option<Box<dyn Read + 'a>>,
    copy: File,
    length: u64,
    store: &'a Store,
    watch: Option<&'a dyn Watch>,
    piece: Vec<u8>,
}

impl<'a> Input<'a> {
    pub(super) fn file(name: &str, file: File) -> Result<Self, ImageError> {
        let meta = file.metadata().map_err(|source| read_error(name, source))?;
        Ok(Self::File {
            file,
            length: meta.len(),
        })
    }

    pub(super) fn stream(
        name: &str,
        stream: impl Read + 'a,
        store: &'a Store,
        watch: Option<&'a dyn Watch>,
    ) -> Result<Self, ImageError> {
        Ok(Self::Stream(Spool {
            name: name.to_owned(),
            stream: Some(Box::new(stream)),
            copy: store.scratch()?,
            length: 0,
            store,
            watch,
            piece: vec![0; PIECE],
        }))
    }

    /// Whether the archive has at least `end` bytes.
    pub(super) fn reaches(&mut self, end: u64) -> Result<bool, ImageError> {
        match self {
            Self::File { length, .. } => Ok(end <= *length),
            Self::Stream(spool) => spool.reaches(end),
        }
    }

    /// Reads up to `length` bytes at `at`; fewer only at the end.
    pub(super) fn read_at(
        &mut self,
        name: &str,
        at: u64,
        length: u64,
    ) -> Result<Vec<u8>, ImageError> {
        self.reaches(at.saturating_add(length))?;
        let mut bytes = Vec::new();
        Range {
            file: self.bytes(),
            at,
            left: length,
        }
        .read_to_end(&mut bytes)
        .map_err(|source| read_error(name, source))?;
        Ok(bytes)
    }

    /// Ends reading; returns the file with the archive.
    pub(super) fn finish(self) -> Result<File, ImageError> {
        match self {
            Self::File { file, .. } => Ok(file),
            Self::Stream(spool) => spool.finish(),
        }
    }

    fn bytes(&self) -> &File {
        match self {
            Self::File { file, .. } => file,
            Self::Stream(spool) => &spool.copy,
        }
    }
}

impl Spool<'_> {
    fn reaches(&mut self, end: u64) -> Result<bool, ImageError> {
        // What a header announces is not inflated first.
        if end > ARCHIVE_BYTES {
            return Err(ImageError::Unsupported {
                name: self.name.clone(),
                what: format!("it is larger than {ARCHIVE_BYTES} bytes, which is the limit"),
            });
        }
        while self.length < end {
            let Some(stream) = &mut self.stream else {
                return Ok(false);
            };
            let read = next_piece(&self.name, stream, &mut self.piece)?;
            if read == 0 {
                self.stream = None;
                self.write(|copy, length, _| copy.set_len(length))?;
            } else {
                self.write(|copy, length, piece| {
                    let piece = piece.get(..read).unwrap_or_default();
                    if piece.iter().any(|&byte| byte != 0) {
                        return copy.write_all(piece);
                    }
                    let end = length.saturating_add(read as u64);
                    copy.set_len(end)
                        .and_then(|()| copy.seek(SeekFrom::Start(end)))
                        .map(drop)
                })?;
                self.length = self.length.saturating_add(read as u64);
                if let Some(watch) = self.watch {
                    watch.step(Step::Copied { bytes: self.length });
                }
            }
        }
        Ok(true)
    }

    fn write(
        &mut self,
        write: impl FnOnce(&mut File, u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        write(&mut self.copy, self.length, &self.piece)
            .map_err(|source| self.store.scratch_error(source))
    }

    fn finish(mut self) -> Result<File, ImageError> {
        let mut tail = 0_u64;
        if let Some(stream) = &mut self.stream {
            while tail < TAIL_BYTES {
                match next_piece(&self.name, stream, &mut self.piece)? {
                    0 => break,
                    read => tail = tail.saturating_add(read as u64),
                }
            }
        }
        Ok(self.copy)
    }
}

fn next_piece(name: &str, stream: &mut impl Read, piece: &mut [u8]) -> Result<usize, ImageError> {
    loop {
        return match stream.read(piece) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(ImageError::Truncated {
                name: name.to_owned(),
                what: error.to_string(),
            }),
            other => other.map_err(|source| read_error(name, source)),
        };
    }
}

fn read_error(name: &str, source: io::Error) -> ImageError {
    ImageError::Read {
        name: name.to_owned(),
        source,
    }
}

/// A reader of a file from a position to its end.
struct Range<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Range<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = self
            .file
            .read_at(buffer.get_mut(..wanted).unwrap_or_default(), self.at)?;
        self.at = self.at.saturating_add(read as u64);
        self.left = self.left.saturating_sub(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::index::Index;
    use super::*;

    /// A tar of one member of `size` zeros.
    fn tar(size: u64) -> impl Read {
        let script = "
import sys, tarfile
member = tarfile.TarInfo('member'); member.size = int(sys.argv[1])
sys.stdout.buffer.write(member.tobuf(tarfile.GNU_FORMAT))";
        let output = std::process::Command::new("python3")
            .args(["-c", script, &size.to_string()])
            .output()
            .unwrap();
        assert!(output.status.success());
        let content = io::repeat(0).take(size.next_multiple_of(512));
        io::Cursor::new(output.stdout).chain(content)
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(&dir.path().join("store")).unwrap();
        (dir, store)
    }

    #[test]
    fn spool_stops_at_the_end_marker() {
        let (_dir, store) = store();
        for endless in [0, 7] {
            let stream = tar(5).chain(&[0; 1024][..]).chain(io::repeat(endless));
            let mut input = Input::stream("stream", stream, &store, None).unwrap();
            Index::read("stream", &mut input).unwrap();
            let copy = input.finish().unwrap().metadata().unwrap();
            assert!(copy.len() <= 2 * PIECE as u64, "{}", copy.len());
        }
    }

    /// Otherwise a writer into a pipe gets SIGPIPE.
    #[test]
    fn finish_drains_the_usual_padding_of_a_pipe() {
        let (_dir, store) = store();
        let padding = vec![0; 300_000];
        let mut rest = padding.as_slice();
        let stream = tar(5).chain(&mut rest);
        let mut input = Input::stream("stream", stream, &store, None).unwrap();
        Index::read("stream", &mut input).unwrap();
        input.finish().unwrap();
        assert!(rest.is_empty());
    }

    /// A reader of what must not be read.
    struct Bomb;

    impl Read for Bomb {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("the bomb is inflated");
        }
    }

    #[test]
    fn index_refuses_an_archive_over_the_limit_without_reading_it() {
        let (_dir, store) = store();
        let stream = tar(ARCHIVE_BYTES).take(1 << 20).chain(Bomb);
        let mut input = Input::stream("bomb.tar.gz", stream, &store, None).unwrap();
        let error = Index::read("bomb.tar.gz", &mut input).err().unwrap();
        let message = error.to_string();
        assert!(
            message.contains("larger than 1099511627776 bytes"),
            "{message}"
        );
    }

    #[test]
    fn spool_writes_zeros_as_holes() {
        let (_dir, store) = store();
        let stream = tar(500 << 20).chain(&[0; 1024][..]);
        let mut input = Input::stream("stream", stream, &store, None).unwrap();
        let index = Index::read("stream", &mut input).unwrap();
        assert_eq!(index.find("member"), Some((512, 500 << 20)));
        let copy = input.finish().unwrap().metadata().unwrap();
        assert!(copy.blocks() * 512 < 1 << 20, "{}", copy.blocks());
        assert!(copy.len() >= 500 << 20);
    }
}
