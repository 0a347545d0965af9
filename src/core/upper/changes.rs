//! What an upper at rest changes of the tree below it: the walk behind `diff` and `commit`.
//!
//! Invariant: applied to the tree, the changes give exactly what a mount of the upper shows, as a
//! layer can say it, without redirects: a renamed directory is opaque at its new place, and what
//! it still shows of the tree is listed there file by file. A tree file with several names that
//! was changed through one of them, or that lies in a renamed directory, is listed under all its
//! names: a layer cannot link into the layers below it everywhere.
//!
//! The walk costs what the upper has, and what renamed directories show of the tree.

mod origins;
mod untouched;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bstr::BString;
use rustix::fs::Statx;
use rustix::io::Errno;

use super::Upper;
use super::directories::open_directory;
use super::name_at::NameAt;
use super::scan::{self, Listed, MarkError, Marks};
use crate::tree::{FileType, Target, Tree, TreeError, TreeIno};

/// Why an upper's changes cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// The tree is damaged.
    #[error("cannot read the image's tree")]
    Tree(#[from] TreeError),
    /// The host refuses.
    #[error("cannot read {path:?} of the upper")]
    Host {
        /// The file.
        path: BString,
        /// What the host says.
        source: Errno,
    },
    /// A file's marks mean nothing.
    #[error("{path:?} of the upper")]
    Marks {
        /// The file.
        path: BString,
        /// What is wrong with them.
        source: MarkError,
    },
}

/// One change. Its path has no slash in front; the root's is empty.
#[derive(Debug)]
pub struct Change<'c> {
    /// Where.
    pub path: &'c [u8],
    /// What is there now.
    pub now: Now<'c>,
}

/// What is at a path.
#[derive(Debug)]
pub enum Now<'c> {
    /// Nothing; the tree has a file there.
    Nothing,
    /// A directory that shows nothing of the tree's directory there. A [`Now::Upper`] of it comes
    /// first.
    Opaque,
    /// A file or a directory of the upper.
    Upper {
        /// The file.
        name_at: NameAt<'c>,
        /// Its attributes.
        stat: &'c Statx,
        /// Its marks.
        marks: &'c Marks<TreeIno>,
    },
    /// A file of the tree from another place; or a directory of the tree, as it is, in which only a
    /// file's other name is listed.
    Tree(TreeIno),
    /// Another name of the file at this path, which came before.
    Link(&'c [u8]),
}

/// Mount points that are left out where they are empty and the tree has no such file: the engine
/// made them.
pub type MountPoints = BTreeSet<Vec<u8>>;

/// Gives every change to `each`, directories before what is in them, names sorted.
pub fn changes<E: From<ChangesError>>(
    upper: &Upper,
    tree: &Tree,
    mount_points: &MountPoints,
    each: impl FnMut(&Change<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let indexed = upper.indexed().map_err(at(b"work/index"))?;
    let mut walk = Walk {
        upper,
        tree,
        mount_points,
        each,
        indexed: indexed
            .into_iter()
            .filter_map(|number| u32::try_from(number).ok().map(TreeIno))
            .collect(),
        places: HashMap::new(),
        inodes: HashMap::new(),
        linked: BTreeMap::new(),
        named: BTreeSet::new(),
        level: Vec::new(),
    };
    walk.root()?;
    walk.other_names()
}

/// Adds the path to an error of the host.
fn at(path: &[u8]) -> impl FnOnce(Errno) -> ChangesError {
    let path = BString::from(path);
    move |source| ChangesError::Host { path, source }
}

/// Where a directory of the tree shows its children.
struct Place {
    path: Vec<u8>,
    /// Names that the upper has or hides there.
    hidden: HashSet<Box<[u8]>>,
    /// All that it shows is listed.
    listed: bool,
}

/// A path, and the tree's directories on the way.
type Untouched = (Vec<u8>, Vec<(Vec<u8>, TreeIno)>);

/// A directory of the upper that is to be walked.
struct Pending {
    path: Vec<u8>,
    /// How deep it lies.
    depth: usize,
    /// The tree's directory whose children it shows.
    below: Option<TreeIno>,
    /// The tree's directory at its path, unless a directory above it is opaque.
    here: Option<TreeIno>,
}

struct Walk<'w, F> {
    upper: &'w Upper,
    tree: &'w Tree,
    mount_points: &'w MountPoints,
    each: F,
    indexed: BTreeSet<TreeIno>,
    places: HashMap<TreeIno, Place>,
    /// The first path of each file of the upper with several names.
    inodes: HashMap<(u32, u32, u64), Vec<u8>>,
    /// The first path of each tree file with several names that is listed.
    linked: BTreeMap<TreeIno, Vec<u8>>,
    /// Directories of the tree that are listed for the names of files in them.
    named: BTreeSet<TreeIno>,
    /// The open directories on the way to the current one.
    level: Vec<OwnedFd>,
}

