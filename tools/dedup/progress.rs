//! A progress bar on standard error, in a terminal only: of archives that are read, and of the
//! ladder.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cowl_core::digest::DiffId;
use cowl_core::image::{Absent, Step, Watch};
use rustix::termios::tcgetwinsize;

use crate::show::{Sizes, percent};

/// How far work has come, and what archives lack. Threads share it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Whether anything is shown.
    shown: bool,
    what: Mutex<&'static str>,
    total: AtomicU64,
    done: AtomicU64,
    /// Bytes of each layer of an archive.
    layers: Mutex<HashMap<DiffId, u64>>,
    absent: Mutex<Vec<Absent>>,
}

/// The bar is drawn anew this often: a share of the whole.
const STEPS: u64 = 200;
/// The same of what has no known end: bytes.
const PIECE: u64 = 4 << 20;

/// A signal ends the run: nothing is drawn any more.
static OVER: AtomicBool = AtomicBool::new(false);

/// Takes the bar away for good.
pub(crate) fn stop() {
    OVER.store(true, Ordering::Relaxed);
    clear();
}

fn clear() {
    if std::io::stderr().write_all(b"\r\x1b[K").is_err() {
        // A bar that cannot be drawn is no loss.
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Progress {
    /// Shown if standard error is a terminal.
    pub(crate) fn new() -> Self {
        Self {
            shown: std::io::stderr().is_terminal(),
            ..Self::default()
        }
    }

    pub(crate) fn begin(&self, what: &'static str, total: u64) {
        *lock(&self.what) = what;
        self.total.store(total, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
    }

    pub(crate) fn advance(&self, bytes: u64) {
        let before = self.done.fetch_add(bytes, Ordering::Relaxed);
        let step = (self.total.load(Ordering::Relaxed) / STEPS).max(1);
        if self.shown && before / step != (before + bytes) / step {
            self.draw(before + bytes);
        }
    }

    /// Takes the bar away.
    pub(crate) fn end(&self) {
        if self.shown {
            clear();
        }
    }

    /// What the archive that was read last lacks.
    pub(crate) fn take_absent(&self) -> Vec<Absent> {
        std::mem::take(&mut lock(&self.absent))
    }

    fn draw(&self, done: u64) {
        const WIDTH: u64 = 30;
        let total = self.total.load(Ordering::Relaxed).max(1);
        let filled = usize::try_from(WIDTH * done.min(total) / total).unwrap_or(0);
        let bar: String = (0..30)
            .map(|place| if place < filled { '#' } else { '.' })
            .collect();
        let (share, size) = (percent(done, total), Sizes::Human.show(done));
        let what = *lock(&self.what);
        put(&format!("{what} [{bar}] {share} {size}"), &share);
    }
}

/// Draws a line, or a shorter one where it does not fit.
fn put(line: &str, short: &str) {
    if OVER.load(Ordering::Relaxed) {
        return;
    }
    let columns = tcgetwinsize(std::io::stderr()).map_or(0, |size| size.ws_col.into());
    // A line that wraps could not be drawn anew.
    let line = if line.len() < columns { line } else { short };
    let drawn = format!("\r{line}\x1b[K");
    if std::io::stderr().write_all(drawn.as_bytes()).is_err() {
        // As above.
    }
}

impl Watch for Progress {
    fn step(&self, step: Step) {
        match step {
            Step::Copied { bytes } => {
                let before = self.done.swap(bytes, Ordering::Relaxed);
                if self.shown && before / PIECE != bytes / PIECE {
                    let size = Sizes::Human.show(bytes);
                    put(&format!("reading {size}"), &size);
                }
            }
            Step::Layers { bytes } => {
                lock(&self.layers).clear();
                self.begin("loading", bytes);
            }
            Step::Layer { diff_id, read, .. } => {
                let more = {
                    let mut layers = lock(&self.layers);
                    let known = layers.entry(diff_id).or_default();
                    let more = read.saturating_sub(*known);
                    *known = read.max(*known);
                    more
                };
                self.advance(more);
            }
            // Of an import.
            Step::Root { .. } => {}
        }
    }

    fn absent(&self, absent: &Absent) {
        lock(&self.absent).push(absent.clone());
    }
}
