//! The start of a container: from the clone of its first process to the exec of its program.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitOptions, getpid};

use super::connection::Connections;
use super::console::{Console, Stdio};
use super::container::{Container, Kept, raw, watched_signals};
use super::health::Health;
use super::log::Log;
use super::poller::Poller;
use super::{Descriptors, ENGINE_ERROR, failed, io_failed, of_nix, refused};
use crate::cgroup::{ContainerCgroups, View};
use crate::identity::Identity;
use crate::init;
use crate::join::{self, ContainerNamespaces};
use crate::message::{Failed, Start};
use crate::sandbox::{CgroupNamespace, Namespace, Namespaces};
use crate::setup::{Host, ProgramSetup, Role, RootSetup, SetupError};
use crate::socket;
use crate::status::{Lock, Moment, Program};
use crate::step::{At as _, Failure, Step};
use crate::sys::clone::{Cloned, NewNamespaces, clone_process, exit_now};

/// What the parent needs, and the child does not.
struct Parts {
    cgroups: ContainerCgroups,
    console: Console,
    poller: Poller,
    connections: Connections,
    log: Option<Log>,
    kept: Kept,
}

impl Container {
    /// Creates the container and waits until its program runs.
    pub(super) fn start(
        start: &Start,
        descriptors: Descriptors,
        status: &OwnedFd,
        listener: OwnedFd,
        lock: &mut Lock,
    ) -> Result<Self, Failed> {
        rustix::process::set_child_subreaper(Some(getpid()))
            .map_err(|errno| failed("become a subreaper", errno))?;
        let host =
            Host::probe().map_err(|error| io_failed("look at the user namespace", &error))?;
        let own = |descriptor: &OwnedFd| {
            let copied = descriptor.try_clone();
            copied.map_err(|error| io_failed("copy a descriptor", &error))
        };
        let cgroups = ContainerCgroups::create(&start.sandbox, host.initial_user_namespace)
            .map_err(|error| refused(error.to_string()))?;
        // Where the device rules can't be enforced, a container may neither create nor open device
        // nodes: it could open the host's disks.
        let no_devices = host.initial_user_namespace && !cgroups.devices_restricted();
        let (mut console, stdio) = standard_streams(start)?;
        let log = match start.monitor.log {
            Some(options) => Some(Log::open(own(status)?, options)),
            None => None,
        };
        let kept = Kept {
            host,
            no_devices,
            namespaces: start.sandbox.namespaces,
            status: own(status)?,
            rootfs: own(&descriptors.rootfs)?,
            joinable: None,
        };
        let (root, program) = prepare(
            start,
            descriptors.rootfs,
            descriptors.joined,
            descriptors.mounts,
            stdio,
            &kept,
            cgroups.view(),
        )?;
        // Signals that arrive during the start are read from the signal descriptor afterwards.
        watched_signals()
            .thread_block()
            .map_err(|errno| failed("block signals", of_nix(errno)))?;
        let mut poller = Poller::new().map_err(|errno| failed("create an epoll", errno))?;
        let connections = Connections::new(listener, &mut poller)
            .map_err(|errno| failed("listen on the control socket", errno))?;
        for attachment in descriptors.attachments {
            console
                .attach(attachment, &mut poller)
                .map_err(|errno| failed("attach the standard streams", errno))?;
        }
        let parts = Parts {
            cgroups,
            console,
            poller,
            connections,
            log,
            kept,
        };
        let pid_namespace = descriptors.pid.as_ref().map(OwnedFd::as_fd);
        Self::clone(start, pid_namespace, root, program, parts, lock)
    }

