//! `run`: creates a container, starts it and stays with it until it ends.
//!
//! ```text
//!   create    name, directory and volumes, under the containers' guard
//!   start     the keeper mounts, new volumes are filled through the mount, the monitor runs the program
//!   stay      streams and signals until the container ends (foreground); --rm removes it
//! ```
//!
//! Invariant: an error or an interrupt before the program runs leaves no container, no mount and
//! no new volume.

mod foreground;

use super::attach;
use super::container::config::{Config, Mount, MountSource, VERSION};
use super::container::{Container, Guard, PendingContainer};
use super::error::{Context, Error, Kind, Result};
use super::image::Image;
use super::mount::{self, Ending, Mounted};
use super::process::{Overrides, Process};
use super::signals::Signals;
use super::{CGROUP_PARENT, Engine, helpers, names};
use crate::volume::{Source, VolumeName, VolumeSpec, is_name};
use cowl_launch::client::{Launch, Monitor, StartError};
use cowl_launch::message::{Start, Started};
use cowl_launch::process::{self, Seccomp};
use cowl_launch::sandbox::{self, Sandbox};
use foreground::Ended;
use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The parameters of [`Engine::run`].
#[derive(Debug, Clone)]
pub struct Request {
    /// As the user names it.
    pub image: String,
    /// Command, environment, user.
    pub overrides: Overrides,
    /// `--name`.
    pub name: Option<String>,
    /// `-v`, in order.
    pub volumes: Vec<VolumeSpec>,
    /// `-m`, in bytes.
    pub memory: Option<u64>,
    /// `--security-opt seccomp=unconfined`.
    pub seccomp_unconfined: bool,
    /// `--rm`.
    pub auto_remove: bool,
    /// `-t`.
    pub tty: bool,
    /// `-i`.
    pub open_stdin: bool,
}

/// Docker's minimum.
const MIN_MEMORY: u64 = 6 << 20;
/// How long an interrupted start may continue once the monitor has it.
const START_PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};
/// What a signal adds to the exit code of what it ended.
const SIGNALLED: u8 = 128;

/// A container that doesn't run yet, with the volumes created for it.
struct CreatedContainer {
    pending: PendingContainer,
    new_volumes: Vec<VolumeName>,
}

/// A container that runs.
struct Running {
    mounted: Mounted,
    monitor: Monitor,
    streams: Streams,
}

enum Streams {
    Pipes(attach::Pipes),
    Terminal(OwnedFd),
}

impl Engine {
    /// Runs a container in the foreground. Gives its exit code.
    ///
    /// An interrupt (SIGINT, SIGTERM, SIGHUP, SIGQUIT) before the container runs ends the start
    /// at once and leaves nothing.
    pub fn run(&mut self, request: &Request) -> Result<u8> {
        check(request)?;
        self.sweep()?;
        let image = self.image(&request.image)?;
        let guard = self.containers.guard()?;
        // Up to here there is nothing to clean up, so signals keep their default action.
        let signals = Signals::block()?;
        let interrupt = signals.interrupt().try_clone_to_owned()?;
        self.store.set_interrupt(interrupt);
        let mut created = match self.create(&guard, request, &image) {
            Ok(created) => created,
            Err(error) => return signals.take_interrupt()?.map(exit_code).ok_or(error),
        };
        let has_volumes = self.create_volumes(&mut created);
        drop(guard);
        match has_volumes.and_then(|()| self.start(&created.pending, &image, &signals)) {
            Ok(running) => self.stay(&created.pending.release(), running, &signals),
            Err(error) => self.abort(created, error, &signals),
        }
    }

