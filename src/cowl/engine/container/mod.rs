//! The containers of a store, as directories.
//!
//! ```text
//! containers/             locked while a name is taken or a container is removed
//! names/                  the index of names (index)
//! containers/<id>/        64 hex digits; locked by the engine that creates it, then by the monitor
//!   config.json           what the container is (config); without it, there is no container yet
//!   volatile              of a container that goes when it ends: a symbolic link whose text is the
//!                         id of the machine's boot that made it. In another boot there is no such
//!                         container, so nothing of it is ever synced
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
mod directory;
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
use config::Config;
use cowl_core::store::remove_tree;
pub(super) use directory::{PATIENCE, PAUSE};
pub use index::Claim;
use rustix::fs::{AtFlags, Mode, readlinkat, statat, symlinkat};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The lock of the directory itself. The engine passes it to the monitor without releasing it.
const ALIVE: &str = ".";
const UPPER: &str = "upper";
const WORK: &str = "work";
/// The lock of the work directory itself, held by the engine until the container runs.
const STARTING: &str = WORK;
/// In `work/`, held by the mount's worker.
const MOUNTED: &str = "lock";
/// Where the mount's worker can be asked to hold changes back.
pub const WORKER_SOCKET: &str = "worker";
const CONFIG: &str = "config.json";
const VOLATILE: &str = "volatile";
/// Held while a command waits out the back-off of the restart policy.
const RESTARTING: &str = "restarting";
const RESTART_RECORD: &str = "restart.json";
const GONE: &str = ".gone-alone-";
const GONE_WITH_VOLUMES: &str = ".gone-with-volumes-";

/// The directory `containers/`.
#[derive(Debug)]
pub struct Containers {
    directory: LazyDir,
    index: LazyDir,
    interrupt: Option<OwnedFd>,
}

/// The lock for allocating names and for removing containers and volumes.
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

/// The lock for starting or removing a container.
#[derive(Debug)]
pub struct StartLock(OwnedFd);

impl PendingContainer {
    /// For the start of a stopped container: its last monitor has ended.
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

    /// From now on, waiting for other commands fails with EINTR once `interrupt` is readable.
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
        if needle.is_empty() {
            return Err(Error::invalid(
                "invalid container name or ID: value is empty",
            ));
        }
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

    /// Finds the container by a prefix of its id; None if there is none, or several.
    pub fn with_prefix(&self, prefix: &str) -> Result<Option<Container>> {
        let ids = self.entries()?;
        let mut matching = ids.iter().filter(|id| is_id(id) && id.starts_with(prefix));
        match (matching.next(), matching.next()) {
            (Some(id), None) => self.read(id),
            _ => Ok(None),
        }
    }

    /// Finds a container by a prefix of its id, or by a name whose link is lost.
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
        let volatile = config.host.auto_remove;
        if volatile {
            // Before config.json, whose content may be lost while its name is not: a symbolic
            // link's text is not written apart from its name.
            symlinkat(cowl_sys::boot::id()?, &dir, VOLATILE)?;
        }
        files::ensure_dir_at(&dir, UPPER, 0o755)?;
        let starting = files::lock_dir(files::ensure_dir_at(&dir, WORK, 0o700)?)?;
        if volatile {
            files::write_json_unsynced(&dir, CONFIG, &config)?;
        } else {
            files::write_json(&dir, CONFIG, &config)?;
            rustix::fs::fsync(self.dir()?)?;
        }
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

    /// Deletes the remains of killed creations (directories without a `config.json`), and volatile
    /// containers of an earlier boot of the machine.
    pub fn remove_unfinished(&self, _guard: &Guard) -> Result<()> {
        for name in self.entries()?.iter().filter(|name| is_id(name)) {
            self.remove_of_another_boot(name)?;
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

    /// Marks a volatile container of another boot as removed, with its anonymous volumes.
    fn remove_of_another_boot(&self, id: &str) -> Result<()> {
        let dir = match files::open_dir_at(self.dir()?, id) {
            Ok(dir) => dir,
            // Not a directory: [`Containers::list`] reports it.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(errno) => {
                return Err(Error::from(errno).context(format!("opening containers/{id}")));
            }
        };
        if !is_of_another_boot(&dir)? {
            return Ok(());
        }
        let gone = format!("{GONE_WITH_VOLUMES}{id}");
        rustix::fs::renameat(self.dir()?, id, self.dir()?, gone)
            .context(|| format!("removing container {id}"))
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

    /// Takes the lock for starting or removing a container; waits for another command's start. The
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
            // It is not a directory.
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

    /// Replaces a container's `config.json`.
    pub fn write_config(&self, _guard: &Guard, container: &Container) -> Result<()> {
        files::write_json(&container.dir, CONFIG, &container.config)
    }

    /// Deletes removed containers. `remove_volumes` removes the anonymous volumes of those marked
    /// so. Call it without the guard: an upper can be large.
    pub fn purge(&self, remove_volumes: impl Fn(&Config) -> Result<()>) -> Result<()> {
        let with_volumes = |dir: &OwnedFd| {
            let config = match files::read_json(dir, CONFIG) {
                // Torn by a power cut: its volumes are unknown, so they stay until a prune.
                Err(_torn) if names_another_boot(dir)? => None,
                read => read?,
            };
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
        if is_of_another_boot(&dir)? {
            return Ok(None);
        }
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

/// Whether this is the directory of a volatile container that an earlier boot has left.
///
/// systemd-nspawn and LXC give the systems that they run boot ids of their own. There, a container
/// that runs or starts on the host seems to be from another boot; but its locks are visible, since
/// the kernel is the same. Its pin counts as stale there, but the lease of its mount keeps its
/// layers while it runs.
fn is_of_another_boot(dir: &OwnedFd) -> Result<bool> {
    if !names_another_boot(dir)? || files::is_locked(dir, ALIVE)? {
        return Ok(false);
    }
    match files::open_dir_at(dir, WORK) {
        Ok(work) => Ok(!files::is_locked(dir, STARTING)? && !files::is_locked(work, MOUNTED)?),
        // A power cut may have taken it.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(true),
        Err(errno) => Err(Error::from(errno).context(format!("opening {WORK}"))),
    }
}

/// Whether a container is volatile, by its link, and from a boot with another id.
fn names_another_boot(dir: &OwnedFd) -> Result<bool> {
    match readlinkat(dir, VOLATILE, Vec::new()) {
        Ok(boot) => Ok(boot.to_bytes() != cowl_sys::boot::id()?.as_bytes()),
        // NOENT: it is not volatile. INVAL: not our link.
        Err(Errno::NOENT | Errno::INVAL) => Ok(false),
        Err(errno) => Err(Error::from(errno).context("reading the link volatile")),
    }
}

pub(super) fn no_such_container(needle: &str) -> Error {
    Error::not_found(format!("No such container: {needle}"))
}

fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}