impl<E: From<ChangesError>, F: FnMut(&Change<'_>) -> Result<(), E>> Walk<'_, F> {
    fn give(&mut self, path: &[u8], now: Now<'_>) -> Result<(), E> {
        (self.each)(&Change { path, now })
    }

    fn root(&mut self) -> Result<(), E> {
        let root = Pending {
            path: Vec::new(),
            depth: 0,
            below: Some(TreeIno::ROOT),
            here: Some(TreeIno::ROOT),
        };
        let name_at = NameAt::new(self.upper.root(), b".");
        let stat = name_at.stat().map_err(at(b""))?;
        let marks = Marks {
            file_type: FileType::Directory,
            origin: Some(TreeIno::ROOT),
            opaque: false,
            metadata_only: false,
            device: false,
            link_delta: None,
            interrupted: None,
        };
        self.give(
            b"",
            Now::Upper {
                name_at,
                stat: &stat,
                marks: &marks,
            },
        )?;
        let mut pending = vec![root];
        while let Some(dir) = pending.pop() {
            self.level.truncate(dir.depth);
            let mut below = self.directory(&dir)?;
            below.reverse();
            pending.append(&mut below);
        }
        Ok(())
    }

    /// Lists a directory of the upper; returns the directories in it.
    fn directory(&mut self, dir: &Pending) -> Result<Vec<Pending>, E> {
        let name = dir.path.rsplit(|byte| *byte == b'/').next();
        let opened = match (self.level.last(), name) {
            (Some(parent), Some(name)) => open_directory(parent.as_fd(), name),
            _ => open_directory(self.upper.root(), b"."),
        };
        let opened = opened.map_err(at(&dir.path))?;
        let mut names = Vec::new();
        let (whiteouts, spelling) = (self.upper.whiteouts(), self.upper.spelling());
        scan::list(opened.as_fd(), whiteouts, spelling, |name, listed| {
            if listed != Listed::NeedlessWhiteout {
                names.push((Box::<[u8]>::from(name), listed));
            }
            Ok(())
        })
        .map_err(at(&dir.path))?;
        names.sort_by(|(a, _), (b, _)| a.cmp(b));
        let impure =
            scan::is_impure(opened.as_fd(), self.upper.mark_store()).map_err(at(&dir.path))?;
        let merges = dir.below.is_some() && dir.below == dir.here;
        if !merges && dir.here.is_some() {
            self.give(&dir.path, Now::Opaque)?;
        }
        if let Some(below) = dir.below {
            let hidden: HashSet<_> = names.iter().map(|(name, _)| name.clone()).collect();
            if !merges {
                self.shown_of_the_tree(&dir.path, below, &hidden)?;
            }
            self.places.insert(
                below,
                Place {
                    path: dir.path.clone(),
                    hidden,
                    listed: !merges,
                },
            );
        }
        let mut directories = Vec::new();
        for (name, listed) in names {
            match listed {
                Listed::NeedlessWhiteout => {}
                Listed::Whiteout | Listed::DeviceWhiteout => {
                    if merges && self.child(dir.here, &name)?.is_some() {
                        self.give(&join(&dir.path, &name), Now::Nothing)?;
                    }
                }
                Listed::File { file_type, .. } => {
                    let name_at = NameAt::new(opened.as_fd(), &name);
                    directories.extend(self.file(dir, merges, name_at, file_type, impure)?);
                }
            }
        }
        self.level.push(opened);
        Ok(directories)
    }

    fn file(
        &mut self,
        dir: &Pending,
        merges: bool,
        name_at: NameAt<'_>,
        host_type: FileType,
        impure: bool,
    ) -> Result<Option<Pending>, E> {
        let path = join(&dir.path, name_at.name);
        let marks = self.marks(&path, name_at, host_type, dir.below, impure)?;
        let stat = name_at.stat().map_err(at(&path))?;
        if self.is_made_by_the_engine(dir, &path, name_at, &stat, &marks)? {
            return Ok(None);
        }
        if host_type != FileType::Directory {
            self.leaf(&path, name_at, &stat, &marks)?;
            return Ok(None);
        }
        self.give(
            &path,
            Now::Upper {
                name_at,
                stat: &stat,
                marks: &marks,
            },
        )?;
        let here = if merges {
            let child = self.child(dir.here, name_at.name)?;
            self.if_directory(child)?
        } else {
            None
        };
        Ok(Some(Pending {
            path,
            depth: dir.depth + 1,
            below: marks.origin.filter(|_| !marks.opaque),
            here,
        }))
    }

    fn marks(
        &self,
        path: &[u8],
        name_at: NameAt<'_>,
        host_type: FileType,
        below: Option<TreeIno>,
        impure: bool,
    ) -> Result<Marks<TreeIno>, ChangesError> {
        let store = self.upper.mark_store();
        scan::read_marks(name_at, host_type, store, self.tree, below, impure).map_err(|source| {
            ChangesError::Marks {
                path: path.into(),
                source,
            }
        })
    }

    /// A file of the upper that is no directory.
    fn leaf(
        &mut self,
        path: &[u8],
        name_at: NameAt<'_>,
        stat: &Statx,
        marks: &Marks<TreeIno>,
    ) -> Result<(), E> {
        if let Some(origin) = marks.origin
            && self.tree.node(origin).map_err(ChangesError::from)?.nlink > 1
        {
            self.linked.entry(origin).or_insert_with(|| path.to_vec());
        }
        if stat.stx_nlink > 1 {
            let inode = (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
            if let Some(first) = self.inodes.get(&inode) {
                let first = first.clone();
                return self.give(path, Now::Link(&first));
            }
            self.inodes.insert(inode, path.to_vec());
        }
        self.give(
            path,
            Now::Upper {
                name_at,
                stat,
                marks,
            },
        )
    }

    /// Lists what a directory at `path` shows of the tree's directory `below`.
    fn shown_of_the_tree(
        &mut self,
        path: &[u8],
        below: TreeIno,
        hidden: &HashSet<Box<[u8]>>,
    ) -> Result<(), E> {
        let tree = self.tree;
        let mut pending = Vec::new();
        for child in tree.children(below).map_err(ChangesError::from)? {
            let child = child.map_err(ChangesError::from)?;
            if let (Target::Node(ino), false) = (child.target, hidden.contains(child.name)) {
                pending.push((join(path, child.name), ino));
            }
        }
        while let Some((path, ino)) = pending.pop() {
            let node = tree.node(ino).map_err(ChangesError::from)?;
            if node.file_type != FileType::Directory {
                self.tree_leaf(&path, ino, node.nlink)?;
                continue;
            }
            self.give(&path, Now::Tree(ino))?;
            for child in tree.children(ino).map_err(ChangesError::from)? {
                let child = child.map_err(ChangesError::from)?;
                if let Target::Node(below) = child.target {
                    pending.push((join(&path, child.name), below));
                }
            }
            let place = Place {
                path,
                hidden: HashSet::new(),
                listed: true,
            };
            self.places.insert(ino, place);
        }
        Ok(())
    }

    /// A file of the tree at another place.
    fn tree_leaf(&mut self, path: &[u8], ino: TreeIno, nlink: u32) -> Result<(), E> {
        if self.indexed.contains(&ino) {
            return self.indexed_leaf(path, ino);
        }
        if nlink > 1 {
            if let Some(first) = self.linked.get(&ino) {
                let first = first.clone();
                return self.give(path, Now::Link(&first));
            }
            self.linked.insert(ino, path.to_vec());
        }
        self.give(path, Now::Tree(ino))
    }

    /// A name of a tree file that was copied up by way of another name.
    fn indexed_leaf(&mut self, path: &[u8], ino: TreeIno) -> Result<(), E> {
        let upper = self.upper;
        let name = Upper::index_name(ino.0.into());
        let name_at = NameAt::new(upper.index(), &name);
        let stat = name_at.stat().map_err(at(path))?;
        let inode = (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
        let first = self.inodes.get(&inode).or_else(|| self.linked.get(&ino));
        if let Some(first) = first.cloned() {
            return self.give(path, Now::Link(&first));
        }
        let host_type = FileType::from_mode_bits(stat.stx_mode.into());
        let host_type = host_type.ok_or(Errno::IO).map_err(at(path))?;
        let marks = self.marks(path, name_at, host_type, None, true)?;
        self.inodes.insert(inode, path.to_vec());
        self.linked.insert(ino, path.to_vec());
        self.give(
            path,
            Now::Upper {
                name_at,
                stat: &stat,
                marks: &marks,
            },
        )
    }

    fn child(&self, dir: Option<TreeIno>, name: &[u8]) -> Result<Option<TreeIno>, ChangesError> {
        let Some(dir) = dir else { return Ok(None) };
        let found = self.tree.lookup(dir, name)?;
        Ok(match found.map(|dirent| dirent.target) {
            Some(Target::Node(ino)) => Some(ino),
            Some(Target::Whiteout | Target::LinkBelow) | None => None,
        })
    }

    fn if_directory(&self, ino: Option<TreeIno>) -> Result<Option<TreeIno>, ChangesError> {
        let Some(ino) = ino else { return Ok(None) };
        let node = self.tree.node(ino)?;
        Ok((node.file_type == FileType::Directory).then_some(ino))
    }

    fn is_made_by_the_engine(
        &self,
        dir: &Pending,
        path: &[u8],
        name_at: NameAt<'_>,
        stat: &Statx,
        marks: &Marks<TreeIno>,
    ) -> Result<bool, ChangesError> {
        if !self.mount_points.contains(path)
            || marks.origin.is_some()
            || self.child(dir.below, name_at.name)?.is_some()
        {
            return Ok(false);
        }
        match marks.file_type {
            FileType::Regular => Ok(stat.stx_size == 0),
            FileType::Directory => {
                let opened = open_directory(name_at.dir, name_at.name).map_err(at(path))?;
                is_empty(opened.as_fd()).map_err(at(path))
            }
            _ => Ok(false),
        }
    }
}

fn is_empty(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut empty = true;
    super::each_entry(dir, |_, _, _| {
        empty = false;
        Ok(())
    })?;
    Ok(empty)
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        name.to_vec()
    } else {
        [dir, name].join(&b'/')
    }
}
