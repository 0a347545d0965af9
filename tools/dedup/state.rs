//! Applies an image's layers in order and records what each changes and hides.
//!
//! Invariant: after the last layer the names equal those of `tree::merge`; a test compares them.
//! Names are borrowed from the mapped trees; the work is proportional to the layers' entries and to
//! what they hide.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Result, bail};
use cowl_core::tree::{Dirent, FileType, Target, Tree, TreeError, TreeIno};

use crate::model::{Collection, Image, Layer, ObjectNumber};
use crate::walk::{Cause, Changes, Place, Waste};

/// What a name refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// An index into [`State::dirs`].
    Dir(usize),
    File(Place),
}

/// A file that lost a name in the current layer.
struct Hidden {
    place: Place,
    path: Vec<u8>,
    /// None: decided by what is at the path after the layer.
    cause: Option<Cause>,
}

/// Visible files with the same content.
struct Copies {
    size: u64,
    /// The paths, each with its layer.
    paths: Vec<(u32, Vec<u8>)>,
}

/// The names that are visible after some layers.
pub(crate) struct State<'c> {
    layers: Vec<&'c Layer>,
    dirs: Vec<BTreeMap<&'c [u8], Entry>>,
    /// The number of visible names, by layer and node.
    names: Vec<Vec<u32>>,
    changes: Vec<Changes>,
    waste: Vec<Waste>,
    hidden: Vec<Hidden>,
    /// Names that hard-linked files lost while they kept others.
    lost: HashMap<Place, Vec<Vec<u8>>>,
}

/// Limit for the nesting of directories, above what a tree can have.
const DEPTH: usize = 5000;
/// Limit for chains of hard links in a layer.
const LINKS: usize = 40;

impl<'c> State<'c> {
    pub(crate) fn new(collection: &'c Collection, image: &Image) -> Self {
        let layers: Vec<&Layer> = image
            .layers
            .iter()
            .filter_map(|layer| collection.layer(*layer))
            .collect();
        let names = layers
            .iter()
            .map(|layer| vec![0; layer.tree.node_count() as usize]);
        Self {
            names: names.collect(),
            changes: vec![Changes::default(); layers.len()],
            layers,
            dirs: vec![BTreeMap::new()],
            waste: Vec::new(),
            hidden: Vec::new(),
            lost: HashMap::new(),
        }
    }

    /// The names in a directory.
    pub(crate) fn names_in(
        &self,
        dir: usize,
    ) -> impl Iterator<Item = (&'c [u8], Entry)> + use<'_, 'c> {
        self.dirs
            .get(dir)
            .into_iter()
            .flatten()
            .map(|(name, entry)| (*name, *entry))
    }

    /// Applies the next layer.
    pub(crate) fn apply(&mut self, number: usize) -> Result<()> {
        let Some(layer) = self.layers.get(number).copied() else {
            bail!("there is no layer {number}");
        };
        let links = self.links(number, &layer.tree)?;
        self.directory(
            number,
            &layer.tree,
            &links,
            TreeIno::ROOT,
            0,
            &mut Vec::new(),
        )?;
        self.settle(number)
    }

    /// The targets of the layer's hard links into lower layers, looked up before the layer changes
    /// anything, as an extractor would find them. A link may have no target if a later layer hides
    /// it.
    fn links(&self, number: usize, tree: &'c Tree) -> Result<HashMap<u32, Place>> {
        let mut links = HashMap::new();
        for index in 0..tree.dirent_count() {
            let dirent = tree.dirent(index)?;
            if dirent.target == Target::LinkBelow {
                links.extend(self.link(number, tree, dirent)?.map(|place| (index, place)));
            }
        }
        Ok(links)
    }

