//! The monitor: the parent of one container's processes, from before the first clone to after the
//! last end.
//!
//! It creates the cgroups, clones the first process, owns its standard streams or its terminal,
//! keeps its log, answers on the control socket ([`crate::control`]), waits for its end and writes
//! the exit record. It depends on no other process meanwhile: when the engine goes away the
//! container runs on, and another engine attaches. If the monitor is killed, the kernel kills the
//! container (parent death signal, then the end of its pid namespace). A program that has cleared
//! that signal is killed by the next command that looks at the container ([`crate::status`]).
//! Caller: `cowl-runtime run`, with a socket to the client as standard input.
//!
//! At the end, in this order: all output is in the log, the cgroups are removed, `exit.json` is
//! there, the control socket is gone, the lock is free, all who wait are answered, what is left to
//! do is started. The monitor stays for as long as a reader has not taken the last output.

mod connection;
mod console;
mod container;
mod exec;
mod health;
mod input;
mod log;
mod poller;
mod reader;
mod requests;
mod reserved;
mod serve;
mod start;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use cowl_sys::startup;
use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags};
use rustix::process::{DumpableBehavior, set_dumpable_behavior, setsid};

use crate::control::SOCKET;
use crate::message::{Event, Exited, Failed, Start};
use crate::sandbox::Namespace;
use crate::status::{ExitRecord, Lock, Moment};
use crate::sys::mount::{MountAttributes, mount_setattr};
use crate::wire::{self, WireError};
use console::Attachment;
use container::{Container, Ended};

/// Docker's exit code for an error that is not the program's.
const ENGINE_ERROR: u8 = 125;
/// Soft limit of open files, which the container inherits: a program that uses `select` takes no
/// more, one that wants more raises it.
const OPEN_FILES: u64 = 1024;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// A [`Failed`] that is not the program's fault.
fn failed(what: impl Into<String>, errno: Errno) -> Failed {
    Failed {
        what: what.into(),
        errno: errno.raw_os_error(),
        exit_code: ENGINE_ERROR,
    }
}

fn refused(what: impl Into<String>) -> Failed {
    Failed {
        what: what.into(),
        errno: 0,
        exit_code: ENGINE_ERROR,
    }
}

fn io_failed(what: &str, error: &std::io::Error) -> Failed {
    match Errno::from_io_error(error) {
        Some(errno) => failed(what, errno),
        None => refused(format!("{what}: {error}")),
    }
}

fn of_nix(errno: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(errno as i32)
}

/// Runs the container that the client asks for on standard input. Returns its exit code.
pub fn run() -> u8 {
    // First of all, as it closes descriptors by number. Its error is sent once there is a socket.
    let reset = startup::reset(OPEN_FILES);
    let client = match take_client() {
        Ok(client) => client,
        // Without a socket there is no client.
        Err(_errno) => return ENGINE_ERROR,
    };
    let outcome = reset
        .map_err(|error| failed(format!("start the monitor: {error}"), error.errno()))
        .and_then(|()| protect().map_err(|errno| failed("start the monitor", errno)))
        .and_then(|()| receive(client.as_fd()))
        .and_then(|job| job.run(client.as_fd()));
    match outcome {
        Ok(code) => code,
        Err(failed) => {
            let code = failed.exit_code;
            notify(client.as_fd(), &Event::Failed(failed));
            code
        }
    }
}

/// Sends an event. A client that is gone finds the outcome in the status directory.
fn notify(client: BorrowedFd<'_>, event: &Event) {
    drop(wire::send_event(client, event));
}

/// Makes this process, and its children until exec, non-dumpable: a process in the container's
/// namespaces can neither trace it nor look at its memory and descriptors (CVE-2016-9962).
fn protect() -> Result<(), Errno> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // Started by descriptor, the process is named after its number.
    rustix::thread::set_name(c"cowl-runtime")
}

