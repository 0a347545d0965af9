//! FastCDC (2020) for several average sizes in one pass over a content.
//!
//! The crate needs a pass for each average, and restarts the hash after the minimum size of each
//! chunk. But after 48 bytes a byte has been shifted out of all bits that the masks test. So 48
//! bytes after the restart the hash equals that of the whole content, and is the same for every
//! average. It is computed once, at four places of a block in parallel, since each step depends on
//! the one before; the few hashes that match the common bits of all masks are kept, and each
//! average tests only those.
//!
//! Invariant: the cut points are those of the crate, whose table and masks are used; the tests
//! compare both.

use anyhow::Result;
use fastcdc::v2020::{Normalization, get_gear_with_seed, select_masks};

/// Bytes on which a hash depends. No mask has a bit at or above this.
const WINDOW: usize = 48;
/// Bytes hashed at a time, which bounds the kept hashes: in a crafted content all are kept.
const BLOCK: usize = 1 << 16;
/// Places of a block that are hashed in parallel.
const STREAMS: usize = 4;

/// The gear table and the parameters of each average.
#[derive(Debug)]
pub(crate) struct Chunker<const N: usize> {
    gear: [u64; 256],
    averages: [Average; N],
    /// The bits common to all masks.
    common: u64,
}

/// The parameters of one average size.
#[derive(Debug, Clone, Copy)]
struct Average {
    least: usize,
    usual: usize,
    most: usize,
    /// The mask up to the average size.
    strict: u64,
    /// The mask after it.
    loose: u64,
}

/// A hash that matches [`Chunker::common`], with the offset of its last byte in the content.
#[derive(Debug, Clone, Copy)]
struct Kept {
    at: usize,
    hash: u64,
}

/// The current chunk of one average; offsets are into the content.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    average: Average,
    begin: usize,
    /// From here on the content's hash equals the chunk's own.
    from: usize,
    /// Up to here the strict mask applies.
    middle: usize,
    /// Up to here the loose mask applies.
    end: usize,
    /// The maximum end.
    last: usize,
}

impl<const N: usize> Chunker<N> {
    /// For these average sizes, powers of two of at least 1 KiB. Chunks have at least a quarter and
    /// at most four times the average.
    pub(crate) fn new(averages: [usize; N]) -> Self {
        let mut gear = [0; 256];
        for (slot, value) in gear.iter_mut().zip(get_gear_with_seed(0).0.iter()) {
            *slot = *value;
        }
        let averages = averages.map(|usual| {
            let (strict, loose) = select_masks(usual, Normalization::Level1);
            Average {
                least: usual / 4,
                usual,
                most: usual * 4,
                strict,
                loose,
            }
        });
        let masks = averages
            .iter()
            .map(|average| average.strict & average.loose);
        let common = masks.fold(u64::MAX, |all, mask| all & mask);
        Self {
            gear,
            averages,
            common,
        }
    }

    /// Passes each chunk with the index of its average to `each`; those of one average are in
    /// order.
    pub(crate) fn cut<'c>(
        &self,
        content: &'c [u8],
        mut give: impl FnMut(usize, &'c [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut give = |number, begin: usize, end: usize| {
            give(number, content.get(begin..end).unwrap_or_default())
        };
        let mut chunks = [None; N];
        for ((number, average), chunk) in self.averages.iter().enumerate().zip(&mut chunks) {
            *chunk =
                self.next_chunk(*average, content, 0, |begin, end| give(number, begin, end))?;
        }
        let mut kept = Vec::new();
        for start in (0..content.len()).step_by(BLOCK) {
            if chunks.iter().all(Option::is_none) {
                break;
            }
            let until = (start + BLOCK).min(content.len());
            self.hash_block(content, start, until, &mut kept);
            for (number, slot) in chunks.iter_mut().enumerate() {
                let mut rest = kept.as_slice();
                while let Some(chunk) = slot {
                    let met = rest.iter().position(|kept| chunk.is_met(kept));
                    rest = met.and_then(|met| rest.get(met..)).unwrap_or_default();
                    let end = match rest.first() {
                        Some(kept) if kept.at < chunk.end => kept.at,
                        _ if chunk.end <= until => chunk.last,
                        _ => break,
                    };
                    give(number, chunk.begin, end)?;
                    let average = chunk.average;
                    *slot = self
                        .next_chunk(average, content, end, |begin, end| give(number, begin, end))?;
                }
            }
        }
        Ok(())
    }

    fn rolled(&self, hash: u64, byte: u8) -> u64 {
        let value = self.gear.get(usize::from(byte)).copied().unwrap_or(0);
        (hash << 1).wrapping_add(value)
    }

    /// Keeps the matching hashes of a block, ordered by offset.
    fn hash_block(&self, content: &[u8], start: usize, until: usize, kept: &mut Vec<Kept>) {
        let part = (until - start) / STREAMS;
        let starts: [usize; STREAMS] = std::array::from_fn(|number| start + number * part);
        // Hash the bytes before, on which the first hash depends.
        let mut hashes = starts.map(|start| {
            let before = content.get(start.saturating_sub(WINDOW)..start);
            let before = before.unwrap_or_default().iter();
            before.fold(0, |hash, byte| self.rolled(hash, *byte))
        });
        let [one, two, three, four] =
            starts.map(|start| content.get(start..start + part).unwrap_or_default());
        let mut found: [Vec<Kept>; STREAMS] = Default::default();
        let bytes = one.iter().zip(two).zip(three).zip(four);
        for (place, (((one, two), three), four)) in bytes.enumerate() {
            for (hash, byte) in hashes.iter_mut().zip([one, two, three, four]) {
                *hash = self.rolled(*hash, *byte);
            }
            for ((hash, start), found) in hashes.iter().zip(starts).zip(&mut found) {
                if hash & self.common == 0 {
                    let (at, hash) = (start + place, *hash);
                    found.push(Kept { at, hash });
                }
            }
        }
        kept.clear();
        kept.extend(found.into_iter().flatten());
        // The remaining bytes, if the block is not a multiple of four.
        let [.., mut hash] = hashes;
        for at in start + STREAMS * part..until {
            hash = self.rolled(hash, content.get(at).copied().unwrap_or(0));
            if hash & self.common == 0 {
                kept.push(Kept { at, hash });
            }
        }
    }

    /// Finds the next chunk longer than its first window. Passes on those before it: short ones at
    /// the end, and those cut within the window, where the hash depends on the chunk's start.
    fn next_chunk(
        &self,
        average: Average,
        content: &[u8],
        mut begin: usize,
        mut give: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<Option<Chunk>> {
        while begin < content.len() {
            let chunk = Chunk::new(average, begin, content.len());
            let window = (begin + average.least).min(chunk.end);
            let bytes = content.get(window..chunk.from).unwrap_or_default();
            let mut hash = 0;
            let met = bytes.iter().zip(window..).find_map(|(byte, at)| {
                hash = self.rolled(hash, *byte);
                (hash & chunk.mask(at) == 0).then_some(at)
            });
            begin = match met {
                Some(at) => at,
                None if chunk.from == chunk.end => chunk.last,
                None => return Ok(Some(chunk)),
            };
            give(chunk.begin, begin)?;
        }
        Ok(None)
    }
}

