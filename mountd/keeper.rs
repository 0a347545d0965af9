//! The keeper: the process that makes a mount and holds it until it is unmounted.
//!
//! It opens the FUSE connection, makes a detached mount, starts the worker and sends the mount to
//! the engine. From then on it holds the connection, so that clients of a dead worker wait instead
//! of getting an error, what a worker is made of, and the lease, so that gc keeps the tree's
//! objects. A worker that is killed or crashes is followed by another ([`successor`]); where that
//! cannot be, the mount is cut off, and the log says so. A failure before the mount is ready is
//! sent to the engine as one line and leaves nothing behind.
//!
//! Invariants: it takes no request off the connection; descriptors it doesn't hold for the mount's
//! life are closed once the worker runs; once the mount answers, it and the worker are in mount
//! namespaces of their own, so that the caller's can end and the mount with it, and no capability
//! is in effect in it; it ends with 0 exactly when the mount was unmounted.

pub(crate) mod successor;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use cowl_core::handover::{
    Descriptors, HandoverError, IoMode, Message, MountFailed, MountReady, MountRequest, Role,
    WorkerReady, WorkerRequest, pair, receive, send,
};
use rustix::mount::MountAttrFlags;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use rustix::thread::CapabilitySet;

use crate::failure::OrFail;
use crate::mount::{MountParameters, make_mount, open_device, read_only_clone};
use crate::{counters, journal, process, sys, worker};

