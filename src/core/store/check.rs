//! `check`: finds damage and repairs nothing; loading an image again repairs what it finds.
//!
//! A shallow check reads every name, every JSON file and every whole tree, and compares the
//! presence and size of every referenced object. A deep check also hashes every object and blob,
//! and compares each cached merged tree with a new merge. Unreferenced layers may be incomplete (a
//! power cut during an import leaves such layers); gc removes them, and check does not report
//! them.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode};

use super::dir::{PUBLISHED, StoreDir};
use super::layer::{
    RECORD, TREE, TREE_LINK, TREE_SUFFIX, open_layer, open_merged, read_info, read_recipe_objects,
};
use super::pins::PinKind;
use super::roots::{Reachable, Root};
use super::tags::is_tag_file;
use super::transaction::copy;
use super::usage::{Count, is_fan_out};
use super::{
    DIRECTORIES, LOCK, ROOT_MODE, ROOTS, Store, StoreError, fan_out_names, format, from_hex, log,
    object_name,
};
use crate::digest::{ChainId, DiffId, ObjectId, Sha256Digest, Sha256Hasher};
use crate::recipe::FILE_NAME as RECIPE;
use crate::tree::{MergeError, Tree, merge};

/// One problem and the file that has it.
#[derive(Debug, PartialEq, Eq)]
pub enum Problem {
    /// A file or directory that does not belong to the store.
    Foreign(PathBuf),
    /// A file has the wrong type or permission bits.
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        found: u32,
        /// The permission bits that the store sets.
        expected: u32,
    },
    /// A file cannot be read or its content is wrong.
    Damaged {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// A file that an image, a container or a mount needs is missing.
    Missing {
        /// Its path.
        path: PathBuf,
        /// The tag or pin that needs it.
        needed_by: PathBuf,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign(path) => write!(f, "{}: does not belong here", path.display()),
            Self::Mode {
                path,
                found,
                expected,
            } => write!(
                f,
                "{}: has mode {found:04o}, should have {expected:04o}",
                path.display()
            ),
            Self::Damaged { path, reason } => write!(f, "{}: damaged: {reason}", path.display()),
            Self::Missing { path, needed_by } => write!(
                f,
                "{}: missing, needed by {}",
                path.display(),
                needed_by.display()
            ),
        }
    }
}

/// The result of [`Store::check`].
#[derive(Debug, Default)]
pub struct CheckReport {
    /// Problems, in the order of the scan; empty if the store is sound.
    pub problems: Vec<Problem>,
    /// Objects checked; `bytes` sums their sizes.
    pub objects: Count,
    /// Layers checked.
    pub layers: u64,
    /// Tags.
    pub tags: u64,
    /// Directories of transactions that are running or died; the next load removes dead ones.
    pub transactions: u64,
}

const NOT_REGULAR: &str = "it is not a regular file";
const MISSING_DIRECTORY: &str = "the directory is missing; the next load makes it again";

impl CheckReport {
    fn damaged(&mut self, path: impl Into<PathBuf>, reason: impl fmt::Display) {
        self.problems.push(Problem::Damaged {
            path: path.into(),
            reason: reason.to_string(),
        });
    }

    /// Records an error about a file of the store; any other error ends the check.
    fn note(&mut self, error: StoreError) {
        match error {
            StoreError::Malformed { path, reason } => {
                self.problems.push(Problem::Damaged { path, reason });
            }
            StoreError::Tree { path, source } => self.damaged(path, source),
            StoreError::Io { path, source, .. } => self.damaged(path, source),
            other => self.damaged(PathBuf::new(), other),
        }
    }
}