impl Chunk {
    /// The crate hashes bytes in pairs, so an odd last byte of each part is not tested.
    fn new(average: Average, begin: usize, length: usize) -> Self {
        let left = length - begin;
        let last = left.min(average.most);
        let (middle, end) = if left <= average.least {
            (0, 0)
        } else {
            (average.usual.min(last) & !1, last & !1)
        };
        Self {
            average,
            begin,
            from: begin + (average.least + WINDOW).min(end),
            middle: begin + middle,
            end: begin + end,
            last: begin + last,
        }
    }

    /// The mask that applies at an offset.
    fn mask(&self, at: usize) -> u64 {
        if at < self.middle {
            self.average.strict
        } else {
            self.average.loose
        }
    }

    /// Whether a hash cuts it, or lies after it.
    fn is_met(&self, kept: &Kept) -> bool {
        let is_cut = kept.at >= self.from && kept.hash & self.mask(kept.at) == 0;
        is_cut || kept.at >= self.end
    }
}

#[cfg(test)]
mod tests {
    use fastcdc::v2020::FastCDC;

    use super::*;

    /// Reproducible pseudo-random bytes (Marsaglia's xorshift).
    fn random() -> impl Iterator<Item = u8> {
        let numbers = std::iter::successors(Some(7_u64), |number| {
            let mut next = *number;
            next ^= next << 13;
            next ^= next >> 7;
            next ^= next << 17;
            Some(next)
        });
        numbers.map(|number| number.to_le_bytes()[3])
    }

    /// Compares the lengths of all chunks with those of the crate's own passes; returns their
    /// number.
    fn compare<const N: usize>(averages: [usize; N], content: &[u8]) -> usize {
        let mut found: [Vec<&[u8]>; N] = std::array::from_fn(|_| Vec::new());
        let give = |number: usize, chunk| {
            found[number].push(chunk);
            Ok(())
        };
        Chunker::new(averages).cut(content, give).unwrap();
        for (average, found) in averages.iter().zip(&found) {
            let chunks = FastCDC::new(content, average / 4, *average, average * 4);
            let expected: Vec<&[u8]> = chunks
                .map(|chunk| &content[chunk.offset..chunk.offset + chunk.length])
                .collect();
            let lengths = |chunks: &[&[u8]]| chunks.iter().map(|p| p.len()).collect::<Vec<_>>();
            assert_eq!(lengths(found), lengths(&expected), "average {average}");
            assert!(*found == expected, "average {average}");
        }
        found.iter().map(Vec::len).sum()
    }

    /// With few distinct bytes, hashes match masks more often than by chance, or never.
    #[test]
    fn one_pass_cuts_as_one_pass_per_average() {
        for kinds in [255, 16, 2, 1] {
            let content: Vec<u8> = random().map(|byte| byte % kinds).take(3_000_001).collect();
            let count = compare([1 << 12, 1 << 14, 1 << 16], &content);
            assert!(count > 3_000_000 / (1 << 14), "{count} chunks");
            // Short chunks are more often cut in their first window.
            compare([1 << 10, 1 << 11], &content);
            compare([1 << 16], &content);
        }
        let numbers: Vec<String> = (0..200_000).map(|number| number.to_string()).collect();
        compare([1 << 12, 1 << 14, 1 << 16], numbers.concat().as_bytes());
    }

    /// Contents that end around each offset where the rules change.
    #[test]
    fn short_contents_are_cut_as_by_the_crate() {
        let bytes: Vec<u8> = random().take(20_000).collect();
        let around = |place: usize| place.saturating_sub(60)..place + 60;
        for length in [0, 256, 512, 1024, 2048, 4096, 16384]
            .into_iter()
            .flat_map(around)
        {
            compare([1 << 10, 1 << 12], &bytes[..length]);
            // Zeros are cut only at the maximum.
            compare([1 << 10, 1 << 12], &vec![0; length]);
        }
    }
}
