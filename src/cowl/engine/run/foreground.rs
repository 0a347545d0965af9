//! A container in the foreground: its streams and the caller's signals, until it is over.
//!
//! Called by `run` for a container that has started. Invariant: whatever happens, the caller's terminal is as it was when [`stay`] returns.

use super::{SIGNALLED, Streams};
use crate::engine::attach;
use crate::engine::container::Container;
use crate::engine::container::config::Config;
use crate::engine::error::{Error, Result};
use crate::engine::signals::{self, Event, Signals};
use crate::engine::terminal::{self, Raw};
use cowl_launch::client::Monitor;
use cowl_launch::plan::{self, Exited, WindowSize};
use cowl_launch::wire::WireError;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Pid;
use std::os::fd::AsFd;

const SIGKILL: u8 = 9;

/// Of the caller's terminal; 0 x 0 where there is none.
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

/// Streams and signals until the container is over. Gives the exit code, none if the monitor was killed.
pub(super) fn stay(
    container: &Container,
    monitor: &Monitor,
    init: Option<Pid>,
    streams: Streams,
    signals: &Signals,
) -> Result<Option<u8>> {
    let config = &container.config;
    let stdin = std::io::stdin();
    let raw = if config.tty && config.open_stdin {
        Some(Raw::new(stdin.as_fd())?)
    } else {
        None
    };
    let output = match streams {
        Streams::Pipes(pipes) => pipes.relay()?,
        Streams::Terminal(master) => attach::relay_terminal(master, config.open_stdin)?,
    };
    let ended = watch(config, monitor, init, signals)?;
    if ended.is_none() {
        // A program that has outlived its monitor would write without end.
        container.kill()?;
    }
    let passed_on = drain(output, signals);
    drop(raw);
    passed_on.map(|()| ended)
}

/// Waits until the container's last output has been passed on, or a signal says that nobody wants to wait for it.
fn drain(output: attach::Output, signals: &Signals) -> Result<()> {
    loop {
        let done = output.done();
        let mut waiting = [
            PollFd::new(signals, PollFlags::IN),
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
            return output.finish();
        }
        if signals.interrupted()?.is_some() {
            return Ok(());
        }
    }
}

/// Passes signals on until the monitor says that the container is over, or is gone (none).
fn watch(
    config: &Config,
    monitor: &Monitor,
    init: Option<Pid>,
    signals: &Signals,
) -> Result<Option<u8>> {
    let mut ended_by = None;
    loop {
        wait(signals, monitor)?;
        while let Some(event) = signals.next()? {
            match event {
                Event::Resized if config.tty => told(monitor.resize(window_size()))?,
                Event::Resized => {}
                // The kernel would drop it: the first process of a namespace gets only signals it has handlers for.
                Event::Forward(number)
                    if signals::ends(number)
                        && init.is_some_and(|init| signals::falls_on_deaf_ears(init, number)) =>
                {
                    ended_by = Some(number);
                    told(monitor.signal(SIGKILL))?;
                }
                Event::Forward(number) => told(monitor.signal(number))?,
            }
        }
        let exited = match next_message(monitor)? {
            Message::Exited(exited) => exited,
            Message::Closed => return Ok(None),
            Message::None => continue,
        };
        let killed = exited.signal == Some(SIGKILL);
        return Ok(Some(
            ended_by
                .filter(|_| killed)
                .map_or(exited.exit_code, |number| SIGNALLED.saturating_add(number)),
        ));
    }
}

/// A monitor that is gone doesn't listen any more; what it had to say is still to be read.
fn told(sent: Result<(), WireError>) -> Result<()> {
    match sent {
        Ok(()) | Err(WireError::Socket(Errno::PIPE | Errno::CONNRESET) | WireError::Closed) => {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Until a signal or a message is there.
fn wait(signals: &Signals, monitor: &Monitor) -> Result<()> {
    let mut waiting = [
        PollFd::new(signals, PollFlags::IN),
        PollFd::new(monitor, PollFlags::IN),
    ];
    match poll(&mut waiting, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(Error::from(errno).context("waiting for the container")),
    }
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
        Ok((plan::Event::Exited(exited), _)) => Ok(Message::Exited(exited)),
        Ok((plan::Event::Started(_) | plan::Event::Failed(_), _)) => {
            Err(Error::failed("the monitor speaks out of turn"))
        }
        Err(WireError::Closed) => Ok(Message::Closed),
        // A request of ours that it never read; said once, before the messages that are still there.
        Err(WireError::Socket(Errno::CONNRESET)) => Ok(Message::None),
        Err(error) => Err(error.into()),
    }
}
