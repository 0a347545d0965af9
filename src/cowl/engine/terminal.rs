//! The caller's terminal while a container with `-t` runs: raw, and restored on every exit.
//!
//! Used by `run`. Fatal signals are read from a signalfd, and a panic unwinds, so [`Raw`] is always
//! dropped.

use super::error::{Context, Result};
use rustix::termios::{self, OptionalActions, Termios, Winsize};
use std::os::fd::{AsFd, OwnedFd};

/// A terminal in raw mode. Dropping it restores the settings.
#[derive(Debug)]
pub(crate) struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Makes the terminal raw: each key goes to the container unchanged.
    pub(crate) fn new(terminal: impl AsFd) -> Result<Self> {
        let terminal = terminal
            .as_fd()
            .try_clone_to_owned()
            .context(|| "duplicating the terminal's descriptor")?;
        let before = termios::tcgetattr(&terminal).context(|| "reading the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&terminal, OptionalActions::Drain, &raw)
            .context(|| "putting the terminal in raw mode")?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(errno) = termios::tcsetattr(&self.terminal, OptionalActions::Drain, &self.before)
        {
            // A closed terminal has no settings to restore. Other errors can't be reported from
            // here.
            debug_assert!(
                matches!(errno, rustix::io::Errno::IO | rustix::io::Errno::NOTTY),
                "restoring the terminal: {errno}"
            );
        }
    }
}

/// The terminal's size; 0 x 0 if unknown.
pub(crate) fn size(terminal: impl AsFd) -> Result<Winsize> {
    termios::tcgetwinsize(terminal).context(|| "reading the terminal's size")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    fn terminal() -> (OwnedFd, OwnedFd) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = rustix::fs::open(
            name,
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
        (master, slave)
    }

    fn modes(
        terminal: &OwnedFd,
    ) -> (
        termios::LocalModes,
        termios::InputModes,
        termios::OutputModes,
    ) {
        let now = termios::tcgetattr(terminal).unwrap();
        (now.local_modes, now.input_modes, now.output_modes)
    }

    #[test]
    fn drop_restores_the_terminal_after_a_panic() {
        let (_master, slave) = terminal();
        let before = modes(&slave);
        let panicked = std::panic::catch_unwind(|| {
            let _raw = Raw::new(&slave).unwrap();
            assert!(!modes(&slave).0.contains(termios::LocalModes::ICANON));
            panic!("on purpose");
        });
        assert!(panicked.is_err());
        assert_eq!(modes(&slave), before);
    }
}
