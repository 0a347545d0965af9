//! What the child needs to become its program.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::thread::CapabilitySet;

use super::{Host, SetupError, strings};
use crate::environment;
use crate::path::InRoot;
use crate::process::{Process, Rlimit, Seccomp, WindowSize};
use crate::seccomp::{self, Filter};
use crate::sys::exec::StringArray;

/// Longest passwd or group file that is read; an image's have a few KiB.
const USER_FILE: usize = 1 << 20;
/// Groups of one user; the kernel allows 65536.
const GROUPS: usize = 1024;
/// Longest path.
const PATH_MAX: usize = 4096;
/// Highest capability number in 64 bits. The kernel gives EINVAL beyond its last.
const CAPABILITIES: u32 = 63;

/// The prepared program.
#[derive(Debug)]
pub(crate) struct ProgramSetup {
    pub(crate) terminal: Option<WindowSize>,
    pub(crate) stdio: Option<[OwnedFd; 3]>,
    pub(crate) user: Vec<u8>,
    /// Further groups, as named.
    pub(crate) named_groups: Vec<Vec<u8>>,
    pub(crate) set_groups: bool,
    pub(crate) cwd: InRoot,
    /// Whether a missing working directory is created.
    pub(crate) creates_cwd: bool,
    pub(crate) capabilities: CapabilitySet,
    pub(crate) dropped: Vec<CapabilitySet>,
    pub(crate) no_new_privileges: bool,
    pub(crate) filter: Option<Filter>,
    pub(crate) rlimits: Vec<Rlimit>,
    pub(crate) arguments: StringArray,
    pub(crate) environment: StringArray,
    pub(crate) needs_home: bool,
    pub(crate) programs: Vec<CString>,
    /// Buffers that the child fills.
    pub(crate) passwd: Vec<u8>,
    pub(crate) group: Vec<u8>,
    pub(crate) groups: Vec<rustix::fs::Gid>,
    pub(crate) cwd_text: Vec<u8>,
}

impl ProgramSetup {
    /// `no_devices`: it may not create device nodes. `joins`: the container runs already, and its
    /// working directory is not created if it is missing.
    pub(crate) fn new(
        process: &Process,
        stdio: Option<[OwnedFd; 3]>,
        host: Host,
        no_devices: bool,
        joins: bool,
    ) -> Result<Self, SetupError> {
        let program = process.argv.first().ok_or(SetupError::NoProgram)?;
        if !process.cwd.is_empty() && !process.cwd.starts_with(b"/") {
            return Err(SetupError::RelativeWorkingDirectory);
        }
        let mut capabilities = CapabilitySet::from_bits_retain(process.capabilities);
        capabilities.set(
            CapabilitySet::MKNOD,
            capabilities.contains(CapabilitySet::MKNOD) && !no_devices,
        );
        Ok(Self {
            terminal: process.terminal,
            stdio,
            user: process.user.clone(),
            named_groups: process.groups.clone(),
            set_groups: !host.groups_fixed,
            cwd: InRoot::new(&process.cwd).ok_or(SetupError::Nul("the working directory"))?,
            creates_cwd: !joins,
            capabilities,
            dropped: (0..=CAPABILITIES)
                .map(|number| CapabilitySet::from_bits_retain(1 << number))
                .filter(|capability| !capabilities.contains(*capability))
                .collect(),
            no_new_privileges: process.no_new_privileges,
            filter: match &process.seccomp {
                Seccomp::Default => Some(seccomp::default_filter(
                    capabilities.bits(),
                    seccomp::NATIVE,
                )),
                Seccomp::Unconfined => None,
                Seccomp::Filter(compiled) => Some(compiled.filter()),
            },
            rlimits: process.rlimits.clone(),
            arguments: StringArray::new(strings(&process.argv, "an argument")?, 0),
            programs: strings(
                &environment::search(&process.env, program),
                "the program's path",
            )?,
            needs_home: environment::value(&process.env, b"HOME").is_none(),
            environment: StringArray::new(
                strings(&process.env, "the environment")?,
                b"HOME=".len() + PATH_MAX,
            ),
            passwd: Vec::with_capacity(USER_FILE),
            group: Vec::with_capacity(USER_FILE),
            groups: Vec::with_capacity(GROUPS),
            cwd_text: Vec::with_capacity(PATH_MAX),
        })
    }
}
