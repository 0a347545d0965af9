//! A progress bar on standard error, in a terminal only.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::termios::tcgetwinsize;

use crate::show::{Sizes, percent};

/// How far work has come. Threads share it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Whether anything is shown.
    shown: bool,
    total: AtomicU64,
    done: AtomicU64,
}

/// The bar is drawn anew this often: a share of the whole.
const STEPS: u64 = 200;

impl Progress {
    /// Shown if standard error is a terminal.
    pub(crate) fn new() -> Self {
        Self {
            shown: std::io::stderr().is_terminal(),
            ..Self::default()
        }
    }

    pub(crate) fn begin(&self, total: u64) {
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
        if self.shown && write!(std::io::stderr(), "\r\x1b[K").is_err() {
            // A bar that cannot be drawn is no loss.
        }
    }

    fn draw(&self, done: u64) {
        const WIDTH: u64 = 30;
        let total = self.total.load(Ordering::Relaxed).max(1);
        let filled = usize::try_from(WIDTH * done.min(total) / total).unwrap_or(0);
        let bar: String = (0..30)
            .map(|place| if place < filled { '#' } else { '.' })
            .collect();
        let (share, size) = (percent(done, total), Sizes::Human.show(done));
        let mut line = format!("cutting [{bar}] {share} {size}");
        let columns = tcgetwinsize(std::io::stderr()).map_or(0, |size| size.ws_col.into());
        if line.len() >= columns {
            // A line that wraps could not be drawn anew.
            line = share;
        }
        let drawn = format!("\r{line}\x1b[K");
        if std::io::stderr().write_all(drawn.as_bytes()).is_err() {
            // As above.
        }
    }
}
