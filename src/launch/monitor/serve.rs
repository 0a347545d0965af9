//! The monitor's event loop while the program runs: requests of the client, signals, ended
//! processes.
//!
//! A malformed request is ignored; only a failed system call ends the container.

use std::os::fd::{AsFd as _, BorrowedFd};

use nix::sys::signal::{SigSet, Signal as NamedSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::process::{WaitIdOptions, WaitOptions};

use super::Container;
use crate::message::ControlRequest;
use crate::process::WindowSize;
use crate::wire::{self, WireError};

impl Container {
    /// Returns when the first process has ended. It is not reaped yet.
    pub(super) fn serve(&mut self, control: BorrowedFd<'_>) -> Result<(), Errno> {
        const ENDED: u64 = 0;
        const CONTROL: u64 = 1;
        const SIGNAL: u64 = 2;
        let signals = SignalFd::with_flags(
            &watched_signals(),
            SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
        )
        .map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (source, data) in [
            (self.pidfd.as_fd(), ENDED),
            (control, CONTROL),
            (signals.as_fd(), SIGNAL),
        ] {
            epoll::add(
                &events,
                source,
                epoll::EventData::new_u64(data),
                epoll::EventFlags::IN,
            )?;
        }
        let mut ready = Vec::with_capacity(3);
        loop {
            ready.clear();
            rustix::io::retry_on_intr(|| {
                epoll::wait(&events, rustix::buffer::spare_capacity(&mut ready), None)
            })?;
            for event in &ready {
                match event.data.u64() {
                    ENDED => return Ok(()),
                    CONTROL => {
                        if self.serve_request(control)? == ClientState::Gone {
                            epoll::delete(&events, control)?;
                            // Hangs up the terminal: the program gets SIGHUP, as when a window is
                            // closed.
                            self.terminal = None;
                        }
                    }
                    _ => self.forward_signals(&signals)?,
                }
            }
        }
    }

    fn serve_request(&self, control: BorrowedFd<'_>) -> Result<ClientState, Errno> {
        match wire::receive_request(control) {
            Ok(ControlRequest::Signal(signal)) => self
                .signal(i32::from(signal.number))
                .map(|()| ClientState::Connected),
            Ok(ControlRequest::Resize(size)) => self.resize(size).map(|()| ClientState::Connected),
            Err(WireError::Socket(Errno::AGAIN | Errno::INTR)) => Ok(ClientState::Connected),
            Err(WireError::Closed | WireError::Socket(_)) => Ok(ClientState::Gone),
            // A request of a later version is ignored.
            Err(_) => Ok(ClientState::Connected),
        }
    }

    fn signal(&self, number: i32) -> Result<(), Errno> {
        match crate::sys::signal::send(self.pidfd.as_fd(), number) {
            // The process has ended, or the client sent a number that is no signal.
            Ok(()) | Err(Errno::SRCH | Errno::INVAL) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn resize(&self, size: WindowSize) -> Result<(), Errno> {
        let Some(terminal) = &self.terminal else {
            return Ok(());
        };
        let size = rustix::termios::Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(terminal, size)
    }

    /// Forwards signals to the program. SIGCHLD is the monitor's own.
    fn forward_signals(&self, signals: &SignalFd) -> Result<(), Errno> {
        while let Some(signal) = signals
            .read_signal()
            .map_err(|errno| Errno::from_raw_os_error(errno as i32))?
        {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
            if number == NamedSignal::SIGCHLD as i32 {
                self.reap_adopted()?;
            } else {
                self.signal(number)?;
            }
        }
        Ok(())
    }

    /// Reaps processes that were reparented to the monitor, but not the first process, whose status
    /// is needed.
    fn reap_adopted(&self) -> Result<(), Errno> {
        loop {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            let Some(pid) =
                crate::sys::signal::ended_child(options)?.filter(|pid| *pid != self.pid)
            else {
                return Ok(());
            };
            rustix::process::waitpid(Some(pid), WaitOptions::NOHANG)?;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientState {
    Connected,
    Gone,
}

pub(super) fn watched_signals() -> SigSet {
    use NamedSignal::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    [SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2]
        .into_iter()
        .collect()
}
