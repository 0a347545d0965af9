//! The keys that detach a client and leave the program running: `--detach-keys`.

use super::error::{Error, Result};

/// `ctrl-p ctrl-q`.
const DEFAULT: [u8; 2] = [16, 17];

/// Finds a sequence of keys in a stream of input.
#[derive(Debug, Clone)]
pub(crate) struct DetachKeys {
    sequence: Vec<u8>,
    /// How many bytes of the sequence have been matched so far.
    matched: usize,
}

impl Default for DetachKeys {
    fn default() -> Self {
        Self::new(DEFAULT.to_vec())
    }
}

impl DetachKeys {
    fn new(sequence: Vec<u8>) -> Self {
        Self {
            sequence,
            matched: 0,
        }
    }

    /// No keys detach.
    pub(crate) fn none() -> Self {
        Self::new(Vec::new())
    }

    /// Reads `ctrl-a,x`: characters, or `ctrl-` and a letter or one of `@ [ \ ] ^ _`, as moby's
    /// term package. An empty text means the default keys.
    pub(crate) fn parse(keys: &str) -> Result<Self> {
        if keys.is_empty() {
            return Ok(Self::default());
        }
        let wrong = || Error::invalid(format!("Invalid escape keys ({keys}) provided"));
        let sequence = keys
            .split(',')
            .map(|key| match (key.as_bytes(), key.strip_prefix("ctrl-")) {
                ([byte], _) => Ok(*byte),
                (_, Some(key)) => match key.as_bytes() {
                    [byte @ b'a'..=b'z'] => Ok(byte - b'a' + 1),
                    [b'@'] => Ok(0),
                    [byte @ b'['..=b'_'] => Ok(byte - b'@'),
                    _ => Err(wrong()),
                },
                _ => Err(wrong()),
            })
            .collect::<Result<_>>()?;
        Ok(Self::new(sequence))
    }

    /// The bytes for the program, and whether the sequence is complete. A partial match is held
    /// back until it is complete or fails.
    pub(crate) fn filter(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(bytes.len() + self.matched);
        for &byte in bytes {
            if self.sequence.get(self.matched) != Some(&byte) {
                let held = self.sequence.get(..self.matched);
                passed.extend_from_slice(held.unwrap_or_default());
                self.matched = 0;
            }
            if self.sequence.get(self.matched) != Some(&byte) {
                passed.push(byte);
                continue;
            }
            self.matched += 1;
            if self.matched == self.sequence.len() {
                return (passed, true);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_takes_dockers_spellings() {
        for (keys, expected) in [
            ("ctrl-p,ctrl-q", Some(vec![16, 17])),
            ("", Some(vec![16, 17])),
            ("a", Some(vec![97])),
            ("ctrl-@,ctrl-[,ctrl-_", Some(vec![0, 27, 31])),
            ("ctrl-1", None),
            ("ab", None),
            ("ctrl-p,", None),
        ] {
            let parsed = DetachKeys::parse(keys).ok();
            assert_eq!(parsed.map(|keys| keys.sequence), expected, "{keys}");
        }
    }

    #[test]
    fn filter_finds_the_keys_over_two_reads() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.filter(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(keys.filter(b"b"), (b"\x10b".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.filter(b"\x11rest"), (Vec::new(), true));
        let mut none = DetachKeys::none();
        assert_eq!(none.filter(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
