//! The client's side of a monitor's control socket.
//!
//! The socket is `control` in the container's status directory ([`crate::status`]), there as long
//! as the container runs. Only root and the user of the monitor are answered. A connection has one
//! request at a time; a process that waits for two things has two connections.

mod message;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
};

use crate::message::{Exited, Failed};
use crate::process::{Process, WindowSize};
use crate::sandbox::Limits;
use crate::socket;
use crate::wire::WireError;

pub use message::{
    AttachRequest, BlkioStats, CpuStats, ExecDetails, ExecPhase, ExecRequest, ExecState,
    MemoryStats, NamespaceSet, Reply, Request, ReserveRequest, ResizeRequest, SignalRequest, State,
    Stats, StreamSet, Target, decode_process, encode_process,
};

/// Name of the socket in the status directory.
pub const SOCKET: &str = "control";

/// The longest description of a program that a monitor keeps.
pub const MAX_DESCRIPTION: usize = 4 << 20;

/// Programs whose start has not been asked for and whose descriptions a monitor keeps.
pub const RESERVED: usize = 256;

/// The longest message but for a process, which has a memory file of its own.
pub(crate) const MAX_DATAGRAM: usize = 64 << 10;

/// Ends of pipes, for the standard streams of a program.
#[derive(Clone, Copy, Debug, Default)]
pub struct Streams<'f> {
    /// The reading end of what is written to its standard input.
    pub stdin: Option<BorrowedFd<'f>>,
    /// The writing end for its standard output; of a program with a terminal for everything.
    pub stdout: Option<BorrowedFd<'f>>,
    /// The writing end for its standard error; not used of a program with a terminal.
    pub stderr: Option<BorrowedFd<'f>>,
}

impl<'f> Streams<'f> {
    pub(crate) fn set(&self) -> StreamSet {
        StreamSet {
            stdin: self.stdin.is_some(),
            stdout: self.stdout.is_some(),
            stderr: self.stderr.is_some(),
        }
    }

    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'f>> {
        [self.stdin, self.stdout, self.stderr].into_iter().flatten()
    }
}

/// Namespaces of a container; none where it has the monitor's.
#[derive(Debug)]
pub struct NamespaceDescriptors {
    /// Process ids.
    pub pid: Option<OwnedFd>,
    /// System V IPC and message queues.
    pub ipc: Option<OwnedFd>,
    /// Host and domain name.
    pub uts: Option<OwnedFd>,
    /// Network.
    pub net: Option<OwnedFd>,
}

/// Why a monitor did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no monitor.
    #[error("the container is not running")]
    NotRunning,
    /// It says why.
    #[error(transparent)]
    Failed(#[from] Failed),
    /// The request did not reach it, or the answer did not come.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// A connection to a monitor.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
}

impl AsFd for Control {
    /// Readable when the answer to [`Control::request_wait`] is there.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Control {
    /// Connects to the monitor of a status directory.
    pub fn connect(status: BorrowedFd<'_>) -> Result<Self, ControlError> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(WireError::from)?;
        // By the descriptor: the path of a container may be longer than an address can be.
        let path = format!("/proc/self/fd/{}/{SOCKET}", status.as_raw_fd());
        let address = SocketAddrUnix::new(path).map_err(WireError::from)?;
        match rustix::io::retry_on_intr(|| connect(&socket, &address)) {
            Ok(()) => Ok(Self { socket }),
            Err(Errno::NOENT | Errno::CONNREFUSED) => Err(ControlError::NotRunning),
            Err(errno) => Err(WireError::from(errno).into()),
        }
    }

    /// Sends a signal to a program.
    pub fn signal(&self, target: Target, number: u8) -> Result<(), ControlError> {
        self.done(&Request::Signal(SignalRequest { target, number }), &[])
            .map(drop)
    }

    /// Sets the size of a program's terminal.
    pub fn resize(&self, target: Target, size: WindowSize) -> Result<(), ControlError> {
        self.done(&Request::Resize(ResizeRequest { target, size }), &[])
            .map(drop)
    }

