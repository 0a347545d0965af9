//! FastCDC (2020) for several averages in one pass over a content.
//!
//! The crate has a pass for each average, and each begins its hash anew behind the bytes that a
//! piece has at least. But a byte that is 48 steps back has left the bits that the masks look at.
//! So 48 bytes further the hash is that of the whole content, the same for every average. It is
//! rolled once, in four places of a block at a time, since each step waits for the one before; the
//! few hashes that meet what all masks have in common are kept, and each average looks at those.
//!
//! Invariant: the cuts are those of the crate, whose table and masks these are; the tests compare
//! the two.

use anyhow::Result;
use fastcdc::v2020::{Normalization, get_gear_with_seed, select_masks};

/// Bytes after which a hash has forgotten what came before. No mask has a bit at or above it.
const WINDOW: usize = 48;
/// Bytes whose kept hashes are in memory at a time: of a content that was made for it, all.
const BLOCK: usize = 1 << 16;
/// Places of a block where the hash is rolled at a time.
const STREAMS: usize = 4;

/// The table of the hash, and how each average cuts.
#[derive(Debug)]
pub(crate) struct Cutter<const N: usize> {
    gear: [u64; 256],
    averages: [Average; N],
    /// The bits that all masks have.
    common: u64,
}

/// How pieces of one average are cut.
#[derive(Debug, Clone, Copy)]
struct Average {
    least: usize,
    usual: usize,
    most: usize,
    /// Up to the average.
    strict: u64,
    /// Behind it.
    loose: u64,
}

/// A hash that meets [`Cutter::common`], with the place of its last byte in the content.
#[derive(Debug, Clone, Copy)]
struct Kept {
    at: usize,
    hash: u64,
}

/// The piece of one average that is looked for; places are those of the content.
#[derive(Debug, Clone, Copy)]
struct Piece {
    average: Average,
    begin: usize,
    /// From here on the content's hash is the piece's own.
    from: usize,
    /// Up to here the strict mask counts.
    middle: usize,
    /// Up to here the loose one.
    end: usize,
    /// It ends here if nothing cuts it.
    last: usize,
}

impl<const N: usize> Cutter<N> {
    /// For pieces of these averages, powers of two of at least 1 KiB; they have at least a quarter
    /// and at most four times of it.
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

    /// Gives each piece with the number of its average; those of one average in their order.
    pub(crate) fn cut<'c>(
        &self,
        content: &'c [u8],
        mut give: impl FnMut(usize, &'c [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut give = |number, begin: usize, end: usize| {
            give(number, content.get(begin..end).unwrap_or_default())
        };
        let mut pieces = [None; N];
        for ((number, average), piece) in self.averages.iter().enumerate().zip(&mut pieces) {
            *piece =
                self.next_piece(*average, content, 0, |begin, end| give(number, begin, end))?;
        }
        let mut kept = Vec::new();
        for start in (0..content.len()).step_by(BLOCK) {
            if pieces.iter().all(Option::is_none) {
                break;
            }
            let until = (start + BLOCK).min(content.len());
            self.hash_block(content, start, until, &mut kept);
            for (number, slot) in pieces.iter_mut().enumerate() {
                let mut rest = kept.as_slice();
                while let Some(piece) = slot {
                    let met = rest.iter().position(|kept| piece.is_met(kept));
                    rest = met.and_then(|met| rest.get(met..)).unwrap_or_default();
                    let end = match rest.first() {
                        Some(kept) if kept.at < piece.end => kept.at,
                        _ if piece.end <= until => piece.last,
                        _ => break,
                    };
                    give(number, piece.begin, end)?;
                    let average = piece.average;
                    *slot = self
                        .next_piece(average, content, end, |begin, end| give(number, begin, end))?;
                }
            }
        }
        Ok(())
    }

    fn rolled(&self, hash: u64, byte: u8) -> u64 {
        let value = self.gear.get(usize::from(byte)).copied().unwrap_or(0);
        (hash << 1).wrapping_add(value)
    }

    /// Keeps the hashes of a block, in the order of their places.
    fn hash_block(&self, content: &[u8], start: usize, until: usize, kept: &mut Vec<Kept>) {
        let part = (until - start) / STREAMS;
        let starts: [usize; STREAMS] = std::array::from_fn(|number| start + number * part);
        // What is rolled in before shows the first hash all that it looks at.
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
        // Up to three bytes are left of a block that is no multiple of four.
        let [.., mut hash] = hashes;
        for at in start + STREAMS * part..until {
            hash = self.rolled(hash, content.get(at).copied().unwrap_or(0));
            if hash & self.common == 0 {
                kept.push(Kept { at, hash });
            }
        }
    }

    /// The next piece that reaches beyond its first window. Those before it are given: short ones
    /// at the end, and what a hash cuts that has not forgotten where it began.
    fn next_piece(
        &self,
        average: Average,
        content: &[u8],
        mut begin: usize,
        mut give: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<Option<Piece>> {
        while begin < content.len() {
            let piece = Piece::new(average, begin, content.len());
            let window = (begin + average.least).min(piece.end);
            let bytes = content.get(window..piece.from).unwrap_or_default();
            let mut hash = 0;
            let met = bytes.iter().zip(window..).find_map(|(byte, at)| {
                hash = self.rolled(hash, *byte);
                (hash & piece.mask(at) == 0).then_some(at)
            });
            begin = match met {
                Some(at) => at,
                None if piece.from == piece.end => piece.last,
                None => return Ok(Some(piece)),
            };
            give(piece.begin, begin)?;
        }
        Ok(None)
    }
}

