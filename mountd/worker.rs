//! The worker: serves one mount, using only the descriptors it was sent.
//!
//! It negotiates the connection, builds the overlay over the tree and the upper, tells the keeper
//! that it serves, and does so until the mount is gone. A worker that follows on one that died
//! takes over what that one negotiated, and finds its files in the upper again. Invariants: it
//! opens no path of the host but beneath the directories it was handed; it says [`WorkerReady`] or
//! [`MountFailed`] exactly once; it ends with 0 exactly when the mount was unmounted.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use cowl_core::digest::{ChainId, Sha256Digest};
use cowl_core::handover::{
    HandoverError, IoMode, Message, MountFailed, Role, WorkerReady, WorkerRequest, receive, send,
};
use cowl_core::tree::Tree;
use rustix::fs::{Mode, OFlags};
use rustix::thread::{CapabilitySet, capabilities};

use crate::counters::Counters;
use crate::failure::{OrFail, failure};
use crate::fuse::{Agreed, Connection, Dispatcher, End, Owners, Server, Wanted, probe_backing};
use crate::journal::Journal;
use crate::overlay::{Config, LowerParts, Overlay, Rules, UpperDirs};
use crate::{control, process};

/// `OVERLAYFS_SUPER_MAGIC` and `FUSE_SUPER_MAGIC`: files of filesystems that stand on others may
/// not back a mount that others stand on.
const STACKED: [u64; 2] = [0x794c_7630, 0x6573_5546];

/// Serves the mount that is requested over `socket` until it is gone; whether it was unmounted.
pub(crate) fn serve_to_the_end(socket: OwnedFd) -> bool {
    match serve(socket) {
        Ok(End::Unmounted) => true,
        Ok(End::Aborted) => {
            tracing::error!("the connection was cut");
            false
        }
        Err(error) => {
            tracing::error!("{error}");
            false
        }
    }
}

fn serve(socket: OwnedFd) -> Result<End, MountFailed> {
    let mut mount = reporting(socket.as_fd(), prepare(socket.as_fd()))?;
    let control = mount.control.take();
    let Mount {
        connection,
        overlay,
        counters,
        io_mode,
        owners,
        journal,
        lease: _held,
        control: _,
    } = &mount;
    let needed = needed(overlay.is_writable(), *io_mode);
    // While there is one thread, and before the keeper is told. A successor begins where its
    // keeper is.
    let confined = match journal {
        Some(journal) if journal.is_inherited() => process::restrict(needed, needed),
        _ => process::confine(needed, needed),
    };
    reporting(socket.as_fd(), confined)?;
    let dispatcher =
        Dispatcher::new(overlay, connection, owners).or_fail("cannot tell our capabilities");
    let dispatcher = reporting(socket.as_fd(), dispatcher)?;
    let server = Server::new(connection, dispatcher, counters, journal.as_ref());
    if let Some(control) = control {
        let started = control::start(control, server.gate(), *io_mode);
        reporting(
            socket.as_fd(),
            started.or_fail("cannot answer on the control socket"),
        )?;
    }
    let ready = Message::WorkerReady(WorkerReady { io_mode: *io_mode });
    server
        .run(move || send(socket.as_fd(), &ready, &[]).map_err(io::Error::other))
        .or_fail("serving the mount")
}

/// The capabilities that serving takes. Not among them is CAP_SYS_RESOURCE, which passes quotas
/// and takes reserved blocks.
pub(crate) fn needed(writable: bool, io_mode: IoMode) -> CapabilitySet {
    // A store of another user than the one that mounts.
    let mut needed = CapabilitySet::DAC_READ_SEARCH;
    if io_mode == IoMode::Passthrough {
        // Backing ids.
        needed |= CapabilitySet::SYS_ADMIN;
    }
    if writable && io_mode == IoMode::Passthrough {
        // A lease on a file tells whether it is mapped.
        needed |= CapabilitySet::LEASE;
    }
    if writable {
        // What the kernel has allowed the client, the upper's filesystem must allow us.
        needed |= CapabilitySet::DAC_OVERRIDE
            | CapabilitySet::FOWNER
            | CapabilitySet::CHOWN
            | CapabilitySet::FSETID
            | CapabilitySet::MKNOD
            // Creating as the client.
            | CapabilitySet::SETUID
            | CapabilitySet::SETGID
            // Extended attributes of `security.` and `trusted.`.
            | CapabilitySet::SETFCAP
            | CapabilitySet::SYS_ADMIN;
    }
    needed
}

