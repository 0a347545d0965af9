//! A set of distinct chunks in bounded memory.
//!
//! It holds each chunk whose fingerprint is below a threshold. While all fit, the threshold is
//! above every fingerprint and the sums are exact. When the set is full, the threshold is halved
//! and chunks above it are dropped; sums are then scaled up, with the error of such a sample.

use twox_hash::XxHash3_128;

/// The fingerprint of a chunk: XXH3 with 128 bits, which costs a tenth of a digest. The probability
/// that two of 2^16 chunks in a set collide is 2^-97. A crafted file could collide, but would
/// falsify only figures of its own image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Fingerprint(u128);

impl Fingerprint {
    pub(crate) fn of(chunk: &[u8]) -> Self {
        Self(XxHash3_128::oneshot(chunk))
    }

    /// Whether a chunk is in a sample, whose fraction is in units of 2^-32. A [`ChunkSet`] keeps
    /// the smallest fingerprints too, so it holds as many chunks of the sample as possible.
    pub(crate) fn is_sampled(self, sample: u64) -> bool {
        self.0 >> 96 < u128::from(sample)
    }
}

/// 32 bytes; lengths below 4 GiB.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    key: Fingerprint,
    length: u32,
    /// 0: not compressed.
    zstd: u32,
}

#[derive(Debug)]
pub(crate) struct ChunkSet {
    /// Hash table with open addressing; a slot with length 0 is free.
    slots: Vec<Slot>,
    held: usize,
    limit: usize,
    /// Fingerprints whose first `shift` bits are 0 are kept.
    shift: u32,
}

/// A set's estimate over all chunks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) chunks: u64,
    pub(crate) bytes: u64,
    pub(crate) zstd_bytes: u64,
    /// Two standard errors of `chunks` and `bytes`, relative to them; 0 if exact.
    pub(crate) error: f64,
    /// The same for `zstd_bytes`.
    pub(crate) zstd_error: f64,
}

impl ChunkSet {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            slots: vec![Slot::default(); 1024],
            held: 0,
            limit: limit.max(16),
            shift: 0,
        }
    }

    /// Adds a chunk; true if it is new and kept.
    pub(crate) fn insert(&mut self, key: Fingerprint, length: u64) -> bool {
        if !self.keeps(key) {
            return false;
        }
        if (self.held + 1) * 4 > self.slots.len() * 3 {
            self.resize(self.slots.len() * 2);
        }
        let Err(free) = self.find(key) else {
            return false;
        };
        if let Some(slot) = self.slots.get_mut(free) {
            *slot = Slot {
                key,
                length: u32::try_from(length).unwrap_or(u32::MAX),
                zstd: 0,
            };
            self.held += 1;
        }
        while self.held > self.limit {
            self.shift += 1;
            self.resize(self.slots.len());
        }
        self.keeps(key)
    }

    /// Records the compressed length of a chunk, if it is still kept.
    pub(crate) fn note_compressed(&mut self, key: Fingerprint, zstd: u64) {
        if let Ok(slot) = self.find(key)
            && let Some(slot) = self.slots.get_mut(slot)
        {
            slot.zstd = u32::try_from(zstd).unwrap_or(u32::MAX);
        }
    }

    fn keeps(&self, key: Fingerprint) -> bool {
        key.0.leading_zeros() >= self.shift
    }

    /// The slot of a chunk, or its free slot. Uses the bits below those of the threshold as hash.
    fn find(&self, key: Fingerprint) -> Result<usize, usize> {
        let mask = self.slots.len() - 1;
        let mut at = usize::try_from(key.0 & (mask as u128)).unwrap_or(0);
        loop {
            match self.slots.get(at) {
                Some(slot) if slot.length == 0 => return Err(at),
                Some(slot) if slot.key == key => return Ok(at),
                Some(_) => at = (at + 1) & mask,
                None => return Err(0),
            }
        }
    }

    /// Moves the chunks below the threshold into a table of this many slots.
    fn resize(&mut self, slots: usize) {
        let before = std::mem::replace(&mut self.slots, vec![Slot::default(); slots]);
        self.held = 0;
        for slot in before.into_iter().filter(|slot| slot.length > 0) {
            if self.keeps(slot.key)
                && let Err(free) = self.find(slot.key)
                && let Some(place) = self.slots.get_mut(free)
            {
                *place = slot;
                self.held += 1;
            }
        }
    }

    /// Estimates the sums over all chunks, of which the fraction `share` with the smallest
    /// fingerprints was compressed.
    pub(crate) fn estimate(&self, share: f64) -> Estimate {
        let (mut bytes, mut squares) = (0_u64, 0.0_f64);
        let mut sample = Sample::default();
        for slot in self.slots.iter().filter(|slot| slot.length > 0) {
            bytes += u64::from(slot.length);
            squares += f64::from(slot.length).powi(2);
            if slot.zstd > 0 {
                sample.add(slot.length.into(), slot.zstd.into());
            }
        }
        let zstd = sample.compressed_of(bytes);
        // Each chunk is in the set with probability 2^-shift, independently of the others: Horvitz
        // and Thompson's variance of the sum of lengths. For compressed lengths, the fraction of
        // held chunks that were compressed adds to it.
        let held = 0.5_f64.powi(i32::try_from(self.shift).unwrap_or(i32::MAX));
        let compressed = (share / held).min(1.0);
        let missing = (1.0 - held) * sample.zstd_squares / compressed;
        Estimate {
            chunks: (self.held as u64) << self.shift,
            bytes: bytes << self.shift,
            zstd_bytes: zstd << self.shift,
            error: two_errors((1.0 - held) * squares, bytes),
            zstd_error: two_errors(missing + sample.variance(bytes, compressed), zstd),
        }
    }
}

