//! Requests a mount: starts a keeper and waits for its answer.
//!
//! Invariant: an error leaves no process and no mount behind. Called by the engine; the keeper
//! outlives its caller.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use thiserror::Error;

use super::codec::HandoverError;
use super::ids::IdMap;
use super::message::{IoModeChoice, Message, MountFailed, MountReady, MountRequest, Role};
use super::socket::{pair, receive, send};

/// The two directories of a writable mount, on one filesystem.
#[derive(Copy, Clone, Debug)]
pub struct UpperSource<'fd> {
    /// Where changes go.
    pub upper: BorrowedFd<'fd>,
    /// The upper's workshop: temporaries, index and lock.
    pub work: BorrowedFd<'fd>,
    /// The caller drops both if the machine has booted again, so nothing is synced.
    pub volatile: bool,
}

/// What a mount is made of.
#[derive(Copy, Clone, Debug)]
pub struct MountSources<'fd> {
    /// What the mount is called in log lines and in `/proc/self/mountinfo`.
    pub name: &'fd str,
    /// The chain id (sha256) that `tree` was merged from.
    pub chain: [u8; 32],
    /// The I/O mode wanted.
    pub io_mode: IoModeChoice,
    /// How owners are shown.
    pub ids: &'fd IdMap,
    /// The merged tree, opened for reading.
    pub tree: BorrowedFd<'fd>,
    /// The store's `objects/` directory.
    pub objects: BorrowedFd<'fd>,
    /// A locked lease. The lock belongs to the open file, which the keeper holds from here on: the
    /// caller may close its own.
    pub lease: BorrowedFd<'fd>,
    /// Where changes go; none makes the mount read-only.
    pub upper: Option<UpperSource<'fd>>,
    /// Where the worker can be asked to hold changes back ([`listen`](super::listen)).
    pub control: Option<BorrowedFd<'fd>>,
    /// Where keeper and worker write their log lines, opened for appending; none discards them.
    pub log: Option<BorrowedFd<'fd>>,
}

/// A mount that answers and is attached nowhere yet (`move_mount` does that). Closing
/// [`mount`](Self::mount) unattached ends it.
#[derive(Debug)]
pub struct Mounted {
    /// What came about.
    pub ready: MountReady,
    /// The mount.
    pub mount: OwnedFd,
    /// The process that holds the connection and the lease until the mount is gone, and then exits
    /// with 0. A caller that goes on living reaps it; one that ends leaves it to init.
    pub keeper: Child,
}

