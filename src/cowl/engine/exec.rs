//! `exec` and `attach`: further programs in a running container, and its streams.

use super::container::Container;
use super::container::state::Status;
use super::docker::ContainerConfig;
use super::error::{self, Error, Result};
use super::events::{self, Actor, Events, Type};
use super::process::Process;
use super::{Engine, start};
use cowl_launch::control::{Control, ControlError, Streams, Target};
use cowl_launch::process::WindowSize;
use std::os::fd::{AsFd, BorrowedFd};

/// The parameters of [`Engine::exec`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the container's: `NAME=VALUE`, or a bare `NAME` to unset.
    pub env: Vec<String>,
    /// Instead of the container's.
    pub working_dir: Option<String>,
    /// Instead of the container's.
    pub user: Option<String>,
    /// Size of its own terminal in lines and columns; None for no terminal.
    pub terminal: Option<(u16, u16)>,
    /// Whether it has all capabilities.
    pub privileged: bool,
    /// Whether its standard input is open.
    pub open_stdin: bool,
}

impl ExecRequest {
    /// The container's configuration with the request applied.
    pub(super) fn configure(&self, container: &ContainerConfig) -> Result<ContainerConfig> {
        let mut config = container.clone();
        config.tty = self.terminal.is_some();
        config.env.extend(self.env.iter().cloned());
        if let Some(user) = &self.user {
            config.user.clone_from(user);
        }
        if let Some(directory) = &self.working_dir {
            config.working_dir.clone_from(directory);
        }
        super::process::check(&config)?;
        Ok(config)
    }
}

/// A program that was started in a container.
#[derive(Debug)]
pub struct Exec {
    /// Its id.
    pub id: String,
    /// Its process in the monitor's pid namespace.
    pub pid: u32,
    waiting: Control,
    control: Control,
    log: Events,
    /// The container, as the actor of its end's event.
    actor: Actor,
}

/// A client attached to a container's streams.
#[derive(Debug)]
pub struct Attachment {
    waiting: Control,
    control: Control,
}

impl Engine {
    /// Starts a program in a running container, under an id that is unique there.
    pub fn exec(
        &self,
        needle: &str,
        id: &str,
        request: &ExecRequest,
        streams: Streams<'_>,
    ) -> Result<Exec> {
        let container = self.containers.find(needle)?;
        if request.argv.is_empty() {
            return Err(Error::invalid("No exec command specified"));
        }
        if container.status()? == Status::Paused {
            let id = &container.config.id;
            return Err(Error::conflict(format!(
                "Container {id} is paused, unpause the container before exec"
            )));
        }
        let control = self.running(&container)?;
        let config = request.configure(&container.config.config)?;
        let merged = Process {
            argv: request.argv.clone(),
            ..Process::of(&config)
        };
        let size = request
            .terminal
            .map(|(rows, columns)| WindowSize { rows, columns });
        let mut process = start::process(&container.config, &merged, size)?;
        if request.privileged {
            process.capabilities = super::capabilities::all_capabilities()?;
        }
        let words = request.argv.join(" ");
        let execution = [("execID", id)];
        let tell = |action: &str| {
            let action = format!("{action}: {words}");
            self.tell_container(&container.config, &action, &execution);
        };
        tell("exec_create");
        let pid = control
            .exec(id, &process, request.open_stdin, streams)
            .map_err(exec_error)?;
        tell("exec_start");
        let waiting = self.running(&container)?;
        waiting.request_wait(Target::Exec(id.to_owned()))?;
        Ok(Exec {
            id: id.to_owned(),
            pid,
            waiting,
            control,
            log: self.event_log(),
            actor: events::actor_of(&container.config, &execution),
        })
    }

    /// Sets the size of the terminal of a program that was started in a container.
    pub fn resize_exec(&self, needle: &str, id: &str, rows: u16, columns: u16) -> Result<()> {
        let control = self.running(&self.containers.find(needle)?)?;
        let size = WindowSize { rows, columns };
        Ok(control.resize(Target::Exec(id.to_owned()), size)?)
    }

    /// The configuration of a container that streams can be attached to.
    pub fn attachable(&self, needle: &str) -> Result<ContainerConfig> {
        let container = self.containers.find(needle)?;
        self.control_to_attach(&container)?;
        Ok(container.config.config)
    }

    fn control_to_attach(&self, container: &Container) -> Result<Control> {
        let refused = |why: &str| Error::conflict(format!("You cannot attach to a {why}"));
        if container.status()? == Status::Paused {
            return Err(refused("paused container, unpause it first"));
        }
        self.control(container)?
            .ok_or_else(|| refused("stopped container, start it first"))
    }

    /// Attaches streams to a running container, from now on.
    pub fn attach(&self, needle: &str, streams: Streams<'_>) -> Result<Attachment> {
        let container = self.containers.find(needle)?;
        let control = self.control_to_attach(&container)?;
        let waiting = self.running(&container)?;
        control.attach(Target::Program, streams)?;
        waiting.request_wait(Target::Program)?;
        self.tell_container(&container.config, "attach", &[]);
        Ok(Attachment { waiting, control })
    }
}

fn exec_error(error: ControlError) -> Error {
    match error {
        ControlError::Failed(failed) => error::of_exec(&failed),
        other => other.into(),
    }
}

impl Exec {
    fn tell_end(&self, code: u8) {
        let mut actor = self.actor.clone();
        let attributes = &mut actor.attributes;
        attributes.insert("exitCode".to_owned(), code.to_string());
        self.log.tell(Type::Container, "exec_die", &actor);
    }
}

impl Attachment {
    /// Others write the event of the container's end.
    #[expect(clippy::unused_self, reason = "the other kind of client tells its own")]
    fn tell_end(&self, _code: u8) {}
}

macro_rules! client {
    ($name:ident, $target:expr) => {
        impl AsFd for $name {
            /// Readable once the program has ended.
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.waiting.as_fd()
            }
        }

        impl $name {
            /// Waits for the end of the program, and returns its exit code.
            pub fn wait(&self) -> Result<u8> {
                let code = self.waiting.finish_wait()?.exit_code;
                self.tell_end(code);
                Ok(code)
            }

            /// Sends a signal to the program.
            pub fn signal(&self, number: u8) -> Result<()> {
                Ok(self.control.signal($target(self), number)?)
            }

            /// Sets the size of its terminal.
            pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
                let size = WindowSize { rows, columns };
                Ok(self.control.resize($target(self), size)?)
            }
        }
    };
}

client!(Exec, |exec: &Exec| Target::Exec(exec.id.clone()));
client!(Attachment, |_attachment: &Attachment| Target::Program);