/// Two standard errors relative to the sum.
#[expect(
    clippy::cast_precision_loss,
    reason = "an error of an estimate, of which two digits matter"
)]
fn two_errors(variance: f64, sum: u64) -> f64 {
    2.0 * variance.max(0.0).sqrt() / sum.max(1) as f64
}

/// A sample of compressed chunks: a ratio estimate of all (Cochran, Sampling Techniques, chapter
/// 6).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    plain: u64,
    zstd: u64,
    /// Uncompressed bytes of chunks that are always compressed.
    certain_plain: u64,
    certain_zstd: u64,
    plain_squares: f64,
    zstd_squares: f64,
    products: f64,
}

#[expect(clippy::cast_precision_loss, reason = "as above")]
impl Sample {
    pub(crate) fn add(&mut self, plain: u64, zstd: u64) {
        self.plain += plain;
        self.zstd += zstd;
        let (plain, zstd) = (plain as f64, zstd as f64);
        self.plain_squares += plain * plain;
        self.zstd_squares += zstd * zstd;
        self.products += plain * zstd;
    }

    pub(crate) fn add_certain(&mut self, plain: u64, zstd: u64) {
        self.certain_plain += plain;
        self.certain_zstd += zstd;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.certain_plain += other.certain_plain;
        self.certain_zstd += other.certain_zstd;
        self.plain += other.plain;
        self.zstd += other.zstd;
        self.plain_squares += other.plain_squares;
        self.zstd_squares += other.zstd_squares;
        self.products += other.products;
    }

    /// The estimated compressed size of `bytes`; exact if all were compressed.
    pub(crate) fn compressed_of(&self, bytes: u64) -> u64 {
        let rest = u128::from(bytes - self.certain_plain);
        let scaled = rest * u128::from(self.zstd) / u128::from(self.plain.max(1));
        self.certain_zstd + u64::try_from(scaled).unwrap_or(u64::MAX)
    }

    /// Two standard errors of [`Sample::compressed_of`], relative to it, if each chunk was
    /// compressed with probability `share`; 0 if exact.
    pub(crate) fn error(&self, bytes: u64, share: f64) -> f64 {
        two_errors(self.variance(bytes, share), self.compressed_of(bytes))
    }

    fn variance(&self, bytes: u64, share: f64) -> f64 {
        if self.plain + self.certain_plain == bytes {
            return 0.0;
        }
        if self.plain == 0 {
            // Without a sample it may be anything from nothing to all.
            return (bytes as f64).powi(2);
        }
        let ratio = self.zstd as f64 / self.plain.max(1) as f64;
        let residuals =
            self.zstd_squares - 2.0 * ratio * self.products + ratio * ratio * self.plain_squares;
        (1.0 - share) / (share * share) * residuals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(number: u64) -> Fingerprint {
        Fingerprint::of(&number.to_le_bytes())
    }

    #[test]
    fn a_set_that_is_not_full_is_exact() {
        let mut set = ChunkSet::new(10_000);
        for number in 0..10_000 {
            assert!(set.insert(print(number), 1 + number % 7));
            assert!(!set.insert(print(number), 1 + number % 7));
            set.note_compressed(print(number), 1);
        }
        let bytes = (0..10_000).map(|number| 1 + number % 7).sum();
        let expected = Estimate {
            chunks: 10_000,
            bytes,
            zstd_bytes: 10_000,
            error: 0.0,
            zstd_error: 0.0,
        };
        assert_eq!(set.estimate(1.0), expected);
    }

    /// 400,000 chunks in a set of 4,096: the estimate is within its error, which is small. The
    /// fingerprints are fixed, so the result is deterministic.
    #[test]
    fn a_full_set_estimates_within_its_stated_error() {
        let mut set = ChunkSet::new(4096);
        let length = |number: u64| 1024 + (number * 7919) % 15_360;
        for number in 0..400_000 {
            set.insert(print(number), length(number));
        }
        let bytes: u64 = (0..400_000).map(length).sum();
        let estimate = set.estimate(1.0);
        assert!(set.slots.len() <= 8192, "{} slots", set.slots.len());
        assert!(
            estimate.error > 0.0 && estimate.error < 0.06,
            "{estimate:?}"
        );
        let off = estimate.bytes.abs_diff(bytes) * 1_000_000 / bytes;
        let off = f64::from(u32::try_from(off).unwrap()) / 1e6;
        assert!(
            off <= estimate.error,
            "{off} off: {estimate:?}, {bytes} bytes"
        );
    }

    /// A quarter of 40,000 chunks is compressed, each to between a tenth and all of its size: the
    /// estimate is within its error, in a set that holds all and in one that holds an eighth.
    #[test]
    fn compressed_bytes_are_estimated_within_their_stated_error() {
        let length = |number: u64| 1024 + (number * 7919) % 15_360;
        let zstd = |number: u64| length(number) * (1 + number * 31 % 10) / 10;
        let all: u64 = (0..40_000).map(zstd).sum();
        for limit in [40_000, 8192] {
            let mut set = ChunkSet::new(limit);
            for number in 0..40_000 {
                let is_new = set.insert(print(number), length(number));
                if is_new && print(number).is_sampled(1 << 30) {
                    set.note_compressed(print(number), zstd(number));
                }
            }
            let estimate = set.estimate(0.25);
            let off = estimate.zstd_bytes.abs_diff(all) * 1_000_000 / all;
            let off = f64::from(u32::try_from(off).unwrap()) / 1e6;
            let error = estimate.zstd_error;
            assert!(error > 0.0 && error < 0.08, "{estimate:?}");
            assert!(off <= error, "{off} off: {estimate:?}, {all} bytes");
        }
    }
}
