//! The mount table as `/proc/PID/mountinfo` shows it (proc_pid_mountinfo(5)).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Unique in the mount namespace.
    pub id: u64,
    /// Where it is attached.
    pub point: PathBuf,
    /// What is mounted below it later is passed on to others of its group.
    pub shared: bool,
    /// What others mount is passed on to it.
    pub slave: bool,
    /// Type of the file system, as `fuse.cowl`.
    pub filesystem: OsString,
    /// What is mounted, as the mount call named it (`source`).
    pub source: OsString,
    /// Options of the super block, comma separated.
    pub options: OsString,
}

impl Mount {
    /// Reads one line; none if it is not one.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let point = unescape(fields.nth(3)?);
        let (mut shared, mut slave) = (false, false);
        // The options of the mount, then its groups.
        for group in fields.by_ref().skip(1).take_while(|field| *field != b"-") {
            shared |= group.starts_with(b"shared:");
            slave |= group.starts_with(b"master:");
        }
        Some(Self {
            id,
            point: Path::new(&point).to_owned(),
            shared,
            slave,
            filesystem: unescape(fields.next()?),
            source: unescape(fields.next()?),
            options: OsStr::from_bytes(fields.next()?).to_owned(),
        })
    }
}

/// The mounts of a table, in its order. Lines that make no sense are passed over.
pub fn parse(table: &[u8]) -> impl Iterator<Item = Mount> {
    table.split(|byte| *byte == b'\n').filter_map(Mount::parse)
}

/// The kernel writes space, tab, newline, backslash and `#` as three octal digits (fs/seq_file.c,
/// mangle_path).
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let escaped = (*first == b'\\')
            .then(|| after.split_at_checked(3))
            .flatten();
        let decoded = escaped.and_then(|(digits, after)| Some((octal(digits)?, after)));
        let (byte, after) = decoded.unwrap_or((*first, after));
        plain.push(byte);
        rest = after;
    }
    OsString::from_vec(plain)
}

fn octal(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0_u8, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(digit - b'0'),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_whatever_its_path_holds() {
        let table = b"22 1 0:20 / /proc rw - proc proc rw\n\
                      31 22 0:57 / /a\\040-\\040b\\134040 rw,relatime shared:7 - fuse.cowl debian:12+ab rw,user_id=0\n\
                      garbage\n\n\
                      131 22 0:58 /x /c\\043\xff rw - ext4 a\\040b rw";
        let mounts: Vec<Mount> = parse(table).collect();
        let points: Vec<_> = mounts.iter().map(|mount| mount.point.as_os_str()).collect();
        assert_eq!(
            points,
            [
                OsStr::new("/proc"),
                OsStr::new("/a - b\\040"),
                OsStr::from_bytes(b"/c#\xff")
            ]
        );
        let found = mounts.iter().find(|mount| mount.id == 31).unwrap();
        assert_eq!((found.shared, found.slave), (true, false));
        assert_eq!(found.filesystem, "fuse.cowl");
        assert_eq!(found.source, "debian:12+ab");
        assert_eq!(found.options, "rw,user_id=0");
        assert_eq!(mounts.last().unwrap().source, "a b");
    }
}
