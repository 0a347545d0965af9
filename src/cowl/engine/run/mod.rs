//! `run`: creates a container, starts it and stays with it until it ends.
//!
//! ```text
//!   create    a container at rest; its new volumes are left to the start
//!   start     the keeper mounts, new volumes are filled through the mount, the monitor runs the program
//!   stay      streams and signals until the container ends (foreground); --rm removes it
//! ```
//!
//! Invariant: an error or an interrupt before the program runs leaves no mount. An interrupt, and
//! an error with `--rm`, leave no container and no new volume; an error without leaves a created
//! container, as with Docker.

mod foreground;

use super::attach;
use super::container::config::Config;
use super::container::{Container, PendingContainer, WORKER_SOCKET};
use super::create::{CreateRequest, Created};
use super::detach_keys::DetachKeys;
use super::error::{self, Context, Error, Result};
use super::mount::{self, Ending, Mounted};
use super::mounts::Mounts;
use super::namespaces::Joined;
use super::signals::Signals;
use super::start::plan;
use super::{Engine, helpers, names};
use crate::volume::VolumeName;
use cowl_core::handover::{self, IdMap, UpperSource};
use cowl_launch::client::{Launch, Monitor, StartError};
use cowl_launch::control::{StreamSet, Streams};
use cowl_launch::message::{After, Started};
use cowl_launch::process::WindowSize;
use foreground::Ended;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::Child;

/// The private command that a monitor runs when its container has ended.
pub(crate) const FINISH: &str = "container-ended";
/// The private command that a monitor runs when its container's health has changed.
pub(crate) const HEALTH: &str = "container-health";
/// How long an interrupted start may continue once the monitor has it.
const START_PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};
/// What a signal adds to the exit code of what it ended.
const SIGNALLED: u8 = 128;

/// A container that runs.
pub(super) struct Running {
    mounted: Mounted,
    monitor: Monitor,
}

impl Running {
    /// Leaves the container to itself. Gives the processes that this one has to wait for at their
    /// end, or it would keep them as zombies.
    pub(super) fn into_children(self) -> [Child; 2] {
        let Self { mounted, monitor } = self;
        [monitor.into_child(), mounted.keeper.into_child()]
    }
}

/// How a container is started.
struct Start<'f> {
    streams: &'f [Streams<'f>],
    size: WindowSize,
    signals: Option<&'f Signals>,
}

/// How a caller is with a container in the foreground.
#[derive(Debug)]
pub(crate) struct Presence {
    /// They leave a container with a terminal.
    pub(crate) keys: DetachKeys,
    /// The caller's signals go to it; else an interrupt ends the caller, and leaves the container.
    pub(crate) sig_proxy: bool,
}

impl Engine {
    /// Runs a container in the foreground. Gives its exit code.
    ///
    /// An interrupt (SIGINT, SIGTERM, SIGHUP, SIGQUIT) before the container runs ends the start
    /// at once and leaves nothing. `created` is called before the start. The streams are those
    /// that the request attaches.
    pub(crate) fn run(
        &mut self,
        request: &CreateRequest,
        presence: Presence,
        created: impl FnOnce(&Created) -> Result<()>,
    ) -> Result<u8> {
        super::create::check(request)?;
        super::host::require_mounts("run")?;
        // Up to here there is nothing to clean up, so signals keep their default action.
        let signals = Signals::block()?;
        let interrupt = signals.interrupt();
        self.store.set_interrupt(interrupt.try_clone_to_owned()?);
        self.containers
            .set_interrupt(interrupt.try_clone_to_owned()?);
        let tell = created;
        let created = match self.create_unfilled(request) {
            Ok(created) => created,
            Err(error) => return signals.take_interrupt()?.map(exit_code).ok_or(error),
        };
        tell(&created)?;
        let container = self.containers.find(&created.id)?;
        let lock = self.containers.take(&container)?;
        let pending = PendingContainer::begin(container, lock)?;
        let config = &pending.container.config.config;
        let (ends, pipes) = attach::pipes(StreamSet {
            stdin: config.attach_stdin && config.open_stdin,
            stdout: config.attach_stdout || (config.tty && config.attach_stderr),
            stderr: config.attach_stderr && !config.tty,
        })?;
        let size = foreground::window_size();
        let started = self.start_pending(&pending, &[ends.streams()], size, Some(&signals));
        // The monitor has its own. Ours would keep the pipes open after the container's end.
        drop(ends);
        match started {
            Ok(running) => self.stay(&pending.release(), running, pipes, presence, &signals),
            Err(error) => self.abort(&pending.release(), &created.new_volumes, error, &signals),
        }
    }

