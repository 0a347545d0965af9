//! Mounts of images. The engine opens the tree, objects, upper and work directories, takes the
//! lease and passes all of them to the mount's keeper.
//!
//! Used for containers' roots and by `cowl mount`.

use super::error::{Context, Error, Result};
use super::image::Image;
use super::mountpoint::{self, MountPoint};
use super::signals::Signals;
use super::{Engine, helpers, names};
use cowl_core::digest::DiffId;
use cowl_core::handover::{self, IdMap, IoModeChoice, MountSources, UpperSource};
use cowl_core::store::{Lease, Store, remove_tree};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

/// The parameters of [`mount`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    /// Name of its lease.
    pub id: &'a str,
    /// Source in the mount table.
    pub name: &'a str,
    /// What messages call the mount.
    pub title: &'a str,
    /// Layers, bottom first.
    pub layers: &'a [DiffId],
    /// How files are read and written.
    pub io_mode: IoModeChoice,
    /// How owners are shown.
    pub ids: &'a IdMap,
    /// Where changes go; `None` mounts read-only.
    pub upper: Option<UpperSource<'a>>,
    /// Where its worker can be asked to hold changes back.
    pub control: Option<BorrowedFd<'a>>,
}

/// A detached mount.
#[derive(Debug)]
pub(super) struct Mounted {
    /// Its root; closing the last descriptor ends the mount.
    pub(super) root: OwnedFd,
    /// Its keeper.
    pub(super) keeper: Keeper,
}

/// The process that holds a mount's FUSE connection and lease.
#[derive(Debug)]
pub(super) struct Keeper {
    process: Child,
    lease: String,
}

/// How a mount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// It was unmounted.
    Unmounted,
    /// Its worker died first.
    CutOff,
}

/// Creates a detached mount under a lease of its image. On return its keeper holds everything it
/// needs.
pub(super) fn mount(store: &Store, request: &Request<'_>, lease: Lease) -> Result<Mounted> {
    let program = helpers::find("cowl-mountd")?;
    let merged = store.merged(request.layers)?;
    let objects = store.objects_dir()?;
    let log = store.log()?;
    let sources = MountSources {
        name: request.name,
        chain: *merged.chain.0.as_bytes(),
        io_mode: request.io_mode,
        ids: request.ids,
        tree: merged.file.as_fd(),
        objects: objects.as_fd(),
        lease: lease.as_fd(),
        upper: request.upper,
        control: request.control,
        log: Some(log.as_fd()),
    };
    let mounted =
        handover::mount(&program, &sources).context(|| format!("mounting {}", request.title))?;
    // The keeper's copy of the descriptor keeps the lease.
    drop(lease.into_fd());
    let keeper = Keeper {
        process: mounted.keeper,
        lease: request.id.to_owned(),
    };
    Ok(Mounted {
        root: mounted.mount,
        keeper,
    })
}

impl Mounted {
    /// Drops the mount and waits for its keeper to release everything.
    pub(super) fn discard(self, store: &Store) -> Result<()> {
        let Self { root, keeper } = self;
        drop(root);
        keeper.wait(store).map(drop)
    }
}

impl Keeper {
    /// Waits until the keeper has ended (true) or an interrupt arrives (false). The mount lives as
    /// long as any process uses it.
    pub(super) fn ends_before_a_signal(&self, signals: &Signals) -> Result<bool> {
        let keeper = pidfd_open(Pid::from_child(&self.process), PidfdFlags::empty())
            .context(|| "watching the mount's keeper")?;
        loop {
            let mut waiting = [
                PollFd::from_borrowed_fd(signals.interrupt(), PollFlags::IN),
                PollFd::new(&keeper, PollFlags::IN),
            ];
            match poll(&mut waiting, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => {
                    return Err(Error::from(errno).context("waiting for the mount's keeper"));
                }
            }
            let [_, keeper] = waiting;
            if !keeper.revents().is_empty() {
                return Ok(true);
            }
            if signals.take_interrupt()?.is_some() {
                return Ok(false);
            }
        }
    }

