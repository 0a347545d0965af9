//! The files of an image archive by name: a directory, or a tar.
//!
//! Lookups normalise `/`, `./` and `..`; no name leads out of the archive.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FileType, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::ImageError;
use super::index::{Index, normal};
use super::input::Input;
use super::watch::Watch;
use crate::layer::{Compression, decompress};
use crate::store::Store;

/// Limit of all documents of an archive together: they stay in memory until the last is checked.
const DOCUMENTS_LIMIT: u64 = 64 << 20;

/// How the names of archives end.
const ENDINGS: [&str; 6] = [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"];

/// Whether a name ends as those of archives do.
pub fn is_named_as_archive(name: &str) -> bool {
    ENDINGS.iter().any(|end| name.ends_with(end))
}

pub(super) struct Archive {
    /// For messages.
    pub(super) name: String,
    source: Source,
    /// Bytes of documents read so far.
    documents: AtomicU64,
}

enum Source {
    Directory(File),
    Tar { file: File, index: Index },
}

impl Archive {
    /// Opens a directory, a tar, a compressed tar, or a pipe. Input that cannot be read twice is
    /// copied to a temporary file of the store.
    ///
    /// Locking: holds none while it waits for a pipe.
    pub(super) fn open(
        mut file: File,
        path: &Path,
        store: &Store,
        watch: Option<&dyn Watch>,
    ) -> Result<Self, ImageError> {
        let name = path.display().to_string();
        let unreadable = |source: io::Error| ImageError::Read {
            name: name.clone(),
            source,
        };
        let kind = file.metadata().map_err(unreadable)?.file_type();
        if kind.is_dir() {
            return Ok(Self::of(name, Source::Directory(file)));
        }
        if kind.is_char_device() || kind.is_block_device() {
            return Err(ImageError::NotAnArchive {
                name,
                what: "it is a device".to_owned(),
            });
        }
        // Standard input may be a partly read file.
        let seeks = !kind.is_fifo() && !kind.is_socket();
        let whole = seeks && file.stream_position().map_err(unreadable)? == 0;
        let stream = decompress(&file).map_err(|source| ImageError::Decompress {
            name: name.clone(),
            source,
        })?;
        let (index, copy) = if whole && stream.compression() == Compression::None {
            drop(stream);
            let mut input = Input::file(&name, file)?;
            (Index::read(&name, &mut input)?, input.finish()?)
        } else {
            let mut input = Input::stream(&name, stream, store, watch)?;
            (Index::read(&name, &mut input)?, input.finish()?)
        };
        Ok(Self::of(name, Source::Tar { file: copy, index }))
    }

    fn of(name: String, source: Source) -> Self {
        Self {
            name,
            source,
            documents: AtomicU64::new(0),
        }
    }

    /// Whether the archive has a file of this name.
    pub(super) fn has(&self, name: &str) -> Result<bool, ImageError> {
        Ok(self.open_member(name)?.is_some())
    }

    /// Reads a small file; None if it does not exist. A duplicate name is refused: readers
    /// disagree on which one counts.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(member) = self.open_member(name)? else {
            return Ok(None);
        };
        if let Source::Tar { index, .. } = &self.source
            && index.is_ambiguous(name)
        {
            return Err(ImageError::Confused {
                name: name.to_owned(),
                what: "the archive has it twice".to_owned(),
            });
        }
        if member.size > limit {
            return Err(ImageError::Unsupported {
                name: name.to_owned(),
                what: format!("it is larger than {limit} bytes"),
            });
        }
        let before = self.documents.fetch_add(member.size, Ordering::Relaxed);
        let documents = before.saturating_add(member.size);
        if documents > DOCUMENTS_LIMIT {
            return Err(ImageError::Unsupported {
                name: name.to_owned(),
                what: format!("with it, the documents are larger than {DOCUMENTS_LIMIT} bytes"),
            });
        }
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

    /// Reads a small file that `needed_by` refers to.
    pub(super) fn read_required(
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

    /// Opens a file; None if it does not exist.
    pub(super) fn open_member(&self, name: &str) -> Result<Option<Contents<'_>>, ImageError> {
        match &self.source {
            Source::Directory(dir) => open_in(dir, name),
            Source::Tar { file, index } => Ok(index.find(name).map(|(start, size)| Contents {
                file: Handle::Shared(file),
                at: start,
                left: size,
                size,
            })),
        }
    }

    /// Whether the archive looks like a root file system, for the error message.
    pub(super) fn looks_like_root(&self) -> bool {
        let names = ["bin", "etc", "usr", "bin/sh", "etc/passwd"];
        match &self.source {
            Source::Directory(_) => false,
            Source::Tar { index, .. } => names.iter().any(|name| index.contains(name)),
        }
    }
}

/// An open file of an archive.
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
    let path = normal(name.as_bytes());
    if path.is_empty() {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = match cowl_sys::open::openat2(dir, path.as_slice(), flags, resolve) {
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
    if !FileType::from_raw_mode(meta.mode()).is_file() {
        return Ok(None);
    }
    Ok(Some(Contents {
        file: Handle::Own(file),
        at: 0,
        left: meta.len(),
        size: meta.len(),
    }))
}
