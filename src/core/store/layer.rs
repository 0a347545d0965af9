//! Layers and the merged trees of their stacks.
//!
//! ```text
//! layers/<diff-id>/
//!   tree-v2          the layer's files; the number is the tree format's version
//!   tree             a symbolic link to the current tree, for people and tools
//!   recipe-v2        restores the exact tar (src/core/recipe)
//!   layer.json       the tree's digest, and the sizes that `history` shows
//! merged/<chain-id>.tree-v2
//! ```
//!
//! A merged tree is a cache. Merging is deterministic: every process produces the same bytes, and
//! replacing a merged tree does not affect open ones. The format's version is part of the name, so
//! two versions of cowl never replace each other's trees.

use std::fs::File;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::dir::{PUBLISHED, StoreDir};
use super::record::{self, Versioned, decode, encode};
use super::{Store, StoreError, Transaction, Trust, object_name, remove_tree};
use crate::digest::{ChainId, DiffId, ObjectId};
use crate::recipe::{FILE_NAME as RECIPE, Recipe};
use crate::sys::mmap::map_published;
use crate::tree::{FileType, Tree, TreeError, TreeIno, merge};
use rustix::fs::Mode;
use rustix::io::Errno;

/// The tree file; the suffix is the version of its format.
pub(super) const TREE: &str = "tree-v2";
/// The unversioned name, a symbolic link to [`TREE`].
pub(super) const TREE_LINK: &str = "tree";
pub(super) const RECORD: &str = "layer.json";
pub(super) const TREE_SUFFIX: &str = ".tree-v2";
/// What a recipe has at most: 1.5 % of a terabyte. Those of usual layers are below 0.5 % of their
/// tars, and the worst of small layers below 3 %.
pub(super) const RECIPE_LIMIT: u64 = 16 << 30;

/// `layer.json`: facts recorded when the layer was imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// The layer's DiffID.
    pub diff_id: DiffId,
    /// The BLAKE3 at the end of the tree file.
    pub tree: ObjectId,
    /// Bytes of the uncompressed tar.
    pub tar_size: u64,
    /// Bytes of its regular files, each hard-linked file once: the size that Docker shows.
    pub content_size: u64,
    /// Nodes: files, directories, links and devices, each hard-linked file once; no whiteouts.
    pub nodes: u32,
}

impl Versioned for LayerInfo {
    const VERSION: u32 = 1;
}

impl LayerInfo {
    /// The record of a layer.
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

    /// Whether the record matches a layer and its tree; `tar_size` is not checked.
    pub(super) fn describes(&self, diff_id: DiffId, tree: &Tree) -> Result<bool, TreeError> {
        Ok(*self == Self::of(diff_id, tree, self.tar_size)?)
    }
}

/// The merged tree of a stack, with the file it is mapped from, which a mount receives.
#[derive(Debug)]
pub struct MergedTree {
    /// For lookups in this process.
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
    /// A layer's tree, whiteouts included. None if the store lacks the layer.
    pub fn layer_tree(&self, diff: DiffId) -> Result<Option<Tree>, StoreError> {
        match self.layers()?.open_dir_if_exists(diff.0.hex())? {
            Some(dir) => open_layer(&dir, diff),
            None => Ok(None),
        }
    }

    /// A layer's record. None if the store lacks the layer.
    pub fn layer_info(&self, diff: DiffId) -> Result<Option<LayerInfo>, StoreError> {
        let name = format!("{}/{RECORD}", diff.0.hex());
        read_record(self.layers()?, &name)
    }

    /// A layer's recipe. None if the store lacks the layer, or has lost the file.
    pub fn layer_recipe(&self, diff: DiffId) -> Result<Option<File>, StoreError> {
        match self.layers()?.open_dir_if_exists(diff.0.hex())? {
            Some(dir) => dir.open(RECIPE),
            None => Ok(None),
        }
    }

