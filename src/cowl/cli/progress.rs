//! Progress of `load` and `import` on standard error: a bar on a terminal, else a line every half
//! minute, so that a quick one prints nothing. At the end, what was left out.

use super::print_error;
use super::units::human_size;
use cowl_core::digest::DiffId;
use cowl_core::image::{Absent, Step, Watch};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two lines.
const PAUSE: Duration = Duration::from_secs(30);

const BAR: &str = "{msg} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
const SPINNER: &str = "{msg} {bytes} {bytes_per_sec}";

/// Shows progress; [`Progress::finish`] removes the bar and reports what was left out.
#[derive(Debug)]
pub(super) struct Progress {
    /// Report only what was left out.
    quiet: bool,
    /// None if standard error is not a terminal.
    bar: Option<ProgressBar>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    amount: Amount,
    /// Bytes read of each layer: several are read in parallel.
    layers: HashMap<DiffId, u64>,
    started: Instant,
    /// When the last line was printed.
    printed: Instant,
    absent: Vec<Absent>,
}

/// Bytes done and in total.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Amount {
    what: &'static str,
    done: u64,
    total: Option<u64>,
}

impl Progress {
    pub(super) fn new(quiet: bool) -> Self {
        let now = Instant::now();
        let has_bar = !quiet && std::io::stderr().is_terminal();
        Self {
            quiet,
            bar: has_bar.then(ProgressBar::no_length),
            state: Mutex::new(State {
                amount: Amount::default(),
                layers: HashMap::new(),
                started: now,
                printed: now,
                absent: Vec::new(),
            }),
        }
    }

    /// Ends the display, before anything else is printed.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for absent in &state.absent {
            print_error(&format!("warning: {absent}"));
        }
    }
}

impl Watch for Progress {
    fn step(&self, step: Step) {
        if self.quiet {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = state.take(step);
        let amount = state.amount;
        let Some(bar) = &self.bar else {
            if state.printed.elapsed() >= PAUSE {
                state.printed = Instant::now();
                print_error(&amount.line(state.started.elapsed()));
            }
            return;
        };
        if begun {
            bar.reset();
            bar.set_style(style(amount.total));
            bar.set_message(amount.what);
        }
        if let Some(total) = amount.total {
            bar.set_length(total);
        }
        bar.set_position(amount.done);
    }

    fn absent(&self, absent: &Absent) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.absent.push(absent.clone());
    }
}

impl State {
    /// Adds a step; returns whether it starts a new phase.
    fn take(&mut self, step: Step) -> bool {
        let before = self.amount.what;
        self.amount = match step {
            Step::Copied { bytes } => Amount {
                what: "Reading",
                done: bytes,
                total: None,
            },
            Step::Layers { bytes } => Amount {
                what: "Loading",
                done: 0,
                total: Some(bytes),
            },
            Step::Layer { diff_id, read, .. } => {
                let known = self.layers.entry(diff_id).or_default();
                let more = read.saturating_sub(*known);
                *known = read.max(*known);
                Amount {
                    done: self.amount.done.saturating_add(more),
                    ..self.amount
                }
            }
            Step::Root { read, size } => Amount {
                what: "Importing",
                done: read,
                total: size,
            },
        };
        let begun = self.amount.what != before;
        if begun {
            self.started = Instant::now();
        }
        begun
    }
}

impl Amount {
    /// Formats the progress after `elapsed` as one line.
    fn line(&self, elapsed: Duration) -> String {
        let rate = u128::from(self.done) * 1000 / elapsed.as_millis().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        let (what, done) = (self.what, human_size(self.done));
        let Some(total) = self.total else {
            return format!("{what}: {done}, {}/s", human_size(rate));
        };
        let left = total.saturating_sub(self.done) / rate.max(1);
        format!(
            "{what}: {done} of {}, {}/s, {} left",
            human_size(total),
            human_size(rate),
            HumanDuration(Duration::from_secs(left))
        )
    }
}

fn style(total: Option<u64>) -> ProgressStyle {
    let template = if total.is_some() { BAR } else { SPINNER };
    // Both are constants, which the tests cover.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_bad| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowl_core::digest::Sha256Digest;

    #[test]
    fn templates_of_the_bar_are_valid() {
        for template in [BAR, SPINNER] {
            ProgressStyle::with_template(template).unwrap();
        }
    }

    #[test]
    fn lines_show_amount_rate_and_time_left() {
        let amount = |total| Amount {
            what: "Loading",
            done: 50_000_000,
            total,
        };
        let elapsed = Duration::from_secs(10);
        assert_eq!(
            amount(Some(1_250_000_000)).line(elapsed),
            "Loading: 50MB of 1.25GB, 5MB/s, 4 minutes left"
        );
        assert_eq!(amount(None).line(elapsed), "Loading: 50MB, 5MB/s");
        assert_eq!(
            Amount::default().line(Duration::ZERO),
            ": 0B, 0B/s",
            "nothing is divided by zero"
        );
    }

    #[test]
    fn steps_of_several_layers_add_up() {
        let progress = Progress::new(false);
        let layer = |name: &[u8], read| Step::Layer {
            diff_id: DiffId(Sha256Digest::of(name)),
            read,
            size: 100,
        };
        let steps = [
            Step::Copied { bytes: 7 },
            Step::Layers { bytes: 200 },
            layer(b"a", 10),
            layer(b"b", 30),
            layer(b"a", 60),
            // read once more, since it was damaged in the store
            layer(b"a", 20),
        ];
        let mut state = progress.state.lock().unwrap();
        let begun = steps.map(|step| state.take(step));
        assert_eq!(begun, [true, true, false, false, false, false]);
        let expected = Amount {
            what: "Loading",
            done: 90,
            total: Some(200),
        };
        assert_eq!(state.amount, expected);
    }
}
