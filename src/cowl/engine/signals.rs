//! The signals of a foreground `cowl run`, read from a signalfd instead of by handlers.
//!
//! They are blocked before any thread or process is started: threads inherit the mask, and
//! `std::process::Command` gives children an empty one. Until the container runs, an
//! [interrupt](Signals::interrupt) ends the start; from then on every signal goes to the
//! container, as with Docker's `--sig-proxy`.

use super::error::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd};

/// Never passed on, as in Docker: they concern this process.
const OWN: [Signal; 3] = [Signal::SIGCHLD, Signal::SIGPIPE, Signal::SIGURG];
/// Not blocked in a terminal: with these blocked, a background process reads EIO from its
/// terminal and changes the settings that the foreground uses.
const JOB_CONTROL: [Signal; 2] = [Signal::SIGTTIN, Signal::SIGTTOU];
/// These abort a start, and the cleanup after the container's end.
const INTERRUPTS: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// The signals of this process, blocked and readable.
#[derive(Debug)]
pub(crate) struct Signals {
    all: SignalFd,
    interrupts: SignalFd,
}

impl Signals {
    /// Blocks every signal that can be passed on, for this thread and all that it starts.
    pub(crate) fn block() -> Result<Self> {
        let mut all = SigSet::all();
        let in_terminal = std::io::stdin().is_terminal()
            || std::io::stdout().is_terminal()
            || std::io::stderr().is_terminal();
        let job_control = JOB_CONTROL.iter().filter(|_signal| in_terminal);
        for signal in OWN.iter().chain(job_control) {
            all.remove(*signal);
        }
        all.thread_block().context(|| "blocking signals")?;
        let open = |set: &SigSet| {
            SignalFd::with_flags(set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
                .context(|| "opening a signal descriptor")
        };
        Ok(Self {
            all: open(&all)?,
            interrupts: open(&INTERRUPTS.into_iter().collect())?,
        })
    }

    /// The number of the next signal that has arrived, if any.
    pub(crate) fn next(&self) -> Result<Option<u8>> {
        read(&self.all)
    }

    /// A descriptor that is readable while an interrupt is pending, to poll in waits.
    pub(crate) fn interrupt(&self) -> BorrowedFd<'_> {
        self.interrupts.as_fd()
    }

    /// EINTR if an interrupt is pending.
    pub(crate) fn check_interrupt(&self) -> Result<()> {
        if self.has_interrupt()? {
            return Err(Errno::INTR.into());
        }
        Ok(())
    }

    /// Whether an interrupt is pending.
    pub(crate) fn has_interrupt(&self) -> Result<bool> {
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut asked = [PollFd::from_borrowed_fd(self.interrupt(), PollFlags::IN)];
        Ok(retry_on_intr(|| poll(&mut asked, Some(&at_once)))? != 0)
    }

    /// Takes a pending interrupt. Other signals stay pending, for the container.
    pub(crate) fn take_interrupt(&self) -> Result<Option<u8>> {
        read(&self.interrupts)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.all.as_fd()
    }
}

fn read(descriptor: &SignalFd) -> Result<Option<u8>> {
    let info = descriptor
        .read_signal()
        .context(|| "reading the signal descriptor")?;
    Ok(info.map(|info| u8::try_from(info.ssi_signo).unwrap_or(0)))
}

/// Whether a signal of this number is the named one.
pub(crate) fn is(number: u8, signal: Signal) -> bool {
    i32::from(number) == signal as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::raise;

    #[test]
    fn block_leaves_only_own_signals_unblocked() {
        let signals = Signals::block().unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("SigBlk:\t"))
            .unwrap();
        let blocked = u64::from_str_radix(mask, 16).unwrap();
        let is_blocked = |number: i32| blocked & 1 << (number - 1) != 0;
        // KILL and STOP can't be; 32 and 33 are the C library's; the terminal's depend on how the
        // test is run.
        for number in (1..=64).filter(|number| !matches!(number, 9 | 19 | 21 | 22 | 32 | 33)) {
            let own = [17, 13, 23].contains(&number);
            assert_eq!(is_blocked(number), !own, "{number}");
        }
        for number in [Signal::SIGWINCH, Signal::SIGALRM] {
            raise(number).unwrap();
            assert_eq!(signals.next().unwrap(), Some(number as u8));
        }
        assert_eq!(signals.next().unwrap(), None);
    }

    #[test]
    fn take_interrupt_leaves_other_signals_pending() {
        let signals = Signals::block().unwrap();
        raise(Signal::SIGUSR1).unwrap();
        assert_eq!(signals.take_interrupt().unwrap(), None);
        raise(Signal::SIGTERM).unwrap();
        assert_eq!(signals.take_interrupt().unwrap(), Some(15));
        assert_eq!(signals.take_interrupt().unwrap(), None);
        assert_eq!(signals.next().unwrap(), Some(10));
    }
}
