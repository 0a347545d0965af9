//! A client attached to a program in a container: `exec` and `attach`.
//!
//! Invariant: [`run`] restores the caller's terminal on every return.

use crate::engine::attach::{Output, Pipes};
use crate::engine::detach_keys::DetachKeys;
use crate::engine::error::{Context, Error, Result};
use crate::engine::exec::{Attachment, Exec};
use crate::engine::signals::{Signals, is};
use crate::engine::terminal::{self, Raw};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::io::IsTerminal as _;
use std::os::fd::AsFd;

/// Added to a signal's number, as by shells.
const SIGNALLED: u8 = 128;

/// A program in a container that a client is attached to.
pub(super) trait Client: AsFd {
    fn signal(&self, number: u8) -> Result<()>;
    fn resize(&self, rows: u16, columns: u16) -> Result<()>;
    fn wait(&self) -> Result<u8>;
}

macro_rules! client {
    ($name:ident) => {
        impl Client for $name {
            fn signal(&self, number: u8) -> Result<()> {
                $name::signal(self, number)
            }
            fn resize(&self, rows: u16, columns: u16) -> Result<()> {
                $name::resize(self, rows, columns)
            }
            fn wait(&self) -> Result<u8> {
                $name::wait(self)
            }
        }
    };
}

client!(Exec);
client!(Attachment);

/// The options of a session.
#[derive(Debug)]
pub(super) struct SessionOptions {
    /// The program has a terminal.
    pub(super) tty: bool,
    /// The caller's input is copied to it.
    pub(super) interactive: bool,
    /// The caller's signals are passed on; else an interrupt ends the client.
    pub(super) sig_proxy: bool,
    /// The keys that detach from a program with a terminal.
    pub(super) detach_keys: DetachKeys,
}

/// Why a session ended.
enum Ended {
    /// The program ended, with this exit code.
    Program(u8),
    /// A signal that is not passed on.
    Interrupt,
    /// The detach keys.
    Keys,
}

/// Copies streams until the program ends or the client detaches, and returns the exit code.
pub(super) fn run(
    client: &impl Client,
    pipes: Pipes,
    signals: &Signals,
    options: SessionOptions,
) -> Result<u8> {
    let SessionOptions {
        tty,
        interactive,
        sig_proxy,
        detach_keys,
    } = options;
    let stdin = std::io::stdin();
    let raw = if tty && interactive && stdin.is_terminal() {
        Some(Raw::new(stdin.as_fd())?)
    } else {
        None
    };
    let keys = if tty { detach_keys } else { DetachKeys::none() };
    let output = pipes.relay(keys)?;
    if tty {
        resize(client)?;
    }
    match watch(client, &output, signals, (tty, sig_proxy))? {
        Ended::Program(code) => {
            let drained = drain(output, signals);
            drop(raw);
            drained.map(|()| code)
        }
        Ended::Interrupt => {
            drop(raw);
            Ok(signals
                .take_interrupt()?
                .map_or(0, |signal| SIGNALLED.saturating_add(signal)))
        }
        Ended::Keys => {
            drop(raw);
            // As in Docker's client, detaching is an error: the exit code is unknown.
            Err(Error::failed("read escape sequence"))
        }
    }
}

/// Passes on signals and changes of the terminal's size, until the program ends or the client
/// detaches.
fn watch(
    client: &impl Client,
    output: &Output,
    signals: &Signals,
    (tty, sig_proxy): (bool, bool),
) -> Result<Ended> {
    loop {
        let mut waiting = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(client, PollFlags::IN),
            PollFd::from_borrowed_fd(output.detached(), PollFlags::IN),
        ];
        match poll(&mut waiting, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(Error::from(errno).context("waiting for the container")),
        }
        let [_, ended, detached] = waiting;
        if !ended.revents().is_empty() {
            return client.wait().map(Ended::Program);
        }
        if !detached.revents().is_empty() {
            return Ok(Ended::Keys);
        }
        if !sig_proxy && signals.has_interrupt()? {
            return Ok(Ended::Interrupt);
        }
        while let Some(number) = signals.next()? {
            if is(number, Signal::SIGWINCH) {
                if tty {
                    resize(client)?;
                }
            } else if sig_proxy {
                client.signal(number)?;
            }
        }
    }
}

/// The caller's terminal, if it has one.
pub(super) fn window_size() -> Option<(u16, u16)> {
    let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
    let size = terminal::size(stdin.as_fd()).or_else(|_none| terminal::size(stdout.as_fd()));
    size.ok().map(|size| (size.ws_row, size.ws_col))
}

fn resize(client: &impl Client) -> Result<()> {
    match window_size() {
        Some((rows, columns)) => client.resize(rows, columns),
        None => Ok(()),
    }
}

/// Waits until all output has been copied, or for an interrupt.
fn drain(output: Output, signals: &Signals) -> Result<()> {
    loop {
        let mut waiting = [
            PollFd::from_borrowed_fd(signals.interrupt(), PollFlags::IN),
            PollFd::from_borrowed_fd(output.done(), PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| poll(&mut waiting, None))
            .context(|| "waiting for the container's output")?;
        let [_, done] = waiting;
        if !done.revents().is_empty() {
            return output.finish();
        }
        if signals.take_interrupt()?.is_some() {
            return Ok(());
        }
    }
}
