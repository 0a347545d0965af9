//! Merges a stack of layers into one tree without whiteouts, implied directories or links between
//! layers.
//!
//! The walk starts at the root and takes the merged directories in the order of their numbers. The
//! sorted names of the layers' directories that are visible together are merged, so each name of
//! each layer is read once, and the file is written during the walk.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use bstr::BString;

use super::error::{TreeError, corrupt};
use super::format::NONE;
use super::links::{LinkError, Links};
use super::reader::Tree;
use super::stack::{LayerError, Place, Shown, Stack};
use super::types::{Dirent, FileType, TreeIno, TreeKind};
use super::writer::{NewNode, NewTarget, WriteError, Writer};
use crate::digest::{ChainId, ObjectIds};

/// Why a stack cannot be merged. Layers are counted from the bottom, from 0.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A merged tree instead of a layer's.
    #[error("layer {layer} is a merged tree")]
    NotALayer {
        /// Which layer.
        layer: usize,
    },
    /// A layer's tree can't be read.
    #[error("layer {layer}: {source}")]
    Layer {
        /// Which layer.
        layer: usize,
        /// What is wrong with it.
        source: TreeError,
    },
    /// A hard link's target is in none of the layers below.
    #[error("layer {layer}: {path:?} is a hard link to {target:?}, which does not exist")]
    LinkMissing {
        /// Which layer.
        layer: usize,
        /// The link.
        path: BString,
        /// The target.
        target: BString,
    },
    /// A hard link's target is a directory.
    #[error("layer {layer}: {path:?} is a hard link to the directory {target:?}")]
    LinkToDirectory {
        /// Which layer.
        layer: usize,
        /// The link.
        path: BString,
        /// The target.
        target: BString,
    },
    /// A hard link that leads back to itself.
    #[error("layer {layer}: {path:?} is a hard link to {target:?}, which is a link back to it")]
    LinkLoop {
        /// Which layer.
        layer: usize,
        /// The link.
        path: BString,
        /// The target.
        target: BString,
    },
    /// The stack is too large, or contradicts itself.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl From<LayerError> for MergeError {
    fn from(LayerError { layer, source }: LayerError) -> Self {
        Self::Layer { layer, source }
    }
}

/// Merges layers, the lowest first, into the bytes of one tree. No layers make an empty root.
///
/// The layers' bytes are taken as written; reading errors end the merge, but a layer of doubtful
/// origin is to be [verified](Tree::verify) first.
pub fn merge(layers: impl AsRef<[Tree]>) -> Result<Vec<u8>, MergeError> {
    let (writer, contents, chain) = walk(layers.as_ref())?;
    // Layers that were given away are not in memory while the sections are put together.
    drop(layers);
    Ok(writer.finish(chain.0, contents.into_ids())?)
}

fn walk(layers: &[Tree]) -> Result<(Writer, ObjectIds, ChainId), MergeError> {
    let stack = (0..)
        .zip(layers)
        .map(|(layer, tree)| tree.diff_id().ok_or(MergeError::NotALayer { layer }))
        .collect::<Result<Vec<_>, _>>()?;
    let (writer, contents) = Merge::new(Stack(layers)).walk()?;
    Ok((writer, contents, ChainId::of(&stack)))
}

/// Names after which the layers' pages are taken out of memory: some 10 MiB of trees.
const LET_GO: u32 = 65_536;

/// A merged directory to be written.
struct Pending {
    ino: TreeIno,
    /// The layers' directories that show together, the topmost first.
    places: Vec<Place>,
}

struct Merge<'t> {
    stack: Stack<'t>,
    links: Links<'t>,
    writer: Writer,
    contents: ObjectIds,
    /// For each layer, for each of its nodes, its number in the merged tree; [`NONE`] if it has
    /// none.
    numbers: Vec<Vec<u32>>,
    /// For each layer, how many of its names may still come: more would mean that directories
    /// share names.
    names_left: Vec<u32>,
    queue: VecDeque<Pending>,
}

