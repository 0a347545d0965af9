//! A tree becomes a tar: the way out, for `export` and `save`.
//!
//! Invariant: one tree gives one sequence of bytes. Entries come in the order of the tree (a directory before what is in it, names
//! sorted bytewise), each as a ustar header, with a PAX header before it for what ustar cannot say: long names, fractions of seconds
//! and times before 1970, large numbers, extended attributes. A file with several names comes with the first; the others are hard
//! links. A layer's opaque mark is the first entry of its directory, whiteouts stand among the names; implied directories are not named.
//!
//! Sockets cannot be in a tar; they are left out and counted. Every content is hashed on its way out: one that is not what its name
//! says is an error, never an archive with wrong bytes.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use bstr::BString;
use thiserror::Error;

use super::record::{Record, write_record};
use crate::digest::{ObjectHasher, ObjectId};
use crate::store::Store;
use crate::tree::{Dirent, FileType, Node, Target, Tree, TreeError, TreeIno, TreeKind};

/// Where contents come from: the store.
pub trait ObjectSource {
    /// Reads one content.
    type Reader: Read;

    /// The content of this name.
    fn open(&self, id: ObjectId) -> io::Result<Self::Reader>;
}

impl ObjectSource for Store {
    type Reader = std::fs::File;

    fn open(&self, id: ObjectId) -> io::Result<Self::Reader> {
        Ok(self.open_object(id)?)
    }
}

/// Why a tree was not written out.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The tree is damaged.
    #[error("cannot read the tree")]
    Tree(#[from] TreeError),
    /// The archive cannot be written.
    #[error("cannot write the archive")]
    Write(#[from] io::Error),
    /// A content cannot be read.
    #[error("entry {path:?}: cannot read its content")]
    Content {
        /// The file.
        path: BString,
        /// What the source said.
        source: io::Error,
    },
    /// A content is not the one that its name stands for.
    #[error("entry {path:?}: object {id} is damaged")]
    Damaged {
        /// The file.
        path: BString,
        /// The object.
        id: ObjectId,
    },
    /// A layer in which a file has a name that only whiteouts may have.
    #[error(
        "entry {path:?}: a layer cannot say this, since names that begin with \".wh.\" are whiteouts"
    )]
    WhiteoutName {
        /// The file.
        path: BString,
    },
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExportStats {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of the archive.
    pub bytes: u64,
    /// Sockets, which are not in it.
    pub sockets: u64,
}

/// Writes a layer's or a merged tree as a tar, end marker included. Nothing is flushed beyond `out`.
pub fn export<S: ObjectSource, W: Write>(
    tree: &Tree,
    source: &S,
    out: W,
) -> Result<ExportStats, ExportError> {
    let mut exporter = Exporter {
        tree,
        source,
        out: Counting {
            inner: out,
            written: 0,
        },
        names: HashMap::new(),
        stats: ExportStats::default(),
    };
    exporter.walk()?;
    exporter.out.write_all(&[0; 1024])?;
    exporter.stats.bytes = exporter.out.written;
    Ok(exporter.stats)
}

struct Exporter<'e, S, W> {
    tree: &'e Tree,
    source: &'e S,
    out: Counting<W>,
    /// The first name of each file that has several.
    names: HashMap<TreeIno, Vec<u8>>,
    stats: ExportStats,
}

/// A directory being written: where in it the next name is, and how long the path was before it.
struct Level {
    ino: TreeIno,
    next: u32,
    path: usize,
}

