//! Stream -> layer: imports the layers of an archive, or checks them against those that the store
//! has.
//!
//! Layers load several at a time within one budget of memory; each is published by itself as far
//! as the store publishes early, under the transaction's pin, so that a load that broke off goes on
//! behind them.
//!
//! Invariant: each layer of an image has its DiffID, and its part of the archive was read to the
//! last byte and has its expected digest. A layer that the archive omits is in the store.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Builder};

use parking_lot::Mutex;

use super::archive::{Archive, Contents};
use super::budget::Budget;
use super::source::{
    Compressed, CopiedPart, HashedPart, LayerSource, decompress_error, read_error, refusal,
    too_much,
};
use super::watch::Step;
use super::{ImageError, LayerPart, LoadOptions};
use crate::digest::{DiffId, Sha256Digest, Sha256Hasher};
use crate::layer::{self, Compression, HashOnly, ImportStats, ImportedLayer, Limits, ObjectSink};
use crate::recipe;
use crate::store::{Descriptor, Stage, Transaction};

/// The layers of one archive together may reach this multiple of each limit of a single layer.
const ARCHIVE_FACTOR: u64 = 4;

/// Layers that load at a time, at most.
const AT_ONCE: usize = 4;

/// Bytes that the layers that load at a time may hold, without their trees.
const BUDGET: u64 = 36 << 20;

/// What one holds besides its decoder: pieces that were read ahead, contents that wait to be
/// written, the recorder of its recipe.
const LAYER_COST: u64 = 8 << 20;

/// A layer of an image: its part of the archive, and what the configuration says it is.
#[derive(Clone)]
pub(super) struct Wanted {
    /// From 1, lowest first.
    pub(super) number: usize,
    pub(super) part: LayerPart,
    pub(super) diff_id: DiffId,
}

/// The blobs of layers that were compressed, by the names of their parts and their DiffIDs.
#[derive(Default)]
pub(super) struct LoadedLayers(BTreeMap<(String, DiffId), Option<Descriptor>>);

impl LoadedLayers {
    /// The compressed layer as received. An uncompressed layer has no blob.
    pub(super) fn blob(&self, layer: &Wanted) -> Option<Descriptor> {
        let key = (layer.part.name.clone(), layer.diff_id);
        self.0.get(&key).cloned().flatten()
    }
}

/// Adds these layers to the transaction.
pub(super) fn load(
    archive: &Archive,
    transaction: &Transaction<'_>,
    layers: &[Wanted],
    options: &LoadOptions<'_>,
) -> Result<LoadedLayers, ImageError> {
    let loader = LayerLoader::new(archive, transaction, options);
    let jobs = loader.jobs(layers)?;
    if let Some(watch) = options.watch {
        let mut bytes = 0_u64;
        for layer in jobs.iter().flatten() {
            bytes = bytes.saturating_add(loader.member(&layer.part)?.size);
        }
        watch.step(Step::Layers { bytes });
    }
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(AT_ONCE).min(jobs.len());
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        // One of them is this one.
        for _ in 1..threads {
            let started = Builder::new().spawn_scoped(scope, || loader.work(&jobs, &next));
            if let Err(error) = started {
                loader.fail(ImageError::Thread(error));
            }
        }
        loader.work(&jobs, &next);
    });
    let Outcome { loaded, error, .. } = loader.outcome.into_inner();
    error.map_or(Ok(loaded), Err)
}

struct LayerLoader<'l> {
    archive: &'l Archive,
    transaction: &'l Transaction<'l>,
    options: &'l LoadOptions<'l>,
    budget: Budget,
    /// A layer failed: the others end at their next read.
    failed: AtomicBool,
    outcome: Mutex<Outcome>,
}

/// A layer that the store has, with its blob if it was compressed.
struct Present {
    blob: Option<Descriptor>,
}

struct Outcome {
    loaded: LoadedLayers,
    /// The rest of the archive's limits.
    left: Limits,
    /// The first failure.
    error: Option<ImageError>,
}

impl<'l> LayerLoader<'l> {
    fn new(
        archive: &'l Archive,
        transaction: &'l Transaction<'l>,
        options: &'l LoadOptions<'l>,
    ) -> Self {
        let one = Limits::default();
        Self {
            archive,
            transaction,
            options,
            budget: Budget::new(BUDGET),
            failed: AtomicBool::new(false),
            outcome: Mutex::new(Outcome {
                loaded: LoadedLayers::default(),
                left: Limits {
                    entries: one.entries.saturating_mul(ARCHIVE_FACTOR),
                    content_bytes: one.content_bytes.saturating_mul(ARCHIVE_FACTOR),
                    hole_bytes: one.hole_bytes,
                    stream_bytes: one.stream_bytes.saturating_mul(ARCHIVE_FACTOR),
                    ..one
                },
                error: None,
            }),
        }
    }