impl<'t> Merge<'t> {
    fn new(stack: Stack<'t>) -> Self {
        Self {
            stack,
            links: Links::new(stack),
            writer: Writer::new(TreeKind::Merged),
            contents: ObjectIds::default(),
            numbers: stack
                .0
                .iter()
                .map(|tree| vec![NONE; tree.node_count() as usize])
                .collect(),
            names_left: stack.0.iter().map(Tree::dirent_count).collect(),
            queue: VecDeque::new(),
        }
    }

    /// Writes all names; what else the merge needed is freed.
    fn walk(mut self) -> Result<(Writer, ObjectIds), MergeError> {
        let mut places = Vec::new();
        let shown = self.stack.root(&mut places)?;
        self.add_directory(shown, places)?;
        let mut names = Names::default();
        let mut group = Vec::new();
        let mut since = 0_u32;
        while let Some(Pending { ino, places }) = self.queue.pop_front() {
            self.writer.begin_directory(ino)?;
            names.begin(self.stack, &places, &mut self.names_left)?;
            while names.next_group(self.stack, &mut group)? {
                self.add_name(ino, &group)?;
                since += 1;
                if since == LET_GO {
                    since = 0;
                    self.let_go()?;
                }
            }
        }
        Ok((self.writer, self.contents))
    }

    /// Takes the layers' pages out of memory: each record is read about once.
    fn let_go(&self) -> Result<(), MergeError> {
        for layer in 0..self.stack.0.len() {
            self.stack.ask(layer, Tree::let_go)?;
        }
        Ok(())
    }

