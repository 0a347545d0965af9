//! The files of an image archive by name: a directory, or a tar of which one pass over the headers made an index.
//!
//! Names are looked up as they are spelled but for a leading `./`. Nothing here trusts a content: who reads one checks its
//! digest. Links are followed within the archive only.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;
use tar_core::parse::{Limits, ParseError, ParseEvent, ParsedEntry, Parser};

use super::ImageError;
use crate::layer::{Compression, decompress};
use crate::store::Transaction;

/// Bytes of an index: more than any archive needs, and few enough for memory. A member costs its name, what it links to, and
/// [`MEMBER_COST`].
const MAX_INDEX: usize = 128 << 20;
/// What a map's entry takes besides the names.
const MEMBER_COST: usize = 128;
/// Old `docker save` links a repeated layer to the first; chains are short.
const MAX_LINKS: usize = 16;
const BLOCK: u64 = 512;

/// All documents of an archive together, since they are in memory until the last is checked: thousands of real ones.
const DOCUMENTS_LIMIT: u64 = 64 << 20;

pub(super) struct Archive {
    /// For messages.
    pub(super) name: String,
    source: Source,
    /// Bytes of the documents that were read.
    documents: Cell<u64>,
}

enum Source {
    Directory(File),
    Tar {
        file: File,
        members: HashMap<Vec<u8>, Member>,
    },
}

enum Member {
    /// Where the content begins and how long it is.
    Content { start: u64, size: u64 },
    /// Another member's name.
    Link(Vec<u8>),
}

impl Archive {
    /// A directory, a tar, a gzip'ed tar, or a stream of one; what cannot be read twice is copied into `transaction`.
    pub(super) fn open(
        mut file: File,
        path: &Path,
        transaction: &Transaction<'_>,
    ) -> Result<Self, ImageError> {
        let name = path.display().to_string();
        let unreadable = |source: io::Error| ImageError::Read {
            name: name.clone(),
            source,
        };
        let kind = file.metadata().map_err(unreadable)?.file_type();
        if kind.is_dir() {
            return Ok(Self {
                name,
                source: Source::Directory(file),
                documents: Cell::new(0),
            });
        }
        if kind.is_char_device() || kind.is_block_device() {
            return Err(ImageError::NotAnArchive {
                name,
                what: "it is a device".to_owned(),
            });
        }
        // Standard input may be a file of which something was read already.
        let seeks = !kind.is_fifo() && !kind.is_socket();
        let whole = seeks && file.stream_position().map_err(unreadable)? == 0;
        let mut stream = decompress(&file).map_err(|source| ImageError::Decompress {
            name: name.clone(),
            source,
        })?;
        let seekable = if whole && stream.compression() == Compression::None {
            file
        } else {
            spool(&name, &mut stream, transaction)?
        };
        let members = index(&name, &seekable, MAX_INDEX)?;
        Ok(Self {
            name,
            source: Source::Tar {
                file: seekable,
                members,
            },
            documents: Cell::new(0),
        })
    }

    /// Whether there is a file of this name.
    pub(super) fn has(&self, name: &str) -> Result<bool, ImageError> {
        Ok(self.open_member(name)?.is_some())
    }

    /// A small file whole. None when there is none.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(member) = self.open_member(name)? else {
            return Ok(None);
        };
        if member.size > limit {
            return Err(ImageError::Unsupported {
                name: name.to_owned(),
                what: format!("it is larger than {limit} bytes"),
            });
        }
        let documents = self.documents.get().saturating_add(member.size);
        if documents > DOCUMENTS_LIMIT {
            return Err(ImageError::Unsupported {
                name: name.to_owned(),
                what: format!("with it, the documents are larger than {DOCUMENTS_LIMIT} bytes"),
            });
        }
        self.documents.set(documents);
        let mut bytes = Vec::new();
        member
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(|source| ImageError::Read {
                name: name.to_owned(),
                source,
            })?;
        Ok(Some(bytes))
    }

    /// A small file that `needed_by` speaks of.
    pub(super) fn need(
        &self,
        name: &str,
        limit: u64,
        needed_by: &str,
    ) -> Result<Vec<u8>, ImageError> {
        self.read(name, limit)?.ok_or_else(|| ImageError::Missing {
            name: name.to_owned(),
            needed_by: needed_by.to_owned(),
        })
    }

    /// A file for reading. None when there is none.
    pub(super) fn open_member(&self, name: &str) -> Result<Option<Contents<'_>>, ImageError> {
        match &self.source {
            Source::Directory(dir) => open_in(dir, name),
            Source::Tar { file, members } => {
                Ok(find(members, name).map(|(start, size)| Contents {
                    file: Handle::Shared(file),
                    at: start,
                    left: size,
                    size,
                }))
            }
        }
    }

    /// A few names, to say what else an archive is.
    pub(super) fn looks_like_root(&self) -> bool {
        let names = [
            "bin",
            "etc",
            "usr",
            "etc/",
            "bin/",
            "usr/",
            "bin/sh",
            "etc/passwd",
        ];
        match &self.source {
            Source::Directory(_) => false,
            Source::Tar { members, .. } => names
                .iter()
                .any(|name| members.contains_key(name.as_bytes())),
        }
    }
}

