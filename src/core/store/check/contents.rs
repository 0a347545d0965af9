//! The checks of layers, objects, merged trees and blobs.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::Path;

use rustix::fs::FileType;

use super::super::dir::{PUBLISHED, StoreDir};
use super::super::layer::{
    RECORD, TREE, TREE_LINK, TREE_SUFFIX, open_layer, open_merged, read_info, read_recipe_objects,
};
use super::super::parallel::in_parallel;
use super::super::roots::{Reachable, Root};
use super::super::transaction::copy;
use super::super::usage::is_fan_out;
use super::super::{Store, StoreError, object_name};
use super::{CheckReport, NOT_REGULAR, Problem};
use crate::digest::{ChainId, DiffId, ObjectId, Sha256Digest, Sha256Hasher};
use crate::recipe::FILE_NAME as RECIPE;
use crate::tree::{MergeError, Tree, merge};

impl Store {
    pub(super) fn check_layers(
        &self,
        reachable: &Reachable,
        report: &mut CheckReport,
    ) -> Result<(), StoreError> {
        let names = self.layers()?.names()?;
        let checked = in_parallel(&names, |name| {
            let mut part = CheckReport::default();
            let tree = self.check_one_layer(name, reachable, &mut part);
            (part, tree)
        });
        let mut seen = HashSet::new();
        for (name, (part, kept)) in names.iter().zip(checked) {
            report.add(part);
            if let Some((tree, recipe)) = kept? {
                let dir = self.layers()?.join(name);
                let sized = tree.object_sizes().map(|(id, size)| (id, Some(size)));
                self.check_objects_of(&dir.join(TREE), sized, &mut seen, report)?;
                let recipe = recipe.into_iter().map(|id| (id, None));
                self.check_objects_of(&dir.join(RECIPE), recipe, &mut seen, report)?;
            }
        }
        Ok(())
    }

    /// Checks a layer's own files; gives what says which objects it needs, if they must be there.
    fn check_one_layer(
        &self,
        name: &OsStr,
        reachable: &Reachable,
        report: &mut CheckReport,
    ) -> Result<Option<(Tree, Vec<ObjectId>)>, StoreError> {
        let Some(diff) = name.to_str().and_then(Sha256Digest::from_hex).map(DiffId) else {
            report
                .problems
                .push(Problem::Foreign(self.layers()?.join(name)));
            return Ok(None);
        };
        report.layers += 1;
        let dir = match self.layers()?.open_dir(name) {
            Ok(dir) => dir,
            Err(error) => {
                report.note(error);
                return Ok(None);
            }
        };
        let kept = reachable.complete.contains(&diff);
        let Some(tree) = check_layer(&dir, diff, kept, report)?.filter(|_| kept) else {
            return Ok(None);
        };
        let recipe = match read_recipe_objects(&dir, diff, &tree) {
            Ok(Some(recipe)) => recipe,
            Ok(None) => {
                report.problems.push(Problem::Missing {
                    path: dir.join(RECIPE),
                    needed_by: dir.path().to_owned(),
                });
                Vec::new()
            }
            Err(error) => {
                report.note(error);
                Vec::new()
            }
        };
        Ok(Some((tree, recipe)))
    }

