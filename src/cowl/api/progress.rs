//! Docker's progress messages of a load, a JSON line each.

use super::stream::Stream;
use crate::engine::size::human_of;
use cowl_core::digest::DiffId;
use cowl_core::image::{Absent, Step, Watch};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};

/// Bytes of a layer between two messages, as dockerd has it.
const STEP: u64 = 512 << 10;
/// Columns of the bar.
const WIDTH: u64 = 50;

/// Tells a client which layers are read. Nothing is told while the client still sends, as it may
/// not read meanwhile.
#[derive(Debug)]
pub(super) struct LoadProgress<'s> {
    stream: &'s Stream,
    /// Only what was left out is said.
    quiet: bool,
    /// Bytes of each layer that were told.
    told: Mutex<HashMap<DiffId, u64>>,
    absent: Mutex<Vec<Absent>>,
}

impl<'s> LoadProgress<'s> {
    pub(super) fn new(stream: &'s Stream, quiet: bool) -> Self {
        Self {
            stream,
            quiet,
            told: Mutex::default(),
            absent: Mutex::default(),
        }
    }

    /// Says what was left out: unlike progress, whether or not the client is behind in reading.
    pub(super) fn warn(&self) -> io::Result<()> {
        let absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        absent.iter().try_for_each(|absent| {
            let text = format!("Warning: {absent}\n");
            self.stream.json(&json!({ "stream": text }))
        })
    }
}

impl Watch for LoadProgress<'_> {
    fn step(&self, step: Step) {
        let Step::Layer {
            diff_id,
            read,
            size,
        } = step
        else {
            return;
        };
        if self.quiet {
            return;
        }
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let told = told.entry(diff_id).or_default();
            let more = read.saturating_sub(*told);
            if more == 0 || more < STEP && read < size {
                return;
            }
            *told = read;
        }
        self.stream.offer_json(&message(diff_id, read, size));
    }

    fn absent(&self, absent: &Absent) {
        let mut known = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        known.push(absent.clone());
    }
}

fn message(diff_id: DiffId, current: u64, total: u64) -> Value {
    let mut id = diff_id.0.hex();
    id.truncate(12);
    json!({
        "status": "Loading layer",
        "progressDetail": {"current": current, "total": total},
        "progress": bar(current, total),
        "id": id,
    })
}

/// As `jsonmessage` draws it.
fn bar(current: u64, total: u64) -> String {
    let done = u128::from(current) * u128::from(WIDTH) / u128::from(total.max(1));
    let done = usize::try_from(done.min(u128::from(WIDTH))).unwrap_or_default();
    let spaces = usize::try_from(WIDTH).unwrap_or_default() - done;
    let (current, total) = (human_of(current, 4), human_of(total, 4));
    format!(
        "[{}>{}] {current:>8}/{total}",
        "=".repeat(done),
        " ".repeat(spaces)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowl_core::digest::Sha256Digest;

    /// As `pkg/jsonmessage` composes it.
    #[test]
    fn message_is_that_of_dockerd() {
        let diff_id = DiffId(Sha256Digest::of(b""));
        assert_eq!(
            message(diff_id, 32_768, 1_457_152),
            json!({
                "status": "Loading layer",
                "progressDetail": {"current": 32_768, "total": 1_457_152},
                "progress": "[=>                                                 ]  32.77kB/1.457MB",
                "id": "e3b0c44298fc",
            })
        );
        assert_eq!(
            bar(1_457_152, 1_457_152),
            "[==================================================>]  1.457MB/1.457MB"
        );
        assert_eq!(
            bar(0, 0),
            "[>                                                  ]       0B/0B"
        );
    }
}
