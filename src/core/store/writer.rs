//! Writers for one object or one blob of a transaction; they hash while they write.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;

use super::transaction::copy;
use super::{StoreError, Transaction};
use crate::digest::{ObjectHasher, ObjectId, Sha256Digest, Sha256Hasher};
use crate::sys::copy::reflink;

/// Contents up to this size stay in memory until their hash is known: one that the store already
/// has costs no file.
pub(super) const IN_MEMORY: usize = 128 * 1024;
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";

/// The result of adding an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is new.
    Added,
    /// The store or this transaction had it; nothing was written.
    AlreadyPresent,
    /// The store had a damaged file of this name; publishing replaces it.
    Healed,
    /// Empty contents have no object.
    Empty,
}

/// An added object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Added {
    /// Its BLAKE3.
    pub id: ObjectId,
    /// Bytes.
    pub size: u64,
    /// What was done.
    pub outcome: Outcome,
    /// Whether it starts with the ELF magic, which decides how mounts open it.
    pub elf: bool,
}

impl Added {
    /// The object's id; None for an empty content.
    pub fn object(&self) -> Option<ObjectId> {
        (self.outcome != Outcome::Empty).then_some(self.id)
    }
}

impl Transaction<'_> {
    /// Adds the first `size` bytes of a file as an object that shares its blocks. None if the file
    /// is small, or where the file system shares none: then an [`ObjectWriter`] takes it.
    ///
    /// The clone is hashed, not the file: that may change meanwhile.
    pub fn reflink_object(&self, from: &File, size: u64) -> Result<Option<Added>, StoreError> {
        if size <= IN_MEMORY as u64 {
            return Ok(None);
        }
        let (mut file, name) = self.stream()?;
        let failed = |source: io::Error| self.write_error(&name, source);
        if !reflink(from, &file, size).map_err(|errno| failed(errno.into()))? {
            self.discard(&name)?;
            return Ok(None);
        }
        let mut head = [0; ELF_MAGIC.len()];
        file.read_exact_at(&mut head, 0).map_err(failed)?;
        let mut hasher = ObjectHasher::new();
        copy(&mut file, &mut hasher).map_err(failed)?;
        let id = hasher.finish();
        Ok(Some(Added {
            id,
            size,
            outcome: self.stage_stream(id, size, &name)?,
            elf: head == ELF_MAGIC,
        }))
    }

    /// Stages a complete file of the transaction as an object.
    fn stage_stream(&self, id: ObjectId, size: u64, stream: &str) -> Result<Outcome, StoreError> {
        let outcome = self.stage_object(id, size, |dir, name| dir.rename(stream, dir, name))?;
        if outcome == Outcome::AlreadyPresent {
            self.discard(stream)?;
        }
        Ok(outcome)
    }
}

/// Writes one object. Dropped before [`ObjectWriter::finish`], its bytes are discarded with the
/// transaction.
#[derive(Debug)]
pub struct ObjectWriter<'t> {
    content: ContentWriter<'t>,
}

impl<'t> ObjectWriter<'t> {
    pub(super) fn new(transaction: &'t Transaction<'_>) -> Self {
        Self {
            content: ContentWriter::new(transaction),
        }
    }

    /// Ends the object and stages it.
    pub fn finish(self) -> Result<Added, StoreError> {
        let transaction = self.content.transaction;
        let (id, size, elf, content) = self.content.finish();
        let outcome = match content {
            Content::Memory(_) if size == 0 => Outcome::Empty,
            Content::Memory(content) => transaction.stage_object(id, size, |dir, name| {
                dir.create_with(name, super::dir::PUBLISHED, &content)?;
                Ok(())
            })?,
            Content::File(stream) => transaction.stage_stream(id, size, &stream)?,
        };
        Ok(Added {
            id,
            size,
            outcome,
            elf,
        })
    }

    /// Appends a hole of `length` zeros.
    pub fn zeros(&mut self, length: u64) -> io::Result<()> {
        self.content.zeros(length)
    }
}

impl Write for ObjectWriter<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.content.write(piece)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A content that was written to its end.
pub(super) enum Content {
    /// Up to [`IN_MEMORY`].
    Memory(Vec<u8>),
    /// A larger one's file in the transaction's directory.
    File(String),
}

