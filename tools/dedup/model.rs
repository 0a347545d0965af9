//! The data of a report: contents, layers and images, each with a number.
//!
//! Invariant: an [`ObjectNumber`] and a layer's index in [`Collection::layers`] never change, so
//! everything else stores numbers of four bytes instead of digests of 32.

use cowl_core::digest::{DiffId, ImageId, ObjectId};
use cowl_core::store::ObjectUsage;
use cowl_core::tree::{ObjectRef, Tree, TreeIno};

/// The index of a content in [`Objects`].
pub(crate) type ObjectNumber = u32;

/// The distinct contents of all layers, with their sizes.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    ids: Vec<ObjectId>,
    sizes: Vec<u64>,
    /// The store that has each content, by its index in the collection's stores.
    stores: Vec<u8>,
    /// Hash table with open addressing; the hash is the first bytes of the id. A slot has the
    /// number + 1; 0 is free.
    slots: Vec<u32>,
}

impl Objects {
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn id(&self, number: ObjectNumber) -> Option<ObjectId> {
        self.ids.get(number as usize).copied()
    }

    pub(crate) fn size(&self, number: ObjectNumber) -> u64 {
        self.sizes.get(number as usize).copied().unwrap_or(0)
    }

    /// The number of the store that has a content.
    pub(crate) fn store(&self, number: ObjectNumber) -> usize {
        self.stores
            .get(number as usize)
            .copied()
            .unwrap_or(0)
            .into()
    }

    pub(crate) fn find(&self, id: &ObjectId) -> Option<ObjectNumber> {
        self.slot(id).ok()
    }

    /// The number of a content; a new one if it is unknown.
    pub(crate) fn intern(&mut self, id: ObjectId, size: u64, store: u8) -> ObjectNumber {
        if (self.ids.len() + 1) * 2 > self.slots.len() {
            self.grow();
        }
        match self.slot(&id) {
            Ok(number) => number,
            Err(slot) => {
                let number = u32::try_from(self.ids.len()).unwrap_or(u32::MAX);
                self.ids.push(id);
                self.sizes.push(size);
                self.stores.push(store);
                if let Some(slot) = self.slots.get_mut(slot) {
                    *slot = number.saturating_add(1);
                }
                number
            }
        }
    }

    /// The number of a content, or its free slot.
    fn slot(&self, id: &ObjectId) -> Result<ObjectNumber, usize> {
        let mask = self.slots.len().wrapping_sub(1);
        let first = id.as_bytes().first_chunk().copied().unwrap_or_default();
        let hash = u64::from_le_bytes(first);
        let mut slot = usize::try_from(hash & (mask as u64)).unwrap_or(0);
        loop {
            match self.slots.get(slot).copied() {
                None | Some(0) => return Err(slot),
                Some(number) if self.ids.get(number as usize - 1) == Some(id) => {
                    return Ok(number - 1);
                }
                Some(_) => slot = slot.wrapping_add(1) & mask,
            }
        }
    }

    fn grow(&mut self) {
        self.slots = vec![0; (self.slots.len() * 2).max(1024)];
        for number in 0..self.ids.len() {
            let Some(id) = self.ids.get(number).copied() else {
                continue;
            };
            if let Err(slot) = self.slot(&id)
                && let Some(slot) = self.slots.get_mut(slot)
            {
                *slot = u32::try_from(number + 1).unwrap_or(u32::MAX);
            }
        }
    }
}

/// A layer and its contents.
pub(crate) struct Layer {
    pub(crate) diff: DiffId,
    /// Bytes of all its files: duplicates count each, hard links once.
    pub(crate) logical: u64,
    /// Its contents in the order of the tree's object table: an [`ObjectRef`] is an index into it.
    pub(crate) contents: Vec<ObjectNumber>,
    /// Contents that only its recipe needs: the layer itself replaces them.
    pub(crate) hidden: Vec<ObjectNumber>,
    pub(crate) tree: Tree,
}

impl Layer {
    /// Its distinct contents.
    pub(crate) fn objects(&self) -> impl Iterator<Item = ObjectNumber> + use<'_> {
        self.contents.iter().chain(&self.hidden).copied()
    }

    pub(crate) fn content(&self, object: ObjectRef) -> Option<ObjectNumber> {
        self.contents.get(object.0 as usize).copied()
    }

    /// The content of each of its files, in the order of the tree; hard links are one file.
    pub(crate) fn files(&self) -> impl Iterator<Item = ObjectNumber> + use<'_> {
        let nodes =
            (0..self.tree.node_count()).filter_map(|node| self.tree.node(TreeIno(node)).ok());
        nodes.filter_map(|node| self.content(node.object?))
    }
}

/// One step of an image's history.
#[derive(Debug, Clone, Default)]
pub(crate) struct Step {
    /// The command; empty if the configuration has none for the layer.
    pub(crate) created_by: String,
}

/// An image.
#[derive(Debug)]
pub(crate) struct Image {
    /// Its names, separated by commas, or its id.
    pub(crate) name: String,
    pub(crate) id: ImageId,
    /// The store it is in.
    pub(crate) store: usize,
    /// Whether the report lists it; other images only count as sharers.
    pub(crate) chosen: bool,
    /// Bottom first; indices into [`Collection::layers`].
    pub(crate) layers: Vec<usize>,
    /// The history step of each layer.
    pub(crate) steps: Vec<Step>,
    /// The images, including this one, that lose their last name if this one is removed.
    pub(crate) removed_with: Vec<ImageId>,
}

/// All images of a report, with their layers and contents.
pub(crate) struct Collection {
    pub(crate) objects: Objects,
    pub(crate) layers: Vec<Layer>,
    /// The chosen images in the order of the arguments, then by name.
    pub(crate) images: Vec<Image>,
    /// Layers that containers, mounts and loads keep in addition to the images.
    pub(crate) pins: Vec<Vec<usize>>,
    /// Disk usage of the objects of all stores.
    pub(crate) disk: ObjectUsage,
    /// Errors of requested images, which are left out.
    pub(crate) failed: Vec<anyhow::Error>,
    /// Errors of other images.
    pub(crate) skipped: Vec<anyhow::Error>,
}

impl Collection {
    pub(crate) fn layer(&self, number: usize) -> Option<&Layer> {
        self.layers.get(number)
    }

    /// The layers of a stack.
    pub(crate) fn stack<'c>(
        &'c self,
        layers: &'c [usize],
    ) -> impl Iterator<Item = &'c Layer> + Clone {
        layers.iter().filter_map(|number| self.layers.get(*number))
    }

    /// The images that the report lists.
    pub(crate) fn chosen(&self) -> impl Iterator<Item = &Image> {
        self.images.iter().filter(|image| image.chosen)
    }
}
