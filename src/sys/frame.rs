//! The frame of messages that two versions of cowl may exchange.
//!
//! ```text
//!   0               8               12              16
//!   +---------------+---------------+---------------+---------
//!   | magic         | version       | features      | records
//!   +---------------+---------------+---------------+---------
//!   record, at any alignment:
//!   0       2       4               8
//!   +-------+-------+---------------+------------------------+
//!   | type  |version| payload bytes | payload                |
//!   +-------+-------+---------------+------------------------+
//! ```
//!
//! Integers are little-endian. A record whose type has the high bit set is optional: a receiver
//! skips it if it does not know it. Any other unknown type, or an unknown feature bit, is an error.
//! What a payload is, and which records there are, is each protocol's own.

/// Marks optional records in their type.
pub const OPTIONAL: u16 = 0x8000;

const HEADER: usize = 16;
const RECORD: usize = 8;

/// What begins each message of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Its name.
    pub magic: [u8; 8],
    /// Its version.
    pub version: u32,
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'m> {
    /// Its type.
    pub kind: u16,
    /// The version of its payload.
    pub version: u16,
    /// Its payload.
    pub body: &'m [u8],
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// They don't start as a message of this protocol.
    Foreign,
    /// A header of another version.
    Version(u32),
    /// A feature bit that is not known here.
    Features(u32),
    /// The message ends within a record.
    Damaged,
}

impl Protocol {
    /// A message with one record; none if the payload is longer than a record can be.
    pub fn encode(&self, kind: u16, version: u16, body: &[u8]) -> Option<Vec<u8>> {
        let length = u32::try_from(body.len()).ok()?;
        let mut message = Vec::with_capacity(HEADER + RECORD + body.len());
        message.extend_from_slice(&self.magic);
        message.extend_from_slice(&self.version.to_le_bytes());
        message.extend_from_slice(&0_u32.to_le_bytes());
        message.extend_from_slice(&kind.to_le_bytes());
        message.extend_from_slice(&version.to_le_bytes());
        message.extend_from_slice(&length.to_le_bytes());
        message.extend_from_slice(body);
        Some(message)
    }

    /// The records of a message, in their order.
    pub fn records<'m>(&self, message: &'m [u8]) -> Result<Records<'m>, FrameError> {
        let (header, rest) = message
            .split_first_chunk::<HEADER>()
            .ok_or(FrameError::Foreign)?;
        let (magic, numbers) = header.split_at(self.magic.len());
        if magic != self.magic {
            return Err(FrameError::Foreign);
        }
        let (version, features) = numbers.split_at(4);
        let version = number(version);
        if version != self.version {
            return Err(FrameError::Version(version));
        }
        match number(features) {
            0 => Ok(Records { rest }),
            features => Err(FrameError::Features(features)),
        }
    }
}

/// See [`Protocol::records`].
#[derive(Clone, Debug)]
pub struct Records<'m> {
    rest: &'m [u8],
}

impl<'m> Iterator for Records<'m> {
    type Item = Result<Record<'m>, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let read = read(self.rest);
        self.rest = read.map_or(&[], |(_, rest)| rest);
        Some(read.map(|(record, _)| record).ok_or(FrameError::Damaged))
    }
}

fn read(message: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let (head, rest) = message.split_first_chunk::<RECORD>()?;
    let [t0, t1, v0, v1, length @ ..] = *head;
    let length = usize::try_from(u32::from_le_bytes(length)).ok()?;
    let (body, rest) = rest.split_at_checked(length)?;
    let record = Record {
        kind: u16::from_le_bytes([t0, t1]),
        version: u16::from_le_bytes([v0, v1]),
        body,
    };
    Some((record, rest))
}

fn number(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| (number << 8) | u32::from(*byte))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    const PROTOCOL: Protocol = Protocol {
        magic: *b"COWLTEST",
        version: 0x0102,
    };

    #[test]
    fn records_gives_what_encode_wrote() {
        let message = PROTOCOL.encode(7, 3, b"body").unwrap();
        assert_eq!(
            message,
            b"COWLTEST\x02\x01\0\0\0\0\0\0\x07\0\x03\0\x04\0\0\0body"
        );
        let both = [&message[..], &message[16..]].concat();
        let expected = Ok(Record {
            kind: 7,
            version: 3,
            body: b"body",
        });
        let records: Vec<_> = PROTOCOL.records(&both).unwrap().collect();
        assert_eq!(records, [expected, expected]);
    }

    #[test]
    fn records_refuses_foreign_newer_and_damaged_messages() {
        let message = PROTOCOL.encode(7, 3, b"body").unwrap();
        let broken = |position: usize| {
            let mut broken = message.clone();
            broken[position] ^= 1;
            broken
        };
        let refused = |message: &[u8]| PROTOCOL.records(message).map(drop);
        assert_eq!(refused(&broken(0)), Err(FrameError::Foreign));
        assert_eq!(refused(&message[..15]), Err(FrameError::Foreign));
        assert_eq!(refused(&broken(8)), Err(FrameError::Version(0x0103)));
        assert_eq!(refused(&broken(12)), Err(FrameError::Features(1)));
        for end in 17..message.len() {
            let records: Vec<_> = PROTOCOL.records(&message[..end]).unwrap().collect();
            assert_eq!(records, [Err(FrameError::Damaged)]);
        }
        assert_eq!(PROTOCOL.records(&message[..16]).unwrap().count(), 0);
    }
}
