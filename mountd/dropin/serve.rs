//! Makes the mount of a command line and holds it until it is unmounted.
//!
//! As an image's keeper does ([`crate::keeper`]), this process holds the connection, what a worker
//! is made of and the journal. A worker serves the mount: it is forked off this process, and is
//! followed by another when it dies.
//!
//! Invariants: it takes no request off the connection; nothing is attached before a worker serves;
//! it ends with 0 exactly when the mount was unmounted.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use cowl_core::handover::{MountFailed, pair};
use cowl_core::upper::marks::Namespace;
use cowl_core::upper::{Locks, UpperError};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock};
use rustix::io::{Errno, retry_on_intr};
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};
use rustix::process::Pid;
use rustix::thread::{CapabilitySet, capabilities};

use super::worker::{self, Parts, silence};
use super::{MountFlags, Mounting, Options, fail, take_stdin};
use crate::failure::{OrFail, failure};
use crate::fuse::Owners;
use crate::keeper::successor::{Deaths, successor_ready};
use crate::keeper::{await_ready, end, first_ready, said, wait};
use crate::mount::{MountParameters, make_mount, open_device, read_only_clone};
use crate::overlay::{Layers, Rules, UpperDirs};
use crate::sys::fork;
use crate::{counters, journal, process};

/// How long a mount waits for the processes of one that was unmounted to end: on a busy host that
/// takes seconds.
const GRACE: Duration = Duration::from_secs(10);

/// Mounts, says over standard input, a pipe, that the mount answers and by which device, and holds
/// the mount until it is gone.
pub(super) fn run(mounting: &Mounting) -> ExitCode {
    match establish(mounting).and_then(hold) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

/// A mount that a worker serves.
#[derive(Debug)]
struct Served {
    parts: Parts,
    worker: Pid,
}

/// What the first worker has no part in.
#[derive(Debug)]
struct Pending {
    mount: OwnedFd,
    /// To the command that was typed.
    pipe: File,
    /// In place of standard output and error, once the mount answers.
    quiet: Option<File>,
}

fn establish(mounting: &Mounting) -> Result<Served, MountFailed> {
    // In a session of its own, so that Ctrl-C reaches the process in the foreground alone.
    process::begin_serving().or_fail("starting up")?;
    let pipe = take_stdin().or_fail("starting up")?;
    start_log(mounting.debug);
    // Once the mount answers, its processes have no /dev.
    let null = File::options().write(true).open("/dev/null");
    let null = null.or_fail("starting up")?;
    let (parts, mount) = make(&mounting.options)?;
    let device = counters::device_of(&mount).or_fail("cannot tell the mount's device")?;
    let pending = Pending {
        mount,
        pipe: pipe.into(),
        quiet: (!mounting.foreground).then_some(null),
    };
    let (served, pending) = start_first(parts, pending)?;
    let answered = pending.attach(&mounting.at, device, &served.parts);
    if let Err(error) = answered {
        end(served.worker);
        return Err(error);
    }
    Ok(served)
}

/// A mount, attached nowhere, and what serves it.
fn make(options: &Options) -> Result<(Parts, OwnedFd), MountFailed> {
    let upper = upper_dirs(options)?;
    let device = open_device()?;
    let mount = make_mount(&parameters(options, upper.is_some()), device.as_fd())?;
    let counters = counters::device_of(&mount)
        .and_then(counters::create)
        .or_fail("cannot make the request counters")?;
    let journal = journal::create().inspect_err(|error| {
        tracing::info!(%error, "no memory for a journal, so the mount does not outlive its worker");
    });
    let mut owners = Owners(options.ids.clone());
    let read = owners.0.read_overflow_ids();
    read.or_fail("cannot read the system's overflow ids")?;
    let parts = Parts {
        device,
        counters,
        journal: journal.ok(),
        layers: layers(options)?,
        upper,
        owners,
        io_mode: options.io_mode.mode(),
        rules: Rules {
            volatile: options.volatile,
            redirect_dir: options.redirect_dir,
            metacopy: options.metacopy,
            user_marks: options.user_marks,
            no_acl: options.no_acl,
            squashed: options.ids.squashes(),
        },
    };
    Ok((parts, mount))
}

/// Starts the first worker, and waits until it serves.
fn start_first(parts: Parts, pending: Pending) -> Result<(Served, Pending), MountFailed> {
    let (ours, theirs) = pair()?;
    let owned = (parts, pending, ours, theirs);
    let forked = fork::start_with(owned, |(parts, pending, ours, theirs)| {
        let Pending { mount, pipe, quiet } = pending;
        // The mount would not end while the worker had it open.
        drop((mount, pipe, ours));
        worker::run(parts, theirs, quiet)
    });
    let ((parts, pending, ours, theirs), worker) = forked.or_fail("cannot start a worker")?;
    drop(theirs);
    first_ready(worker, await_ready(ours.as_fd()))?;
    Ok((Served { parts, worker }, pending))
}

/// Starts a worker that follows on one that died.
fn start_successor(parts: Parts) -> Result<Served, MountFailed> {
    let (ours, theirs) = pair()?;
    let forked = fork::start_with((parts, ours, theirs), |(parts, ours, theirs)| {
        drop(ours);
        match process::regain_capabilities() {
            Ok(()) => worker::run(parts, theirs, None),
            Err(error) => {
                tracing::error!(%error, "a worker cannot begin");
                false
            }
        }
    });
    let ((parts, ours, theirs), worker) = forked.or_fail("cannot start another worker")?;
    drop(theirs);
    let worker = successor_ready(worker, await_ready(ours.as_fd()))?;
    Ok(Served { parts, worker })
}

impl Pending {
    /// Attaches the mount, leaves the caller's mounts, and tells the command that was typed.
    fn attach(self, at: &Path, device: u64, parts: &Parts) -> Result<(), MountFailed> {
        let Self {
            mount,
            mut pipe,
            quiet,
        } = self;
        let by_descriptor = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&mount, "", CWD, at, by_descriptor)
            .or_fail(format!("cannot mount at {}", at.display()))?;
        // From here on it ends when it is unmounted there.
        drop(mount);
        // What another worker needs stays permitted, out of effect.
        if let Err(error) = process::confine(CapabilitySet::empty(), parts.needed()) {
            if let Err(left) = unmount(at, UnmountFlags::DETACH) {
                tracing::error!(%left, "cannot unmount again");
            }
            return Err(error);
        }
        silence(quiet.as_ref()).or_fail("starting up")?;
        match pipe.write_all(&device.to_ne_bytes()) {
            // The command was killed. The mount stands, as if that had been a moment later: this
            // process can no longer unmount it.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            told => told.or_fail("cannot say that the mount answers"),
        }
    }
}

