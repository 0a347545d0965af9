//! After a worker's death: another worker serves on, and no client notices but by the time it
//! takes.
//!
//! The mount's connection, what a worker is made of and the journal are the keeper's, so they
//! outlive the worker. Its successor is forked off the keeper, as it was. A request that workers
//! crash of is answered with EIO in the end; a mount whose workers die one after the other is cut
//! off.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cowl_core::handover::{HandoverError, MountFailed, Role};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitStatus};

use super::{Outcome, ServedMount, end, said, wait};
use crate::failure::OrFail;
use crate::journal;

/// So many deaths within [`PERIOD`] end the mount.
const DEATHS: usize = 32;
const PERIOD: Duration = Duration::from_mins(1);

/// Signals that other processes send. A worker that dies by another one crashed.
const SENT: [Signal; 5] = [
    Signal::KILL,
    Signal::TERM,
    Signal::INT,
    Signal::HUP,
    Signal::QUIT,
];

/// When workers of a mount died.
#[derive(Debug, Default)]
pub(crate) struct Deaths(VecDeque<Instant>);

impl Deaths {
    /// Counts the death of a worker that ended so. The error is why no other can follow it.
    pub(crate) fn allow_another(
        &mut self,
        status: WaitStatus,
        journal: Option<&OwnedFd>,
    ) -> Result<(), MountFailed> {
        let no = |what: &str| MountFailed {
            what: what.to_owned(),
            errno: 0,
        };
        let signal = status
            .terminating_signal()
            .ok_or_else(|| no("it gave up by itself"))?;
        let journal = journal.ok_or_else(|| no("no other can serve on"))?;
        if !journal::allows_a_successor(journal).or_fail("cannot read the journal")? {
            return Err(no("no other can serve on"));
        }
        let now = Instant::now();
        let Self(deaths) = self;
        deaths.push_back(now);
        while deaths
            .front()
            .is_some_and(|death| now.duration_since(*death) > PERIOD)
        {
            deaths.pop_front();
        }
        if deaths.len() > DEATHS {
            return Err(no("too many have died within a minute"));
        }
        if !SENT.iter().any(|sent| sent.as_raw() == signal) {
            journal::note_crash(journal).or_fail("cannot write to the journal")?;
        }
        Ok(())
    }
}

impl ServedMount {
    /// Holds the mount until it is unmounted, or no worker can serve it any more.
    pub(super) fn hold(mut self) -> ExitCode {
        let mut deaths = Deaths::default();
        loop {
            let name = self.order.request.name.clone();
            let status = match wait(self.worker) {
                Ok(status) => status,
                Err(error) => {
                    tracing::error!(name, %error, "cannot wait for the worker; the mount is cut off");
                    return ExitCode::FAILURE;
                }
            };
            if status.exit_status() == Some(0) {
                tracing::info!(name, "unmounted");
                return ExitCode::SUCCESS;
            }
            // From here on clients wait; when this process ends, the connection does, and their
            // requests fail.
            let allowed = deaths.allow_another(status, self.order.file(Role::Journal));
            match allowed.and_then(|()| self.start_successor()) {
                Ok(worker) => {
                    tracing::warn!(name, %worker, "the worker died ({}); another one serves on", said(status));
                    self.worker = worker;
                }
                Err(why) => {
                    tracing::error!(name, %why, "the worker died ({}); the mount is cut off", said(status));
                    return ExitCode::FAILURE;
                }
            }
        }
    }

    /// A worker that serves; or one that was killed before it could, whose end is still to be seen.
    fn start_successor(&self) -> Result<Pid, MountFailed> {
        let (worker, outcome) = self.order.start()?;
        successor_ready(worker, outcome)
    }
}

/// What came of starting a successor: it serves, or was killed before it could, or is ended.
pub(crate) fn successor_ready(worker: Pid, outcome: Outcome) -> Result<Pid, MountFailed> {
    match outcome {
        Ok(Ok(_ready)) => Ok(worker),
        Err(HandoverError::Closed | HandoverError::Socket(Errno::PIPE | Errno::CONNRESET)) => {
            Ok(worker)
        }
        Ok(Err(failed)) => {
            end(worker);
            Err(failed)
        }
        Err(error) => {
            end(worker);
            Err(error.into())
        }
    }
}
