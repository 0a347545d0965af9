//! Programs that join a running container.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, pidfd_send_signal, waitid};

use super::console::{Attachment, Console};
use super::container::{Container, exited, raw};
use super::poller::{Key, Poller};
use super::reserved::Description;
use super::start::{report_pair, set_oom_score};
use super::{ENGINE_ERROR, failed, refused};
use crate::control::{
    ExecDetails, ExecPhase, ExecRequest, ExecState, Reply, Target, decode_process,
};
use crate::join;
use crate::message::{Exited, Failed, Started};
use crate::process::Process;
use crate::setup::ProgramSetup;
use crate::socket;
use crate::step::Failure;
use crate::sys::clone::{Cloned, NewNamespaces, clone_process, exit_now};

/// Programs that have ended and are remembered.
const REMEMBERED: usize = 128;
/// The longest process.
const MAX_PROCESS: usize = 8 << 20;

/// One program.
#[derive(Debug)]
pub(super) struct Exec {
    pub(super) id: String,
    pub(super) console: Console,
    /// Known after its first report.
    pub(super) pid: Option<Pid>,
    /// Until it has ended.
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) exited: Option<Exited>,
    starting: Option<Starting>,
    /// What its client keeps with it, if it was reserved before.
    pub(super) description: Option<Description>,
}

/// A program between clone and exec.
#[derive(Debug)]
struct Starting {
    report: OwnedFd,
    key: Option<Key>,
    /// None for a health check.
    client: Option<Key>,
    process: Process,
}

impl Exec {
    /// One that never ran.
    pub(super) fn failed(id: String, description: Description, exit_code: u8) -> Self {
        Self {
            id,
            console: Console::without_streams(false),
            pid: None,
            pidfd: None,
            exited: Some(Exited {
                exit_code,
                signal: None,
                oom_killed: false,
            }),
            starting: None,
            description: Some(description),
        }
    }

    pub(super) fn state(&self) -> ExecState {
        ExecState {
            id: self.id.clone(),
            pid: self.pid.map_or(0, raw),
            exited: self.exited,
        }
    }

    pub(super) fn details(&self) -> ExecDetails {
        let phase = match (self.exited, &self.starting) {
            (Some(_), _) => ExecPhase::Ended,
            (None, Some(_)) => ExecPhase::Starting,
            (None, None) => ExecPhase::Running,
        };
        ExecDetails {
            state: self.state(),
            phase,
            description_bytes: self.description.as_ref().map(Description::bytes),
        }
    }

    /// Its pid, while it runs.
    pub(super) fn running(&self) -> Option<u32> {
        self.pidfd.as_ref().and(self.pid).map(raw)
    }

    pub(super) fn is_over(&self) -> bool {
        self.exited.is_some() && self.starting.is_none() && !self.console.has_readers()
    }

    fn stop_waiting(&mut self, poller: &mut Poller) -> Result<Option<Starting>, Errno> {
        let starting = self.starting.take();
        if let Some(Starting {
            report,
            key: Some(key),
            ..
        }) = &starting
        {
            poller.remove(*key, report.as_fd())?;
        }
        Ok(starting)
    }
}

impl Container {
    /// Starts a program in the container. The answer comes when it runs or has failed to.
    pub(super) fn exec(
        &mut self,
        request: ExecRequest,
        descriptors: Vec<OwnedFd>,
        client: Key,
    ) -> Result<(), Failed> {
        if self.paused {
            return Err(refused("the container is paused: unpause it first"));
        }
        if self.execs.iter().any(|exec| exec.id == request.id) {
            return Err(refused(format!(
                "Exec command {} is already running",
                request.id
            )));
        }
        let mut descriptors = descriptors.into_iter();
        let missing = || refused("a descriptor is missing");
        let memory = descriptors.next().ok_or_else(missing)?;
        let process = read_process(memory, request.process_bytes)?;
        let mut stream = |sent: bool| {
            if sent {
                descriptors.next().map(Some).ok_or_else(missing)
            } else {
                Ok(None)
            }
        };
        let attachment = Attachment {
            stdin: stream(request.streams.stdin)?,
            stdout: stream(request.streams.stdout)?,
            stderr: stream(request.streams.stderr)?,
        };
        let open_stdin = request.open_stdin || attachment.stdin.is_some();
        let id = request.id.clone();
        let started = self.start_exec(request.id, process, open_stdin, attachment, Some(client));
        if let Err(failed) = &started {
            self.end_reserved(id, failed.exit_code);
        }
        started
    }

