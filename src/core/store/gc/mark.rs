//! Marking: which layers, objects, merged trees and blobs the roots reach, and whether the roots
//! are still those that were marked.
//!
//! Invariant: what is marked stays marked, so an absorbed root may go and come back. Each stamp is
//! taken before its file is read: a file that is replaced meanwhile counts as new the next time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;

use hashbrown::HashTable;

use super::super::dir::{Stamp, StoreDir};
use super::super::layer::{TREE, open_layer, read_recipe_objects};
use super::super::parallel::in_parallel;
use super::super::pins::{PinKind, name_of};
use super::super::roots::{Reachable, Root};
use super::super::tags::is_tag_file;
use super::super::{Store, StoreError};
use super::scan::What;
use crate::digest::{DiffId, ObjectId};

/// Layers whose objects are listed before they are marked: what a gc holds twice in memory.
const LAYERS_AT_ONCE: usize = 64;

/// The marks of a gc.
pub(in super::super) struct Marked {
    reachable: Reachable,
    objects: Objects,
    tags: HashMap<Box<OsStr>, Stamp>,
    pins: HashMap<Box<OsStr>, Stamp>,
    /// Names of pins that are no roots.
    dropped: Vec<String>,
    /// The stamps of layers as they were marked; None: it did not exist.
    layers: HashMap<DiffId, Option<Stamp>>,
    /// Layers that a running load names: it may publish or replace them at any time.
    changeable: BTreeSet<DiffId>,
    unread_root: bool,
    unread_layer: bool,
    damaged: Vec<StoreError>,
}

/// Roots that are new or were replaced, and layers that were.
#[derive(Debug, Default)]
pub(in super::super) struct News {
    tags: Vec<(Box<OsStr>, Stamp)>,
    pins: Vec<(Box<OsStr>, Stamp, PinKind)>,
    layers: BTreeSet<DiffId>,
}

impl News {
    pub(super) fn is_empty(&self) -> bool {
        self.tags.is_empty() && self.pins.is_empty() && self.layers.is_empty()
    }
}

impl Marked {
    pub(super) fn new(dropped_pins: &[String]) -> Self {
        Self {
            reachable: Reachable::default(),
            objects: Objects::default(),
            tags: HashMap::new(),
            pins: HashMap::new(),
            dropped: dropped_pins.to_vec(),
            layers: HashMap::new(),
            changeable: BTreeSet::new(),
            unread_root: false,
            unread_layer: false,
            damaged: Vec::new(),
        }
    }

    /// What has come since the last [`Marked::absorb`].
    pub(super) fn news(&self, store: &Store) -> Result<News, StoreError> {
        let mut news = News::default();
        let refs = store.refs()?;
        for name in refs.names()? {
            if is_tag_file(&name)
                && let Some(stamp) = new_stamp(refs, &name, &self.tags)?
            {
                news.tags.push((name, stamp));
            }
        }
        let pins = store.pin_files()?;
        for name in pins.names()? {
            if let Some(kind) = PinKind::of(&name)
                && !self.is_dropped(&name)
                && let Some(stamp) = new_stamp(pins, &name, &self.pins)?
            {
                news.pins.push((name, stamp, kind));
            }
        }
        for diff in &self.changeable {
            if self.layers.get(diff) != Some(&layer_stamp(store, *diff)?) {
                news.layers.insert(*diff);
            }
        }
        Ok(news)
    }

    /// Whether a pin is to be treated as removed.
    pub(super) fn is_dropped(&self, pin: &OsStr) -> bool {
        is_dropped(pin, &self.dropped)
    }

    /// Marks what the news reach.
    pub(super) fn absorb(&mut self, store: &Store, news: News) -> Result<(), StoreError> {
        let mut layers = news.layers;
        for (name, stamp) in news.tags {
            self.root(store.tag_root(&name), &mut layers);
            self.tags.insert(name, stamp);
        }
        for (name, stamp, kind) in news.pins {
            self.root(store.pin_root(&name, kind), &mut layers);
            self.pins.insert(name, stamp);
        }
        let mut changed = Vec::new();
        for diff in layers {
            let stamp = layer_stamp(store, diff)?;
            if self.layers.get(&diff) != Some(&stamp) {
                self.layers.insert(diff, stamp);
                changed.push(diff);
            }
        }
        for some in changed.chunks(LAYERS_AT_ONCE) {
            let kept = in_parallel(some, |diff| store.objects_kept_by(*diff));
            for (diff, kept) in some.iter().zip(kept) {
                match kept {
                    Ok(Some(objects)) => self.objects.extend(&objects),
                    // A running load has not published it yet.
                    Ok(None) if !self.reachable.complete.contains(diff) => {}
                    Ok(None) => self.unread_layer(StoreError::NoLayer(*diff)),
                    Err(error) => self.unread_layer(error),
                }
            }
        }
        Ok(())
    }

    fn root(&mut self, root: Result<Option<Root>, StoreError>, layers: &mut BTreeSet<DiffId>) {
        match root {
            Ok(Some(root)) => {
                layers.extend(&root.layers);
                if root.pending {
                    self.changeable.extend(&root.layers);
                }
                self.reachable.add(&root);
            }
            // Removed since the listing, or stale.
            Ok(None) => {}
            Err(error) => {
                self.unread_root = true;
                self.damaged.push(error);
            }
        }
    }

