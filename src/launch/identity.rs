//! Identifies a process beyond its pid, which the kernel reuses, within a boot and after a reboot.
//!
//! The monitor records the identity of its program ([`crate::status`]). A command that kills a
//! program whose monitor is dead compares.

use std::io::{self, Read as _};

use rustix::io::Errno;

/// What differs between two processes of the same pid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    /// In clock ticks since then (field 22 of /proc/PID/stat, proc_pid_stat(5)).
    pub start_time: u64,
}

impl Identity {
    /// Identity of the process that has this pid now; none if there is no such process.
    pub fn of(pid: u32) -> io::Result<Option<Self>> {
        let stat = match read(&format!("/proc/{pid}/stat")) {
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::NOENT | Errno::SRCH)
                ) =>
            {
                return Ok(None);
            }
            other => other?,
        };
        let start_time = start_time(&stat)
            .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is malformed")))?;
        let boot = cowl_sys::boot::id()?;
        Ok(Some(Self { boot, start_time }))
    }
}

/// Field 22. Fields are counted from the last parenthesis, which ends the second: the name between
/// may hold anything.
fn start_time(stat: &str) -> Option<u64> {
    let (_, after) = stat.rsplit_once(") ")?;
    after.split(' ').nth(22 - 3)?.parse().ok()
}

fn read(path: &str) -> io::Result<String> {
    let mut text = String::with_capacity(1 << 10);
    std::fs::File::open(path)?
        .take(1 << 12)
        .read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_any_process_name() {
        let stat = "7 (a) b) 1 2) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2\n";
        assert_eq!(start_time(stat), Some(4711));
        assert_eq!(start_time("7 (a) S 1"), None);
        assert_eq!(start_time(""), None);
    }

    #[test]
    fn two_processes_have_different_identities() {
        let own = Identity::of(std::process::id()).unwrap().unwrap();
        assert_eq!(Identity::of(std::process::id()).unwrap(), Some(own.clone()));
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let other = Identity::of(child.id()).unwrap().unwrap();
        assert_eq!(own.boot, other.boot);
        assert!(own.start_time <= other.start_time);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(Identity::of(child.id()).unwrap(), None);
    }
}
