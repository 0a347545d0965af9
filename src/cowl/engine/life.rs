//! Starting, stopping and waiting, without the caller's terminal and signals.
//!
//! Each command reaches the container's monitor through its control socket and needs no other
//! process of cowl.

use super::container::state::Status;
use super::container::{Container, PendingContainer, StartLock};
use super::docker::HostConfig;
use super::error::{Context, Error, Result};
use super::restart::{RestartRecord, wait_change};
use super::{Engine, names};
use cowl_launch::control::{Control, ControlError, Streams, Target};
use cowl_launch::message::Exited;
use cowl_launch::process::WindowSize;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::process::Child;
use std::str::FromStr as _;
use std::time::{Duration, Instant};

/// Docker's seconds between the signal of `stop` and SIGKILL.
const STOP_TIMEOUT: i64 = 10;

/// The parameters of [`Engine::stop`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StopOptions<'a> {
    /// Overrides the container's stop signal, which is SIGTERM by default.
    pub signal: Option<&'a str>,
    /// Overrides the container's seconds until SIGKILL; negative to wait for ever.
    pub timeout: Option<i64>,
}

impl Engine {
    /// Starts a stopped container with these clients attached. Returns the children of this process
    /// that serve it, for a long-lived caller to reap; None if it runs already.
    pub fn start(&self, needle: &str, attached: &[Streams<'_>]) -> Result<Option<[Child; 2]>> {
        super::host::require_mounts("start")?;
        let container = self.containers.find(needle)?;
        let Some(pending) = self.begin_start(container)? else {
            return Ok(None);
        };
        self.start_detached(pending, attached).map(Some)
    }

    /// Mounts and launches, with these clients attached. Monitor and keeper outlive the caller.
    pub(super) fn start_detached(
        &self,
        pending: PendingContainer,
        attached: &[Streams<'_>],
    ) -> Result<[Child; 2]> {
        let size = console_size(&pending.container.config.host);
        let started = self.start_pending(&pending, attached, size, None);
        let container = pending.release();
        match started {
            Ok(running) => Ok(running.into_children()),
            Err(error) if container.config.host.auto_remove => {
                match self.remove_container(&container, true) {
                    Ok(()) => Err(error),
                    Err(second) => Err(error.context(format!("{second}; before that"))),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Takes a container's start lock, and waits for the end of its last program and mount. None if
    /// it runs.
    pub(super) fn begin_start(&self, container: Container) -> Result<Option<PendingContainer>> {
        let lock = self.containers.take(&container)?;
        let status = container.status()?;
        let restarts =
            matches!(status, Status::Restarting(_)) && container.is_awaiting_restart()?;
        if status == Status::Paused {
            return Err(Error::conflict(
                "cannot start a paused container, try unpause instead",
            ));
        }
        if restarts || status == Status::Running {
            return Ok(None);
        }
        if status.is_orphaned() {
            // Its monitor was killed before it killed the processes.
            container.kill_locked()?;
        }
        self.tell_end_locked(&container, &lock);
        if container.restart_record()? != RestartRecord::default() {
            container.write_restart_record(RestartRecord::default())?;
        }
        self.ready(container, lock).map(Some)
    }

    /// Waits for the end of a container's last mount.
    pub(super) fn ready(&self, container: Container, lock: StartLock) -> Result<PendingContainer> {
        let pending = PendingContainer::begin(container, lock)?;
        pending.container.wait_unmounted()?;
        self.store
            .wait_lease_end(names::short(&pending.container.config.id))?;
        Ok(pending)
    }

    /// Sends a signal by its name or number to a container's first process; an empty name is
    /// SIGKILL.
    pub fn kill(&self, needle: &str, signal: &str) -> Result<()> {
        let number = match signal {
            "" => Signal::SIGKILL as u8,
            signal => signal_number(signal)?,
        };
        let container = self.containers.find(needle)?;
        let not_running = || {
            Error::conflict(format!(
                "cannot kill container: {needle}: container {} is not running",
                container.config.id
            ))
        };
        if Self::is_stop_signal(&container, number)? {
            let restarting = matches!(container.status()?, Status::Restarting(_));
            self.suspend_restarts(&container)?;
            if restarting && !container.status()?.is_live() {
                return Ok(());
            }
        }
        let control = self.control(&container)?.ok_or_else(not_running)?;
        send(&control, number)?;
        self.tell_kill(&container, number);
        if number != Signal::SIGKILL as u8 {
            return Ok(());
        }
        if container.status()? == Status::Paused {
            // A frozen process dies when it is thawed.
            unless_ended(control.unpause())?;
        }
        wait_ended(&container, control.wait(Target::Program)).map(drop)
    }

    /// Sends a container its stop signal, and kills it after the timeout. False if it does not run.
    pub fn stop(&self, needle: &str, options: StopOptions<'_>) -> Result<bool> {
        let container = self.containers.find(needle)?;
        let config = &container.config.config;
        let signal = match options.signal.filter(|signal| !signal.is_empty()) {
            Some(signal) => signal_number(signal)?,
            None if config.stop_signal.is_empty() => Signal::SIGTERM as u8,
            None => signal_number(&config.stop_signal)?,
        };
        let timeout = options
            .timeout
            .or(config.stop_timeout)
            .unwrap_or(STOP_TIMEOUT);
        let restarting = matches!(container.status()?, Status::Restarting(_));
        self.suspend_restarts(&container)?;
        let Some(control) = self.control(&container)? else {
            return Ok(restarting);
        };
        if container.status()? == Status::Paused {
            unless_ended(control.unpause())?;
        }
        send(&control, signal)?;
        self.tell_kill(&container, signal);
        match control.request_wait(Target::Program) {
            Ok(()) => self.wait_stopped(&container, &control, timeout)?,
            // One that has just ended may still look as if it ran.
            Err(error) => drop(wait_ended(&container, Err(error))?),
        }
        self.tell_container(&container.config, "stop", &[]);
        Ok(true)
    }

    /// Waits for the end of a program after its stop signal, and kills it after the timeout.
    fn wait_stopped(&self, container: &Container, control: &Control, timeout: i64) -> Result<()> {
        if !readable_within(control, timeout)? {
            // The first connection still awaits its answer.
            if let Some(second) = self.control(container)? {
                let signal = Signal::SIGKILL as u8;
                send(&second, signal)?;
                self.tell_kill(container, signal);
            }
        }
        wait_ended(container, control.finish_wait()).map(drop)
    }

    fn tell_kill(&self, container: &Container, signal: u8) {
        let signal = signal.to_string();
        self.tell_container(&container.config, "kill", &[("signal", &signal)]);
    }

    /// Stops a container if it runs, and starts it. Returns the same as [`Engine::start`].
    pub fn restart(&self, needle: &str, options: StopOptions<'_>) -> Result<Option<[Child; 2]>> {
        self.stop(needle, options)?;
        let started = self.start(needle, &[])?;
        let config = self.containers.find(needle)?.config;
        self.tell_container(&config, "restart", &[]);
        Ok(started)
    }

    /// Sets the size of a container's terminal.
    pub fn resize(&self, needle: &str, rows: u16, columns: u16) -> Result<()> {
        let container = self.containers.find(needle)?;
        let size = WindowSize { rows, columns };
        Ok(self.running(&container)?.resize(Target::Program, size)?)
    }

    /// Waits until a container has ended, and returns its exit code; at once if it does not run.
    pub fn wait(&self, needle: &str) -> Result<u8> {
        let container = self.containers.find(needle)?;
        let changes = self.watch(&container.config.id)?;
        let waited = loop {
            if let Some(control) = self.control(&container)? {
                break control.wait(Target::Program);
            }
            if !matches!(container.status()?, Status::Restarting(_)) {
                break Err(ControlError::NotRunning);
            }
            wait_change(&changes, None)?;
        };
        if let Some(code) = wait_ended(&container, waited)? {
            return Ok(code);
        }
        Ok(match container.status()? {
            Status::Exited(exit) | Status::Created(Some(exit)) => exit.exit_code,
            // A removal deletes its records; without them it looks as if it had never run.
            Status::Created(None) => self
                .told_exit_code(&container.config.id)?
                .unwrap_or_default(),
            Status::Starting | Status::Running | Status::Paused | Status::Restarting(_) => 0,
        })
    }

    /// Freezes a container's processes.
    pub fn pause(&self, needle: &str) -> Result<()> {
        let container = self.containers.find(needle)?;
        if container.status()? == Status::Paused {
            let id = &container.config.id;
            return Err(Error::conflict(format!("Container {id} is already paused")));
        }
        self.running(&container)?.pause()?;
        self.tell_container(&container.config, "pause", &[]);
        Ok(())
    }

    /// Thaws a container's processes.
    pub fn unpause(&self, needle: &str) -> Result<()> {
        let container = self.containers.find(needle)?;
        let control = self.running(&container)?;
        if container.status()? != Status::Paused {
            let id = &container.config.id;
            return Err(Error::conflict(format!("Container {id} is not paused")));
        }
        control.unpause()?;
        self.tell_container(&container.config, "unpause", &[]);
        Ok(())
    }

    /// Connects to the monitor of a running container.
    pub(super) fn running(&self, container: &Container) -> Result<Control> {
        if let Some(control) = self.control(container)? {
            return Ok(control);
        }
        let id = &container.config.id;
        Err(Error::conflict(match container.status()? {
            Status::Restarting(_) => {
                format!("Container {id} is restarting, wait until the container is running")
            }
            _ => format!("container {id} is not running"),
        }))
    }

    /// Connects to a container's monitor; None if it does not run. Waits for a start in progress.
    #[expect(clippy::unused_self, reason = "a verb's step")]
    pub(super) fn control(&self, container: &Container) -> Result<Option<Control>> {
        container.wait_started()?;
        match Control::connect(container.status_dir()) {
            Ok(control) => Ok(Some(control)),
            Err(ControlError::NotRunning) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The client's terminal size at the container's creation, in lines and columns.
fn console_size(host: &HostConfig) -> WindowSize {
    let size = |at: usize| {
        let size = host.other.get("ConsoleSize").and_then(|size| size.get(at));
        let size = size.and_then(serde_json::Value::as_u64);
        size.and_then(|size| u16::try_from(size).ok()).unwrap_or(0)
    };
    WindowSize {
        rows: size(0),
        columns: size(1),
    }
}

/// A signal by its name, with or without `SIG`, or its number.
pub fn signal_number(signal: &str) -> Result<u8> {
    let invalid = || Error::invalid(format!("invalid signal: {signal}"));
    if let Ok(number) = signal.parse::<u8>() {
        return if (1..=64).contains(&number) {
            Ok(number)
        } else {
            Err(invalid())
        };
    }
    let upper = signal.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        let offset: u8 = offset.parse().map_err(|_syntax| invalid())?;
        return if offset <= 30 {
            Ok(34 + offset)
        } else {
            Err(invalid())
        };
    }
    let known = Signal::from_str(&format!("SIG{name}")).map_err(|_unknown| invalid())?;
    u8::try_from(known as i32).map_err(|_range| invalid())
}

fn send(control: &Control, number: u8) -> Result<()> {
    unless_ended(control.signal(Target::Program, number))
}

/// It is no error that the container ends meanwhile.
fn unless_ended(done: Result<(), ControlError>) -> Result<()> {
    match done {
        Ok(()) | Err(ControlError::NotRunning) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Checks after a wait that the container's record says that it has ended. Returns the exit code,
/// if the monitor sent it.
fn wait_ended(container: &Container, waited: Result<Exited, ControlError>) -> Result<Option<u8>> {
    let code = match waited {
        Ok(exited) => Some(exited.exit_code),
        Err(ControlError::NotRunning) => None,
        Err(error) => return Err(error.into()),
    };
    if container.status()?.is_live() {
        // Its monitor is ending, or was killed.
        container.wait_released()?;
    }
    Ok(code)
}

/// Waits for an answer for this many seconds; negative to wait for ever.
fn readable_within(control: &Control, seconds: i64) -> Result<bool> {
    let end = u64::try_from(seconds)
        .ok()
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let limit = left
            .map(Timespec::try_from)
            .transpose()
            .context(|| "the time of the stop")?;
        match poll(&mut [PollFd::new(control, PollFlags::IN)], limit.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::from(errno).context("waiting for the container")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_a_name_or_a_number() {
        let table = [
            ("SIGTERM", 15),
            ("term", 15),
            ("HUP", 1),
            ("9", 9),
            ("64", 64),
            ("RTMIN+3", 37),
        ];
        for (text, number) in table {
            assert_eq!(signal_number(text).unwrap(), number, "{text}");
        }
        for text in ["", "0", "65", "SIGNO", "-1", "RTMIN+99"] {
            signal_number(text).unwrap_err();
        }
    }
}
