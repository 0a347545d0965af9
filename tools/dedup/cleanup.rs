//! Releases what a run holds in a store, on disk or of the terminal, at its end and at the signals
//! of [`ENDING`].
//!
//! The signals are blocked before any other thread starts, and one thread waits for them. After
//! SIGKILL a lease is stale and goes with the next gc, a scratch store with the next run that needs
//! one.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use cowl_core::store::Lease;
use nix::sys::signal::{SigSet, Signal, raise};
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;

use crate::archive::Scratch;
use crate::progress;

/// What is held, in the order of release.
struct Held {
    /// The terminal is in raw mode on the alternate screen.
    terminal: bool,
    leases: Vec<Lease>,
    scratch: Vec<Scratch>,
}

impl Held {
    fn give_back(&mut self) {
        self.restore_terminal();
        self.leases.clear();
        self.scratch.clear();
    }

    fn restore_terminal(&mut self) {
        if !std::mem::take(&mut self.terminal) {
            return;
        }
        // Also show the cursor, which ratatui hides.
        let restored = ratatui::try_restore().and_then(|()| execute!(std::io::stdout(), Show));
        if restored.is_err() {
            // The terminal is gone.
        }
    }

    /// Explains on a terminal why the end takes a while: a scratch store may have many files.
    fn tell(&self) {
        if self.scratch.is_empty() || !std::io::stderr().is_terminal() {
            return;
        }
        progress::stop();
        for scratch in &self.scratch {
            if crate::write_error(&format!("removing scratch files: {}", scratch.shown())).is_err()
            {
                // The terminal is gone.
            }
        }
    }
}

/// Locked while something is acquired, so that a signal then releases it.
static HELD: Mutex<Held> = Mutex::new(Held {
    terminal: false,
    leases: Vec::new(),
    scratch: Vec::new(),
});

const ENDING: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

fn held() -> MutexGuard<'static, Held> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a lease, if `take` has one, and keeps it until [`release`].
pub(crate) fn hold_lease<E>(take: impl FnOnce() -> Result<Option<Lease>, E>) -> Result<(), E> {
    let mut held = held();
    held.leases.extend(take()?);
    Ok(())
}

/// Makes a scratch directory and keeps it until [`release`]; returns its path.
pub(crate) fn hold_scratch(make: impl FnOnce() -> Result<(Scratch, PathBuf)>) -> Result<PathBuf> {
    let mut held = held();
    let (scratch, path) = make()?;
    held.scratch.push(scratch);
    Ok(path)
}

/// Takes the terminal and keeps it until [`release`].
pub(crate) fn hold_terminal<T>(take: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut held = held();
    let terminal = take()?;
    held.terminal = true;
    Ok(terminal)
}

/// Runs `act` while signals have to wait.
pub(crate) fn undisturbed<T>(act: impl FnOnce() -> T) -> T {
    let _held = held();
    act()
}

/// Releases everything.
pub(crate) fn release() {
    held().give_back();
}

/// From here on, a signal that would end the process releases everything first; one that was
/// ignored at the start (`nohup`) stays ignored. Call it before any thread is started.
pub(crate) fn watch_signals() -> Result<()> {
    let ignored = cowl_sys::signals::ignored().context("which signals are ignored")?;
    let is_ending = |signal: &Signal| !ignored.contains(*signal as i32);
    let ending: SigSet = ENDING.into_iter().filter(is_ending).collect();
    ending.thread_block().context("blocking signals")?;
    let wait = move || {
        let Ok(signal) = ending.wait() else { return };
        // Locked until the end, so that nothing more is acquired, and no error is printed about
        // what is removed here.
        let mut held = held();
        held.restore_terminal();
        held.tell();
        held.give_back();
        // Die by the signal, so that the caller sees it.
        if ending.thread_unblock().is_ok() && raise(signal).is_err() {
            // The process continues to its regular end.
        }
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .context("starting a thread")?;
    Ok(())
}
