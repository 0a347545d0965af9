//! The layers of an archive: imports them, or checks them against layers the store has.
//!
//! Invariant: each layer of an image has its DiffID, and its part of the archive was read to the
//! last byte and has its expected digest. A layer that the archive omits is in the store.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use super::archive::{Archive, Contents};
use super::{ImageError, LayerPart};
use crate::digest::{DiffId, Sha256Digest, Sha256Hasher};
use crate::layer::{self, Compression, ImportError, ImportStats, Limits};
use crate::store::{BlobWriter, Descriptor, Transaction};

/// The layers of one archive together may reach this multiple of each limit of a single layer.
const ARCHIVE_FACTOR: u64 = 4;

pub(super) struct LayerLoader<'l> {
    archive: &'l Archive,
    transaction: &'l Transaction<'l>,
    /// Layers that are in the transaction, by the names of their parts.
    loaded: BTreeMap<String, LoadedLayer>,
    /// The rest of the archive's limits.
    left: Limits,
}

#[derive(Clone)]
struct LoadedLayer {
    diff_id: DiffId,
    /// The compressed layer as received. An uncompressed layer has no blob.
    blob: Option<Descriptor>,
}

impl<'l> LayerLoader<'l> {
    pub(super) fn new(archive: &'l Archive, transaction: &'l Transaction<'l>) -> Self {
        let one = Limits::default();
        Self {
            archive,
            transaction,
            loaded: BTreeMap::new(),
            left: Limits {
                entries: one.entries.saturating_mul(ARCHIVE_FACTOR),
                content_bytes: one.content_bytes.saturating_mul(ARCHIVE_FACTOR),
                hole_bytes: one.hole_bytes,
                stream_bytes: one.stream_bytes.saturating_mul(ARCHIVE_FACTOR),
                ..one
            },
        }
    }

    /// Adds the `number`th layer of an image to the transaction; returns its blob if it was
    /// compressed.
    pub(super) fn load(
        &mut self,
        number: usize,
        part: &LayerPart,
        diff_id: DiffId,
    ) -> Result<Option<Descriptor>, ImageError> {
        if self.is_left_out(part, diff_id)? {
            return if self.transaction.has_layer(diff_id)? {
                Ok(None)
            } else {
                Err(ImageError::LeftOut { number, diff_id })
            };
        }
        let known = self.loaded.get(&part.name).cloned();
        let layer = if let Some(layer) = known {
            layer
        } else {
            let layer = match self.present(part, diff_id)? {
                Some(layer) => layer,
                None => self.import(number, part)?,
            };
            self.loaded.insert(part.name.clone(), layer.clone());
            layer
        };
        if layer.diff_id == diff_id {
            Ok(layer.blob)
        } else {
            Err(ImageError::DiffId {
                number,
                expected: diff_id,
                found: layer.diff_id,
            })
        }
    }

    /// Whether the archive omits the layer: buildpacks' pack names such a layer `""`, or writes an
    /// empty part.
    fn is_left_out(&self, part: &LayerPart, diff_id: DiffId) -> Result<bool, ImageError> {
        if part.digest.is_some() {
            return Ok(false);
        }
        let empty = match self.archive.open_member(&part.name)? {
            Some(contents) => contents.size == 0,
            None => part.name.is_empty(),
        };
        Ok(empty && diff_id.0 != Sha256Digest::of(b""))
    }