/// Makes the mount that is requested over `socket` and holds it until it is unmounted.
pub fn run(socket: OwnedFd) -> ExitCode {
    match establish(socket.as_fd()) {
        Ok(served) => {
            // The engine waits for this: no descriptor of the mount is left here.
            drop(socket);
            served.hold()
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

/// A mount that a worker serves.
#[derive(Debug)]
struct ServedMount {
    worker: Pid,
    /// What the worker was told to serve. Of its descriptors the connection is never read: it lives
    /// as long as it is open.
    order: Order,
}

/// What a worker is started with.
#[derive(Debug)]
struct Order {
    request: WorkerRequest,
    /// By the request's roles.
    files: Vec<OwnedFd>,
}

impl Order {
    fn add(&mut self, role: Role, file: OwnedFd) {
        self.request.roles.push(role);
        self.files.push(file);
    }

    fn file(&self, role: Role) -> Option<&OwnedFd> {
        let roles = self.request.roles.iter();
        let mut files = roles.zip(&self.files);
        files.find(|(of, _)| **of == role).map(|(_, file)| file)
    }

    /// Closes all files but those in `roles`.
    fn keep_only(&mut self, roles: &[Role]) {
        let was = std::mem::take(&mut self.request.roles);
        for (role, file) in was.into_iter().zip(std::mem::take(&mut self.files)) {
            if roles.contains(&role) {
                self.add(role, file);
            }
        }
    }

    /// Forks a worker off this process, which has one thread, and waits until it serves. The first
    /// error is that of starting it, the outer one then that of talking to it, the inner one its
    /// own.
    fn start(&self) -> Result<(Pid, Outcome), MountFailed> {
        let (ours, theirs) = pair()?;
        let worker = sys::fork::start(theirs, |socket| match process::begin_worker() {
            Ok(()) => worker::serve_to_the_end(socket),
            Err(error) => {
                tracing::error!(%error, "a worker cannot begin");
                false
            }
        })
        .or_fail("cannot start a worker")?;
        Ok((worker, self.give(ours.as_fd())))
    }

    /// Has the worker at the other end of `socket` serve, and waits until it does.
    fn give(&self, socket: BorrowedFd<'_>) -> Outcome {
        let files: Vec<_> = self.files.iter().map(AsFd::as_fd).collect();
        send(
            socket,
            &Message::WorkerRequest(self.request.clone()),
            &files,
        )?;
        await_ready(socket)
    }
}

/// What came of a worker's start. The outer error is that of talking to it, the inner one its own.
pub(crate) type Outcome = Result<Result<WorkerReady, MountFailed>, HandoverError>;

/// Waits until a worker serves, or fails.
pub(crate) fn await_ready(socket: BorrowedFd<'_>) -> Outcome {
    match receive(socket)? {
        (Message::WorkerReady(ready), _) => Ok(Ok(ready)),
        (Message::MountFailed(failed), _) => Ok(Err(failed)),
        (other, _) => Err(HandoverError::Unexpected(other.name())),
    }
}

fn establish(socket: BorrowedFd<'_>) -> Result<ServedMount, MountFailed> {
    let (request, mut files) = match receive(socket)? {
        (Message::MountRequest(request), files) => (request, files),
        (other, _) => return Err(HandoverError::Unexpected(other.name()).into()),
    };
    let device = open_device()?;
    let mount = make_requested(&request, device.as_fd())?;
    let counters = counters::device_of(&mount)
        .and_then(counters::create)
        .or_fail("cannot make the request counters")?;
    let order = order(&request, &mut files, device, counters)?;
    let (worker, outcome) = order.start()?;
    let ready = first_ready(worker, outcome)?;
    let mut served = ServedMount { worker, order };
    if let Err(error) = served.prepare(ready.io_mode) {
        end(served.worker);
        return Err(error);
    }
    let answer = MountReady {
        io_mode: ready.io_mode,
        worker: served.worker.as_raw_nonzero().get().cast_unsigned(),
        roles: vec![Role::Mount],
    };
    if let Err(error) = send(socket, &Message::MountReady(answer), &[mount.as_fd()]) {
        // The engine is gone. Closing the mount ends the connection, and so the worker.
        drop(mount);
        end(served.worker);
        return Err(error.into());
    }
    tracing::info!(name = request.name, io_mode = %ready.io_mode, worker = %served.worker, "mounted");
    Ok(served)
}

impl ServedMount {
    /// Gives up what is not needed any more. What another worker would need stays, if there can be
    /// one, its capabilities out of effect.
    fn prepare(&mut self, io_mode: IoMode) -> Result<(), MountFailed> {
        let journal = self.order.file(Role::Journal);
        let can_be_followed = journal
            .map_or(Ok(false), journal::allows_a_successor)
            .or_fail("cannot read the journal")?;
        let permitted = if can_be_followed {
            let writable = self.order.file(Role::Upper).is_some();
            worker::needed(writable, io_mode)
        } else {
            self.order
                .keep_only(&[Role::Fuse, Role::Lease, Role::Counters]);
            CapabilitySet::empty()
        };
        process::confine(CapabilitySet::empty(), permitted)
    }
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

/// What the worker is to be started with; takes what it needs out of `files`.
fn order(
    request: &MountRequest,
    files: &mut Descriptors,
    device: OwnedFd,
    counters: OwnedFd,
) -> Result<Order, MountFailed> {
    let objects = files.take(Role::Objects)?;
    let (objects, objects_read_only) = match read_only_clone(objects.as_fd()) {
        Ok(clone) => (clone, true),
        Err(error) => {
            tracing::info!(%error, "no read-only view of the objects, so none of them is handed to the kernel");
            (objects, false)
        }
    };
    let mut order = Order {
        request: WorkerRequest {
            name: request.name.clone(),
            chain: request.chain,
            io_mode: request.io_mode,
            ids: request.ids.clone(),
            objects_read_only,
            roles: Vec::new(),
        },
        files: Vec::new(),
    };
    order.add(Role::Fuse, device);
    order.add(Role::Counters, counters);
    order.add(Role::Tree, files.take(Role::Tree)?);
    order.add(Role::Objects, objects);
    for role in [Role::Upper, Role::Work, Role::VolatileWork, Role::Control] {
        if let Some(directory) = files.take_if_any(role) {
            order.add(role, directory);
        }
    }
    match journal::create() {
        Ok(journal) => order.add(Role::Journal, journal),
        Err(error) => {
            tracing::info!(%error, "no memory for a journal, so the mount does not outlive its worker");
        }
    }
    // Closed last: `cowl umount` waits for the lease, and then the file system that the other
    // files are on may be unmounted.
    order.add(Role::Lease, files.take(Role::Lease)?);
    Ok(order)
}

/// What came of starting a mount's first worker, which is ended if it does not serve.
pub(crate) fn first_ready(worker: Pid, outcome: Outcome) -> Result<WorkerReady, MountFailed> {
    match outcome {
        Ok(Ok(ready)) => Ok(ready),
        Ok(Err(failed)) => {
            end(worker);
            Err(failed)
        }
        Err(HandoverError::Closed) => {
            // Its end of the socket closes with it, so it is dead or about to be.
            let how = wait(worker)
                .map_or_else(|_| String::new(), |status| format!(" ({})", said(status)));
            Err(MountFailed {
                what: format!("the worker died before the mount answered{how}"),
                errno: 0,
            })
        }
        Err(error) => {
            end(worker);
            Err(error.into())
        }
    }
}

/// Waits for a worker's end, with that of all its threads.
pub(crate) fn wait(worker: Pid) -> io::Result<WaitStatus> {
    let ended =
        rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(worker), WaitOptions::empty()))?;
    ended
        .map(|(_, status)| status)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// A status as the standard library says it.
pub(crate) fn said(status: WaitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    std::process::ExitStatus::from_raw(status.as_raw()).to_string()
}

/// Kills and reaps a worker.
pub(crate) fn end(worker: Pid) {
    let killed = rustix::process::kill_process(worker, Signal::KILL);
    if let Err(error) = killed.map_err(io::Error::from).and_then(|()| wait(worker)) {
        tracing::warn!(%error, "cannot end the worker");
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use cowl_core::handover::{IdMap, IoModeChoice};

    use super::*;

    /// Its lock tells others that the mount is gone, and with it the use of all other files.
    #[test]
    fn the_lease_is_the_last_file_of_an_order() {
        let roles = vec![
            Role::Lease,
            Role::Tree,
            Role::Objects,
            Role::Upper,
            Role::Work,
        ];
        let request = MountRequest {
            name: "image".into(),
            chain: [0; 32],
            io_mode: IoModeChoice::Auto,
            ids: IdMap::default(),
            roles: roles.clone(),
        };
        let directory = File::open("/").unwrap();
        let files = vec![directory.as_fd(); roles.len()];
        let (ours, theirs) = pair().unwrap();
        send(ours.as_fd(), &Message::MountRequest(request), &files).unwrap();
        let (Message::MountRequest(request), mut files) = receive(theirs.as_fd()).unwrap() else {
            panic!("another message came");
        };
        let other = || OwnedFd::from(directory.try_clone().unwrap());
        let mut order = order(&request, &mut files, other(), other()).unwrap();
        assert_eq!(order.request.roles.last(), Some(&Role::Lease));
        order.keep_only(&[Role::Fuse, Role::Lease, Role::Counters]);
        assert_eq!(
            order.request.roles,
            [Role::Fuse, Role::Counters, Role::Lease]
        );
    }
}
