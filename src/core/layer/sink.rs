//! Where contents go. All that import needs to know of a store: a writer for one content, and what
//! it was.

use std::io::{self, Read, Seek, SeekFrom, Write};

use crate::digest::{ObjectHasher, ObjectId};
use crate::store::{Stage, StageWriter, Staged};

/// Takes contents: a stage of the store, or [`HashOnly`].
pub trait ObjectSink {
    /// Takes one content.
    type Writer<'s>: ObjectWrite
    where
        Self: 's;

    /// A writer for the next content.
    fn object(&self) -> io::Result<Self::Writer<'_>>;

    /// Waits until all that was given is kept. A failure may show here, or at the next content.
    fn settle(&self) -> io::Result<()> {
        Ok(())
    }

    /// Reads a content that was given here and is settled.
    fn read_back(&self, id: ObjectId) -> io::Result<Box<dyn ReadSeek + '_>>;

    /// Forgets a content that was given here and is settled: nothing of the layer needs it.
    fn discard(&self, id: ObjectId) -> io::Result<()>;
}

/// Reads a content at any offset.
pub trait ReadSeek: Read + Seek {}

impl<R: Read + Seek> ReadSeek for R {}

/// One content on its way in; dropped unfinished, it is as if it had never begun.
pub trait ObjectWrite: Write {
    /// The content is complete and not empty.
    fn finish(self) -> io::Result<StoredObject>;

    /// A hole: the content goes on with `length` zeros, which a store may leave out of its file.
    fn zeros(&mut self, length: u64) -> io::Result<()> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        let mut left = length;
        while left > 0 {
            let piece = usize::try_from(left)
                .ok()
                .and_then(|left| ZEROS.get(..left))
                .unwrap_or(&ZEROS);
            self.write_all(piece)?;
            left -= piece.len() as u64;
        }
        Ok(())
    }
}

/// What a content was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredObject {
    /// Its name.
    pub id: ObjectId,
    /// It begins as ELF files do.
    pub elf: bool,
}

impl ObjectSink for Stage<'_> {
    type Writer<'s>
        = StageWriter<'s>
    where
        Self: 's;

    fn object(&self) -> io::Result<StageWriter<'_>> {
        Ok(self.object_writer())
    }

    fn settle(&self) -> io::Result<()> {
        Ok(Self::settle(self)?)
    }

    fn read_back(&self, id: ObjectId) -> io::Result<Box<dyn ReadSeek + '_>> {
        Ok(Box::new(self.open_object(id)?))
    }

    fn discard(&self, id: ObjectId) -> io::Result<()> {
        Ok(self.discard_object(id)?)
    }
}

impl ObjectWrite for StageWriter<'_> {
    fn finish(self) -> io::Result<StoredObject> {
        let Staged { id, elf } = Self::finish(self)?;
        Ok(StoredObject { id, elf })
    }

    fn zeros(&mut self, length: u64) -> io::Result<()> {
        Self::zeros(self, length)
    }
}

/// Names contents without keeping them: for looking at a layer (`cowl layers ARCHIVE`), and for
/// feeding bytes of any kind to [`import`](super::import).
#[derive(Debug, Clone, Copy, Default)]
pub struct HashOnly;

/// [`HashOnly`]'s writer.
#[derive(Debug, Default)]
pub struct HashingWriter {
    hasher: ObjectHasher,
    head: Vec<u8>,
}

const ELF_MAGIC: &[u8; 4] = b"\x7fELF";

impl ObjectSink for HashOnly {
    type Writer<'s> = HashingWriter;

    fn object(&self) -> io::Result<HashingWriter> {
        Ok(HashingWriter::default())
    }

    /// What was only hashed is gone; a recipe then gives other bytes.
    fn read_back(&self, _: ObjectId) -> io::Result<Box<dyn ReadSeek + '_>> {
        Ok(Box::new(Zeros))
    }

    fn discard(&self, _: ObjectId) -> io::Result<()> {
        Ok(())
    }
}

/// Zeros at every offset.
struct Zeros;

impl Read for Zeros {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        buffer.fill(0);
        Ok(buffer.len())
    }
}

impl Seek for Zeros {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match to {
            SeekFrom::Start(offset) => Ok(offset),
            SeekFrom::End(_) | SeekFrom::Current(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Write for HashingWriter {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let wanted = ELF_MAGIC
            .len()
            .saturating_sub(self.head.len())
            .min(piece.len());
        self.head
            .extend_from_slice(piece.get(..wanted).unwrap_or_default());
        self.hasher.update(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ObjectWrite for HashingWriter {
    fn finish(self) -> io::Result<StoredObject> {
        Ok(StoredObject {
            id: self.hasher.finish(),
            elf: self.head == ELF_MAGIC,
        })
    }
}
