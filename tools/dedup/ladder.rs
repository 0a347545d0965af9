//! The ladder: what each granularity of deduplication would store for the listed images.
//!
//! Several threads cut every content in each way; a [`ChunkSet`] per way counts distinct chunks by
//! their fingerprints. A set's memory is bounded: when it is full, it keeps a sample of half of the
//! chunks, selected by fingerprint, and its sums become estimates with a stated error. Unreadable
//! contents are excluded and reported.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow};
use cowl_core::digest::ObjectId;
use cowl_core::store::{Store, StoreError};
use cowl_core::sys::mmap::map_published;
use rustix::io::Errno;
use serde::Serialize;

use crate::chunk_set::{ChunkSet, Fingerprint, Sample};
use crate::chunking::Chunker;
use crate::compress::Compressor;
use crate::model::{Collection, Layer, ObjectNumber};
use crate::progress::Progress;

/// Bytes of index for each reference to a chunk: a digest of 32 and an offset of 8, as in casync.
const INDEX_ENTRY: u64 = 40;
/// Contents of this size and above are always compressed: whether a sample has one would change it
/// too much.
const ALWAYS_COMPRESSED: u64 = 16 << 20;
const KIB: usize = 1024;

/// Chunks of fixed size.
const FIXED: [(&str, usize); 3] = [
    ("fixed-4KiB", 4 * KIB),
    ("fixed-64KiB", 64 * KIB),
    ("fixed-1MiB", 1024 * KIB),
];
/// Chunks by FastCDC (2020) with normalization level 1, by average size; they have at least a
/// quarter and at most four times the average.
const BY_CONTENT: [(&str, usize); 3] = [
    ("fastcdc-4KiB", 4 * KIB),
    ("fastcdc-16KiB", 16 * KIB),
    ("fastcdc-64KiB", 64 * KIB),
];

/// One step of the ladder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Rung {
    pub(crate) unit: &'static str,
    /// Distinct chunks.
    pub(crate) chunks: u64,
    /// Their lengths.
    pub(crate) bytes: u64,
    /// Their index: 40 bytes for each chunk of each distinct layer or content.
    pub(crate) index_bytes: u64,
    /// Each chunk compressed alone by zstd -3, or uncompressed if that is shorter. None: not
    /// requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) zstd_bytes: Option<u64>,
    /// Two standard errors of `chunks` and `bytes`, relative to them; 0 if exact.
    #[serde(skip)]
    pub(crate) error: f64,
    /// The same for `zstd_bytes`.
    #[serde(skip)]
    pub(crate) zstd_error: f64,
}

/// Why a content could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// The object is missing.
    Missing,
    /// The object is shorter or longer than the indexes say.
    Length,
    /// The object's digest is not its name.
    Content,
    /// A system call failed.
    Read(Errno),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is missing"),
            Self::Length => f.write_str("is damaged: its length is wrong"),
            Self::Content => f.write_str("is damaged: its digest is not its name"),
            Self::Read(errno) => write!(f, "cannot be read: {}", io::Error::from(*errno)),
        }
    }
}

/// Checks an object's bytes against its name and its size in the indexes.
pub(crate) fn verify(id: ObjectId, size: u64, bytes: &[u8]) -> Result<(), Damage> {
    if bytes.len() as u64 != size {
        Err(Damage::Length)
    } else if ObjectId::of(bytes) != id {
        Err(Damage::Content)
    } else {
        Ok(())
    }
}

impl From<StoreError> for Damage {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NoObject(_) => Self::Missing,
            other => Self::Read(other.errno().unwrap_or(Errno::IO)),
        }
    }
}

