//! Builds one layer's tree from entries in the order of its tar.
//!
//! Invariant: after each call the builder holds what extracting the entries so far would leave (a
//! later entry replaces an earlier one), and beside it what they delete from the layers below. A
//! path through a symbolic link of the same layer leads where the link does, to a directory that
//! the layer has by then; a link out of the root or to nothing leads nowhere.
//!
//! Whiteouts and opaque marks are kept apart from the entries and joined with them at the end,
//! since they speak of the layers below only, wherever in the tar they stand.

use std::collections::BTreeMap;

use bstr::BString;

use super::error::TreeError;
use super::format::{MAX_DEPTH, NANOS_PER_SEC, valid_name, valid_symlink};
use super::layer;
use super::reader::Tree;
use super::types::{Kind, Meta, Timestamp};
use super::writer::{self, WriteError};
use super::xattr::{self, XattrError};
use crate::digest::{DiffId, Sha256Digest};

/// Why an entry is refused. Each error names the entry by its path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A component of the path is not a file name.
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
        /// The file or symbolic link.
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
        /// The target.
        target: BString,
    },
    /// A hard link whose target would have to be reached through a file or a symbolic link of the
    /// same layer.
    #[error(
        "{path:?}: a hard link to {target:?}, but {ancestor:?} is not a directory in this layer"
    )]
    LinkThrough {
        /// The link.
        path: BString,
        /// The target.
        target: BString,
        /// The file or symbolic link.
        ancestor: BString,
    },
    /// A symbolic link that symlink(2) would refuse.
    #[error("{path:?}: a symbolic link's target has 1 to 4095 bytes and no NUL")]
    SymlinkTarget {
        /// The link.
        path: BString,
    },
    /// Too many symbolic links.
    #[error(
        "{path:?}: the layer's paths lead through symbolic links more than {MAX_FOLLOWED} steps in all"
    )]
    TooManySteps {
        /// The entry.
        path: BString,
    },
    /// Nanoseconds of 1,000,000,000 or more.
    #[error("{path:?}: a time with {nanos} nanoseconds")]
    Time {
        /// The entry.
        path: BString,
        /// The value.
        nanos: u32,
    },
    /// A regular file has an object exactly if it has bytes, and not more than a file offset can
    /// say.
    #[error("{path:?}: a file of {size} bytes {} an object", if *.object { "with" } else { "without" })]
    Content {
        /// The entry.
        path: BString,
        /// The value.
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

/// Symbolic links on the way to one entry: Linux's own limit.
const MAX_LINKS: usize = 40;

/// Components of link targets that are walked for one layer: a second of work. Real layers have a
/// few at most, but two long links named by millions of entries would keep a processor busy for
/// hours.
const MAX_FOLLOWED: u64 = 1 << 23;

/// A layer's tree under construction.
#[derive(Debug)]
pub struct LayerBuilder {
    /// The root first. Directories that were replaced stay here and are not reached.
    dirs: Vec<BuilderDir>,
    /// Files that are no directories; hard links share one.
    pub(super) leaves: Vec<Leaf>,
    /// Counts against [`MAX_FOLLOWED`].
    followed: u64,
}

/// How far a path leads in what the layer has.
struct Reached<'b> {
    /// The directories from the root on, each but the root with its name.
    chain: Vec<(DirId, &'b [u8])>,
    /// So many components of the path lead there; the next is not in the layer.
    components: usize,
    /// Components of link targets that were walked.
    followed: u64,
}

impl Reached<'_> {
    fn dir(&self) -> DirId {
        self.chain.last().map_or(ROOT, |(dir, _)| *dir)
    }
}

/// The place of a directory in [`LayerBuilder::dirs`], which only grows.
#[derive(Debug, Copy, Clone)]
pub(super) struct DirId(usize);

/// The place of a file in [`LayerBuilder::leaves`], which only grows.
#[derive(Debug, Copy, Clone)]
pub(super) struct LeafId(pub(super) usize);

pub(super) const ROOT: DirId = DirId(0);

#[derive(Debug, Default)]
pub(super) struct BuilderDir {
    /// None: implied by an entry below it.
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
    /// An empty layer.
    pub fn new() -> Self {
        Self {
            dirs: vec![BuilderDir::default()],
            leaves: Vec::new(),
            followed: 0,
        }
    }

    /// Adds a file. An empty path is the root. A directory over a directory keeps what is in it
    /// and takes the new attributes; anything else replaces what this layer had at the path.
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

    /// Makes `path` another name of the file at `target`. If this layer has no such file so far,
    /// it is one of the layers below and [`merge`](super::merge) finds it.
    pub fn hard_link(&mut self, path: &[&[u8]], target: &[&[u8]]) -> Result<(), BuildError> {
        check_path(path)?;
        check_path(target)?;
        let (name, parents) = target.split_last().ok_or(BuildError::Root)?;
        let reached = self.follow(path, parents).map_err(|error| match error {
            BuildError::Ancestor { path, ancestor } => BuildError::LinkThrough {
                path,
                target: join(target),
                ancestor,
            },
            other => other,
        })?;
        let found = (reached.components == parents.len())
            .then(|| self.entry(reached.dir(), name))
            .flatten();
        let entry = match found {
            Some(Entry::Dir(_)) => {
                return Err(BuildError::LinkToDirectory {
                    path: join(path),
                    target: join(target),
                });
            }
            Some(entry) => entry.clone(),
            None => {
                let mut below: Vec<&[u8]> = reached
                    .chain
                    .iter()
                    .skip(1)
                    .map(|(_, name)| *name)
                    .collect();
                below.extend(target.iter().skip(reached.components));
                Entry::LinkBelow(Vec::from(join(&below)).into())
            }
        };
        self.followed = self.followed.saturating_add(reached.followed);
        self.name(path)?.entry = Some(entry);
        Ok(())
    }

