//! Docker's progress messages of a load, one JSON line each.

use super::stream::Stream;
use crate::engine::size::human_of;
use cowl_core::digest::DiffId;
use cowl_core::image::{Absent, Step, Watch};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};

/// Bytes of a layer between two messages, as in dockerd.
const STEP: u64 = 512 << 10;
/// Columns of the bar.
const WIDTH: u64 = 50;

/// Reports to a client which layers are read. Messages are dropped while the client does not read,
/// as it may still be sending.
#[derive(Debug)]
pub(super) struct LoadProgress<'s> {
    stream: &'s Stream,
    /// Report only what was left out.
    quiet: bool,
    /// Bytes of each layer reported so far.
    reported: Mutex<HashMap<DiffId, u64>>,
    absent: Mutex<Vec<Absent>>,
}

impl<'s> LoadProgress<'s> {
    pub(super) fn new(stream: &'s Stream, quiet: bool) -> Self {
        Self {
            stream,
            quiet,
            reported: Mutex::default(),
            absent: Mutex::default(),
        }
    }

    /// Reports what was left out. Unlike progress, this waits for a slow client.
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
            let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
            let reported = reported.entry(diff_id).or_default();
            let more = read.saturating_sub(*reported);
            if more == 0 || more < STEP && read < size {
                return;
            }
            *reported = read;
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

/// The bar as `jsonmessage` draws it.
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

    /// The expected texts are those of `pkg/jsonmessage`.
    #[test]
    fn message_matches_dockerds() {
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