    fn link(&self, number: usize, tree: &'c Tree, mut dirent: Dirent<'c>) -> Result<Option<Place>> {
        for _ in 0..LINKS {
            let path = tree.link_target(&dirent)?;
            match self.look_up(path) {
                Some(Entry::File(place)) => return Ok(Some(place)),
                Some(Entry::Dir(_)) => break,
                None => {}
            }
            // A target in the same layer: the link comes before it in the tar.
            let (parent, name) = split(path);
            let own = match tree.resolve(parent)? {
                Some(parent) => match tree.lookup(parent, name) {
                    Err(TreeError::NotADirectory(_)) => None,
                    found => found?,
                },
                None => None,
            };
            match own.map(|own| (own.target, own)) {
                Some((Target::Node(_), own)) if own.file_type == Some(FileType::Directory) => break,
                Some((Target::Node(ino), _)) => return Ok(Some(place(number, ino))),
                Some((Target::LinkBelow, own)) => dirent = own,
                Some((Target::Whiteout, _)) | None => break,
            }
        }
        Ok(None)
    }

    /// The entry that is visible at a path.
    pub(crate) fn look_up(&self, path: &[u8]) -> Option<Entry> {
        let mut at = Entry::Dir(0);
        for name in path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
        {
            let Entry::Dir(dir) = at else { return None };
            at = *self.dirs.get(dir)?.get(name)?;
        }
        Some(at)
    }

    fn directory(
        &mut self,
        number: usize,
        tree: &'c Tree,
        links: &HashMap<u32, Place>,
        ino: TreeIno,
        dir: usize,
        path: &mut Vec<u8>,
    ) -> Result<()> {
        if path.split(|byte| *byte == b'/').nth(DEPTH).is_some() {
            bail!("directories are nested without end");
        }
        if tree.node(ino)?.opaque {
            let below = self
                .dirs
                .get_mut(dir)
                .map(std::mem::take)
                .unwrap_or_default();
            for (name, entry) in below {
                self.hide(entry, &joined(path, name), None);
            }
        }
        for dirent in tree.children(ino)? {
            let dirent = dirent?;
            let before = self
                .dirs
                .get(dir)
                .and_then(|names| names.get(dirent.name))
                .copied();
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(dirent.name);
            let entry = match (dirent.target, dirent.file_type) {
                (Target::Whiteout, _) => {
                    if let Some(before) = before {
                        self.hide(before, path, Some(Cause::Deleted));
                    }
                    None
                }
                (Target::Node(child), Some(FileType::Directory)) => {
                    let below = match before {
                        Some(Entry::Dir(below)) => below,
                        Some(file @ Entry::File(_)) => {
                            self.hide(file, path, Some(Cause::Overwritten));
                            self.new_directory()
                        }
                        None => self.new_directory(),
                    };
                    self.directory(number, tree, links, child, below, path)?;
                    Some(Entry::Dir(below))
                }
                (Target::Node(child), _) => {
                    Some(self.file(number, place(number, child), before, path))
                }
                (Target::LinkBelow, _) => {
                    let target = links.get(&dirent.index).copied();
                    if let (None, Some(before)) = (target, before) {
                        self.hide(before, path, Some(Cause::Overwritten));
                    }
                    target.map(|target| self.file(number, target, before, path))
                }
            };
            path.truncate(length);
            if let Some(names) = self.dirs.get_mut(dir) {
                match entry {
                    Some(entry) => names.insert(dirent.name, entry),
                    None => names.remove(dirent.name),
                };
            }
        }
        Ok(())
    }

    fn new_directory(&mut self) -> usize {
        self.dirs.push(BTreeMap::new());
        self.dirs.len() - 1
    }