    /// Creates the container's pin, its directory and its name.
    fn create(&self, guard: &Guard, request: &Request, image: &Image) -> Result<CreatedContainer> {
        let id = names::new_id()?;
        let others = self.containers.list()?.items;
        let name = choose_name(request.name.as_deref(), &others)?;
        let process = Process::merge(&image.defaults, &request.overrides, names::short(&id))?;
        let mounts = mounts(request, &image.volumes)?;
        let config = Config {
            version: VERSION,
            name,
            created: Timestamp::now(),
            image: request.image.clone(),
            image_id: image.id,
            layers: image.layers.clone(),
            process,
            hostname: names::short(&id).to_owned(),
            tty: request.tty,
            open_stdin: request.open_stdin,
            memory: request.memory,
            seccomp_unconfined: request.seccomp_unconfined,
            auto_remove: request.auto_remove,
            mounts,
            id,
        };
        let pin = super::pin_name(&config.id);
        let owner = format!("container {}", config.name);
        self.store
            .pin(&pin, &owner, &image.layers, &image.blobs)
            .context(|| format!("making {owner}"))?;
        match self.containers.create(guard, config) {
            Ok(pending) => Ok(CreatedContainer {
                pending,
                new_volumes: Vec::new(),
            }),
            Err(error) => {
                self.store.unpin(&pin)?;
                Err(error)
            }
        }
    }

    /// Creates the container's missing volumes. The caller holds the containers' guard.
    fn create_volumes(&self, created: &mut CreatedContainer) -> Result<()> {
        let config = &created.pending.container.config;
        for name in config.volumes() {
            let name = VolumeName::parse(name).map_err(Error::invalid)?;
            if !self.volumes.has(&name)? {
                let anonymous = config.anonymous_volumes().any(|own| own == name.as_str());
                created.new_volumes.push(name.clone());
                self.volumes.create(&name, anonymous)?;
            }
        }
        Ok(())
    }

    /// Mounts and launches. An error unmounts again, so that the upper can be removed.
    fn start(
        &self,
        pending: &PendingContainer,
        image: &Image,
        signals: &Signals,
    ) -> Result<Running> {
        let container = &pending.container;
        let config = &container.config;
        let short = names::short(&config.id);
        let (upper, work) = container.upper()?;
        let upper = Some((upper.as_fd(), work.as_fd()));
        let request = mount::Request {
            id: short,
            name: short,
            title: &image.name,
            image: image.id,
            layers: &config.layers,
            upper,
        };
        let mounted = mount::mount(&self.store, &request)?;
        match self.launch(pending, mounted.root.as_fd(), signals) {
            Ok((monitor, streams)) => Ok(Running {
                mounted,
                monitor,
                streams,
            }),
            Err(error) => {
                mounted.discard(&self.store)?;
                Err(error)
            }
        }
    }

    /// Fills new volumes, starts the monitor and waits until the program runs.
    fn launch(
        &self,
        pending: &PendingContainer,
        root: BorrowedFd<'_>,
        signals: &Signals,
    ) -> Result<(Monitor, Streams)> {
        let config = &pending.container.config;
        let volumes = config
            .mounts
            .iter()
            .map(|mount| self.volume(mount, root, signals))
            .collect::<Result<Vec<_>>>()?;
        let start = plan(config);
        let runtime = helpers::find("cowl-runtime")?;
        let (stdio, pipes) = if config.tty {
            (None, None)
        } else {
            attach::pipes(config.open_stdin).map(|(stdio, pipes)| (Some(stdio), Some(pipes)))?
        };
        let launch = Launch {
            runtime: &runtime,
            start: &start,
            rootfs: root,
            status: pending.status_dir(),
            stdio: stdio.as_ref().map(|stdio| {
                [
                    stdio.stdin.as_fd(),
                    stdio.stdout.as_fd(),
                    stdio.stderr.as_fd(),
                ]
            }),
            descriptors: &volumes.iter().map(AsFd::as_fd).collect::<Vec<_>>(),
        };
        signals.check_interrupt()?;
        let monitor = launch.spawn()?;
        // The monitor has the container's ends. Our copies would keep the pipes open after its
        // end.
        drop(stdio);
        let (_started, master) = match wait_started(&monitor, signals) {
            Ok(started) => started,
            Err(error) => {
                monitor.kill().context(|| "killing the monitor")?;
                // It may have started a program that outlives it.
                pending.container.kill_processes()?;
                return Err(error);
            }
        };
        let streams = match (pipes, master) {
            (Some(pipes), _) => Streams::Pipes(pipes),
            (None, Some(master)) => Streams::Terminal(master),
            (None, None) => return Err(Error::failed("the monitor sent no terminal")),
        };
        Ok((monitor, streams))
    }

