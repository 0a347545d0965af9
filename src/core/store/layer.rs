//! Layers and the merged trees of their stacks.
//!
//! `layers/<diff-id>/tree` is what a layer's tar said, `layer.json` the few numbers a person or `history` asks for.
//! `merged/<chain-id>.tree` is a cache: the merge of a stack is deterministic, so whoever makes it makes the same bytes,
//! and replacing one by another changes nothing for those who have it open.

use std::fs::File;

use serde::{Deserialize, Serialize};

use super::dir::{Dir, PUBLISHED};
use super::{Store, StoreError, Transaction, remove_tree};
use crate::digest::{ChainId, DiffId};
use crate::tree::{FileType, Tree, TreeError, TreeIno, merge};
use rustix::fs::Mode;
use rustix::io::Errno;

pub(super) const TREE: &str = "tree";
pub(super) const RECORD: &str = "layer.json";
pub(super) const RECORD_LIMIT: u64 = 64 * 1024;
pub(super) const TREE_SUFFIX: &str = ".tree";

/// `layer.json`: what was seen when the layer came in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The layer's name, once more.
    pub diff_id: DiffId,
    /// Bytes of the uncompressed tar.
    pub tar_size: u64,
    /// Bytes of all regular files in it, each hard-linked file once: the size that Docker shows.
    pub content_size: u64,
    /// Files, directories and all else that is not a second name of something; whiteouts do not count.
    pub nodes: u32,
}

impl LayerRecord {
    /// What there is to note about a layer.
    fn of(diff_id: DiffId, tree: &Tree, tar_size: u64) -> Result<Self, TreeError> {
        let mut content_size = 0;
        for number in 0..tree.node_count() {
            let node = tree.node(TreeIno(number))?;
            if node.file_type == FileType::Regular {
                content_size += node.size;
            }
        }
        Ok(Self {
            diff_id,
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
    pub fn layer_record(&self, diff: DiffId) -> Result<Option<LayerRecord>, StoreError> {
        match self.layers.sub_if_there(diff.0.hex())? {
            Some(dir) => read_record(&dir),
            None => Ok(None),
        }
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
    /// Adds a layer: its tree as `LayerBuilder` made it, verified once more, and the size of its tar.
    pub fn put_layer(
        &self,
        diff: DiffId,
        tree: Vec<u8>,
        tar_size: u64,
    ) -> Result<LayerRecord, StoreError> {
        let name = staged_name(diff);
        let path = self.dir.join(&name).join(TREE);
        if self.staged.lock().layers.contains(&diff) {
            // The same layer twice in an image, or in two images of an archive: the same bytes.
            remove_tree(&self.dir, &name)?;
        }
        self.dir.make(&name, Mode::RWXU)?;
        let dir = self.dir.sub(&name)?;
        dir.create_with(TREE, PUBLISHED, &tree)?;
        let verified = Tree::from_bytes(tree).and_then(|tree| {
            tree.verify()?;
            LayerRecord::of(diff, &tree, tar_size)
        });
        let record = verified.map_err(|source| StoreError::Tree { path, source })?;
        dir.create_with(
            RECORD,
            PUBLISHED,
            &super::to_json(&record, &dir.join(RECORD))?,
        )?;
        self.staged.lock().layers.insert(diff);
        Ok(record)
    }

    /// Adds the merged tree of a stack whose layers are in this transaction or in the store, lowest first.
    ///
    /// Each layer's tree is verified as a whole first: what a disk did to one must not get into what all mounts share.
    pub fn put_merged(&self, layers: &[DiffId]) -> Result<(), StoreError> {
        let chain = ChainId::of(layers).ok_or(StoreError::NoLayers)?;
        if self.staged.lock().merged.contains(&chain) {
            return Ok(());
        }
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
        self.staged.lock().merged.insert(chain);
        Ok(())
    }

    fn verified_layer(&self, diff: DiffId) -> Result<Tree, StoreError> {
        let dir = if self.staged.lock().layers.contains(&diff) {
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

    /// Gives a staged layer its place. One that is there with the same bytes stays; a damaged one makes room.
    pub(super) fn publish_layer(&self, diff: DiffId) -> Result<(), StoreError> {
        let (staged, name) = (staged_name(diff), diff.0.hex());
        match self.dir.rename(&staged, &self.store.layers, &name) {
            Err(error)
                if matches!(
                    error.errno(),
                    Some(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR)
                ) => {}
            done => return done,
        }
        if same_layer(&self.dir.sub(&staged)?, &self.store.layers, &name)? {
            return Ok(());
        }
        // Into the transaction's directory, which takes it along at its end. A crash between the two renames leaves
        // no layer in place of a damaged one; the same load again puts it there.
        self.store
            .layers
            .rename(&name, &self.dir, self.temporary())?;
        self.dir.rename(&staged, &self.store.layers, &name)
    }
}

/// Whether what stands in `layers/` is what was just made. A file where a directory should be is not.
fn same_layer(staged: &Dir, layers: &Dir, name: &str) -> Result<bool, StoreError> {
    let Ok(there) = layers.sub(name) else {
        return Ok(false);
    };
    for file in [TREE, RECORD] {
        let ours = staged.read(file, u64::MAX - 1)?;
        // One that can't even be read is not the same either.
        if there.read(file, u64::MAX - 1).ok() != Some(ours) {
            return Ok(false);
        }
    }
    Ok(true)
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
        return Err(StoreError::malformed(
            path,
            "it is the tree of another layer or stack; load its image again to replace it",
        ));
    }
    Ok(Some((tree, file)))
}

pub(super) fn read_record(dir: &Dir) -> Result<Option<LayerRecord>, StoreError> {
    let Some(bytes) = dir.read(RECORD, RECORD_LIMIT)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| StoreError::malformed(dir.join(RECORD), error.to_string()))
}