impl Store {
    /// Checks the whole store; `deep` reads and hashes every byte.
    ///
    /// Locking: holds the store's lock shared: loads continue, gc waits.
    pub fn check(&self, deep: bool) -> Result<CheckReport, StoreError> {
        let _lock = self.lock_shared()?;
        let mut report = CheckReport::default();
        self.check_root(&mut report)?;
        let damaged = self.check_directories(&mut report)?;
        let whole = |needed: &[&str]| needed.iter().all(|name| !damaged.contains(name));
        if whole(&["tmp"]) {
            report.transactions = self.tmp()?.names()?.len() as u64;
        }
        let mut roots = Vec::new();
        if whole(&["refs", "pins"]) {
            let errors;
            (roots, errors) = self.roots()?;
            for error in errors {
                report.note(error);
            }
            report.tags = self.tag_count()?;
            self.check_foreign_files(&mut report)?;
        }
        let reachable = Reachable::of(&roots);
        if whole(&["layers", "blobs/sha256"]) {
            for root in roots.iter().filter(|root| !root.pending) {
                self.check_present_for(root, &mut report)?;
            }
        }
        if whole(&["layers", "objects"]) {
            self.check_layers(&reachable, &mut report)?;
        }
        if whole(&["objects"]) {
            self.check_objects(deep, &mut report)?;
        }
        if whole(&["merged", "layers"]) {
            self.check_merged(deep, &roots, &mut report)?;
        }
        if whole(&["blobs/sha256"]) {
            self.check_blobs(deep, &mut report)?;
        }
        Ok(report)
    }

