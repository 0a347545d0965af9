//! The monitor: the parent of one container's first process, from before its clone to after its
//! end.
//!
//! It creates the cgroups, clones the first process, waits for it and writes the exit record, and
//! depends on no other process meanwhile. If the engine goes away, messages to it are dropped and
//! the container runs on. If the monitor is killed, the kernel kills the container (parent death
//! signal, then the end of its pid namespace). A program that has cleared that signal is killed by
//! the next command that looks at the container ([`crate::status`]). Caller: `cowl-runtime run`,
//! with the control socket as standard input.

mod serve;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use cowl_sys::startup;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitId, WaitIdOptions, getpid, pidfd_send_signal,
    set_dumpable_behavior, setsid, waitid,
};

use serve::watched_signals;

use crate::cgroup::ContainerCgroups;
use crate::identity::Identity;
use crate::init;
use crate::message::{Event, Exited, Failed, Start, Started};
use crate::sandbox::{Namespace, Namespaces};
use crate::setup::{Host, ProgramSetup, Role, RootSetup, SetupError};
use crate::socket;
use crate::status::{ExitRecord, Lock, Moment, Program};
use crate::step::Failure;
use crate::sys::clone::{Cloned, NewNamespaces, clone_process, exit_now};
use crate::sys::mount::{MountAttributes, mount_setattr};
use crate::wire::{self, WireError};

/// Docker's exit code for an error that is not the program's.
const ENGINE_ERROR: u8 = 125;
/// Soft limit of open files, which the container inherits: a program that uses `select` takes no
/// more, one that wants more raises it.
const OPEN_FILES: u64 = 1024;

/// A [`Failed`] that is not the program's fault.
fn failed(what: impl Into<String>, errno: Errno) -> Failed {
    Failed {
        what: what.into(),
        errno: errno.raw_os_error(),
        exit_code: ENGINE_ERROR,
    }
}

fn io_failed(what: &str, error: &std::io::Error) -> Failed {
    match Errno::from_io_error(error) {
        Some(errno) => failed(what, errno),
        None => Failed {
            what: format!("{what}: {error}"),
            errno: 0,
            exit_code: ENGINE_ERROR,
        },
    }
}

/// Runs the container whose plan is in the socket on standard input. Returns its exit code.
pub fn run() -> u8 {
    // First of all, as it closes descriptors by number. Its error is sent once there is a socket.
    let reset = startup::reset(OPEN_FILES);
    let control = match take_control() {
        Ok(control) => control,
        // Without a socket there is no client.
        Err(_errno) => return ENGINE_ERROR,
    };
    let outcome = reset
        .map_err(|error| failed(format!("start the monitor: {error}"), error.errno()))
        .and_then(|()| protect().map_err(|errno| failed("start the monitor", errno)))
        .and_then(|()| receive(control.as_fd()))
        .and_then(|job| job.run(control.as_fd()));
    let (event, code) = match outcome {
        Ok(exited) => (Event::Exited(exited), exited.exit_code),
        Err(failed) => (Event::Failed(failed.clone()), failed.exit_code),
    };
    notify(control.as_fd(), &event, None);
    code
}

/// Sends an event. A client that is gone finds the outcome in the status directory.
fn notify(control: BorrowedFd<'_>, event: &Event, terminal: Option<BorrowedFd<'_>>) {
    drop(wire::send_event(control, event, terminal));
}

/// Makes this process, and its child until exec, non-dumpable: a process in the container's
/// namespaces can neither trace it nor look at its memory and descriptors (CVE-2016-9962).
fn protect() -> Result<(), Errno> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // Started by descriptor, the process is named after its number.
    rustix::thread::set_name(c"cowl-runtime")
}

