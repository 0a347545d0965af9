//! Restart policies: whether and when a container that ended by itself is started again.
//!
//! The monitor of an ended container runs `cowl container-ended ID` ([`Engine::finish`]), which
//! waits out the back-off delay and starts the container. Meanwhile it holds the lock `restarting`
//! in the container's directory. If it is killed, the next sweep runs another. Whether the
//! container is to be restarted follows from its policy, `exit.json` and `restart.json`. The latter
//! is written only under the container's start lock, so a `stop` comes either before the start or
//! after it.
//!
//! Back-off and rules: moby, `restartmanager/restartmanager.go` and `container/container.go`
//! (`ShouldRestart`).

use super::container::state::{Exit, Status};
use super::container::{Container, StartLock};
use super::docker::RestartPolicy;
use super::error::{Context as _, Error, Kind, Result};
use super::life::signal_number;
use super::{Engine, Listing};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::time::{Duration, Instant};

/// The first delay; each further one is twice as long.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_mins(1);
/// After a run of this length the delay starts again from the first.
const DELAY_RESET: Duration = Duration::from_secs(10);

/// `restart.json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartRecord {
    /// Number of restarts by the policy since a client started the container.
    pub count: u64,
    /// The last delay in milliseconds.
    delay_ms: u64,
    /// A client stopped the container, which suspends the policy until the next start.
    stopped: bool,
    /// The end of the program after which this record was written.
    after: Option<Timestamp>,
    /// Whether the restart after that end failed.
    failed: bool,
}

impl RestartPolicy {
    /// Whether there is a policy.
    pub fn is_set(&self) -> bool {
        !matches!(self.name.as_str(), "" | "no")
    }

    /// Checks the name and the number of retries.
    ///
    /// # Errors
    /// dockerd's texts (moby, `api/types/container/hostconfig.go`, `ValidateRestartPolicy`).
    pub fn check(&self, auto_remove: bool) -> Result<()> {
        let count = self.maximum_retry_count;
        let name = self.name.as_str();
        match name {
            "" | "no" | "always" | "unless-stopped" if count != 0 => {
                let hint = if count < 0 {
                    " and cannot be negative"
                } else {
                    ""
                };
                return Err(Error::invalid(format!(
                    "invalid restart policy: maximum retry count can only be used with 'on-failure'{hint}"
                )));
            }
            "on-failure" if count < 0 => {
                return Err(Error::invalid(
                    "invalid restart policy: maximum retry count cannot be negative",
                ));
            }
            "" | "no" | "always" | "unless-stopped" | "on-failure" => {}
            _ => {
                return Err(Error::invalid(format!(
                    "invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
                )));
            }
        }
        if auto_remove && self.is_set() {
            return Err(Error::invalid(
                "can't create 'AutoRemove' container with restart policy",
            ));
        }
        Ok(())
    }
}

impl RestartRecord {
    /// The record for the restart after this end; None if there is to be no restart.
    pub fn restart_of(self, policy: &RestartPolicy, exit: &Exit) -> Option<Self> {
        // The monitor was killed, or the program was not started.
        if exit.finished_at.is_none() || exit.started_at.is_empty() {
            return None;
        }
        if self.after == exit.finished_at {
            let wanted = policy.is_set() && !self.stopped && !self.failed;
            return wanted.then_some(self);
        }
        self.next(policy, exit)
    }

    fn next(self, policy: &RestartPolicy, exit: &Exit) -> Option<Self> {
        let may = match policy.name.as_str() {
            "always" | "unless-stopped" => true,
            "on-failure" => {
                let most = u64::try_from(policy.maximum_retry_count).unwrap_or_default();
                exit.exit_code != 0 && (most == 0 || self.count < most)
            }
            _ => false,
        };
        if !may || self.stopped {
            return None;
        }
        let delay = match Duration::from_millis(self.delay_ms) {
            Duration::ZERO => FIRST_DELAY,
            _ if ran(exit) >= DELAY_RESET => FIRST_DELAY,
            last => last.saturating_mul(2).min(LONGEST_DELAY),
        };
        Some(Self {
            count: self.count.saturating_add(1),
            delay_ms: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
            stopped: false,
            after: exit.finished_at,
            failed: false,
        })
    }
}

/// How long the program ran.
fn ran(exit: &Exit) -> Duration {
    let started: Option<Timestamp> = exit.started_at.parse().ok();
    match (started, exit.finished_at) {
        (Some(from), Some(to)) => Duration::try_from(to.duration_since(from)).unwrap_or_default(),
        _ => Duration::ZERO,
    }
}

impl Engine {
    /// The engine's work after a container's end, run by its monitor: the removal for `--rm`, or
    /// the restart by the policy.
    pub fn finish(&self, id: &str) -> Result<()> {
        let Some(container) = self.unless_gone(id)? else {
            return Ok(());
        };
        container.wait_released()?;
        let status = container.status()?;
        self.tell_end(&container);
        if container.is_disposable(&status) {
            return self.remove_container(&container, true);
        }
        match status {
            Status::Exited(exit) | Status::Restarting(exit) => self.restart_ended(container, &exit),
            // Another command did it, or the program could not be started.
            _ => Ok(()),
        }
    }

