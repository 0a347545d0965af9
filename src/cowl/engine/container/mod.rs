//! The containers of a store, as directories.
//!
//! ```text
//! containers/             locked while a name is given out or a container disappears
//! containers/<id>/        64 hex digits; locked by the engine that makes it and, without a gap, by the monitor
//!   config.json           what the container is (config); without it the directory is not a container yet
//!   lock, running.json, exit.json   the monitor's (cowl_launch::status)
//!   upper/ work/          the container's own files; work/lock and upper/ are locked while they are mounted, work/ until the container runs
//! containers/.gone-alone-<id>/   no longer a container, removed by whoever comes next if its remover was killed; locked by its remover
//! containers/.gone-with-volumes-<id>/   likewise, and its anonymous volumes go with it
//! ```
//!
//! The locks are flocks; those of directories are on the directories themselves.
//!
//! Invariant: a directory with a `config.json` is a container with a name of its own; what it does is asked of [`state`], never remembered.

pub mod config;
pub mod state;
#[cfg(test)]
mod tests;

use super::Listing;
use super::error::{Context, Error, Result};
use super::files;
use super::{CGROUP_PARENT, names};
use config::Config;
use cowl_core::store::remove_tree;
use cowl_launch::cgroup::remove_leftovers;
use cowl_launch::identity::Identity;
use cowl_launch::status;
use rustix::event::{Timespec, poll};
use rustix::fs::{AtFlags, Mode, statat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use state::{Exit, Facts, Monitored, Status};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Held by the engine and then by the monitor: the directory's own lock. Handed over, never let go in between.
const ALIVE: &str = ".";
const UPPER: &str = "upper";
const WORK: &str = "work";
/// Held by the engine until the container runs: the work directory's own lock. (The upper's is its mount's.)
const STARTING: &str = WORK;
/// In `work/`, held by the worker of the mount.
const MOUNTED: &str = "lock";
const CONFIG: &str = "config.json";
const GONE: &str = ".gone-alone-";
const GONE_WITH_VOLUMES: &str = ".gone-with-volumes-";

/// How long the end of a mount that nothing holds takes at most, and how often it is looked for: a lock can't be waited for with a limit.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// The directory `containers/`.
#[derive(Debug)]
pub struct Containers {
    dir: OwnedFd,
    path: PathBuf,
}

/// Nobody else gives out a name or removes a container or a volume while this lives.
#[derive(Debug)]
pub struct Guard(#[expect(dead_code, reason = "held for its lock")] OwnedFd);

/// One container.
#[derive(Debug)]
pub struct Container {
    dir: OwnedFd,
    /// What it is.
    pub config: Config,
}

/// A container that is being created or started. Its locks keep others from taking it for abandoned.
#[derive(Debug)]
pub struct PendingContainer {
    /// The container.
    pub container: Container,
    alive: OwnedFd,
    starting: OwnedFd,
}

impl PendingContainer {
    /// The monitor's status directory: the container's, locked. A process that has this descriptor keeps the lock.
    pub fn status_dir(&self) -> BorrowedFd<'_> {
        self.alive.as_fd()
    }

    /// Gives up the locks. From now on the monitor's say what the container is doing.
    pub fn release(self) -> Container {
        drop((self.alive, self.starting));
        self.container
    }
}

impl Containers {
    /// Opens (and makes, if need be) `containers/` of a store.
    pub fn open(root: &Path) -> Result<Self> {
        let store =
            files::open_dir(root).context(|| format!("opening the store {}", root.display()))?;
        Ok(Self {
            dir: files::ensure_dir_at(&store, "containers", 0o700)?,
            path: root.join("containers"),
        })
    }

    /// Waits for the right to change what containers there are.
    pub fn guard(&self) -> Result<Guard> {
        files::lock_dir(&self.dir)
            .map(Guard)
            .context(|| format!("locking {}", self.path.display()))
    }

    /// All containers, newest first.
    pub fn list(&self) -> Result<Listing<Container>> {
        let mut containers = Vec::new();
        let mut skipped = Vec::new();
        for name in self.entries()?.iter().filter(|name| is_id(name)) {
            match self.read(name) {
                Ok(container) => containers.extend(container),
                Err(error) => skipped.push(error),
            }
        }
        containers.sort_by(|a, b| {
            b.config
                .created
                .cmp(&a.config.created)
                .then_with(|| a.config.id.cmp(&b.config.id))
        });
        Ok(Listing {
            items: containers,
            skipped,
        })
    }

    /// The container that `needle` means: a whole id, a name, or the beginning of one id only.
    pub fn find(&self, needle: &str) -> Result<Container> {
        let missing = || Error::not_found(format!("No such container: {needle}"));
        let name = needle.strip_prefix('/').unwrap_or(needle);
        let mut by_prefix = Vec::new();
        for container in self.list()?.items {
            if container.config.id == needle || container.config.name == name {
                return Ok(container);
            }
            if !needle.is_empty() && container.config.id.starts_with(needle) {
                by_prefix.push(container);
            }
        }
        match (by_prefix.pop(), by_prefix.is_empty()) {
            (Some(container), true) => Ok(container),
            (Some(_), false) => Err(Error::invalid(format!(
                "multiple IDs found with provided prefix: {needle}"
            ))),
            (None, _) => match self.find_damaged(needle)? {
                Some((_, error)) => Err(error),
                None => Err(missing()),
            },
        }
    }

    /// A container whose `config.json` cannot be read, by its id or the beginning of it, and why. Good for removing it only.
    pub fn find_damaged(&self, needle: &str) -> Result<Option<(Container, Error)>> {
        let mut found = None;
        for id in self.entries()?.iter().filter(|id| is_id(id)) {
            if !needle.is_empty()
                && id.starts_with(needle)
                && let Err(error) = self.read(id)
            {
                if found.is_some() {
                    return Err(Error::invalid(format!(
                        "multiple IDs found with provided prefix: {needle}"
                    )));
                }
                let dir = files::open_dir_at(&self.dir, id)
                    .context(|| format!("opening containers/{id}"))?;
                let config = Config::unknown(id);
                found = Some((Container { dir, config }, error));
            }
        }
        Ok(found)
    }

    /// Makes a container's directory. Its name must be free: ask under the same guard.
    pub fn create(&self, _guard: &Guard, config: Config) -> Result<PendingContainer> {
        let id = config.id.clone();
        let what = || format!("making {}", self.path.join(&id).display());
        rustix::fs::mkdirat(&self.dir, &id, Mode::RWXU).context(what)?;
        let made = self.fill(config);
        if made.is_err() {
            remove_tree(&self.dir, &id).context(|| format!("removing containers/{id}"))?;
        }
        made.context(what)
    }

    fn fill(&self, config: Config) -> Result<PendingContainer> {
        let dir = files::open_dir_at(&self.dir, &config.id)?;
        let alive = files::lock_dir(&dir)?;
        files::ensure_dir_at(&dir, UPPER, 0o755)?;
        let starting = files::lock_dir(files::ensure_dir_at(&dir, WORK, 0o700)?)?;
        files::write_json(&dir, CONFIG, &config)?;
        rustix::fs::fsync(&self.dir)?;
        Ok(PendingContainer {
            container: Container { dir, config },
            alive,
            starting,
        })
    }

    /// Whether there is a container of this id, or one in the making.
    pub fn has(&self, _guard: &Guard, id: &str) -> Result<bool> {
        match statat(&self.dir, id, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(Error::from(errno).context(format!("looking at containers/{id}"))),
        }
    }

    /// Removes directories that never became containers, since their maker was killed.
    pub fn remove_unfinished(&self, _guard: &Guard) -> Result<()> {
        for name in self.entries()?.iter().filter(|name| is_id(name)) {
            // Whoever makes one holds the guard, so nobody does.
            match statat(
                &self.dir,
                format!("{name}/{CONFIG}"),
                AtFlags::SYMLINK_NOFOLLOW,
            ) {
                Ok(_) => {}
                Err(Errno::NOENT) => {
                    remove_tree(&self.dir, name)
                        .context(|| format!("removing containers/{name}"))?;
                }
                Err(errno) => {
                    return Err(Error::from(errno).context(format!("looking at containers/{name}")));
                }
            }
        }
        Ok(())
    }

    /// Takes a container away from all eyes; [`Containers::purge`] removes what it was. Its processes and its mount must be gone.
    pub fn vanish(&self, _guard: &Guard, container: &Container, with_volumes: bool) -> Result<()> {
        let id = &container.config.id;
        let prefix = if with_volumes {
            GONE_WITH_VOLUMES
        } else {
            GONE
        };
        match rustix::fs::renameat(&self.dir, id, &self.dir, format!("{prefix}{id}")) {
            // Somebody else removed it meanwhile, which is what was wanted.
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Error::from(errno).context(format!("removing container {id}"))),
        }
    }

    /// Removes what has vanished, each after `belongings` has removed the anonymous volumes that go with it. Call it without the guard: an upper can be
    /// large.
    pub fn purge(&self, belongings: impl Fn(&Config) -> Result<()>) -> Result<()> {
        let with_volumes = |dir: &OwnedFd| {
            let config = files::read_json(dir, CONFIG)?;
            config.as_ref().map_or(Ok(()), &belongings)
        };
        files::purge(&self.dir, GONE_WITH_VOLUMES, with_volumes)
            .and_then(|()| files::purge(&self.dir, GONE, |_| Ok(())))
            .context(|| format!("in {}", self.path.display()))
    }

    fn read(&self, id: &str) -> Result<Option<Container>> {
        let dir = match files::open_dir_at(&self.dir, id) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => {
                return Err(Error::from(errno).context(format!("opening containers/{id}")));
            }
        };
        let config: Option<Config> = files::read_json(&dir, CONFIG).context(|| {
            format!(
                "container {}: its config.json is damaged; cowl rm -f {} removes it",
                names::short(id),
                names::short(id)
            )
        })?;
        Ok(config.map(|config| Container { dir, config }))
    }

    fn entries(&self) -> Result<Vec<String>> {
        files::names(&self.dir).context(|| format!("listing {}", self.path.display()))
    }
}