    fn unread_layer(&mut self, error: StoreError) {
        self.unread_layer = true;
        self.damaged.push(error);
    }

    /// Whether nothing reaches this, as far as the roots could be read.
    pub(super) fn is_garbage(&self, what: &What) -> bool {
        match what {
            What::Pin(_) => true,
            _ if self.unread_root => false,
            What::Merged(chain) => !self.reachable.chains.contains(chain),
            What::Layer(diff) => !self.reachable.layers.contains(diff),
            What::Object(id) => !self.unread_layer && !self.objects.contains(*id),
            What::Blob(digest) => !self.reachable.blobs.contains(digest),
        }
    }

    /// Whether objects can be told to be garbage at all.
    pub(super) fn knows_objects(&self) -> bool {
        !self.unread_root && !self.unread_layer
    }

    /// The tags and the pins that were marked, with their stamps.
    pub(super) fn roots(&self) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        let text = |files: &HashMap<Box<OsStr>, Stamp>| {
            let named = files.iter();
            named
                .map(|(name, stamp)| (name.to_string_lossy().into_owned(), stamp.to_string()))
                .collect()
        };
        (text(&self.tags), text(&self.pins))
    }

    /// The layers that were marked and exist, with their stamps.
    pub(super) fn layers(&self) -> BTreeMap<String, String> {
        let named = |(diff, stamp): (&DiffId, &Option<Stamp>)| {
            Some((diff.0.hex(), stamp.as_ref()?.to_string()))
        };
        self.layers.iter().filter_map(named).collect()
    }

    /// Whether all that roots and layers reach could be marked.
    pub(super) fn is_whole(&self) -> bool {
        self.damaged.is_empty() && self.knows_objects()
    }

    pub(super) fn into_damaged(self) -> Vec<StoreError> {
        self.damaged
    }
}

/// Whether a pin's file is that of one of these pins.
pub(super) fn is_dropped(file: &OsStr, pins: &[String]) -> bool {
    name_of(file).is_some_and(|name| pins.iter().any(|pin| pin == name))
}

/// The stamp of a file unless it is the known one.
fn new_stamp(
    dir: &StoreDir,
    name: &OsStr,
    known: &HashMap<Box<OsStr>, Stamp>,
) -> Result<Option<Stamp>, StoreError> {
    let stamp = dir.stat(name)?.map(|meta| meta.stamp);
    Ok(stamp.filter(|stamp| known.get(name) != Some(stamp)))
}

fn layer_stamp(store: &Store, diff: DiffId) -> Result<Option<Stamp>, StoreError> {
    let meta = store.layers()?.stat(diff.0.hex())?;
    Ok(meta.map(|meta| meta.stamp))
}

/// A set of object ids by their first byte: a table each, which stays in a processor's cache while
/// a fan-out directory is looked through.
///
/// Of an id it has the last eight bytes, so a million take 16 MB instead of 64. Ids are hashes:
/// should two share those bytes, the set has both, and an object stays that nothing needs.
struct Objects {
    tables: Vec<HashTable<u64>>,
}

impl Default for Objects {
    fn default() -> Self {
        Self {
            tables: vec![HashTable::new(); usize::from(u8::MAX) + 1],
        }
    }
}

impl Objects {
    fn extend(&mut self, ids: &[ObjectId]) {
        for id in ids {
            let (first, tail) = key(*id);
            if let Some(table) = self.tables.get_mut(first) {
                let same = |other: &u64| *other == tail;
                table.entry(tail, same, |tail| *tail).or_insert(tail);
            }
        }
    }

    fn contains(&self, id: ObjectId) -> bool {
        let (first, tail) = key(id);
        let table = self.tables.get(first);
        table.is_some_and(|table| table.find(tail, |other| *other == tail).is_some())
    }
}

/// The number of an id's table, and what that has of it, which is its own hash.
fn key(id: ObjectId) -> (usize, u64) {
    let bytes = id.as_bytes();
    let [first, ..] = *bytes;
    let tail = bytes.last_chunk().copied().unwrap_or_default();
    (first.into(), u64::from_le_bytes(tail))
}

impl Store {
    /// The objects that a layer's tree and recipe need; None without the layer.
    pub(in super::super) fn objects_kept_by(
        &self,
        diff: DiffId,
    ) -> Result<Option<Vec<ObjectId>>, StoreError> {
        let Some(dir) = self.layers()?.open_dir_if_exists(diff.0.hex())? else {
            return Ok(None);
        };
        let tree = open_layer(&dir, diff)?.ok_or(StoreError::NoLayer(diff))?;
        // A damaged tree could hide an object that an image needs. Its shape was checked when it
        // was published.
        tree.verify_digest().map_err(|source| StoreError::Tree {
            path: dir.join(TREE),
            source,
        })?;
        let mut objects = read_recipe_objects(&dir, diff, &tree)?.unwrap_or_default();
        objects.extend(tree.object_ids());
        Ok(Some(objects))
    }
}
