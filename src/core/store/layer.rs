//! Layers and the merged trees of their stacks.
//!
//! ```text
//! layers/<diff-id>/
//!   tree-v2          what the layer's tar said; the number is that of the tree's format
//!   tree             a symbolic link to the tree that this store is read by, for people and tools
//!   recipe-v1        how to give back the tar itself; not every layer has one (recipe.rs)
//!   layer.json       the tree's digest, and the few numbers that `history` asks for
//! merged/<chain-id>.tree-v2
//! ```
//!
//! A merged tree is a cache: the merge of a stack is deterministic, so each process that makes it makes the same bytes, and
//! replacing one by another changes nothing for those who have it open. A tree of another format lies beside these under
//! a name of its own, so two versions of cowl never replace each other's trees.

use std::fs::File;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::dir::{Dir, PUBLISHED};
use super::record::{self, Versioned, decode, encode};
use super::{Store, StoreError, Transaction, Trust, object_name, remove_tree};
use crate::digest::{ChainId, DiffId, ObjectId};
use crate::recipe::{FILE_NAME as RECIPE, Recipe};
use crate::sys::mmap::map_published;
use crate::tree::{FileType, Tree, TreeError, TreeIno, merge};
use rustix::fs::Mode;
use rustix::io::Errno;

/// The tree, with the number of its format.
pub(super) const TREE: &str = "tree-v2";
/// The name without the number, a symbolic link to [`TREE`].
pub(super) const TREE_LINK: &str = "tree";
pub(super) const RECORD: &str = "layer.json";
pub(super) const TREE_SUFFIX: &str = ".tree-v2";
/// A recipe is at most 1.5 % of its tar; this is one of a terabyte.
pub(super) const RECIPE_LIMIT: u64 = 16 << 30;

/// `layer.json`: what was seen when the layer came in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// The layer's name, once more.
    pub diff_id: DiffId,
    /// The BLAKE3 that the tree ends with, in hex digits.
    pub tree: ObjectId,
    /// Bytes of the uncompressed tar.
    pub tar_size: u64,
    /// Bytes of all regular files in it, each hard-linked file once: the size that Docker shows.
    pub content_size: u64,
    /// Files, directories and all else that is not a second name of something; whiteouts do not count.
    pub nodes: u32,
}

impl Versioned for LayerInfo {
    const VERSION: u32 = 1;
}

impl LayerInfo {
    /// What there is to note about a layer.
    fn of(diff_id: DiffId, tree: &Tree, tar_size: u64) -> Result<Self, TreeError> {
        let mut content_size = 0_u64;
        for number in 0..tree.node_count() {
            let node = tree.node(TreeIno(number))?;
            if node.file_type == FileType::Regular {
                content_size = content_size.saturating_add(node.size);
            }
        }
        Ok(Self {
            diff_id,
            tree: ObjectId::from_bytes(tree.digest()),
            tar_size,
            content_size,
            nodes: tree.node_count(),
        })
    }

    /// Whether this was noted about a layer; the size of the tar is taken as it stands.
    pub(super) fn describes(&self, diff_id: DiffId, tree: &Tree) -> Result<bool, TreeError> {
        Ok(*self == Self::of(diff_id, tree, self.tar_size)?)
    }
}

/// The tree of a stack, and the file it is mapped from, to be handed to a mount.
#[derive(Debug)]
pub struct MergedTree {
    /// For lookups here.
    pub tree: Tree,
    /// The published file.
    pub file: File,
    /// The stack.
    pub chain: ChainId,
}

pub(super) fn merged_name(chain: ChainId) -> String {
    format!("{}{TREE_SUFFIX}", chain.0.hex())
}

fn staged_name(diff: DiffId) -> String {
    format!("layer-{}", diff.0.hex())
}

impl Store {
    /// A layer's tree, whiteouts and all. None when the store has no such layer.
    pub fn layer_tree(&self, diff: DiffId) -> Result<Option<Tree>, StoreError> {
        match self.layers.sub_if_there(diff.0.hex())? {
            Some(dir) => open_layer(&dir, diff),
            None => Ok(None),
        }
    }