    /// Writes what shows at one name, given the entries of all layers' directories that show
    /// together.
    fn add_name(
        &mut self,
        parent: TreeIno,
        group: &[(usize, Dirent<'t>)],
    ) -> Result<(), MergeError> {
        let Some((_, Dirent { name, .. })) = group.first() else {
            return Ok(());
        };
        let mut places = Vec::new();
        let number = match self
            .stack
            .fold(group.iter().map(|entry| Ok(*entry)), &mut places)?
        {
            Shown::Nothing => return Ok(()),
            Shown::File(place) => self.add_file(place)?,
            Shown::Link { layer, dirent } => {
                let resolved = self.links.resolve(layer, dirent);
                let place =
                    resolved.map_err(|error| link_error(self.stack, layer, &dirent, error))?;
                self.add_file(place)?
            }
            shown @ Shown::Directory { .. } => self.add_directory(shown, places)?,
        };
        self.writer.dirent(parent, name, &NewTarget::Node(number))?;
        Ok(())
    }

    fn number(&mut self, place: Place) -> Result<&mut u32, MergeError> {
        let numbers = self
            .numbers
            .get_mut(place.layer)
            .and_then(|numbers| numbers.get_mut(place.ino.0 as usize));
        let layer = place.layer;
        numbers.ok_or(MergeError::Layer {
            layer,
            source: TreeError::NoSuchNode(place.ino),
        })
    }

    fn add_directory(
        &mut self,
        shown: Shown<'t>,
        places: Vec<Place>,
    ) -> Result<TreeIno, MergeError> {
        let number = match shown {
            Shown::Directory {
                attributes: Some(place),
            } => self.copy(place)?,
            _ => self.writer.node(&NewNode::DIRECTORY)?,
        };
        // A directory has one name, so it comes once; a damaged tree that contains itself would go
        // on forever.
        for place in &places {
            if std::mem::replace(self.number(*place)?, number.0) != NONE {
                let source = corrupt("a directory has two names", place.ino.0);
                return Err(MergeError::Layer {
                    layer: place.layer,
                    source,
                });
            }
        }
        self.queue.push_back(Pending {
            ino: number,
            places,
        });
        Ok(number)
    }

    fn add_file(&mut self, place: Place) -> Result<TreeIno, MergeError> {
        let known = *self.number(place)?;
        if known != NONE {
            return Ok(TreeIno(known));
        }
        let number = self.copy(place)?;
        *self.number(place)? = number.0;
        Ok(number)
    }

    /// Makes a node with the attributes of a layer's.
    fn copy(&mut self, place: Place) -> Result<TreeIno, MergeError> {
        let (node, xattrs, symlink, object) = self.stack.ask(place.layer, |tree| {
            let node = tree.node(place.ino)?;
            let symlink = match node.file_type {
                FileType::Symlink => tree.symlink_target(place.ino)?,
                _ => &[],
            };
            let object = node
                .object
                .map(|object| tree.object_id(object))
                .transpose()?;
            Ok((node, tree.xattr_set(place.ino)?, symlink, object))
        })?;
        let numbered = |id| {
            let number = self.contents.insert(id).map(|(number, _)| number);
            number.ok_or(WriteError::Limit("contents"))
        };
        let object = object.map(numbered).transpose()?;
        Ok(self.writer.node(&NewNode {
            file_type: node.file_type,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            size: node.size,
            elf: node.elf,
            implied: false,
            opaque: false,
            rdev: node.rdev,
            object,
            symlink,
            xattrs,
        })?)
    }
}

fn link_error(stack: Stack<'_>, layer: usize, dirent: &Dirent<'_>, error: LinkError) -> MergeError {
    let described = stack.ask(layer, |tree| {
        let mut path = tree.path_of(dirent.parent)?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(dirent.name);
        Ok((
            BString::from(path),
            BString::from(tree.link_target(dirent)?),
        ))
    });
    let (path, target) = match described {
        Ok(described) => described,
        Err(error) => return error.into(),
    };
    match error {
        LinkError::Layer(error) => error.into(),
        LinkError::Missing => MergeError::LinkMissing {
            layer,
            path,
            target,
        },
        LinkError::Directory => MergeError::LinkToDirectory {
            layer,
            path,
            target,
        },
        LinkError::Loop => MergeError::LinkLoop {
            layer,
            path,
            target,
        },
    }
}

/// The names of several sorted directories as one sorted list of groups of equal names.
#[derive(Default)]
struct Names<'t> {
    /// The next name of each directory that has one left. Equal names come topmost first.
    heap: BinaryHeap<Reverse<(&'t [u8], usize)>>,
    sources: Vec<Source<'t>>,
}

/// What is left of one layer's directory.
struct Source<'t> {
    layer: usize,
    next: Dirent<'t>,
    end: u32,
}

impl<'t> Names<'t> {
    fn begin(
        &mut self,
        stack: Stack<'t>,
        places: &[Place],
        names_left: &mut [u32],
    ) -> Result<(), MergeError> {
        self.heap.clear();
        self.sources.clear();
        for Place { layer, ino } in places.iter().copied() {
            let (first, count) = stack.ask(layer, |tree| {
                Ok((tree.child(ino, 0)?, tree.child_count(ino)?))
            })?;
            let Some(next) = first else { continue };
            let left = names_left
                .get_mut(layer)
                .and_then(|left| left.checked_sub(count).map(|rest| *left = rest));
            if left.is_none() {
                return Err(MergeError::Layer {
                    layer,
                    source: corrupt("directories share names", ino.0),
                });
            }
            self.heap.push(Reverse((next.name, self.sources.len())));
            self.sources.push(Source {
                layer,
                next,
                end: next.index + count,
            });
        }
        Ok(())
    }

    /// Fills `group` with the entries of the next name, the topmost first; false at the end.
    fn next_group(
        &mut self,
        stack: Stack<'t>,
        group: &mut Vec<(usize, Dirent<'t>)>,
    ) -> Result<bool, MergeError> {
        group.clear();
        let Some(Reverse((name, _))) = self.heap.peek() else {
            return Ok(false);
        };
        let name = *name;
        while let Some(mut top) = self.heap.peek_mut().filter(|top| top.0.0 == name) {
            let number = top.0.1;
            let Some(source) = self.sources.get_mut(number) else {
                break;
            };
            group.push((source.layer, source.next));
            let next = source.next.index + 1;
            if next < source.end {
                source.next = stack.ask(source.layer, |tree| tree.dirent(next))?;
                *top = Reverse((source.next.name, number));
            } else {
                std::collections::binary_heap::PeekMut::pop(top);
            }
        }
        Ok(true)
    }
}