    /// Whether a container has been removed.
    pub fn is_gone(&self, id: &str) -> Result<bool> {
        Ok(self.unless_gone(id)?.is_none())
    }

    fn unless_gone(&self, id: &str) -> Result<Option<Container>> {
        match self.containers.find(id) {
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            found => found.map(Some),
        }
    }

    /// Restarts a container that ended with `exit`, if its policy says so, after the delay.
    fn restart_ended(&self, container: Container, exit: &Exit) -> Result<()> {
        if !container.config.host.restart_policy.is_set() {
            return Ok(());
        }
        let id = container.config.id.clone();
        let changes = self.watch(&id)?;
        drop(container);
        let Some((lock, container)) = self.take_ended(&id, exit)? else {
            return Ok(());
        };
        let policy = &container.config.host.restart_policy;
        let record = container.restart_record()?;
        let Some(next) = record.restart_of(policy, exit) else {
            return Ok(());
        };
        if record != next {
            container.write_restart_record(next)?;
        }
        drop(lock);
        // Wait for another command that awaits this restart or an earlier one: it ends, since the
        // record has changed.
        let _restarting = container.lock_restarting()?;
        drop(container);
        let due = Instant::now() + Duration::from_millis(next.delay_ms);
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            wait_change(&changes, Some(left))?;
            let Some(container) = self.unless_gone(&id)? else {
                return Ok(());
            };
            if container.restart_record()? != next {
                return Ok(());
            }
        }
        let Some((lock, container)) = self.take_ended(&id, exit)? else {
            return Ok(());
        };
        if container.restart_record()? != next {
            return Ok(());
        }
        match self
            .ready(container, lock)
            .and_then(|pending| self.start_detached(pending, &[]))
        {
            Ok(_children) => Ok(()),
            Err(error) => {
                if let Some((_lock, container)) = self.take_ended(&id, exit)? {
                    container.write_restart_record(RestartRecord {
                        failed: true,
                        ..next
                    })?;
                }
                Err(error)
            }
        }
    }

    /// Runs the command that waits for a container's restart again, if it was killed.
    pub(super) fn resume_restart(&self, container: &Container) -> Result<()> {
        if container.is_awaiting_restart()? {
            return Ok(());
        }
        let after = self.after(&container.config)?;
        let mut child = after
            .spawn()
            .context(|| "running what restarts a container")?;
        // In a server, which is long-lived, it would remain a zombie.
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    /// The start lock of a container, and the container as it is now; None unless its last end is
    /// still `exit`.
    fn take_ended(&self, id: &str, exit: &Exit) -> Result<Option<(StartLock, Container)>> {
        let Some(container) = self.unless_gone(id)? else {
            return Ok(None);
        };
        let lock = match self.containers.take(&container) {
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            taken => taken?,
        };
        let Some(container) = self.unless_gone(id)? else {
            return Ok(None);
        };
        Ok(match container.status()? {
            Status::Exited(last) | Status::Restarting(last) if last == *exit => {
                Some((lock, container))
            }
            _ => None,
        })
    }

    /// Watches a container's directory for changes of its files, and for its removal.
    pub(super) fn watch(&self, id: &str) -> Result<OwnedFd> {
        let path = self.store.containers_path().join(id);
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let events = inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::MOVE_SELF
            | inotify::WatchFlags::ONLYDIR;
        inotify::init(flags)
            .and_then(|changes| inotify::add_watch(&changes, path, events).map(|_| changes))
            .context(|| format!("watching container {id}"))
    }

    /// Suspends the policy of a container that a client stops: it is not restarted afterwards.
    pub(super) fn suspend_restarts(&self, container: &Container) -> Result<()> {
        if !container.config.host.restart_policy.is_set() {
            return Ok(());
        }
        let _lock = match self.containers.take(container) {
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            taken => taken?,
        };
        let record = container.restart_record()?;
        container.write_restart_record(RestartRecord {
            stopped: true,
            ..record
        })
    }

    /// Whether a client's signal counts as a stop, after which the policy does not restart the
    /// container.
    pub(super) fn is_stop_signal(container: &Container, signal: u8) -> Result<bool> {
        let own = &container.config.config.stop_signal;
        let stop = if own.is_empty() {
            Signal::SIGTERM as u8
        } else {
            signal_number(own)?
        };
        Ok(signal == stop || signal == Signal::SIGKILL as u8)
    }

    /// Starts containers by their policies at the start of a server: those with `always`, and those
    /// that ran when the host or their monitor went down. `started` gets the children that serve
    /// each, as [`Engine::start`] returns them. Returns the errors of failed starts.
    pub fn start_by_policy(&self, mut started: impl FnMut([Child; 2])) -> Result<Vec<Error>> {
        let Listing {
            items,
            skipped: mut failed,
        } = self.containers()?;
        for (container, status) in items {
            let exit = match status {
                Status::Restarting(_) => {
                    failed.extend(self.resume_restart(&container).err());
                    continue;
                }
                Status::Exited(exit) => exit,
                _ => continue,
            };
            let wanted = match container.config.host.restart_policy.name.as_str() {
                "always" => true,
                "unless-stopped" => !container.restart_record()?.stopped,
                _ => false,
            };
            if !wanted {
                continue;
            }
            match self.start_after_boot(&container.config.id, &exit) {
                Ok(children) => children.into_iter().for_each(&mut started),
                Err(error) => {
                    failed.push(error.context(format!("container {}", container.config.name)));
                }
            }
        }
        Ok(failed)
    }

    fn start_after_boot(&self, id: &str, exit: &Exit) -> Result<Option<[Child; 2]>> {
        let Some((lock, container)) = self.take_ended(id, exit)? else {
            return Ok(None);
        };
        if exit.finished_at.is_none() {
            // Its monitor was killed before it could.
            container.kill_locked()?;
        }
        let pending = self.ready(container, lock)?;
        self.start_detached(pending, &[]).map(Some)
    }
}