    /// Checks a part whose layer and blob are in the store: hashes it and writes nothing. None if
    /// it must be imported; a faulty part is imported too, since import names the fault.
    fn present(
        &self,
        part: &LayerPart,
        diff_id: DiffId,
    ) -> Result<Option<LoadedLayer>, ImageError> {
        let Some(size) = self.transaction.whole_layer(diff_id)? else {
            return Ok(None);
        };
        let mut source = HashedPart {
            contents: self.sized_member(part)?,
            hasher: Sha256Hasher::new(),
        };
        let Ok(stream) = layer::decompress(&mut source) else {
            return Ok(None);
        };
        let compression = stream.compression();
        let mut hasher = Sha256Hasher::new();
        // one byte more tells a longer stream
        let limit = size.saturating_add(1);
        let Ok(read) = io::copy(&mut stream.take(limit), &mut hasher) else {
            return Ok(None);
        };
        if read != size || hasher.finish() != diff_id.0 {
            return Ok(None);
        }
        // to the last byte, which a decompressor need not have read
        io::copy(&mut source, &mut io::sink()).map_err(|source| read_error(part, source))?;
        let bytes = source.contents.size;
        let digest = source.hasher.finish();
        if part.digest.is_some_and(|expected| expected != digest) {
            return Ok(None);
        }
        let blob = if compression == Compression::None {
            None
        } else if self.transaction.has_blob(digest, bytes)? {
            Some(descriptor(compression, digest, bytes))
        } else {
            return Ok(None);
        };
        Ok(Some(LoadedLayer { diff_id, blob }))
    }

    fn import(&mut self, number: usize, part: &LayerPart) -> Result<LoadedLayer, ImageError> {
        let mut source = self.open(part)?;
        let stream = layer::decompress(&mut source).map_err(|source| ImageError::Decompress {
            name: part.name.clone(),
            source,
        })?;
        let compression = stream.compression();
        let limits = self.limits();
        let imported = match layer::import(stream, self.transaction, &limits) {
            Ok(imported) => imported,
            Err(source) => {
                // A wrong digest is the better reason than the fault it caused in the tar.
                self.check_part(part)?;
                return Err(refusal(number, part, source, &limits));
            }
        };
        // To the last byte, which a decompressor need not have read.
        io::copy(&mut source, &mut io::sink()).map_err(|source| read_error(part, source))?;
        let blob = source.blob.map(BlobWriter::finish).transpose()?;
        let blob = blob.map(|(digest, size)| descriptor(compression, digest, size));
        let found = blob.as_ref().map_or(imported.diff_id.0, |blob| blob.digest);
        if let Some(expected) = part.digest.filter(|expected| *expected != found) {
            return Err(ImageError::Digest {
                name: part.name.clone(),
                expected,
                found,
            });
        }
        self.count(&imported.stats);
        self.transaction.put_layer(
            imported.diff_id,
            imported.tree_bytes,
            imported.stats.stream_bytes,
            Some(&imported.recipe),
        )?;
        Ok(LoadedLayer {
            diff_id: imported.diff_id,
            blob,
        })
    }

    /// The limits of the next layer: those of one layer, capped by the rest of the archive's.
    fn limits(&self) -> Limits {
        let one = Limits::default();
        Limits {
            entries: one.entries.min(self.left.entries),
            content_bytes: one.content_bytes.min(self.left.content_bytes),
            hole_bytes: one.hole_bytes.min(self.left.hole_bytes),
            stream_bytes: one.stream_bytes.min(self.left.stream_bytes),
            ..one
        }
    }

    fn count(&mut self, stats: &ImportStats) {
        let left = &mut self.left;
        left.entries = left.entries.saturating_sub(stats.entries);
        left.content_bytes = left.content_bytes.saturating_sub(stats.content_bytes);
        left.hole_bytes = left.hole_bytes.saturating_sub(stats.hole_bytes);
        left.stream_bytes = left.stream_bytes.saturating_sub(stats.stream_bytes);
    }

