//! Makes the mount of a command line and serves it, in this process.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use cowl_core::handover::MountFailed;
use cowl_core::upper::marks::Namespace;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock};
use rustix::io::{Errno, retry_on_intr};
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};
use rustix::thread::{CapabilitySet, capabilities};

use super::{MountFlags, Mounting, Options, take_stdin};
use crate::counters::{self, Counters};
use crate::failure::{OrFail, failure};
use crate::fuse::{Connection, Dispatcher, End, Owners, Server, Wanted};
use crate::mount::{MountParameters, make_mount, open_device, read_only_clone};
use crate::overlay::{Config, Layers, LowerParts, Overlay, Rules, UpperDirs};
use crate::{process, worker};

/// How long a mount waits for the process of one that was unmounted to end: on a busy host that
/// takes seconds.
const GRACE: Duration = Duration::from_secs(10);

/// Serves until the mount is gone; says over standard input, a pipe, when it answers, and
/// by which device.
pub(super) fn run(mounting: Mounting) -> Result<(), MountFailed> {
    // In a session of its own, so that Ctrl-C reaches the process in the foreground alone.
    process::begin_serving().or_fail("starting up")?;
    let pipe = take_stdin().or_fail("starting up")?;
    // Once it serves, this process has no /dev.
    let null = File::options()
        .write(true)
        .open("/dev/null")
        .or_fail("starting up")?;
    let foreground = mounting.foreground;
    serve(mounting, move |device| {
        if !foreground {
            // Callers wait until their pipes are closed.
            rustix::stdio::dup2_stdout(&null)?;
            rustix::stdio::dup2_stderr(&null)?;
        }
        File::from(pipe).write_all(&device.to_ne_bytes())
    })
}

fn serve(mounting: Mounting, ready: impl FnOnce(u64) -> io::Result<()>) -> Result<(), MountFailed> {
    start_log(mounting.debug);
    let Mounting { options, at, .. } = mounting;
    let upper = upper_dirs(&options)?;
    if let Some(dirs) = &upper {
        wait_for_predecessor(dirs).or_fail("looking at who has the upper")?;
    }
    let io_mode = options.io_mode.mode();
    let device = open_device()?;
    let mount = make_mount(&parameters(&options, upper.is_some()), device.as_fd())?;
    let device_number = counters::device_of(&mount).or_fail("cannot tell the mount's device")?;
    let counters = counters::create(device_number)
        .and_then(|memory| Counters::map(memory.as_fd()).map(|counters| (memory, counters)));
    let (_memory, counters) = counters.or_fail("cannot make the request counters")?;
    let mut owners = Owners(options.ids.clone());
    let read = owners.0.read_overflow_ids();
    read.or_fail("cannot read the system's overflow ids")?;
    let wanted = Wanted {
        io_mode,
        writable: upper.is_some(),
        acls: !options.no_acl,
    };
    let connection =
        Connection::negotiate(device, wanted).or_fail("negotiating with the kernel")?;
    let layers = layers(&options)?;
    let space = layers.space;
    let overlay = Overlay::new(Config {
        lower: LowerParts::Layers(layers),
        upper,
        io_mode,
        rules: Rules {
            volatile: options.volatile,
            redirect_dir: options.redirect_dir,
            metacopy: options.metacopy,
            user_marks: options.user_marks,
            no_acl: options.no_acl,
            squashed: options.ids.squashes(),
        },
        journal: None,
    })
    .map_err(|error| MountFailed {
        what: error.to_string(),
        errno: 0,
    })?;
    let by_descriptor = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&mount, "", CWD, &at, by_descriptor)
        .or_fail(format!("cannot mount at {}", at.display()))?;
    // From here on it ends when it is unmounted there.
    drop(mount);
    let mut needed = worker::needed(overlay.is_writable(), io_mode);
    if space == Namespace::Trusted {
        // Else the marks of the layers would be invisible (xattr(7)).
        needed |= CapabilitySet::SYS_ADMIN;
    }
    if let Err(error) = process::confine(needed, needed) {
        if let Err(left) = unmount(&at, UnmountFlags::DETACH) {
            tracing::error!(%left, "cannot unmount again");
        }
        return Err(error);
    }
    let dispatcher =
        Dispatcher::new(&overlay, &connection, &owners).or_fail("cannot tell our capabilities")?;
    let server = Server::new(&connection, dispatcher, &counters, None);
    match server
        .run(|| ready(device_number))
        .or_fail("serving the mount")?
    {
        End::Unmounted => Ok(()),
        End::Aborted => Err(MountFailed {
            what: "the connection was cut".into(),
            errno: 0,
        }),
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
        (Some(upper), Some(work)) if !options.flags.ro => Ok(Some(UpperDirs {
            upper: open_directory("upperdir", upper)?,
            work: open_directory("workdir", work)?,
        })),
        _ => Ok(None),
    }
}

/// Waits until no other mount has the upper and its work directory, or for [`GRACE`]: umount(2)
/// returns before the process that served has ended, and callers mount again at once.
fn wait_for_predecessor(dirs: &UpperDirs) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut held = Vec::new();
    for (dir, name) in [(&dirs.work, "lock"), (&dirs.upper, ".")] {
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
        return Ok(());
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
            Ok(waited?)
        }
        // To lock it says who has it; the thread goes with this process.
        Err(_still_held) => Ok(()),
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
