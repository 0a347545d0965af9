//! rpm's SQLite database: as much of SQLite's file format as its table `Packages` needs.
//!
//! Source: sqlite.org/fileformat2.html. Every access is checked, and pages and the bytes of rows
//! are counted, so no input loops or copies more bytes than it has.

use std::cell::Cell;

use super::{be32, header};

pub(super) const MAGIC: &[u8] = b"SQLite format 3\0";

/// The packages of the database; None if it is damaged.
pub(super) fn packages(bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let database = Database::open(bytes)?;
    let mut root = None;
    database.each_row(1, &mut |row| {
        // type, name, tbl_name, rootpage, sql
        let of_text = |column: usize| row.get(column).and_then(Value::text);
        if of_text(0) == Some(b"table") && of_text(1) == Some(b"Packages") {
            root = row.get(3)?.number();
        }
        Some(())
    })?;
    let mut packages = Vec::new();
    database.each_row(u32::try_from(root?).ok()?, &mut |row| {
        packages.push(header(row.get(1)?.text()?)?);
        Some(())
    })?;
    Some(packages)
}

struct Database<'b> {
    bytes: &'b [u8],
    page: usize,
    /// Usable bytes of a page.
    usable: usize,
    /// Bytes of rows that may still be read: each byte may belong to one row only, and there are
    /// two passes.
    left: Cell<usize>,
}

/// A column of a row.
enum Value {
    Number(i64),
    /// Text or a blob.
    Bytes(Vec<u8>),
}

impl Value {
    fn text(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Number(_) => None,
        }
    }

    fn number(&self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Bytes(_) => None,
        }
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*bytes).into())
}

/// SQLite's integer of 1 to 9 bytes, and what follows it.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    let mut rest = bytes;
    for count in 0..9 {
        let (byte, after) = rest.split_first()?;
        rest = after;
        if count == 8 {
            return Some((value << 8 | u64::from(*byte), rest));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some((value, rest))
}

impl<'b> Database<'b> {
    fn open(bytes: &'b [u8]) -> Option<Self> {
        bytes.strip_prefix(MAGIC)?;
        let page = match be16(bytes, 16)? {
            1 => 65536,
            size => size,
        };
        let reserved = usize::from(*bytes.get(20)?);
        let usable = page.checked_sub(reserved)?;
        if page < 512 || usable < 480 {
            return None;
        }
        Some(Self {
            bytes,
            page,
            usable,
            left: Cell::new(bytes.len().checked_mul(2)?),
        })
    }

    /// A page by its number, from 1.
    fn page(&self, number: u32) -> Option<&'b [u8]> {
        let start = usize::try_from(number.checked_sub(1)?)
            .ok()?
            .checked_mul(self.page)?;
        self.bytes.get(start..start.checked_add(self.page)?)
    }

    /// Calls `take` for each row of the table at a root page, until it returns None.
    fn each_row(&self, root: u32, take: &mut dyn FnMut(&[Value]) -> Option<()>) -> Option<()> {
        let mut left = self.bytes.len() / self.page + 1;
        let mut pending = vec![root];
        while let Some(number) = pending.pop() {
            left = left.checked_sub(1)?;
            let page = self.page(number)?;
            let start = if number == 1 { 100 } else { 0 };
            let kind = *page.get(start)?;
            let cells = be16(page, start + 3)?;
            let pointers = start + if kind == 5 { 12 } else { 8 };
            if kind == 5 {
                pending.push(be32(page, start + 8)?);
            }
            for cell in 0..cells {
                let at = be16(page, pointers + 2 * cell)?;
                match kind {
                    5 => pending.push(be32(page, at)?),
                    13 => {
                        take(&self.row(page.get(at..)?)?)?;
                    }
                    _ => return None,
                }
            }
        }
        Some(())
    }

    /// The columns of a leaf's cell.
    fn row(&self, cell: &[u8]) -> Option<Vec<Value>> {
        let (length, rest) = varint(cell)?;
        let (_rowid, rest) = varint(rest)?;
        let payload = self.payload(rest, usize::try_from(length).ok()?)?;
        let (header, mut types) = varint(&payload)?;
        let header = usize::try_from(header).ok()?;
        let mut body = payload.get(header..)?;
        let types_end = body.len();
        let mut row = Vec::new();
        while types.len() > types_end {
            let (kind, rest) = varint(types)?;
            types = rest;
            let length = match kind {
                0 | 8 | 9 => 0,
                1..=4 => usize::try_from(kind).ok()?,
                5 => 6,
                6 | 7 => 8,
                10 | 11 => return None,
                _ => usize::try_from((kind - 12) / 2).ok()?,
            };
            let (value, rest) = body.split_at_checked(length)?;
            body = rest;
            row.push(match kind {
                0 => Value::Number(0),
                1..=9 => Value::Number(integer(kind, value)),
                _ => Value::Bytes(value.to_vec()),
            });
        }
        Some(row)
    }

    /// A cell's payload, including its overflow pages.
    fn payload(&self, local: &[u8], length: usize) -> Option<Vec<u8>> {
        self.left.set(self.left.get().checked_sub(length)?);
        let most = self.usable - 35;
        if length <= most {
            return Some(local.get(..length)?.to_vec());
        }
        let least = (self.usable - 12) * 32 / 255 - 23;
        let spill = least + (length - least) % (self.usable - 4);
        let kept = if spill <= most { spill } else { least };
        let mut payload = local.get(..kept)?.to_vec();
        let mut next = be32(local, kept)?;
        while payload.len() < length {
            let page = self.page(next)?.get(..self.usable)?;
            next = be32(page, 0)?;
            let piece = page.get(4..)?;
            let take = piece.len().min(length - payload.len());
            payload.extend_from_slice(piece.get(..take)?);
        }
        Some(payload)
    }
}