/// Moves the control socket from standard input to a descriptor of its own, and starts a session.
fn take_control() -> Result<OwnedFd, Errno> {
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = rustix::fs::open(
        c"/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    rustix::stdio::dup2_stdin(&null)?;
    match setsid() {
        // Already the leader of one.
        Ok(_) | Err(Errno::PERM) => Ok(control),
        Err(errno) => Err(errno),
    }
}

/// Makes the mount of this program noexec, so that the container can't run `/proc/self/exe`
/// (CVE-2019-5736). The client can't do it: exec lets it continue before the program is mapped.
fn seal(program: BorrowedFd<'_>) -> Result<(), Errno> {
    let no_exec = MountAttributes {
        no_exec: true,
        ..MountAttributes::default()
    };
    mount_setattr(program, no_exec)
}

/// What the client sent.
struct Job {
    start: Start,
    status: OwnedFd,
    descriptors: Descriptors,
}

/// The descriptors sent with it.
struct Descriptors {
    rootfs: OwnedFd,
    stdio: Option<[OwnedFd; 3]>,
    /// Of the pid namespace, if that is joined.
    pid: Option<OwnedFd>,
    /// Of ipc, uts and net, if they are joined.
    joined: Vec<OwnedFd>,
    mounts: Vec<OwnedFd>,
}

fn receive(control: BorrowedFd<'_>) -> Result<Job, Failed> {
    let unreadable = |error: WireError| Failed {
        what: format!("read the plan: {error}"),
        errno: 0,
        exit_code: ENGINE_ERROR,
    };
    let missing = || unreadable(WireError::Malformed("a descriptor is missing"));
    let (run, descriptors) = wire::receive_run(control).map_err(unreadable)?;
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or_else(missing);
    let start = wire::read_start(next()?, run.start_bytes).map_err(unreadable)?;
    seal(next()?.as_fd()).map_err(|errno| failed("seal the launcher", errno))?;
    let (rootfs, status) = (next()?, next()?);
    let stdio = if run.stdio {
        Some([next()?, next()?, next()?])
    } else {
        None
    };
    let namespaces = start.sandbox.namespaces;
    let pid = if namespaces.pid == Namespace::Join {
        Some(next()?)
    } else {
        None
    };
    let others = namespaces.joined() - usize::from(pid.is_some());
    let joined = (0..others)
        .map(|_position| next())
        .collect::<Result<_, _>>()?;
    let mounts: Vec<OwnedFd> = descriptors.collect();
    if mounts.len() != start.sandbox.descriptors() {
        return Err(missing());
    }
    Ok(Job {
        start,
        status,
        descriptors: Descriptors {
            rootfs,
            stdio,
            pid,
            joined,
            mounts,
        },
    })
}

impl Job {
    /// Runs the container under the lock of its status directory, and writes the exit record, if
    /// it can be written, on every way out.
    fn run(self, control: BorrowedFd<'_>) -> Result<Exited, Failed> {
        let Self {
            start,
            status,
            descriptors,
        } = self;
        let mut lock = Lock::take(status.as_fd())
            .map_err(|error| io_failed("lock the container's status directory", &error))?
            .ok_or_else(|| Failed {
                what: "the container is running already".to_owned(),
                errno: 0,
                exit_code: ENGINE_ERROR,
            })?;
        ExitRecord::clear(status.as_fd())
            .map_err(|error| io_failed("remove the last exit record", &error))?;
        // Before anything is started: a command that kills the container needs a pid at any time.
        lock.describe(own_pid(), None)
            .map_err(|error| io_failed("describe the container", &error))?;
        let outcome = Container::start(&start, descriptors, &mut lock)
            .and_then(|started| started.watch(&mut lock, control));
        let record = match &outcome {
            Ok(ended) => ended.record(),
            Err(failed) => ExitRecord {
                pid: 0,
                exit_code: failed.exit_code,
                signal: None,
                oom_killed: false,
                started_at: None,
                finished_at: Moment::now(),
                error: failed.to_string(),
            },
        };
        // The client is told the outcome even if a full disk has no room for the record. Without a
        // record, later commands take the container for one that was killed with its monitor.
        drop(record.write(status.as_fd()));
        outcome.map(|ended| ended.exited)
    }
}

/// A container whose first process exists. Dropping it removes the cgroups.
struct Container {
    pid: Pid,
    pidfd: OwnedFd,
    terminal: Option<OwnedFd>,
    cgroups: ContainerCgroups,
    program: Program,
    started_at: Moment,
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
fn set_oom_score(pid: Pid, score: Option<i16>) -> Result<(), Failed> {
    let Some(score) = score else { return Ok(()) };
    let path = format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero());
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty())
        .and_then(|file| rustix::io::write(file, score.to_string().as_bytes()))
        .map(drop)
        .map_err(|errno| failed("set oom_score_adj", errno))
}