/// Holds the mount until it is unmounted, or no worker can serve it any more.
fn hold(served: Served) -> Result<ExitCode, MountFailed> {
    let Served {
        mut parts,
        mut worker,
    } = served;
    let mut deaths = Deaths::default();
    loop {
        let status = wait(worker).or_fail("cannot wait for the worker")?;
        match status.exit_status() {
            Some(0) => return Ok(ExitCode::SUCCESS),
            // It has said why.
            Some(_) => return Ok(ExitCode::FAILURE),
            None => {}
        }
        // From here on clients wait; when this process ends, the connection does, and their
        // requests fail.
        let died = |why: MountFailed| MountFailed {
            what: format!(
                "the worker died ({}); the mount is cut off: {}",
                said(status),
                why.what
            ),
            ..why
        };
        let allowed = deaths.allow_another(status, parts.journal.as_ref());
        let next = allowed
            .and_then(|()| start_successor(parts))
            .map_err(died)?;
        tracing::warn!(worker = %next.worker, "the worker died ({}); another one serves on", said(status));
        Served { parts, worker } = next;
    }
}

fn start_log(debug: bool) {
    let level = if debug {
        tracing::Level::DEBUG
    } else {
        tracing::Level::WARN
    };
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false)
        .with_max_level(level)
        .init();
}