/// A signed integer of a serial type.
fn integer(kind: u64, bytes: &[u8]) -> i64 {
    match kind {
        8 => 0,
        9 => 1,
        _ => {
            let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
            let start = if negative { -1 } else { 0 };
            bytes
                .iter()
                .fold(start, |value: i64, byte| value << 8 | i64::from(*byte))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database of one page: its header, and a leaf whose one cell continues on overflow page 1,
    /// which is the page itself and points to itself.
    fn looping(length: u64) -> Vec<u8> {
        let mut page = vec![0; 512];
        page[..16].copy_from_slice(b"SQLite format 3\0");
        page[16..18].copy_from_slice(&512_u16.to_be_bytes());
        page[100] = 13;
        page[103..105].copy_from_slice(&1_u16.to_be_bytes());
        page[108..110].copy_from_slice(&200_u16.to_be_bytes());
        page[200] = 0x80 | u8::try_from(length >> 7).unwrap();
        page[201] = u8::try_from(length & 0x7f).unwrap();
        page
    }

    /// A database of one page whose cells all point to one row: 2000 times 800 bytes.
    #[test]
    fn rows_that_share_their_bytes_are_refused() {
        let mut page = vec![0; 8192];
        page[..16].copy_from_slice(b"SQLite format 3\0");
        page[16..18].copy_from_slice(&8192_u16.to_be_bytes());
        page[100] = 13;
        page[103..105].copy_from_slice(&2000_u16.to_be_bytes());
        for cell in 0..2000 {
            page[108 + 2 * cell..110 + 2 * cell].copy_from_slice(&7000_u16.to_be_bytes());
        }
        // A payload of 800 bytes: a header of 3, a blob of 797.
        page[7000..7006].copy_from_slice(&[0x86, 0x20, 1, 3, 0x8c, 0x46]);
        let database = Database::open(&page).unwrap();
        let mut rows = 0;
        let read = database.each_row(1, &mut |row| {
            assert_eq!(row[0].text().map(<[u8]>::len), Some(797));
            rows += 1;
            Some(())
        });
        assert_eq!((read, rows), (None, 2 * 8192 / 800));
    }

    #[test]
    fn parsing_of_hostile_databases_ends() {
        assert_eq!(packages(b""), None);
        assert_eq!(packages(&looping(500)), None);
        let whole = looping(500);
        for at in 0..whole.len() {
            assert_eq!(packages(whole.get(..at).unwrap()), None, "cut at {at}");
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << bit;
                // Parsing must end, whatever the result.
                assert!(packages(&damaged).is_none_or(|found| found.len() < 9));
            }
        }
    }
}