impl Container {
    /// Whether its time is over: made by a process that was killed, or to be removed at its end.
    pub fn is_forsaken(&self, status: &Status) -> bool {
        match status {
            Status::Abandoned => true,
            Status::Exited(_) => self.config.auto_remove,
            Status::Created | Status::Running => false,
        }
    }

    /// What it is doing now.
    pub fn status(&self) -> Result<Status> {
        let alive = files::is_locked(&self.dir, ALIVE)?;
        let monitored = files::is_locked(&self.dir, status::LOCK)?;
        let started = match self.monitored() {
            Ok(monitored) => monitored.is_some_and(|monitored| !monitored.started_at.is_empty()),
            // It had a monitor, so there may be something to end.
            Err(_damaged) => true,
        };
        let exit: Option<Exit> = files::read_json(&self.dir, status::EXIT)?;
        Ok(Status::derive(Facts {
            alive,
            monitored,
            started,
            exit,
        }))
    }

    /// Kills its processes, also those that have outlived its monitor. They are gone when [`Container::wait_unmounted`] returns.
    pub fn kill(&self) -> Result<()> {
        files::wait_unlocked(&self.dir, STARTING)?;
        self.wait_described()?;
        self.kill_processes()
    }

    /// The same for who is making it: nobody else starts anything.
    pub fn kill_processes(&self) -> Result<()> {
        let monitored = match self.monitored() {
            Ok(Some(monitored)) => monitored,
            Ok(None) => return Ok(()),
            Err(error) if files::is_locked(&self.dir, status::LOCK)? => return Err(error),
            // A power cut may leave the record empty. What runs then, if anything, is in the container's cgroups.
            Err(_damaged) => return Ok(remove_leftovers(CGROUP_PARENT, &self.config.id)?),
        };
        let killed = match monitored.pid {
            // Killed before it started anything: its container doesn't come to be.
            0 => self.kill_monitor(monitored.monitor),
            pid => kill_program(
                pid,
                &Identity {
                    boot: monitored.boot,
                    start_time: monitored.start_time,
                },
            ),
        };
        killed.context(|| format!("killing container {}", names::short(&self.config.id)))
    }