impl From<io::Error> for Damage {
    fn from(error: io::Error) -> Self {
        Self::Read(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

/// The rungs, computed over all readable contents.
#[derive(Debug)]
pub(crate) struct Ladder {
    pub(crate) rungs: Vec<Rung>,
    /// The unreadable contents, in the order of their numbers.
    pub(crate) unreadable: Vec<(ObjectNumber, Damage)>,
}

/// Bounds for the ladder's memory and work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Chunks that each set keeps.
    pub(crate) chunks: usize,
    /// Bytes to compress for each rung but the layers'; beyond that a sample is compressed. None:
    /// nothing is compressed.
    pub(crate) zstd_bytes: Option<u64>,
}

impl Default for Limits {
    /// Six sets of 4 MiB. Compression takes longer than cutting and hashing, so beyond the size of
    /// a few images only a sample is compressed.
    fn default() -> Self {
        Self {
            chunks: 1 << 16,
            zstd_bytes: Some(256 << 20),
        }
    }
}

/// Cuts every content of the listed images.
pub(crate) fn climb(
    collection: &Collection,
    stores: &[Store],
    limits: Limits,
    progress: &Progress,
) -> Result<Ladder> {
    let objects = listed_objects(collection);
    let layers = listed_layers(collection);
    let total: u64 = objects
        .iter()
        .map(|object| collection.objects.size(*object))
        .sum();
    let logical: u64 = layers
        .iter()
        .filter_map(|layer| collection.layer(*layer))
        .map(|layer| layer.logical)
        .sum();
    progress.begin(
        "cutting",
        limits.zstd_bytes.map_or(total, |_| total + logical),
    );
    let work = Work {
        collection,
        stores,
        objects: &objects,
        layers: &layers,
        next: AtomicUsize::new(0),
        cutter: Chunker::new(BY_CONTENT.map(|(_, average)| average)),
        fixed: FIXED.map(|_| Cutting::new(limits.chunks)),
        by_content: BY_CONTENT.map(|_| Cutting::new(limits.chunks)),
        sample: limits.zstd_bytes.map(|limit| sample_of(limit, total)),
        progress,
    };
    let share = work.share();
    let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let sums = thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(|| work.run())).collect();
        let ended = handles.into_iter().map(|handle| {
            handle
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a thread of the ladder failed")))
        });
        ended.collect::<Result<Vec<Sums>>>()
    })?;
    progress.end();
    let mut all = Sums::default();
    for sums in sums {
        all.add(sums);
    }
    all.unreadable.sort_unstable_by_key(|(object, _)| *object);
    let lost = Lost::of(collection, &layers, &all.unreadable);
    let (total, logical) = (total - lost.bytes, logical - lost.logical);
    let compresses = limits.zstd_bytes.is_some();
    let whole = |unit, chunks, bytes, zstd_bytes, zstd_error| Rung {
        unit,
        chunks,
        bytes,
        index_bytes: chunks * INDEX_ENTRY,
        zstd_bytes: compresses.then_some(zstd_bytes),
        error: 0.0,
        zstd_error: if compresses { zstd_error } else { 0.0 },
    };
    let (count, files) = ((objects.len() - all.unreadable.len()) as u64, all.files);
    let (zstd, error) = (files.compressed_of(total), files.error(total, share));
    let mut rungs = vec![
        whole("layer", layers.len() as u64, logical, all.layers, 0.0),
        whole("file", count, total, zstd, error),
    ];
    let fixed = FIXED.iter().zip(work.fixed);
    for ((unit, _), cutting) in fixed.chain(BY_CONTENT.iter().zip(work.by_content)) {
        let set = cutting.set.into_inner();
        let estimate = set.unwrap_or_else(PoisonError::into_inner).estimate(share);
        rungs.push(Rung {
            unit,
            chunks: estimate.chunks,
            bytes: estimate.bytes,
            index_bytes: cutting.chunks.into_inner() * INDEX_ENTRY,
            zstd_bytes: compresses.then_some(estimate.zstd_bytes),
            error: estimate.error,
            zstd_error: if compresses { estimate.zstd_error } else { 0.0 },
        });
    }
    Ok(Ladder {
        rungs,
        unreadable: all.unreadable,
    })
}

/// What the unreadable contents would have added.
struct Lost {
    /// Bytes, each content once.
    bytes: u64,
    /// Bytes in every file of the layers.
    logical: u64,
}

impl Lost {
    fn of(
        collection: &Collection,
        layers: &[usize],
        unreadable: &[(ObjectNumber, Damage)],
    ) -> Self {
        let sizes = unreadable
            .iter()
            .map(|(object, _)| collection.objects.size(*object));
        let bytes = sizes.sum();
        let mut logical = 0;
        if !unreadable.is_empty() {
            let is_lost = |object: &ObjectNumber| {
                let found = unreadable.binary_search_by_key(object, |(object, _)| *object);
                found.is_ok()
            };
            logical = collection
                .stack(layers)
                .flat_map(Layer::files)
                .filter(is_lost)
                .map(|object| collection.objects.size(object))
                .sum();
        }
        Self { bytes, logical }
    }
}

