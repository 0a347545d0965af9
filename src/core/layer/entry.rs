//! An entry of an archive, and what its type byte and sizes make of it.

use super::error::{EntryFault, HeaderFault, TypeName};
use super::header::{Format, Header};
use super::path;
use super::sparse::{SparseMap, Stretch};
use crate::tree::{Rdev, Timestamp};

/// The largest size an octal field of 11 digits holds; below it a PAX `size` has nothing to add to
/// the header's.
const OCTAL_MAX: u64 = 0o77_777_777_777;

/// What Linux's device numbers hold: 12 and 20 bits.
const MAJOR_MAX: u32 = 0xfff;
const MINOR_MAX: u32 = 0xf_ffff;

/// One entry, before anything is made of its name.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) kind: EntryKind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug)]
pub(super) enum EntryKind {
    /// A regular file with its content, to be fetched by
    /// [`TarReader::content`](super::reader::TarReader::content) before the next entry is.
    Regular(Content),
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    CharDevice(Rdev),
    BlockDevice(Rdev),
    Fifo,
}

/// Where the bytes of a regular file are.
#[derive(Debug)]
pub(super) enum Content {
    Plain(u64),
    Sparse(SparseMap),
}

impl Content {
    /// Bytes of the file.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Plain(size) => *size,
            Self::Sparse(map) => map.real_size(),
        }
    }

    pub(super) fn stretches(&self) -> Vec<Stretch> {
        match self {
            Self::Plain(size) => vec![Stretch::Data(*size)],
            Self::Sparse(map) => map.stretches(),
        }
    }
}

/// The header is bad, or well-formed and refused.
pub(super) enum KindFault {
    Header(HeaderFault),
    Entry(EntryFault),
}

impl From<HeaderFault> for KindFault {
    fn from(fault: HeaderFault) -> Self {
        Self::Header(fault)
    }
}

impl From<EntryFault> for KindFault {
    fn from(fault: EntryFault) -> Self {
        Self::Entry(fault)
    }
}

/// Whether an entry has no data, whatever its size says: some writers put there the size of a
/// linked file, the length of a target, or what `stat` says of a directory. moby (Go's
/// archive/tar), GNU tar and Python's tarfile find the next header right after this one.
pub(super) fn is_header_only(header: &Header, path: &[u8]) -> bool {
    match header.typeflag {
        b'1'..=b'6' => true,
        0 => path.ends_with(b"/"),
        _ => false,
    }
}

/// The type byte's meaning.
pub(super) fn kind(
    header: &Header,
    format: Format,
    path: &[u8],
    link: Vec<u8>,
    stored: u64,
    map: Option<SparseMap>,
) -> Result<EntryKind, KindFault> {
    let device = || -> Result<Rdev, KindFault> {
        let (major, minor) = header.device(format)?;
        let number = |field, value, max| {
            let number = u32::try_from(value).ok().filter(|&number| number <= max);
            number.ok_or(EntryFault::OutOfRange { field, value })
        };
        Ok(Rdev {
            major: number("device major", major, MAJOR_MAX)?,
            minor: number("device minor", minor, MINOR_MAX)?,
        })
    };
    Ok(match (header.typeflag, map) {
        (b'0' | b'7' | 0 | b'S', Some(map)) => EntryKind::Regular(Content::Sparse(map)),
        (_, Some(_)) => {
            return Err(HeaderFault::Sparse("on something that is not a regular file").into());
        }
        // before there was a type for directories; moby takes `d/.` for a file
        (0, None) if path::names_a_directory(path) => match stored {
            0 => EntryKind::Directory,
            _ => return Err(EntryFault::UnexpectedContent(stored).into()),
        },
        (b'5', None) => EntryKind::Directory,
        (b'0' | b'7' | 0, None) => EntryKind::Regular(Content::Plain(stored)),
        (b'1', None) => EntryKind::HardLink(link),
        (b'2', None) => EntryKind::Symlink(link),
        (b'3', None) => EntryKind::CharDevice(device()?),
        (b'4', None) => EntryKind::BlockDevice(device()?),
        (b'6', None) => EntryKind::Fifo,
        (other, None) => return Err(EntryFault::Type(TypeName(other)).into()),
    })
}

/// PAX's size where there is one. It is for sizes that the header cannot hold; any other must be
/// the header's too.
pub(super) fn stored_size(header: &Header, pax: Option<u64>) -> Result<u64, HeaderFault> {
    match (pax, header.size()) {
        (Some(pax), Ok(header)) if pax <= OCTAL_MAX && pax != header => {
            Err(HeaderFault::SizeDisagreement { pax, header })
        }
        (Some(pax), _) if pax > OCTAL_MAX => Ok(pax),
        (_, size) => size,
    }
}
