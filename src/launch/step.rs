//! Failures between clone and exec, as eight bytes: the child can't allocate, so the monitor makes
//! the message.

use std::os::unix::ffi::OsStrExt as _;

use rustix::io::Errno;

use crate::message::Failed;
use crate::process::Process;
use crate::sandbox::{MountSource, Sandbox};

macro_rules! steps {
    ($($name:ident = $number:literal: $text:literal,)*) => {
        /// A step of the child; the number is what travels.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Step {
            $(#[doc = $text] $name = $number,)*
        }

        impl Step {
            fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

steps! {
    Detach = 1: "separate the container's mounts from the host's",
    Root = 2: "mount the container's root",
    Join = 3: "join a namespace",
    Mount = 4: "mount",
    Node = 5: "create the device",
    Links = 6: "create the links in /dev",
    Null = 7: "open /dev/null",
    Sysctl = 8: "set sysctl",
    Barrier = 9: "wait for the monitor",
    CgroupNamespace = 10: "create a cgroup namespace",
    Mask = 11: "mask",
    ReadOnly = 12: "make read-only",
    Terminal = 13: "open a terminal",
    Console = 14: "mount /dev/console",
    Pivot = 15: "enter the container's root",
    HostName = 16: "set the host name",
    DomainName = 17: "set the domain name",
    Loopback = 18: "bring up the loopback interface",
    Stdio = 19: "set up standard input and output",
    Session = 20: "start a session",
    Passwd = 21: "read the container's /etc/passwd",
    Group = 22: "read the container's /etc/group",
    UnknownUser = 23: "unable to find user",
    UnknownGroup = 24: "unable to find group",
    UserNumber = 25: "number out of range in user",
    TooManyGroups = 26: "too many groups in the container's /etc/group for user",
    NamedGroup = 27: "unable to find group",
    WorkingDirectory = 28: "enter the working directory",
    ResourceLimit = 29: "set a resource limit",
    BoundingSet = 30: "drop capabilities",
    Credentials = 31: "become user",
    Capabilities = 32: "set capabilities",
    NewPrivileges = 33: "set no_new_privs",
    ParentDeath = 34: "set the parent death signal",
    Signals = 35: "reset signals",
    Descriptors = 36: "close descriptors",
    Home = 37: "set HOME",
    Exec = 38: "exec",
    Seccomp = 39: "filter system calls",
    Keyring = 40: "create a session keyring",
    Clone = 41: "create the process",
    Pts = 42: "open the container's /dev/pts",
    Report = 43: "report the process to the monitor",
    Cgroups = 44: "move the container into its cgroups",
}

/// A step that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    /// Position of the volume or path in the plan.
    pub(crate) index: u16,
    pub(crate) errno: Errno,
}

/// Adds the step to an error.
pub(crate) trait At<T> {
    fn at(self, step: Step) -> Result<T, Failure>;
    fn at_index(self, step: Step, index: usize) -> Result<T, Failure>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, step: Step) -> Result<T, Failure> {
        self.at_index(step, 0)
    }

    fn at_index(self, step: Step, index: usize) -> Result<T, Failure> {
        self.map_err(|errno| Failure {
            step,
            index: u16::try_from(index).unwrap_or(u16::MAX),
            errno,
        })
    }
}

impl Failure {
    pub(crate) const BYTES: usize = 8;

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let [s0, s1] = (self.step as u16).to_le_bytes();
        let [i0, i1] = self.index.to_le_bytes();
        let [e0, e1, e2, e3] = self.errno.raw_os_error().to_le_bytes();
        [s0, s1, i0, i1, e0, e1, e2, e3]
    }

    pub(crate) fn from_bytes(bytes: [u8; Self::BYTES]) -> Option<Self> {
        let [s0, s1, i0, i1, errno @ ..] = bytes;
        let step = Step::from_number(u16::from_le_bytes([s0, s1]))?;
        let index = u16::from_le_bytes([i0, i1]);
        Some(Self {
            step,
            index,
            errno: Errno::from_raw_os_error(i32::from_le_bytes(errno)),
        })
    }

    /// Describes the failure, with the names it was asked for.
    pub(crate) fn describe(self, sandbox: Option<&Sandbox>, process: &Process) -> Failed {
        let index = usize::from(self.index);
        let subject = match self.step {
            Step::Mask => sandbox.and_then(|sandbox| sandbox.masked_paths.get(index)),
            Step::ReadOnly => sandbox.and_then(|sandbox| sandbox.readonly_paths.get(index)),
            Step::Node => sandbox
                .and_then(|sandbox| sandbox.devices.get(index))
                .map(|device| &device.path),
            Step::UnknownUser
            | Step::UnknownGroup
            | Step::UserNumber
            | Step::TooManyGroups
            | Step::Credentials => Some(&process.user),
            Step::NamedGroup => process.groups.get(index),
            Step::WorkingDirectory => Some(&process.cwd),
            Step::Exec => process.argv.first(),
            _ => None,
        };
        let mut what = self.step.text().to_owned();
        if let Some(subject) = subject {
            what = format!("{what} \"{}\"", shortened(subject));
        }
        let mount = sandbox.and_then(|sandbox| sandbox.mounts.get(index));
        if let (Step::Mount, Some(mount)) = (self.step, mount) {
            let destination = shortened(&mount.destination);
            what = match mount.source {
                MountSource::Descriptor { .. } => format!("mount the volume at \"{destination}\""),
                _ => format!("mount {destination}"),
            };
        }
        let sysctl = sandbox.and_then(|sandbox| sandbox.sysctls.get(index));
        if let (Step::Sysctl, Some(sysctl)) = (self.step, sysctl) {
            what = format!("{what} \"{}\"", shortened(sysctl.name.as_bytes()));
        }
        if let Some(unknown) = self.unknown_name(process) {
            what = unknown;
        }
        let is_complete = match (self.step, self.errno) {
            (
                Step::UnknownUser
                | Step::UnknownGroup
                | Step::UserNumber
                | Step::TooManyGroups
                | Step::NamedGroup,
                _,
            ) => true,
            // The only cause of EINVAL here (setresuid(2)).
            (Step::Credentials, Errno::INVAL) => {
                what.push_str(
                    ": this user namespace has no such ids (unshare --map-auto maps more)",
                );
                true
            }
            _ => false,
        };
        Failed {
            what,
            errno: if is_complete {
                0
            } else {
                self.errno.raw_os_error()
            },
            exit_code: self.exit_code(),
        }
    }

    /// A user or group that the container does not know, in Docker's words (moby/sys/user).
    fn unknown_name(self, process: &Process) -> Option<String> {
        let mut parts = process.user.splitn(2, |byte| *byte == b':');
        let (user, group) = (parts.next(), parts.next());
        let (name, file) = match self.step {
            Step::UnknownUser => (user?, "passwd"),
            Step::UnknownGroup => (group?, "group"),
            Step::NamedGroup => (
                process.groups.get(usize::from(self.index))?.as_slice(),
                "group",
            ),
            _ => return None,
        };
        let (step, name) = (self.step.text(), shortened(name));
        Some(format!("{step} {name}: no matching entries in {file} file"))
    }

    /// As Docker's: 127 program or its directory not found, 126 program can't be run, 125
    /// everything else.
    fn exit_code(self) -> u8 {
        match (self.step, self.errno) {
            (Step::Exec | Step::WorkingDirectory, Errno::NOENT) => 127,
            (Step::Exec, _) => 126,
            _ => 125,
        }
    }
}

