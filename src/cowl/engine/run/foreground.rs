//! A container in the foreground: its streams and the caller's signals, until it ends.
//!
//! Called by `run` for a started container. Invariant: [`stay`] restores the caller's terminal on
//! every return.

use super::Presence;
use crate::engine::attach;
use crate::engine::container::Container;
use crate::engine::detach_keys::DetachKeys;
use crate::engine::docker::ContainerConfig;
use crate::engine::error::{Error, Result};
use crate::engine::signals::{Signals, is};
use crate::engine::terminal::{self, Raw};
use cowl_launch::client::Monitor;
use cowl_launch::message::{self, Exited};
use cowl_launch::process::WindowSize;
use cowl_launch::wire::WireError;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::io::IsTerminal;
use std::os::fd::AsFd;

/// Number of SIGINT and SIGTERM after which `run` leaves the container, as Docker's client does.
pub(super) const FORCED: u8 = 3;

/// How [`stay`] ended.
pub(super) enum Ended {
    /// The container ended.
    Exited {
        /// Its exit code.
        code: u8,
        /// Its output has been copied whole; else the caller interrupted that.
        copied: bool,
    },
    /// Its monitor was killed.
    Lost,
    /// [`FORCED`] signals were received. The container runs on.
    Left,
    /// By a signal that is not passed on. The container runs on.
    Interrupted(u8),
    /// The caller typed the detach keys. The container runs on.
    Detached,
}

/// The size of the caller's terminal; 0 x 0 without one.
pub(super) fn window_size() -> WindowSize {
    let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
    let size =
        terminal::size(stdin.as_fd()).or_else(|_not_a_terminal| terminal::size(stdout.as_fd()));
    size.map_or(
        WindowSize {
            rows: 0,
            columns: 0,
        },
        |size| WindowSize {
            rows: size.ws_row,
            columns: size.ws_col,
        },
    )
}

/// Copies streams and passes signals on until the container ends.
pub(super) fn stay(
    container: &Container,
    monitor: &Monitor,
    pipes: attach::Pipes,
    presence: Presence,
    signals: &Signals,
) -> Result<Ended> {
    let config = &container.config.config;
    let stdin = std::io::stdin();
    let raw = if config.tty && pipes.has_stdin() && stdin.is_terminal() {
        Some(Raw::new(stdin.as_fd())?)
    } else {
        None
    };
    let keys = if config.tty {
        presence.keys
    } else {
        DetachKeys::none()
    };
    let output = pipes.relay(keys)?;
    let ended = watch(config, monitor, &output, signals, presence.sig_proxy)?;
    match ended {
        Ended::Exited { .. } => {}
        // A program that outlived its monitor could write without end.
        Ended::Lost => container.kill()?,
        Ended::Left | Ended::Interrupted(_) | Ended::Detached => return Ok(ended),
    }
    let copied = drain(output, signals);
    drop(raw);
    let copied = copied?;
    Ok(match ended {
        Ended::Exited { code, .. } => Ended::Exited { code, copied },
        ended => ended,
    })
}

/// Waits until all output has been copied, or for an interrupt: then it returns false.
fn drain(output: attach::Output, signals: &Signals) -> Result<bool> {
    loop {
        let done = output.done();
        let mut waiting = [
            PollFd::from_borrowed_fd(signals.interrupt(), PollFlags::IN),
            PollFd::from_borrowed_fd(done, PollFlags::IN),
        ];
        match poll(&mut waiting, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => {
                return Err(Error::from(errno).context("waiting for the container's output"));
            }
        }
        let [_, done] = waiting;
        if !done.revents().is_empty() {
            return output.finish().map(|()| true);
        }
        if signals.take_interrupt()?.is_some() {
            return Ok(false);
        }
    }
}

/// Passes signals on until the monitor says that the container has ended, or is gone, or the caller
/// detaches.
///
/// A first process gets only signals that it handles or blocks (pid_namespaces(7)). One that does
/// neither runs on, as with Docker without `--init`.
fn watch(
    config: &ContainerConfig,
    monitor: &Monitor,
    output: &attach::Output,
    signals: &Signals,
    sig_proxy: bool,
) -> Result<Ended> {
    let mut terminations = 0;
    loop {
        let detached = wait(signals, monitor, output)?;
        if !sig_proxy && let Some(signal) = signals.take_interrupt()? {
            return Ok(Ended::Interrupted(signal));
        }
        while let Some(number) = signals.next()? {
            if config.tty && is(number, Signal::SIGWINCH) {
                // The resize of the container's terminal sends SIGWINCH to its processes.
                unless_closed(monitor.resize(window_size()))?;
                continue;
            }
            if !sig_proxy {
                continue;
            }
            unless_closed(monitor.signal(number))?;
            if is(number, Signal::SIGINT) || is(number, Signal::SIGTERM) {
                terminations += 1;
            }
        }
        match next_message(monitor)? {
            Message::Exited(exited) => {
                return Ok(Ended::Exited {
                    code: exited.exit_code,
                    copied: false,
                });
            }
            Message::Closed => return Ok(Ended::Lost),
            Message::None if detached => return Ok(Ended::Detached),
            Message::None if terminations >= FORCED => return Ok(Ended::Left),
            Message::None => {}
        }
    }
}

/// Ignores that the monitor has closed the socket: its last messages are still to be read.
fn unless_closed(sent: Result<(), WireError>) -> Result<()> {
    match sent {
        Ok(()) | Err(WireError::Socket(Errno::PIPE | Errno::CONNRESET) | WireError::Closed) => {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Waits for a signal, a message or the detach keys; true if those have come.
fn wait(signals: &Signals, monitor: &Monitor, output: &attach::Output) -> Result<bool> {
    let mut waiting = [
        PollFd::new(signals, PollFlags::IN),
        PollFd::new(monitor, PollFlags::IN),
        PollFd::from_borrowed_fd(output.detached(), PollFlags::IN),
    ];
    match poll(&mut waiting, None) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(false),
        Err(errno) => return Err(Error::from(errno).context("waiting for the container")),
    }
    let [_, _, detached] = waiting;
    Ok(!detached.revents().is_empty())
}

enum Message {
    None,
    Exited(Exited),
    Closed,
}

fn next_message(monitor: &Monitor) -> Result<Message> {
    let at_once = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if poll(&mut [PollFd::new(monitor, PollFlags::IN)], Some(&at_once)) == Ok(0) {
        return Ok(Message::None);
    }
    match monitor.next_event() {
        Ok(message::Event::Exited(exited)) => Ok(Message::Exited(exited)),
        Ok(message::Event::Failed(failed)) => Err(Error::failed(failed.to_string())),
        Ok(message::Event::Started(_)) => {
            Err(Error::failed("the monitor sent an unexpected message"))
        }
        Err(WireError::Closed) => Ok(Message::Closed),
        // It never read a request of ours. Reported once, before its remaining messages.
        Err(WireError::Socket(Errno::CONNRESET)) => Ok(Message::None),
        Err(error) => Err(error.into()),
    }
}
