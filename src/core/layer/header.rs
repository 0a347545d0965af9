//! One tar header block: its fields, read strictly.
//!
//! Formats: POSIX.1-1988 ustar, its predecessor (V7), GNU's and star's variants. A field that
//! readers are known to read differently (a number behind a leading NUL, a base-256 number that
//! does not fit, an unknown ustar version) is refused, never guessed at.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::error::HeaderFault;

/// Everything in a tar is padded to this.
pub(super) const BLOCK: usize = 512;

/// The layout all formats share. `rest` is the prefix in ustar, and times and the sparse map in
/// GNU's format.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub(super) struct Header {
    name: [u8; 100],
    mode: [u8; 8],
    uid: [u8; 8],
    gid: [u8; 8],
    size: [u8; 12],
    mtime: [u8; 12],
    checksum: [u8; 8],
    /// The type byte.
    pub(super) typeflag: u8,
    linkname: [u8; 100],
    magic: [u8; 8],
    user_and_group_names: [u8; 64],
    major: [u8; 8],
    minor: [u8; 8],
    rest: [u8; 167],
}

/// `rest` of a GNU header.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct GnuRest {
    times_offset_and_longnames: [u8; 41],
    map: [SparseField; 4],
    extended: u8,
    real_size: [u8; 12],
    unused: [u8; 17],
}

/// A block that continues the sparse map of a GNU header.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct GnuSparseBlock {
    map: [SparseField; 21],
    extended: u8,
    unused: [u8; 7],
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SparseField {
    offset: [u8; 12],
    length: [u8; 12],
}

/// Which fields beyond the common ones a header has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    Ustar,
    Gnu,
}

/// A stretch of data in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// The sparse map of a GNU header or of one of its continuation blocks.
pub(super) struct SparsePart {
    pub(super) extents: Vec<Extent>,
    /// Another block of the map follows.
    pub(super) extended: bool,
}

impl Header {
    /// `None` for a block of zeros.
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Option<(Self, Format)>, HeaderFault> {
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let header = Self::read_from_bytes(block).map_err(|_size| HeaderFault::Checksum)?;
        header.verify_checksum(block)?;
        let format = match &header.magic {
            b"ustar\x0000" => Format::Ustar,
            b"ustar  \0" => Format::Gnu,
            magic if magic.starts_with(b"ustar") => return Err(HeaderFault::Version),
            _ => Format::V7,
        };
        Ok(Some((header, format)))
    }

    /// The sum is of unsigned bytes; archives of some old systems have that of signed ones.
    fn verify_checksum(&self, block: &[u8; BLOCK]) -> Result<(), HeaderFault> {
        let expected = number(&self.checksum).ok_or(HeaderFault::Checksum)?;
        let own: i64 = self.checksum.iter().map(|&byte| i64::from(byte)).sum();
        let own_signed: i64 = self
            .checksum
            .iter()
            .map(|&byte| i64::from(byte.cast_signed()))
            .sum();
        let spaces = 8 * i64::from(b' ');
        let unsigned: i64 = block.iter().map(|&byte| i64::from(byte)).sum();
        let signed: i64 = block
            .iter()
            .map(|&byte| i64::from(byte.cast_signed()))
            .sum();
        if expected == unsigned - own + spaces || expected == signed - own_signed + spaces {
            Ok(())
        } else {
            Err(HeaderFault::Checksum)
        }
    }