fn own_pid() -> u32 {
    getpid().as_raw_nonzero().get().cast_unsigned()
}

/// Records the identity of the program's process.
fn record_identity(lock: &mut Lock, program: &mut Program) -> Result<(), Failed> {
    Identity::of(program.pid)
        .and_then(|identity| {
            program.identity = identity;
            lock.describe(own_pid(), Some(program))
        })
        .map_err(|error| io_failed("describe the container", &error))
}

/// How a container ended.
struct Outcome {
    pid: Pid,
    exited: Exited,
    started_at: Moment,
    /// What could not be read or cleaned up; else empty.
    error: String,
}

impl Outcome {
    fn record(&self) -> ExitRecord {
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
    /// Creates the container and waits until its program runs.
    fn start(start: &Start, descriptors: Descriptors, lock: &mut Lock) -> Result<Self, Failed> {
        rustix::process::set_child_subreaper(Some(getpid()))
            .map_err(|errno| failed("become a subreaper", errno))?;
        let host =
            Host::probe().map_err(|error| io_failed("look at the user namespace", &error))?;
        let Start { sandbox, process } = start;
        let cgroups = ContainerCgroups::create(
            &sandbox.cgroup_parent,
            &sandbox.id,
            &sandbox.limits,
            host.initial_user_namespace,
        )
        .map_err(|error| Failed {
            what: error.to_string(),
            errno: 0,
            exit_code: ENGINE_ERROR,
        })?;
        // Where the device rules can't be enforced, a container may neither create nor open device
        // nodes: it could open the host's disks.
        let no_devices = host.initial_user_namespace && !cgroups.devices_restricted();
        let prepared = RootSetup::new(
            sandbox,
            descriptors.rootfs,
            descriptors.joined,
            descriptors.mounts,
            host,
            cgroups.view(),
            no_devices,
        )
        .and_then(|root| {
            let needs = |role| !root.has(role);
            if needs(Role::Dev) || (process.terminal.is_some() && needs(Role::Pts)) {
                return Err(SetupError::NoDev);
            }
            let program = ProgramSetup::new(process, descriptors.stdio, host, no_devices)?;
            Ok((root, program))
        });
        let (root, program) = prepared.map_err(|error| Failed {
            what: error.to_string(),
            errno: error.errno(),
            exit_code: ENGINE_ERROR,
        })?;
        // Signals that arrive during the start are read from the signal descriptor afterwards.
        watched_signals()
            .thread_block()
            .map_err(|errno| failed("block signals", Errno::from_raw_os_error(errno as i32)))?;
        if let Some(pid) = descriptors.pid {
            // For the children of this process, which stays where it is.
            rustix::thread::move_into_link_name_space(
                pid.as_fd(),
                Some(rustix::thread::LinkNameSpaceType::ProcessID),
            )
            .map_err(|errno| failed("join the pid namespace", errno))?;
        }
        Self::clone(start, root, program, cgroups, lock)
    }

    fn clone(
        start: &Start,
        root: RootSetup,
        program: ProgramSetup,
        mut cgroups: ContainerCgroups,
        lock: &mut Lock,
    ) -> Result<Self, Failed> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|errno| failed("create the report socket", errno))?;
        let cloned = clone_process(
            new_namespaces(start.sandbox.namespaces),
            cgroups.clone_into(),
        )
        .map_err(|errno| failed("create the container's namespaces", errno))?;
        let Cloned::Parent { pid, pidfd } = cloned else {
            drop(ours);
            let failure = init::run(root, program, theirs.as_fd());
            match socket::send(theirs.as_fd(), &failure.to_bytes(), &[]) {
                // If that fails the monitor is dead, and nothing else is left to do.
                Ok(()) | Err(_) => exit_now(ENGINE_ERROR),
            }
        };
        // The child has copies. Ours would keep pipes open after its end.
        drop((root, program, theirs));
        // While the child mounts. Its pid is recorded before it can exec a program that outlives
        // the monitor.
        let mut running = Program {
            pid: pid.as_raw_nonzero().get().cast_unsigned(),
            identity: None,
            started_at: None,
        };
        let described = record_identity(lock, &mut running);
        let attached = described.and_then(|()| {
            cgroups
                .attach(pid)
                .map_err(|error| io_failed("move the container into its cgroups", &error))
        });
        let scored = attached.and_then(|()| set_oom_score(pid, start.process.oom_score_adj));
        let terminal = scored.and_then(|()| {
            match socket::send(ours.as_fd(), b"G", &[]) {
                // A child that has ended has sent the reason.
                Ok(()) | Err(Errno::PIPE) => await_exec(ours.as_fd(), start),
                Err(errno) => Err(failed("report socket", errno)),
            }
        });
        match terminal {
            Ok(terminal) => Ok(Self {
                pid,
                pidfd,
                terminal,
                cgroups,
                program: running,
                started_at: Moment::now(),
            }),
            Err(error) => {
                // The end of its pid namespace kills every process that it could have started.
                kill_and_wait(pidfd.as_fd())?;
                Err(error)
            }
        }
    }

    /// Serves requests and signals until the container ends.
    fn watch(mut self, lock: &mut Lock, control: BorrowedFd<'_>) -> Result<Outcome, Failed> {
        let pid = self.pid.as_raw_nonzero().get().cast_unsigned();
        self.program.started_at = Some(self.started_at);
        let described = lock.describe(own_pid(), Some(&self.program));
        let served = described
            .map_err(|error| io_failed("describe the container", &error))
            .and_then(|()| {
                notify(
                    control,
                    &Event::Started(Started { pid }),
                    self.terminal.as_ref().map(OwnedFd::as_fd),
                );
                self.serve(control)
                    .map_err(|errno| failed("watch the container", errno))
            });
        if served.is_err() {
            kill_and_wait(self.pidfd.as_fd())?;
        }
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        served?;
        let status = status.map_err(|errno| failed("wait for the container", errno))?;
        let signal = status
            .as_ref()
            .and_then(rustix::process::WaitIdStatus::terminating_signal)
            .and_then(|signal| u8::try_from(signal).ok());
        let code = status
            .as_ref()
            .and_then(rustix::process::WaitIdStatus::exit_status)
            .and_then(|code| u8::try_from(code & 0xff).ok());
        // From here on an error does not replace the exit status: the record has both.
        let counted = self.cgroups.oom_killed();
        let removed = self.cgroups.remove();
        let mut error = String::new();
        for (what, result) in [
            ("read the container's memory events", counted.as_ref().err()),
            ("remove the container's cgroups", removed.as_ref().err()),
        ] {
            if let Some(reason) = result {
                error.extend([
                    if error.is_empty() { "" } else { "; " },
                    what,
                    ": ",
                    &reason.to_string(),
                ]);
            }
        }
        let exited = Exited {
            exit_code: signal.map_or(code.unwrap_or(ENGINE_ERROR), |signal| 128 | signal),
            signal,
            oom_killed: counted.unwrap_or(false),
        };
        Ok(Outcome {
            pid: self.pid,
            exited,
            started_at: self.started_at,
            error,
        })
    }
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

/// Kills the first process, and with it all others of its pid namespace, and waits for its end.
fn kill_and_wait(pidfd: BorrowedFd<'_>) -> Result<(), Failed> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(errno) => return Err(failed("kill the container", errno)),
    }
    let waited = waitid(
        WaitId::PidFd(pidfd),
        WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
    );
    waited
        .map(drop)
        .map_err(|errno| failed("wait for the container", errno))
}