    /// Puts a file at a path.
    fn file(&mut self, number: usize, new: Place, before: Option<Entry>, path: &[u8]) -> Entry {
        self.add_name(new);
        if let Some(changes) = self.changes.get_mut(number) {
            changes.added += 1;
        }
        match before {
            Some(Entry::File(old)) if old == new => {
                // The layer repeats a name as a link to the same file.
                self.remove_name(old);
                self.note_change(number);
            }
            Some(old @ Entry::File(place)) => {
                let cause = if self.is_same(place, new) {
                    Cause::Metadata
                } else {
                    Cause::Overwritten
                };
                self.hide(old, path, Some(cause));
            }
            Some(dir @ Entry::Dir(_)) => self.hide(dir, path, Some(Cause::Overwritten)),
            None => {}
        }
        Entry::File(new)
    }

    /// Turns an addition into a change: the name existed before.
    fn note_change(&mut self, number: usize) {
        if let Some(changes) = self.changes.get_mut(number) {
            changes.added = changes.added.saturating_sub(1);
            changes.changed += 1;
        }
    }

    /// The number of visible names of a file.
    fn count(&self, place: Place) -> u32 {
        let names = self.names.get(place.layer as usize);
        names
            .and_then(|names| names.get(place.ino as usize))
            .copied()
            .unwrap_or(0)
    }

    fn count_mut(&mut self, place: Place) -> Option<&mut u32> {
        self.names
            .get_mut(place.layer as usize)?
            .get_mut(place.ino as usize)
    }

    fn add_name(&mut self, place: Place) {
        if let Some(count) = self.count_mut(place) {
            *count += 1;
        }
    }

    fn remove_name(&mut self, place: Place) {
        if let Some(count) = self.count_mut(place) {
            *count = count.saturating_sub(1);
        }
    }

    /// The size and content of a non-empty regular file; None for anything else.
    pub(crate) fn content(&self, place: Place) -> Option<(u64, ObjectNumber)> {
        let layer = self.layers.get(place.layer as usize)?;
        let node = layer.tree.node(TreeIno(place.ino)).ok()?;
        Some((node.size, layer.content(node.object?)?))
    }

    /// Records the files that lose a name.
    fn hide(&mut self, entry: Entry, path: &[u8], cause: Option<Cause>) {
        match entry {
            Entry::File(place) => {
                self.remove_name(place);
                self.hidden.push(Hidden {
                    place,
                    path: path.to_vec(),
                    cause,
                });
            }
            Entry::Dir(dir) => {
                let names = self.dirs.get_mut(dir).map(std::mem::take);
                for (name, entry) in names.unwrap_or_default() {
                    self.hide(entry, &joined(path, name), cause);
                }
            }
        }
    }

    /// Classifies the layer's hidden files: changed or deleted, and which bytes are waste.
    fn settle(&mut self, number: usize) -> Result<()> {
        let mut gone: BTreeMap<Place, (Cause, Vec<Vec<u8>>)> = BTreeMap::new();
        for Hidden { place, path, cause } in std::mem::take(&mut self.hidden) {
            let now = match cause {
                Some(Cause::Deleted) => None,
                _ => self.look_up(&path),
            };
            if let Some(Entry::File(_)) = now {
                self.note_change(number);
            } else if let Some(changes) = self.changes.get_mut(number) {
                changes.deleted += 1;
            }
            let cause = cause.unwrap_or_else(|| match now {
                Some(Entry::File(new)) if self.is_same(place, new) => Cause::Metadata,
                Some(_) => Cause::Overwritten,
                None => Cause::Deleted,
            });
            let (strongest, paths) = gone.entry(place).or_insert((cause, Vec::new()));
            *strongest = cause.max(*strongest);
            paths.push(path);
        }
        for (place, (cause, paths)) in gone {
            if self.count(place) > 0 {
                self.lost.entry(place).or_default().extend(paths);
                continue;
            }
            let mut all = self.lost.remove(&place).unwrap_or_default();
            all.extend(paths);
            // A name may be lost, repeated as a link, and lost again.
            all.sort();
            all.dedup();
            let Some((bytes, _)) = self.content(place) else {
                continue;
            };
            let layer = match cause {
                // The second copy is the extra cost.
                Cause::Metadata => number,
                _ => usize::try_from(place.layer)?,
            };
            self.waste.push(Waste {
                cause,
                layer,
                by: number,
                bytes,
                paths: all,
            });
        }
        Ok(())
    }

