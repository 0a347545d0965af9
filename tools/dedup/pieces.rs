//! A set of distinct pieces in bounded memory.
//!
//! It holds each piece whose digest is below a threshold. While all fit, the threshold is above
//! every digest and the sums are exact. When the set is full, the threshold is halved and what is
//! above it goes; sums are then scaled up, with the error of such a sample.

use cowl_core::digest::ObjectId;

/// 32 bytes: 16 of the digest, so that two of 2^16 pieces in one set are taken for one with a
/// probability of 2^-97; lengths below 4 GiB.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    key: u128,
    length: u32,
    /// 0: not compressed.
    zstd: u32,
}

#[derive(Debug)]
pub(crate) struct Set {
    /// Open addressing; a length of 0 is free.
    slots: Vec<Slot>,
    held: usize,
    limit: usize,
    /// Digests whose first `shift` bits are 0 are kept.
    shift: u32,
}

/// What a set says of all pieces.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) pieces: u64,
    pub(crate) bytes: u64,
    pub(crate) zstd_bytes: u64,
    /// Two standard errors as a share; 0: exact.
    pub(crate) error: f64,
}

impl Set {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            slots: vec![Slot::default(); 1024],
            held: 0,
            limit: limit.max(16),
            shift: 0,
        }
    }

    /// Adds a piece; true if it is new and kept.
    pub(crate) fn insert(&mut self, id: &ObjectId, length: u64) -> bool {
        let key = key(id);
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

    /// Notes the compressed length of a piece, if it is still kept.
    pub(crate) fn note_compressed(&mut self, id: &ObjectId, zstd: u64) {
        if let Ok(slot) = self.find(key(id))
            && let Some(slot) = self.slots.get_mut(slot)
        {
            slot.zstd = u32::try_from(zstd).unwrap_or(u32::MAX);
        }
    }

    fn keeps(&self, key: u128) -> bool {
        key.leading_zeros() >= self.shift
    }

    /// The slot of a piece, or the free one for it. The bits below those of the threshold spread.
    fn find(&self, key: u128) -> Result<usize, usize> {
        let mask = self.slots.len() - 1;
        let mut at = usize::try_from(key & (mask as u128)).unwrap_or(0);
        loop {
            match self.slots.get(at) {
                Some(slot) if slot.length == 0 => return Err(at),
                Some(slot) if slot.key == key => return Ok(at),
                Some(_) => at = (at + 1) & mask,
                None => return Err(0),
            }
        }
    }

    /// Moves what is below the threshold into this many slots.
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

    /// The sums over all pieces. Where only a sample was compressed, its ratio is taken for all.
    #[expect(
        clippy::cast_precision_loss,
        reason = "an error of an estimate, of which two digits matter"
    )]
    pub(crate) fn estimate(&self) -> Estimate {
        let held = self.slots.iter().filter(|slot| slot.length > 0);
        let (mut bytes, mut squares) = (0_u64, 0.0_f64);
        let (mut plain, mut zstd) = (0_u64, 0_u64);
        for slot in held {
            bytes += u64::from(slot.length);
            squares += f64::from(slot.length).powi(2);
            if slot.zstd > 0 {
                plain += u64::from(slot.length);
                zstd += u64::from(slot.zstd);
            }
        }
        let zstd = if plain == bytes {
            zstd
        } else {
            let scaled = u128::from(bytes) * u128::from(zstd) / u128::from(plain.max(1));
            u64::try_from(scaled).unwrap_or(u64::MAX)
        };
        // Each piece is in the sample with probability 2^-shift, independently of the others:
        // Horvitz and Thompson's variance of the sum of lengths.
        let share = 0.5_f64.powi(i32::try_from(self.shift).unwrap_or(i32::MAX));
        let error = if self.shift == 0 {
            0.0
        } else {
            2.0 * ((1.0 - share) * squares).sqrt() / bytes.max(1) as f64
        };
        Estimate {
            pieces: (self.held as u64) << self.shift,
            bytes: bytes << self.shift,
            zstd_bytes: zstd << self.shift,
            error,
        }
    }
}

fn key(id: &ObjectId) -> u128 {
    let first = id.as_bytes().first_chunk().copied().unwrap_or_default();
    u128::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> ObjectId {
        ObjectId::of(&number.to_le_bytes())
    }

    #[test]
    fn a_set_that_is_not_full_is_exact() {
        let mut set = Set::new(10_000);
        for number in 0..10_000 {
            assert!(set.insert(&id(number), 1 + number % 7));
            assert!(!set.insert(&id(number), 1 + number % 7));
            set.note_compressed(&id(number), 1);
        }
        let bytes = (0..10_000).map(|number| 1 + number % 7).sum();
        let expected = Estimate {
            pieces: 10_000,
            bytes,
            zstd_bytes: 10_000,
            error: 0.0,
        };
        assert_eq!(set.estimate(), expected);
    }

    /// 400,000 pieces in the space of 4,096: the estimate is within its error, which is small. The
    /// digests are what they are, so this comes out the same everywhere.
    #[test]
    fn a_full_set_estimates_within_its_stated_error() {
        let mut set = Set::new(4096);
        let length = |number: u64| 1024 + (number * 7919) % 15_360;
        for number in 0..400_000 {
            set.insert(&id(number), length(number));
        }
        let bytes: u64 = (0..400_000).map(length).sum();
        let estimate = set.estimate();
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
}