    /// Opens what is mounted. A new volume is filled first.
    fn volume(&self, mount: &Mount, root: BorrowedFd<'_>, signals: &Signals) -> Result<OwnedFd> {
        match &mount.source {
            MountSource::Volume { name, no_copy, .. } => {
                let volume = self.volumes.find(name)?;
                let interrupt = Some(signals.interrupt());
                volume.prepare(root, &mount.destination, !no_copy, interrupt)?;
                volume.data()
            }
            MountSource::Bind(path) => open_bind(path),
        }
    }

    /// Stays with a container until it ends: copies its streams, passes signals on, and removes
    /// it if asked to.
    fn stay(&self, container: &Container, running: Running, signals: &Signals) -> Result<u8> {
        let Running {
            mounted: Mounted { root, keeper },
            monitor,
            streams,
        } = running;
        // Now the mount ends with the container, its only user.
        drop(root);
        let ended = foreground::stay(container, &monitor, streams, signals);
        let exited = match ended {
            Ok(Ended::Exited(code)) => Ok(code),
            Ok(Ended::Lost) => Err(Error::failed(
                "the container's monitor was killed, and the container with it",
            )),
            Ok(Ended::Left) => {
                return Err(Error::interrupted(format!(
                    "got {} SIGTERM/SIGINTs, forcefully exiting; the container runs on: cowl rm -f {}",
                    foreground::FORCED,
                    container.config.name
                )));
            }
            Err(error) => {
                // Its output has no reader any more.
                container.kill()?;
                Err(error)
            }
        };
        monitor.reap().context(|| "waiting for the monitor")?;
        if !keeper.ends_before_a_signal(signals)? {
            // The sweep of a later command removes what is left.
            return exited;
        }
        let mount = keeper.wait(&self.store)?;
        if container.config.auto_remove {
            match self.remove_container(container, true) {
                Err(_interrupted) if signals.take_interrupt()?.is_some() => return exited,
                removed => removed?,
            }
        }
        match mount {
            Ending::Unmounted => exited,
            // Its last writes may be lost, whatever its exit code says.
            Ending::CutOff => Err(Error::failed(
                "the container was cut off from its files: the process that served them (cowl-mountd) died",
            )),
        }
    }

    /// Removes a container that failed to start. Gives the exit code of an interrupt, else the
    /// error.
    fn abort(&self, created: CreatedContainer, error: Error, signals: &Signals) -> Result<u8> {
        // Taken before the removal, whose waits it would end.
        let interrupt = signals.take_interrupt()?;
        let discarded = self.discard(created);
        let Some(signal) = interrupt else {
            return Err(match discarded {
                Ok(()) => error,
                Err(second) => error.context(format!("{second}; before that")),
            });
        };
        match discarded {
            // A second interrupt. The sweep of a later command removes what is left.
            Err(_interrupted) if signals.take_interrupt()?.is_some() => {}
            discarded => discarded?,
        }
        Ok(exit_code(signal))
    }

    /// Removes a container that has not run, and the volumes created for it that no other
    /// container uses.
    fn discard(&self, created: CreatedContainer) -> Result<()> {
        let container = created.pending.release();
        container.kill()?;
        self.remove_container(&container, true)?;
        {
            let _guard = self.containers.guard()?;
            for name in &created.new_volumes {
                if self.users_of_volume(name.as_str())?.is_empty() {
                    self.volumes.remove(name.as_str())?;
                }
            }
        }
        self.volumes.purge()
    }
}

/// As a shell gives it.
fn exit_code(signal: u8) -> u8 {
    SIGNALLED.saturating_add(signal)
}

/// Waits for the program to start, or for an interrupt (EINTR).
///
/// The program may run before the monitor reports it, and the signal may be meant for it. If the
/// report comes within [`START_PATIENCE`], the signal is passed on.
fn wait_started(monitor: &Monitor, signals: &Signals) -> Result<(Started, Option<OwnedFd>)> {
    let told = || PollFd::new(monitor, PollFlags::IN);
    let interrupt = || PollFd::from_borrowed_fd(signals.interrupt(), PollFlags::IN);
    let wait = |waiting: &mut [PollFd<'_>], limit| {
        rustix::io::retry_on_intr(|| poll(waiting, limit)).context(|| "waiting for the monitor")
    };
    wait(&mut [told(), interrupt()], None)?;
    if wait(&mut [told()], Some(&START_PATIENCE))? == 0 {
        signals.check_interrupt()?;
    }
    monitor.wait_started().map_err(start_error)
}

