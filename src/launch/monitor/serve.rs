//! The monitor's event loop while the program runs: clients, signals, streams, ended processes.
//!
//! A request that can't be understood or done is answered so; only a failed system call of the
//! monitor's own ends the container.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Instant;

use nix::sys::signal::Signal as NamedSignal;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::console::Console;
use super::container::{Container, watched_signals};
use super::health::Health;
use super::poller::{Key, Poller};
use super::{failed, of_nix};
use crate::message::{ControlRequest, Failed};
use crate::process::WindowSize;
use crate::status::Lock;
use crate::wire::{self, WireError};

/// What is waited for beside clients and streams.
struct Sources {
    ended: Option<Key>,
    client: Option<Key>,
    signals: Option<Key>,
    signal: SignalFd,
}

impl Container {
    /// Returns when the first process has ended. It is not reaped yet.
    pub(super) fn serve(&mut self, client: BorrowedFd<'_>, lock: &mut Lock) -> Result<(), Failed> {
        let watch = |errno| failed("watch the container", errno);
        let mut sources = self.sources(client).map_err(watch)?;
        self.console.start(&mut self.poller).map_err(watch)?;
        loop {
            for key in self.wait().map_err(watch)? {
                if sources.ended == Some(key) {
                    return Ok(());
                }
                if self.connections.has(key) {
                    let asked = self.connections.handle(key, &mut self.poller);
                    if let Some(asked) = asked.map_err(watch)? {
                        self.answer(asked, lock).map_err(watch)?;
                    }
                } else {
                    self.handle(key, client, &mut sources).map_err(watch)?;
                }
            }
        }
    }

    fn sources(&mut self, client: BorrowedFd<'_>) -> Result<Sources, Errno> {
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signal = SignalFd::with_flags(&watched_signals(), flags).map_err(of_nix)?;
        Ok(Sources {
            ended: self.poller.add(self.pidfd.as_fd(), EventFlags::IN)?,
            client: self.poller.add(client, EventFlags::IN)?,
            signals: self.poller.add(signal.as_fd(), EventFlags::IN)?,
            signal,
        })
    }

    /// Waits for something to do, and cuts off readers that have held up a program for too long.
    fn wait(&mut self) -> Result<Vec<Key>, Errno> {
        let consoles = || {
            let execs = self.execs.iter().map(|exec| &exec.console);
            std::iter::once(&self.console).chain(execs)
        };
        let deadline = consoles().filter_map(Console::deadline).min();
        let health = self.health.as_ref().filter(|_| !self.paused);
        let check = health.and_then(Health::deadline);
        let first = deadline.into_iter().chain(check).min();
        let limit = first.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let ready = self.poller.wait(limit)?;
        if deadline.is_some() {
            let now = Instant::now();
            self.console.cut_off(now, &mut self.poller)?;
            for exec in &mut self.execs {
                exec.console.cut_off(now, &mut self.poller)?;
            }
        }
        self.check_health(Instant::now())?;
        Ok(ready)
    }

    fn handle(
        &mut self,
        key: Key,
        client: BorrowedFd<'_>,
        sources: &mut Sources,
    ) -> Result<(), Errno> {
        if sources.client == Some(key) {
            if self.serve_client(client)? == ClientState::Gone {
                self.poller.remove(key, client)?;
                sources.client = None;
            }
        } else if sources.signals == Some(key) {
            self.forward_signals(&sources.signal)?;
        } else if !self.handle_report(key)? {
            self.handle_streams(key)?;
        }
        Ok(())
    }

    fn handle_streams(&mut self, key: Key) -> Result<(), Errno> {
        let status = self.kept.status.as_fd();
        let log = self.log.as_mut();
        if self.console.handle(key, &mut self.poller, log, status)? {
            return Ok(());
        }
        for exec in &mut self.execs {
            let console = &mut exec.console;
            let handled = if exec.exited.is_some() {
                console.linger(key, &mut self.poller)?
            } else {
                console.handle(key, &mut self.poller, None, status)?
            };
            if handled {
                break;
            }
        }
        // Else of a descriptor that an event before has closed.
        Ok(())
    }

    fn serve_client(&mut self, client: BorrowedFd<'_>) -> Result<ClientState, Errno> {
        match wire::receive_request(client) {
            Ok(ControlRequest::Signal(signal)) => {
                self.signal(i32::from(signal.number))?;
                Ok(ClientState::Connected)
            }
            Ok(ControlRequest::Resize(size)) => {
                resize(&self.console, size).map(|_has_terminal| ClientState::Connected)
            }
            Err(WireError::Socket(Errno::AGAIN | Errno::INTR)) => Ok(ClientState::Connected),
            Err(WireError::Closed | WireError::Socket(_)) => Ok(ClientState::Gone),
            // What can't be read is passed over.
            Err(_) => Ok(ClientState::Connected),
        }
    }

    /// Sends a signal to the first process; false if that is no signal, or it has ended.
    pub(super) fn signal(&mut self, number: i32) -> Result<bool, Errno> {
        match crate::sys::signal::send(self.pidfd.as_fd(), number) {
            Ok(()) => {}
            Err(Errno::SRCH | Errno::INVAL) => return Ok(false),
            Err(errno) => return Err(errno),
        }
        if self.paused && number == NamedSignal::SIGKILL as i32 {
            // A frozen process of version 1 does not die.
            let thawed = self.cgroups.freeze(false);
            thawed.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            self.paused = false;
        }
        Ok(true)
    }

    /// Forwards signals to the program. SIGCHLD is the monitor's own.
    fn forward_signals(&mut self, signals: &SignalFd) -> Result<(), Errno> {
        while let Some(signal) = signals.read_signal().map_err(of_nix)? {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
            if number == NamedSignal::SIGCHLD as i32 {
                self.reap_all()?;
            } else {
                self.signal(number)?;
            }
        }
        Ok(())
    }
}

/// Sets the size of a program's terminal; false if it has none.
pub(super) fn resize(console: &Console, size: WindowSize) -> Result<bool, Errno> {
    let Some(terminal) = console.terminal() else {
        return Ok(false);
    };
    let size = rustix::termios::Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(terminal, size).map(|()| true)
}

/// Gives readers of a container that has ended the rest, for as long as they live.
pub(super) fn linger(mut consoles: Vec<Console>, mut poller: Poller) {
    while consoles.iter().any(Console::has_readers) {
        let Ok(ready) = poller.wait(None) else { return };
        for key in ready {
            for console in &mut consoles {
                match console.linger(key, &mut poller) {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(_errno) => return,
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientState {
    Connected,
    Gone,
}