    /// Copies streams between a program and these pipes from now on, until their other ends are
    /// closed or the program ends. Others may be attached at the same time.
    pub fn attach(&self, target: Target, streams: Streams<'_>) -> Result<(), ControlError> {
        let descriptors: Vec<_> = streams.descriptors().collect();
        let streams = streams.set();
        self.done(
            &Request::Attach(AttachRequest { target, streams }),
            &descriptors,
        )
        .map(drop)
    }

    /// Waits for the end of a program. One that has ended already is answered at once.
    pub fn wait(&self, target: Target) -> Result<Exited, ControlError> {
        self.request_wait(target)?;
        self.finish_wait()
    }

    /// Asks for the end of a program, without waiting for the answer.
    pub fn request_wait(&self, target: Target) -> Result<(), ControlError> {
        self.send(&Request::Wait(target), &[])
    }

    /// Waits for the answer to [`Control::request_wait`].
    pub fn finish_wait(&self) -> Result<Exited, ControlError> {
        match self.receive()? {
            (Reply::Exited(exited), _) => Ok(exited),
            other => Err(unexpected(other)),
        }
    }

    /// Starts another program in the container, with these streams attached. Returns its pid.
    /// `open_stdin`: it has a standard input even if none is attached now.
    pub fn exec(
        &self,
        id: &str,
        process: &Process,
        open_stdin: bool,
        streams: Streams<'_>,
    ) -> Result<u32, ControlError> {
        let message = encode_process(process)?;
        let memory = memory_file(&message)?;
        let request = ExecRequest {
            id: id.to_owned(),
            process_bytes: u32::try_from(message.len())
                .map_err(|_range| WireError::TooLong(message.len()))?,
            open_stdin,
            streams: streams.set(),
        };
        let mut descriptors = vec![memory.as_fd()];
        descriptors.extend(streams.descriptors());
        match self.call(&Request::Exec(request), &descriptors)? {
            (Reply::Started(started), _) => Ok(started.pid),
            other => Err(unexpected(other)),
        }
    }

    /// Has the monitor keep a description of a program that is to be started under this id later, or
    /// never: of those it keeps the last [`RESERVED`]. What it says is the caller's business.
    pub fn reserve(&self, id: &str, description: &[u8]) -> Result<(), ControlError> {
        let too_long = WireError::TooLong(description.len());
        let description_bytes = u32::try_from(description.len())
            .ok()
            .filter(|_| description.len() <= MAX_DESCRIPTION)
            .ok_or(too_long)?;
        let memory = memory_file(description)?;
        let request = Request::Reserve(ReserveRequest {
            id: id.to_owned(),
            description_bytes,
        });
        self.done(&request, &[memory.as_fd()]).map(drop)
    }

    /// What is known of a program of this id, and its description.
    pub fn find_exec(&self, id: &str) -> Result<(ExecDetails, Option<Vec<u8>>), ControlError> {
        let (details, descriptors) = match self.call(&Request::FindExec(id.to_owned()), &[])? {
            (Reply::Exec(details), descriptors) => (details, descriptors),
            other => return Err(unexpected(other)),
        };
        let description = match (details.description_bytes, descriptors.into_iter().next()) {
            (None, _) => None,
            (Some(_), None) => return Err(WireError::Malformed("a descriptor is missing").into()),
            (Some(bytes), Some(memory)) => Some(read_memory(memory, bytes)?),
        };
        Ok((details, description))
    }

    /// What runs in the container.
    pub fn inspect(&self) -> Result<State, ControlError> {
        match self.call(&Request::Inspect(()), &[])? {
            (Reply::State(state), _) => Ok(state),
            other => Err(unexpected(other)),
        }
    }

    /// Freezes all processes of the container.
    pub fn pause(&self) -> Result<(), ControlError> {
        self.done(&Request::Pause(true), &[]).map(drop)
    }

    /// Thaws them.
    pub fn unpause(&self) -> Result<(), ControlError> {
        self.done(&Request::Pause(false), &[]).map(drop)
    }