    /// Checks that each object named by the file at `path` exists and has the recorded size.
    fn check_objects_of(
        &self,
        path: &Path,
        objects: impl Iterator<Item = (ObjectId, Option<u64>)>,
        seen: &mut HashSet<ObjectId>,
        report: &mut CheckReport,
    ) -> Result<(), StoreError> {
        for (id, size) in objects {
            if !seen.insert(id) {
                continue;
            }
            let name = object_name(id);
            match self.objects()?.stat(&name)? {
                None => report.problems.push(Problem::Missing {
                    path: self.objects()?.join(name),
                    needed_by: path.to_owned(),
                }),
                Some(meta) => {
                    if let Some(size) = size.filter(|size| *size != meta.size) {
                        report.damaged(
                            self.objects()?.join(name),
                            format_args!("it has {} bytes, should have {size}", meta.size),
                        );
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks all fan-out directories, one thread per processor.
    pub(super) fn check_objects(
        &self,
        deep: bool,
        report: &mut CheckReport,
    ) -> Result<(), StoreError> {
        let results = in_parallel(&self.objects()?.names()?, |name| {
            let mut part = CheckReport::default();
            let outcome = self.check_fan_out(name, deep, &mut part);
            (part, outcome)
        });
        for (part, outcome) in results {
            outcome?;
            report.add(part);
        }
        Ok(())
    }

    fn check_fan_out(
        &self,
        fan_out: &OsStr,
        deep: bool,
        report: &mut CheckReport,
    ) -> Result<(), StoreError> {
        let is_fan_out = fan_out.to_str().is_some_and(is_fan_out);
        let dir = match self.objects()?.open_dir(fan_out) {
            Ok(dir) if is_fan_out => dir,
            _ => {
                report
                    .problems
                    .push(Problem::Foreign(self.objects()?.join(fan_out)));
                return Ok(());
            }
        };
        for name in dir.names()? {
            let id = fan_out
                .to_str()
                .zip(name.to_str())
                .and_then(|(a, b)| format!("{a}{b}").parse::<ObjectId>().ok());
            let (Some(id), Some(meta)) = (id, dir.stat(&name)?) else {
                report.problems.push(Problem::Foreign(dir.join(&name)));
                continue;
            };
            if !check_mode(&dir, &name, meta, report) {
                continue;
            }
            report.objects.add(meta.size);
            if deep {
                match self.hash_object(id) {
                    Ok(found) if found == id => {}
                    Ok(found) => report.damaged(
                        dir.join(&name),
                        format_args!("its bytes have BLAKE3 {found}"),
                    ),
                    Err(error) => report.note(error),
                }
            }
        }
        Ok(())
    }

    pub(super) fn check_merged(
        &self,
        deep: bool,
        roots: &[Root],
        report: &mut CheckReport,
    ) -> Result<(), StoreError> {
        let checked = in_parallel(&self.merged_trees()?.names()?, |name| {
            let mut part = CheckReport::default();
            let outcome = self.check_one_merged(name, deep, roots, &mut part);
            outcome.map(|()| part)
        });
        for part in checked {
            report.add(part?);
        }
        Ok(())
    }

    fn check_one_merged(
        &self,
        name: &OsStr,
        deep: bool,
        roots: &[Root],
        report: &mut CheckReport,
    ) -> Result<(), StoreError> {
        let Some(chain) = name
            .to_str()
            .and_then(|name| Sha256Digest::from_hex(name.strip_suffix(TREE_SUFFIX)?))
            .map(ChainId)
        else {
            report
                .problems
                .push(Problem::Foreign(self.merged_trees()?.join(name)));
            return Ok(());
        };
        let path = self.merged_trees()?.join(name);
        if let Some(meta) = self.merged_trees()?.stat(name)?
            && !check_mode(self.merged_trees()?, name, meta, report)
        {
            return Ok(());
        }
        let tree = match open_merged(self.merged_trees()?, chain) {
            Ok(Some((tree, _))) => tree,
            Ok(None) => return Ok(()),
            Err(error) => {
                report.note(error);
                return Ok(());
            }
        };
        if let Err(error) = tree.verify() {
            report.damaged(&path, error);
        } else if deep
            && let Some(layers) = roots
                .iter()
                .flat_map(|root| &root.stacks)
                .find(|layers| ChainId::of(layers) == chain)
            && let Some(merged) = self.merge_again(layers)
        {
            match merged {
                Ok(bytes) if bytes.ends_with(&tree.digest()) => {}
                Ok(_) => report.damaged(
                    &path,
                    "its layers merge to something else; remove the file, it is a cache",
                ),
                Err(error) => report.damaged(&path, format_args!("its layers: {error}")),
            }
        }
        Ok(())
    }

    /// Merges a stack again. None if one of its layers cannot be read: that was reported with the
    /// layer.
    fn merge_again(&self, layers: &[DiffId]) -> Option<Result<Vec<u8>, MergeError>> {
        let whole = |diff: &DiffId| {
            let tree = self.layer_tree(*diff).ok().flatten();
            tree.filter(|tree| tree.verify().is_ok())
        };
        let trees: Option<Vec<Tree>> = layers.iter().map(whole).collect();
        trees.map(merge)
    }

    pub(super) fn check_blobs(
        &self,
        deep: bool,
        report: &mut CheckReport,
    ) -> Result<(), StoreError> {
        let checked = in_parallel(&self.blobs()?.names()?, |name| {
            let mut part = CheckReport::default();
            let outcome = self.check_one_blob(name, deep, &mut part);
            outcome.map(|()| part)
        });
        for part in checked {
            report.add(part?);
        }
        Ok(())
    }

    fn check_one_blob(
        &self,
        name: &OsStr,
        deep: bool,
        report: &mut CheckReport,
    ) -> Result<(), StoreError> {
        let blobs = self.blobs()?;
        let (Some(digest), Some(meta)) = (
            name.to_str().and_then(Sha256Digest::from_hex),
            blobs.stat(name)?,
        ) else {
            report.problems.push(Problem::Foreign(blobs.join(name)));
            return Ok(());
        };
        if check_mode(blobs, name, meta, report) && deep {
            match self.hash_blob(digest) {
                Ok(found) if found == digest => {}
                Ok(found) => report.damaged(
                    blobs.join(name),
                    format_args!("its bytes have digest {found}"),
                ),
                Err(error) => report.note(error),
            }
        }
        Ok(())
    }

    pub(in super::super) fn hash_blob(
        &self,
        digest: Sha256Digest,
    ) -> Result<Sha256Digest, StoreError> {
        let mut file = self.open_blob(digest)?;
        let mut hasher = Sha256Hasher::new();
        copy(&mut file, &mut hasher)
            .map_err(|source| StoreError::io("read", self.blob_path(digest), source))?;
        Ok(hasher.finish())
    }
}

/// The layer's tree if it is sound. An unreferenced layer may lack files.
fn check_layer(
    dir: &StoreDir,
    diff: DiffId,
    kept: bool,
    report: &mut CheckReport,
) -> Result<Option<Tree>, StoreError> {
    let missing = |name| {
        kept.then(|| Problem::Missing {
            path: dir.join(name),
            needed_by: dir.path().to_owned(),
        })
    };
    let damaged = |source| StoreError::Tree {
        path: dir.join(TREE),
        source,
    };
    for name in dir.names()? {
        match dir.stat(&name)? {
            Some(meta) if [TREE, RECORD, RECIPE].iter().any(|known| *name == **known) => {
                check_mode(dir, &name, meta, report);
            }
            Some(meta) if *name == *TREE_LINK && meta.file_type == FileType::Symlink => {}
            _ => report.problems.push(Problem::Foreign(dir.join(&name))),
        }
    }
    let tree = match open_layer(dir, diff) {
        Ok(Some(tree)) => match tree.verify() {
            Ok(()) => Some(tree),
            Err(error) => {
                report.damaged(dir.join(TREE), error);
                None
            }
        },
        Ok(None) => {
            report.problems.extend(missing(TREE));
            None
        }
        Err(error) => {
            report.note(error);
            None
        }
    };
    match read_info(dir) {
        Ok(Some(record)) => {
            let fits = match &tree {
                Some(tree) => record.describes(diff, tree).map_err(damaged)?,
                None => record.diff_id == diff,
            };
            if !fits {
                report.damaged(dir.join(RECORD), "it describes another layer");
            }
        }
        Ok(None) => report.problems.extend(missing(RECORD)),
        Err(error) => report.note(error),
    }
    Ok(tree)
}

/// Whether a published file is a read-only regular file; reports a problem if not.
fn check_mode(
    dir: &StoreDir,
    name: &OsStr,
    meta: super::super::dir::Meta,
    report: &mut CheckReport,
) -> bool {
    if meta.file_type != FileType::RegularFile {
        report.damaged(dir.join(name), NOT_REGULAR);
        return false;
    }
    if meta.mode != PUBLISHED.bits() {
        report.problems.push(Problem::Mode {
            path: dir.join(name),
            found: meta.mode,
            expected: PUBLISHED.bits(),
        });
    }
    true
}
