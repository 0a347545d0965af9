//! What keeper and worker have in common: a known start, a socket as descriptor 0, and, once the
//! mount stands, no more than they need.
//!
//! Invariant: nothing else of the process that started us is left but the environment, ids,
//! niceness and standard error, which is the log.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use cowl_core::handover::MountFailed;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use crate::failure::OrFail;
use crate::sys;

/// Drops what was inherited and takes the socket off descriptor 0.
pub fn begin() -> io::Result<OwnedFd> {
    begin_serving()?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let stdin = io::stdin();
    let socket = stdin.as_fd().try_clone_to_owned()?;
    if !rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&socket)?.st_mode).is_socket() {
        return Err(io::Error::other(
            "descriptor 0 is no socket: this command is for cowl, which hands it one",
        ));
    }
    rustix::stdio::dup2_stdin(&null)?;
    rustix::thread::set_name(c"cowl-mountd")?;
    Ok(socket)
}

/// Drops what was inherited but the standard streams, and leaves the caller's terminal.
pub(crate) fn begin_serving() -> io::Result<()> {
    // Open files of clients are open files of ours, so as many as the system allows.
    cowl_sys::startup::reset(u64::MAX).map_err(io::Error::other)?;
    cowl_sys::startup::survive_file_size_limit().map_err(io::Error::other)?;
    cowl_sys::memory::keep_little()?;
    // Before Linux 6.7 a thread's first use of its stack may take a huge page: 2 MiB a thread.
    rustix::thread::disable_transparent_huge_pages(true)?;
    match rustix::process::setsid() {
        // A caller that made us a session leader already has done the same.
        Ok(_) | Err(Errno::PERM) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Leaves the caller's mount namespace, so that it can end while the mount lives, and gives up
/// capabilities as [`restrict`] does. For a process of one thread that has executed whatever it has
/// to execute; threads that it starts later have the same.
///
/// Where the mount namespace cannot be left the process stays in it, and the log says so.
pub(crate) fn confine(
    effective: CapabilitySet,
    permitted: CapabilitySet,
) -> Result<(), MountFailed> {
    if let Err(error) = sys::namespace::leave() {
        tracing::warn!(%error, "this process stays among its caller's mounts, and may keep them from ending");
    }
    restrict(effective, permitted)
}

/// Gives up every capability but those in `permitted`, for good; those in `effective` are in
/// effect.
pub(crate) fn restrict(
    effective: CapabilitySet,
    permitted: CapabilitySet,
) -> Result<(), MountFailed> {
    drop_capabilities(effective, permitted).or_fail("cannot give up capabilities")
}

/// What a worker begins with, in a process forked off the keeper: its own name in the command line,
/// a session of its own, and all capabilities that the keeper has left, in effect.
pub(crate) fn begin_worker() -> Result<(), Errno> {
    sys::command_line::replace_first_argument(c"keeper", c"worker");
    rustix::process::setsid()?;
    regain_capabilities()
}

/// Puts the capabilities that [`confine`] has permitted into effect.
pub(crate) fn regain_capabilities() -> Result<(), Errno> {
    let held = capabilities(None)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: held.permitted,
            ..held
        },
    )
}

fn drop_capabilities(effective: CapabilitySet, permitted: CapabilitySet) -> Result<(), Errno> {
    let held = capabilities(None)?;
    let kept = permitted & held.permitted;
    clear_ambient_capability_set()?;
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for number in 0..u64::BITS {
            match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number))
            {
                Ok(()) => {}
                // The kernel has no more.
                Err(Errno::INVAL) => break,
                Err(errno) => return Err(errno),
            }
        }
    }
    set_capabilities(
        None,
        CapabilitySets {
            effective: effective & kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    set_no_new_privs(true)
}
