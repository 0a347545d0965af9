//! The mounts of a container that does not run, for `cp`: in a mount namespace of their own in which
//! no process is. They go with its last descriptor.
//!
//! A thread makes the namespace and ends there. It has the container's root as its own before it
//! looks up a path of the container. Caller: the engine.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{fchdir, pivot_root};

use crate::mounts::attach;
use crate::path::{InRoot, Kind, kind_of};
use crate::sandbox::{Mount, MountSource, Propagation};
use crate::setup::opened_mount;

/// A mount that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("mounting at {0}")]
pub struct NotMounted(String, #[source] Errno);

/// A mount that only has to be attached.
struct Ready {
    name: String,
    destination: InRoot,
    kind: Kind,
    mount: OwnedFd,
}

/// Attaches mounts, parents first, below the root of a detached mount, and that in a new mount
/// namespace. `descriptors` are those of the mounts; one without, such as a new file system, is left
/// out. Paths below `root` lead through the mounts as long as the result is open.
///
/// # Errors
/// One that could not be made: none is then.
pub fn attach_all(
    root: BorrowedFd<'_>,
    mounts: &[Mount],
    descriptors: Vec<OwnedFd>,
) -> Result<OwnedFd, NotMounted> {
    let mut descriptors = descriptors.into_iter();
    let mut ready = Vec::new();
    for mount in mounts {
        let opened = matches!(
            mount.source,
            MountSource::Descriptor { .. } | MountSource::Detached
        );
        if let Some(descriptor) = opened.then(|| descriptors.next()).flatten() {
            ready.push(prepare(mount, descriptor)?);
        }
    }
    let attached = std::thread::scope(|scope| scope.spawn(|| enter(root, &ready)).join());
    // The thread does not panic.
    attached.unwrap_or_else(|_panic| Err(NotMounted("/".to_owned(), Errno::CANCELED)))
}

/// Copies the mount of a descriptor while it is in this thread's namespace.
fn prepare(mount: &Mount, descriptor: OwnedFd) -> Result<Ready, NotMounted> {
    let name = String::from_utf8_lossy(&mount.destination).into_owned();
    let failed = |errno| NotMounted(name.clone(), errno);
    let destination = InRoot::new(&mount.destination).filter(|path| !path.is_root());
    // Nothing is passed on, and no device is opened.
    let private = match &mount.source {
        MountSource::Descriptor { submounts, .. } => Mount {
            source: MountSource::Descriptor {
                submounts: *submounts,
                propagation: Propagation::Private,
            },
            ..mount.clone()
        },
        _ => mount.clone(),
    };
    Ok(Ready {
        destination: destination.ok_or_else(|| failed(Errno::INVAL))?,
        kind: kind_of(descriptor.as_fd()).map_err(failed)?,
        mount: opened_mount(&private, descriptor, true).map_err(failed)?,
        name,
    })
}

fn enter(root: BorrowedFd<'_>, ready: &[Ready]) -> Result<OwnedFd, NotMounted> {
    let namespace = own_namespace(root).map_err(|errno| NotMounted("/".to_owned(), errno))?;
    for Ready {
        name,
        destination,
        kind,
        mount,
    } in ready
    {
        destination
            .open_or_create(root, *kind)
            .and_then(|target| attach(mount.as_fd(), target.as_fd()))
            .map_err(|errno| NotMounted(name.clone(), errno))?;
    }
    Ok(namespace)
}

/// Moves this thread to a new mount namespace that has nothing but the mount `root`.
fn own_namespace(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    crate::sys::clone::unshare_mounts()?;
    let flags = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change(c"/", flags)?;
    let open = |path, flags| openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty());
    let namespace = open(c"/proc/thread-self/ns/mnt", OFlags::RDONLY)?;
    attach(root, open(c"/", OFlags::PATH)?.as_fd())?;
    fchdir(root)?;
    // As the launcher does: the host's mounts are not kept in use.
    pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    Ok(namespace)
}
