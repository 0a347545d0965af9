//! What a run holds in a store or on disk, given back at its end and at SIGINT, SIGTERM and SIGHUP.
//!
//! The signals are blocked before any other thread starts, and one thread waits for them. After
//! SIGKILL a lease is stale and goes with the next gc.

use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use cowl_core::store::Lease;
use nix::sys::signal::{SigSet, Signal, raise};

static LEASES: Mutex<Vec<Lease>> = Mutex::new(Vec::new());

const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Takes a lease, if `take` has one, and keeps it until [`release`]. A signal that comes meanwhile
/// waits until it is known what there is to release.
pub(crate) fn hold_lease<E>(take: impl FnOnce() -> Result<Option<Lease>, E>) -> Result<(), E> {
    let mut leases = LEASES.lock().unwrap_or_else(PoisonError::into_inner);
    leases.extend(take()?);
    Ok(())
}

/// Ends what is held.
pub(crate) fn release() {
    LEASES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clear();
}

/// From here on, a signal that would end the process releases first. To be called before any
/// thread is started.
pub(crate) fn watch_signals() -> Result<()> {
    let ending: SigSet = ENDING.into_iter().collect();
    ending.thread_block().context("blocking signals")?;
    let wait = move || {
        let Ok(signal) = ending.wait() else { return };
        release();
        // As if it had not been blocked: the caller sees which signal it was.
        if ending.thread_unblock().is_ok() && raise(signal).is_err() {
            // The process goes on to its regular end.
        }
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .context("starting a thread")?;
    Ok(())
}
