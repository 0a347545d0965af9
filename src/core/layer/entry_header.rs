//! One entry's headers, written: ustar (POSIX.1-1988), with a PAX header (POSIX.1-2001) before it
//! where ustar cannot say it.
//!
//! The PAX records are few and in a fixed order, so that equal entries are equal bytes; a reader
//! that knows no PAX still sees the beginning of the name and the right framing.

use zerocopy::{Immutable, IntoBytes, Unaligned};

use super::header::BLOCK;
use crate::tree::{Rdev, Timestamp};

/// What goes into the headers.
pub(super) struct EntryHeader<'r> {
    /// A directory's ends in a slash.
    pub(super) path: &'r [u8],
    /// Of symbolic and hard links.
    pub(super) link: &'r [u8],
    pub(super) kind: u8,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) mtime: Timestamp,
    pub(super) rdev: Rdev,
    pub(super) xattrs: &'r [(&'r [u8], &'r [u8])],
}

impl<'r> EntryHeader<'r> {
    /// An entry of which nothing counts but the name.
    pub(super) fn bare(path: &'r [u8], kind: u8) -> Self {
        Self {
            path,
            link: b"",
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Timestamp::default(),
            rdev: Rdev::default(),
            xattrs: &[],
        }
    }
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Ustar {
    name: [u8; 100],
    mode: [u8; 8],
    uid: [u8; 8],
    gid: [u8; 8],
    size: [u8; 12],
    mtime: [u8; 12],
    checksum: [u8; 8],
    typeflag: u8,
    linkname: [u8; 100],
    magic: [u8; 8],
    names: [u8; 64],
    major: [u8; 8],
    minor: [u8; 8],
    prefix_and_pad: [u8; 167],
}

/// The headers. The content, and its [`padding`], are up to the caller.
pub(super) fn encode(entry: &EntryHeader<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut extended = Vec::new();
    let mut raw_name = false;
    if entry.path.len() > 100 {
        raw_name |= std::str::from_utf8(entry.path).is_err();
        push(&mut extended, b"path", entry.path);
    }
    if entry.link.len() > 100 {
        raw_name |= std::str::from_utf8(entry.link).is_err();
        push(&mut extended, b"linkpath", entry.link);
    }
    let mut number = |key: &[u8], value: u64, max: u64| {
        if value > max {
            push(&mut extended, key, value.to_string().as_bytes());
        }
        value.min(max)
    };
    let uid = number(b"uid", entry.uid.into(), 0o7_777_777);
    let gid = number(b"gid", entry.gid.into(), 0o7_777_777);
    let size = number(b"size", entry.size, 0o77_777_777_777);
    let whole = u64::try_from(entry.mtime.secs).unwrap_or(0);
    let mtime = whole.min(0o77_777_777_777);
    if entry.mtime
        != (Timestamp {
            secs: i64::try_from(mtime).unwrap_or(0),
            nanos: 0,
        })
    {
        push(&mut extended, b"mtime", time(entry.mtime).as_bytes());
    }
    for (name, value) in entry.xattrs {
        push(
            &mut extended,
            &[b"SCHILY.xattr.", escape(name).as_slice()].concat(),
            value,
        );
    }
    if !extended.is_empty() {
        if raw_name {
            // POSIX has names in UTF-8 otherwise; the first entry, so that it holds for all
            let mut first = Vec::new();
            push(&mut first, b"hdrcharset", b"BINARY");
            extended.splice(..0, first);
        }
        let header = EntryHeader {
            size: extended.len() as u64,
            ..EntryHeader::bare(b"PaxHeaders/x", b'x')
        };
        out.extend_from_slice(ustar(&header, 0, 0, header.size, 0).as_bytes());
        out.extend_from_slice(&extended);
        out.extend_from_slice(padding(header.size));
    }
    out.extend_from_slice(ustar(entry, uid, gid, size, mtime).as_bytes());
    out
}

/// The headers of a member of an image archive: a directory, or a file with its size.
pub(crate) fn member_header(path: &str, size: Option<u64>) -> Vec<u8> {
    let (kind, mode) = match size {
        None => (b'5', 0o755),
        Some(_) => (b'0', 0o644),
    };
    encode(&EntryHeader {
        mode,
        size: size.unwrap_or_default(),
        ..EntryHeader::bare(path.as_bytes(), kind)
    })
}

/// The zeros after `size` bytes of content.
pub(crate) fn padding(size: u64) -> &'static [u8] {
    static ZEROS: [u8; BLOCK] = [0; BLOCK];
    match usize::try_from(size % BLOCK as u64) {
        Ok(0) | Err(_) => &[],
        Ok(rest) => ZEROS.get(rest..).unwrap_or_default(),
    }
}

