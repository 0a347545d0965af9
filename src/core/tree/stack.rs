//! A name in a stack of layers: which layer's file is visible, or which layers' directories are
//! visible together.
//!
//! Invariant: only this module decides what hides what. The merge asks for every name and the
//! resolution of hard links for the names of one path, so both see the same files.

use super::error::{TreeError, corrupt};
use super::reader::Tree;
use super::types::{Dirent, FileType, Target, TreeIno};

/// A directory or a file of one layer; layers count from the bottom.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) layer: usize,
    pub(super) ino: TreeIno,
}

/// What is visible at a name.
#[derive(Debug, Copy, Clone)]
pub(super) enum Shown<'t> {
    Nothing,
    File(Place),
    /// A hard link into the layers below this one.
    Link {
        layer: usize,
        dirent: Dirent<'t>,
    },
    /// The directories whose names show together were appended to the caller's list, the topmost
    /// first.
    Directory {
        /// The one whose attributes show. None: every layer only implied it.
        attributes: Option<Place>,
    },
}

/// An error of the layer it is about.
#[derive(Debug)]
pub(super) struct LayerError {
    pub(super) layer: usize,
    pub(super) source: TreeError,
}

/// Layers, the lowest first.
#[derive(Debug, Copy, Clone)]
pub(super) struct Stack<'t>(pub(super) &'t [Tree]);

impl<'t> Stack<'t> {
    /// Asks one layer; its error says which layer it was.
    pub(super) fn ask<T>(
        self,
        layer: usize,
        question: impl FnOnce(&'t Tree) -> Result<T, TreeError>,
    ) -> Result<T, LayerError> {
        // Layers are only ever numbered by walking this stack.
        let tree = self
            .0
            .get(layer)
            .ok_or(corrupt("a layer outside the stack", 0));
        tree.and_then(question)
            .map_err(|source| LayerError { layer, source })
    }

    /// Folds one name's entries, the topmost first, by the rules of overlays: a file hides what is
    /// below; a directory shows together with the directories directly below it, down to an opaque
    /// one. Attributes are those of the topmost directory that a tar named, an opaque mark
    /// notwithstanding: it empties a directory and does not remake it.
    pub(super) fn fold(
        self,
        entries: impl IntoIterator<Item = Result<(usize, Dirent<'t>), LayerError>>,
        directories: &mut Vec<Place>,
    ) -> Result<Shown<'t>, LayerError> {
        let mut shown = Shown::Nothing;
        let mut hidden = false;
        for entry in entries {
            let (layer, dirent) = entry?;
            let place = match (dirent.target, dirent.file_type) {
                (Target::Node(ino), Some(FileType::Directory)) => Place { layer, ino },
                (target, _) => {
                    if let (Shown::Nothing, Target::Node(ino)) = (shown, target) {
                        return Ok(Shown::File(Place { layer, ino }));
                    }
                    if let (Shown::Nothing, Target::LinkBelow) = (shown, target) {
                        return Ok(Shown::Link { layer, dirent });
                    }
                    break;
                }
            };
            if self.show_directory(place, &mut shown, &mut hidden, directories)? {
                break;
            }
        }
        Ok(shown)
    }

    /// The root, which every layer has.
    pub(super) fn root(self, directories: &mut Vec<Place>) -> Result<Shown<'t>, LayerError> {
        let mut shown = Shown::Directory { attributes: None };
        let mut hidden = false;
        for layer in (0..self.0.len()).rev() {
            let place = Place {
                layer,
                ino: TreeIno::ROOT,
            };
            if self.show_directory(place, &mut shown, &mut hidden, directories)? {
                break;
            }
        }
        Ok(shown)
    }

    /// Takes the next directory down; true if nothing below it matters any more.
    fn show_directory(
        self,
        place: Place,
        shown: &mut Shown<'t>,
        hidden: &mut bool,
        directories: &mut Vec<Place>,
    ) -> Result<bool, LayerError> {
        let node = self.ask(place.layer, |tree| tree.node(place.ino))?;
        let known = match *shown {
            Shown::Directory { attributes } => attributes,
            _ => None,
        };
        let attributes = known.or((!node.implied).then_some(place));
        *shown = Shown::Directory { attributes };
        if !*hidden {
            directories.push(place);
        }
        *hidden |= node.opaque;
        Ok(*hidden && attributes.is_some())
    }

    /// The directories that show together at a path; None if anything else shows there or on the
    /// way. Nothing is followed.
    pub(super) fn directories(self, path: &[u8]) -> Result<Option<Vec<Place>>, LayerError> {
        let mut directories = Vec::new();
        self.root(&mut directories)?;
        for name in path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
        {
            let mut below = Vec::new();
            let Shown::Directory { .. } = self.look_up(&directories, name, &mut below)? else {
                return Ok(None);
            };
            directories = below;
        }
        Ok(Some(directories))
    }

    /// What shows at a name in directories that show together; `below` gets the directories that
    /// show there.
    pub(super) fn look_up(
        self,
        directories: &[Place],
        name: &[u8],
        below: &mut Vec<Place>,
    ) -> Result<Shown<'t>, LayerError> {
        let entries = directories.iter().filter_map(|place| {
            let found = self.ask(place.layer, |tree| tree.lookup(place.ino, name));
            found
                .map(|dirent| dirent.map(|dirent| (place.layer, dirent)))
                .transpose()
        });
        self.fold(entries, below)
    }
}
