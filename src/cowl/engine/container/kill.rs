//! Killing a container's processes by the monitor's record, whether or not the monitor is alive.

use super::directory::{FIRST_RECORD, PAUSE};
use super::{ALIVE, Container, STARTING};
use crate::engine::error::{Context, Error, Result};
use crate::engine::{files, names};
use cowl_launch::cgroup::remove_leftovers;
use cowl_launch::identity::Identity;
use cowl_launch::status;
use rustix::event::poll;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::time::Instant;

impl Container {
    /// Kills its processes, including those that outlived its monitor. They have ended when
    /// [`Container::wait_unmounted`] returns.
    pub fn kill(&self) -> Result<()> {
        files::wait_unlocked(&self.dir, STARTING)?;
        self.kill_locked()
    }

    /// [`Container::kill`] for the holder of the start lock.
    pub fn kill_locked(&self) -> Result<()> {
        self.wait_monitor_record()?;
        self.kill_processes()
    }

    /// [`Container::kill`] for the holder of the [`PendingContainer`], who need not wait.
    ///
    /// [`PendingContainer`]: super::PendingContainer
    pub fn kill_processes(&self) -> Result<()> {
        let record = match self.monitor_record() {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(()),
            Err(error) if files::is_locked(&self.dir, status::LOCK)? => return Err(error),
            // A power cut may leave the record empty. Processes, if any, are in the container's
            // cgroups.
            Err(_damaged) => {
                return Ok(remove_leftovers(
                    &self.config.cgroup_parent(),
                    &self.config.id,
                )?);
            }
        };
        let killed = match record.pid {
            // No program yet. Killing the monitor prevents it.
            0 => self.kill_monitor(record.monitor),
            pid => kill_program(
                pid,
                &Identity {
                    boot: record.boot,
                    start_time: record.start_time,
                },
            ),
        };
        killed.context(|| format!("killing container {}", names::short(&self.config.id)))
    }

    fn kill_monitor(&self, pid: i32) -> Result<()> {
        let Some(pidfd) = open_process(pid)? else {
            return Ok(());
        };
        // If the lock is still held, the process opened above is the monitor, not a reused pid.
        if files::is_locked(&self.dir, status::LOCK)? {
            send_kill(&pidfd)?;
        }
        Ok(())
    }

    /// Waits until a new monitor has written its record or has ended. It writes the record before
    /// it starts a process.
    fn wait_monitor_record(&self) -> Result<()> {
        let end = Instant::now() + FIRST_RECORD;
        while matches!(self.monitor_record(), Ok(None)) && files::is_locked(&self.dir, ALIVE)? {
            if Instant::now() >= end {
                let id = names::short(&self.config.id);
                return Err(Error::failed(format!(
                    "the monitor of container {id} does not start"
                )));
            }
            rustix::io::retry_on_intr(|| poll(&mut [], Some(&PAUSE)))?;
        }
        Ok(())
    }
}

fn open_process(pid: i32) -> Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(pid) else {
        return Ok(None);
    };
    Ok(cowl_sys::process::open(pid)?)
}

fn send_kill(pidfd: &OwnedFd) -> Result<()> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Kills the process `pid` if it has this identity. A reused pid is left alone.
pub(super) fn kill_program(pid: i32, known: &Identity) -> Result<()> {
    let Some(pidfd) = open_process(pid)? else {
        return Ok(());
    };
    // Read while the pidfd is open: a live process keeps its pid, so the answer is about it.
    if Identity::of(pid.cast_unsigned())?.as_ref() == Some(known) {
        send_kill(&pidfd)?;
    }
    Ok(())
}
