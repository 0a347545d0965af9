//! PAX extended headers (POSIX.1-2001, pax, "pax ExtendedHeaders Header"), read strictly.
//!
//! A bad value of a key that we honour is an error and never "absent": skipping a bad `size` is
//! how files are smuggled past a scanner. Keys that a layer has no use for (atime, ctime, names of
//! owners, comments, ACLs as text, SELinux labels) are framed like all others and their values
//! ignored.

use bstr::{BString, ByteSlice};
use data_encoding::BASE64_NOPAD;

use super::error::HeaderFault;
use super::header::Extent;
use crate::tree::Timestamp;

/// What the records of one extended header say. Of two records with one key the later counts, as
/// for Go, Python and GNU tar.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    /// Those of `LIBARCHIVE.xattr.*` before those of `SCHILY.xattr.*`; of two with one name the
    /// later counts.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

/// The `GNU.sparse.*` records; which of the three versions they are is decided when all are known.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// 0.0: records in pairs; 0.1: one record. 1.0 has it before the content.
    pub(super) map: Option<Vec<Extent>>,
    /// 0.0: an offset that waits for its length.
    half: Option<u64>,
}

impl Pax {
    pub(super) fn parse(data: &[u8]) -> Result<Self, HeaderFault> {
        let mut pax = Self::default();
        let mut libarchive = Vec::new();
        let mut rest = data;
        while !rest.is_empty() {
            let at = data.len().saturating_sub(rest.len());
            let (record, after) = split_record(rest).ok_or(HeaderFault::PaxRecord(at))?;
            rest = after;
            let (key, value) = record
                .split_once_str("=")
                .ok_or(HeaderFault::PaxRecord(at))?;
            let valid = if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                libarchive_xattr(name, value).map(|xattr| libarchive.push(xattr))
            } else {
                pax.record(key, value)
            };
            valid.ok_or_else(|| HeaderFault::PaxValue {
                key: shown(key),
                value: shown(value),
            })?;
        }
        if pax.sparse.half.is_some() {
            return Err(HeaderFault::Sparse("an offset without a length"));
        }
        libarchive.append(&mut pax.xattrs);
        pax.xattrs = libarchive;
        Ok(pax)
    }

    /// `None`: the value is not what the key demands.
    fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(name(value)?),
            b"linkpath" => self.link = Some(name(value)?),
            // twice with two values: readers that take the first frame the archive differently
            // from those that take the last
            b"size" if self.size.is_some_and(|size| decimal(value) != Some(size)) => return None,
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.major" => self.sparse.major = Some(decimal(value)?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(decimal(value)?),
            b"GNU.sparse.name" => self.sparse.name = Some(name(value)?),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.real_size = Some(decimal(value)?);
            }
            b"GNU.sparse.numblocks" => {
                decimal(value)?;
                self.sparse.map.get_or_insert_default();
            }
            b"GNU.sparse.offset" if self.sparse.half.is_none() => {
                self.sparse.half = Some(decimal(value)?);
            }
            b"GNU.sparse.numbytes" => {
                let extent = Extent {
                    offset: self.sparse.half.take()?,
                    length: decimal(value)?,
                };
                self.sparse.map.get_or_insert_default().push(extent);
            }
            b"GNU.sparse.map" => self.sparse.map = Some(map(value)?),
            // holes in the ways of star and Solaris, which would be taken for contents
            b"GNU.sparse.offset" | b"SCHILY.realsize" | b"SUN.holesdata" => return None,
            _ => {
                if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((gnu_unescape(attribute), value.to_vec()));
                }
            }
        }
        Some(())
    }
}

/// `length SP body LF`, the length counting all of it. The body, and what follows the record.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, _) = data.split_once_str(" ")?;
    let total = usize::try_from(decimal(length)?).ok()?;
    let (record, rest) = data.split_at_checked(total)?;
    let body = record
        .get(length.len().checked_add(1)?..)?
        .strip_suffix(b"\n")?;
    Some((body, rest))
}

/// Digits only: no sign, no space, not empty, below 2^63 as file sizes are.
pub(super) fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value
        .iter()
        .try_fold(0_u64, |sum, byte| {
            let digit = byte.is_ascii_digit().then(|| u64::from(byte & 0x0f))?;
            sum.checked_mul(10)?.checked_add(digit)
        })
        .filter(|value| i64::try_from(*value).is_ok())
}