/// Waits for a change, for at most `limit`, and consumes the events.
pub(super) fn wait_change(changes: &OwnedFd, limit: Option<Duration>) -> Result<()> {
    let limit = limit
        .map(Timespec::try_from)
        .transpose()
        .context(|| "the time of the restart")?;
    match poll(&mut [PollFd::new(changes, PollFlags::IN)], limit.as_ref()) {
        Ok(0) | Err(Errno::INTR) => return Ok(()),
        Ok(_) => {}
        Err(errno) => return Err(Error::from(errno).context("waiting for the restart")),
    }
    let mut events = [0; 4096];
    match rustix::io::read(changes, &mut events) {
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(errno) => Err(Error::from(errno).context("watching the container")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, maximum_retry_count: i64) -> RestartPolicy {
        RestartPolicy {
            name: name.to_owned(),
            maximum_retry_count,
        }
    }

    fn exit(exit_code: u8, seconds: i64) -> Exit {
        let finished = Timestamp::new(1_000_000 + seconds, 0).unwrap();
        Exit {
            pid: 1,
            exit_code,
            oom_killed: false,
            started_at: Timestamp::new(1_000_000, 0).unwrap().to_string(),
            finished_at: Some(finished),
            error: String::new(),
        }
    }

    #[test]
    fn next_doubles_the_delay_up_to_a_minute_and_begins_again_after_ten_seconds() {
        let mut record = RestartRecord::default();
        let mut delays = Vec::new();
        for _restart in 0..12 {
            record = record.next(&policy("always", 0), &exit(0, 9)).unwrap();
            delays.push(record.delay_ms);
        }
        let expected = [
            100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000,
        ];
        assert_eq!(delays, expected);
        let next = record.next(&policy("always", 0), &exit(0, 10)).unwrap();
        assert_eq!((next.delay_ms, next.count), (100, 13));
    }

    #[test]
    fn next_follows_the_policy() {
        let record = |count, stopped| RestartRecord {
            count,
            stopped,
            ..RestartRecord::default()
        };
        let table = [
            ("", 0, 1, record(0, false), false),
            ("no", 0, 1, record(0, false), false),
            ("always", 0, 0, record(0, false), true),
            ("always", 0, 0, record(0, true), false),
            ("unless-stopped", 0, 1, record(9, false), true),
            ("unless-stopped", 0, 1, record(9, true), false),
            ("on-failure", 0, 0, record(0, false), false),
            ("on-failure", 0, 1, record(9, false), true),
            ("on-failure", 2, 1, record(1, false), true),
            ("on-failure", 2, 1, record(2, false), false),
        ];
        for (name, most, code, record, wanted) in table {
            let next = record.next(&policy(name, most), &exit(code, 0));
            assert_eq!(next.is_some(), wanted, "{name}:{most} {code} {record:?}");
        }
    }

    #[test]
    fn check_refuses_what_docker_refuses() {
        let texts = |name, most, auto_remove| {
            let checked = policy(name, most).check(auto_remove);
            checked.map_err(|error| error.to_string())
        };
        assert_eq!(texts("on-failure", 3, false), Ok(()));
        assert_eq!(
            texts("sometimes", 0, false).unwrap_err(),
            "invalid restart policy: unknown policy 'sometimes'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        );
        assert_eq!(
            texts("always", 3, false).unwrap_err(),
            "invalid restart policy: maximum retry count can only be used with 'on-failure'"
        );
        assert_eq!(
            texts("on-failure", -1, false).unwrap_err(),
            "invalid restart policy: maximum retry count cannot be negative"
        );
        assert_eq!(
            texts("always", 0, true).unwrap_err(),
            "can't create 'AutoRemove' container with restart policy"
        );
    }
}