/// The distinct contents of the listed images.
fn listed_objects(collection: &Collection) -> Vec<ObjectNumber> {
    let layers = listed_layers(collection);
    let mut wanted = vec![false; collection.objects.len()];
    for object in collection.stack(&layers).flat_map(Layer::objects) {
        if let Some(wanted) = wanted.get_mut(object as usize) {
            *wanted = true;
        }
    }
    (0..)
        .zip(wanted)
        .filter_map(|(object, wanted)| wanted.then_some(object))
        .collect()
}

/// The distinct layers of the listed images.
fn listed_layers(collection: &Collection) -> Vec<usize> {
    let layers: BTreeSet<usize> = collection
        .chosen()
        .flat_map(|image| &image.layers)
        .copied()
        .collect();
    let mut layers: Vec<usize> = layers.into_iter().collect();
    // Each layer is compressed by one thread: the largest are started first, so that none is left
    // at the end.
    let logical = |number: &usize| collection.layer(*number).map(|layer| layer.logical);
    layers.sort_by_key(|number| std::cmp::Reverse(logical(number)));
    layers
}

/// The fraction of digests, in units of 2^-32, that a limit of bytes allows.
fn sample_of(limit: u64, total: u64) -> u64 {
    let share = u128::from(limit) << 32;
    u64::try_from(share / u128::from(total.max(1)))
        .unwrap_or(u64::MAX)
        .min(1 << 32)
}

/// Whether a content is in a sample, by its digest; digests are equally distributed.
fn is_sampled(id: ObjectId, sample: u64) -> bool {
    let first = id.as_bytes().first_chunk().copied().unwrap_or_default();
    u64::from(u32::from_be_bytes(first)) < sample
}

/// The chunks of all contents for one way of cutting.
struct Cutting {
    /// Number of chunks, counting duplicates.
    chunks: AtomicU64,
    set: Mutex<ChunkSet>,
}