impl Piece {
    /// The crate rolls bytes in by pairs, so an odd last one of each part is not looked at.
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

    /// The mask that counts at a place.
    fn mask(&self, at: usize) -> u64 {
        if at < self.middle {
            self.average.strict
        } else {
            self.average.loose
        }
    }

    /// Whether a hash cuts it, or is behind it.
    fn is_met(&self, kept: &Kept) -> bool {
        let is_cut = kept.at >= self.from && kept.hash & self.mask(kept.at) == 0;
        is_cut || kept.at >= self.end
    }
}

#[cfg(test)]
mod tests {
    use fastcdc::v2020::FastCDC;

    use super::*;

    /// Bytes that look random and are the same everywhere (Marsaglia's xorshift).
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

    /// The lengths of all pieces are those of the crate's own passes; returns how many there are.
    fn compare<const N: usize>(averages: [usize; N], content: &[u8]) -> usize {
        let mut found: [Vec<&[u8]>; N] = std::array::from_fn(|_| Vec::new());
        let give = |number: usize, piece| {
            found[number].push(piece);
            Ok(())
        };
        Cutter::new(averages).cut(content, give).unwrap();
        for (average, found) in averages.iter().zip(&found) {
            let pieces = FastCDC::new(content, average / 4, *average, average * 4);
            let expected: Vec<&[u8]> = pieces
                .map(|piece| &content[piece.offset..piece.offset + piece.length])
                .collect();
            let lengths = |pieces: &[&[u8]]| pieces.iter().map(|p| p.len()).collect::<Vec<_>>();
            assert_eq!(lengths(found), lengths(&expected), "average {average}");
            assert!(*found == expected, "average {average}");
        }
        found.iter().map(Vec::len).sum()
    }

    /// Of few different bytes, hashes meet masks more often than by chance, or never.
    #[test]
    fn one_pass_cuts_as_a_pass_for_each_average() {
        for kinds in [255, 16, 2, 1] {
            let content: Vec<u8> = random().map(|byte| byte % kinds).take(3_000_001).collect();
            let count = compare([1 << 12, 1 << 14, 1 << 16], &content);
            assert!(count > 3_000_000 / (1 << 14), "{count} pieces");
            // Short pieces are cut in their first window more often.
            compare([1 << 10, 1 << 11], &content);
            compare([1 << 16], &content);
        }
        let numbers: Vec<String> = (0..200_000).map(|number| number.to_string()).collect();
        compare([1 << 12, 1 << 14, 1 << 16], numbers.concat().as_bytes());
    }

    /// Contents that end around each place where the rules change.
    #[test]
    fn short_contents_are_cut_as_by_the_crate() {
        let bytes: Vec<u8> = random().take(20_000).collect();
        let around = |place: usize| place.saturating_sub(60)..place + 60;
        for length in [0, 256, 512, 1024, 2048, 4096, 16384]
            .into_iter()
            .flat_map(around)
        {
            compare([1 << 10, 1 << 12], &bytes[..length]);
            // Nothing cuts zeros, but the most.
            compare([1 << 10, 1 << 12], &vec![0; length]);
        }
    }
}