    /// The name, with the prefix before it in ustar.
    pub(super) fn path(&self, format: Format) -> Vec<u8> {
        let name = until_nul(&self.name);
        // star (`tar\0` at the end) keeps times behind a shorter prefix
        let prefix: &[u8] = match (format, &self.rest) {
            (Format::Ustar, [prefix @ .., b't', b'a', b'r', 0]) => {
                until_nul(prefix.get(..131).unwrap_or_default())
            }
            (Format::Ustar, rest) => until_nul(rest.get(..155).unwrap_or_default()),
            (Format::V7 | Format::Gnu, _) => &[],
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(super) fn link(&self) -> &[u8] {
        until_nul(&self.linkname)
    }

    /// Permission bits; the file type that some writers add is dropped.
    pub(super) fn mode(&self) -> Result<u32, HeaderFault> {
        let mode = number(&self.mode).ok_or(HeaderFault::Number("mode"))?;
        u32::try_from(mode & 0o7777).map_err(|_range| HeaderFault::Number("mode"))
    }

    pub(super) fn uid(&self) -> Result<i64, HeaderFault> {
        number(&self.uid).ok_or(HeaderFault::Number("uid"))
    }

    pub(super) fn gid(&self) -> Result<i64, HeaderFault> {
        number(&self.gid).ok_or(HeaderFault::Number("gid"))
    }

    pub(super) fn size(&self) -> Result<u64, HeaderFault> {
        unsigned(&self.size, "size")
    }

    pub(super) fn mtime(&self) -> Result<i64, HeaderFault> {
        number(&self.mtime).ok_or(HeaderFault::Number("mtime"))
    }

    /// Device numbers; V7 has none, which is what its zeros say.
    pub(super) fn device(&self, format: Format) -> Result<(i64, i64), HeaderFault> {
        if format == Format::V7 {
            return Ok((0, 0));
        }
        let major = number(&self.major).ok_or(HeaderFault::Number("devmajor"))?;
        let minor = number(&self.minor).ok_or(HeaderFault::Number("devminor"))?;
        Ok((major, minor))
    }

    /// The part of the sparse map in a GNU header of type `S`, and the size of the expanded file.
    pub(super) fn gnu_sparse(&self) -> Result<(SparsePart, u64), HeaderFault> {
        let rest = GnuRest::read_from_bytes(&self.rest)
            .map_err(|_size| HeaderFault::Sparse("unreadable"))?;
        let part = SparsePart {
            extents: extents(&rest.map)?,
            extended: rest.extended != 0,
        };
        Ok((part, unsigned(&rest.real_size, "realsize")?))
    }
}

/// A continuation block of a GNU sparse map.
pub(super) fn gnu_sparse_block(block: &[u8; BLOCK]) -> Result<SparsePart, HeaderFault> {
    let block = GnuSparseBlock::read_from_bytes(block)
        .map_err(|_size| HeaderFault::Sparse("unreadable"))?;
    Ok(SparsePart {
        extents: extents(&block.map)?,
        extended: block.extended != 0,
    })
}

/// Fields up to the first unused one.
fn extents(fields: &[SparseField]) -> Result<Vec<Extent>, HeaderFault> {
    fields
        .iter()
        .take_while(|field| field.length.first() != Some(&0))
        .map(|field| {
            Ok(Extent {
                offset: unsigned(&field.offset, "sparse offset")?,
                length: unsigned(&field.length, "sparse length")?,
            })
        })
        .collect()
}

fn unsigned(field: &[u8], name: &'static str) -> Result<u64, HeaderFault> {
    number(field)
        .and_then(|value| u64::try_from(value).ok())
        .ok_or(HeaderFault::Number(name))
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// A numeric field: octal digits between spaces and NULs, or GNU's base-256 (high bit set, two's
/// complement, big-endian).
///
/// `None`: not a number, or not one of 64 bits. Nothing but spaces and NULs is 0. A leading NUL
/// before digits is refused, since readers disagree (0, or the digits).
fn number(field: &[u8]) -> Option<i64> {
    let (&first, others) = field.split_first()?;
    if first & 0x80 != 0 {
        let sign = if first & 0x40 == 0 { 0 } else { -1_i128 };
        let head = (sign << 6) | i128::from(first & 0x3f);
        // at most 12 bytes, so nothing is shifted out of 128 bits
        let value = others
            .iter()
            .fold(head, |value, &byte| (value << 8) | i128::from(byte));
        return i64::try_from(value).ok();
    }
    let digits = field.trim_ascii_start();
    let (digits, tail) = digits.split_at(
        digits
            .iter()
            .take_while(|byte| (b'0'..=b'7').contains(byte))
            .count(),
    );
    // the tail ends the number: NUL and anything after it (all readers stop there), or spaces
    let ended = match tail.split_first() {
        None => true,
        Some((0, after)) => {
            !digits.is_empty() || after.iter().all(|&byte| byte == 0 || byte == b' ')
        }
        Some(_) => tail.iter().all(|&byte| byte == b' ' || byte == 0),
    };
    if !ended {
        return None;
    }
    digits.iter().try_fold(0_i64, |value, &digit| {
        value.checked_mul(8)?.checked_add(i64::from(digit & 7))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_refuses_what_readers_disagree_on() {
        let cases: &[(&[u8], Option<i64>)] = &[
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"00000644", Some(0o644)),
            (b"644\0junk", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"\0\0\x006440", None),
            (b"0000648\0", None),
            (b"644 junk", None),
            (b"-000644\0", None),
            (b"77777777777\0", Some(0o77_777_777_777)),
            (b"\x80\0\0\0\0\x20\0\0", Some(1 << 21)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe",
                Some(-2),
            ),
            (
                b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                Some(i64::MAX),
            ),
            // 2^64 + 512: a reader that lets it overflow reads 512
            (b"\x80\0\0\x01\0\0\0\0\0\0\x02\0", None),
            (b"", None),
        ];
        for (field, expected) in cases {
            assert_eq!(
                number(field),
                *expected,
                "{:?}",
                field.escape_ascii().to_string()
            );
        }
    }

    #[test]
    fn path_joins_the_prefix_of_ustar_only() {
        let path = |magic: &[u8; 8], end: &[u8; 4]| {
            let mut block = [0; BLOCK];
            block[..4].copy_from_slice(b"name");
            block[257..265].copy_from_slice(magic);
            // star's prefix ends after 131 bytes, and times follow
            block[345..345 + 155].fill(b'p');
            block[508..].copy_from_slice(end);
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum::<u32>() + 8 * 32;
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            let (header, format) = Header::parse(&block).unwrap().unwrap();
            header.path(format).len()
        };
        assert_eq!(path(b"ustar\x0000", b"\0\0\0\0"), 155 + 1 + 4);
        assert_eq!(path(b"ustar\x0000", b"tar\0"), 131 + 1 + 4);
        assert_eq!(path(b"ustar  \0", b"\0\0\0\0"), 4);
        assert_eq!(path(&[0; 8], b"\0\0\0\0"), 4);
    }
}