impl<S: ObjectSource, W: Write> Exporter<'_, S, W> {
    /// All entries, depth first, without recursion.
    fn walk(&mut self) -> Result<(), ExportError> {
        let mut path = Vec::new();
        let mut levels = vec![self.enter(TreeIno::ROOT, b"./", 0)?];
        while let Some(level) = levels.last_mut() {
            let Some(dirent) = self.tree.child(level.ino, level.next)? else {
                path.truncate(level.path);
                levels.pop();
                continue;
            };
            level.next += 1;
            let before = path.len();
            path.extend_from_slice(dirent.name);
            match dirent.target {
                Target::Node(ino) if dirent.file_type == Some(FileType::Directory) => {
                    path.push(b'/');
                    self.check_name(&dirent, &path)?;
                    levels.push(self.enter(ino, &path, before)?);
                    continue;
                }
                Target::Node(ino) => {
                    self.check_name(&dirent, &path)?;
                    self.file(ino, &path)?;
                }
                Target::Whiteout => {
                    path.truncate(before);
                    self.mark(&[path.as_slice(), b".wh.", dirent.name].concat())?;
                }
                Target::LinkBelow => {
                    self.hard_link(&path, self.tree.link_target(&dirent)?)?;
                }
            }
            path.truncate(before);
        }
        Ok(())
    }

    /// The directory's own entry, and what has to stand before its names.
    fn enter(&mut self, ino: TreeIno, path: &[u8], before: usize) -> Result<Level, ExportError> {
        let node = self.tree.node(ino)?;
        if !node.implied {
            self.header(ino, &node, b'5', path, b"", 0)?;
        }
        if node.opaque {
            let prefix = if ino == TreeIno::ROOT { b"" } else { path };
            self.mark(&[prefix, b".wh..wh..opq"].concat())?;
        }
        Ok(Level {
            ino,
            next: 0,
            path: before,
        })
    }

    /// In a layer a whiteout's name on anything else would delete what is below.
    fn check_name(&self, dirent: &Dirent<'_>, path: &[u8]) -> Result<(), ExportError> {
        if self.tree.kind() == TreeKind::Layer && dirent.name.starts_with(b".wh.") {
            return Err(ExportError::WhiteoutName { path: path.into() });
        }
        Ok(())
    }

    fn file(&mut self, ino: TreeIno, path: &[u8]) -> Result<(), ExportError> {
        let node = self.tree.node(ino)?;
        if node.nlink > 1 {
            if let Some(first) = self.names.get(&ino) {
                let first = first.clone();
                return self.hard_link(path, &first);
            }
            self.names.insert(ino, path.to_vec());
        }
        let link = match node.file_type {
            FileType::Symlink => self.tree.symlink_target(ino)?,
            _ => b"",
        };
        let kind = match node.file_type {
            FileType::Regular => b'0',
            FileType::Symlink => b'2',
            FileType::CharDevice => b'3',
            FileType::BlockDevice => b'4',
            FileType::Directory => b'5',
            FileType::Fifo => b'6',
            FileType::Socket => {
                self.stats.sockets += 1;
                return Ok(());
            }
        };
        let size = if kind == b'0' { node.size } else { 0 };
        self.header(ino, &node, kind, path, link, size)?;
        match node.object {
            Some(object) => self.content(path, self.tree.object_id(object)?, size),
            None => Ok(()),
        }
    }

    fn header(
        &mut self,
        ino: TreeIno,
        node: &Node,
        kind: u8,
        path: &[u8],
        link: &[u8],
        size: u64,
    ) -> Result<(), ExportError> {
        let mut xattrs = Vec::new();
        for xattr in self.tree.xattrs(ino)? {
            xattrs.push(xattr?);
        }
        let record = Record {
            path,
            link,
            kind,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            size,
            mtime: node.mtime,
            rdev: node.rdev,
            xattrs: &xattrs,
        };
        self.stats.entries += 1;
        Ok(write_record(&mut self.out, &record)?)
    }

    fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), ExportError> {
        self.stats.entries += 1;
        Ok(write_record(
            &mut self.out,
            &Record {
                link: target,
                ..Record::bare(path, b'1')
            },
        )?)
    }

    /// A whiteout or opaque mark: an empty file.
    fn mark(&mut self, path: &[u8]) -> Result<(), ExportError> {
        self.stats.entries += 1;
        Ok(write_record(&mut self.out, &Record::bare(path, b'0'))?)
    }

    fn content(&mut self, path: &[u8], id: ObjectId, size: u64) -> Result<(), ExportError> {
        let unreadable = |source| ExportError::Content {
            path: path.into(),
            source,
        };
        let mut reader = self.source.open(id).map_err(unreadable)?.take(size);
        let mut hasher = ObjectHasher::new();
        let mut buffer = vec![0; 64 * 1024];
        let mut left = size;
        while left > 0 {
            let count = match reader.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(unreadable)?,
            };
            let piece = buffer.get(..count).unwrap_or_default();
            if piece.is_empty() {
                return Err(ExportError::Damaged {
                    path: path.into(),
                    id,
                });
            }
            hasher.update(piece);
            self.out.write_all(piece)?;
            left = left.saturating_sub(count as u64);
        }
        if hasher.finish() != id {
            return Err(ExportError::Damaged {
                path: path.into(),
                id,
            });
        }
        Ok(super::record::pad(&mut self.out, size)?)
    }
}

struct Counting<W> {
    inner: W,
    written: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.written = self.written.saturating_add(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