    /// Starts a container at rest, and stays with it as [`Engine::run`] does. With `interactive`
    /// it gets the caller's input, if it has a standard input.
    pub(crate) fn start_foreground(
        &mut self,
        needle: &str,
        interactive: bool,
        presence: Presence,
    ) -> Result<u8> {
        super::host::require_mounts("start")?;
        let container = self.containers.find(needle)?;
        let signals = Signals::block()?;
        let interrupt = signals.interrupt();
        self.store.set_interrupt(interrupt.try_clone_to_owned()?);
        self.containers
            .set_interrupt(interrupt.try_clone_to_owned()?);
        let Some(pending) = self.begin_start(container)? else {
            return Err(Error::conflict(format!(
                "container {needle} is already running: cowl attach {needle}"
            )));
        };
        let config = &pending.container.config.config;
        let (ends, pipes) =
            attach::pipes(attach::all(interactive && config.open_stdin, config.tty))?;
        let size = foreground::window_size();
        let started = self.start_pending(&pending, &[ends.streams()], size, Some(&signals));
        drop(ends);
        match started {
            Ok(running) => self.stay(&pending.release(), running, pipes, presence, &signals),
            Err(error) => signals.take_interrupt()?.map(exit_code).ok_or(error),
        }
    }

    /// Mounts and launches. An error unmounts again, so that the upper can be removed.
    pub(super) fn start_pending(
        &self,
        pending: &PendingContainer,
        streams: &[Streams<'_>],
        size: WindowSize,
        signals: Option<&Signals>,
    ) -> Result<Running> {
        let config = &pending.container.config;
        pending.container.expect_end()?;
        let mounted = self.mount_root(pending)?;
        if !streams.is_empty() {
            self.tell_container(config, "attach", &[]);
        }
        let launch = Start {
            streams,
            size,
            signals,
        };
        match self.launch(pending, mounted.root.as_fd(), &launch) {
            Ok(monitor) => {
                self.tell_start(config);
                Ok(Running { mounted, monitor })
            }
            Err(error) => {
                mounted.discard(&self.store)?;
                Err(error)
            }
        }
    }

    /// Mounts a container's root, attached nowhere.
    pub(super) fn mount_root(&self, pending: &PendingContainer) -> Result<Mounted> {
        let config = &pending.container.config;
        let short = names::short(&config.id);
        let (upper, work) = pending.container.upper()?;
        let control = handover::listen(pending.container.status_dir(), WORKER_SOCKET)
            .context(|| format!("making the socket of the mount of container {short}"))?;
        let request = mount::Request {
            id: short,
            name: short,
            title: &config.config.image,
            layers: &config.layers,
            io_mode: config.host.io_mode()?,
            ids: &IdMap::default(),
            upper: Some(UpperSource {
                upper: upper.as_fd(),
                work: work.as_fd(),
                volatile: config.host.auto_remove,
            }),
            control: Some(control.as_fd()),
        };
        let lease = self
            .store
            .lease(short, Some(config.image_id), &config.layers)?;
        mount::mount(&self.store, &request, lease)
    }

    /// Fills new volumes, starts the monitor and waits until the program runs.
    fn launch(
        &self,
        pending: &PendingContainer,
        root: BorrowedFd<'_>,
        how: &Start<'_>,
    ) -> Result<Monitor> {
        let config = &pending.container.config;
        let Joined {
            namespaces,
            descriptors: joined,
        } = self.namespaces(&config.host)?;
        let Mounts {
            planned: mounts,
            descriptors: mounted,
            locks: _until_started,
        } = self.mounts_of(&pending.container, root, how.signals)?;
        let mut start = plan(config, how.size, namespaces, mounts)?;
        if let Some(health) = &mut start.monitor.health {
            health.on_change = self.verb(HEALTH, config)?;
        }
        let mut after = self.after(config)?;
        // A caller that does not stay may still be there when it ends.
        after.always |= how.signals.is_none();
        start.monitor.after = Some(after);
        let runtime = helpers::find("cowl-runtime")?;
        let launch = Launch {
            runtime: &runtime,
            start: &start,
            rootfs: root,
            status: pending.status_dir(),
            streams: how.streams,
            descriptors: &joined
                .iter()
                .chain(&mounted)
                .map(AsFd::as_fd)
                .collect::<Vec<_>>(),
        };
        how.signals.map_or(Ok(()), Signals::check_interrupt)?;
        let monitor = launch.spawn()?;
        match wait_started(&monitor, how.signals) {
            Ok(_started) => Ok(monitor),
            Err(error) => {
                monitor.kill().context(|| "killing the monitor")?;
                // It may have started a program that outlives it.
                pending.container.kill_processes()?;
                Err(error)
            }
        }
    }

    /// What the monitor starts when the container has ended and no command stays with it.
    pub(super) fn after(&self, config: &Config) -> Result<After> {
        Ok(After {
            argv: self.verb(FINISH, config)?,
            env: Vec::new(),
            always: config.host.restart_policy.is_set(),
        })
    }

    /// A private command that a monitor runs for its container.
    fn verb(&self, verb: &str, config: &Config) -> Result<Vec<Vec<u8>>> {
        use std::os::unix::ffi::OsStrExt as _;
        let cowl = helpers::own()?;
        let words = [
            cowl.as_os_str(),
            "--root".as_ref(),
            self.store.root().as_os_str(),
            verb.as_ref(),
            config.id.as_ref(),
        ];
        Ok(words.map(|word| word.as_bytes().to_vec()).to_vec())
    }

    /// Stays with a container until it ends: copies its streams, passes signals on, and removes
    /// it if asked to.
    fn stay(
        &self,
        container: &Container,
        running: Running,
        pipes: attach::Pipes,
        presence: Presence,
        signals: &Signals,
    ) -> Result<u8> {
        let Running {
            mounted: Mounted { root, keeper },
            monitor,
        } = running;
        // Now the mount ends with the container, its only user.
        drop(root);
        let ended = foreground::stay(container, &monitor, pipes, presence, signals);
        // A monitor with output that is not copied waits for us.
        let may_linger = matches!(ended, Ok(Ended::Exited { copied: false, .. }));
        let exited = match ended {
            Ok(Ended::Exited { code, .. }) => Ok(code),
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
            Ok(Ended::Interrupted(signal)) => return Ok(exit_code(signal)),
            // As Docker's client, without a word.
            Ok(Ended::Detached) => return Ok(0),
            Err(error) => {
                // Its output has no reader any more.
                container.kill()?;
                Err(error)
            }
        };
        if !may_linger {
            monitor.reap().context(|| "waiting for the monitor")?;
        }
        self.tell_end(container);
        if !keeper.ends_before_a_signal(signals)? {
            // The sweep of a later command removes what is left.
            return exited;
        }
        let mount = keeper.wait(&self.store)?;
        if container.config.host.auto_remove {
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

    /// Ends a start that failed: removes the container if it was interrupted or asked for, and
    /// gives the exit code of an interrupt, else the error.
    fn abort(
        &self,
        container: &Container,
        new_volumes: &[VolumeName],
        error: Error,
        signals: &Signals,
    ) -> Result<u8> {
        // Taken before the removal, whose waits it would end.
        let interrupt = signals.take_interrupt()?;
        if interrupt.is_none() && !container.config.host.auto_remove {
            return Err(error);
        }
        let discarded = self.discard(container, new_volumes);
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
    pub(super) fn discard(&self, container: &Container, new_volumes: &[VolumeName]) -> Result<()> {
        container.kill()?;
        self.remove_container(container, true)?;
        {
            let _guard = self.containers.guard()?;
            for name in new_volumes {
                let name = name.as_str();
                if self.users_of_volume(name)?.is_empty() && self.volumes.remove(name)? {
                    self.tell_volume(name, "destroy", &[]);
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
fn wait_started(monitor: &Monitor, signals: Option<&Signals>) -> Result<Started> {
    let Some(signals) = signals else {
        return monitor.wait_started().map_err(start_error);
    };
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

fn start_error(error: StartError) -> Error {
    match error {
        StartError::Failed(failed) => error::of_program("OCI runtime create failed: ", &failed),
        other => Error::from(other).context("starting the container"),
    }
}
