//! The temporary directory and the namespaces that everything runs in.
//!
//! [`run`] creates the directory and re-executes this program as the first process of new mount and
//! pid namespaces, by unshare(1): so no process of the host gets a copy of the mounts, and all
//! processes end with the first. [`run`]'s process is their subreaper: when it has no child left,
//! it removes the directory. Signals that would end it end the namespaces first. SIGKILL ends the
//! namespaces too, but leaves the directory.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal, raise};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, getpid, set_child_subreaper, wait};

use crate::FAILURE;

const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Runs the command in its namespaces, until all its processes have ended.
pub(crate) fn run() -> Result<ExitCode> {
    let ignored = cowl_sys::signals::ignored().context("which signals are ignored")?;
    let is_ending = |signal: &Signal| !ignored.contains(*signal as i32);
    let ending: SigSet = ENDING.into_iter().filter(is_ending).collect();
    let mut waited = ending;
    waited.add(Signal::SIGCHLD);
    waited.thread_block().context("blocking signals")?;
    set_child_subreaper(Some(getpid())).context("becoming a subreaper")?;

    let place = tempfile::Builder::new()
        .prefix("cowl-bench.")
        .tempdir()
        .context("a temporary directory")?;
    let ended = start(&place).and_then(|child| until_all_ended(child, waited));
    place.close().context("removing the temporary directory")?;
    let (status, signal) = ended?;
    if let Some(signal) = signal {
        // Die by the signal, so that the caller sees it.
        ending.thread_unblock().context("unblocking signals")?;
        raise(signal).context("ending by a signal")?;
    }
    let code = status.and_then(WaitStatus::exit_status);
    let code = code.and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(FAILURE)))
}

/// Re-executes this program in new namespaces.
fn start(place: &tempfile::TempDir) -> Result<Pid> {
    let own = std::env::current_exe().context("this program's path")?;
    // Its own process group: a terminal's signals reach only this process.
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation"])
        .args(["private", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg("--")
        .arg(own)
        .args(std::env::args_os().skip(1))
        .arg("--place")
        .arg(place.path())
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .context("setpriv and unshare (util-linux)")?;
    Ok(Pid::from_child(&child))
}

/// Waits for every descendant; returns the status of `first` and the signal received, if any.
fn until_all_ended(first: Pid, waited: SigSet) -> Result<(Option<WaitStatus>, Option<Signal>)> {
    let (mut status, mut signal) = (None, None);
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, ended))) if pid == first => status = Some(ended),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Err(Errno::CHILD) => return Ok((status, signal)),
            Err(error) => return Err(error).context("waiting for processes"),
            Ok(None) => match waited.wait().context("waiting for signals")? {
                Signal::SIGCHLD => {}
                ending => {
                    signal = Some(ending);
                    end(first, status.is_some())?;
                }
            },
        }
    }
}

/// Kills the process with which `--kill-child` ends the namespaces. It is not reaped yet, so the
/// pid is still its own.
fn end(first: Pid, reaped: bool) -> Result<()> {
    if reaped {
        return Ok(());
    }
    rustix::process::kill_process(first, rustix::process::Signal::KILL)
        .context("ending the namespaces")
}

/// Called first in the namespaces: unblocks the signals.
pub(crate) fn enter() -> Result<()> {
    if getpid() != Pid::INIT {
        bail!("--place is for the command itself");
    }
    SigSet::all().thread_unblock().context("unblocking signals")
}