/// Hashes a content while it is written.
#[derive(Debug)]
pub(super) struct ContentWriter<'t> {
    transaction: &'t Transaction<'t>,
    hasher: ObjectHasher,
    size: u64,
    /// Its first bytes, zero-padded: the magic has no zero.
    head: [u8; ELF_MAGIC.len()],
    /// The whole content while it is small; then empty.
    buffer: Vec<u8>,
    spilled: Option<Spilled>,
}

#[derive(Debug)]
struct Spilled {
    file: File,
    name: String,
}

impl<'t> ContentWriter<'t> {
    pub(super) fn new(transaction: &'t Transaction<'_>) -> Self {
        Self {
            transaction,
            hasher: ObjectHasher::new(),
            size: 0,
            head: [0; ELF_MAGIC.len()],
            buffer: Vec::new(),
            spilled: None,
        }
    }

    /// Its name, its size, whether it is an ELF file, and where it is.
    pub(super) fn finish(self) -> (ObjectId, u64, bool, Content) {
        let content = match self.spilled {
            None => Content::Memory(self.buffer),
            Some(Spilled { name, .. }) => Content::File(name),
        };
        let elf = self.head == ELF_MAGIC;
        (self.hasher.finish(), self.size, elf, content)
    }

    /// Appends a hole of `length` zeros.
    pub(super) fn zeros(&mut self, length: u64) -> io::Result<()> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        let mut left = length;
        while left > 0 {
            let piece = usize::try_from(left)
                .ok()
                .and_then(|left| ZEROS.get(..left))
                .unwrap_or(&ZEROS);
            if self.makes_file(piece.len()) {
                self.spill()?;
            }
            if self.spilled.is_none() {
                self.buffer.extend_from_slice(piece);
            }
            self.hasher.update(piece);
            left -= piece.len() as u64;
        }
        self.size += length;
        if let Some(Spilled { file, name }) = &mut self.spilled {
            // Set the size first: a hole at the end writes nothing.
            let grown = file
                .set_len(self.size)
                .and_then(|()| file.seek(SeekFrom::Start(self.size)));
            grown.map_err(|source| self.transaction.write_error(name, source))?;
        }
        Ok(())
    }

    /// Whether `more` bytes exceed the in-memory limit.
    fn makes_file(&self, more: usize) -> bool {
        self.spilled.is_none() && self.buffer.len() + more > IN_MEMORY
    }

    fn spill(&mut self) -> Result<(), StoreError> {
        let (mut file, name) = self.transaction.stream()?;
        file.write_all(&self.buffer)
            .map_err(|source| self.transaction.write_error(&name, source))?;
        self.buffer = Vec::new();
        self.spilled = Some(Spilled { file, name });
        Ok(())
    }
}

impl Write for ContentWriter<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.makes_file(piece.len()) {
            self.spill()?;
        }
        match &mut self.spilled {
            Some(Spilled { file, name }) => file
                .write_all(piece)
                .map_err(|source| self.transaction.write_error(name, source))?,
            None => self.buffer.extend_from_slice(piece),
        }
        if let Some(head) = usize::try_from(self.size)
            .ok()
            .and_then(|size| self.head.get_mut(size..))
        {
            head.iter_mut()
                .zip(piece)
                .for_each(|(head, byte)| *head = *byte);
        }
        self.hasher.update(piece);
        self.size += piece.len() as u64;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a blob as received, such as a compressed layer.
#[derive(Debug)]
pub struct BlobWriter<'t> {
    transaction: &'t Transaction<'t>,
    hasher: Sha256Hasher,
    size: u64,
    file: File,
    name: String,
}

impl<'t> BlobWriter<'t> {
    pub(super) fn new(transaction: &'t Transaction<'_>) -> Result<Self, StoreError> {
        let (file, name) = transaction.stream()?;
        Ok(Self {
            transaction,
            hasher: Sha256Hasher::new(),
            size: 0,
            file,
            name,
        })
    }

    /// Ends the blob; returns its digest and size.
    pub fn finish(self) -> Result<(Sha256Digest, u64), StoreError> {
        let digest = self.hasher.finish();
        self.transaction.stage_blob(digest, &self.name)?;
        Ok((digest, self.size))
    }
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.file
            .write_all(piece)
            .map_err(|source| self.transaction.write_error(&self.name, source))?;
        self.hasher.update(piece);
        self.size += piece.len() as u64;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