/// A file of an archive, read where it lies.
pub(super) struct Contents<'a> {
    file: Handle<'a>,
    at: u64,
    left: u64,
    pub(super) size: u64,
}

enum Handle<'a> {
    Shared(&'a File),
    Own(File),
}

impl Read for Contents<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let Some(buffer) = buffer.get_mut(..wanted).filter(|buffer| !buffer.is_empty()) else {
            return Ok(0);
        };
        let file = match &self.file {
            Handle::Shared(file) => file,
            Handle::Own(file) => file,
        };
        let read = file.read_at(buffer, self.at)?;
        if read == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file ends too early",
            ));
        }
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

fn open_in(dir: &File, name: &str) -> Result<Option<Contents<'static>>, ImageError> {
    let failed = |source: io::Error| ImageError::Read {
        name: name.to_owned(),
        source,
    };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = match cowl_sys::open::openat2(dir, name, flags, resolve) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(Errno::XDEV) => {
            return Err(ImageError::Unsupported {
                name: name.to_owned(),
                what: "it is a symbolic link out of the archive's directory".to_owned(),
            });
        }
        Err(errno) => return Err(failed(errno.into())),
    };
    let meta = file.metadata().map_err(failed)?;
    if !rustix::fs::FileType::from_raw_mode(std::os::unix::fs::MetadataExt::mode(&meta)).is_file() {
        return Ok(None);
    }
    Ok(Some(Contents {
        file: Handle::Own(file),
        at: 0,
        left: meta.len(),
        size: meta.len(),
    }))
}

fn spool(
    name: &str,
    stream: &mut impl Read,
    transaction: &Transaction<'_>,
) -> Result<File, ImageError> {
    let mut scratch = transaction.scratch()?;
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let read = match stream.read(&mut buffer) {
            Ok(0) => return Ok(scratch),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(ImageError::Truncated {
                    name: name.to_owned(),
                    what: error.to_string(),
                });
            }
            Err(source) => {
                return Err(ImageError::Read {
                    name: name.to_owned(),
                    source,
                });
            }
        };
        let piece = buffer.get(..read).unwrap_or_default();
        io::Write::write_all(&mut scratch, piece)
            .map_err(|source| transaction.scratch_error(source))?;
    }
}

/// Reads all headers of a tar; the contents are skipped, so this costs one read per member.
fn index(name: &str, file: &File, limit: usize) -> Result<HashMap<Vec<u8>, Member>, ImageError> {
    let unreadable = |source| ImageError::Read {
        name: name.to_owned(),
        source,
    };
    let length = file.metadata().map_err(unreadable)?.len();
    let cut = |what: String| ImageError::Truncated {
        name: name.to_owned(),
        what,
    };
    let mut members = HashMap::new();
    let mut parser = Parser::new(Limits {
        max_path_len: Some(4096),
        ..Limits::default()
    });
    let mut at = 0;
    let mut wanted = 2 * BLOCK;
    let mut size = 0_usize;
    loop {
        let mut header = Vec::new();
        FileRange {
            file,
            at,
            left: wanted,
        }
        .read_to_end(&mut header)
        .map_err(unreadable)?;
        match parser.parse(&header) {
            Ok(ParseEvent::NeedData { min_bytes })
                if (min_bytes as u64) > wanted && at + wanted <= length =>
            {
                wanted = min_bytes as u64;
            }
            // Some writers leave out the end marker, or half of it.
            Ok(ParseEvent::NeedData { .. })
                if header.iter().all(|byte| *byte == 0) && !members.is_empty() =>
            {
                return Ok(members);
            }
            Ok(ParseEvent::NeedData { .. }) if members.is_empty() => {
                return Err(not_a_tar(name, "it is too short for one".to_owned()));
            }
            Ok(ParseEvent::NeedData { .. }) => {
                return Err(cut("it ends within a header".to_owned()));
            }
            Ok(ParseEvent::End { .. }) => return Ok(members),
            Ok(ParseEvent::GlobalExtensions { consumed, .. }) => {
                at += consumed as u64;
                wanted = 2 * BLOCK;
            }
            Ok(ParseEvent::Entry { consumed, entry }) => {
                let (path, member, end) =
                    place(&entry, at + consumed as u64, length).map_err(cut)?;
                size = size.saturating_add(cost(&path, member.as_ref()));
                if size > limit {
                    let what = "it has more members than an image archive could have";
                    return Err(not_a_tar(name, what.to_owned()));
                }
                members.extend(member.map(|member| (path, member)));
                at = end;
                wanted = 2 * BLOCK;
            }
            Ok(ParseEvent::SparseEntry { .. }) => {
                return Err(not_a_tar(name, "it holds sparse files".to_owned()));
            }
            Err(error) if at == 0 => return Err(not_a_tar(name, first_error(&error))),
            Err(error) => return Err(not_a_tar(name, format!("byte {at}: {error}"))),
        }
    }
}

