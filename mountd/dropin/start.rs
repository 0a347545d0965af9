//! The command that was typed: starts the process that serves, and waits for it.
//!
//! In the foreground it also takes the signals that end it, and unmounts. The process that serves
//! has left its caller's mounts and given up the privilege to do so.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode};

use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, kill_process_group};

use super::{Mounting, SERVING, fail};

/// What ends a process in the foreground.
const ENDING: [Signal; 3] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];

/// Mounts; returns when the mount answers, in the foreground when it has ended.
pub(super) fn run(arguments: &[OsString], mounting: &Mounting) -> ExitCode {
    let signals = match signals(mounting.foreground) {
        Ok(signals) => signals,
        Err(error) => return fail(&format_args!("cannot block signals: {error}")),
    };
    let (mut reader, mut child) = match start(arguments) {
        Ok(started) => started,
        Err(error) => return fail(&format_args!("cannot start: {error}")),
    };
    let mut device = [0; size_of::<u64>()];
    let outcome = match (reader.read_exact(&mut device), signals) {
        (Ok(()), None) => return ExitCode::SUCCESS,
        (Ok(()), Some(signals)) => {
            let mounted = u64::from_ne_bytes(device);
            attend(&mut child, &signals, mounted, &mounting.at)
        }
        // It has said why.
        (Err(_), _) => child.wait().map(|_ended| ExitCode::FAILURE),
    };
    outcome.unwrap_or_else(|error| fail(&error))
}

/// Starts the process that serves. What can be read is the mount's device when it answers, or the
/// end of the file.
fn start(arguments: &[OsString]) -> io::Result<(File, Child)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("cowl-mountd")
        .arg(SERVING)
        .args(arguments.get(1..).unwrap_or_default())
        .stdin(writer);
    // Of the two pipe ends only the child's copy stays open.
    let child = command.spawn()?;
    drop(command);
    Ok((File::from(reader), child))
}

/// Blocks the signals that are waited for in the foreground. One that the caller ignores, as
/// nohup(1) does, stays ignored.
fn signals(foreground: bool) -> io::Result<Option<SigSet>> {
    if !foreground {
        return Ok(None);
    }
    let ignored = cowl_sys::signals::ignored()?;
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    for signal in ENDING {
        if !ignored.contains(signal as i32) {
            set.add(signal);
        }
    }
    set.thread_block()?;
    Ok(Some(set))
}

/// Waits until the mount has ended. The first signal unmounts it, so that it ends with its last
/// user; a second one ends it under them.
fn attend(child: &mut Child, signals: &SigSet, mounted: u64, at: &Path) -> io::Result<ExitCode> {
    loop {
        match signals.wait()? {
            Signal::SIGCHLD => match child.try_wait()? {
                None => {}
                Some(status) if status.success() => return Ok(ExitCode::SUCCESS),
                Some(_) => return Ok(ExitCode::FAILURE),
            },
            _ if device_at(at).ok() == Some(mounted) => {
                let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
                if let Err(error) = unmount(at, flags) {
                    fail(&format_args!("cannot unmount {}: {error}", at.display()));
                }
            }
            // With its worker.
            _ => kill_process_group(Pid::from_child(child), rustix::process::Signal::KILL)?,
        }
    }
}

/// The device of what is mounted at a directory, without asking the file system.
fn device_at(at: &Path) -> io::Result<u64> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    let found = statx(CWD, at, flags, StatxFlags::TYPE)?;
    let (major, minor) = (found.stx_dev_major, found.stx_dev_minor);
    Ok(rustix::fs::makedev(major, minor))
}
