//! A merged tree of the store, mounted: the engine opens what the mount is made of and takes the lease, a keeper of its own gets the descriptors.
//!
//! Called by `run` for a container's root and by `cowl mount`.

use super::error::{Context, Error, Result};
use super::image::Image;
use super::mountpoint::{self, MountPoint};
use super::signals::Signals;
use super::{Engine, helpers, names};
use cowl_core::digest::{DiffId, ImageId};
use cowl_core::handover::{self, MountSources, ProfileChoice, UpperSource};
use cowl_core::store::{Store, remove_tree};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

/// What is to be mounted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    /// Names the lease: letters and digits.
    pub id: &'a str,
    /// What the mount is called in the mount table.
    pub name: &'a str,
    /// What it is called in messages.
    pub title: &'a str,
    /// For people who read the lease.
    pub image: ImageId,
    /// Bottom first.
    pub layers: &'a [DiffId],
    /// Upper and work directory; without them the mount is read-only.
    pub upper: Option<(BorrowedFd<'a>, BorrowedFd<'a>)>,
}

/// A mount that this process asked for, attached nowhere.
#[derive(Debug)]
pub(super) struct Mounted {
    /// Its root; closing the last descriptor of it ends the mount.
    pub(super) root: OwnedFd,
    /// The process that serves it.
    pub(super) keeper: Keeper,
}

/// The process that holds a mount's connection and lease.
#[derive(Debug)]
pub(super) struct Keeper {
    process: Child,
    lease: String,
}

/// How a mount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Nobody needed it any more.
    Unmounted,
    /// The process that served it died before.
    CutOff,
}

/// Mounts, attached nowhere. From the return on, everything the mount needs is in the keeper's hands.
pub(super) fn mount(store: &Store, request: &Request<'_>) -> Result<Mounted> {
    let program = helpers::find("cowl-mountd")?;
    let lease = store.lease(request.id, Some(request.image), request.layers)?;
    let merged = store.merged(request.layers)?;
    let objects = store.objects_dir()?;
    let log = store.log()?;
    let sources = MountSources {
        name: request.name,
        chain: *merged.chain.0.as_bytes(),
        profile: ProfileChoice::Best,
        tree: merged.file.as_fd(),
        objects: objects.as_fd(),
        lease: lease.as_fd(),
        upper: request
            .upper
            .map(|(upper, work)| UpperSource { upper, work }),
        log: Some(log.as_fd()),
    };
    let mounted =
        handover::mount(&program, &sources).context(|| format!("mounting {}", request.title))?;
    // The keeper holds it now; its file stays until the last copy of the lock is gone.
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
    /// Gives the mount up, and waits until its keeper has let go of everything.
    pub(super) fn discard(self, store: &Store) -> Result<()> {
        let Self { root, keeper } = self;
        drop(root);
        keeper.wait(store).map(drop)
    }
}

impl Keeper {
    /// Waits until the keeper has ended (true), or until a signal says that nobody wants to wait for it: whatever holds the mount, it stays
    /// as long.
    pub(super) fn ends_before_a_signal(&self, signals: &Signals) -> Result<bool> {
        let keeper = pidfd_open(Pid::from_child(&self.process), PidfdFlags::empty())
            .context(|| "watching the mount's keeper")?;
        loop {
            let mut waiting = [
                PollFd::new(signals, PollFlags::IN),
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
            if signals.interrupted()?.is_some() {
                return Ok(false);
            }
        }
    }

    /// Waits until the mount is gone and its keeper has let go of everything.
    pub(super) fn wait(mut self, store: &Store) -> Result<Ending> {
        let status = self
            .process
            .wait()
            .context(|| "waiting for the mount's keeper")?;
        store.wait_lease_end(&self.lease)?;
        // A keeper that was killed has nothing to say; its worker went on without it.
        Ok(match status.code() {
            Some(0) | None => Ending::Unmounted,
            Some(_) => Ending::CutOff,
        })
    }
}

/// What `cowl mount` is asked for.
#[derive(Debug, Clone, Copy)]
pub struct MountRequest<'a> {
    /// As the user names it.
    pub image: &'a str,
    /// Where: a directory that exists.
    pub dir: &'a Path,
    /// Where changes go; made if it isn't there. None mounts read-only.
    pub upper: Option<&'a Path>,
    /// Its workshop; `<upper>.work` if not given.
    pub work: Option<&'a Path>,
}