    /// Its process.
    pub(super) fn into_child(self) -> Child {
        self.process
    }

    /// Waits until the mount is gone and its keeper has released everything.
    pub(super) fn wait(mut self, store: &Store) -> Result<Ending> {
        let status = self
            .process
            .wait()
            .context(|| "waiting for the mount's keeper")?;
        store.wait_lease_end(&self.lease)?;
        // A killed keeper reports nothing; its worker went on.
        Ok(match status.code() {
            Some(0) | None => Ending::Unmounted,
            Some(_) => Ending::CutOff,
        })
    }
}

/// The arguments of `cowl mount`.
#[derive(Debug, Clone, Copy)]
pub struct MountRequest<'a> {
    /// Image, as the user named it.
    pub image: &'a str,
    /// Mount point: an existing directory.
    pub dir: &'a Path,
    /// Upper directory, created if missing. `None` mounts read-only.
    pub upper: Option<&'a Path>,
    /// Work directory; `<upper>.work` by default.
    pub work: Option<&'a Path>,
    /// How files are read and written.
    pub io_mode: IoModeChoice,
    /// How owners are shown.
    pub ids: &'a IdMap,
}

/// How long other processes may keep a mount busy after `umount`: a starting container may hold a
/// copy for a moment.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many times longer keeper and worker may take to end, on a busy host or a slow disk.
const ROUNDS: usize = 6;
/// Digits of a mount's id, which is unique among the leases of a store.
const MOUNT_ID: usize = 12;
/// Separates the image's name and the mount's id in the mount's source. Neither can contain it,
/// and the mount table does not escape it.
pub(super) const SEPARATOR: char = '+';

/// Directories created for a mount, to be removed if it fails.
#[derive(Debug, Default)]
struct NewDirs(Vec<PathBuf>);

impl NewDirs {
    fn open(&mut self, path: &Path, mode: u32) -> Result<OwnedFd> {
        let (fd, made) = mountpoint::open_or_make(path, mode)?;
        if made {
            self.0.push(path.to_owned());
        }
        Ok(fd)
    }

    /// Opens upper and work directory. Neither may contain the other, or temporary files would be
    /// visible. Neither may be in the store or contain it: a mount never writes to the store.
    fn open_upper(
        &mut self,
        upper: &Path,
        work: Option<&Path>,
        store: &Path,
    ) -> Result<(OwnedFd, OwnedFd)> {
        let upper = self.open(&mountpoint::absolute(upper)?, 0o755)?;
        // From the canonical path: for "upper/" the default would be inside it.
        let place = mountpoint::canonical(&upper)?;
        let beside = || {
            let mut name = place.clone().into_os_string();
            name.push(".work");
            Ok(PathBuf::from(name))
        };
        let work = self.open(&work.map_or_else(beside, mountpoint::absolute)?, 0o700)?;
        let work_place = mountpoint::canonical(&work)?;
        if work_place.starts_with(&place) || place.starts_with(&work_place) {
            return Err(Error::invalid(format!(
                "upper {}: the work directory {} must not contain it or lie inside it; omit --work or use a directory beside the upper",
                place.display(),
                work_place.display()
            )));
        }
        for place in [place, work_place] {
            if place.starts_with(store) || store.starts_with(&place) {
                return Err(Error::invalid(format!(
                    "upper {}: it and its work directory must lie outside the store {}",
                    place.display(),
                    store.display()
                )));
            }
        }
        Ok((upper, work))
    }

    fn discard(self) -> Result<()> {
        for path in self.0.into_iter().rev() {
            let (parent, name) = (
                path.parent().unwrap_or(Path::new("/")),
                path.file_name().unwrap_or_default(),
            );
            remove_tree(super::files::open_dir(parent)?, name)?;
        }
        Ok(())
    }
}