/// Name and place of an entry whose content begins at `start`, and where the next header is. Text: why it can't be there.
fn place(
    entry: &ParsedEntry<'_>,
    start: u64,
    length: u64,
) -> Result<(Vec<u8>, Option<Member>, u64), String> {
    let path = normal(&entry.path);
    let link = entry.is_symlink() || entry.is_hard_link();
    let size = if link || entry.is_dir() {
        0
    } else {
        entry.size
    };
    let padded = size.checked_next_multiple_of(BLOCK);
    let end = padded
        .and_then(|padded| start.checked_add(padded))
        .filter(|_| start + size <= length)
        .ok_or_else(|| format!("{} should have {size} bytes", path.escape_ascii()))?;
    let member = match &entry.link_target {
        Some(target) if entry.is_symlink() => Some(Member::Link(resolve(&path, target))),
        Some(target) if link => Some(Member::Link(normal(target))),
        _ if entry.is_file() => Some(Member::Content { start, size }),
        _ => None,
    };
    Ok((path, member, end))
}

/// What a member adds to the index; one that is not kept took its time all the same.
fn cost(path: &[u8], member: Option<&Member>) -> usize {
    let target = match member {
        Some(Member::Link(target)) => target.len(),
        Some(Member::Content { .. }) | None => 0,
    };
    MEMBER_COST + path.len() + target
}

fn first_error(error: &ParseError) -> String {
    match error {
        ParseError::Header(_) => "it is not a tar at all".to_owned(),
        other => other.to_string(),
    }
}

fn not_a_tar(name: &str, what: String) -> ImageError {
    ImageError::NotAnArchive {
        name: name.to_owned(),
        what,
    }
}

/// Bytes of a file from a place on.
struct FileRange<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for FileRange<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = self
            .file
            .read_at(buffer.get_mut(..wanted).unwrap_or_default(), self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

fn find(members: &HashMap<Vec<u8>, Member>, name: &str) -> Option<(u64, u64)> {
    let mut name = normal(name.as_bytes());
    for _ in 0..MAX_LINKS {
        match members.get(&name)? {
            Member::Content { start, size } => return Some((*start, *size)),
            Member::Link(target) => name.clone_from(target),
        }
    }
    None
}

/// Without `.` and empty parts; `..` takes one part away, never more than there are.
fn normal(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// A symbolic link's target, seen from the archive's root.
fn resolve(link: &[u8], target: &[u8]) -> Vec<u8> {
    if target.starts_with(b"/") {
        return normal(target);
    }
    let dir = link
        .iter()
        .rposition(|byte| *byte == b'/')
        .and_then(|slash| link.get(..slash))
        .unwrap_or_default();
    normal(&[dir, target].join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of 4,000 bytes compress to nothing.
    #[test]
    fn the_index_of_an_archive_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("many.tar");
        let script = "
import sys, tarfile
with tarfile.open(sys.argv[1], 'w', format=tarfile.GNU_FORMAT) as archive:
    for number in range(100): archive.addfile(tarfile.TarInfo('p/' * 2000 + str(number)))";
        let made = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .status();
        assert!(made.unwrap().success());
        let file = File::open(path).unwrap();
        let indexed = |limit| index("many.tar", &file, limit);
        assert_eq!(indexed(100 * 4200).unwrap().len(), 100);
        assert!(matches!(
            indexed(50 * 4200),
            Err(ImageError::NotAnArchive { .. })
        ));
    }

    #[test]
    fn names_are_seen_from_the_root() {
        assert_eq!(normal(b"./blobs//sha256/./x"), b"blobs/sha256/x");
        assert_eq!(normal(b"../../etc/passwd"), b"etc/passwd");
        assert_eq!(resolve(b"b/layer.tar", b"../a/layer.tar"), b"a/layer.tar");
        assert_eq!(resolve(b"layer.tar", b"a.tar"), b"a.tar");
        assert_eq!(resolve(b"b/layer.tar", b"/a/layer.tar"), b"a/layer.tar");
    }
}