    /// Starts a program in the container, for a client or as its health check.
    pub(super) fn start_exec(
        &mut self,
        id: String,
        process: Process,
        open_stdin: bool,
        attachment: Attachment,
        client: Option<Key>,
    ) -> Result<(), Failed> {
        let (mut console, stdio) = if process.terminal.is_some() {
            (Console::without_streams(open_stdin), None)
        } else {
            // Never the host's /dev/null: without an input it reads the end of a pipe.
            let (mut console, stdio) = Console::pipes(true, true)
                .map_err(|errno| failed("create the standard streams", errno))?;
            if !open_stdin {
                console
                    .close_target(&mut self.poller)
                    .map_err(|errno| failed("close the standard input", errno))?;
            }
            (console, Some(stdio))
        };
        let (host, no_devices) = (self.kept.host, self.kept.no_devices);
        let setup =
            ProgramSetup::new(&process, stdio, host, no_devices, true).map_err(|error| Failed {
                what: error.to_string(),
                errno: error.errno(),
                exit_code: ENGINE_ERROR,
            })?;
        console
            .attach(attachment, &mut self.poller)
            .map_err(|errno| failed("attach the standard streams", errno))?;
        let report = self.clone_joining(setup)?;
        let key = self
            .poller
            .add(report.as_fd(), EventFlags::IN)
            .map_err(|errno| failed("wait for the process", errno))?;
        let description = self.take_reserved(&id);
        self.execs.push(Exec {
            id,
            description,
            console,
            pid: None,
            pidfd: None,
            exited: None,
            starting: Some(Starting {
                report,
                key,
                client,
                process,
            }),
        });
        Ok(())
    }

    fn clone_joining(&mut self, setup: ProgramSetup) -> Result<OwnedFd, Failed> {
        let Some(namespaces) = &self.kept.joinable else {
            return Err(refused("the container is not running"));
        };
        let (ours, theirs) = report_pair()?;
        let cloned = clone_process(NewNamespaces::default(), self.cgroups.clone_into())
            .map_err(|errno| failed("create the process", errno))?;
        match cloned {
            Cloned::Parent { .. } => Ok(ours),
            Cloned::Child => {
                drop(ours);
                let failure = join::run(namespaces, setup, theirs.as_fd());
                match socket::send(theirs.as_fd(), &failure.to_bytes(), &[]) {
                    // If that fails the monitor is dead, and nothing else is left to do.
                    Ok(()) | Err(_) => exit_now(ENGINE_ERROR),
                }
            }
        }
    }

    /// Reads a report, if the event is of one.
    pub(super) fn handle_report(&mut self, key: Key) -> Result<bool, Errno> {
        let reports = |exec: &Exec| {
            let starting = exec.starting.as_ref();
            starting.is_some_and(|starting| starting.key == Some(key))
        };
        let Some(position) = self.execs.iter().position(reports) else {
            return Ok(false);
        };
        self.read_report(position)?;
        // It may have held up those behind it.
        self.reap_all().map(|()| true)
    }

    /// False if there is none yet.
    fn read_report(&mut self, position: usize) -> Result<bool, Errno> {
        let Some(exec) = self.execs.get_mut(position) else {
            return Ok(false);
        };
        let Some(starting) = &exec.starting else {
            return Ok(false);
        };
        let mut message = [0; Failure::BYTES];
        let report = starting.report.as_fd();
        let received = match socket::receive(report, RecvFlags::DONTWAIT, &mut message) {
            Err(Errno::AGAIN) => return Ok(false),
            received => received?,
        };
        let descriptor = received.descriptors.into_iter().next();
        let outcome = match (received.bytes, message, descriptor) {
            (0, _, _) => self.exec_runs(position),
            (5, [join::PID, a, b, c, d, ..], Some(pidfd)) => {
                let Some(pid) = Pid::from_raw(i32::from_le_bytes([a, b, c, d])) else {
                    return Ok(true);
                };
                (exec.pid, exec.pidfd) = (Some(pid), Some(pidfd));
                let score = starting.process.oom_score_adj;
                let ready = self
                    .cgroups
                    .attach(pid)
                    .map_err(|error| super::io_failed("move it into the cgroups", &error))
                    .and_then(|()| set_oom_score(pid, score));
                if let Err(failed) = ready {
                    return self.exec_failed(position, failed).map(|()| true);
                }
                let health = self.health.as_ref();
                let told = match &exec.pidfd {
                    // Its time was over before it could be killed.
                    Some(pidfd) if health.is_some_and(|it| it.has_timed_out(&exec.id)) => {
                        pidfd_send_signal(pidfd, Signal::KILL)
                    }
                    _ => socket::send(starting.report.as_fd(), b"G", &[]),
                };
                match told {
                    // It has ended, and has sent the reason.
                    Ok(()) | Err(Errno::PIPE | Errno::SRCH) => Ok(()),
                    Err(errno) => Err(errno),
                }
            }
            (Failure::BYTES, bytes, _) => {
                let failed = Failure::from_bytes(bytes).map_or_else(
                    || failed("understand the process", Errno::BADMSG),
                    |failure| failure.describe(None, &starting.process),
                );
                self.exec_failed(position, failed)
            }
            (_, _, Some(master)) => exec.console.set_terminal(master),
            _ => Ok(()),
        };
        outcome.map(|()| true)
    }

