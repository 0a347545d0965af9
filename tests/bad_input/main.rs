//! Mistakes of a new user: each is answered by one line that names the problem and what to do, has
//! the right exit code, and leaves nothing behind.

mod archives;
mod commands;
mod mounts;

use std::fs;
use std::path::PathBuf;

use cowl_tests::command::{Outcome, shell};
use cowl_tests::profile::directory;
use cowl_tests::store::Store;

/// The line of a refusal, which names `what` and gives `advice`.
#[track_caller]
fn refusal(outcome: Outcome, code: i32, what: &str, advice: &str) {
    let line = outcome.refused(code);
    assert!(
        line.starts_with("cowl: "),
        "`{line}` does not say who speaks"
    );
    assert!(line.contains(what), "`{line}` does not name {what}");
    assert!(line.contains(advice), "`{line}` does not say: {advice}");
}

/// Every file in the store except locks, with its size: equal before and after a refusal.
fn contents(store: &Store) -> String {
    shell(
        store.root(),
        "find . -type f ! -name 'lock*' -printf '%p %s\\n' | sort",
        [""; 0],
    )
}

fn point() -> PathBuf {
    let point = directory().join("mnt");
    fs::create_dir_all(&point).unwrap();
    point
}
