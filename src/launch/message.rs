//! Requests to the monitor, and its replies.
//!
//! Plain data, without system calls. Callers: the engine (through [`crate::client`]) and the
//! monitor.

use std::time::Duration;

use bincode::{Decode, Encode};

use crate::process::{Process, WindowSize};
use crate::sandbox::Sandbox;

/// What a monitor is started with, beside its descriptors. It passes between binaries of one build
/// only.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Start {
    /// The container.
    pub sandbox: Sandbox,
    /// Its first process.
    pub process: Process,
    /// What the monitor does beside.
    pub monitor: MonitorOptions,
}

impl Start {
    /// With a monitor that keeps no log and has no standard input to attach to.
    pub fn new(sandbox: Sandbox, process: Process) -> Self {
        Self {
            sandbox,
            process,
            monitor: MonitorOptions::default(),
        }
    }
}

/// What a monitor does beside running its container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct MonitorOptions {
    /// The program has a standard input that can be attached to; else it reads /dev/null.
    pub open_stdin: bool,
    /// The end of the first input that is attached is the end of the program's. Not of a terminal.
    pub stdin_once: bool,
    /// Keep a log of the program's output, in the status directory.
    pub log: Option<LogOptions>,
    /// Tells whether the container does its work.
    pub health: Option<HealthCheck>,
    /// Run when the container has ended.
    pub after: Option<After>,
}

/// A program that joins the container now and then: exit code 0 is healthy.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HealthCheck {
    /// The program.
    pub process: Process,
    /// Time from the end of one to the start of the next.
    pub interval: Duration,
    /// After this time it is killed, and counts as failed.
    pub timeout: Duration,
    /// Time after the container's start in which failures do not count.
    pub start_period: Duration,
    /// The interval in that time, until the first success.
    pub start_interval: Duration,
    /// Failures in a row that make the container unhealthy.
    pub retries: u32,
    /// Started on the host when the container becomes `healthy` or `unhealthy`, with that word as
    /// its last argument: program, by its path, and arguments.
    pub on_change: Vec<Vec<u8>>,
}

/// A log in the format of Docker's json-file driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LogOptions {
    /// From how many bytes on a file is renamed for a new one; 0 is never.
    pub max_size: u64,
    /// Number of files, the newest included.
    pub max_file: u32,
}

/// A program that the monitor starts on the host when all else is done.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct After {
    /// Program, by its path, and arguments.
    pub argv: Vec<Vec<u8>>,
    /// Its whole environment.
    pub env: Vec<Vec<u8>>,
    /// Also if the client that started the monitor is still there to do what is left.
    pub always: bool,
}

impl After {
    /// Starts it, without waiting for its end.
    ///
    /// # Errors
    /// Those of `execve(2)`; EINVAL without a program.
    pub fn spawn(&self) -> std::io::Result<std::process::Child> {
        spawn(&self.argv, &self.env)
    }
}

/// Starts a program on the host, without input and output, without waiting for its end.
///
/// # Errors
/// Those of `execve(2)`; EINVAL without a program.
pub(crate) fn spawn(argv: &[Vec<u8>], env: &[Vec<u8>]) -> std::io::Result<std::process::Child> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::process::{Command, Stdio};
    let text = OsStr::from_bytes;
    let mut argv = argv.iter().map(|argument| text(argument));
    let Some(program) = argv.next() else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let variables = env.iter().filter_map(|variable| {
        let at = variable.iter().position(|byte| *byte == b'=')?;
        let (key, value) = variable.split_at_checked(at)?;
        Some((text(key), text(value.get(1..)?)))
    });
    Command::new(program)
        .args(argv)
        .env_clear()
        .envs(variables)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// A message of the client to a running monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ControlRequest {
    /// Send a signal to the container's first process.
    Signal(Signal),
    /// Set the size of the container's terminal, if it has one.
    Resize(WindowSize),
}

/// A signal number of the kernel, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Signal {
    /// As in signal(7).
    pub number: u8,
}

/// A message of the monitor to the client that started it. `Failed` or `Exited` is the last.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Event {
    /// The program runs.
    Started(Started),
    /// The program did not start. Everything is cleaned up.
    Failed(Failed),
    /// The program has ended. Everything is cleaned up but the [exit record](crate::status).
    Exited(Exited),
}

/// See [`Event::Started`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Started {
    /// Pid of the container's first process in the monitor's pid namespace.
    pub pid: u32,
}

/// See [`Event::Failed`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Failed {
    /// The step that failed, in words: `mount /proc`.
    pub what: String,
    /// The error of the kernel; 0 if there is none.
    pub errno: i32,
    /// As Docker's: 127 program not found, 126 program can't be run, 125 everything else.
    pub exit_code: u8,
}

/// See [`Event::Exited`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Exited {
    /// The program's, or 128 + the signal that killed it.
    pub exit_code: u8,
    /// The signal that killed it, if one did.
    pub signal: Option<u8>,
    /// The OOM killer has killed a process of the container.
    pub oom_killed: bool,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.what)?;
        if self.errno != 0 {
            write!(
                formatter,
                ": {}",
                std::io::Error::from_raw_os_error(self.errno)
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for Failed {}
