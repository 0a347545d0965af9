//! The signals that a foreground `cowl run` passes on, taken by a descriptor instead of handlers.
//!
//! Blocked before any thread or process is started: threads inherit the mask, and `std::process::Command` gives children an empty one.

use super::error::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::Pid;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

/// Passed on to the container.
const FORWARDED: [Signal; 6] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// The signals of this process, blocked and readable.
#[derive(Debug)]
pub(super) struct Signals {
    descriptor: SignalFd,
}

/// What a signal means for a running container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// To be passed on.
    Forward(u8),
    /// The caller's terminal has another size.
    Resized,
}

impl Signals {
    /// Blocks the forwarded signals and SIGWINCH for this thread and all that come from it.
    pub(super) fn block() -> Result<Self> {
        let mut set = SigSet::empty();
        for signal in FORWARDED.into_iter().chain([Signal::SIGWINCH]) {
            set.add(signal);
        }
        set.thread_block().context(|| "blocking signals")?;
        let descriptor = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context(|| "opening a signal descriptor")?;
        Ok(Self { descriptor })
    }

    /// The next signal that has arrived, if any.
    pub(super) fn next(&self) -> Result<Option<Event>> {
        let Some(info) = self
            .descriptor
            .read_signal()
            .context(|| "reading the signal descriptor")?
        else {
            return Ok(None);
        };
        let number = u8::try_from(info.ssi_signo).unwrap_or(0);
        Ok(Some(if is(number, Signal::SIGWINCH) {
            Event::Resized
        } else {
            Event::Forward(number)
        }))
    }

    /// A signal that has arrived and ends what is being done, if any; others are dropped: there is nobody yet to pass them to.
    pub(super) fn interrupted(&self) -> Result<Option<u8>> {
        while let Some(event) = self.next()? {
            if let Event::Forward(number) = event
                && ends(number)
            {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Whether the signal is one by which people end a program.
pub(super) fn ends(number: u8) -> bool {
    [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ]
    .into_iter()
    .any(|signal| is(number, signal))
}

fn is(number: u8, signal: Signal) -> bool {
    i32::from(number) == signal as i32
}

/// Whether the kernel would drop the signal because `init` is the first process of its namespace and has no handler for it (pid_namespaces(7)).
///
/// One that is ignored on purpose isn't dropped by accident: false.
pub(super) fn falls_on_deaf_ears(init: Pid, number: u8) -> bool {
    let mut status = String::new();
    let read = std::fs::File::open(format!("/proc/{}/status", init.as_raw_nonzero()))
        .and_then(|file| file.take(1 << 16).read_to_string(&mut status));
    read.is_ok() && has_default_action(&status, number)
}

fn has_default_action(status: &str, number: u8) -> bool {
    let mask = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let Some(bit) = number
        .checked_sub(1)
        .and_then(|shift| 1_u64.checked_shl(shift.into()))
    else {
        return false;
    };
    matches!((mask("SigIgn:"), mask("SigCgt:")), (Some(ignored), Some(caught)) if (ignored | caught) & bit == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_ignored_and_caught_are_told_apart() {
        // bash as it waits for a command: SIGINT (2) and SIGCHLD (17) caught, SIGTERM (15) and SIGQUIT (3) ignored.
        let status = "Name:\tbash\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000004004\nSigCgt:\t0000000000010002\n";
        assert!(!has_default_action(status, 2));
        assert!(!has_default_action(status, 15));
        assert!(has_default_action(status, 1));
        assert!(!has_default_action("", 2));
        assert!(!has_default_action(status, 0));
    }
}
