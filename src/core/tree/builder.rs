//! Builds one layer's tree from entries in the order of its tar.
//!
//! Invariant: after each call the builder holds what extracting the entries so far would leave (a later entry replaces an
//! earlier one), and beside it what they delete from the layers below. Nothing is ever reached through a symbolic link.
//!
//! Whiteouts and opaque marks are kept apart from the entries and joined with them at the end, since they speak of the
//! layers below only, wherever in the tar they stand.

use std::collections::BTreeMap;

use bstr::BString;

use super::format::{MAX_DEPTH, NANOS_PER_SEC, valid_name, valid_symlink};
use super::layer;
use super::types::{Kind, Meta, Timestamp};
use super::writer::WriteError;
use super::xattr::{self, XattrError};
use crate::digest::DiffId;

/// Why an entry can't be in a layer. Each names the entry by its path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A component of the path is no file name.
    #[error(
        "{path:?}: {name:?} is not a file name (1 to 255 bytes, no slash, no NUL, not . or ..)"
    )]
    Name {
        /// The entry.
        path: BString,
        /// The component.
        name: BString,
    },
    /// More components than a tree may nest.
    #[error("{path:?}: more than {MAX_DEPTH} directories deep")]
    TooDeep {
        /// The entry.
        path: BString,
    },
    /// The entry would have to be reached through a file or a symbolic link of the same layer.
    #[error("{path:?}: {ancestor:?} is not a directory in this layer")]
    Ancestor {
        /// The entry.
        path: BString,
        /// What is in the way.
        ancestor: BString,
    },
    /// The root can only be a directory, and can't be deleted.
    #[error("the root of a layer can only be a directory")]
    Root,
    /// A hard link to a directory.
    #[error("{path:?}: a hard link to the directory {target:?}")]
    LinkToDirectory {
        /// The link.
        path: BString,
        /// What it should be the same file as.
        target: BString,
    },
    /// A hard link whose target would have to be reached through a file or a symbolic link of the same layer.
    #[error(
        "{path:?}: a hard link to {target:?}, but {ancestor:?} is not a directory in this layer"
    )]
    LinkThrough {
        /// The link.
        path: BString,
        /// What it should be the same file as.
        target: BString,
        /// What is in the way.
        ancestor: BString,
    },
    /// A symbolic link that symlink(2) would refuse.
    #[error("{path:?}: a symbolic link's target has 1 to 4095 bytes and no NUL")]
    SymlinkTarget {
        /// The link.
        path: BString,
    },
    /// Nanoseconds of a whole second or more.
    #[error("{path:?}: a time with {nanos} nanoseconds")]
    Time {
        /// The entry.
        path: BString,
        /// What the entry says.
        nanos: u32,
    },
    /// A regular file has an object exactly if it has bytes, and not more than a file offset can say.
    #[error("{path:?}: a file of {size} bytes {} an object", if *.object { "with" } else { "without" })]
    Content {
        /// The entry.
        path: BString,
        /// What the entry says.
        size: u64,
        /// Whether an object was given.
        object: bool,
    },
    /// Extended attributes that Linux could not hold.
    #[error("{path:?}: {source}")]
    Xattr {
        /// The entry.
        path: BString,
        /// What is wrong with them.
        source: XattrError,
    },
    /// The layer is too large, or contradicts itself.
    #[error("{0}")]
    Write(#[from] WriteError),
}

/// A layer's tree in the making.
#[derive(Debug)]
pub struct LayerBuilder {
    /// The root first. Directories that were replaced stay here and are not reached.
    dirs: Vec<Dir>,
    /// Files that are no directories; hard links share one.
    pub(super) leaves: Vec<Leaf>,
}

/// The place of a directory in [`LayerBuilder::dirs`], which only grows.
#[derive(Debug, Copy, Clone)]
pub(super) struct DirId(usize);

/// The place of a file in [`LayerBuilder::leaves`], which only grows.
#[derive(Debug, Copy, Clone)]
pub(super) struct LeafId(pub(super) usize);

pub(super) const ROOT: DirId = DirId(0);