/// How long a mount's processes may take to end once it is gone. A container that is just being started may hold it for a moment.
const PATIENCE: Duration = Duration::from_secs(10);
/// Digits of a mount's id: unique among the leases of a store.
const MOUNT_ID: usize = 12;
/// Between the image's name and the mount's id; in neither of them, and not escaped in the mount table.
const MARK: char = '+';

/// Directories that didn't exist before, removed again unless they are kept.
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

    /// The upper and its workshop, neither within the other: what is under way would show in the mount.
    fn open_upper(&mut self, upper: &Path, work: Option<&Path>) -> Result<(OwnedFd, OwnedFd)> {
        let upper = self.open(&mountpoint::absolute(upper)?, 0o755)?;
        // By where the upper is, not by what it was called: with a slash at its end, "<upper>.work" would lie within.
        let place = mountpoint::place(&upper)?;
        let beside = || {
            let mut name = place.clone().into_os_string();
            name.push(".work");
            Ok(PathBuf::from(name))
        };
        let work = self.open(&work.map_or_else(beside, mountpoint::absolute)?, 0o700)?;
        let workplace = mountpoint::place(&work)?;
        if workplace.starts_with(&place) || place.starts_with(&workplace) {
            return Err(Error::invalid(format!(
                "upper {}: its work directory {} may neither be in it nor hold it; leave out --work, or name a directory beside the upper",
                place.display(),
                workplace.display()
            )));
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
    /// Mounts an image on a directory. The mount lives until [`Engine::umount`], whatever becomes of this process.
    pub fn mount(&self, request: &MountRequest<'_>) -> Result<()> {
        super::host::require_mounts("mount")?;
        let point = MountPoint::open(request.dir)?;
        point.require_free()?;
        let image = self.image(request.image)?;
        let mut new = NewDirs::default();
        let mounted = self.mount_on(&point, &image, request, &mut new);
        if let Err(error) = mounted {
            return match new.discard() {
                Ok(()) => Err(error),
                Err(second) => Err(error.context(format!("{second}; before that"))),
            };
        }
        Ok(())
    }

    fn mount_on(
        &self,
        point: &MountPoint,
        image: &Image,
        request: &MountRequest<'_>,
        new: &mut NewDirs,
    ) -> Result<()> {
        let upper_path = request.upper;
        let upper = upper_path
            .map(|path| new.open_upper(path, request.work))
            .transpose()?;
        let id: String = names::new_id()?.chars().take(MOUNT_ID).collect();
        let name = format!("{}{MARK}{id}", image.name);
        let request = Request {
            id: &id,
            name: &name,
            title: &image.name,
            image: image.id,
            layers: &image.layers,
            upper: upper
                .as_ref()
                .map(|(upper, work)| (upper.as_fd(), work.as_fd())),
        };
        let mounted = match (mount(&self.store, &request), upper_path) {
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

    /// Takes a mount away. When it returns, the keeper has let go of everything: the upper may be mounted again, moved or removed.
    pub fn umount(&self, dir: &Path) -> Result<()> {
        let source = mountpoint::detach(dir)?;
        let Some((_, id)) = source.rsplit_once(MARK) else {
            return Ok(());
        };
        if self.store.lease_ends_within(id, PATIENCE)? {
            return Ok(());
        }
        // A mount namespace that was made meanwhile has a copy of the mount, and may last for ever.
        let holder = match mountpoint::holder(&source)? {
            Some(process) => format!("process {process} has it in a mount namespace of its own"),
            None => "it is still in use somewhere".to_owned(),
        };
        Err(Error::conflict(format!(
            "umount {}: it is gone here, but {holder}; what it was made of stays in use until that ends",
            dir.display()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, raise};

    #[test]
    fn a_signal_ends_the_wait_for_a_mount_that_somebody_holds() {
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
