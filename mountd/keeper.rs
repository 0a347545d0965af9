//! The keeper: the process that makes a mount and holds it until it is unmounted.
//!
//! It opens the FUSE connection, makes a detached mount, starts the worker and sends the mount to
//! the engine. From then on it holds the connection, so that clients of a dead worker get an error
//! only after it is logged, and the lease, so that gc keeps the tree's objects. A failure before
//! the mount is ready is sent to the engine as one line and leaves nothing behind.
//!
//! Invariants: it takes no request off the connection; descriptors it doesn't hold for the mount's
//! life are closed once the worker runs; once the mount answers, it and the worker are in mount
//! namespaces of their own, so that the caller's can end and the mount with it, and it has no
//! capability; it ends with 0 exactly when the mount was unmounted.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};

use cowl_core::handover::{
    Descriptors, HandoverError, Message, MountFailed, MountReady, MountRequest, Role, WorkerReady,
    WorkerRequest, pair, receive, send,
};
use rustix::mount::MountAttrFlags;
use rustix::thread::CapabilitySet;

use crate::failure::OrFail;
use crate::mount::{MountParameters, make_mount, open_device, read_only_clone};
use crate::{counters, process};

/// Makes the mount that is requested over `socket` and holds it until it is unmounted.
pub fn run(socket: OwnedFd) -> ExitCode {
    match establish(socket.as_fd()) {
        Ok(kept) => {
            // The engine waits for this: no descriptor of the mount is left here.
            drop(socket);
            kept.hold()
        }
        Err(error) => {
            tracing::error!("{error}");
            if let Err(error) = send(socket.as_fd(), &Message::MountFailed(error), &[]) {
                tracing::error!(%error, "cannot report a failure");
            }
            ExitCode::FAILURE
        }
    }
}

/// A mount that is ready.
#[derive(Debug)]
struct Kept {
    name: String,
    worker: Child,
    /// Never read: the connection lives as long as this is open.
    device: OwnedFd,
    lease: OwnedFd,
    counters: OwnedFd,
}

impl Kept {
    fn hold(mut self) -> ExitCode {
        let ended = self.worker.wait();
        // Closing the connection fails the requests that clients still wait for.
        drop((self.device, self.lease, self.counters));
        match ended {
            Ok(status) if status.success() => {
                tracing::info!(name = self.name, "unmounted");
                ExitCode::SUCCESS
            }
            Ok(status) => {
                tracing::error!(
                    name = self.name,
                    "the worker died ({status}); the mount is cut off"
                );
                ExitCode::FAILURE
            }
            Err(error) => {
                tracing::error!(name = self.name, %error, "cannot wait for the worker; the mount is cut off");
                ExitCode::FAILURE
            }
        }
    }
}

fn establish(socket: BorrowedFd<'_>) -> Result<Kept, MountFailed> {
    let (request, mut files) = match receive(socket)? {
        (Message::MountRequest(request), files) => (request, files),
        (other, _) => return Err(HandoverError::Unexpected(other.name()).into()),
    };
    let lease = files.take(Role::Lease)?;
    let device = open_device()?;
    let mount = make_requested(&request, device.as_fd())?;
    let counters = counters::device_of(&mount)
        .and_then(counters::create)
        .or_fail("cannot make the request counters")?;
    let (mut worker, ready) = start_worker(
        &request,
        &mut files,
        device.as_fd(),
        lease.as_fd(),
        counters.as_fd(),
    )?;
    if let Err(error) = process::confine(CapabilitySet::empty()) {
        end(&mut worker);
        return Err(error);
    }
    let answer = MountReady {
        io_mode: ready.io_mode,
        worker: worker.id(),
        roles: vec![Role::Mount],
    };
    if let Err(error) = send(socket, &Message::MountReady(answer), &[mount.as_fd()]) {
        // The engine is gone. Closing the mount ends the connection, and so the worker.
        drop(mount);
        end(&mut worker);
        return Err(error.into());
    }
    tracing::info!(name = request.name, io_mode = %ready.io_mode, worker = worker.id(), "mounted");
    Ok(Kept {
        name: request.name,
        worker,
        device,
        lease,
        counters,
    })
}

/// The mount that a request asks for.
fn make_requested(request: &MountRequest, device: BorrowedFd<'_>) -> Result<OwnedFd, MountFailed> {
    let parameters = MountParameters {
        source: request.name.as_ref(),
        read_only: !request.roles.contains(&Role::Upper),
        allow_other: true,
        contexts: &[],
        attributes: MountAttrFlags::empty(),
    };
    make_mount(&parameters, device)
}

/// Starts the worker and waits until it serves; takes what it needs out of `files`.
fn start_worker(
    request: &MountRequest,
    files: &mut Descriptors,
    device: BorrowedFd<'_>,
    lease: BorrowedFd<'_>,
    counters: BorrowedFd<'_>,
) -> Result<(Child, WorkerReady), MountFailed> {
    let tree = files.take(Role::Tree)?;
    let objects = files.take(Role::Objects)?;
    let (objects, objects_read_only) = match read_only_clone(objects.as_fd()) {
        Ok(clone) => (clone, true),
        Err(error) => {
            tracing::info!(%error, "no read-only view of the objects, so none of them is handed to the kernel");
            (objects, false)
        }
    };
    let mut roles = vec![
        Role::Fuse,
        Role::Lease,
        Role::Counters,
        Role::Tree,
        Role::Objects,
    ];
    let mut handed = vec![device, lease, counters, tree.as_fd(), objects.as_fd()];
    let upper = files.take_if_any(Role::Upper);
    let work = files.take_if_any(Role::Work);
    for (role, directory) in [(Role::Upper, &upper), (Role::Work, &work)] {
        if let Some(directory) = directory {
            roles.push(role);
            handed.push(directory.as_fd());
        }
    }
    let order = WorkerRequest {
        name: request.name.clone(),
        chain: request.chain,
        io_mode: request.io_mode,
        objects_read_only,
        roles,
    };
    let (ours, theirs) = pair()?;
    let mut worker = spawn_worker(theirs).or_fail("cannot start a worker")?;
    match send(ours.as_fd(), &Message::WorkerRequest(order), &handed)
        .and_then(|()| receive(ours.as_fd()))
    {
        Ok((Message::WorkerReady(ready), _)) => Ok((worker, ready)),
        Ok((Message::MountFailed(failed), _)) => {
            end(&mut worker);
            Err(failed)
        }
        Ok((other, _)) => {
            end(&mut worker);
            Err(HandoverError::Unexpected(other.name()).into())
        }
        Err(HandoverError::Closed) => {
            // Its end of the socket closes with it, so it is dead or about to be.
            let how = worker
                .wait()
                .map_or_else(|_| String::new(), |status| format!(" ({status})"));
            Err(MountFailed {
                what: format!("the worker died before the mount answered{how}"),
                errno: 0,
            })
        }
        Err(error) => {
            end(&mut worker);
            Err(error.into())
        }
    }
}

/// This very program again, also if its file was replaced since. Its only descriptor but the
/// standard ones is the socket, as 0.
fn spawn_worker(socket: OwnedFd) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg0("cowl-mountd")
        .arg("worker")
        .env_clear()
        .stdin(socket)
        .stdout(Stdio::null())
        .spawn()
}

/// Kills and reaps a worker.
fn end(worker: &mut Child) {
    if let Err(error) = worker.kill().and_then(|()| worker.wait()) {
        tracing::warn!(%error, "cannot end the worker");
    }
}