    /// Whether a layer is complete: its files match one another and every object has its size.
    /// With [`Trust::Hash`] the objects are hashed too.
    fn has_whole_layer(&self, diff: DiffId, trust: Trust) -> Result<bool, StoreError> {
        let Some(dir) = self.layers()?.open_dir_if_exists(diff.0.hex())? else {
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
        let Some(recipe) = read_recipe_objects(&dir, diff, &tree)? else {
            return Ok(false);
        };
        let sized = tree.object_sizes().map(|(id, size)| (id, Some(size)));
        for (id, size) in sized.chain(recipe.into_iter().map(|id| (id, None))) {
            let there = self.objects()?.stat(object_name(id))?;
            let sound = there.is_some_and(|meta| {
                meta.file_type.is_file() && size.is_none_or(|size| size == meta.size)
            });
            if !sound || trust == Trust::Hash && self.hash_object(id)? != id {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The merged tree of a stack, lowest layer first; merges and publishes it if it is not
    /// cached.
    ///
    /// Locking: a tag, a container's pin or a lease must keep the stack; otherwise gc may remove
    /// its layers first ([`StoreError::NoLayer`]). Opening checks the header only; a cached tree
    /// with a bad header is rebuilt.
    pub fn merged(&self, layers: &[DiffId]) -> Result<MergedTree, StoreError> {
        let chain = ChainId::of(layers);
        if let Ok(Some((tree, file))) = open_merged(self.merged_trees()?, chain) {
            return Ok(MergedTree { tree, file, chain });
        }
        let transaction = self.begin()?;
        transaction.put_merged(layers)?;
        transaction.publish(&[])?;
        let name = merged_name(chain);
        let dir = self.merged_trees()?;
        let opened = open_merged(dir, chain)?;
        let (tree, file) =
            opened.ok_or_else(|| StoreError::io("open", dir.join(&name), Errno::NOENT))?;
        Ok(MergedTree { tree, file, chain })
    }
}

impl Transaction<'_> {
    /// Whether the store or this transaction has a complete layer; if so, the transaction keeps it
    /// from gc. A damaged layer counts as missing: adding it again replaces it. With
    /// [`Trust::Hash`] its objects are hashed.
    pub fn has_layer(&self, diff: DiffId) -> Result<bool, StoreError> {
        if self.staged.lock().layers.contains(&diff) {
            return Ok(true);
        }
        self.keep_layers(&[diff])?;
        // An unreadable layer is not complete.
        Ok(self
            .store
            .has_whole_layer(diff, self.trust)
            .unwrap_or(false))
    }

    /// The tar size of a complete layer of the store (see [`Transaction::has_layer`]). None if it
    /// lacks the layer or this transaction adds it.
    pub fn whole_layer(&self, diff: DiffId) -> Result<Option<u64>, StoreError> {
        if !self.has_layer(diff)? {
            return Ok(None);
        }
        Ok(self.store.layer_info(diff)?.map(|info| info.tar_size))
    }

    /// Adds a layer: the tree of a `LayerBuilder`, which is verified again, the size of its tar,
    /// and the recipe that restores the tar (see [`crate::recipe`]).
    pub fn put_layer(
        &self,
        diff: DiffId,
        tree: Vec<u8>,
        tar_size: u64,
        recipe: &[u8],
    ) -> Result<LayerInfo, StoreError> {
        self.put_layer_with(diff, tree, tar_size, recipe, |_, _| Ok(()))
    }

    /// [`Self::put_layer`]; `adopt` is given the tree and the recipe's own objects once both are
    /// sound, and makes the layer's objects the transaction's.
    pub(super) fn put_layer_with(
        &self,
        diff: DiffId,
        tree: Vec<u8>,
        tar_size: u64,
        recipe: &[u8],
        adopt: impl FnOnce(&Tree, &[ObjectId]) -> Result<(), StoreError>,
    ) -> Result<LayerInfo, StoreError> {
        let name = staged_name(diff);
        let path = self.dir.join(&name).join(TREE);
        if self.staged.lock().layers.contains(&diff) {
            // An image or an archive may have a layer twice: the bytes are the same.
            remove_tree(&self.dir, &name)?;
        }
        self.dir.create_dir(&name, Mode::RWXU)?;
        let dir = self.dir.open_dir(&name)?;
        dir.create_with(TREE, PUBLISHED, &tree)?;
        dir.symlink(TREE, TREE_LINK)?;
        let verified = Tree::from_bytes(tree).and_then(|tree| {
            tree.verify()?;
            Ok((LayerInfo::of(diff, &tree, tar_size)?, tree))
        });
        let (info, tree) = verified.map_err(|source| StoreError::Tree {
            path: path.clone(),
            source,
        })?;
        if tree.diff_id() != Some(diff) {
            return Err(StoreError::malformed(path, OTHER_TREE));
        }
        let own = read_recipe(recipe, diff, &tree, &dir.join(RECIPE))?;
        dir.create_with(RECIPE, PUBLISHED, recipe)?;
        dir.create_with(RECORD, PUBLISHED, &encode(&info, &dir.join(RECORD))?)?;
        adopt(&tree, &own)?;
        // The tree is not needed beside what publishing holds.
        drop(tree);
        self.staged.lock().layers.insert(diff);
        self.publish_early()?;
        Ok(info)
    }

    /// Adds the merged tree of a stack whose layers are in this transaction or in the store,
    /// lowest first.
    ///
    /// Verifies each layer's tree first: damage must not reach the merged tree that all mounts
    /// share.
    pub fn put_merged(&self, layers: &[DiffId]) -> Result<(), StoreError> {
        let chain = ChainId::of(layers);
        if self.staged.lock().merged.contains(&chain) {
            return Ok(());
        }
        self.keep_layers(layers)?;
        let trees = layers
            .iter()
            .map(|diff| self.verified_layer(*diff))
            .collect::<Result<Vec<_>, _>>()?;
        let bytes = merge(trees)?;
        let name = merged_name(chain);
        self.dir.create_with(&name, PUBLISHED, &bytes)?;
        let verified = Tree::from_bytes(bytes).and_then(|tree| tree.verify());
        verified.map_err(|source| StoreError::Tree {
            path: self.dir.join(&name),
            source,
        })?;
        self.staged.lock().merged.insert(chain);
        Ok(())
    }

    fn verified_layer(&self, diff: DiffId) -> Result<Tree, StoreError> {
        let dir = if self.staged.lock().layers.contains(&diff) {
            self.dir.open_dir(staged_name(diff))?
        } else {
            self.store
                .layers()?
                .open_dir_if_exists(diff.0.hex())?
                .ok_or(StoreError::NoLayer(diff))?
        };
        let tree = open_layer(&dir, diff)?.ok_or(StoreError::NoLayer(diff))?;
        tree.verify().map_err(|source| StoreError::Tree {
            path: dir.join(TREE),
            source,
        })?;
        Ok(tree)
    }

    /// Publishes a staged layer. An existing layer with the same bytes stays; a damaged one is
    /// exchanged with it and removed with the transaction. The caller holds the store's lock
    /// shared, so other transactions may publish the same layer meanwhile.
    pub(super) fn publish_layer(&self, diff: DiffId) -> Result<(), StoreError> {
        let (staged, name) = (staged_name(diff), diff.0.hex());
        let layers = self.store.layers()?;
        loop {
            match self.dir.rename(&staged, layers, &name) {
                Err(error)
                    if matches!(
                        error.errno(),
                        Some(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR)
                    ) => {}
                done => return done,
            }
            if same_layer(&self.dir.open_dir(&staged)?, layers, &name)?
                || self.dir.exchange(&staged, layers, &name)?
            {
                return Ok(());
            }
            // RENAME_EXCHANGE is unsupported, or another process moved the layer away. A crash
            // before the next rename leaves no layer instead of a damaged one; the next load adds
            // it.
            match layers.rename(&name, &self.dir, self.temporary()) {
                Err(error) if error.errno() == Some(Errno::NOENT) => {}
                moved => moved?,
            }
        }
    }
}

/// Whether the layer in `layers/` has the same bytes as the staged one. A file instead of a
/// directory does not.
fn same_layer(staged: &StoreDir, layers: &StoreDir, name: &str) -> Result<bool, StoreError> {
    let Ok(there) = layers.open_dir(name) else {
        return Ok(false);
    };
    for file in [TREE, RECORD, RECIPE] {
        let ours = staged.read(file, RECIPE_LIMIT)?;
        // An unreadable file differs.
        if there.read(file, RECIPE_LIMIT).ok() != Some(ours) {
            return Ok(false);
        }
    }
    Ok(there.stat(TREE_LINK)?.is_some())
}

const OTHER_TREE: &str =
    "it is the tree of another layer or stack; load its image again to replace it";

/// The objects that a layer's recipe needs beside the tree's; None without a recipe.
pub(super) fn read_recipe_objects(
    dir: &StoreDir,
    diff: DiffId,
    tree: &Tree,
) -> Result<Option<Vec<ObjectId>>, StoreError> {
    let Some(file) = dir.open(RECIPE)? else {
        return Ok(None);
    };
    let path = dir.join(RECIPE);
    let map = map_published(&file).map_err(|source| StoreError::io("map", &path, source))?;
    read_recipe(&map, diff, tree, &path).map(Some)
}

/// Verifies a recipe, its DiffID, and that it counts the objects of this tree; returns the objects
/// that it needs besides.
fn read_recipe(
    bytes: &[u8],
    diff: DiffId,
    tree: &Tree,
    path: &Path,
) -> Result<Vec<ObjectId>, StoreError> {
    let recipe = Recipe::open_verified(bytes, diff, tree.object_count())
        .map_err(|error| StoreError::malformed(path, error.to_string()))?;
    Ok(recipe.own_object_ids().collect())
}

/// Opens a layer's tree and refuses the tree of another layer. None if the file does not exist.
pub(super) fn open_layer(dir: &StoreDir, diff: DiffId) -> Result<Option<Tree>, StoreError> {
    let opened = open_tree(dir, TREE, |tree| tree.diff_id() == Some(diff))?;
    Ok(opened.map(|(tree, _)| tree))
}

/// Opens the merged tree of a stack and refuses another stack's. None if the file does not exist.
pub(super) fn open_merged(
    merged: &StoreDir,
    chain: ChainId,
) -> Result<Option<(Tree, File)>, StoreError> {
    open_tree(merged, &merged_name(chain), |tree| {
        tree.chain_id() == Some(chain)
    })
}

/// Checks the header only.
fn open_tree(
    dir: &StoreDir,
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

pub(super) fn read_info(layer: &StoreDir) -> Result<Option<LayerInfo>, StoreError> {
    read_record(layer, RECORD)
}

fn read_record(dir: &StoreDir, name: &str) -> Result<Option<LayerInfo>, StoreError> {
    let Some(bytes) = dir.read(name, record::LIMIT)? else {
        return Ok(None);
    };
    decode(&bytes, &dir.join(name)).map(Some)
}
