//! `run`: makes a container, starts it, stays with it to its end.
//!
//! ```text
//!   name, volumes, directory   under the containers' guard
//!   mount                      a keeper takes lease and descriptors
//!   volumes filled             through the mount, before anything runs
//!   monitor                    takes the mount; from here on the container lives without us
//!   streams, signals           until the monitor says that it is over (foreground)
//! ```
//!
//! Invariant: an error before the monitor said "started" leaves nothing: no container, no mount, no volume that wasn't there before.

mod foreground;

use super::attach;
use super::container::config::{Config, Mount, MountSource, VERSION};
use super::container::{Container, Making};
use super::error::{Context, Error, Kind, Result};
use super::image::Image;
use super::mount::{self, Ending, Mounted};
use super::process::{Overrides, Process};
use super::signals::Signals;
use super::{CGROUP_PARENT, Engine, helpers, names};
use crate::volume::{Source, VolumeName, VolumeSpec, is_name};
use cowl_launch::client::{Launch, Monitor, StartError};
use cowl_launch::plan::{Limits, Plan, Seccomp, VolumeMount};
use jiff::Timestamp;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// What `run` is asked for.
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

/// Docker's: less can't even start a program.
const MIN_MEMORY: u64 = 6 << 20;
/// What a signal adds to the exit code of what it ended.
const SIGNALLED: u8 = 128;

/// A container with the volumes that were made for it.
struct Made {
    making: Making,
    new_volumes: Vec<VolumeName>,
}

/// A program that runs.
struct Running {
    monitor: Monitor,
    /// The container's first process.
    init: Option<Pid>,
    streams: Streams,
}

enum Streams {
    Pipes(attach::Pipes),
    Terminal(OwnedFd),
}

/// How starting went.
enum Start<T> {
    Running(T),
    /// A signal came first.
    Interrupted(u8),
}

impl Engine {
    /// Runs a container in the foreground. Gives its exit code.
    pub fn run(&self, request: &Request) -> Result<u8> {
        check(request)?;
        // Before any thread or process is started, which inherit the mask.
        let signals = Signals::block()?;
        self.sweep()?;
        let image = self.image(&request.image)?;
        let made = self.make(request, &image)?;
        let (mounted, running) = match self.start(&made.making, &image, &signals) {
            Ok(Start::Running(started)) => started,
            Ok(Start::Interrupted(signal)) => {
                self.discard(made)?;
                return Ok(SIGNALLED.saturating_add(signal));
            }
            Err(error) => return Err(self.undo(made, error)),
        };
        let container = made.making.done();
        self.accompany(&container, mounted, running, &signals)
    }

    /// Gives the container its name, its directory and its volumes, in this order: who finds half of it knows what belongs to it.
    fn make(&self, request: &Request, image: &Image) -> Result<Made> {
        let id = names::new_id()?;
        let guard = self.containers.guard()?;
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
        let mut new_volumes = Vec::new();
        let pin = super::pin_name(&config.id);
        let owner = format!("container {}", config.name);
        self.store.pin(&pin, &owner, &image.layers, &image.blobs)?;
        let making = match self.containers.create(&guard, config) {
            Ok(making) => making,
            Err(error) => {
                self.store.unpin(&pin)?;
                return Err(error);
            }
        };
        let volumes = self.make_volumes(&making.container.config, &mut new_volumes);
        drop(guard);
        let made = Made {
            making,
            new_volumes,
        };
        match volumes {
            Ok(()) => Ok(made),
            Err(error) => Err(self.undo(made, error)),
        }
    }

    /// Makes those volumes of the container that aren't there, and notes them in `new`.
    fn make_volumes(&self, config: &Config, new: &mut Vec<VolumeName>) -> Result<()> {
        for name in config.volumes() {
            let name = VolumeName::parse(name).map_err(Error::invalid)?;
            if !self.volumes.has(&name)? {
                let anonymous = config.anonymous_volumes().any(|own| own == name.as_str());
                new.push(name.clone());
                self.volumes.create(&name, anonymous)?;
            }
        }
        Ok(())
    }

    /// Mounts and launches. On any other way out the mount is gone again, so that the upper is free to be removed.
    fn start(
        &self,
        making: &Making,
        image: &Image,
        signals: &Signals,
    ) -> Result<Start<(Mounted, Running)>> {
        let container = &making.container;
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
        match self.launch(making, mounted.root.as_fd(), signals) {
            Ok(Start::Running(running)) => Ok(Start::Running((mounted, running))),
            Ok(Start::Interrupted(signal)) => {
                mounted.discard(&self.store)?;
                Ok(Start::Interrupted(signal))
            }
            Err(error) => {
                mounted.discard(&self.store)?;
                Err(error)
            }
        }
    }