/// Sends a failure to the keeper before returning it.
fn reporting<T>(socket: BorrowedFd<'_>, outcome: Result<T, MountFailed>) -> Result<T, MountFailed> {
    outcome.inspect_err(|failed| {
        if let Err(error) = send(socket, &Message::MountFailed(failed.clone()), &[]) {
            tracing::error!(%error, "cannot report a failure");
        }
    })
}

/// What serving needs.
#[derive(Debug)]
struct Mount {
    connection: Connection,
    overlay: Overlay,
    counters: Counters,
    /// How files are served.
    io_mode: IoMode,
    owners: Owners,
    journal: Option<Arc<Journal>>,
    /// The lock lives as long as this process or its keeper.
    lease: OwnedFd,
    /// Where engines ask.
    control: Option<OwnedFd>,
}

fn prepare(socket: BorrowedFd<'_>) -> Result<Mount, MountFailed> {
    let (request, mut files) = match receive(socket)? {
        (Message::WorkerRequest(request), files) => (request, files),
        (other, _) => return Err(HandoverError::Unexpected(other.name()).into()),
    };
    let device = files.take(Role::Fuse)?;
    let lease = files.take(Role::Lease)?;
    let counters = files.take(Role::Counters)?;
    let counters = Counters::map(counters.as_fd()).or_fail("cannot map the request counters")?;
    let control = files.take_if_any(Role::Control);
    let journal = files.take_if_any(Role::Journal);
    let journal = journal.map(|memory| Journal::map(memory.as_fd()).map(Arc::new));
    let journal = journal.transpose().or_fail("cannot map the journal")?;
    let tree = files.take(Role::Tree)?;
    let tree = Tree::open(&File::from(tree))
        .map_err(|error| failure("cannot open the merged tree", &io::Error::other(error)))?;
    let objects = files.take(Role::Objects)?;
    let volatile_work = files.take_if_any(Role::VolatileWork);
    let volatile = volatile_work.is_some();
    let upper = match (
        files.take_if_any(Role::Upper),
        volatile_work.or_else(|| files.take_if_any(Role::Work)),
    ) {
        (Some(upper), Some(work)) => Some(UpperDirs {
            upper,
            work,
            locks: None,
        }),
        (None, None) => None,
        (Some(_), None) => return Err(HandoverError::Missing(Role::Work).into()),
        (None, Some(_)) => return Err(HandoverError::Missing(Role::Upper).into()),
    };
    let io_mode = request.io_mode.mode();
    let upper_dir = upper.as_ref().map(|dirs| dirs.upper.as_fd());
    if io_mode == IoMode::Passthrough {
        require_passthrough(&request, objects.as_fd(), upper_dir)?;
    }
    let wanted = Wanted {
        io_mode,
        writable: upper.is_some(),
        acls: true,
    };
    let connection = connect(device, wanted, journal.as_deref())?;
    let is_first = !journal.as_ref().is_some_and(|it| it.is_inherited());
    if io_mode == IoMode::Passthrough && is_first {
        let work = upper.as_ref().map(|dirs| dirs.work.as_fd());
        try_backing(&connection, &tree, objects.as_fd(), work)
            .or_fail("io=passthrough: the kernel takes no files of this host")?;
    }
    let config = Config {
        lower: LowerParts::Tree {
            tree: Box::new(tree),
            chain: ChainId(Sha256Digest::from_bytes(request.chain)),
            objects,
        },
        upper,
        io_mode,
        rules: Rules {
            squashed: request.ids.squashes(),
            volatile,
            ..Rules::default()
        },
        journal: journal.clone(),
    };
    let overlay = Overlay::new(config).map_err(|error| MountFailed {
        what: error.to_string(),
        errno: 0,
    })?;
    if let Some(journal) = &journal {
        journal.set_agreed(connection.agreed().to_word());
    }
    Ok(Mount {
        connection,
        overlay,
        counters,
        io_mode,
        owners: Owners(request.ids),
        journal,
        lease,
        control,
    })
}