/// Shortens a name to what fits a message; a program's name may have 128 KiB.
fn shortened(subject: &[u8]) -> String {
    const LONGEST: usize = 256;
    let shown = subject.get(..LONGEST).unwrap_or(subject);
    let more = if shown.len() < subject.len() {
        "..."
    } else {
        ""
    };
    format!("{}{more}", std::ffi::OsStr::from_bytes(shown).display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_decoded_from_its_eight_bytes() {
        let sandbox = Sandbox::new("id");
        let mut process = Process::new(vec![b"prog".to_vec()]);
        process.user = b"app".to_vec();
        for (step, errno, text, code) in [
            (
                Step::Exec,
                Errno::NOENT,
                "exec \"prog\": No such file or directory (os error 2)",
                127,
            ),
            (
                Step::Exec,
                Errno::ACCESS,
                "exec \"prog\": Permission denied (os error 13)",
                126,
            ),
            (
                Step::Mount,
                Errno::PERM,
                "mount /proc: Operation not permitted (os error 1)",
                125,
            ),
            (
                Step::Credentials,
                Errno::INVAL,
                "become user \"app\": this user namespace has no such ids (unshare --map-auto maps more)",
                125,
            ),
            (
                Step::UnknownUser,
                Errno::NOENT,
                "unable to find user app: no matching entries in passwd file",
                125,
            ),
        ] {
            let failure = Failure {
                step,
                index: 0,
                errno,
            };
            assert_eq!(Failure::from_bytes(failure.to_bytes()), Some(failure));
            let failed = failure.describe(Some(&sandbox), &process);
            assert_eq!(
                (failed.to_string().as_str(), failed.exit_code),
                (text, code)
            );
        }
        assert_eq!(Failure::from_bytes([0; 8]), None);
        assert_eq!(Failure::from_bytes([0xff; 8]), None);
    }
}