impl Cutting {
    fn new(limit: usize) -> Self {
        Self {
            chunks: AtomicU64::new(0),
            set: Mutex::new(ChunkSet::new(limit)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ChunkSet> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state shared by the threads.
struct Work<'w> {
    collection: &'w Collection,
    stores: &'w [Store],
    objects: &'w [ObjectNumber],
    layers: &'w [usize],
    /// Index of the next layer, then of the next content.
    next: AtomicUsize,
    cutter: Chunker<{ BY_CONTENT.len() }>,
    fixed: [Cutting; FIXED.len()],
    by_content: [Cutting; BY_CONTENT.len()],
    /// Contents and chunks with digests below this are compressed. None: nothing is.
    sample: Option<u64>,
    progress: &'w Progress,
}

/// The sums of one thread.
#[derive(Debug, Default)]
struct Sums {
    /// Compressed bytes of whole layers.
    layers: u64,
    /// The sample of compressed contents.
    files: Sample,
    unreadable: Vec<(ObjectNumber, Damage)>,
}

impl Sums {
    fn add(&mut self, other: Self) {
        self.layers += other.layers;
        self.files.merge(&other.files);
        self.unreadable.extend(other.unreadable);
    }
}

impl Work<'_> {
    /// The probability that a chunk is compressed.
    fn share(&self) -> f64 {
        // Below 2^33, so exact as a double.
        let sample = self.sample.unwrap_or(0);
        f64::from(u32::try_from(sample >> 1).unwrap_or(u32::MAX)) / f64::from(1_u32 << 31)
    }

    fn run(&self) -> Result<Sums> {
        let mut sums = Sums::default();
        let mut zstd = Compressor::new()?;
        loop {
            let turn = self.next.fetch_add(1, Ordering::Relaxed);
            if let Some(layer) = self.layers.get(turn) {
                if self.sample.is_some() {
                    sums.layers += self.layer(*layer, &zstd)?;
                }
            } else if let Some(object) = self.objects.get(turn - self.layers.len()) {
                self.content(*object, &mut sums, &mut zstd)?;
            } else {
                return Ok(sums);
            }
        }
    }

    fn read(&self, object: ObjectNumber, id: ObjectId) -> Result<Bytes, Damage> {
        let objects = &self.collection.objects;
        let store = self.stores.get(objects.store(object));
        let file = store.ok_or(Damage::Missing)?.open_object(id)?;
        let size = objects.size(object);
        let bytes = Bytes::of(&file, size)?;
        verify(id, size, &bytes)?;
        Ok(bytes)
    }

    fn content(&self, object: ObjectNumber, sums: &mut Sums, zstd: &mut Compressor) -> Result<()> {
        let Some(id) = self.collection.objects.id(object) else {
            return Ok(());
        };
        let bytes = match self.read(object, id) {
            Ok(bytes) => bytes,
            Err(damage) => {
                sums.unreadable.push((object, damage));
                return Ok(());
            }
        };
        let length = bytes.len() as u64;
        let mut content = Content {
            bytes: &bytes,
            zstd,
            whole: None,
        };
        if let Some(sample) = self.sample {
            if length >= ALWAYS_COMPRESSED {
                sums.files.add_certain(length, content.compressed(&bytes)?);
            } else if is_sampled(id, sample) {
                sums.files.add(length, content.compressed(&bytes)?);
            }
        }
        self.cut_fixed(&mut content)?;
        self.cut_by_content(&mut content)?;
        self.progress.advance(length);
        Ok(())
    }

    fn cut_fixed(&self, content: &mut Content<'_>) -> Result<()> {
        for ((_, size), cutting) in FIXED.iter().zip(&self.fixed) {
            for chunk in content.bytes.chunks(*size) {
                self.chunk(chunk, cutting, content)?;
            }
        }
        Ok(())
    }

    fn cut_by_content(&self, content: &mut Content<'_>) -> Result<()> {
        self.cutter.cut(content.bytes, |number, chunk| {
            let cutting = self.by_content.get(number).context("a way of cutting")?;
            self.chunk(chunk, cutting, content)
        })
    }

    fn chunk(&self, chunk: &[u8], cutting: &Cutting, content: &mut Content<'_>) -> Result<()> {
        let print = Fingerprint::of(chunk);
        cutting.chunks.fetch_add(1, Ordering::Relaxed);
        let is_new = cutting.lock().insert(print, chunk.len() as u64);
        if is_new && self.sample.is_some_and(|sample| print.is_sampled(sample)) {
            let zstd = content.compressed(chunk)?;
            cutting.lock().note_compressed(print, zstd);
        }
        Ok(())
    }

    /// Compresses a layer's files one after the other, as one stream.
    fn layer(&self, number: usize, zstd: &Compressor) -> Result<u64> {
        let layer = self.collection.layer(number).context("a layer")?;
        let mut stream = zstd.stream()?;
        for object in layer.files() {
            let Some(id) = self.collection.objects.id(object) else {
                continue;
            };
            // An unreadable object is reported where it is read as a content.
            let Ok(bytes) = self.read(object, id) else {
                continue;
            };
            io::Write::write_all(&mut stream, &bytes).context("compressing a layer")?;
            self.progress.advance(bytes.len() as u64);
        }
        let compressed = stream.finish().context("compressing a layer")?.0;
        Ok(compressed.min(layer.logical))
    }
}

/// The bytes of a content: mapped, or read if that is cheaper. Unmapping interrupts the other
/// threads.
enum Bytes {
    Read(Vec<u8>),
    Mapped(Box<dyn Deref<Target = [u8]>>),
}

impl Bytes {
    /// Longer contents are mapped, so that they need no memory.
    const READ: u64 = 1 << 20;

    /// A whole file that should have this size; reads at most one byte more.
    fn of(file: &File, size: u64) -> io::Result<Self> {
        if size > Self::READ {
            return Ok(Self::Mapped(Box::new(map_published(file)?)));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
        file.take(size + 1).read_to_end(&mut bytes)?;
        Ok(Self::Read(bytes))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Mapped(bytes) => bytes,
        }
    }
}

/// A content being cut.
struct Content<'c> {
    bytes: &'c [u8],
    zstd: &'c mut Compressor,
    /// The compressed length of the whole, once known: small contents are one chunk in every way of
    /// cutting.
    whole: Option<u64>,
}

impl Content<'_> {
    /// The compressed length of a chunk.
    fn compressed(&mut self, chunk: &[u8]) -> Result<u64> {
        if chunk.len() < self.bytes.len() {
            return self.zstd.length(chunk);
        }
        match self.whole {
            Some(known) => Ok(known),
            None => Ok(*self.whole.insert(self.zstd.length(chunk)?)),
        }
    }
}
