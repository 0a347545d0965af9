//! `check`: finds damage and repairs nothing. heal.rs and `image::repair` do, and so does loading
//! an image again.
//!
//! A shallow check reads every name, every JSON file and every whole tree, and compares the
//! presence and size of every referenced object. A deep check also hashes every object and blob,
//! and compares each cached merged tree with a new merge. Unreferenced layers may be incomplete (a
//! power cut during an import leaves such layers); gc removes them, and check does not report
//! them.

mod contents;
mod damage;

use std::fmt;
use std::path::PathBuf;

use rustix::fs::{FileType, Mode};

pub use self::damage::Damage;
use super::dir::Stamp;
use super::pins::PinKind;
use super::roots::{Reachable, Root};
use super::tags::is_tag_file;
use super::usage::Count;
use super::{
    DIRECTORIES, EVENTS, LOCK, OLD_EVENTS, ROOT_MODE, ROOTS, Store, StoreError, fan_out_names,
    format, gc, log,
};

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
    /// What is damaged or missing, by kind.
    pub damage: Damage,
    /// The images, containers and mounts that use what is damaged or missing, by name.
    pub touched: Vec<String>,
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

    /// Adds what another thread found.
    fn add(&mut self, part: Self) {
        self.problems.extend(part.problems);
        self.objects.number += part.objects.number;
        self.objects.bytes += part.objects.bytes;
        self.layers += part.layers;
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
    /// Locking: none for a sound store. Where there are problems and a gc may have run meanwhile,
    /// what it took seemed to be missing: then the store is checked again with its lock held
    /// shared, so that loads continue and gc waits.
    pub fn check(&self, deep: bool) -> Result<CheckReport, StoreError> {
        let before = self.at_rest()?;
        let report = self.check_now(deep);
        let is_sound = report
            .as_ref()
            .is_ok_and(|report| report.problems.is_empty());
        if is_sound || before.is_some() && before == self.at_rest()? {
            return report;
        }
        let _lock = self.lock_shared()?;
        self.check_now(deep)
    }

    /// The stamp of `trash/`, which each sweep changes; None while one may run, or if there is no
    /// such directory.
    fn at_rest(&self) -> Result<Option<Stamp>, StoreError> {
        let Ok(Some(trash)) = self.root.open_dir_if_exists("trash") else {
            return Ok(None);
        };
        let stamp = self.root.stat("trash")?.map(|meta| meta.stamp);
        Ok(stamp.filter(|_| trash.names().is_ok_and(|names| names.is_empty())))
    }

    fn check_now(&self, deep: bool) -> Result<CheckReport, StoreError> {
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
        let readable = whole(&["layers"]);
        report.damage = self.damage(&roots, &report.problems, readable);
        report.touched = damage::touched(&roots, &report.damage);
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
            let file = [
                LOCK,
                format::NAME,
                log::LOG,
                log::OLD_LOG,
                EVENTS,
                OLD_EVENTS,
                gc::CLEAN,
            ]
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
}