    fn clone(
        start: &Start,
        pid_namespace: Option<BorrowedFd<'_>>,
        root: RootSetup,
        program: ProgramSetup,
        parts: Parts,
        lock: &mut Lock,
    ) -> Result<Self, Failed> {
        let (ours, theirs) = report_pair()?;
        let new = new_namespaces(start.sandbox.namespaces);
        let cgroup = parts.cgroups.clone_into();
        let cloned = match pid_namespace {
            None => clone_process(new, cgroup)
                .map_err(|errno| failed("create the container's namespaces", errno))?,
            Some(pid) => clone_in(pid, new, cgroup, (ours.as_fd(), theirs.as_fd()), start)?,
        };
        let Cloned::Parent { pid, pidfd } = cloned else {
            drop(ours);
            let entered = parts.cgroups.enter().at(Step::Cgroups);
            let failure = match entered {
                Ok(()) => init::run(root, program, theirs.as_fd()),
                Err(failure) => failure,
            };
            match socket::send(theirs.as_fd(), &failure.to_bytes(), &[]) {
                // If that fails the monitor is dead, and nothing else is left to do.
                Ok(()) | Err(_) => exit_now(ENGINE_ERROR),
            }
        };
        // The child has copies. Ours would keep pipes open after its end.
        drop((root, program, theirs));
        let mut container = Self {
            pid,
            pidfd,
            cgroups: parts.cgroups,
            program: Program {
                pid: raw(pid),
                identity: None,
                started_at: None,
            },
            started_at: Moment::now(),
            paused: false,
            console: parts.console,
            log: parts.log,
            execs: Vec::new(),
            reserved: VecDeque::new(),
            health: None,
            connections: parts.connections,
            poller: parts.poller,
            kept: parts.kept,
        };
        match container.let_run(start, ours.as_fd(), lock) {
            Ok(()) => Ok(container),
            Err(error) => {
                // The end of its pid namespace kills every process that it could have started.
                container.kill_and_wait()?;
                Err(error)
            }
        }
    }

    /// Records the first process while it mounts, and waits until it has become the program.
    fn let_run(
        &mut self,
        start: &Start,
        report: BorrowedFd<'_>,
        lock: &mut Lock,
    ) -> Result<(), Failed> {
        // Recorded before it can exec a program that outlives the monitor.
        self.program.identity = Identity::of(self.program.pid)
            .map_err(|error| io_failed("describe the container", &error))?;
        self.describe(lock)?;
        set_oom_score(self.pid, start.process.oom_score_adj)?;
        match socket::send(report, b"G", &[]) {
            // A child that has ended has sent the reason.
            Ok(()) | Err(Errno::PIPE) => {}
            Err(errno) => return Err(failed("report socket", errno)),
        }
        if let Some(master) = await_exec(report, start)? {
            self.console
                .set_terminal(master)
                .map_err(|errno| failed("open the terminal", errno))?;
        }
        self.started_at = Moment::now();
        self.begin_health(start)?;
        self.program.started_at = Some(self.started_at);
        self.kept.joinable = open_namespaces(self.pid, self.kept.namespaces)
            .map_err(|errno| failed("open the container's namespaces", errno))?;
        Ok(())
    }

    /// The last run's record would be taken for this one's.
    fn begin_health(&mut self, start: &Start) -> Result<(), Failed> {
        let Some(check) = &start.monitor.health else {
            return Ok(());
        };
        let health = Health::new(check.clone(), Instant::now());
        health
            .write(self.kept.status.as_fd())
            .map_err(|error| io_failed("write the container's health", &error))?;
        self.health = Some(health);
        Ok(())
    }
}

/// What the first process needs, made before it exists.
fn prepare(
    start: &Start,
    rootfs: OwnedFd,
    joined: Vec<OwnedFd>,
    mounts: Vec<OwnedFd>,
    stdio: Option<Stdio>,
    kept: &Kept,
    view: View,
) -> Result<(RootSetup, ProgramSetup), Failed> {
    let Start {
        sandbox, process, ..
    } = start;
    let Kept {
        host, no_devices, ..
    } = *kept;
    RootSetup::new(sandbox, rootfs, joined, mounts, host, view, no_devices)
        .and_then(|root| {
            let lacks = |role| !root.has(role);
            if lacks(Role::Dev) || (process.terminal.is_some() && lacks(Role::Pts)) {
                return Err(SetupError::NoDev);
            }
            let program = ProgramSetup::new(process, stdio, host, no_devices, false)?;
            Ok((root, program))
        })
        .map_err(|error| Failed {
            what: error.to_string(),
            errno: error.errno(),
            exit_code: ENGINE_ERROR,
        })
}

