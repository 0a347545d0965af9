//! The first process of a container with `--init`: it starts the program, forwards signals to it,
//! reaps what is left to it and ends with the program's exit code.
//!
//! A program that is process 1 itself gets no signal that it does not handle, and has to reap the
//! orphans of the container; few are written for that. Neither process allocates. Caller:
//! [`crate::init`].

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use nix::sys::signal::SigSet;
use rustix::io::Errno;
use rustix::process::{Signal, WaitOptions, set_parent_process_death_signal, wait};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::program::die_with_monitor;
use crate::step::{At as _, Failure, Step};
use crate::sys::clone::{Cloned, NewNamespaces, clone_process, exit_now};
use crate::sys::signal::{send, wait_for_any};

/// Exit code if the program can't be waited for.
const LOST: u8 = 125;

/// Becomes the first process for good, and returns in another that becomes the program.
pub(crate) fn split(null: &OwnedFd, report: BorrowedFd<'_>) -> Result<(), Failure> {
    // What comes before the loop is kept for it.
    SigSet::all()
        .thread_set_mask()
        .map_err(|errno| Errno::from_raw_os_error(errno as i32))
        .at(Step::Signals)?;
    let Cloned::Parent { pid, pidfd } =
        clone_process(NewNamespaces::default(), None).at(Step::Clone)?
    else {
        return set_parent_process_death_signal(None).at(Step::ParentDeath);
    };
    // A step that fails here ends the container; the reason is the program's to report, or none.
    let prepared = prepare(null, report);
    if prepared.is_err() {
        exit_now(LOST);
    }
    exit_now(serve(pid, &pidfd))
}

/// Keeps nothing but the pidfd: neither the program's streams nor its report.
fn prepare(null: &OwnedFd, report: BorrowedFd<'_>) -> Result<(), Failure> {
    die_with_monitor(report)?;
    rustix::stdio::dup2_stdin(null).at(Step::Stdio)?;
    rustix::stdio::dup2_stdout(null).at(Step::Stdio)?;
    rustix::stdio::dup2_stderr(null).at(Step::Stdio)?;
    rustix::thread::set_name(c"cowl-init").at(Step::Session)?;
    // To signal a program of another user.
    let kept = CapabilitySets {
        effective: CapabilitySet::KILL,
        permitted: CapabilitySet::KILL,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, kept).at(Step::Capabilities)
}

fn serve(program: rustix::process::Pid, pidfd: &OwnedFd) -> u8 {
    // By number: everything else that this process has is the monitor's.
    if crate::sys::exec::close_others(pidfd.as_fd()).is_err() {
        return LOST;
    }
    loop {
        match wait_for_any() {
            Ok(number) if number == Signal::CHILD.as_raw() => {}
            Ok(number) => match send(pidfd.as_fd(), number) {
                // One that has ended is reaped next.
                Ok(()) | Err(_) => continue,
            },
            Err(Errno::INTR) => continue,
            Err(_errno) => return LOST,
        }
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == program => {
                    let code = |code: i32| u8::try_from(code & 0xff).unwrap_or(LOST);
                    let signalled = status.terminating_signal().map(|signal| 128 + signal);
                    return code(signalled.or(status.exit_status()).unwrap_or(LOST.into()));
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(Errno::INTR) => break,
                Err(_errno) => return LOST,
            }
        }
    }
}
