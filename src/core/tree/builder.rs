//! Builds one layer's tree from entries in the order of its tar.
//!
//! Invariant: after each call the builder holds what extracting the entries so far would leave (a
//! later entry replaces an earlier one), and beside it what they delete from the layers below. A
//! path through a symbolic link of the same layer leads where the link does, to a directory that
//! the layer has by then; a link out of the root or to nothing leads nowhere.
//!
//! Whiteouts and opaque marks are kept apart from the entries and joined with them at the end,
//! since they speak of the layers below only, wherever in the tar they stand.

use bstr::BString;

use super::error::{BuildError, TreeError};
use super::format::{MAX_DEPTH, NANOS_PER_SEC, NONE, valid_name, valid_symlink};
use super::layer::{self, PlacedContents};
use super::names::{Name, Names};
use super::reader::Tree;
use super::types::{FileType, Kind, Meta, Rdev, Timestamp};
use super::writer::{self, Heap, WriteError};
use super::xattr;
use crate::digest::{DiffId, ObjectId, ObjectIds, Sha256Digest};

/// Symbolic links on the way to one entry: Linux's own limit.
const MAX_LINKS: usize = 40;

/// Components of link targets that are walked for one layer: a second of work. Real layers have a
/// few at most, but two long links named by millions of entries would keep a processor busy for
/// hours.
pub(super) const MAX_FOLLOWED: u64 = 1 << 23;

/// A layer's tree under construction.
#[derive(Debug)]
pub struct LayerBuilder {
    /// The root first. Directories that were replaced stay here and are not reached.
    dirs: Vec<BuilderDir>,
    /// Files that are no directories; hard links share one.
    pub(super) leaves: Vec<Leaf>,
    /// The contents of regular files.
    pub(super) contents: ObjectIds,
    pub(super) symlinks: Heap,
    /// Sets of extended attributes, as the format has them.
    pub(super) xattrs: Heap,
    /// The names in all directories.
    pub(super) names: Names,
    /// Paths in the layers below, as hard links name them.
    pub(super) links_below: Vec<Box<[u8]>>,
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
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct DirId(u32);

/// The place of a file in [`LayerBuilder::leaves`], which only grows.
#[derive(Debug, Copy, Clone)]
pub(super) struct LeafId(pub(super) u32);

pub(super) const ROOT: DirId = DirId(0);

#[derive(Debug, Default)]
pub(super) struct BuilderDir {
    /// None: implied by an entry below it.
    pub(super) attributes: Option<Attributes>,
    pub(super) opaque: bool,
}

#[derive(Debug, Copy, Clone)]
pub(super) enum Entry {
    Dir(DirId),
    Leaf(LeafId),
    /// The place of a path in [`LayerBuilder::links_below`].
    LinkBelow(u32),
}

#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) attributes: Attributes,
    pub(super) kind: LeafKind,
}

/// A [`Kind`] in few bytes.
#[derive(Debug)]
pub(super) enum LeafKind {
    Regular {
        size: u64,
        elf: bool,
        /// The number of its content in [`LayerBuilder::contents`].
        /// [`NONE`]: it is empty.
        object: u32,
    },
    /// The place of its target in [`LayerBuilder::symlinks`].
    Symlink(u32),
    /// A device, a named pipe or a socket.
    Special(FileType, Rdev),
}