#[derive(Debug, Default)]
pub(super) struct Dir {
    /// None: implied by what is in it.
    pub(super) attributes: Option<Attributes>,
    pub(super) opaque: bool,
    pub(super) names: BTreeMap<Box<[u8]>, Name>,
}

/// A name in a directory: what this layer has there, and whether it deletes what is below.
#[derive(Debug, Default)]
pub(super) struct Name {
    pub(super) entry: Option<Entry>,
    pub(super) whiteout: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Entry {
    Dir(DirId),
    Leaf(LeafId),
    LinkBelow(Box<[u8]>),
}

#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) attributes: Attributes,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    /// As the format has them.
    pub(super) xattrs: Option<Vec<u8>>,
}

impl Default for LayerBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl LayerBuilder {
    /// A layer that changes nothing.
    pub fn new() -> Self {
        Self {
            dirs: vec![Dir::default()],
            leaves: Vec::new(),
        }
    }

    /// Adds a file. An empty path is the root. A directory over a directory keeps what is in it and takes the new
    /// attributes; anything else replaces what this layer had at the path.
    pub fn insert(&mut self, path: &[&[u8]], meta: Meta, kind: Kind) -> Result<(), BuildError> {
        let attributes = attributes(path, meta)?;
        check_kind(path, &kind)?;
        if kind == Kind::Directory {
            let dir = self.directory(path)?;
            self.dir_mut(dir).attributes = Some(attributes);
            return Ok(());
        }
        let leaf = LeafId(self.leaves.len());
        self.name(path)?.entry = Some(Entry::Leaf(leaf));
        self.leaves.push(Leaf { attributes, kind });
        Ok(())
    }

    /// Makes `path` another name of the file at `target`. If this layer has no such file so far, it is one of the layers
    /// below and [`merge`](super::merge) finds it.
    pub fn hard_link(&mut self, path: &[&[u8]], target: &[&[u8]]) -> Result<(), BuildError> {
        check_path(path)?;
        check_path(target)?;
        let entry = match self.find(target) {
            Err(ancestor) => {
                return Err(BuildError::LinkThrough {
                    path: join(path),
                    target: join(target),
                    ancestor,
                });
            }
            Ok(Some(Entry::Dir(_))) => {
                return Err(BuildError::LinkToDirectory {
                    path: join(path),
                    target: join(target),
                });
            }
            Ok(Some(entry)) => entry.clone(),
            Ok(None) => Entry::LinkBelow(Vec::from(join(target)).into()),
        };
        self.name(path)?.entry = Some(entry);
        Ok(())
    }

    /// Deletes a name from the layers below. What this layer has there, before or after, stays.
    pub fn whiteout(&mut self, path: &[&[u8]]) -> Result<(), BuildError> {
        self.name(path)?.whiteout = true;
        Ok(())
    }

    /// Hides everything in a directory of the layers below. What this layer has in it, before or after, stays.
    pub fn opaque(&mut self, dir: &[&[u8]]) -> Result<(), BuildError> {
        check_path(dir)?;
        let dir = self.descend(dir, dir)?;
        self.dir_mut(dir).opaque = true;
        Ok(())
    }

