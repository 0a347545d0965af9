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
use rustix::io::{Errno, retry_on_intr};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{
    Pid, WaitId, WaitIdOptions, WaitOptions, getpid, kill_process_group, set_child_subreaper, wait,
    waitid,
};

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
            attend(&child, &signals, mounted, &mounting.at)
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
/// user; a second one ends it under them. If the process that holds it dies, it ends too.
fn attend(child: &Child, signals: &SigSet, mounted: u64, at: &Path) -> io::Result<ExitCode> {
    // A worker becomes a child when the holder has died, so that its end can be waited for.
    set_child_subreaper(Some(getpid()))?;
    let holder = Pid::from_child(child);
    let end_all = || kill_process_group(holder, rustix::process::Signal::KILL);
    // Not reaped, so that no other group takes its id.
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    loop {
        match signals.wait()? {
            Signal::SIGCHLD => match waitid(WaitId::Pid(holder), ended)? {
                None => {}
                Some(status) if status.exit_status() == Some(0) => return Ok(ExitCode::SUCCESS),
                Some(_) => {
                    // The worker of one that was killed serves on.
                    end_all()?;
                    unmount_if_there(mounted, at);
                    await_all()?;
                    return Ok(ExitCode::FAILURE);
                }
            },
            _ if unmount_if_there(mounted, at) => {}
            _ => end_all()?,
        }
    }
}

/// Waits until all children have ended: nothing of the mount is left then, and its upper is free.
fn await_all() -> io::Result<()> {
    loop {
        match retry_on_intr(|| wait(WaitOptions::empty())) {
            Ok(_ended) => {}
            Err(Errno::CHILD) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Unmounts, if the mount is still at its place; whether it was.
fn unmount_if_there(mounted: u64, at: &Path) -> bool {
    if device_at(at).ok() != Some(mounted) {
        return false;
    }
    if let Err(error) = unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        fail(&format_args!("cannot unmount {}: {error}", at.display()));
    }
    true
}

/// The device of what is mounted at a directory, without asking the file system.
fn device_at(at: &Path) -> io::Result<u64> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    let found = statx(CWD, at, flags, StatxFlags::TYPE)?;
    let (major, minor) = (found.stx_dev_major, found.stx_dev_minor);
    Ok(rustix::fs::makedev(major, minor))
}