/// Moves the client's socket from standard input to a descriptor of its own, and starts a session.
fn take_client() -> Result<OwnedFd, Errno> {
    let client = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = rustix::fs::open(
        c"/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    rustix::stdio::dup2_stdin(&null)?;
    match setsid() {
        // Already the leader of one.
        Ok(_) | Err(Errno::PERM) => Ok(client),
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
    attachments: Vec<Attachment>,
    /// Of the pid namespace, if that is joined.
    pid: Option<OwnedFd>,
    /// Of ipc, uts and net, if they are joined.
    joined: Vec<OwnedFd>,
    mounts: Vec<OwnedFd>,
}

fn receive(client: BorrowedFd<'_>) -> Result<Job, Failed> {
    let unreadable = |error: WireError| refused(format!("read the plan: {error}"));
    let missing = || unreadable(WireError::Malformed("a descriptor is missing"));
    let (run, descriptors) = wire::receive_run(client).map_err(unreadable)?;
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or_else(missing);
    let start = wire::read_start(next()?, run.start_bytes).map_err(unreadable)?;
    seal(next()?.as_fd()).map_err(|errno| failed("seal the launcher", errno))?;
    let (rootfs, status) = (next()?, next()?);
    let mut stream = |sent: bool| if sent { next().map(Some) } else { Ok(None) };
    let mut attachments = Vec::with_capacity(run.streams.len());
    for sent in run.streams {
        attachments.push(Attachment {
            stdin: stream(sent.stdin)?,
            stdout: stream(sent.stdout)?,
            stderr: stream(sent.stderr)?,
        });
    }
    let namespaces = start.sandbox.namespaces;
    let pid = stream(namespaces.pid == Namespace::Join)?;
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
            attachments,
            pid,
            joined,
            mounts,
        },
    })
}

impl Job {
    /// Runs the container under the lock of its status directory, and writes the exit record, if
    /// it can be written, on every way out. Returns the exit code.
    fn run(self, client: BorrowedFd<'_>) -> Result<u8, Failed> {
        let Self {
            start,
            status,
            descriptors,
        } = self;
        let mut lock = Lock::take(status.as_fd())
            .map_err(|error| io_failed("lock the container's status directory", &error))?
            .ok_or_else(|| refused("the container is running already"))?;
        ExitRecord::clear(status.as_fd())
            .map_err(|error| io_failed("remove the last exit record", &error))?;
        // Before anything is started: a command that kills the container needs a pid at any time.
        lock.describe(own_pid(), None, false)
            .map_err(|error| io_failed("describe the container", &error))?;
        let after = start.monitor.after.clone();
        let outcome = listen(status.as_fd())
            .map_err(|errno| failed("create the control socket", errno))
            .and_then(|listener| {
                Container::start(&start, descriptors, &status, listener, &mut lock)
            })
            .and_then(|container| container.watch(&mut lock, client));
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
        // A socket that stays refuses connections.
        let _missing = unlinkat(&status, SOCKET, AtFlags::empty());
        drop((lock, status));
        let Ended {
            exited,
            waiting,
            readers,
            poller,
            ..
        } = outcome?;
        let client_is_gone = send_exit(client, exited);
        waiting.answer(exited);
        if let Some(after) = after.filter(|after| after.always || client_is_gone) {
            // There is no client to be told if that fails: the next command finds the container as it
            // is.
            drop(after.spawn());
        }
        serve::linger(readers, poller);
        Ok(exited.exit_code)
    }
}

/// Sends the client how the container ended. True if there is no client any more.
fn send_exit(client: BorrowedFd<'_>, exited: Exited) -> bool {
    if wire::send_event(client, &Event::Exited(exited)).is_err() {
        return true;
    }
    let mut byte = [0; 1];
    let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
    matches!(rustix::net::recv(client, &mut byte, flags), Ok((0, _)))
}

/// The control socket: mode 0700, named by the directory's descriptor since a path may be longer
/// than an address can be.
fn listen(status: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket_with};
    // One that a killed monitor left.
    match unlinkat(status, SOCKET, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let address = SocketAddrUnix::new(SOCKET)?;
    rustix::process::fchdir(status)?;
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let bound = bind(&socket, &address);
    rustix::process::umask(umask);
    rustix::process::chdir(c"/")?;
    bound?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn own_pid() -> u32 {
    rustix::process::getpid()
        .as_raw_nonzero()
        .get()
        .cast_unsigned()
}