    fn open(&self, part: &LayerPart) -> Result<CopiedPart<'_>, ImageError> {
        let contents = self.sized_member(part)?;
        // Detect the compression on a reader of its own: the copy must start with the first byte.
        let compression = layer::decompress(self.member(part)?)
            .map_err(|source| ImageError::Decompress {
                name: part.name.clone(),
                source,
            })?
            .compression();
        let blob = (compression != Compression::None)
            .then(|| self.transaction.blob_writer())
            .transpose()?;
        Ok(CopiedPart { contents, blob })
    }

    fn check_part(&self, part: &LayerPart) -> Result<(), ImageError> {
        let Some(expected) = part.digest else {
            return Ok(());
        };
        let mut hasher = Sha256Hasher::new();
        io::copy(&mut self.member(part)?, &mut hasher)
            .map_err(|source| read_error(part, source))?;
        let found = hasher.finish();
        if found == expected {
            Ok(())
        } else {
            Err(ImageError::Digest {
                name: part.name.clone(),
                expected,
                found,
            })
        }
    }

    /// Opens a part and checks its size against the descriptor.
    fn sized_member(&self, part: &LayerPart) -> Result<Contents<'_>, ImageError> {
        let contents = self.member(part)?;
        match part.size.filter(|expected| *expected != contents.size) {
            None => Ok(contents),
            Some(expected) => Err(ImageError::Size {
                name: part.name.clone(),
                expected,
                found: contents.size,
            }),
        }
    }

    fn member(&self, part: &LayerPart) -> Result<Contents<'_>, ImageError> {
        let missing = || ImageError::Missing {
            name: part.name.clone(),
            needed_by: "its manifest".to_owned(),
        };
        self.archive.open_member(&part.name)?.ok_or_else(missing)
    }
}

/// The error of a layer that was not imported; it tells the archive's limits from the layer's.
fn refusal(number: usize, part: &LayerPart, source: ImportError, limits: &Limits) -> ImageError {
    let whole = *limits == Limits::default();
    match source {
        ImportError::Limit { what, .. } if !whole => ImageError::Unsupported {
            name: part.name.clone(),
            what: format!("with it, the layers of the archive have more {what} than one may have"),
        },
        source => ImageError::Layer {
            number,
            name: part.name.clone(),
            source,
        },
    }
}

fn descriptor(compression: Compression, digest: Sha256Digest, size: u64) -> Descriptor {
    let media_type = match compression {
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        _ => "application/vnd.oci.image.layer.v1.tar",
    };
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
    }
}

fn read_error(part: &LayerPart, source: io::Error) -> ImageError {
    ImageError::Read {
        name: part.name.clone(),
        source,
    }
}

/// A reader of a part that copies a compressed layer to a blob.
struct CopiedPart<'a> {
    contents: Contents<'a>,
    blob: Option<BlobWriter<'a>>,
}

impl Read for CopiedPart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.contents.read(buffer)?;
        if let Some(blob) = &mut self.blob {
            blob.write_all(buffer.get(..read).unwrap_or_default())?;
        }
        Ok(read)
    }
}

/// A reader of a part that hashes it.
struct HashedPart<'a> {
    contents: Contents<'a>,
    hasher: Sha256Hasher,
}

impl Read for HashedPart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.contents.read(buffer)?;
        self.hasher.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::store::Store;

    #[test]
    fn load_limits_all_layers_of_an_archive_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive.tar");
        let script = "
import io, sys, tarfile
def tar(*members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as archive:
        for name, data in members:
            info = tarfile.TarInfo(name); info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()
layers = [(f'layer-{n}', tar(*[(f'{n}-{m}', b'x') for m in range(3)])) for n in range(3)]
open(sys.argv[1], 'wb').write(tar(*layers))";
        let made = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .status();
        assert!(made.unwrap().success());
        let store = Store::open_or_create(&dir.path().join("store")).unwrap();
        let archive = Archive::open(File::open(&path).unwrap(), &path, &store).unwrap();
        let transaction = store.begin().unwrap();
        let mut loader = LayerLoader::new(&archive, &transaction);
        loader.left.entries = 8;
        let part = |number: usize| LayerPart {
            name: format!("layer-{number}"),
            digest: None,
            size: None,
        };
        loader.import(1, &part(0)).unwrap();
        loader.import(2, &part(1)).unwrap();
        let error = loader.import(3, &part(2)).map(drop).unwrap_err();
        assert!(
            matches!(&error, ImageError::Unsupported { what, .. } if what.contains("entries")),
            "{error}"
        );
    }
}
