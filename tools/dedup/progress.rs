//! A progress bar on standard error, if that is a terminal: for reading archives and for the
//! ladder.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cowl_core::digest::DiffId;
use cowl_core::image::{Absent, Step, Watch};
use rustix::termios::tcgetwinsize;

use crate::show::{Sizes, percent};

/// Progress, and what archives lack. Shared by threads.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Whether the bar is shown.
    shown: bool,
    what: Mutex<&'static str>,
    total: AtomicU64,
    done: AtomicU64,
    /// Bytes of each layer of an archive.
    layers: Mutex<HashMap<DiffId, u64>>,
    absent: Mutex<Vec<Absent>>,
}

/// Number of redraws from 0 to 100 %.
const STEPS: u64 = 200;
/// Bytes between redraws if the total is unknown.
const STEP_BYTES: u64 = 4 << 20;

/// Set when a signal ends the run: nothing is drawn any more.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Removes the bar for good.
pub(crate) fn stop() {
    STOPPED.store(true, Ordering::Relaxed);
    clear();
}

fn clear() {
    if std::io::stderr().write_all(b"\r\x1b[K").is_err() {
        // Failures to draw are ignored.
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Progress {
    /// A bar that is shown if standard error is a terminal.
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

    /// Removes the bar.
    pub(crate) fn end(&self) {
        if self.shown {
            clear();
        }
    }

    /// Takes what the last archive lacks.
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

/// Draws a line, or the shorter one if it does not fit.
fn put(line: &str, short: &str) {
    if STOPPED.load(Ordering::Relaxed) {
        return;
    }
    let columns = tcgetwinsize(std::io::stderr()).map_or(0, |size| size.ws_col.into());
    // A wrapped line could not be redrawn.
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
                if self.shown && before / STEP_BYTES != bytes / STEP_BYTES {
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
            // Only for imports.
            Step::Root { .. } => {}
        }
    }

    fn absent(&self, absent: &Absent) {
        lock(&self.absent).push(absent.clone());
    }
}