    /// The bytes of the tree, which says that it is this layer's.
    pub fn finish(self, diff: DiffId) -> Result<Vec<u8>, BuildError> {
        Ok(layer::write(self, diff)?)
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "every DirId was made by this builder and dirs only grows"
    )]
    pub(super) fn dir(&self, dir: DirId) -> &Dir {
        &self.dirs[dir.0]
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "every DirId was made by this builder and dirs only grows"
    )]
    pub(super) fn dir_mut(&mut self, dir: DirId) -> &mut Dir {
        &mut self.dirs[dir.0]
    }

    /// What this layer has at a path; an error is the ancestor that is no directory.
    fn find(&self, path: &[&[u8]]) -> Result<Option<&Entry>, BString> {
        let mut current = &Entry::Dir(ROOT);
        for (depth, name) in path.iter().enumerate() {
            let Entry::Dir(dir) = current else {
                return Err(join(path.get(..depth).unwrap_or_default()));
            };
            match self
                .dir(*dir)
                .names
                .get(*name)
                .and_then(|name| name.entry.as_ref())
            {
                None => return Ok(None),
                Some(entry) => current = entry,
            }
        }
        Ok(Some(current))
    }

    /// The directory at `parents`, on the way to `path`. Missing ones are made, as implied.
    fn descend(&mut self, path: &[&[u8]], parents: &[&[u8]]) -> Result<DirId, BuildError> {
        let mut current = ROOT;
        for (depth, name) in parents.iter().enumerate() {
            let known = self
                .dir(current)
                .names
                .get(*name)
                .and_then(|name| name.entry.as_ref());
            current = match known {
                Some(Entry::Dir(dir)) => *dir,
                None => self.make_dir(current, name),
                Some(Entry::Leaf(_) | Entry::LinkBelow(_)) => {
                    let ancestor = join(parents.get(..=depth).unwrap_or_default());
                    return Err(BuildError::Ancestor {
                        path: join(path),
                        ancestor,
                    });
                }
            };
        }
        Ok(current)
    }

    /// Puts a new implied directory at a name, in place of what is there.
    fn make_dir(&mut self, parent: DirId, name: &[u8]) -> DirId {
        let made = DirId(self.dirs.len());
        self.dirs.push(Dir::default());
        self.dir_mut(parent)
            .names
            .entry(name.into())
            .or_default()
            .entry = Some(Entry::Dir(made));
        made
    }

    /// The directory at a path: what is there, or a new one in place of a file or of nothing.
    fn directory(&mut self, path: &[&[u8]]) -> Result<DirId, BuildError> {
        check_path(path)?;
        let Some((name, parents)) = path.split_last() else {
            return Ok(ROOT);
        };
        let parent = self.descend(path, parents)?;
        match self
            .dir(parent)
            .names
            .get(*name)
            .and_then(|name| name.entry.as_ref())
        {
            Some(Entry::Dir(dir)) => Ok(*dir),
            _ => Ok(self.make_dir(parent, name)),
        }
    }

    fn name(&mut self, path: &[&[u8]]) -> Result<&mut Name, BuildError> {
        check_path(path)?;
        let (name, parents) = path.split_last().ok_or(BuildError::Root)?;
        let parent = self.descend(path, parents)?;
        Ok(self
            .dir_mut(parent)
            .names
            .entry((*name).into())
            .or_default())
    }
}

fn join(path: &[&[u8]]) -> BString {
    path.join(b"/".as_slice()).into()
}

fn check_path(path: &[&[u8]]) -> Result<(), BuildError> {
    if path.len() > MAX_DEPTH {
        return Err(BuildError::TooDeep { path: join(path) });
    }
    match path.iter().find(|name| !valid_name(name)) {
        None => Ok(()),
        Some(name) => Err(BuildError::Name {
            path: join(path),
            name: (*name).into(),
        }),
    }
}

fn check_kind(path: &[&[u8]], kind: &Kind) -> Result<(), BuildError> {
    match kind {
        Kind::Regular { size, object, .. }
            if (*size == 0) != object.is_none() || i64::try_from(*size).is_err() =>
        {
            Err(BuildError::Content {
                path: join(path),
                size: *size,
                object: object.is_some(),
            })
        }
        Kind::Symlink(target) if !valid_symlink(target) => {
            Err(BuildError::SymlinkTarget { path: join(path) })
        }
        _ => Ok(()),
    }
}

fn attributes(path: &[&[u8]], meta: Meta) -> Result<Attributes, BuildError> {
    let Meta {
        mode,
        uid,
        gid,
        mtime,
        xattrs,
    } = meta;
    if mtime.nanos >= NANOS_PER_SEC {
        return Err(BuildError::Time {
            path: join(path),
            nanos: mtime.nanos,
        });
    }
    let xattrs = xattr::encode(xattrs).map_err(|source| BuildError::Xattr {
        path: join(path),
        source,
    })?;
    Ok(Attributes {
        mode,
        uid,
        gid,
        mtime,
        xattrs,
    })
}