fn check(request: &Request) -> Result<()> {
    if request.memory.is_some_and(|bytes| bytes < MIN_MEMORY) {
        return Err(Error::invalid("Minimum memory limit allowed is 6MB"));
    }
    super::host::require_mounts("run")
}

/// The container's mounts, parents first.
fn mounts(request: &Request, of_image: &[String]) -> Result<Vec<Mount>> {
    let mut specs = request.volumes.clone();
    for destination in of_image {
        let spec = VolumeSpec::of_image(destination).map_err(Error::invalid)?;
        if specs
            .iter()
            .all(|other| other.destination != spec.destination)
        {
            specs.push(spec);
        }
    }
    let mut mounts: Vec<Mount> = Vec::new();
    for spec in specs {
        if mounts
            .iter()
            .any(|mount| mount.destination == spec.destination)
        {
            return Err(Error::invalid(format!(
                "Duplicate mount point: {}",
                spec.destination
            )));
        }
        let no_copy = spec.no_copy;
        let source = match spec.source {
            Source::Host(path) => MountSource::Bind(path),
            Source::Named(name) => MountSource::Volume {
                name: name.to_string(),
                anonymous: false,
                no_copy,
            },
            Source::Anonymous => MountSource::Volume {
                name: names::new_id()?,
                anonymous: true,
                no_copy,
            },
        };
        mounts.push(Mount {
            source,
            destination: spec.destination,
            read_only: spec.read_only,
        });
    }
    mounts.sort_by_key(|mount| mount.destination.split('/').count());
    Ok(mounts)
}

fn choose_name(wanted: Option<&str>, others: &[Container]) -> Result<String> {
    let holder = |name: &str| others.iter().find(|other| other.config.name == name);
    let Some(name) = wanted else {
        return names::new_name(|name| holder(name).is_some());
    };
    if !is_name(name) {
        let short = if name.chars().count() == 1 {
            ", two characters at least"
        } else {
            ""
        };
        return Err(Error::invalid(format!(
            "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed{short}"
        )));
    }
    match holder(name) {
        None => Ok(name.to_owned()),
        Some(other) => Err(Error::conflict(format!(
            "Conflict. The container name \"/{name}\" is already in use by container \"{}\". You have to remove (or rename) that container to be able \
             to reuse that name (cowl rm {name}).",
            other.config.id
        ))),
    }
}

fn plan(config: &Config) -> Start {
    let bytes = |text: &String| text.as_bytes().to_vec();
    let mut sandbox = Sandbox::new(config.id.clone());
    CGROUP_PARENT.clone_into(&mut sandbox.cgroup_parent);
    sandbox.hostname.clone_from(&config.hostname);
    sandbox.mounts.extend(
        config
            .mounts
            .iter()
            .map(|mount| sandbox::Mount::descriptor(bytes(&mount.destination), mount.read_only)),
    );
    sandbox.limits.memory = config.memory;
    let argv = config.process.argv.iter().map(bytes).collect();
    let mut process = process::Process::new(argv);
    process.env = config.process.env.iter().map(bytes).collect();
    process.cwd = bytes(&config.process.cwd);
    process.user = bytes(&config.process.user);
    if config.seccomp_unconfined {
        process.seccomp = Seccomp::Unconfined;
    }
    process.terminal = config.tty.then(foreground::window_size);
    Start { sandbox, process }
}

/// Opens a host path to be mounted, creating a missing directory as Docker does for `-v`.
fn open_bind(path: &Path) -> Result<OwnedFd> {
    let open = || rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    match open() {
        Err(Errno::NOENT) => {
            std::fs::create_dir_all(path)
                .context(|| format!("creating the directory {}", path.display()))?;
            open()
        }
        other => other,
    }
    .context(|| format!("opening {}", path.display()))
}

/// Turns Docker's exit codes into kinds.
fn start_error(error: StartError) -> Error {
    match error {
        StartError::Failed(failed) => {
            let kind = match failed.exit_code {
                127 => Kind::CommandNotFound,
                126 => Kind::CommandNotExecutable,
                _ => Kind::Failed,
            };
            Error::new(kind, failed.to_string())
        }
        other => Error::from(other).context("starting the container"),
    }
}