    /// What was noted when the layer came in.
    pub fn layer_info(&self, diff: DiffId) -> Result<Option<LayerInfo>, StoreError> {
        match self.layers.sub_if_there(diff.0.hex())? {
            Some(dir) => read_info(&dir),
            None => Ok(None),
        }
    }

    /// The layer's recipe. None when it has none, or the store has no such layer.
    pub fn layer_recipe(&self, diff: DiffId) -> Result<Option<File>, StoreError> {
        match self.layers.sub_if_there(diff.0.hex())? {
            Some(dir) => dir.open(RECIPE),
            None => Ok(None),
        }
    }

    /// Whether a layer is here with all that belongs to it: files that fit one another, and every object in its size. With
    /// [`Trust::Hash`] the objects are read too.
    fn has_whole_layer(&self, diff: DiffId, trust: Trust) -> Result<bool, StoreError> {
        let Some(dir) = self.layers.sub_if_there(diff.0.hex())? else {
            return Ok(false);
        };
        let (Some(tree), Some(info)) = (open_layer(&dir, diff)?, read_info(&dir)?) else {
            return Ok(false);
        };
        if tree.verify().is_err()
            || !info.describes(diff, &tree).unwrap_or(false)
            || dir.stat(TREE_LINK)?.is_none()
        {
            return Ok(false);
        }
        let recipe = read_recipe_objects(&dir, diff)?.unwrap_or_default();
        let sized = tree.object_sizes().map(|(id, size)| (id, Some(size)));
        for (id, size) in sized.chain(recipe.into_iter().map(|id| (id, None))) {
            let there = self.objects.stat(object_name(id))?;
            let sound = there.is_some_and(|meta| {
                meta.file_type.is_file() && size.is_none_or(|size| size == meta.size)
            });
            if !sound || trust == Trust::Hash && self.hash_object(id)? != id {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The merged tree of a stack, lowest layer first; made and published when the cache does not have it.
    ///
    /// Locking: a stack that a tag, a container or a lease keeps is safe; otherwise gc may take the layers first, which
    /// is [`StoreError::NoLayer`]. Opening checks the header alone; a cached tree that fails even that is made anew.
    pub fn merged(&self, layers: &[DiffId]) -> Result<MergedTree, StoreError> {
        let chain = ChainId::of(layers).ok_or(StoreError::NoLayers)?;
        if let Ok(Some((tree, file))) = open_merged(&self.merged, chain) {
            return Ok(MergedTree { tree, file, chain });
        }
        let transaction = self.begin()?;
        transaction.put_merged(layers)?;
        transaction.publish(&[])?;
        let name = merged_name(chain);
        let opened = open_merged(&self.merged, chain)?;
        let (tree, file) =
            opened.ok_or_else(|| StoreError::io("open", self.merged.join(&name), Errno::NOENT))?;
        Ok(MergedTree { tree, file, chain })
    }
}

impl Transaction<'_> {
    /// Whether the store or this transaction has a layer, whole; it stays then, and need not be added again. What is
    /// damaged of it counts as not there, so adding it heals. With [`Trust::Hash`] its contents are read and hashed.
    pub fn has_layer(&self, diff: DiffId) -> Result<bool, StoreError> {
        if self.staged.borrow().layers.contains(&diff) {
            return Ok(true);
        }
        self.keep_layers(&[diff])?;
        // What cannot be read is not whole.
        Ok(self
            .store
            .has_whole_layer(diff, self.trust)
            .unwrap_or(false))
    }

    /// The size of the tar of a layer that the store has, whole, as [`Transaction::has_layer`] says. None: it has none, or this
    /// transaction brings it.
    pub fn whole_layer(&self, diff: DiffId) -> Result<Option<u64>, StoreError> {
        if !self.has_layer(diff)? {
            return Ok(None);
        }
        Ok(self.store.layer_info(diff)?.map(|info| info.tar_size))
    }

    /// Adds a layer: its tree as `LayerBuilder` made it, verified once more, the size of its tar, and the recipe that gives
    /// the tar back (see [`crate::recipe`]).
    pub fn put_layer(
        &self,
        diff: DiffId,
        tree: Vec<u8>,
        tar_size: u64,
        recipe: Option<&[u8]>,
    ) -> Result<LayerInfo, StoreError> {
        let name = staged_name(diff);
        let path = self.dir.join(&name).join(TREE);
        if self.staged.borrow().layers.contains(&diff) {
            // The same layer twice in an image, or in two images of an archive: the same bytes.
            remove_tree(&self.dir, &name)?;
        }
        self.dir.make(&name, Mode::RWXU)?;
        let dir = self.dir.sub(&name)?;
        dir.create_with(TREE, PUBLISHED, &tree)?;
        dir.symlink(TREE, TREE_LINK)?;
        let verified = Tree::from_bytes(tree).and_then(|tree| {
            tree.verify()?;
            Ok((tree.diff_id(), LayerInfo::of(diff, &tree, tar_size)?))
        });
        let (of, info) = verified.map_err(|source| StoreError::Tree {
            path: path.clone(),
            source,
        })?;
        if of != Some(diff) {
            return Err(StoreError::malformed(path, OTHER_TREE));
        }
        if let Some(recipe) = recipe {
            read_recipe(recipe, diff, &dir.join(RECIPE))?;
            dir.create_with(RECIPE, PUBLISHED, recipe)?;
        }
        dir.create_with(RECORD, PUBLISHED, &encode(&info, &dir.join(RECORD))?)?;
        self.staged.borrow_mut().layers.insert(diff);
        self.publish_early()?;
        Ok(info)
    }

    /// Adds the merged tree of a stack whose layers are in this transaction or in the store, lowest first.
    ///
    /// Each layer's tree is verified as a whole first: what a disk did to one must not get into what all mounts share.
    pub fn put_merged(&self, layers: &[DiffId]) -> Result<(), StoreError> {
        let chain = ChainId::of(layers).ok_or(StoreError::NoLayers)?;
        if self.staged.borrow().merged.contains(&chain) {
            return Ok(());
        }
        self.keep_layers(layers)?;
        let trees = layers
            .iter()
            .map(|diff| self.verified_layer(*diff))
            .collect::<Result<Vec<_>, _>>()?;
        let bytes = merge(&trees)?;
        let name = merged_name(chain);
        self.dir.create_with(&name, PUBLISHED, &bytes)?;
        let verified = Tree::from_bytes(bytes).and_then(|tree| tree.verify());
        verified.map_err(|source| StoreError::Tree {
            path: self.dir.join(&name),
            source,
        })?;
        self.staged.borrow_mut().merged.insert(chain);
        Ok(())
    }

    fn verified_layer(&self, diff: DiffId) -> Result<Tree, StoreError> {
        let dir = if self.staged.borrow().layers.contains(&diff) {
            self.dir.sub(staged_name(diff))?
        } else {
            self.store
                .layers
                .sub_if_there(diff.0.hex())?
                .ok_or(StoreError::NoLayer(diff))?
        };
        let tree = open_layer(&dir, diff)?.ok_or(StoreError::NoLayer(diff))?;
        tree.verify().map_err(|source| StoreError::Tree {
            path: dir.join(TREE),
            source,
        })?;
        Ok(tree)
    }

    /// Gives a staged layer its place. One that is there with the same bytes stays; a damaged one changes places with it, and
    /// goes with the transaction. The caller holds the store's lock, which others who do the same share with it.
    pub(super) fn publish_layer(&self, diff: DiffId) -> Result<(), StoreError> {
        let (staged, name) = (staged_name(diff), diff.0.hex());
        let layers = &self.store.layers;
        loop {
            match self.dir.rename(&staged, layers, &name) {
                Err(error)
                    if matches!(
                        error.errno(),
                        Some(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR)
                    ) => {}
                done => return done,
            }
            if same_layer(&self.dir.sub(&staged)?, layers, &name)?
                || self.dir.exchange(&staged, layers, &name)?
            {
                return Ok(());
            }
            // Where names cannot be exchanged, or another process took it away meanwhile. A crash before the next rename
            // leaves no layer in place of a damaged one; the same load again puts it there.
            match layers.rename(&name, &self.dir, self.temporary()) {
                Err(error) if error.errno() == Some(Errno::NOENT) => {}
                moved => moved?,
            }
        }
    }
}

/// Whether what stands in `layers/` is what was just made. A file where a directory should be is not.
fn same_layer(staged: &Dir, layers: &Dir, name: &str) -> Result<bool, StoreError> {
    let Ok(there) = layers.sub(name) else {
        return Ok(false);
    };
    for file in [TREE, RECORD, RECIPE] {
        let ours = staged.read(file, RECIPE_LIMIT)?;
        // One that can't even be read is not the same either.
        if there.read(file, RECIPE_LIMIT).ok() != Some(ours) {
            return Ok(false);
        }
    }
    Ok(there.stat(TREE_LINK)?.is_some())
}

const OTHER_TREE: &str =
    "it is the tree of another layer or stack; load its image again to replace it";
/// The objects that a layer's recipe needs; None where there is no recipe.
pub(super) fn read_recipe_objects(
    dir: &Dir,
    diff: DiffId,
) -> Result<Option<Vec<ObjectId>>, StoreError> {
    let Some(file) = dir.open(RECIPE)? else {
        return Ok(None);
    };
    let path = dir.join(RECIPE);
    let map = map_published(&file).map_err(|source| StoreError::io("map", &path, source))?;
    read_recipe(&map, diff, &path).map(Some)
}

/// Checks a recipe as a whole, and that it is this layer's; the objects it needs.
fn read_recipe(bytes: &[u8], diff: DiffId, path: &Path) -> Result<Vec<ObjectId>, StoreError> {
    let opened = Recipe::open(bytes).and_then(|recipe| {
        recipe.verify()?;
        Ok(recipe)
    });
    let recipe = opened.map_err(|error| StoreError::malformed(path, error.to_string()))?;
    if recipe.diff_id() != diff {
        return Err(StoreError::malformed(
            path,
            "it is the recipe of another layer",
        ));
    }
    Ok(recipe.object_ids().collect())
}

/// Opens the tree of a layer in its directory, and refuses another layer's. None when there is no such file.
pub(super) fn open_layer(dir: &Dir, diff: DiffId) -> Result<Option<Tree>, StoreError> {
    let opened = open_tree(dir, TREE, |tree| tree.diff_id() == Some(diff))?;
    Ok(opened.map(|(tree, _)| tree))
}

/// Opens the merged tree of a stack, and refuses another stack's. None when there is no such file.
pub(super) fn open_merged(
    merged: &Dir,
    chain: ChainId,
) -> Result<Option<(Tree, File)>, StoreError> {
    open_tree(merged, &merged_name(chain), |tree| {
        tree.chain_id() == Some(chain)
    })
}

/// Checks no more than the header.
fn open_tree(
    dir: &Dir,
    name: &str,
    is_its_own: impl FnOnce(&Tree) -> bool,
) -> Result<Option<(Tree, File)>, StoreError> {
    let Some(file) = dir.open(name)? else {
        return Ok(None);
    };
    let path = dir.join(name);
    let tree = Tree::open(&file).map_err(|source| StoreError::Tree {
        path: path.clone(),
        source,
    })?;
    if !is_its_own(&tree) {
        return Err(StoreError::malformed(path, OTHER_TREE));
    }
    Ok(Some((tree, file)))
}

pub(super) fn read_info(dir: &Dir) -> Result<Option<LayerInfo>, StoreError> {
    let Some(bytes) = dir.read(RECORD, record::LIMIT)? else {
        return Ok(None);
    };
    decode(&bytes, &dir.join(RECORD)).map(Some)
}
