//! The containers of a store, as directories.
//!
//! ```text
//! containers/             locked while a name is taken or a container is removed
//! names/                  the index of names (index)
//! containers/<id>/        64 hex digits; locked by the engine that creates it, then by the monitor
//!   config.json           what the container is (config); without it, there is no container yet
//!   lock, running.json, exit.json   the monitor's (cowl_launch::status)
//!   restart.json, restarting        those of its restart policy (engine::restart)
//!   told                            its end is among the events (end)
//!   upper/ work/          the container's files; work/lock and upper/ are locked while mounted,
//!                         work/ until the container runs
//! containers/.gone-alone-<id>/          a removed container; locked while it is deleted
//! containers/.gone-with-volumes-<id>/   the same, and its anonymous volumes are deleted too
//! ```
//!
//! All locks are flocks. A directory's lock is on the directory itself. If a removal is killed,
//! the next command completes it.
//!
//! Invariant: a directory with a `config.json` is a container with a unique name, until it is
//! removed. Its status is derived from locks and records ([`state`]), never stored. Only a list
//! reads all containers; a creation, a start and a look-up by id or name read one.

pub mod config;
mod end;
mod index;
mod kill;
pub mod state;
#[cfg(test)]
mod tests;

use super::Listing;
use super::error::{Context, Error, Result};
use super::files::{self, LazyDir};
use super::names;
use super::restart::RestartRecord;
use config::Config;
use cowl_core::store::remove_tree;
use cowl_launch::status;
pub use index::Claim;
use rustix::event::{Timespec, poll};
use rustix::fs::{AtFlags, Mode, statat};
use rustix::io::Errno;
use state::{Exit, Facts, MonitorRecord, State, Status};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The lock of the directory itself. The engine passes it to the monitor without releasing it.
const ALIVE: &str = ".";
const UPPER: &str = "upper";
const WORK: &str = "work";
/// The lock of the work directory itself, held by the engine until the container runs.
const STARTING: &str = WORK;
/// In `work/`, held by the mount's worker.
const MOUNTED: &str = "lock";
const CONFIG: &str = "config.json";
/// Held while a command waits out the back-off of the restart policy.
const RESTARTING: &str = "restarting";
const RESTART_RECORD: &str = "restart.json";
const GONE: &str = ".gone-alone-";
const GONE_WITH_VOLUMES: &str = ".gone-with-volumes-";

/// Longest wait for an unused mount to end and for a new monitor's first record, and the poll
/// interval: flock(2) has no timeout.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// The directory `containers/`.
#[derive(Debug)]
pub struct Containers {
    directory: LazyDir,
    index: LazyDir,
    interrupt: Option<OwnedFd>,
}

/// The right to allocate names and to remove containers and volumes.
#[derive(Debug)]
pub struct Guard(#[expect(dead_code, reason = "held for its lock")] OwnedFd);

/// One container.
#[derive(Debug)]
pub struct Container {
    dir: OwnedFd,
    /// Its `config.json`.
    pub config: Config,
}

/// A container that is being created or started. Its locks keep it from being swept.
#[derive(Debug)]
pub struct PendingContainer {
    /// The container.
    pub container: Container,
    alive: OwnedFd,
    starting: OwnedFd,
}

/// The right to start or remove a container.
#[derive(Debug)]
pub struct StartLock(OwnedFd);

impl PendingContainer {
    /// For the start of a container at rest: its last monitor has ended.
    pub fn begin(container: Container, StartLock(starting): StartLock) -> Result<Self> {
        let alive = files::lock_dir(&container.dir)?;
        Ok(Self {
            container,
            alive,
            starting,
        })
    }

    /// The monitor's status directory, locked. The lock lives as long as any copy of this
    /// descriptor.
    pub fn status_dir(&self) -> BorrowedFd<'_> {
        self.alive.as_fd()
    }

    /// Releases the locks. The monitor's locks keep a running container.
    pub fn release(self) -> Container {
        drop((self.alive, self.starting));
        self.container
    }
}

impl Containers {
    /// The `containers/` of a store.
    pub fn new(root: &Path) -> Self {
        Self {
            directory: LazyDir::new(root, "containers"),
            index: LazyDir::new(root, index::DIRECTORY),
            interrupt: None,
        }
    }

    fn dir(&self) -> Result<&OwnedFd> {
        self.directory.get()
    }

    fn path(&self) -> PathBuf {
        self.directory.path()
    }

