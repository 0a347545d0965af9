//! One container whose first process exists, to its end. [`super::start`] makes it.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal as NamedSignal};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, WaitOptions, pidfd_send_signal, waitid,
};

use super::connection::{Connections, Waiting};
use super::console::Console;
use super::exec::Exec;
use super::health::Health;
use super::log::Log;
use super::poller::Poller;
use super::reserved::Reserved;
use super::{ENGINE_ERROR, failed, io_failed, notify, own_pid};
use crate::cgroup::ContainerCgroups;
use crate::join::ContainerNamespaces;
use crate::message::{Event, Exited, Failed, Started};
use crate::sandbox::Namespaces;
use crate::setup::Host;
use crate::status::{ExitRecord, Lock, Moment, Program};

/// A container whose first process exists. Dropping it removes the cgroups.
pub(super) struct Container {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    pub(super) cgroups: ContainerCgroups,
    pub(super) program: Program,
    pub(super) started_at: Moment,
    pub(super) paused: bool,
    pub(super) console: Console,
    pub(super) log: Option<Log>,
    pub(super) execs: Vec<Exec>,
    /// Programs that are described and not started, oldest first.
    pub(super) reserved: VecDeque<Reserved>,
    pub(super) health: Option<Health>,
    pub(super) connections: Connections,
    pub(super) poller: Poller,
    pub(super) kept: Kept,
}

/// What is kept for requests.
pub(super) struct Kept {
    pub(super) host: Host,
    /// No process may create device nodes.
    pub(super) no_devices: bool,
    pub(super) namespaces: Namespaces,
    /// The container's status directory.
    pub(super) status: OwnedFd,
    pub(super) rootfs: OwnedFd,
    /// To join; none if the program had ended before they could be opened.
    pub(super) joinable: Option<ContainerNamespaces>,
}

/// How a container ended.
pub(super) struct Ended {
    pub(super) exited: Exited,
    /// Those that are to be told.
    pub(super) waiting: Waiting,
    /// Streams with readers that have not taken all.
    pub(super) readers: Vec<Console>,
    pub(super) poller: Poller,
    pid: Pid,
    started_at: Moment,
    /// What could not be read or cleaned up; else empty.
    error: String,
}

impl Ended {
    pub(super) fn record(&self) -> ExitRecord {
        ExitRecord {
            pid: self.pid.as_raw_nonzero().get().cast_unsigned(),
            exit_code: self.exited.exit_code,
            signal: self.exited.signal,
            oom_killed: self.exited.oom_killed,
            started_at: Some(self.started_at),
            finished_at: Moment::now(),
            error: self.error.clone(),
        }
    }
}

impl Container {
    pub(super) fn describe(&self, lock: &mut Lock) -> Result<(), Failed> {
        lock.describe(own_pid(), Some(&self.program), self.paused)
            .map_err(|error| io_failed("describe the container", &error))
    }

    /// Serves requests and signals until the container ends.
    pub(super) fn watch(
        mut self,
        lock: &mut Lock,
        client: BorrowedFd<'_>,
    ) -> Result<Ended, Failed> {
        let served = self.describe(lock).and_then(|()| {
            let pid = self.program.pid;
            notify(client, &Event::Started(Started { pid }));
            self.serve(client, lock)
        });
        if served.is_err() {
            self.kill_and_wait()?;
        }
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        served?;
        let status = status.map_err(|errno| failed("wait for the container", errno))?;
        let exited = exited(status.as_ref());
        Ok(self.end(exited))
    }

    /// What follows the end of the first process. An error does not replace the exit status: the
    /// record has both.
    fn end(mut self, mut exited: Exited) -> Ended {
        let mut errors = Vec::new();
        let mut keep = |what: &str, error: String| errors.push(format!("{what}: {error}"));
        match self.cgroups.oom_killed() {
            Ok(killed) => exited.oom_killed = killed,
            Err(error) => keep("read the container's memory events", error.to_string()),
        }
        // Kills what is left, where the end of the first process does not.
        if let Err(error) = self.cgroups.remove() {
            keep("remove the container's cgroups", error.to_string());
        }
        // Before programs that have joined are found ended: those who wait for them are told then.
        if let Err(errno) = self.take_last_waits() {
            keep("read the last requests", errno.to_string());
        }
        let finished = self.finish_streams();
        if let Err(errno) = finished {
            keep("read the container's output", errno.to_string());
        }
        // Before its clients are let go: they ask the file then.
        if let Err(error) = self.record_execs() {
            keep("record the programs that joined", error.to_string());
        }
        if let Some(error) = self.log.as_mut().and_then(Log::take_error) {
            keep("write the container's log", error.to_string());
        }
        let mut readers = vec![self.console];
        // A program that was still joining has no output, and nothing tells of its end any more.
        let ended = self.execs.into_iter().filter(|exec| exec.exited.is_some());
        readers.extend(ended.map(|exec| exec.console));
        readers.retain(Console::has_readers);
        Ended {
            exited,
            waiting: self.connections.into_waiting(),
            readers,
            poller: self.poller,
            pid: self.pid,
            started_at: self.started_at,
            error: errors.join("; "),
        }
    }

    /// Reads what the container's processes have written last.
    fn finish_streams(&mut self) -> Result<(), Errno> {
        self.finish_execs()?;
        let status = self.kept.status.as_fd();
        self.console
            .finish(&mut self.poller, self.log.as_mut(), status)
    }

    /// Kills the first process, and with it all others of its pid namespace, and waits for its end,
    /// which comes after that of those that have joined it.
    pub(super) fn kill_and_wait(&mut self) -> Result<(), Failed> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(failed("kill the container", errno)),
        }
        let waited = |errno| failed("wait for the container", errno);
        loop {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            match crate::sys::signal::ended_child(options).map_err(waited)? {
                Some(pid) if pid != self.pid => {
                    let options = WaitOptions::NOHANG;
                    rustix::process::waitpid(Some(pid), options).map_err(waited)?;
                }
                _ => return Ok(()),
            }
        }
    }
}

pub(super) fn raw(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().cast_unsigned()
}

/// How a process ended, without its memory.
pub(super) fn exited(status: Option<&WaitIdStatus>) -> Exited {
    let signal = status
        .and_then(WaitIdStatus::terminating_signal)
        .and_then(|signal| u8::try_from(signal).ok());
    let code = status
        .and_then(WaitIdStatus::exit_status)
        .and_then(|code| u8::try_from(code & 0xff).ok());
    Exited {
        exit_code: signal.map_or(code.unwrap_or(ENGINE_ERROR), |signal| 128 | signal),
        signal,
        oom_killed: false,
    }
}

pub(super) fn watched_signals() -> SigSet {
    use NamedSignal::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    [SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2]
        .into_iter()
        .collect()
}