impl Engine {
    /// Mounts an image on a directory. The mount outlives this process and ends with
    /// [`Engine::umount`].
    pub fn mount(&self, request: &MountRequest<'_>) -> Result<()> {
        super::host::require_mounts("mount")?;
        let point = MountPoint::open(request.dir)?;
        point.require_free()?;
        self.require_mountable(&point)?;
        let id: String = names::new_id()?.chars().take(MOUNT_ID).collect();
        let (image, lease) = {
            // Under the guard, no removal of the image looks for mounts before the lease exists.
            let _guard = self.containers.guard()?;
            let image = self.image(request.image)?;
            let lease = self.store.lease(&id, Some(image.id), &image.layers)?;
            (image, lease)
        };
        let mut new = NewDirs::default();
        let mounted = self.mount_on(&point, &image, (&id, lease), request, &mut new);
        if let Err(error) = mounted {
            return match new.discard() {
                Ok(()) => Err(error),
                Err(second) => Err(error.context(format!("{second}; before that"))),
            };
        }
        Ok(())
    }

    /// Refuses `/`, where no path could reach the mount, and the store, which the mount would hide
    /// from every command, `umount` included.
    fn require_mountable(&self, point: &MountPoint) -> Result<()> {
        let place = point.canonical()?;
        let shown = place.display();
        if place == Path::new("/") {
            return Err(Error::invalid(format!(
                "mount point {shown}: the root directory cannot be a mount point; use another directory"
            )));
        }
        let store = self.store.root();
        if place.starts_with(store) || store.starts_with(&place) {
            return Err(Error::invalid(format!(
                "mount point {shown}: it would hide the store {}; use another directory",
                store.display()
            )));
        }
        Ok(())
    }

    fn mount_on(
        &self,
        point: &MountPoint,
        image: &Image,
        (id, lease): (&str, Lease),
        request: &MountRequest<'_>,
        new: &mut NewDirs,
    ) -> Result<()> {
        let upper_path = request.upper;
        let upper = upper_path
            .map(|path| new.open_upper(path, request.work, self.store.root()))
            .transpose()?;
        let name = format!("{}{SEPARATOR}{id}", image.name);
        let request = Request {
            id,
            name: &name,
            title: &image.name,
            layers: &image.layers,
            io_mode: request.io_mode,
            ids: request.ids,
            upper: upper.as_ref().map(|(upper, work)| UpperSource {
                upper: upper.as_fd(),
                work: work.as_fd(),
                volatile: false,
            }),
            control: None,
        };
        let mounted = match (mount(&self.store, &request, lease), upper_path) {
            (Ok(mounted), _) => mounted,
            (Err(error), None) => return Err(error),
            (Err(error), Some(path)) => {
                return Err(error.context(format!("upper {}", path.display())));
            }
        };
        match point.attach(&mounted.root) {
            Ok(()) => Ok(()),
            Err(error) => {
                mounted.discard(&self.store)?;
                Err(error)
            }
        }
    }

    /// Unmounts. On return the keeper has released everything: the upper can be mounted again,
    /// moved or removed.
    pub fn umount(&self, dir: &Path) -> Result<()> {
        let source = mountpoint::detach(dir)?;
        let Some((_, id)) = source.rsplit_once(SEPARATOR) else {
            return Ok(());
        };
        let mut holder = "it is still in use".to_owned();
        for _ in 0..ROUNDS {
            if self.store.lease_ends_within(id, PATIENCE)? {
                return Ok(());
            }
            // Another mount namespace with a copy of the mount may last for ever.
            if let Some(process) = mountpoint::holder(&source)? {
                holder = format!("process {process} still has it in another mount namespace");
                break;
            }
        }
        Err(Error::conflict(format!(
            "umount {}: unmounted here, but {holder}; the image and upper stay in use until that ends",
            dir.display()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, raise};

    #[test]
    fn wait_for_a_keeper_ends_with_a_signal() {
        let signals = Signals::block().unwrap();
        let process = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let mut keeper = Keeper {
            process,
            lease: String::new(),
        };
        raise(Signal::SIGUSR1).unwrap();
        raise(Signal::SIGTERM).unwrap();
        assert!(!keeper.ends_before_a_signal(&signals).unwrap());
        keeper.process.kill().unwrap();
        assert!(keeper.ends_before_a_signal(&signals).unwrap());
        keeper.process.wait().unwrap();
    }
}
