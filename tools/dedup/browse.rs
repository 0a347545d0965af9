//! What `--tui` shows for a layer: the image's tree after it, with the layer's change of each name.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Result;

use crate::model::{Collection, Image};
use crate::show::lossy;
use crate::state::State;
use crate::walk::{Cause, Place, Waste};

/// How a layer changed a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    Same,
    Added,
    Changed,
    Removed,
}

impl Mark {
    pub(crate) const fn letter(self) -> char {
        match self {
            Self::Same => ' ',
            Self::Added => 'A',
            Self::Changed => 'C',
            Self::Removed => 'D',
        }
    }
}

/// A name: a directory if it has children.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) name: String,
    pub(crate) depth: usize,
    /// Bytes of a file, or of all files below a directory, each once.
    pub(crate) bytes: u64,
    /// Another name of a hard-linked file that is counted elsewhere.
    pub(crate) linked: bool,
    /// Bytes that all layers of the image waste at this path; for a directory, also at the listed
    /// paths below it.
    pub(crate) waste: u64,
    pub(crate) mark: Mark,
    pub(crate) open: bool,
    pub(crate) children: Vec<usize>,
}

/// Which names are shown and in which order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// Show only paths that contain this, ignoring case.
    pub(crate) search: String,
    pub(crate) hide_same: bool,
    pub(crate) by_size: bool,
}

/// The names after one layer, and those it removed.
#[derive(Debug)]
pub(crate) struct Browser {
    pub(crate) items: Vec<Item>,
}

impl Browser {
    /// Applies the image's layers up to this one, from 0. An image may have none.
    pub(crate) fn new(
        collection: &Collection,
        image: &Image,
        layer: usize,
        waste: &[Waste],
    ) -> Result<Self> {
        let mut state = State::new(collection, image);
        for number in 0..layer {
            state.apply(number)?;
        }
        let before = state.files();
        if !image.layers.is_empty() {
            state.apply(layer)?;
        }
        let after = state.files();
        let mut wasted = wasted_at(waste);
        let mut this = Self {
            items: vec![Item::directory("/", 0)],
        };
        let mut directories: HashMap<Vec<u8>, usize> = HashMap::from([(Vec::new(), 0)]);
        let size = |place: Place| state.content(place).map_or(0, |(size, _)| size);
        let mut counted: HashSet<Place> = HashSet::new();
        let mut add = |path: &[u8], place: Place, mark: Mark| {
            let file = Item {
                bytes: size(place),
                waste: wasted.remove(path).unwrap_or(0),
                mark,
                linked: !counted.insert(place),
                ..Item::directory("", 0)
            };
            this.add(&mut directories, path, file);
        };
        for (path, place) in &after {
            let mark = match before.get(path) {
                None => Mark::Added,
                Some(old) if old == place => Mark::Same,
                Some(_) => Mark::Changed,
            };
            add(path, *place, mark);
        }
        for (path, place) in before.iter().filter(|(path, _)| !after.contains_key(*path)) {
            add(path, *place, Mark::Removed);
        }
        // Paths that changed from a file to a directory.
        for (path, number) in &directories {
            if let Some(item) = this.items.get_mut(*number) {
                item.waste = wasted.remove(path.as_slice()).unwrap_or(0);
            }
        }
        this.sum_up(0);
        Ok(this)
    }

    fn add(&mut self, directories: &mut HashMap<Vec<u8>, usize>, path: &[u8], file: Item) {
        let mut parent = 0;
        let mut depth = 1;
        let mut end = 0;
        while let Some(slash) = path
            .get(end..)
            .and_then(|rest| rest.iter().position(|b| *b == b'/'))
        {
            let directory = path.get(..end + slash).unwrap_or_default();
            let name = path.get(end..end + slash).unwrap_or_default();
            end += slash + 1;
            parent = if let Some(known) = directories.get(directory) {
                *known
            } else {
                let number = self.push(parent, Item::directory(&lossy(name), depth));
                directories.insert(directory.to_vec(), number);
                number
            };
            depth += 1;
        }
        let name = lossy(path.get(end..).unwrap_or_default());
        self.push(
            parent,
            Item {
                name,
                depth,
                open: false,
                ..file
            },
        );
    }

    fn push(&mut self, parent: usize, item: Item) -> usize {
        self.items.push(item);
        let number = self.items.len() - 1;
        if let Some(parent) = self.items.get_mut(parent) {
            parent.children.push(number);
        }
        number
    }

