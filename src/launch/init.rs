//! The child between clone and exec: a flat list of system calls on what the [`RootSetup`] holds.
//!
//! It allocates nothing and takes no lock. A failure is sent to the monitor in eight bytes; success
//! closes the report socket, by exec. The container has no other process yet, so its files don't
//! change meanwhile, except in volumes that others share.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::mounts::{self, Dev};
use crate::program;
use crate::reaper;
use crate::setup::{ProgramSetup, RootSetup};
use crate::step::{At as _, Failure, Step};

/// Sets up the container and becomes the program. Returns only on failure.
pub(crate) fn run(root: RootSetup, program: ProgramSetup, report: BorrowedFd<'_>) -> Failure {
    // Never dropped: their descriptors are closed by number, and the process ends in exec or
    // `_exit`.
    let (root, mut program) = (ManuallyDrop::new(root), ManuallyDrop::new(program));
    let mut become_program = || {
        let (terminal, null) = build_root(&root, &program, report)?;
        set_names(&root)?;
        if root.init {
            reaper::split(&null, report)?;
        }
        program::become_program(&mut program, terminal, Some(null), report)
    };
    match become_program() {
        Ok(failure) | Err(failure) => failure,
    }
}

/// Mounts everything and enters the root. Returns the program's end of the terminal, if it has one,
/// and the container's /dev/null.
fn build_root(
    setup: &RootSetup,
    program: &ProgramSetup,
    report: BorrowedFd<'_>,
) -> Result<(Option<OwnedFd>, OwnedFd), Failure> {
    for namespace in &setup.joined {
        rustix::thread::move_into_link_name_space(namespace.as_fd(), None).at(Step::Join)?;
    }
    let root = setup.rootfs.as_fd();
    mounts::attach_root(setup)?;
    let (early, late) = setup
        .mounts
        .split_at_checked(setup.late)
        .unwrap_or((&setup.mounts, &[]));
    let mut dev = Dev::default();
    mounts::attach_all(setup, early, 0, &mut dev)?;
    let (Some(directory), Some(null)) = (dev.directory.take(), dev.null.take()) else {
        return Err(Errno::NODEV).at(Step::Null);
    };
    mounts::mask(root, null.as_fd(), &setup.masked)?;
    mounts::read_only(root, &setup.readonly)?;
    wait_for_monitor(report).at(Step::Barrier)?;
    if setup.own_cgroup {
        crate::sys::clone::unshare_cgroup_namespace().at(Step::CgroupNamespace)?;
    }
    mounts::attach_all(setup, late, setup.late, &mut dev)?;
    let terminal = match (program.terminal, &dev.pts) {
        (Some(size), Some(pts)) => {
            Some(program::open_terminal(pts.as_fd(), size, report).at(Step::Terminal)?)
        }
        (Some(_), None) => return Err(Errno::NODEV).at(Step::Terminal),
        (None, _) => None,
    };
    if let Some(terminal) = &terminal {
        mounts::console(directory.as_fd(), terminal.as_fd()).at(Step::Console)?;
    }
    mounts::pivot(setup).at(Step::Pivot)?;
    Ok((terminal, null))
}

/// Waits until the monitor has recorded the process, which may run a program then that outlives it.
pub(crate) fn wait_for_monitor(report: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut byte = [0; 1];
    let (received, _) = rustix::io::retry_on_intr(|| recv(report, &mut byte, RecvFlags::empty()))?;
    if received == 1 {
        Ok(())
    } else {
        Err(Errno::PIPE)
    }
}

/// Names the container's own UTS namespace and brings up its own network.
fn set_names(setup: &RootSetup) -> Result<(), Failure> {
    if setup.own_uts {
        rustix::system::sethostname(&setup.hostname).at(Step::HostName)?;
        if !setup.domainname.is_empty() {
            rustix::system::setdomainname(&setup.domainname).at(Step::DomainName)?;
        }
    }
    if setup.own_net {
        crate::sys::net::loopback_up().at(Step::Loopback)?;
    }
    Ok(())
}