/// Why there is no mount.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MountError {
    /// The program could not be started.
    #[error("cannot start {program}")]
    Start {
        /// The program's path.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// The keeper or its worker said why; the line is fit to be shown as it is.
    #[error(transparent)]
    Failed(#[from] MountFailed),
    /// The two did not understand each other, or the keeper died.
    #[error("talking to {program}")]
    Talk {
        /// The program's path.
        program: String,
        /// What went wrong.
        source: HandoverError,
    },
}

/// Starts `program` (a `cowl-mountd`) as the keeper of a new mount and waits until the mount
/// answers.
pub fn mount(program: &Path, sources: &MountSources<'_>) -> Result<Mounted, MountError> {
    let name = || program.display().to_string();
    let talk = |source| MountError::Talk {
        program: name(),
        source,
    };
    let (ours, theirs) = pair().map_err(talk)?;
    let keeper = start(program, theirs, sources.log).map_err(|source| MountError::Start {
        program: name(),
        source,
    })?;
    match ask(ours.as_fd(), sources)
        .map_err(talk)
        .and_then(|answer| answer.map_err(MountError::from))
    {
        Ok((ready, mount)) => Ok(Mounted {
            ready,
            mount,
            keeper,
        }),
        Err(error) => {
            // The keeper sees its socket close and gives up.
            drop(ours);
            reap(keeper).map_err(|source| MountError::Start {
                program: name(),
                source,
            })?;
            Err(error)
        }
    }
}

/// Descriptor 0 is the keeper's end of the socket; everything else of ours closes on exec.
fn start(program: &Path, socket: OwnedFd, log: Option<BorrowedFd<'_>>) -> io::Result<Child> {
    let log = match log {
        Some(log) => Stdio::from(log.try_clone_to_owned()?),
        None => Stdio::null(),
    };
    Command::new(program)
        .arg("keeper")
        .env_clear()
        .stdin(socket)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
}

fn reap(mut keeper: Child) -> io::Result<()> {
    keeper.wait().map(drop)
}

fn ask(
    socket: BorrowedFd<'_>,
    sources: &MountSources<'_>,
) -> Result<Result<(MountReady, OwnedFd), MountFailed>, HandoverError> {
    let mut roles = vec![Role::Tree, Role::Objects, Role::Lease];
    let mut descriptors = vec![sources.tree, sources.objects, sources.lease];
    if let Some(UpperSource {
        upper,
        work,
        volatile,
    }) = sources.upper
    {
        let of_work = if volatile {
            Role::VolatileWork
        } else {
            Role::Work
        };
        roles.extend([Role::Upper, of_work]);
        descriptors.extend([upper, work]);
    }
    if let Some(control) = sources.control {
        roles.push(Role::Control);
        descriptors.push(control);
    }
    let request = MountRequest {
        name: sources.name.to_owned(),
        chain: sources.chain,
        io_mode: sources.io_mode,
        ids: sources.ids.clone(),
        roles,
    };
    send(socket, &Message::MountRequest(request), &descriptors)?;
    match receive(socket)? {
        (Message::MountReady(ready), mut descriptors) => {
            let mount = descriptors.take(Role::Mount)?;
            wait_for_close(socket)?;
            Ok(Ok((ready, mount)))
        }
        (Message::MountFailed(failed), _) => Ok(Err(failed)),
        (other, _) => Err(HandoverError::Unexpected(other.name())),
    }
}

/// Waits until the keeper has let go of the mount: as long as it has a descriptor of it, too, the
/// mount is busy, and an umount of it is refused. It closes its end of the socket
/// after that.
fn wait_for_close(socket: BorrowedFd<'_>) -> Result<(), HandoverError> {
    match receive(socket) {
        Err(HandoverError::Closed) => Ok(()),
        Err(error) => Err(error),
        Ok((other, _)) => Err(HandoverError::Unexpected(other.name())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::handover::IoMode;

    /// A pipe is at its end for its reader when no descriptor of the other end is open: the
    /// mount's stand-in.
    #[test]
    fn mount_returns_after_the_keeper_closed_the_mount() {
        for _ in 0..100 {
            let (ours, theirs) = pair().unwrap();
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            let keeper = std::thread::spawn(move || {
                receive(theirs.as_fd()).unwrap();
                let ready = MountReady {
                    io_mode: IoMode::Cached,
                    worker: 1,
                    roles: vec![Role::Mount],
                };
                send(
                    theirs.as_fd(),
                    &Message::MountReady(ready),
                    &[writer.as_fd()],
                )
                .unwrap();
                drop(writer);
                drop(theirs);
            });
            let file = tempfile::tempfile().unwrap();
            let sources = MountSources {
                name: "x",
                chain: [0; 32],
                io_mode: IoModeChoice::Auto,
                ids: &IdMap::default(),
                tree: file.as_fd(),
                objects: file.as_fd(),
                lease: file.as_fd(),
                upper: None,
                control: None,
                log: None,
            };
            let (_, mount) = ask(ours.as_fd(), &sources).unwrap().unwrap();
            drop(mount);
            rustix::io::ioctl_fionbio(&reader, true).unwrap();
            let end = io::Read::read(&mut File::from(reader), &mut [0]);
            assert_eq!(end.unwrap(), 0, "somebody still has it");
            keeper.join().unwrap();
        }
    }
}
