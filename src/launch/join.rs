//! A process that joins a running container, between clone and exec.
//!
//! It is made in two steps. The first process stays outside of the container's pid namespace, where
//! no process of the container can see it: it drops every descriptor of the monitor, enters the
//! other namespaces and clones the second. Only that one is in the pid namespace, and it has
//! nothing of the host but the launcher's sealed file (CVE-2016-9962, CVE-2019-5736). It becomes
//! the program, as a child of the monitor. Neither allocates. Caller: [`crate::monitor`].

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FsWord, OFlags, fstatfs};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::init::wait_for_monitor;
use crate::path::open_no_symlinks;
use crate::program::{become_program, open_terminal};
use crate::setup::ProgramSetup;
use crate::step::{At as _, Failure, Step};
use crate::sys::clone::{Cloned, NewNamespaces, clone_sibling, exit_now};

/// Report with the pid of the second process, and its pidfd.
pub(crate) const PID: u8 = b'P';

/// linux/magic.h.
const DEVPTS_SUPER_MAGIC: FsWord = 0x1cd1;

/// The namespaces of a container, as far as it does not share them with the monitor.
#[derive(Debug)]
pub(crate) struct ContainerNamespaces {
    pub(crate) cgroup: Option<OwnedFd>,
    pub(crate) ipc: Option<OwnedFd>,
    pub(crate) uts: Option<OwnedFd>,
    pub(crate) net: Option<OwnedFd>,
    pub(crate) mount: OwnedFd,
    /// For children only.
    pub(crate) pid: Option<OwnedFd>,
}

impl ContainerNamespaces {
    /// In the order in which they are entered: that of mounts comes last, since its files are the
    /// container's.
    fn entered(&self) -> impl Iterator<Item = &OwnedFd> {
        self.cgroup
            .iter()
            .chain(self.shareable())
            .chain(std::iter::once(&self.mount))
    }

    /// Of ipc, uts and net, in this order.
    pub(crate) fn shareable(&self) -> impl Iterator<Item = &OwnedFd> {
        [&self.ipc, &self.uts, &self.net].into_iter().flatten()
    }
}

/// Joins the container and becomes the program. Returns only on failure.
pub(crate) fn run(
    namespaces: &ContainerNamespaces,
    program: ProgramSetup,
    report: BorrowedFd<'_>,
) -> Failure {
    // Never dropped: its descriptors are closed by number.
    let mut program = ManuallyDrop::new(program);
    match join(namespaces, &mut program, report) {
        Ok(failure) | Err(failure) => failure,
    }
}

fn join(
    namespaces: &ContainerNamespaces,
    program: &mut ProgramSetup,
    report: BorrowedFd<'_>,
) -> Result<Failure, Failure> {
    for namespace in namespaces.entered() {
        move_into_link_name_space(namespace.as_fd(), None).at(Step::Join)?;
    }
    if let Some(pid) = &namespaces.pid {
        let kind = Some(LinkNameSpaceType::ProcessID);
        move_into_link_name_space(pid.as_fd(), kind).at(Step::Join)?;
    }
    // From here on the container's processes may see what this one and the next have.
    if let Some([input, output, error]) = program.stdio.take() {
        rustix::stdio::dup2_stdin(input).at(Step::Stdio)?;
        rustix::stdio::dup2_stdout(output).at(Step::Stdio)?;
        rustix::stdio::dup2_stderr(error).at(Step::Stdio)?;
    }
    crate::sys::exec::close_others(report).at(Step::Descriptors)?;
    clone_and_report(NewNamespaces::default(), None, report)?;
    // Until it is known and in its cgroups.
    wait_for_monitor(report).at(Step::Barrier)?;
    let terminal = match program.terminal {
        None => None,
        Some(size) => {
            let pts = terminals().at(Step::Pts)?;
            Some(open_terminal(pts.as_fd(), size, report).at(Step::Terminal)?)
        }
    };
    become_program(program, terminal, None, report)
}

/// Clones a child of the monitor and ends, once the monitor has its pid. Returns in the child.
fn clone_and_report(
    new: NewNamespaces,
    cgroup: Option<BorrowedFd<'_>>,
    report: BorrowedFd<'_>,
) -> Result<(), Failure> {
    if let Cloned::Parent { pid, pidfd } = clone_sibling(new, cgroup).at(Step::Clone)? {
        let [a, b, c, d] = pid.as_raw_nonzero().get().to_le_bytes();
        crate::socket::send(report, &[PID, a, b, c, d], &[pidfd.as_fd()]).at(Step::Report)?;
        exit_now(0);
    }
    Ok(())
}

/// Makes the first process of a container whose pid namespace is another's. To be called in a
/// child: the monitor itself could not come back from there. Returns in the first process.
pub(crate) fn clone_in(
    pid_namespace: BorrowedFd<'_>,
    new: NewNamespaces,
    cgroup: Option<BorrowedFd<'_>>,
    report: BorrowedFd<'_>,
) -> Result<(), Failure> {
    let kind = Some(LinkNameSpaceType::ProcessID);
    move_into_link_name_space(pid_namespace, kind).at(Step::Join)?;
    clone_and_report(new, cgroup, report)
}

/// The container's /dev/pts. Its processes can't create files there, so what is opened in it is the
/// kernel's.
fn terminals() -> Result<OwnedFd, Errno> {
    let directory = open_no_symlinks(CWD, c"dev/pts", OFlags::PATH | OFlags::DIRECTORY)?;
    if fstatfs(&directory)?.f_type == DEVPTS_SUPER_MAGIC {
        Ok(directory)
    } else {
        Err(Errno::NODEV)
    }
}
