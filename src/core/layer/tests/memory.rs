//! Objects in memory, for tests.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

use crate::digest::ObjectId;
use crate::layer::{ObjectSink, ObjectWrite, ReadSeek, StoredObject};

/// Keeps contents, so that they can be compared byte by byte.
#[derive(Default)]
pub(super) struct Memory(RefCell<BTreeMap<ObjectId, Vec<u8>>>, Cell<u64>, ReadBack);

/// What import read of the contents that it had written.
#[derive(Default)]
pub(super) struct ReadBack {
    pub(super) opens: Cell<u64>,
    pub(super) bytes: Cell<u64>,
}

struct CountingReader<'m>(io::Cursor<Vec<u8>>, &'m ReadBack);

impl Read for CountingReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1.bytes.set(self.1.bytes.get() + count as u64);
        Ok(count)
    }
}

impl Seek for CountingReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

pub(super) struct MemoryWriter<'m>(&'m Memory, Vec<u8>);

impl Memory {
    /// Zeros that came as holes.
    pub(super) fn zeros(&self) -> u64 {
        self.1.get()
    }

    pub(super) fn read_back_counts(&self) -> &ReadBack {
        &self.2
    }

    pub(super) fn content(&self, id: ObjectId) -> Option<Vec<u8>> {
        self.0.borrow().get(&id).cloned()
    }

    pub(super) fn contents(&self) -> Vec<(ObjectId, Vec<u8>)> {
        self.0.borrow().clone().into_iter().collect()
    }
}

impl ObjectSink for Memory {
    type Writer<'s> = MemoryWriter<'s>;

    fn object(&self) -> io::Result<MemoryWriter<'_>> {
        Ok(MemoryWriter(self, Vec::new()))
    }

    fn read_back(&self, id: ObjectId) -> io::Result<Box<dyn ReadSeek + '_>> {
        let content = self.content(id).ok_or(io::ErrorKind::NotFound)?;
        self.2.opens.set(self.2.opens.get() + 1);
        Ok(Box::new(CountingReader(io::Cursor::new(content), &self.2)))
    }

    fn discard(&self, id: ObjectId) -> io::Result<()> {
        assert!(self.0.borrow_mut().remove(&id).is_some());
        Ok(())
    }
}

impl Write for MemoryWriter<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.1.write(piece)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ObjectWrite for MemoryWriter<'_> {
    fn zeros(&mut self, length: u64) -> io::Result<()> {
        self.0.1.set(self.0.1.get() + length);
        self.1
            .resize(self.1.len() + usize::try_from(length).unwrap(), 0);
        Ok(())
    }

    fn finish(self) -> io::Result<StoredObject> {
        let id = ObjectId::of(&self.1);
        let elf = self.1.starts_with(b"\x7fELF");
        self.0.0.borrow_mut().insert(id, self.1);
        Ok(StoredObject { id, elf })
    }
}