    /// What there is to load: the parts of one layer are one job, as each adds the same layer. A
    /// layer that the archive leaves out has none.
    fn jobs(&self, layers: &[Wanted]) -> Result<Vec<Vec<Wanted>>, ImageError> {
        let mut jobs: Vec<Vec<Wanted>> = Vec::new();
        let mut places: BTreeMap<DiffId, usize> = BTreeMap::new();
        let mut left_out = Vec::new();
        for layer in layers {
            if self.is_left_out(layer)? {
                left_out.push(layer);
                continue;
            }
            let new = jobs.len();
            let place = *places.entry(layer.diff_id).or_insert(new);
            match jobs.get_mut(place) {
                Some(job) if job.iter().any(|known| known.part.name == layer.part.name) => {}
                Some(job) => job.push(layer.clone()),
                None => jobs.push(vec![layer.clone()]),
            }
        }
        for layer in left_out {
            let diff_id = layer.diff_id;
            if !places.contains_key(&diff_id) && !self.transaction.has_layer(diff_id)? {
                return Err(ImageError::LeftOut {
                    number: layer.number,
                    diff_id,
                });
            }
        }
        Ok(jobs)
    }

    /// Takes jobs until there are no more, or one has failed.
    fn work(&self, jobs: &[Vec<Wanted>], next: &AtomicUsize) {
        while !self.has_failed()
            && let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed))
        {
            for layer in job {
                match self.load(layer) {
                    Ok(blob) => {
                        let key = (layer.part.name.clone(), layer.diff_id);
                        self.outcome.lock().loaded.0.insert(key, blob);
                    }
                    Err(error) => return self.fail(error),
                }
            }
        }
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    fn fail(&self, error: ImageError) {
        // First: what others report from now on is that they were ended.
        self.outcome.lock().error.get_or_insert(error);
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Adds a layer to the transaction; returns its blob if it was compressed.
    fn load(&self, layer: &Wanted) -> Result<Option<Descriptor>, ImageError> {
        let part = &layer.part;
        let stream = layer::decompress(self.member(part)?);
        let stream = stream.map_err(|source| decompress_error(part, source))?;
        let _held = self.budget.take(stream.memory().saturating_add(LAYER_COST));
        let compression = stream.compression();
        drop(stream);
        match self.present(layer)? {
            Some(Present { blob }) => Ok(blob),
            None => self.import(layer, compression),
        }
    }

    /// Whether the archive omits the layer: buildpacks' pack names such a layer `""`, or writes an
    /// empty part.
    fn is_left_out(&self, layer: &Wanted) -> Result<bool, ImageError> {
        let Wanted { part, diff_id, .. } = layer;
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
    fn present(&self, layer: &Wanted) -> Result<Option<Present>, ImageError> {
        let Wanted { part, diff_id, .. } = layer;
        let Some(size) = self.transaction.whole_layer(*diff_id)? else {
            return Ok(None);
        };
        let mut source = HashedPart {
            part: self.open(layer)?,
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
        let bytes = source.part.contents.size;
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
        Ok(Some(Present { blob }))
    }

    fn import(
        &self,
        layer: &Wanted,
        compression: Compression,
    ) -> Result<Option<Descriptor>, ImageError> {
        let staged = self
            .transaction
            .stage(|stage| self.import_into(stage, layer, compression));
        staged.map_err(ImageError::Thread)?
    }

    fn import_into(
        &self,
        stage: &Stage<'_>,
        layer: &Wanted,
        compression: Compression,
    ) -> Result<Option<Descriptor>, ImageError> {
        let only_trees = self.options.only_trees;
        let (mut imported, mut blob) = if only_trees {
            self.read(&HashOnly, layer, compression)?
        } else {
            self.read(stage, layer, compression)?
        };
        // Contents that are in no tree: their files alone tell their sizes.
        let has_others = recipe::own_object_ids(&imported.recipe).is_ok_and(|ids| ids.len() > 0);
        if only_trees && has_others {
            (imported, blob) = self.read(stage, layer, compression)?;
        }
        let ImportedLayer {
            diff_id,
            tree_bytes,
            recipe,
            stats,
        } = imported;
        self.count(&layer.part, &stats)?;
        if only_trees && !has_others {
            let transaction = self.transaction;
            transaction.put_layer(diff_id, tree_bytes, stats.stream_bytes, &recipe)?;
        } else {
            stage.put_layer(diff_id, tree_bytes, stats.stream_bytes, &recipe)?;
        }
        Ok(blob)
    }

    /// Reads a part as its layer, to the last byte, and checks its digests.
    fn read<S: ObjectSink>(
        &self,
        sink: &S,
        layer: &Wanted,
        compression: Compression,
    ) -> Result<(ImportedLayer, Option<Descriptor>), ImageError> {
        let Wanted { number, part, .. } = layer;
        let compressed = match (compression, self.options.only_trees) {
            (Compression::None, _) => None,
            (_, true) => Some(Compressed::Hashed(Sha256Hasher::new())),
            (_, false) => Some(Compressed::Copied(self.transaction.blob_writer()?)),
        };
        let mut source = CopiedPart {
            part: self.open(layer)?,
            compressed,
        };
        let stream =
            layer::decompress(&mut source).map_err(|source| decompress_error(part, source))?;
        let limits = self.limits();
        let imported = match layer::import(stream, sink, &limits) {
            Ok(imported) => imported,
            Err(source) => {
                // A wrong digest is the better reason than the fault it caused in the tar.
                self.check_part(part)?;
                return Err(refusal(*number, part, source, &limits));
            }
        };
        // To the last byte, which a decompressor need not have read.
        io::copy(&mut source, &mut io::sink()).map_err(|source| read_error(part, source))?;
        let (found, blob) = match source.compressed {
            None => (imported.diff_id.0, None),
            Some(Compressed::Hashed(hasher)) => (hasher.finish(), None),
            Some(Compressed::Copied(writer)) => {
                let (digest, size) = writer.finish()?;
                (digest, Some(descriptor(compression, digest, size)))
            }
        };
        if let Some(expected) = part.digest.filter(|expected| *expected != found) {
            return Err(ImageError::Digest {
                name: part.name.clone(),
                expected,
                found,
            });
        }
        if imported.diff_id != layer.diff_id {
            return Err(ImageError::DiffId {
                number: *number,
                expected: layer.diff_id,
                found: imported.diff_id,
            });
        }
        Ok((imported, blob))
    }

    /// The limits of the next layer: those of one layer, capped by the rest of the archive's.
    fn limits(&self) -> Limits {
        let one = Limits::default();
        let left = &self.outcome.lock().left;
        Limits {
            entries: one.entries.min(left.entries),
            content_bytes: one.content_bytes.min(left.content_bytes),
            hole_bytes: one.hole_bytes.min(left.hole_bytes),
            stream_bytes: one.stream_bytes.min(left.stream_bytes),
            ..one
        }
    }

    /// Takes a layer from the archive's limits, which others may have used meanwhile.
    fn count(&self, part: &LayerPart, stats: &ImportStats) -> Result<(), ImageError> {
        let left = &mut self.outcome.lock().left;
        for (left, used, what) in [
            (&mut left.entries, stats.entries, "entries"),
            (
                &mut left.content_bytes,
                stats.content_bytes,
                "bytes of contents",
            ),
            (
                &mut left.hole_bytes,
                stats.hole_bytes,
                "bytes of holes in sparse files",
            ),
            (&mut left.stream_bytes, stats.stream_bytes, "bytes"),
        ] {
            *left = left.checked_sub(used).ok_or_else(|| too_much(part, what))?;
        }
        Ok(())
    }

    /// Opens a part to be read as a layer, which is watched, and checks its size.
    fn open(&self, layer: &Wanted) -> Result<LayerSource<'_>, ImageError> {
        Ok(LayerSource {
            contents: self.sized_member(&layer.part)?,
            diff_id: layer.diff_id,
            read: 0,
            watch: self.options.watch,
            failed: &self.failed,
        })
    }

    fn check_part(&self, part: &LayerPart) -> Result<(), ImageError> {
        let Some(expected) = part.digest.filter(|_| !self.has_failed()) else {
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
        let archive = Archive::open(File::open(&path).unwrap(), &path, &store, None).unwrap();
        let transaction = store.begin().unwrap();
        let options = LoadOptions::default();
        let loader = LayerLoader::new(&archive, &transaction, &options);
        loader.outcome.lock().left.entries = 8;
        let layer = |number: usize| {
            let part = LayerPart {
                name: format!("layer-{number}"),
                digest: None,
                size: None,
            };
            let mut hasher = Sha256Hasher::new();
            io::copy(&mut loader.member(&part).unwrap(), &mut hasher).unwrap();
            Wanted {
                number: number + 1,
                part,
                diff_id: DiffId(hasher.finish()),
            }
        };
        loader.load(&layer(0)).unwrap();
        loader.load(&layer(1)).unwrap();
        let error = loader.load(&layer(2)).map(drop).unwrap_err();
        assert!(
            matches!(&error, ImageError::Unsupported { what, .. } if what.contains("entries")),
            "{error}"
        );
    }
}