    fn is_same(&self, one: Place, other: Place) -> bool {
        self.content(one).is_some() && self.content(one) == self.content(other)
    }

    /// Calls `visit` for each visible name that is not a directory, sorted by path.
    fn visit(&self, dir: usize, path: &[u8], visit: &mut impl FnMut(&[u8], Place)) {
        for (name, entry) in self.names_in(dir) {
            let path = joined(path, name);
            match entry {
                Entry::Dir(below) => self.visit(below, &path, visit),
                Entry::File(place) => visit(&path, place),
            }
        }
    }

    /// All visible names except directories.
    pub(crate) fn files(&self) -> BTreeMap<Vec<u8>, Place> {
        let mut files = BTreeMap::new();
        self.visit(0, &[], &mut |path, place| {
            files.insert(path.to_vec(), place);
        });
        files
    }

    /// All visible names except directories, with their files and contents.
    #[cfg(test)]
    pub(crate) fn listing(&self) -> BTreeMap<String, (Place, Option<cowl_core::digest::ObjectId>)> {
        let mut names = BTreeMap::new();
        self.visit(0, &[], &mut |path, place| {
            let tree = &self.layers[place.layer as usize].tree;
            let object = tree.node(TreeIno(place.ino)).unwrap().object;
            let object = object.map(|object| tree.object_id(object).unwrap());
            names.insert(crate::show::shown_path(path), (place, object));
        });
        names
    }

    /// Each layer's changes, and the waste.
    pub(crate) fn into_findings(self) -> (Vec<Changes>, Vec<Waste>) {
        (self.changes, self.waste)
    }

    /// Bytes of the visible files, and the contents that occur in several of them.
    pub(crate) fn duplicates(&self) -> (u64, Vec<Waste>) {
        let mut visible = 0;
        let mut copies: HashMap<ObjectNumber, u32> = HashMap::new();
        let mut seen: HashSet<Place> = HashSet::new();
        self.visit(0, &[], &mut |_, place| {
            if let Some((size, object)) = self.content(place)
                && seen.insert(place)
            {
                visible += size;
                *copies.entry(object).or_default() += 1;
            }
        });
        copies.retain(|_, copies| *copies > 1);
        seen.clear();
        let mut several: BTreeMap<ObjectNumber, Copies> = BTreeMap::new();
        self.visit(0, &[], &mut |path, place| {
            if let Some((size, object)) = self.content(place)
                && copies.contains_key(&object)
                && seen.insert(place)
            {
                let copies = several.entry(object).or_insert_with(|| Copies {
                    size,
                    paths: Vec::new(),
                });
                copies.paths.push((place.layer, path.to_vec()));
            }
        });
        let waste = several.into_values().map(|Copies { size, mut paths }| {
            paths.sort();
            let last = paths.last().map_or(0, |(layer, _)| *layer as usize);
            Waste {
                cause: Cause::Duplicate,
                layer: last,
                by: last,
                bytes: size * (paths.len() as u64 - 1),
                paths: paths.into_iter().map(|(_, path)| path).collect(),
            }
        });
        (visible, waste.collect())
    }
}

fn place(layer: usize, ino: TreeIno) -> Place {
    Place {
        layer: u32::try_from(layer).unwrap_or(u32::MAX),
        ino: ino.0,
    }
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(path.len() + name.len() + 1);
    joined.extend_from_slice(path);
    if !path.is_empty() {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
}

/// A path's directory and last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let slash = path.iter().rposition(|byte| *byte == b'/');
    match slash.and_then(|slash| path.split_at_checked(slash)) {
        Some((parent, name)) => (parent, name.strip_prefix(b"/").unwrap_or(name)),
        None => (&[], path),
    }
}
