//! Resolves a layer's hard links into the layers below.
//!
//! The target is looked up as an extractor would have found it on reaching the link: in the stack
//! below the link's layer, whatever this layer does to the target. Only if nothing is visible
//! there, this layer's own entry is used (a link that precedes its target in the tar).

use std::collections::{HashMap, HashSet};

use super::error::TreeError;
use super::reader::Tree;
use super::stack::{LayerError, Place, Shown, Stack};
use super::types::{Dirent, FileType, Target};

/// Why a link has no target.
#[derive(Debug)]
pub(super) enum LinkError {
    Layer(LayerError),
    /// The target does not exist.
    Missing,
    /// The target is a directory.
    Directory,
    /// The link leads back to itself.
    Loop,
}

impl From<LayerError> for LinkError {
    fn from(error: LayerError) -> Self {
        Self::Layer(error)
    }
}

/// A link by its layer and its number there.
type Link = (usize, u32);

/// Resolves links, each once.
#[derive(Debug)]
pub(super) struct Links<'t> {
    stack: Stack<'t>,
    known: HashMap<Link, Place>,
    /// Where the last target was looked for: links come by directory, and so do their targets.
    last: Option<Searched<'t>>,
}

/// The directories that show together at a path of the stack below a layer.
#[derive(Debug)]
struct Searched<'t> {
    layer: usize,
    path: &'t [u8],
    directories: Option<Vec<Place>>,
}

enum Step<'t> {
    File(Place),
    Link(usize, Dirent<'t>),
}

impl<'t> Links<'t> {
    pub(super) fn new(stack: Stack<'t>) -> Self {
        Self {
            stack,
            known: HashMap::new(),
            last: None,
        }
    }

    /// The file that a link is another name of.
    pub(super) fn resolve(
        &mut self,
        mut layer: usize,
        mut dirent: Dirent<'t>,
    ) -> Result<Place, LinkError> {
        let mut passed: HashSet<Link> = HashSet::new();
        let file = loop {
            let link = (layer, dirent.index);
            if let Some(file) = self.known.get(&link) {
                break *file;
            }
            // Links lead downwards, or to another of the same layer: only there can they go in a
            // circle.
            if !passed.insert(link) {
                return Err(LinkError::Loop);
            }
            match self.step(layer, &dirent)? {
                Step::File(file) => break file,
                Step::Link(next_layer, next) => (layer, dirent) = (next_layer, next),
            }
        };
        self.known
            .extend(passed.into_iter().map(|link| (link, file)));
        Ok(file)
    }

    fn step(&mut self, layer: usize, dirent: &Dirent<'t>) -> Result<Step<'t>, LinkError> {
        let path = self.stack.ask(layer, |tree| tree.link_target(dirent))?;
        let (parent, name) = split(path);
        match self.below(layer, parent, name)? {
            Shown::File(place) => Ok(Step::File(place)),
            Shown::Link { layer, dirent } => Ok(Step::Link(layer, dirent)),
            Shown::Directory { .. } => Err(LinkError::Directory),
            Shown::Nothing => self.own(layer, parent, name),
        }
    }

    /// What shows at a path of the stack below a layer.
    fn below(
        &mut self,
        layer: usize,
        parent: &'t [u8],
        name: &[u8],
    ) -> Result<Shown<'t>, LinkError> {
        let below = Stack(self.stack.0.get(..layer).unwrap_or_default());
        let last = self
            .last
            .take()
            .filter(|last| last.layer == layer && last.path == parent);
        let searched = match last {
            Some(last) => last,
            None => Searched {
                layer,
                path: parent,
                directories: below.directories(parent)?,
            },
        };
        let shown = match &searched.directories {
            Some(directories) => below.look_up(directories, name, &mut Vec::new())?,
            None => Shown::Nothing,
        };
        self.last = Some(searched);
        Ok(shown)
    }

    /// What the link's own layer has at the path.
    fn own(&self, layer: usize, parent: &[u8], name: &[u8]) -> Result<Step<'t>, LinkError> {
        let own = self.stack.ask(layer, |tree| look_up(tree, parent, name))?;
        match own.map(|dirent| (dirent.target, dirent)) {
            Some((Target::Node(_), dirent)) if dirent.file_type == Some(FileType::Directory) => {
                Err(LinkError::Directory)
            }
            Some((Target::Node(ino), _)) => Ok(Step::File(Place { layer, ino })),
            Some((Target::LinkBelow, dirent)) => Ok(Step::Link(layer, dirent)),
            Some((Target::Whiteout, _)) | None => Err(LinkError::Missing),
        }
    }
}

fn look_up<'t>(
    tree: &'t Tree,
    parent: &[u8],
    name: &[u8],
) -> Result<Option<Dirent<'t>>, TreeError> {
    match tree.resolve(parent)?.map(|dir| tree.lookup(dir, name)) {
        None | Some(Err(TreeError::NotADirectory(_))) => Ok(None),
        Some(found) => found,
    }
}

/// A path's directory and its last name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let slash = path.iter().rposition(|byte| *byte == b'/');
    match slash.and_then(|slash| path.split_at_checked(slash)) {
        Some((parent, name)) => (parent, name.strip_prefix(b"/").unwrap_or(name)),
        None => (&[], path),
    }
}