    /// Its end of the report is closed: by exec, or by its death before.
    fn exec_runs(&mut self, position: usize) -> Result<(), Errno> {
        let Some(exec) = self.execs.get_mut(position) else {
            return Ok(());
        };
        let Some(pid) = exec.pid else {
            return self.exec_failed(position, refused("the process was killed"));
        };
        let started = Reply::Started(Started { pid: raw(pid) });
        exec.console.start(&mut self.poller)?;
        if let Some(starting) = exec.stop_waiting(&mut self.poller)?
            && let Some(client) = starting.client
        {
            self.connections
                .reply(client, &started, &[], &mut self.poller)?;
        }
        // It may have ended already.
        self.reap_exec(position)
    }

    fn exec_failed(&mut self, position: usize, failed: Failed) -> Result<(), Errno> {
        let Some(exec) = self.execs.get_mut(position) else {
            return Ok(());
        };
        let exited = Exited {
            exit_code: failed.exit_code,
            signal: None,
            oom_killed: false,
        };
        if let Some(starting) = exec.stop_waiting(&mut self.poller)? {
            match (starting.client, &mut self.health) {
                (Some(client), _) => {
                    let reply = Reply::Failed(failed);
                    self.connections
                        .reply(client, &reply, &[], &mut self.poller)?;
                }
                (None, Some(health)) => health.not_run(failed.to_string()),
                (None, None) => {}
            }
        }
        exec.pid = None;
        if let Some(pidfd) = exec.pidfd.take() {
            match pidfd_send_signal(&pidfd, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.exec_ended(position, exited)
    }

    /// Takes the exit status of a program, if it has ended.
    fn reap_exec(&mut self, position: usize) -> Result<(), Errno> {
        let Some(exec) = self.execs.get(position) else {
            return Ok(());
        };
        // What a program that is starting has to say about its end comes first.
        let (Some(pidfd), None, None) = (&exec.pidfd, exec.exited, &exec.starting) else {
            return Ok(());
        };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = match waitid(WaitId::PidFd(pidfd.as_fd()), options) {
            Ok(None) => return Ok(()),
            Ok(status) => status,
            Err(Errno::CHILD) => None,
            Err(errno) => return Err(errno),
        };
        self.exec_ended(position, exited(status.as_ref()))
    }

    fn exec_ended(&mut self, position: usize, exited: Exited) -> Result<(), Errno> {
        let Some(exec) = self.execs.get_mut(position) else {
            return Ok(());
        };
        if exec.exited.is_some() {
            return Ok(());
        }
        exec.exited = Some(exited);
        exec.pidfd = None;
        let status = self.kept.status.as_fd();
        exec.console.finish(&mut self.poller, None, status)?;
        let target = Target::Exec(exec.id.clone());
        self.connections.ended(&target, exited, &mut self.poller)?;
        let ended = self.execs.get(position).map(|exec| exec.id.as_str());
        let health = self.health.as_ref();
        if health.is_some_and(|health| ended.is_some_and(|id| health.is_probe(id))) {
            self.take_health(exited)?;
        }
        let over = self.execs.iter().filter(|exec| exec.is_over()).count();
        if over > REMEMBERED
            && let Some(oldest) = self.execs.iter().position(Exec::is_over)
        {
            self.execs.remove(oldest);
        }
        Ok(())
    }

    /// Takes the exit status of the program that has this pid. False if it is to stay for now.
    fn reap_exec_of(&mut self, pid: Pid) -> Result<bool, Errno> {
        let is = |exec: &Exec| exec.pidfd.is_some() && exec.pid == Some(pid);
        let Some(position) = self.execs.iter().position(is) else {
            rustix::process::waitpid(Some(pid), WaitOptions::NOHANG)?;
            return Ok(true);
        };
        self.reap_exec(position)?;
        let starting = |exec: &Exec| exec.starting.is_some();
        Ok(!self.execs.get(position).is_some_and(starting))
    }

    /// Reaps all that have ended but the first process: programs that have joined, and processes
    /// that were reparented to the monitor.
    pub(super) fn reap_all(&mut self) -> Result<(), Errno> {
        loop {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            let ended = crate::sys::signal::ended_child(options)?;
            let Some(pid) = ended.filter(|pid| *pid != self.pid) else {
                return Ok(());
            };
            if !self.reap_exec_of(pid)? {
                return Ok(());
            }
        }
    }

    /// Takes the last reports of programs that were starting when the container ended.
    pub(super) fn finish_execs(&mut self) -> Result<(), Errno> {
        for position in 0..self.execs.len() {
            while self.read_report(position)? {}
        }
        self.reap_all()
    }
}

fn read_process(memory: OwnedFd, length: u32) -> Result<Process, Failed> {
    let unreadable = |error: String| refused(format!("read the process: {error}"));
    let length = usize::try_from(length)
        .ok()
        .filter(|length| *length <= MAX_PROCESS)
        .ok_or_else(|| unreadable("too long".to_owned()))?;
    let mut message = vec![0; length];
    File::from(memory)
        .read_exact_at(&mut message, 0)
        .map_err(|error| unreadable(error.to_string()))?;
    decode_process(&message).map_err(|error| unreadable(error.to_string()))
}