    /// Fills new volumes, starts the monitor and waits until the program runs.
    fn launch(
        &self,
        making: &Making,
        root: BorrowedFd<'_>,
        signals: &Signals,
    ) -> Result<Start<Running>> {
        let config = &making.container.config;
        let volumes = config
            .mounts
            .iter()
            .map(|mount| self.volume(mount, root))
            .collect::<Result<Vec<_>>>()?;
        if let Some(signal) = signals.interrupted()? {
            return Ok(Start::Interrupted(signal));
        }
        let plan = plan(config);
        let runtime = helpers::find("cowl-runtime")?;
        let (stdio, pipes) = if config.tty {
            (None, None)
        } else {
            attach::pipes(config.open_stdin).map(|(stdio, pipes)| (Some(stdio), Some(pipes)))?
        };
        let launch = Launch {
            runtime: &runtime,
            plan: &plan,
            rootfs: root,
            status: making.status_dir(),
            stdio: stdio.as_ref().map(|stdio| {
                [
                    stdio.stdin.as_fd(),
                    stdio.stdout.as_fd(),
                    stdio.stderr.as_fd(),
                ]
            }),
            volumes: &volumes.iter().map(AsFd::as_fd).collect::<Vec<_>>(),
        };
        let monitor = launch.spawn()?;
        // The container's ends are the monitor's now; ours would keep the pipes open after the container's end.
        drop(stdio);
        let (started, master) = match monitor.wait_started() {
            Ok(started) => started,
            Err(error) => {
                monitor.reap()?;
                // Killed before it could say so, it may have started a program that outlives it.
                making.container.kill_processes()?;
                return Err(refused(error));
            }
        };
        let streams = match (pipes, master) {
            (Some(pipes), _) => Streams::Pipes(pipes),
            (None, Some(master)) => Streams::Terminal(master),
            (None, None) => return Err(Error::failed("the monitor handed over no terminal")),
        };
        let init = i32::try_from(started.pid).ok().and_then(Pid::from_raw);
        Ok(Start::Running(Running {
            monitor,
            init,
            streams,
        }))
    }

    /// The descriptor of what is mounted; a new volume is filled first.
    fn volume(&self, mount: &Mount, root: BorrowedFd<'_>) -> Result<OwnedFd> {
        match &mount.source {
            MountSource::Volume { name, no_copy, .. } => {
                let volume = self.volumes.find(name)?;
                volume.prepare(root, &mount.destination, !no_copy)?;
                volume.data()
            }
            MountSource::Bind(path) => open_bind(path),
        }
    }

    /// From start to end: copies streams, passes signals on, removes what was to be removed.
    fn accompany(
        &self,
        container: &Container,
        mounted: Mounted,
        running: Running,
        signals: &Signals,
    ) -> Result<u8> {
        let Running {
            monitor,
            init,
            streams,
        } = running;
        let Mounted { root, keeper } = mounted;
        // Only the container holds its root now, so that its end is the mount's.
        drop(root);
        let ended = foreground::stay(container, &monitor, init, streams, signals);
        if ended.is_err() {
            // Nobody reads its output any more, and nobody will.
            container.kill()?;
        }
        monitor.reap().context(|| "waiting for the monitor")?;
        let lost = "the container's monitor was killed, and the container with it";
        if !keeper.ends_before_a_signal(signals)? {
            // The sweep of a later command removes what is left.
            return ended?.ok_or_else(|| Error::failed(lost));
        }
        let mount = keeper.wait(&self.store)?;
        if container.config.auto_remove {
            self.remove_container(container, true)?;
        }
        match (ended?, mount) {
            (Some(code), Ending::Unmounted) => Ok(code),
            // Whatever its programs made of that: what they wrote last may be lost.
            (_, Ending::CutOff) => Err(Error::failed(
                "the container was cut off from its files: the process that served them (cowl-mountd) died",
            )),
            (None, Ending::Unmounted) => Err(Error::failed(lost)),
        }
    }

    /// Removes what was made before an error. The error is the one to tell.
    fn undo(&self, made: Made, error: Error) -> Error {
        match self.discard(made) {
            Ok(()) => error,
            Err(second) => error.context(format!("{second}; before that")),
        }
    }

    /// Removes a container that didn't come to be, and the volumes made for it that nobody else has taken up meanwhile.
    fn discard(&self, made: Made) -> Result<()> {
        let container = made.making.done();
        container.kill()?;
        self.remove_container(&container, true)?;
        {
            let _guard = self.containers.guard()?;
            for name in &made.new_volumes {
                if self.users_of_volume(name.as_str())?.is_empty() {
                    self.volumes.remove(name.as_str())?;
                }
            }
        }
        self.volumes.purge()
    }
}

fn check(request: &Request) -> Result<()> {
    if request.memory.is_some_and(|bytes| bytes < MIN_MEMORY) {
        return Err(Error::invalid("Minimum memory limit allowed is 6MB"));
    }
    super::host::require_mounts("run")
}

/// The container's mounts, a parent before what is below it.
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

fn plan(config: &Config) -> Plan {
    let bytes = |text: &String| text.as_bytes().to_vec();
    let mut plan = Plan::new(
        config.id.clone(),
        config.process.argv.iter().map(bytes).collect(),
    );
    plan.env = config.process.env.iter().map(bytes).collect();
    CGROUP_PARENT.clone_into(&mut plan.cgroup_parent);
    plan.cwd = bytes(&config.process.cwd);
    plan.user = bytes(&config.process.user);
    plan.hostname.clone_from(&config.hostname);
    plan.volumes = config
        .mounts
        .iter()
        .map(|mount| VolumeMount {
            destination: bytes(&mount.destination),
            read_only: mount.read_only,
        })
        .collect();
    plan.limits = Limits {
        memory: config.memory,
        pids: None,
    };
    if config.seccomp_unconfined {
        plan.seccomp = Seccomp::Unconfined;
    }
    plan.terminal = config.tty.then(foreground::window_size);
    plan
}

/// A host path to be mounted; a directory that is missing is made, as Docker does for `-v`.
fn open_bind(path: &Path) -> Result<OwnedFd> {
    let open = || rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    match open() {
        Err(Errno::NOENT) => {
            std::fs::create_dir_all(path)
                .context(|| format!("making the directory {}", path.display()))?;
            open()
        }
        other => other,
    }
    .context(|| format!("opening {}", path.display()))
}

/// Why the program didn't start, with Docker's exit codes as kinds.
fn refused(error: StartError) -> Error {
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