/// Names are not empty (POSIX: an empty value takes a record back, which no writer of layers does)
/// and have no NUL.
fn name(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty() && !value.contains(&0)).then(|| value.to_vec())
}

/// Seconds since 1970, maybe negative, maybe with a fraction; what is finer than nanoseconds is
/// rounded down, as time stamps are.
fn time(value: &[u8]) -> Option<Timestamp> {
    let (negative, magnitude) = match value.strip_prefix(b"-") {
        Some(magnitude) => (true, magnitude),
        None => (false, value),
    };
    let (whole, fraction) = magnitude.split_once_str(".").unwrap_or((magnitude, b""));
    let secs = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |place: usize| fraction.get(place).map_or(0, |byte| u32::from(byte & 0x0f));
    let nanos = (0..9).fold(0_u32, |sum, place| sum * 10 + digit(place));
    if !negative {
        return Some(Timestamp { secs, nanos });
    }
    let finer = fraction.iter().skip(9).any(|&byte| byte != b'0');
    Some(match (nanos, finer) {
        (0, false) => Timestamp {
            secs: -secs,
            nanos: 0,
        },
        (nanos, finer) => Timestamp {
            secs: -secs - 1,
            nanos: 1_000_000_000 - nanos - u32::from(finer),
        },
    })
}

/// `offset,length,offset,length`
fn map(value: &[u8]) -> Option<Vec<Extent>> {
    if value.is_empty() {
        return Some(Vec::new());
    }
    let mut numbers = value.split(|&byte| byte == b',');
    let mut extents = Vec::new();
    while let Some(offset) = numbers.next() {
        extents.push(Extent {
            offset: decimal(offset)?,
            length: decimal(numbers.next()?)?,
        });
    }
    Some(extents)
}

/// GNU tar writes `=` in an attribute's name as `%3D` and `%` as `%25`; no other writer can
/// express `=` at all.
fn gnu_unescape(name: &[u8]) -> Vec<u8> {
    name.replace("%3D", "=").replace("%25", "%")
}

/// libarchive's own spelling: the name percent-encoded, the value in base64 without padding.
fn libarchive_xattr(name: &[u8], value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut bytes = name.iter().copied();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => (hex(bytes.next()?)? << 4) | hex(bytes.next()?)?,
            plain => plain,
        });
    }
    Some((decoded, base64(value)?))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

/// With or without padding.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.trim_end_with(|letter| letter == '=');
    BASE64_NOPAD.decode(text).ok()
}