fn parameters(options: &Options, has_upper: bool) -> MountParameters<'_> {
    let MountFlags {
        ro,
        nodev,
        nosuid,
        noexec,
        noatime,
        nodiratime,
    } = options.flags;
    MountParameters {
        source: options.fsname.as_deref().unwrap_or("cowl-mountd".as_ref()),
        read_only: ro || !has_upper,
        allow_other: !options.owner_only,
        contexts: &options.contexts,
        attributes: [
            (nodev, rustix::mount::MountAttrFlags::MOUNT_ATTR_NODEV),
            (nosuid, rustix::mount::MountAttrFlags::MOUNT_ATTR_NOSUID),
            (noexec, rustix::mount::MountAttrFlags::MOUNT_ATTR_NOEXEC),
            (noatime, rustix::mount::MountAttrFlags::MOUNT_ATTR_NOATIME),
            (
                nodiratime,
                rustix::mount::MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            ),
        ]
        .into_iter()
        .filter(|(set, _)| *set)
        .map(|(_, flag)| flag)
        .collect(),
    }
}

fn upper_dirs(options: &Options) -> Result<Option<UpperDirs>, MountFailed> {
    if options.owner_only && !rustix::process::geteuid().is_root() {
        return Err(MountFailed {
            what: "allow_root: the owner of the mount is not root".into(),
            errno: 0,
        });
    }
    match (&options.upper, &options.work) {
        (Some(upper), Some(work)) if !options.flags.ro => {
            let upper = open_directory("upperdir", upper)?;
            let work = open_directory("workdir", work)?;
            let locks = lock(&upper, &work)?;
            Ok(Some(UpperDirs {
                upper,
                work,
                locks: Some(locks),
            }))
        }
        _ => Ok(None),
    }
}

/// Locks an upper and its work directory for this process and all workers.
fn lock(upper: &OwnedFd, work: &OwnedFd) -> Result<Locks, MountFailed> {
    let free = wait_for_predecessor(upper, work).or_fail("looking whether the upper is in use")?;
    let locks = if free {
        Locks::take(upper.as_fd(), work.as_fd())
    } else {
        Err(UpperError::InUse)
    };
    locks.map_err(|error| MountFailed {
        what: error.to_string(),
        errno: 0,
    })
}

/// Waits until no other mount has the upper and its work directory: umount(2) returns before the
/// processes that served have ended, and callers mount again at once. False after [`GRACE`].
fn wait_for_predecessor(upper: &OwnedFd, work: &OwnedFd) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut held = Vec::new();
    for (dir, name) in [(work, "lock"), (upper, ".")] {
        match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            Ok(file) => match flock(&file, FlockOperation::NonBlockingLockShared) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => held.push(file),
                Err(errno) => return Err(errno.into()),
            },
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    if held.is_empty() {
        return Ok(true);
    }
    let (done, ended) = std::sync::mpsc::channel();
    let waiting = std::thread::Builder::new().spawn(move || {
        let waited = held
            .iter()
            .try_for_each(|file| retry_on_intr(|| flock(file, FlockOperation::LockShared)));
        drop(held);
        // Nobody listens once the time is over.
        done.send(waited).unwrap_or(());
    })?;
    match ended.recv_timeout(GRACE) {
        Ok(waited) => {
            waiting
                .join()
                .map_err(|_panic| io::Error::other("a thread panicked"))?;
            waited?;
            Ok(true)
        }
        // The thread goes with this process.
        Err(_still_held) => Ok(false),
    }
}

fn open_directory(what: &str, path: &Path) -> Result<OwnedFd, MountFailed> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .or_fail(format!("cannot open {what} {}", path.display()))
}

fn layers(options: &Options) -> Result<Layers, MountFailed> {
    let mut roots = Vec::with_capacity(options.lower.len() + 1);
    // With `ro` the upper is one more layer.
    let top = options.upper.as_ref().filter(|_| options.flags.ro);
    for path in top.into_iter().chain(&options.lower) {
        let plain = open_directory("lowerdir", path)?;
        roots.push(match read_only_clone(plain.as_fd()) {
            Ok(clone) => clone,
            Err(error) => {
                tracing::debug!(%error, "no read-only view of a lower directory");
                plain
            }
        });
    }
    let privileged = capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
        && cowl_sys::userns::is_initial().map_err(|error| failure("starting up", &error))?;
    Ok(Layers {
        roots,
        space: if privileged && !options.user_marks {
            Namespace::Trusted
        } else {
            Namespace::User
        },
        static_nlink: options.static_nlink,
    })
}
