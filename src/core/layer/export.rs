//! A tree becomes a tar: the way out, for `export` and `save`.
//!
//! Invariant: one tree gives one sequence of bytes. Entries come in the order of the tree (a
//! directory before what is in it, names sorted bytewise), each as a ustar header, with a PAX
//! header before it for what ustar cannot say: long names, fractions of seconds and times before
//! 1970, large numbers, extended attributes. A file with several names comes with the first; the
//! others are hard links. A layer's opaque mark is the first entry of its directory, whiteouts
//! stand among the names; implied directories are not named.
//!
//! Sockets cannot be in a tar; they are left out and counted. Every content is hashed on its way
//! out: one that is not what its name says is an error, never an archive with wrong bytes.

use std::collections::HashMap;
use std::io::{self, Read, Seek, Write};

use bstr::BString;
use thiserror::Error;

use super::entry_header::{EntryHeader, encode, padding};
use super::recipe::RECIPE_BYTES;
use crate::digest::{ObjectHasher, ObjectId};
use crate::recipe::{Recorder, Recording};
use crate::store::{Store, Transaction};
use crate::tree::{
    Dirent, FileType, Node, ObjectRef, PlacedContents, Target, Tree, TreeError, TreeIno, TreeKind,
};

/// Where contents come from: the store.
pub trait ObjectSource {
    /// Reads one content.
    type Reader: Read + Seek;

    /// The content of this name.
    fn open(&self, id: ObjectId) -> io::Result<Self::Reader>;
}

impl ObjectSource for Store {
    type Reader = std::fs::File;

    fn open(&self, id: ObjectId) -> io::Result<Self::Reader> {
        Ok(self.open_object(id)?)
    }
}

impl ObjectSource for Transaction<'_> {
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

/// Writes a layer's or a merged tree as a tar, end marker included. Nothing is flushed beyond
/// `out`.
///
/// Frozen: of a layer's tree these bytes are version 1 of what canonical recipes stand for
/// (`recipe/FORMAT.md`).
pub fn export<S: ObjectSource, W: Write>(
    tree: &Tree,
    source: &S,
    out: W,
) -> Result<ExportStats, ExportError> {
    let mut outlet = Archive {
        source,
        inner: out,
        written: 0,
    };
    let mut stats = write_tree(tree, &mut outlet)?;
    stats.bytes = outlet.written;
    Ok(stats)
}

/// What the tar of a tree would be, its contents by the numbers of the tree's builder.
pub(super) fn record(tree: &Tree, placed: &PlacedContents) -> Result<Recording, ExportError> {
    let mut numbered = Numbered {
        recorder: Recorder::new(RECIPE_BYTES)?,
        numbers: placed.numbers(),
    };
    write_tree(tree, &mut numbered)?;
    Ok(numbered.recorder.finish()?)
}

/// The content of a file.
struct Content {
    object: ObjectRef,
    id: ObjectId,
    size: u64,
}

/// Where a tar goes.
trait Outlet {
    /// It goes on with these bytes.
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), ExportError>;

    /// It goes on with a content.
    fn content(&mut self, path: &[u8], content: Content) -> Result<(), ExportError>;
}

fn write_tree<O: Outlet>(tree: &Tree, out: &mut O) -> Result<ExportStats, ExportError> {
    let mut exporter = Exporter {
        tree,
        out,
        names: HashMap::new(),
        stats: ExportStats::default(),
    };
    exporter.walk()?;
    exporter.out.bytes(&[0; 1024])?;
    Ok(exporter.stats)
}

struct Exporter<'e, O> {
    tree: &'e Tree,
    out: &'e mut O,
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

impl<O: Outlet> Exporter<'_, O> {
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
                    self.link_below(&path, self.tree.link_target(&dirent)?)?;
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
                // with all attributes: Docker sets those of a hard link's header on the file
                return self.header(ino, &node, b'1', path, &first, 0);
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
            Some(object) => {
                let id = self.tree.object_id(object)?;
                self.out.content(path, Content { object, id, size })?;
                self.out.bytes(padding(size))
            }
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
        self.entry(&EntryHeader {
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
        })
    }

    fn entry(&mut self, entry: &EntryHeader<'_>) -> Result<(), ExportError> {
        self.stats.entries += 1;
        self.out.bytes(&encode(entry))
    }

    /// A hard link into the layers below, whose attributes the tree does not know.
    fn link_below(&mut self, path: &[u8], target: &[u8]) -> Result<(), ExportError> {
        self.entry(&EntryHeader {
            link: target,
            ..EntryHeader::bare(path, b'1')
        })
    }

    /// A whiteout or opaque mark: an empty file.
    fn mark(&mut self, path: &[u8]) -> Result<(), ExportError> {
        self.entry(&EntryHeader::bare(path, b'0'))
    }
}

/// A tar that is only recorded.
struct Numbered {
    recorder: Recorder,
    /// The numbers of the tree's objects.
    numbers: Vec<u32>,
}

impl Outlet for Numbered {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        Ok(self.recorder.literal(bytes)?)
    }

    fn content(&mut self, _: &[u8], content: Content) -> Result<(), ExportError> {
        let ObjectRef(object) = content.object;
        let number = self.numbers.get(object as usize);
        let number = number.ok_or(TreeError::Corrupt {
            what: "an object outside the table",
            at: object,
        })?;
        Ok(self.recorder.object(*number, 0, content.size)?)
    }
}

/// A tar with its contents, each hashed on its way.
struct Archive<'e, S, W> {
    source: &'e S,
    inner: W,
    written: u64,
}

impl<S: ObjectSource, W: Write> Outlet for Archive<'_, S, W> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.inner.write_all(bytes)?;
        self.written = self.written.saturating_add(bytes.len() as u64);
        Ok(())
    }

    fn content(&mut self, path: &[u8], content: Content) -> Result<(), ExportError> {
        let Content { id, size, .. } = content;
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
            self.bytes(piece)?;
            left = left.saturating_sub(count as u64);
        }
        if hasher.finish() != id {
            return Err(ExportError::Damaged {
                path: path.into(),
                id,
            });
        }
        Ok(())
    }
}