    fn kill_monitor(&self, pid: i32) -> Result<()> {
        let Some(pidfd) = open_process(pid)? else {
            return Ok(());
        };
        // The lock was its own when the descriptor was opened, so the descriptor is the monitor's.
        if files::is_locked(&self.dir, status::LOCK)? {
            send_kill(&pidfd)?;
        }
        Ok(())
    }

    /// Waits until nobody makes it or watches over it any more.
    pub fn wait_unwatched(&self) -> Result<()> {
        files::wait_unlocked(&self.dir, ALIVE)?;
        files::wait_unlocked(&self.dir, status::LOCK)
    }

    /// Waits until its files are mounted nowhere, as they are while any process of it lives.
    pub fn wait_unmounted(&self) -> Result<()> {
        self.mounted_work()?
            .map_or(Ok(()), |work| files::wait_unlocked(work, MOUNTED))
    }

    /// The same for at most [`PATIENCE`]: another process may hold its files, by a descriptor that it was given or through /proc, for as
    /// long as it likes. Whether they are mounted nowhere.
    pub fn is_soon_unmounted(&self) -> Result<bool> {
        let Some(work) = self.mounted_work()? else {
            return Ok(true);
        };
        let end = Instant::now() + PATIENCE;
        while files::is_locked(&work, MOUNTED)? {
            if Instant::now() >= end {
                return Ok(false);
            }
            rustix::io::retry_on_intr(|| poll(&mut [], Some(&PAUSE)))?;
        }
        Ok(true)
    }