    /// From now on, waits for other commands end with EINTR once `interrupt` is readable.
    pub fn set_interrupt(&mut self, interrupt: OwnedFd) {
        self.interrupt = Some(interrupt);
    }

    /// Locks the directory, waiting for other commands.
    pub fn guard(&self) -> Result<Guard> {
        files::lock_dir_until(self.dir()?, self.interrupt.as_ref().map(AsFd::as_fd))
            .map(Guard)
            .context(|| format!("locking {}", self.path().display()))
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

    /// Finds a container by id, name or unambiguous prefix of an id.
    pub fn find(&self, needle: &str) -> Result<Container> {
        if is_id(needle)
            && let Some(container) = self.read(needle)?
        {
            return Ok(container);
        }
        let name = needle.strip_prefix('/').unwrap_or(needle);
        match self.by_name(name)? {
            Some(container) => Ok(container),
            None => self.search(needle, name),
        }
    }

    /// Finds the container whose id begins so; none without one, or with several.
    pub fn with_prefix(&self, prefix: &str) -> Result<Option<Container>> {
        let ids = self.entries()?;
        let mut matching = ids.iter().filter(|id| is_id(id) && id.starts_with(prefix));
        match (matching.next(), matching.next()) {
            (Some(id), None) => self.read(id),
            _ => Ok(None),
        }
    }

    /// Finds a container by the beginning of its id, or by a name whose link is lost.
    fn search(&self, needle: &str, name: &str) -> Result<Container> {
        let ids = self.entries()?;
        let mut matching = ids
            .iter()
            .filter(|id| is_id(id) && !needle.is_empty() && id.starts_with(needle));
        match (matching.next(), matching.next()) {
            (Some(id), None) => {
                if let Some(container) = self.read(id)? {
                    return Ok(container);
                }
            }
            (Some(_), Some(_)) => {
                return Err(Error::invalid(format!(
                    "multiple IDs found with provided prefix: {needle}"
                )));
            }
            (None, _) => {
                let mut all = self.list()?.items.into_iter();
                if let Some(container) = all.find(|container| container.config.name == name) {
                    return Ok(container);
                }
            }
        }
        Err(no_such_container(needle))
    }

    /// Finds a container whose `config.json` is damaged, by id or prefix, for its removal. The
    /// error says what is wrong.
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
                let dir = files::open_dir_at(self.dir()?, id)
                    .context(|| format!("opening containers/{id}"))?;
                let config = Config::unknown(id);
                found = Some((Container { dir, config }, error));
            }
        }
        Ok(found)
    }

    /// Creates a container's directory. The caller has taken its name under the same guard.
    pub fn create(&self, _guard: &Guard, config: Config) -> Result<PendingContainer> {
        let id = config.id.clone();
        let what = || format!("creating {}", self.path().join(&id).display());
        rustix::fs::mkdirat(self.dir()?, &id, Mode::RWXU).context(what)?;
        let created = self.populate(config);
        if created.is_err() {
            remove_tree(self.dir()?, &id).context(|| format!("removing containers/{id}"))?;
        }
        created.context(what)
    }

    fn populate(&self, config: Config) -> Result<PendingContainer> {
        let dir = files::open_dir_at(self.dir()?, &config.id)?;
        let alive = files::lock_dir(&dir)?;
        files::ensure_dir_at(&dir, UPPER, 0o755)?;
        let starting = files::lock_dir(files::ensure_dir_at(&dir, WORK, 0o700)?)?;
        files::write_json(&dir, CONFIG, &config)?;
        rustix::fs::fsync(self.dir()?)?;
        Ok(PendingContainer {
            container: Container { dir, config },
            alive,
            starting,
        })
    }

    /// Whether a container of this id exists or is being created.
    pub fn has(&self, _guard: &Guard, id: &str) -> Result<bool> {
        match statat(self.dir()?, id, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(Error::from(errno).context(format!("looking at containers/{id}"))),
        }
    }

    /// Deletes what killed creations left: directories without a `config.json`.
    pub fn remove_unfinished(&self, _guard: &Guard) -> Result<()> {
        for name in self.entries()?.iter().filter(|name| is_id(name)) {
            // Creation needs the guard, which is held here.
            match statat(
                self.dir()?,
                format!("{name}/{CONFIG}"),
                AtFlags::SYMLINK_NOFOLLOW,
            ) {
                // Not a directory: [`Containers::list`] reports it.
                Ok(_) | Err(Errno::NOTDIR | Errno::LOOP) => {}
                Err(Errno::NOENT) => {
                    remove_tree(self.dir()?, name)
                        .context(|| format!("removing containers/{name}"))?;
                }
                Err(errno) => {
                    return Err(Error::from(errno).context(format!("looking at containers/{name}")));
                }
            }
        }
        Ok(())
    }

    /// Marks a container as removed, by renaming its directory. [`Containers::purge`] deletes it.
    /// Its processes and its mount must have ended.
    pub fn mark_removed(
        &self,
        _guard: &Guard,
        container: &Container,
        with_volumes: bool,
    ) -> Result<()> {
        let id = &container.config.id;
        let prefix = if with_volumes {
            GONE_WITH_VOLUMES
        } else {
            GONE
        };
        match rustix::fs::renameat(self.dir()?, id, self.dir()?, format!("{prefix}{id}")) {
            // ENOENT: another command has removed it.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => {
                return Err(Error::from(errno).context(format!("removing container {id}")));
            }
        }
        self.drop_name_of(&container.config.name, id)
    }

    /// Takes the right to start or remove a container, waiting for another command's start. Its
    /// last program and mount may still be ending.
    pub fn take(&self, container: &Container) -> Result<StartLock> {
        let missing = || no_such_container(&container.config.id);
        let exists = || match files::open_dir_at(self.dir()?, &container.config.id) {
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => Err(missing()),
            Err(errno) => Err(Error::from(errno)),
        };
        let work = if let Some(work) = container.open_work()? {
            work
        } else {
            exists()?;
            // Something else is in its place.
            remove_tree(&container.dir, WORK)?;
            files::ensure_dir_at(&container.dir, WORK, 0o700)?
        };
        let lock = files::lock_dir_until(&work, self.interrupt.as_ref().map(AsFd::as_fd))?;
        // It may have been removed in the meantime.
        exists().map(|()| StartLock(lock))
    }

    /// Replaces the name of a container. The caller has taken it under the same guard.
    pub fn set_name(&self, _guard: &Guard, container: &mut Container, name: &str) -> Result<()> {
        let old = std::mem::replace(&mut container.config.name, name.to_owned());
        files::write_json(&container.dir, CONFIG, &container.config)?;
        self.drop_name_of(&old, &container.config.id)
    }

    /// Replaces what a container was asked to be.
    pub fn write_config(&self, _guard: &Guard, container: &Container) -> Result<()> {
        files::write_json(&container.dir, CONFIG, &container.config)
    }

    /// Deletes removed containers. `remove_volumes` removes the anonymous volumes of those marked
    /// so. Call it without the guard: an upper can be large.
    pub fn purge(&self, remove_volumes: impl Fn(&Config) -> Result<()>) -> Result<()> {
        let with_volumes = |dir: &OwnedFd| {
            let config = files::read_json(dir, CONFIG)?;
            config.as_ref().map_or(Ok(()), &remove_volumes)
        };
        files::purge(self.dir()?, GONE_WITH_VOLUMES, with_volumes)
            .and_then(|()| files::purge(self.dir()?, GONE, |_| Ok(())))
            .context(|| format!("in {}", self.path().display()))
    }

    fn read(&self, id: &str) -> Result<Option<Container>> {
        let dir = match files::open_dir_at(self.dir()?, id) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => {
                return Err(Error::from(errno).context(format!("opening containers/{id}")));
            }
        };
        let config: Option<Config> = files::read_json(&dir, CONFIG).context(|| {
            let id = names::short(id);
            format!("container {id}: its config.json is damaged; cowl rm -f {id} removes it")
        })?;
        Ok(config.map(|config| Container { dir, config }))
    }

    fn entries(&self) -> Result<Vec<String>> {
        files::names(self.dir()?).context(|| format!("listing {}", self.path().display()))
    }
}

