//! One container's directory: its status, its records and its locks.

use super::super::error::{Context, Error, Result};
use super::super::files;
use super::super::names;
use super::super::restart::RestartRecord;
use super::state::{Exit, Facts, MonitorRecord, State, Status};
use super::{ALIVE, Container, MOUNTED, RESTART_RECORD, RESTARTING, STARTING, UPPER, WORK};
use cowl_launch::status;
use rustix::event::{Timespec, poll};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Longest wait for an unused mount to end. flock(2) has no timeout, so the lock is polled.
pub(in crate::engine) const PATIENCE: Duration = Duration::from_secs(2);
/// Longest wait for a new monitor's first record, which a busy machine may delay by many seconds.
pub(super) const FIRST_RECORD: Duration = Duration::from_mins(1);
pub(in crate::engine) const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

impl Container {
    /// Whether the sweep removes it: it was run with `--rm`, and has ended or could not be started.
    pub fn is_disposable(&self, status: &Status) -> bool {
        self.config.host.auto_remove
            && matches!(status, Status::Exited(_) | Status::Created(Some(_)))
    }

    /// Its status now; fails if a file of the monitor's is damaged.
    pub fn status(&self) -> Result<Status> {
        self.facts().map(Status::derive).context(|| {
            let id = names::short(&self.config.id);
            format!("container {id}: its status is damaged; cowl rm -f {id} removes it")
        })
    }

    /// Its status with its times.
    pub fn state(&self) -> Result<State> {
        let status = self.status()?;
        // Of a damaged record nothing is known.
        let record = self.monitor_record().ok().flatten();
        let started = match &status {
            Status::Created(_) => "",
            Status::Exited(exit) | Status::Restarting(exit) if !exit.started_at.is_empty() => {
                &exit.started_at
            }
            _ => record.as_ref().map_or("", |record| &record.started_at),
        };
        let pid = record.as_ref().map_or(0, |record| record.pid);
        Ok(State {
            started_at: started.parse().ok(),
            // Of a damaged record nothing is known.
            health: self.health().ok().flatten(),
            pid: match status {
                Status::Starting | Status::Running | Status::Paused => pid,
                Status::Created(_) | Status::Restarting(_) | Status::Exited(_) => 0,
            },
            status,
        })
    }

    fn facts(&self) -> Result<Facts> {
        loop {
            let before = self.monitor_record().ok().flatten();
            let facts = self.look()?;
            if facts.exit.is_some()
                || facts.monitored
                || !self.was_started_since(before.as_ref())?
            {
                return Ok(facts);
            }
        }
    }

    /// Whether a new monitor has started since this record was read. It removes the exit record,
    /// and without that the locks read before it would show a container whose monitor was killed.
    fn was_started_since(&self, before: Option<&MonitorRecord>) -> Result<bool> {
        if files::is_locked(&self.dir, status::LOCK)? {
            return Ok(true);
        }
        // After the lock: a monitor that has ended already has left another record.
        Ok(self.monitor_record().ok().flatten().as_ref() != before)
    }

    fn look(&self) -> Result<Facts> {
        files::check_lock(&self.dir, status::LOCK)?;
        let alive = files::is_locked(&self.dir, ALIVE)?;
        let monitored = files::is_locked(&self.dir, status::LOCK)?;
        let (started, paused) = match self.monitor_record() {
            Ok(record) => record.map_or((false, false), |record| {
                (!record.started_at.is_empty(), record.paused)
            }),
            // It had a monitor, so there may be processes to kill.
            Err(_damaged) => (true, false),
        };
        let exit: Option<Exit> = files::read_json(&self.dir, status::EXIT)?;
        let policy = &self.config.host.restart_policy;
        let restarting = match &exit {
            Some(exit) if policy.is_set() => {
                self.restart_record()?.restart_of(policy, exit).is_some()
            }
            _ => false,
        };
        Ok(Facts {
            alive,
            monitored,
            started,
            paused,
            restarting,
            exit,
        })
    }

    /// The monitor's status directory.
    pub fn status_dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Waits for a start that is going on.
    pub fn wait_started(&self) -> Result<()> {
        files::wait_unlocked(&self.dir, STARTING)
    }

    /// Waits until neither an engine nor a monitor holds its locks.
    pub fn wait_released(&self) -> Result<()> {
        files::wait_unlocked(&self.dir, ALIVE)?;
        files::wait_unlocked(&self.dir, status::LOCK)
    }

    /// Takes the lock held while waiting to restart the container; waits for its holder.
    pub fn lock_restarting(&self) -> Result<OwnedFd> {
        files::lock_file(&self.dir, RESTARTING)
    }

    /// Whether a live command is waiting to restart it.
    pub fn is_awaiting_restart(&self) -> Result<bool> {
        files::is_locked(&self.dir, RESTARTING)
    }

    /// Reads `restart.json`.
    pub fn restart_record(&self) -> Result<RestartRecord> {
        let record = files::read_json(&self.dir, RESTART_RECORD)
            .context(|| format!("container {}", names::short(&self.config.id)))?;
        Ok(record.unwrap_or_default())
    }

    /// Replaces `restart.json`. The caller holds the start lock.
    pub fn write_restart_record(&self, record: RestartRecord) -> Result<()> {
        files::write_json(&self.dir, RESTART_RECORD, &record)
    }

    /// Waits until its mount has ended, which is after its last process.
    pub fn wait_unmounted(&self) -> Result<()> {
        self.open_work()?
            .map_or(Ok(()), |work| files::wait_unlocked(work, MOUNTED))
    }

    /// Waits for at most [`PATIENCE`] until its mount has ended, and says whether it has. A
    /// process outside the container may use the mount for any time, by a descriptor or through
    /// /proc.
    pub fn unmounts_soon(&self) -> Result<bool> {
        let Some(work) = self.open_work()? else {
            return Ok(true);
        };
        let end = Instant::now() + PATIENCE;
        while files::is_locked(&work, MOUNTED)? {
            if Instant::now() >= end {
                return Ok(false);
            }
            rustix::io::retry_on_intr(|| poll(&mut [], Some(&PAUSE)))?;
        }
        Ok(true)
    }

    /// Opens the work directory; None if another command has removed the container.
    pub(super) fn open_work(&self) -> Result<Option<OwnedFd>> {
        match files::open_dir_at(&self.dir, WORK) {
            Ok(work) => Ok(Some(work)),
            // It is not a directory, so no mount can have locked it.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => {
                let id = names::short(&self.config.id);
                Err(Error::from(errno).context(format!("opening {WORK} of container {id}")))
            }
        }
    }

    /// Opens upper and work for a mount.
    pub fn upper(&self) -> Result<(OwnedFd, OwnedFd)> {
        let open = |name: &str| {
            files::open_dir_at(&self.dir, name).context(|| {
                format!(
                    "opening {name} of container {}",
                    names::short(&self.config.id)
                )
            })
        };
        Ok((open(UPPER)?, open(WORK)?))
    }

    /// Reads the monitor's record; None if no monitor has written one.
    pub fn monitor_record(&self) -> Result<Option<MonitorRecord>> {
        files::read_json(&self.dir, status::RUNNING)
            .context(|| format!("container {}", names::short(&self.config.id)))
    }
}
