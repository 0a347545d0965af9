//! `clean.json`: what the last gc that found nothing to free had looked at. While all of it is as
//! it was, the next gc need not look: it costs a `stat` for each root and layer instead of the name
//! of each object.
//!
//! Invariant: **any doubt is a full gc.** The record says: when the directories of the store's
//! files had these stamps, all that they held was reached from these tags and pins by way of these
//! layers. That speaks of stamps, not of a time, so it is true for good, whatever crashes
//! afterwards, and needs no sync. A gc relies on it if
//! * each of those tags and pins is there with its stamp. There may be others: a root keeps more,
//!   never less;
//! * each pin that a process is to keep is locked, those that came since included;
//! * each of those layers has its stamp;
//! * each of those directories has its stamp, so no name came or went: what an aborted load
//!   published, or what a tag that came and went had brought, is a name that came.
//!
//! A stamp is an inode with its ctime, which no program can set. Two changes within one tick of the
//! file system's clock could leave one ctime; so a record is only made of stamps that were older
//! than [`SETTLED`] when they were taken, before the marks, by the clock of that file system: a
//! later change gets a later time. Only a clock that is set back could give an old time again, and
//! then to the nanosecond.
//!
//! Foreign bytes, a torn file or another version are no record. It is written by a gc that freed
//! nothing, under gc's lock, and never removed: one that does not hold any more is replaced.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::time::Duration;

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::super::dir::{PRIVATE, StoreDir};
use super::super::pins::PinKind;
use super::super::record::{LIMIT, Versioned, decode, encode};
use super::super::{Store, StoreError, fan_out_names};
use super::mark::Marked;

/// The record, in the root.
pub(in super::super) const CLEAN: &str = "clean.json";

/// More than a tick of any file system's clock.
pub(in super::super) const SETTLED: Duration = Duration::from_secs(2);

/// Names with their stamps as text.
type Stamps = BTreeMap<String, String>;

/// The content of `clean.json`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Clean {
    tags: Stamps,
    pins: Stamps,
    layers: Stamps,
    /// Paths in the store.
    directories: Stamps,
}

impl Versioned for Clean {
    const VERSION: u32 = 1;
}

/// The directories as they were before a gc marked.
pub(super) struct Before {
    directories: Stamps,
    settled: bool,
}

impl Store {
    /// Whether the last record holds: nothing is garbage but what died. `dropped` tells which pins
    /// count as removed.
    pub(in super::super) fn is_known_clean(&self, dropped: impl Fn(&OsStr) -> bool) -> bool {
        let clean = || -> Result<bool, StoreError> {
            let Some(bytes) = self.root.read(CLEAN, LIMIT)? else {
                return Ok(false);
            };
            let clean: Clean = decode(&bytes, &self.root.join(CLEAN))?;
            Ok(self.clean_directories()?.0 == clean.directories
                && have(self.refs()?, &clean.tags)?
                && have(self.layers()?, &clean.layers)?
                && have(self.pin_files()?, &clean.pins)?
                && self.are_pins_live(dropped)?)
        };
        // What cannot be read is in doubt; a full gc says what is wrong with it.
        clean().unwrap_or(false)
    }

    /// Whether each pin that a process keeps is still kept, recorded or not, and none is among the
    /// `dropped`: a stale one is to be removed.
    fn are_pins_live(&self, dropped: impl Fn(&OsStr) -> bool) -> Result<bool, StoreError> {
        for name in self.pin_files()?.names()? {
            let live = match PinKind::of(&name) {
                Some(kind) => self.is_pin_live(&name, kind)?,
                None => true,
            };
            if !live || dropped(&name) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What [`Store::record_clean`] compares with: to be taken before anything is marked.
    pub(super) fn before_marking(&self) -> Result<Before, StoreError> {
        let now = match self.clock() {
            Ok(now) => now,
            // Of a store that cannot be written to there is no record either.
            Err(error) if error.errno() == Some(Errno::ROFS) => Duration::ZERO,
            Err(error) => return Err(error),
        };
        let (directories, youngest) = self.clean_directories()?;
        Ok(Before {
            directories,
            settled: youngest.saturating_add(self.settled_after) < now,
        })
    }

    /// Records that nothing was garbage. The caller holds gc's lock and has read all that it
    /// marked.
    pub(super) fn record_clean(&self, before: Before, marked: &Marked) -> Result<(), StoreError> {
        if !before.settled {
            return Ok(());
        }
        let (tags, pins) = marked.roots();
        let clean = Clean {
            tags,
            pins,
            layers: marked.layers(),
            directories: before.directories,
        };
        let Ok(content) = encode(&clean, &self.root.join(CLEAN)) else {
            // Too many roots for a record: each gc is a full one.
            return Ok(());
        };
        match self.replace_record(&content) {
            // gc works on a full disk; a directory of that name is for `check` to report.
            Err(StoreError::NoSpace { .. }) => Ok(()),
            Err(error) if error.errno() == Some(Errno::ISDIR) => Ok(()),
            written => written,
        }
    }

    fn replace_record(&self, content: &[u8]) -> Result<(), StoreError> {
        let transaction = self.begin()?;
        let (aside, temporary) = (&transaction.dir, transaction.temporary());
        aside.create_with(&temporary, PRIVATE, content)?;
        aside.rename(&temporary, &self.root, CLEAN)
    }

    /// Now as the store's file system tells it. `trash/` is touched for it: nobody
    /// reads its time.
    pub(in super::super) fn clock(&self) -> Result<Duration, StoreError> {
        let now = |nsec| Timespec {
            tv_sec: 0,
            tv_nsec: nsec,
        };
        let trash = self.trash()?;
        let touched = rustix::fs::futimens(
            trash,
            &Timestamps {
                last_access: now(UTIME_OMIT),
                last_modification: now(UTIME_NOW),
            },
        );
        touched.map_err(|errno| StoreError::io("touch", trash.path(), errno))?;
        let touched = self.root.stat("trash")?;
        Ok(touched.map_or(Duration::ZERO, |meta| meta.stamp.changed_at()))
    }

    /// The directories whose names gc looks through, and the youngest ctime of one.
    pub(in super::super) fn clean_directories(&self) -> Result<(Stamps, Duration), StoreError> {
        let (mut stamps, mut youngest) = (Stamps::new(), Duration::ZERO);
        let fan_outs = fan_out_names().map(|name| format!("objects/{name}"));
        let others = ["objects", "layers", "merged", "blobs/sha256"].map(str::to_owned);
        for name in fan_outs.chain(others) {
            // A missing directory is fine: making it would change the stamps.
            if let Some(meta) = self.root.stat(&name)? {
                youngest = youngest.max(meta.stamp.changed_at());
                stamps.insert(name, meta.stamp.to_string());
            }
        }
        Ok((stamps, youngest))
    }
}

/// Whether all files are there with these stamps.
fn have(dir: &StoreDir, stamps: &Stamps) -> Result<bool, StoreError> {
    for (name, stamp) in stamps {
        let found = dir.stat(name)?.map(|meta| meta.stamp.to_string());
        if found.as_ref() != Some(stamp) {
            return Ok(false);
        }
    }
    Ok(true)
}