    /// Sums up a directory. Removed files count no bytes.
    fn sum_up(&mut self, number: usize) -> (u64, u64, Option<Mark>) {
        let Some(item) = self.items.get(number) else {
            return (0, 0, None);
        };
        if item.children.is_empty() {
            let bytes = if item.mark == Mark::Removed || item.linked {
                0
            } else {
                item.bytes
            };
            return (bytes, item.waste, Some(item.mark));
        }
        let (mut bytes, mut waste) = (0, item.waste);
        let mut marks = Vec::new();
        for child in item.children.clone() {
            let (more, wasted, mark) = self.sum_up(child);
            bytes += more;
            waste += wasted;
            marks.extend(mark);
        }
        let first = marks.first().copied().unwrap_or(Mark::Same);
        let mark = if marks.iter().all(|mark| *mark == first) {
            first
        } else {
            Mark::Changed
        };
        if let Some(item) = self.items.get_mut(number) {
            (item.bytes, item.waste, item.mark) = (bytes, waste, mark);
        }
        (bytes, waste, Some(mark))
    }

    /// The items to show, from the root's children on.
    pub(crate) fn rows(&self, view: &View) -> Vec<usize> {
        let mut rows = Vec::new();
        let search = view.search.to_lowercase();
        if let Some(root) = self.items.first() {
            for child in self.ordered(root, view) {
                self.collect(child, view, &search, "", &mut rows);
            }
        }
        rows
    }

    fn ordered(&self, item: &Item, view: &View) -> Vec<usize> {
        let mut children = item.children.clone();
        let of = |child: &usize| self.items.get(*child);
        if view.by_size {
            children.sort_by_key(|child| Reverse(of(child).map_or(0, |item| item.bytes)));
        } else {
            children.sort_by_key(|child| of(child).map(|item| item.name.as_str()));
        }
        children
    }

    /// Adds an item and what is expanded below it; false if nothing of it matches.
    fn collect(
        &self,
        number: usize,
        view: &View,
        search: &str,
        above: &str,
        rows: &mut Vec<usize>,
    ) -> bool {
        let Some(item) = self.items.get(number) else {
            return false;
        };
        if view.hide_same && item.mark == Mark::Same {
            return false;
        }
        let path = format!("{above}/{}", item.name.to_lowercase());
        let found = search.is_empty() || path.contains(search);
        let start = rows.len();
        rows.push(number);
        let mut shown = found;
        // A search expands the directories of its matches.
        if item.open || !search.is_empty() {
            for child in self.ordered(item, view) {
                shown |= self.collect(child, view, search, &path, rows);
            }
        }
        if !shown {
            rows.truncate(start);
        }
        shown
    }
}

impl Item {
    fn directory(name: &str, depth: usize) -> Self {
        Self {
            name: name.to_owned(),
            depth,
            bytes: 0,
            linked: false,
            waste: 0,
            mark: Mark::Same,
            open: depth == 0,
            children: Vec::new(),
        }
    }

    pub(crate) fn is_directory(&self) -> bool {
        !self.children.is_empty()
    }
}

/// The bytes wasted at each path, by all layers: they do not depend on the chosen layer.
fn wasted_at(waste: &[Waste]) -> HashMap<&[u8], u64> {
    let mut wasted: HashMap<&[u8], u64> = HashMap::new();
    for waste in waste {
        let paths = waste.paths.len() as u64;
        // Of duplicates, one path is not waste: the bytes are shown at the others.
        let (skip, parts) = match waste.cause {
            Cause::Duplicate => (1, paths.saturating_sub(1).max(1)),
            _ => (0, paths.max(1)),
        };
        // The bytes of a hard-linked file are divided over its names.
        for (part, path) in (0..).zip(waste.paths.iter().skip(skip)) {
            let rest = u64::from(part < waste.bytes % parts);
            *wasted.entry(path).or_default() += waste.bytes / parts + rest;
        }
    }
    wasted
}

/// Waste by cause, for the bottom line.
pub(crate) fn by_cause(waste: &[Waste]) -> BTreeMap<&'static str, u64> {
    let mut sums = BTreeMap::new();
    for waste in waste {
        *sums.entry(crate::text::cause(waste.cause)).or_default() += waste.bytes;
    }
    sums
}