/// Clones the first process in the pid namespace of another container, through a process of its
/// own: this one could not come back from there.
fn clone_in(
    pid_namespace: BorrowedFd<'_>,
    new: NewNamespaces,
    cgroup: Option<BorrowedFd<'_>>,
    (ours, theirs): (BorrowedFd<'_>, BorrowedFd<'_>),
    start: &Start,
) -> Result<Cloned, Failed> {
    let cloned = clone_process(NewNamespaces::default(), None)
        .map_err(|errno| failed("create a process", errno))?;
    let Cloned::Parent { pid: helper, .. } = cloned else {
        return match join::clone_in(pid_namespace, new, cgroup, theirs) {
            Ok(()) => Ok(Cloned::Child),
            Err(failure) => match socket::send(theirs, &failure.to_bytes(), &[]) {
                Ok(()) | Err(_) => exit_now(ENGINE_ERROR),
            },
        };
    };
    let mut message = [0; Failure::BYTES];
    let received = socket::receive(ours, RecvFlags::empty(), &mut message);
    rustix::process::waitpid(Some(helper), WaitOptions::empty())
        .map_err(|errno| failed("wait for a process", errno))?;
    let received = received.map_err(|errno| failed("report socket", errno))?;
    let descriptor = received.descriptors.into_iter().next();
    match (received.bytes, message, descriptor) {
        (5, [join::PID, a, b, c, d, ..], Some(pidfd)) => {
            Pid::from_raw(i32::from_le_bytes([a, b, c, d])).map(|pid| Cloned::Parent { pid, pidfd })
        }
        (Failure::BYTES, bytes, _) => {
            let failure = Failure::from_bytes(bytes);
            let described =
                failure.map(|failure| failure.describe(Some(&start.sandbox), &start.process));
            return Err(described.unwrap_or_else(|| refused("a process was killed")));
        }
        _ => None,
    }
    .ok_or_else(|| refused("a process was killed"))
}

fn open_namespace(process: &str, kind: &str) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/{process}/ns/{kind}");
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty())
}

/// Opens what a process that joins has to enter. None if the first process has ended.
fn open_namespaces(pid: Pid, namespaces: Namespaces) -> Result<Option<ContainerNamespaces>, Errno> {
    let process = pid.as_raw_nonzero().to_string();
    let not_host = |namespace| namespace != Namespace::Host;
    let open = || {
        let wanted = |wanted: bool, kind| {
            if wanted {
                open_namespace(&process, kind).map(Some)
            } else {
                Ok(None)
            }
        };
        Ok(ContainerNamespaces {
            cgroup: wanted(namespaces.cgroup == CgroupNamespace::New, "cgroup")?,
            ipc: wanted(not_host(namespaces.ipc), "ipc")?,
            uts: wanted(not_host(namespaces.uts), "uts")?,
            net: wanted(not_host(namespaces.net), "net")?,
            mount: open_namespace(&process, "mnt")?,
            pid: wanted(not_host(namespaces.pid), "pid")?,
        })
    };
    match open() {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NOENT | Errno::SRCH) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The console of the first process, and the ends that it is started with, but for a terminal.
fn standard_streams(start: &Start) -> Result<(Console, Option<Stdio>), Failed> {
    let options = &start.monitor;
    if start.process.terminal.is_some() {
        return Ok((Console::without_streams(options.open_stdin), None));
    }
    Console::pipes(options.open_stdin, options.stdin_once)
        .map(|(console, stdio)| (console, Some(stdio)))
        .map_err(|errno| failed("create the standard streams", errno))
}

/// A socket on which a child reports.
pub(super) fn report_pair() -> Result<(OwnedFd, OwnedFd), Failed> {
    socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| failed("create the report socket", errno))
}

fn new_namespaces(namespaces: Namespaces) -> NewNamespaces {
    let new = |namespace| namespace == Namespace::New;
    NewNamespaces {
        mount: true,
        pid: new(namespaces.pid),
        uts: new(namespaces.uts),
        ipc: new(namespaces.ipc),
        net: new(namespaces.net),
    }
}

/// Through the host's /proc, before the process can exec.
pub(super) fn set_oom_score(pid: Pid, score: Option<i16>) -> Result<(), Failed> {
    let Some(score) = score else { return Ok(()) };
    let path = format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero());
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty())
        .and_then(|file| rustix::io::write(file, score.to_string().as_bytes()))
        .map(drop)
        .map_err(|errno| failed("set oom_score_adj", errno))
}

/// Reads reports of the child until exec closes its end of the socket.
fn await_exec(report: BorrowedFd<'_>, start: &Start) -> Result<Option<OwnedFd>, Failed> {
    let mut terminal = None;
    loop {
        let mut message = [0; Failure::BYTES];
        let received = socket::receive(report, RecvFlags::empty(), &mut message)
            .map_err(|errno| failed("report socket", errno))?;
        terminal = received.descriptors.into_iter().next().or(terminal);
        if received.bytes == 0 {
            return Ok(terminal);
        }
        if received.bytes == Failure::BYTES {
            let unknown = || failed("understand the container's first process", Errno::BADMSG);
            return Err(
                Failure::from_bytes(message).map_or_else(unknown, |failure| {
                    failure.describe(Some(&start.sandbox), &start.process)
                }),
            );
        }
    }
}
