//! Random changes to inputs that a parser accepts: bits, bytes, numbers at their limits, pieces
//! moved, copied and cut.

/// A source of changed inputs. The same seed gives the same ones.
#[derive(Debug)]
pub struct Mutator(u64);

const NUMBERS: [u64; 9] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX,
];
/// Longer inputs are only slower.
const LONGEST: usize = 1 << 18;

impl Mutator {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// xorshift64*.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        if limit == 0 {
            return 0;
        }
        usize::try_from((self.next() >> 16) % limit as u64).expect("a 64-bit machine")
    }

    /// One of the seeds, changed in a few places.
    pub fn change(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(6) {
            self.change_once(&mut input, seeds);
        }
        input.truncate(LONGEST);
        input
    }

    fn change_once(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.below(input.len());
        match self.below(9) {
            0 if !input.is_empty() => input[at] ^= 1 << self.below(8),
            1 if !input.is_empty() => input[at] = (self.next() >> 24) as u8,
            2 => self.number(input, at),
            3 => input.truncate(at),
            4 => {
                let end = at + self.below(64.min(input.len() - at));
                input.drain(at..end);
            }
            5 => {
                let (from, to) = (self.below(input.len()), self.below(input.len()));
                let piece = input[from.min(to)..from.max(to)].to_vec();
                input.splice(at..at, piece);
            }
            6 => {
                let other = &seeds[self.below(seeds.len())];
                let (from, to) = (self.below(other.len()), self.below(other.len()));
                input.truncate(at);
                input.extend_from_slice(&other[from.min(to)..]);
            }
            7 => {
                let digit = b"0123456789-/. \0\n="[self.below(17)];
                if let Some(byte) = input.get_mut(at) {
                    *byte = digit;
                }
            }
            _ => {
                let count = self.below(32);
                let byte = (self.next() >> 24) as u8;
                input.splice(at..at, std::iter::repeat_n(byte, count));
            }
        }
    }

    /// A number at a limit, of some width and byte order.
    fn number(&mut self, input: &mut [u8], at: usize) {
        let number = NUMBERS[self.below(NUMBERS.len())].wrapping_sub(self.next() >> 62);
        let width = [1, 2, 4, 8][self.below(4)];
        let bytes = if self.below(2) == 0 {
            number.to_le_bytes()[..width].to_vec()
        } else {
            number.to_be_bytes()[8 - width..].to_vec()
        };
        for (slot, byte) in input.iter_mut().skip(at).zip(bytes) {
            *slot = byte;
        }
    }
}