/// Short enough for an error message.
fn shown(bytes: &[u8]) -> BString {
    bytes.get(..80).unwrap_or(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length += 1;
        }
        [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
    }

    fn one(key: &str, value: &[u8]) -> Result<Pax, HeaderFault> {
        Pax::parse(&record(key.as_bytes(), value))
    }

    #[test]
    fn pax_times_are_signed_and_round_down() {
        let cases: &[(&str, Option<(i64, u32)>)] = &[
            ("0", Some((0, 0))),
            ("1234567890.123456789", Some((1_234_567_890, 123_456_789))),
            ("1.5", Some((1, 500_000_000))),
            ("1.", Some((1, 0))),
            ("1.0000000019", Some((1, 1))),
            ("-1", Some((-1, 0))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.000000001", Some((-1, 999_999_999))),
            ("-0.0000000001", Some((-1, 999_999_999))),
            ("-1.9999999999", Some((-2, 0))),
            ("-0", Some((0, 0))),
            (
                "-9223372036854775807",
                Some((-9_223_372_036_854_775_807, 0)),
            ),
            ("9223372036854775808", None),
            ("", None),
            ("-", None),
            (".5", None),
            ("+1", None),
            ("1e3", None),
            (" 1", None),
            ("1.2.3", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(secs, nanos)| Timestamp { secs, nanos });
            assert_eq!(time(text.as_bytes()), expected, "{text}");
            assert_eq!(
                one("mtime", text.as_bytes()).ok().and_then(|pax| pax.mtime),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn pax_refuses_bad_values_of_honoured_keys_only() {
        for key in [
            "size",
            "uid",
            "gid",
            "mtime",
            "GNU.sparse.major",
            "GNU.sparse.realsize",
            "GNU.sparse.offset",
        ] {
            for value in [
                "",
                "x",
                "-",
                "1x",
                "+1",
                " 1",
                "0x10",
                "18446744073709551616",
            ] {
                assert!(
                    matches!(
                        one(key, value.as_bytes()),
                        Err(HeaderFault::PaxValue { .. })
                    ),
                    "{key}={value}"
                );
            }
        }
        for key in ["path", "linkpath", "GNU.sparse.name"] {
            assert!(one(key, b"").is_err());
            assert!(one(key, b"a\0b").is_err());
        }
        for key in [
            "atime",
            "ctime",
            "comment",
            "SCHILY.acl.access",
            "RHT.security.selinux",
            "x",
        ] {
            one(key, b"\xff\0nonsense=").unwrap();
        }
    }

    #[test]
    fn pax_refuses_badly_framed_records() {
        assert_eq!(Pax::parse(b"").unwrap().path, None);
        assert_eq!(
            Pax::parse(b"20 path=foo/bar.txt\n").unwrap().path.unwrap(),
            b"foo/bar.txt"
        );
        for bad in [
            &b"20 path=foo/bar.txt"[..],
            b"19 path=foo/bar.txt\n",
            b"21 path=foo/bar.txt\n",
            b"path=foo\n",
            b" 9 path=a\n",
            b"+9 path=a\n",
            b"0 path=a\n",
            b"2 \n",
            b"9 pathxa\n",
            b"99999999999999999999 path=a\n",
            b"9 path=a\n\0\0\0",
        ] {
            assert!(
                matches!(Pax::parse(bad), Err(HeaderFault::PaxRecord(_))),
                "{:?}",
                bad.as_bstr()
            );
        }
    }

    #[test]
    fn pax_reads_xattrs_in_three_spellings() {
        let binary = b"\x01\0\0\x02=\n\xff";
        let data = [
            record(b"SCHILY.xattr.security.capability", binary),
            record(b"SCHILY.xattr.user.a%3Db%25", b"gnu"),
            record(b"LIBARCHIVE.xattr.user.na%20me", b"aGVsbG8"),
            record(b"LIBARCHIVE.xattr.security.capability", b"b3RoZXI="),
        ]
        .concat();
        assert_eq!(
            Pax::parse(&data).unwrap().xattrs,
            [
                (b"user.na me".to_vec(), b"hello".to_vec()),
                (b"security.capability".to_vec(), b"other".to_vec()),
                (b"security.capability".to_vec(), binary.to_vec()),
                (b"user.a=b%".to_vec(), b"gnu".to_vec()),
            ]
        );
        assert!(one("LIBARCHIVE.xattr.user.x", b"a*b=").is_err());
        assert!(one("LIBARCHIVE.xattr.user.%zz", b"YQ").is_err());
    }

    #[test]
    fn pax_refuses_two_sizes() {
        let twice =
            |a: &[u8], b: &[u8]| Pax::parse(&[record(b"size", a), record(b"size", b)].concat());
        assert_eq!(twice(b"7", b"7").unwrap().size, Some(7));
        assert!(twice(b"7", b"0").is_err());
        let paths = [record(b"path", b"first"), record(b"path", b"last")].concat();
        assert_eq!(Pax::parse(&paths).unwrap().path.unwrap(), b"last");
    }

    #[test]
    fn pax_reads_sparse_maps_0_0_and_0_1() {
        let pairs = [
            record(b"GNU.sparse.size", b"100"),
            record(b"GNU.sparse.numblocks", b"2"),
            record(b"GNU.sparse.offset", b"0"),
            record(b"GNU.sparse.numbytes", b"1"),
            record(b"GNU.sparse.offset", b"50"),
            record(b"GNU.sparse.numbytes", b"2"),
        ];
        let expected = [
            Extent {
                offset: 0,
                length: 1,
            },
            Extent {
                offset: 50,
                length: 2,
            },
        ];
        assert_eq!(
            Pax::parse(&pairs.concat()).unwrap().sparse.map.unwrap(),
            expected
        );
        assert_eq!(
            one("GNU.sparse.map", b"0,1,50,2")
                .unwrap()
                .sparse
                .map
                .unwrap(),
            expected
        );
        assert!(one("GNU.sparse.map", b"0,1,50").is_err());
        assert!(one("GNU.sparse.map", b",").is_err());
        assert!(
            one("GNU.sparse.numbytes", b"1").is_err(),
            "a length without an offset"
        );
        assert!(
            one("GNU.sparse.offset", b"1").is_err(),
            "an offset without a length"
        );
    }
}