/// Negotiates the connection, or takes it over from a worker that did.
pub(crate) fn connect(
    device: OwnedFd,
    wanted: Wanted,
    journal: Option<&Journal>,
) -> Result<Connection, MountFailed> {
    if let Some(agreed) = journal.and_then(Journal::agreed) {
        let agreed = Agreed::of_word(agreed).ok_or(io::ErrorKind::InvalidData);
        return agreed
            .map(|agreed| Connection::take_over(device, agreed))
            .map_err(io::Error::from)
            .or_fail("taking the connection over from a dead worker");
    }
    Connection::negotiate(device, wanted).map_err(|error| {
        if error.kind() == io::ErrorKind::Unsupported {
            no_passthrough("the kernel does not offer it (it needs Linux 6.9)")
        } else {
            failure("negotiating with the kernel", &error)
        }
    })
}

/// What can be told before the connection is negotiated; the rest is tried by [`try_backing`].
fn require_passthrough(
    request: &WorkerRequest,
    objects: BorrowedFd<'_>,
    upper: Option<BorrowedFd<'_>>,
) -> Result<(), MountFailed> {
    if !is_privileged() {
        return Err(no_passthrough(
            "it needs root of the initial user namespace",
        ));
    }
    if !request.objects_read_only {
        return Err(no_passthrough(
            "the kernel makes no read-only clone of the store's mount",
        ));
    }
    let stacked = [Some(objects), upper].into_iter().flatten().any(is_stacked);
    if stacked {
        return Err(no_passthrough("store or upper are on overlayfs or FUSE"));
    }
    Ok(())
}

fn no_passthrough(why: &str) -> MountFailed {
    MountFailed {
        what: format!("io=passthrough: {why}"),
        errno: 0,
    }
}

fn is_stacked(directory: BorrowedFd<'_>) -> bool {
    match rustix::fs::fstatfs(directory) {
        Ok(statfs) => u64::try_from(statfs.f_type).is_ok_and(|magic| STACKED.contains(&magic)),
        Err(error) => {
            tracing::warn!(%error, "cannot tell the filesystem of a directory");
            true
        }
    }
}

/// Registering backing files needs CAP_SYS_ADMIN in the initial user namespace, whose root may
/// name every id.
fn is_privileged() -> bool {
    let admin =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    admin && cowl_sys::userns::is_initial().unwrap_or(false)
}

/// Tries to register what this mount would: a first object, and a file made in the work directory.
fn try_backing(
    connection: &Connection,
    tree: &Tree,
    objects: BorrowedFd<'_>,
    work: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let files = [
        first_object(tree, objects)?,
        work.map(scratch_file).transpose()?,
    ];
    files
        .iter()
        .flatten()
        .try_for_each(|file| probe_backing(connection.as_fd(), file))
}

fn first_object(tree: &Tree, objects: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let Some(id) = tree.object_ids().next() else {
        return Ok(None);
    };
    let id = id.to_string();
    let (shard, rest) = id.split_at(2);
    Ok(Some(rustix::fs::openat(
        objects,
        format!("{shard}/{rest}"),
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?))
}

fn scratch_file(work: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(
        work,
        ".",
        OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    )?)
}