    /// Deletes a name from the layers below. What this layer has there, before or after, stays.
    pub fn whiteout(&mut self, path: &[&[u8]]) -> Result<(), BuildError> {
        self.name(path)?.whiteout = true;
        Ok(())
    }

    /// Hides everything in a directory of the layers below. What this layer has in it, before or
    /// after, stays.
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

    /// The bytes of the tree of a layer whose tar is written from it; `diff_id` gives that tar's.
    pub fn finish_with<E: From<BuildError> + From<TreeError>>(
        self,
        diff_id: impl FnOnce(&Tree) -> Result<DiffId, E>,
    ) -> Result<(DiffId, Vec<u8>), E> {
        let nameless = DiffId(Sha256Digest::from_bytes([0; 32]));
        let bytes = self.finish(nameless)?;
        let tree = Tree::from_bytes(bytes.clone())?;
        let diff_id = diff_id(&tree)?;
        Ok((diff_id, writer::rename(bytes, diff_id)?))
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "every DirId was made by this builder and dirs only grows"
    )]
    pub(super) fn dir(&self, dir: DirId) -> &BuilderDir {
        &self.dirs[dir.0]
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "every DirId was made by this builder and dirs only grows"
    )]
    pub(super) fn dir_mut(&mut self, dir: DirId) -> &mut BuilderDir {
        &mut self.dirs[dir.0]
    }

    fn entry(&self, dir: DirId, name: &[u8]) -> Option<&Entry> {
        self.dir(dir).names.get(name)?.entry.as_ref()
    }

    /// Walks `parents`, on the way to `path`, as far as the layer has them; through its symbolic
    /// links too.
    fn follow<'b>(
        &'b self,
        path: &[&[u8]],
        parents: &[&'b [u8]],
    ) -> Result<Reached<'b>, BuildError> {
        let mut reached = Reached {
            chain: vec![(ROOT, b"")],
            components: 0,
            followed: 0,
        };
        let mut links = MAX_LINKS;
        for name in parents {
            match self.entry(reached.dir(), name) {
                None => return Ok(reached),
                Some(Entry::Dir(dir)) => reached.chain.push((*dir, name)),
                Some(entry) => {
                    self.follow_link(entry, &mut reached, &mut links)
                        .ok_or_else(|| BuildError::Ancestor {
                            path: join(path),
                            ancestor: join(parents.get(..=reached.components).unwrap_or_default()),
                        })?;
                    if self.followed.saturating_add(reached.followed) > MAX_FOLLOWED {
                        return Err(BuildError::TooManySteps { path: join(path) });
                    }
                }
            }
            reached.components += 1;
        }
        Ok(reached)
    }

    /// Goes where a symbolic link in the directory reached so far leads, `links` of them at most.
    /// None: to no directory that the layer has, or out of the root.
    fn follow_link<'b>(
        &'b self,
        link: &'b Entry,
        reached: &mut Reached<'b>,
        links: &mut usize,
    ) -> Option<()> {
        // what is left of the targets, the next component last
        let mut left: Vec<&[u8]> = Vec::new();
        let mut entry = Some(link);
        loop {
            if let Some(Entry::Leaf(id)) = entry {
                *links = links.checked_sub(1)?;
                let target = self.symlink(*id)?;
                if target.starts_with(b"/") {
                    reached.chain.truncate(1);
                }
                left.extend(target.split(|byte| *byte == b'/').rev());
            } else if entry.is_some() {
                // a hard link into the layers below
                return None;
            }
            let Some(name) = left.pop() else {
                return Some(());
            };
            reached.followed += 1;
            entry = match name {
                b"" | b"." => None,
                b".." if reached.chain.len() > 1 => {
                    reached.chain.pop();
                    None
                }
                name => match self.entry(reached.dir(), name)? {
                    Entry::Dir(dir) => {
                        reached.chain.push((*dir, name));
                        None
                    }
                    other => Some(other),
                },
            };
        }
    }

    fn symlink(&self, id: LeafId) -> Option<&[u8]> {
        match &self.leaves.get(id.0)?.kind {
            Kind::Symlink(target) => Some(target),
            _ => None,
        }
    }

    /// The directory at `parents`, on the way to `path`. Missing ones are made, as implied.
    fn descend(&mut self, path: &[&[u8]], parents: &[&[u8]]) -> Result<DirId, BuildError> {
        let reached = self.follow(path, parents)?;
        let (mut current, components) = (reached.dir(), reached.components);
        // Links may lead deeper than the path is long.
        if reached.chain.len() - 1 + path.len() - components > MAX_DEPTH {
            return Err(BuildError::TooDeep { path: join(path) });
        }
        self.followed = self.followed.saturating_add(reached.followed);
        for name in parents.iter().skip(components) {
            current = self.make_dir(current, name);
        }
        Ok(current)
    }

    /// Replaces a name by a new implied directory.
    fn make_dir(&mut self, parent: DirId, name: &[u8]) -> DirId {
        let made = DirId(self.dirs.len());
        self.dirs.push(BuilderDir::default());
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
        match self.entry(parent, name) {
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