    /// The work directory; none if somebody else has removed the container.
    fn mounted_work(&self) -> Result<Option<OwnedFd>> {
        match files::open_dir_at(&self.dir, WORK) {
            Ok(work) => Ok(Some(work)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => {
                let id = names::short(&self.config.id);
                Err(Error::from(errno).context(format!("opening {WORK} of container {id}")))
            }
        }
    }

    /// Upper and work, to be mounted.
    pub fn upper(&self) -> Result<(OwnedFd, OwnedFd)> {
        let open = |name: &str| {
            files::open_dir_at(&self.dir, name).context(|| {
                format!(
                    "opening {name} of container {}",
                    names::short(&self.config.id)
                )
            })
        };
        Ok((open(UPPER)?, open(WORK)?))
    }

    /// What the monitor says that it runs; none if it never said so.
    fn monitored(&self) -> Result<Option<Monitored>> {
        files::read_json(&self.dir, status::RUNNING)
            .context(|| format!("container {}", names::short(&self.config.id)))
    }

    /// Waits until a monitor that has just been started has said what it runs, or has ended. It does so before it starts anything.
    fn wait_described(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while matches!(self.monitored(), Ok(None)) && files::is_locked(&self.dir, ALIVE)? {
            if Instant::now() >= end {
                let id = names::short(&self.config.id);
                return Err(Error::failed(format!(
                    "the monitor of container {id} does not start"
                )));
            }
            rustix::io::retry_on_intr(|| poll(&mut [], Some(&PAUSE)))?;
        }
        Ok(())
    }
}

fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

fn open_process(pid: i32) -> Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(pid) else {
        return Ok(None);
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(Errno::SRCH | Errno::INVAL) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn send_kill(pidfd: &OwnedFd) -> Result<()> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Kills the process `pid` if it is the one that `known` says: a number that has passed to another process since is left alone.
fn kill_program(pid: i32, known: &Identity) -> Result<()> {
    let Some(pidfd) = open_process(pid)? else {
        return Ok(());
    };
    // Asked while the descriptor is open: if the process it means is alive, the answer is about that one.
    if Identity::of(pid.cast_unsigned())?.as_ref() == Some(known) {
        send_kill(&pidfd)?;
    }
    Ok(())
}