impl Container {
    /// Whether the sweep removes it: it was run with `--rm`, and has ended or could not be started.
    pub fn is_disposable(&self, status: &Status) -> bool {
        self.config.host.auto_remove
            && matches!(status, Status::Exited(_) | Status::Created(Some(_)))
    }

    /// Its status now; fails if a file of the monitor's is damaged.
    pub fn status(&self) -> Result<Status> {
        self.facts().map(Status::derive).context(|| {
            let id = names::short(&self.config.id);
            format!("container {id}: its status is damaged; cowl rm -f {id} removes it")
        })
    }

    /// Its status with its times.
    pub fn state(&self) -> Result<State> {
        let status = self.status()?;
        // Of a damaged record nothing is known.
        let record = self.monitor_record().ok().flatten();
        let started = match &status {
            Status::Created(_) => "",
            Status::Exited(exit) | Status::Restarting(exit) if !exit.started_at.is_empty() => {
                &exit.started_at
            }
            _ => record.as_ref().map_or("", |record| &record.started_at),
        };
        let pid = record.as_ref().map_or(0, |record| record.pid);
        Ok(State {
            started_at: started.parse().ok(),
            // Of a damaged record nothing is known.
            health: self.health().ok().flatten(),
            pid: match status {
                Status::Starting | Status::Running | Status::Paused => pid,
                Status::Created(_) | Status::Restarting(_) | Status::Exited(_) => 0,
            },
            status,
        })
    }