    /// Changes the limits that are given and leaves the others. Returns what this host can't
    /// enforce, a sentence each.
    pub fn update(&self, limits: &Limits) -> Result<Vec<String>, ControlError> {
        match self.call(&Request::Update(limits.clone()), &[])? {
            (Reply::Warnings(warnings), _) => Ok(warnings),
            other => Err(unexpected(other)),
        }
    }

    /// The counters of the container's cgroups.
    pub fn stats(&self) -> Result<Stats, ControlError> {
        match self.call(&Request::Stats(()), &[])? {
            (Reply::Stats(stats), _) => Ok(stats),
            other => Err(unexpected(other)),
        }
    }

    /// The container's processes, in the monitor's pid namespace.
    pub fn pids(&self) -> Result<Vec<u32>, ControlError> {
        match self.call(&Request::Pids(()), &[])? {
            (Reply::Pids(pids), _) => Ok(pids),
            other => Err(unexpected(other)),
        }
    }

    /// The mount of the container's root. A path below it leads through the container's other
    /// mounts, and wherever the container's processes have put links.
    pub fn root(&self) -> Result<OwnedFd, ControlError> {
        let descriptors = self.done(&Request::Root(()), &[])?;
        let missing = WireError::Malformed("a descriptor is missing");
        Ok(descriptors.into_iter().next().ok_or(missing)?)
    }

    /// The container's own namespaces.
    pub fn namespaces(&self) -> Result<NamespaceDescriptors, ControlError> {
        let (set, descriptors) = match self.call(&Request::Namespaces(()), &[])? {
            (Reply::Namespaces(set), descriptors) => (set, descriptors),
            other => return Err(unexpected(other)),
        };
        let mut descriptors = descriptors.into_iter();
        let mut take = |present: bool| if present { descriptors.next() } else { None };
        Ok(NamespaceDescriptors {
            pid: take(set.pid),
            ipc: take(set.ipc),
            uts: take(set.uts),
            net: take(set.net),
        })
    }

    fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), ControlError> {
        let message = request.encode()?;
        match socket::send(self.socket.as_fd(), &message, descriptors) {
            Ok(()) => Ok(()),
            Err(Errno::PIPE | Errno::CONNRESET) => Err(ControlError::NotRunning),
            Err(errno) => Err(WireError::from(errno).into()),
        }
    }

    fn receive(&self) -> Result<(Reply, Vec<OwnedFd>), ControlError> {
        let mut message = vec![0; MAX_DATAGRAM];
        let received = socket::receive(self.socket.as_fd(), RecvFlags::empty(), &mut message)
            .map_err(WireError::from)?;
        if received.bytes == 0 {
            return Err(ControlError::NotRunning);
        }
        if received.truncated {
            return Err(WireError::Malformed("longer than a message may be").into());
        }
        message.truncate(received.bytes);
        match Reply::decode(&message)? {
            Reply::Failed(failed) => Err(failed.into()),
            reply => Ok((reply, received.descriptors)),
        }
    }

    fn call(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), ControlError> {
        self.send(request, descriptors)?;
        self.receive()
    }

    fn done(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Vec<OwnedFd>, ControlError> {
        match self.call(request, descriptors)? {
            (Reply::Done(()), descriptors) => Ok(descriptors),
            other => Err(unexpected(other)),
        }
    }
}

/// A file in memory with these bytes.
fn memory_file(bytes: &[u8]) -> Result<File, WireError> {
    let memory = rustix::fs::memfd_create(c"cowl-process", MemfdFlags::CLOEXEC)?;
    let memory = File::from(memory);
    memory.write_all_at(bytes, 0)?;
    Ok(memory)
}

fn read_memory(memory: OwnedFd, bytes: u32) -> Result<Vec<u8>, WireError> {
    let length = usize::try_from(bytes)
        .ok()
        .filter(|length| *length <= MAX_DESCRIPTION)
        .ok_or(WireError::Malformed("a description is too long"))?;
    let mut description = vec![0; length];
    File::from(memory).read_exact_at(&mut description, 0)?;
    Ok(description)
}

fn unexpected((_reply, _descriptors): (Reply, Vec<OwnedFd>)) -> ControlError {
    WireError::Malformed("another answer than was asked for").into()
}
