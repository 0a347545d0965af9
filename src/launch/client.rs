//! The engine's side: starts a monitor, sends it what to run and descriptors, and exchanges
//! messages with it.
//!
//! The monitor is spawned (not forked from a process with threads) with its control socket as
//! standard input. It lives on when the client goes away; the outcome is then in the status
//! directory ([`crate::status`]).

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::control::Streams;
use crate::message::{ControlRequest, Event, Failed, Signal, Start, Started};
use crate::process::WindowSize;
use crate::sys::mount::{MountAttributes, mount_setattr};
use crate::wire::{self, Run, WireError};

/// Everything that a container is started with.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Path of `cowl-runtime`.
    pub runtime: &'a Path,
    /// The container and its program, without descriptors.
    pub start: &'a Start,
    /// A detached mount (`fsmount`, or `open_tree` with `OPEN_TREE_CLONE`) that becomes the
    /// container's root.
    pub rootfs: BorrowedFd<'a>,
    /// The container's directory, where the monitor holds its lock and writes the exit record.
    pub status: BorrowedFd<'a>,
    /// Of each client that is attached before the program runs, so that it misses nothing.
    pub streams: &'a [Streams<'a>],
    /// The sandbox's descriptors: of joined namespaces, then of mounts.
    pub descriptors: &'a [BorrowedFd<'a>],
}

/// Why the monitor was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The program could not be started.
    #[error("start {runtime}: {source}")]
    Spawn {
        /// The program.
        runtime: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The plan could not be sent.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The plan and the descriptors don't match.
    #[error("{0}")]
    Mismatch(&'static str),
}

/// Why a container did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The monitor reports it, with Docker's exit code.
    #[error(transparent)]
    Failed(#[from] Failed),
    /// The monitor sent no valid message, or is gone.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The monitor sent `Exited` before `Started`.
    #[error("the monitor sent the end of the program before its start")]
    Order,
}

impl Launch<'_> {
    /// Starts the monitor and sends it the plan. The next event is `Started` or `Failed`.
    pub fn spawn(&self) -> Result<Monitor, LaunchError> {
        let sandbox = &self.start.sandbox;
        if sandbox.namespaces.joined() + sandbox.descriptors() != self.descriptors.len() {
            return Err(LaunchError::Mismatch(
                "each joined namespace and each mount of a descriptor needs one",
            ));
        }
        let (start, start_bytes) = wire::write_start(self.start)?;
        let program = seal(self.runtime).map_err(|errno| self.spawn_error(errno.into()))?;
        let mut descriptors = vec![start.as_fd(), program.as_fd(), self.rootfs, self.status];
        descriptors.extend(self.streams.iter().flat_map(Streams::descriptors));
        descriptors.extend(self.descriptors);

        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(WireError::from)?;
        // Sent before the monitor is started: it waits in the socket, and if it can't be sent
        // nothing is started.
        wire::send_run(
            ours.as_fd(),
            &Run {
                start_bytes,
                streams: self.streams.iter().map(Streams::set).collect(),
            },
            &descriptors,
        )?;
        // By the descriptor, which exec closes.
        let child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .arg0("cowl-runtime")
            .arg("run")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .env_clear()
            .spawn()
            .map_err(|source| self.spawn_error(source))?;
        Ok(Monitor {
            socket: ours,
            child,
        })
    }

    fn spawn_error(&self, source: std::io::Error) -> LaunchError {
        LaunchError::Spawn {
            runtime: self.runtime.display().to_string(),
            source,
        }
    }
}

/// A detached, read-only mount of the program's file. The monitor's child runs it inside the
/// container until exec, so `/proc/self/exe` there leads to it, and must not lead to a file that
/// can be written (CVE-2019-5736).
fn seal(program: &Path) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let sealed = open_tree(CWD, program, flags)?;
    let read_only = MountAttributes {
        read_only: true,
        ..MountAttributes::default()
    };
    mount_setattr(sealed.as_fd(), read_only)?;
    Ok(sealed)
}

/// A running monitor. Dropping it ends neither the monitor nor the container.
#[derive(Debug)]
pub struct Monitor {
    socket: OwnedFd,
    child: Child,
}

impl Monitor {
    /// Waits for the program to start.
    pub fn wait_started(&self) -> Result<Started, StartError> {
        match self.next_event()? {
            Event::Started(started) => Ok(started),
            Event::Failed(failed) => Err(failed.into()),
            Event::Exited(_) => Err(StartError::Order),
        }
    }

    /// Waits for the next event. Poll the descriptor ([`AsFd`]) for input to wait for other things
    /// too.
    pub fn next_event(&self) -> Result<Event, WireError> {
        wire::receive_event(self.socket.as_fd())
    }

    /// Sends a signal to the container's first process.
    pub fn signal(&self, number: u8) -> Result<(), WireError> {
        wire::send_request(
            self.socket.as_fd(),
            ControlRequest::Signal(Signal { number }),
        )
    }

    /// Sets the size of the container's terminal.
    pub fn resize(&self, size: WindowSize) -> Result<(), WireError> {
        wire::send_request(self.socket.as_fd(), ControlRequest::Resize(size))
    }

    /// The monitor's pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the monitor and waits for its end. What it has started may have to be killed too.
    pub fn kill(mut self) -> std::io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Its process, whose end the caller has to wait for. There are no more events.
    pub fn into_child(self) -> Child {
        self.child
    }

    /// Waits for the monitor to exit, which follows its last event.
    pub fn reap(mut self) -> std::io::Result<()> {
        self.child.wait().map(drop)
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