    fn facts(&self) -> Result<Facts> {
        files::check_lock(&self.dir, status::LOCK)?;
        let alive = files::is_locked(&self.dir, ALIVE)?;
        let monitored = files::is_locked(&self.dir, status::LOCK)?;
        let (started, paused) = match self.monitor_record() {
            Ok(record) => record.map_or((false, false), |record| {
                (!record.started_at.is_empty(), record.paused)
            }),
            // It had a monitor, so there may be processes to kill.
            Err(_damaged) => (true, false),
        };
        let exit: Option<Exit> = files::read_json(&self.dir, status::EXIT)?;
        let policy = &self.config.host.restart_policy;
        let restarting = match &exit {
            Some(exit) if policy.is_set() => {
                self.restart_record()?.restart_of(policy, exit).is_some()
            }
            _ => false,
        };
        Ok(Facts {
            alive,
            monitored,
            started,
            paused,
            restarting,
            exit,
        })
    }

    /// The monitor's status directory.
    pub fn status_dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Waits for a start that is going on.
    pub fn wait_started(&self) -> Result<()> {
        files::wait_unlocked(&self.dir, STARTING)
    }

    /// Waits until neither an engine nor a monitor holds its locks.
    pub fn wait_released(&self) -> Result<()> {
        files::wait_unlocked(&self.dir, ALIVE)?;
        files::wait_unlocked(&self.dir, status::LOCK)
    }

    /// Takes the lock that says that a restart is waited for, after another holder.
    pub fn lock_restarting(&self) -> Result<OwnedFd> {
        files::lock_file(&self.dir, RESTARTING)
    }

    /// Whether a command waits for its restart: not if that command was killed.
    pub fn is_awaiting_restart(&self) -> Result<bool> {
        files::is_locked(&self.dir, RESTARTING)
    }

    /// Reads its `restart.json`.
    pub fn restart_record(&self) -> Result<RestartRecord> {
        let record = files::read_json(&self.dir, RESTART_RECORD)
            .context(|| format!("container {}", names::short(&self.config.id)))?;
        Ok(record.unwrap_or_default())
    }

    /// Replaces its `restart.json`. The caller holds the start lock.
    pub fn write_restart_record(&self, record: RestartRecord) -> Result<()> {
        files::write_json(&self.dir, RESTART_RECORD, &record)
    }

    /// Waits until its mount has ended, which is after its last process.
    pub fn wait_unmounted(&self) -> Result<()> {
        self.open_work()?
            .map_or(Ok(()), |work| files::wait_unlocked(work, MOUNTED))
    }

    /// Waits for at most [`PATIENCE`] until its mount has ended, and says whether it has. A
    /// process outside the container may use the mount for any time, by a descriptor or through
    /// /proc.
    pub fn unmounts_soon(&self) -> Result<bool> {
        let Some(work) = self.open_work()? else {
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

    /// Opens the work directory; none if another command has removed the container.
    fn open_work(&self) -> Result<Option<OwnedFd>> {
        match files::open_dir_at(&self.dir, WORK) {
            Ok(work) => Ok(Some(work)),
            // Something else in its place: no later mount can have locked that.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => {
                let id = names::short(&self.config.id);
                Err(Error::from(errno).context(format!("opening {WORK} of container {id}")))
            }
        }
    }

    /// Opens upper and work for a mount.
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

    /// Reads the monitor's record; none if no monitor has written one.
    pub fn monitor_record(&self) -> Result<Option<MonitorRecord>> {
        files::read_json(&self.dir, status::RUNNING)
            .context(|| format!("container {}", names::short(&self.config.id)))
    }
}

pub(super) fn no_such_container(needle: &str) -> Error {
    Error::not_found(format!("No such container: {needle}"))
}

fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}