/// `length key=value\n`, the length counting itself.
fn push(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // space, '=' and newline
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// Seconds, with the fraction if there is one, negative before 1970: -1.5 s is `secs` -2 and
/// `nanos` 500,000,000.
fn time(time: Timestamp) -> String {
    let (sign, secs, nanos) = match (time.secs, time.nanos) {
        (secs @ 0.., nanos) => ("", secs.unsigned_abs(), nanos),
        (secs, 0) => ("-", secs.unsigned_abs(), 0),
        (secs, nanos) => ("-", secs.unsigned_abs() - 1, 1_000_000_000 - nanos),
    };
    if nanos == 0 {
        return format!("{sign}{secs}");
    }
    let text = format!("{sign}{secs}.{nanos:09}");
    text.trim_end_matches('0').to_owned()
}

/// `=` ends a PAX key, so GNU tar's `%3D` stands for it; `%` is escaped only where it would be
/// taken for an escape, since Docker undoes none.
fn escape(name: &[u8]) -> Vec<u8> {
    use bstr::ByteSlice;
    let ambiguous = name.contains(&b'=') || name.contains_str("%3D") || name.contains_str("%25");
    if ambiguous {
        name.replace("%", "%25").replace("=", "%3D")
    } else {
        name.to_vec()
    }
}

fn ustar(entry: &EntryHeader<'_>, uid: u64, gid: u64, size: u64, mtime: u64) -> Ustar {
    let device = matches!(entry.kind, b'3' | b'4');
    let number = |value: u32| if device { octal(value.into()) } else { [0; 8] };
    let mut header = Ustar {
        name: text(entry.path),
        mode: octal(entry.mode.into()),
        uid: octal(uid),
        gid: octal(gid),
        size: octal(size),
        mtime: octal(mtime),
        checksum: [b' '; 8],
        typeflag: entry.kind,
        linkname: text(entry.link),
        magic: *b"ustar\x0000",
        names: [0; 64],
        major: number(entry.rdev.major),
        minor: number(entry.rdev.minor),
        prefix_and_pad: [0; 167],
    };
    let sum: u64 = header.as_bytes().iter().map(|&byte| u64::from(byte)).sum();
    // six digits, a NUL and a space
    let (digits, _space) = header.checksum.split_at_mut(7);
    digits.copy_from_slice(&octal::<7>(sum));
    header
}

/// As much as fits, NUL-padded; what does not is in a PAX record.
fn text(value: &[u8]) -> [u8; 100] {
    let mut field = [0; 100];
    field
        .iter_mut()
        .zip(value)
        .for_each(|(slot, byte)| *slot = *byte);
    field
}

/// Octal digits with leading zeros and a NUL at the end.
fn octal<const N: usize>(value: u64) -> [u8; N] {
    let mut field = [b'0'; N];
    let mut left = value;
    let mut slots = field.iter_mut().rev();
    if let Some(last) = slots.next() {
        *last = 0;
    }
    for slot in slots {
        *slot = b'0' | u8::try_from(left & 7).unwrap_or(0);
        left >>= 3;
    }
    field
}

#[cfg(test)]
mod tests {
    use super::super::pax::Pax;
    use super::*;

    #[test]
    fn encode_round_trips_times() {
        for (secs, nanos, expected) in [
            (0, 0, "0"),
            (1, 500_000_000, "1.5"),
            (-1, 0, "-1"),
            (-2, 500_000_000, "-1.5"),
            (-1, 999_999_999, "-0.000000001"),
            (1_234_567_890, 1, "1234567890.000000001"),
        ] {
            let stamp = Timestamp { secs, nanos };
            assert_eq!(time(stamp), expected);
            let mut record = Vec::new();
            push(&mut record, b"mtime", expected.as_bytes());
            assert_eq!(Pax::parse(&record).unwrap().mtime, Some(stamp));
        }
    }

    #[test]
    fn pax_record_lengths_count_themselves() {
        for size in 0..1200 {
            let mut record = Vec::new();
            push(&mut record, b"SCHILY.xattr.user.x", &vec![b'v'; size]);
            assert_eq!(Pax::parse(&record).unwrap().xattrs[0].1.len(), size);
        }
    }

    #[test]
    fn encode_round_trips_xattr_names() {
        for name in [
            "user.x",
            "user.a=b",
            "user.100%",
            "user.%3D",
            "user.%25=",
            "user.%41",
        ] {
            let mut record = Vec::new();
            push(
                &mut record,
                &[b"SCHILY.xattr.", escape(name.as_bytes()).as_slice()].concat(),
                b"v",
            );
            assert_eq!(Pax::parse(&record).unwrap().xattrs[0].0, name.as_bytes());
        }
        assert_eq!(escape(b"user.100%"), b"user.100%", "as Docker reads it");
    }
}