#[derive(Debug)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    /// The place of the set in [`LayerBuilder::xattrs`].
    /// [`NONE`]: there are none.
    pub(super) xattrs: u32,
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
            contents: ObjectIds::default(),
            symlinks: Heap::default(),
            xattrs: Heap::default(),
            names: Names::default(),
            links_below: Vec::new(),
            followed: 0,
        }
    }

    /// Adds a file. An empty path is the root. A directory over a directory keeps what is in it
    /// and takes the new attributes; anything else replaces what this layer had at the path.
    pub fn insert(&mut self, path: &[&[u8]], meta: Meta, kind: Kind) -> Result<(), BuildError> {
        let attributes = self.attributes(path, meta)?;
        check_kind(path, &kind)?;
        let special = |file_type, rdev| LeafKind::Special(file_type, rdev);
        let kind = match kind {
            Kind::Directory => {
                let dir = self.directory(path)?;
                self.dir_mut(dir).attributes = Some(attributes);
                return Ok(());
            }
            Kind::Regular { size, object, elf } => LeafKind::Regular {
                size,
                elf,
                object: object.map_or(Ok(NONE), |id| self.content(id))?,
            },
            Kind::Symlink(target) => {
                LeafKind::Symlink(self.symlinks.intern(&target, "bytes of names")?)
            }
            Kind::CharDevice(rdev) => special(FileType::CharDevice, rdev),
            Kind::BlockDevice(rdev) => special(FileType::BlockDevice, rdev),
            Kind::Fifo => special(FileType::Fifo, Rdev::default()),
            Kind::Socket => special(FileType::Socket, Rdev::default()),
        };
        let leaf = push(&mut self.leaves, Leaf { attributes, kind }, "files")?;
        self.name(path)?.entry = Some(Entry::Leaf(LeafId(leaf)));
        Ok(())
    }

    /// The number of a content: they are counted as they come, here and in [`Self::insert`]. Where
    /// it is in the tree, [`Self::finish_placed`] tells.
    pub fn content(&mut self, id: ObjectId) -> Result<u32, BuildError> {
        let numbered = self.contents.insert(id);
        let (number, _) = numbered.ok_or(WriteError::Limit("contents"))?;
        Ok(number)
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
        let followed = reached.followed;
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
            Some(entry) => entry,
            None => {
                let mut below: Vec<&[u8]> = reached
                    .chain
                    .iter()
                    .skip(1)
                    .map(|(_, name)| *name)
                    .collect();
                below.extend(target.iter().skip(reached.components));
                let below = Vec::from(join(&below)).into();
                Entry::LinkBelow(push(&mut self.links_below, below, "names")?)
            }
        };
        self.followed = self.followed.saturating_add(followed);
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
        Ok(self.finish_placed(diff)?.0)
    }

    /// [`Self::finish`], and where its contents are.
    pub fn finish_placed(self, diff: DiffId) -> Result<(Vec<u8>, PlacedContents), BuildError> {
        Ok(layer::write(self, diff)?)
    }

    /// The bytes of the tree of a layer whose tar is written from it; `diff_id` gives that tar's.
    pub fn finish_with<E: From<BuildError> + From<TreeError>>(
        self,
        diff_id: impl FnOnce(&Tree) -> Result<DiffId, E>,
    ) -> Result<(DiffId, Vec<u8>), E> {
        let nameless = DiffId(Sha256Digest::from_bytes([0; 32]));
        let tree = Tree::from_bytes(self.finish(nameless)?)?;
        let diff_id = diff_id(&tree)?;
        Ok((diff_id, writer::rename(tree.into_bytes(), diff_id)?))
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "every DirId was made by this builder and dirs only grows"
    )]
    pub(super) fn dir(&self, dir: DirId) -> &BuilderDir {
        &self.dirs[dir.0 as usize]
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "every DirId was made by this builder and dirs only grows"
    )]
    pub(super) fn dir_mut(&mut self, dir: DirId) -> &mut BuilderDir {
        &mut self.dirs[dir.0 as usize]
    }

    fn entry(&self, dir: DirId, name: &[u8]) -> Option<Entry> {
        self.names.get(dir, name)?.entry
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
                Some(Entry::Dir(dir)) => reached.chain.push((dir, name)),
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
        link: Entry,
        reached: &mut Reached<'b>,
        links: &mut usize,
    ) -> Option<()> {
        // what is left of the targets, the next component last
        let mut left: Vec<&[u8]> = Vec::new();
        let mut entry = Some(link);
        loop {
            if let Some(Entry::Leaf(id)) = entry {
                *links = links.checked_sub(1)?;
                let target = self.symlink(id)?;
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
                        reached.chain.push((dir, name));
                        None
                    }
                    other => Some(other),
                },
            };
        }
    }

    fn symlink(&self, id: LeafId) -> Option<&[u8]> {
        match self.leaves.get(id.0 as usize)?.kind {
            LeafKind::Symlink(target) => Some(self.symlinks.get(target)),
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
            current = self.make_dir(current, name)?;
        }
        Ok(current)
    }

    /// Replaces a name by a new implied directory.
    fn make_dir(&mut self, parent: DirId, name: &[u8]) -> Result<DirId, BuildError> {
        let made = DirId(push(&mut self.dirs, BuilderDir::default(), "files")?);
        self.names.get_or_add(parent, name)?.entry = Some(Entry::Dir(made));
        Ok(made)
    }

    /// The directory at a path: what is there, or a new one in place of a file or of nothing.
    fn directory(&mut self, path: &[&[u8]]) -> Result<DirId, BuildError> {
        check_path(path)?;
        let Some((name, parents)) = path.split_last() else {
            return Ok(ROOT);
        };
        let parent = self.descend(path, parents)?;
        match self.entry(parent, name) {
            Some(Entry::Dir(dir)) => Ok(dir),
            _ => self.make_dir(parent, name),
        }
    }

    fn attributes(&mut self, path: &[&[u8]], meta: Meta) -> Result<Attributes, BuildError> {
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
        let set = xattr::encode(xattrs).map_err(|source| BuildError::Xattr {
            path: join(path),
            source,
        })?;
        let place = |set: Vec<u8>| self.xattrs.intern(&set, "bytes of extended attributes");
        Ok(Attributes {
            mode,
            uid,
            gid,
            mtime,
            xattrs: set.map_or(Ok(NONE), place)?,
        })
    }

    fn name(&mut self, path: &[&[u8]]) -> Result<&mut Name, BuildError> {
        check_path(path)?;
        let (name, parents) = path.split_last().ok_or(BuildError::Root)?;
        let parent = self.descend(path, parents)?;
        Ok(self.names.get_or_add(parent, name)?)
    }
}

/// Appends to a list and gives the place.
fn push<T>(list: &mut Vec<T>, item: T, what: &'static str) -> Result<u32, WriteError> {
    let place = u32::try_from(list.len()).map_err(|_too_many| WriteError::Limit(what))?;
    list.push(item);
    Ok(place)
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
