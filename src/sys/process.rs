//! Processes by number.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A pidfd of the process with this number; `None` if there is none.
///
/// The number of a process that has ended may still name its session or process group. Up to some
/// version after Linux 6.1 that is EINVAL, afterwards ESRCH as for any other number.
pub fn open(pid: Pid) -> io::Result<Option<OwnedFd>> {
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(Errno::SRCH | Errno::INVAL) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::process::test_kill_process_group;

    use super::*;

    #[test]
    fn open_gives_a_process_until_it_is_reaped() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        assert!(open(pid).unwrap().is_some());
        child.wait().unwrap();
        assert!(open(pid).unwrap().is_none());
    }

    /// The leader's child stays in the session, which keeps the leader's number.
    #[test]
    fn open_gives_nothing_for_an_ended_leader_of_a_session() {
        let mut leader = Command::new("setsid")
            .args(["sh", "-c", "exec 3<&0; cat <&3 &"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = leader.stdin.take();
        let pid = Pid::from_child(&leader);
        assert!(leader.wait().unwrap().success());
        test_kill_process_group(pid).unwrap();
        assert!(open(pid).unwrap().is_none());
        drop(input);
    }
}
