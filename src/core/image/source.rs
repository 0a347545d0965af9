//! A part of an archive as it is read as a layer: watched, copied, hashed; and what may be wrong
//! with it.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use super::archive::Contents;
use super::watch::{Step, Watch};
use super::{ImageError, LayerPart};
use crate::digest::{DiffId, Sha256Hasher};
use crate::layer::{DecompressError, ImportError, Limits};
use crate::store::BlobWriter;

/// A part that is read as a layer: tells how far that is, and ends when another layer failed.
pub(super) struct LayerSource<'a> {
    pub(super) contents: Contents<'a>,
    pub(super) diff_id: DiffId,
    pub(super) read: u64,
    pub(super) watch: Option<&'a dyn Watch>,
    /// Another layer failed.
    pub(super) failed: &'a AtomicBool,
}

impl Read for LayerSource<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(io::Error::other("another layer failed"));
        }
        let count = self.contents.read(buffer)?;
        self.read = self.read.saturating_add(count as u64);
        if let Some(watch) = self.watch {
            watch.step(Step::Layer {
                diff_id: self.diff_id,
                read: self.read,
                size: self.contents.size,
            });
        }
        Ok(count)
    }
}

/// What becomes of a compressed layer while it is read.
pub(super) enum Compressed<'a> {
    Copied(BlobWriter<'a>),
    Hashed(Sha256Hasher),
}

/// A reader of a part that copies or hashes a compressed layer.
pub(super) struct CopiedPart<'a> {
    pub(super) part: LayerSource<'a>,
    pub(super) compressed: Option<Compressed<'a>>,
}

impl Read for CopiedPart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.part.read(buffer)?;
        let piece = buffer.get(..read).unwrap_or_default();
        match &mut self.compressed {
            Some(Compressed::Copied(blob)) => blob.write_all(piece)?,
            Some(Compressed::Hashed(hasher)) => hasher.update(piece),
            None => {}
        }
        Ok(read)
    }
}

/// A reader of a part that hashes it.
pub(super) struct HashedPart<'a> {
    pub(super) part: LayerSource<'a>,
    pub(super) hasher: Sha256Hasher,
}

impl Read for HashedPart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.part.read(buffer)?;
        self.hasher.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

/// The error of a layer that was not imported; it distinguishes limits of the archive from those
/// of a layer.
pub(super) fn refusal(
    number: usize,
    part: &LayerPart,
    source: ImportError,
    limits: &Limits,
) -> ImageError {
    let whole = *limits == Limits::default();
    match source {
        ImportError::Limit { what, .. } if !whole => too_much(part, what),
        source => ImageError::Layer {
            number,
            name: part.name.clone(),
            source,
        },
    }
}

pub(super) fn too_much(part: &LayerPart, what: &str) -> ImageError {
    ImageError::Unsupported {
        name: part.name.clone(),
        what: format!("with it, the layers of the archive have more {what} than one may have"),
    }
}

pub(super) fn decompress_error(part: &LayerPart, source: DecompressError) -> ImageError {
    ImageError::Decompress {
        name: part.name.clone(),
        source,
    }
}

pub(super) fn read_error(part: &LayerPart, source: io::Error) -> ImageError {
    ImageError::Read {
        name: part.name.clone(),
        source,
    }
}