    /// Reports missing and damaged directories, fan-out directories among them; returns the names
    /// of those that cannot be read.
    fn check_directories(&self, report: &mut CheckReport) -> Result<Vec<&'static str>, StoreError> {
        let mut damaged = Vec::new();
        for name in DIRECTORIES {
            let reason = match self.root.stat(name)? {
                Some(meta) if meta.file_type == FileType::Directory => continue,
                Some(_) => "it is not a directory; move it away",
                None if ROOTS.contains(&name) => {
                    "the directory is missing, and with it the names of images or what containers keep"
                }
                None => MISSING_DIRECTORY,
            };
            report.damaged(self.root.join(name), reason);
            damaged.push(name);
        }
        if !damaged.contains(&"objects") {
            let objects = self.objects()?;
            for fan_out in fan_out_names() {
                if objects.stat(&fan_out)?.is_none() {
                    report.damaged(objects.join(&fan_out), MISSING_DIRECTORY);
                }
            }
        }
        Ok(damaged)
    }

    fn check_root(&self, report: &mut CheckReport) -> Result<(), StoreError> {
        let stat = rustix::fs::fstat(&self.root)
            .map_err(|errno| StoreError::io("stat", self.root(), errno))?;
        let (found, expected) = (Mode::from_raw_mode(stat.st_mode).bits(), ROOT_MODE.bits());
        if found & !expected != 0 {
            report.problems.push(Problem::Mode {
                path: self.root().to_owned(),
                found,
                expected,
            });
        }
        for name in self.root.names()? {
            let file = [LOCK, format::NAME, log::LOG, log::OLD_LOG]
                .iter()
                .any(|file| *name == **file);
            if file {
                let meta = self.root.stat(&name)?;
                if meta.is_some_and(|meta| meta.file_type != FileType::RegularFile) {
                    report.damaged(self.root.join(&name), NOT_REGULAR);
                }
            } else if !DIRECTORIES.iter().any(|known| *name == **known) {
                report
                    .problems
                    .push(Problem::Foreign(self.root.join(&name)));
            }
        }
        Ok(())
    }

    /// Reports files in `refs/` and `pins/` that do not belong to the store.
    fn check_foreign_files(&self, report: &mut CheckReport) -> Result<(), StoreError> {
        for name in self.refs()?.names()? {
            if !is_tag_file(&name) {
                report
                    .problems
                    .push(Problem::Foreign(self.refs()?.join(&name)));
            }
        }
        for name in self.pin_files()?.names()? {
            if PinKind::of(&name).is_none() {
                report
                    .problems
                    .push(Problem::Foreign(self.pin_files()?.join(&name)));
            }
        }
        Ok(())
    }

    fn check_present_for(&self, root: &Root, report: &mut CheckReport) -> Result<(), StoreError> {
        let (layers, blobs) = (self.layers()?, self.blobs()?);
        let layers = root.layers.iter().map(|diff| (layers, diff.0.hex()));
        let blobs = root.blobs.iter().map(|digest| (blobs, digest.hex()));
        for (dir, name) in layers.chain(blobs) {
            if dir.stat(&name)?.is_none() {
                report.problems.push(Problem::Missing {
                    path: dir.join(name),
                    needed_by: root.path.clone(),
                });
            }
        }
        Ok(())
    }

    fn check_layers(
        &self,
        reachable: &Reachable,
        report: &mut CheckReport,
    ) -> Result<(), StoreError> {
        let mut seen = HashSet::new();
        for name in self.layers()?.names()? {
            let Some(diff) = name.to_str().and_then(from_hex).map(DiffId) else {
                report
                    .problems
                    .push(Problem::Foreign(self.layers()?.join(&name)));
                continue;
            };
            report.layers += 1;
            let tree = match self.layers()?.open_dir(&name) {
                Ok(dir) => check_layer(&dir, diff, reachable.complete.contains(&diff), report)?,
                Err(error) => {
                    report.note(error);
                    None
                }
            };
            if let Some(tree) = tree.filter(|_| reachable.complete.contains(&diff)) {
                let dir = self.layers()?.join(&name);
                let sized = tree.object_sizes().map(|(id, size)| (id, Some(size)));
                self.check_objects_of(&dir.join(TREE), sized, &mut seen, report)?;
                match read_recipe_objects(&self.layers()?.open_dir(&name)?, diff) {
                    Ok(recipe) => {
                        let recipe = recipe.unwrap_or_default().into_iter().map(|id| (id, None));
                        self.check_objects_of(&dir.join(RECIPE), recipe, &mut seen, report)?;
                    }
                    Err(error) => report.note(error),
                }
            }
        }
        Ok(())
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
    fn check_objects(&self, deep: bool, report: &mut CheckReport) -> Result<(), StoreError> {
        let fan_outs = self.objects()?.names()?;
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::new());
        let work = || {
            while let Some(name) = fan_outs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut part = CheckReport::default();
                let outcome = self.check_fan_out(name, deep, &mut part);
                results.lock().push((name, part, outcome));
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
        let mut results = results.into_inner();
        results.sort_by_key(|(name, ..)| *name);
        for (_, part, outcome) in results {
            outcome?;
            report.problems.extend(part.problems);
            report.objects.number += part.objects.number;
            report.objects.bytes += part.objects.bytes;
        }
        Ok(())
    }

    fn check_fan_out(
        &self,
        fan_out: &std::ffi::OsStr,
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

    fn check_merged(
        &self,
        deep: bool,
        roots: &[Root],
        report: &mut CheckReport,
    ) -> Result<(), StoreError> {
        for name in self.merged_trees()?.names()? {
            let Some(chain) = name
                .to_str()
                .and_then(|name| from_hex(name.strip_suffix(TREE_SUFFIX)?))
                .map(ChainId)
            else {
                report
                    .problems
                    .push(Problem::Foreign(self.merged_trees()?.join(&name)));
                continue;
            };
            let path = self.merged_trees()?.join(&name);
            if let Some(meta) = self.merged_trees()?.stat(&name)?
                && !check_mode(self.merged_trees()?, &name, meta, report)
            {
                continue;
            }
            let tree = match open_merged(self.merged_trees()?, chain) {
                Ok(Some((tree, _))) => tree,
                Ok(None) => continue,
                Err(error) => {
                    report.note(error);
                    continue;
                }
            };
            if let Err(error) = tree.verify() {
                report.damaged(&path, error);
            } else if deep
                && let Some(layers) = roots
                    .iter()
                    .flat_map(|root| &root.stacks)
                    .find(|layers| ChainId::of(layers) == Some(chain))
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
        trees.map(|trees| merge(&trees))
    }

    fn check_blobs(&self, deep: bool, report: &mut CheckReport) -> Result<(), StoreError> {
        for name in self.blobs()?.names()? {
            let (Some(digest), Some(meta)) =
                (name.to_str().and_then(from_hex), self.blobs()?.stat(&name)?)
            else {
                report
                    .problems
                    .push(Problem::Foreign(self.blobs()?.join(&name)));
                continue;
            };
            if check_mode(self.blobs()?, &name, meta, report) && deep {
                match self.hash_blob(digest) {
                    Ok(found) if found == digest => {}
                    Ok(found) => report.damaged(
                        self.blobs()?.join(&name),
                        format_args!("its bytes have digest {found}"),
                    ),
                    Err(error) => report.note(error),
                }
            }
        }
        Ok(())
    }

    pub(super) fn hash_blob(&self, digest: Sha256Digest) -> Result<Sha256Digest, StoreError> {
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
    name: &std::ffi::OsStr,
    meta: super::dir::Meta,
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
