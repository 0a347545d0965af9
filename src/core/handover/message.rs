//! The messages, and the roles of the descriptors that they carry.
//!
//! Invariant: a struct here is one (type, version) of the wire; see the rule at the head of the module before touching a field.

use std::fmt;

use bincode::{Decode, Encode};

/// What a descriptor sent along with a message is.
///
/// The order of the cases is the wire's: append only.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Encode, Decode)]
pub enum Role {
    /// The merged tree's file, opened for reading.
    Tree,
    /// The store's `objects/` directory.
    Objects,
    /// The lease: a locked file, kept open for as long as the mount may read the tree's objects.
    Lease,
    /// The upper directory.
    Upper,
    /// The work directory, on the same filesystem as the upper.
    Work,
    /// The connection to the kernel: an opened `/dev/fuse`.
    Fuse,
    /// The mount itself, attached nowhere yet.
    Mount,
    /// Shared memory that counts requests, one number an opcode.
    Counters,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tree => "tree file",
            Self::Objects => "objects directory",
            Self::Lease => "lease",
            Self::Upper => "upper directory",
            Self::Work => "work directory",
            Self::Fuse => "fuse connection",
            Self::Mount => "mount",
            Self::Counters => "request counters",
        })
    }
}

/// How a mount's reads and writes of contents travel.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Encode, Decode)]
pub enum Profile {
    /// The kernel reads and writes the backing file itself where it may, everything else through the daemon.
    Passthrough,
    /// Contents go through the daemon once and stay in the kernel's cache, writes are gathered there.
    Cached,
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passthrough => "passthrough",
            Self::Cached => "cached",
        })
    }
}

/// Which [`Profile`] a mount shall have.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Encode, Decode)]
pub enum ProfileChoice {
    /// Passthrough where kernel and privilege allow it, else cached.
    #[default]
    Best,
    /// Cached, whatever else were possible.
    Cached,
}

/// Wants a mount of one merged tree. With it: [`Role::Tree`], [`Role::Objects`], [`Role::Lease`] and, for a writable mount, [`Role::Upper`]
/// and [`Role::Work`].
#[derive(Clone, Debug, Eq, PartialEq, Encode, Decode)]
pub struct MountRequest {
    /// What the mount is called in log lines and in `/proc/self/mountinfo` (the source): an image or a container.
    pub name: String,
    /// The chain id (sha256) of the layers that the tree was merged from; the upper's stamp is compared with it.
    pub chain: [u8; 32],
    /// The profile wanted.
    pub profile: ProfileChoice,
    /// The descriptors of this message, in order.
    pub roles: Vec<Role>,
}

/// The mount stands and answers. With it: [`Role::Mount`].
#[derive(Clone, Debug, Eq, PartialEq, Encode, Decode)]
pub struct MountReady {
    /// The profile that came about.
    pub profile: Profile,
    /// The process that serves the mount. It belongs to the keeper, which waits for it.
    pub worker: u32,
    /// The descriptors of this message, in order.
    pub roles: Vec<Role>,
}

/// There is no mount, and nothing is left of the attempt.
#[derive(Clone, Debug, Eq, PartialEq, Encode, Decode)]
pub struct MountFailed {
    /// What was tried and, where it is known, what to do about it: one line for a person, without the system's error text.
    pub what: String,
    /// The system's error number, 0 if the system had no part in it.
    pub errno: i32,
}

impl fmt::Display for MountFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if self.errno == 0 {
            return Ok(());
        }
        // The standard library's text of the number, without its " (os error N)".
        let text = std::io::Error::from_raw_os_error(self.errno).to_string();
        write!(f, ": {}", text.split(" (os error").next().unwrap_or(&text))
    }
}

impl std::error::Error for MountFailed {}

/// Wants a mounted connection served. With it: [`Role::Fuse`], [`Role::Counters`], [`Role::Tree`],
/// [`Role::Objects`] (read-only where the system let the keeper make it so), [`Role::Lease`] (the
/// same open file as the keeper's, so the lock goes with the last of the two) and, for a writable
/// mount, [`Role::Upper`] and [`Role::Work`].
#[derive(Clone, Debug, Eq, PartialEq, Encode, Decode)]
pub struct WorkerRequest {
    /// As in [`MountRequest`].
    pub name: String,
    /// As in [`MountRequest`].
    pub chain: [u8; 32],
    /// As in [`MountRequest`].
    pub profile: ProfileChoice,
    /// Whether a write-open below [`Role::Objects`] is refused by the system. Without that nothing of it may be handed to the kernel.
    pub objects_read_only: bool,
    /// The descriptors of this message, in order.
    pub roles: Vec<Role>,
}

/// The connection is negotiated and its requests are being answered.
#[derive(Clone, Debug, Eq, PartialEq, Encode, Decode)]
pub struct WorkerReady {
    /// The profile that came about.
    pub profile: Profile,
}

/// Any of the messages.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Message {
    /// Engine to keeper.
    MountRequest(MountRequest),
    /// Keeper to engine.
    MountReady(MountReady),
    /// Worker to keeper, keeper to engine.
    MountFailed(MountFailed),
    /// Keeper to worker.
    WorkerRequest(WorkerRequest),
    /// Worker to keeper.
    WorkerReady(WorkerReady),
}

impl Message {
    /// The roles of the descriptors that travel with this message, in order.
    #[must_use]
    pub fn roles(&self) -> &[Role] {
        match self {
            Self::MountRequest(request) => &request.roles,
            Self::MountReady(ready) => &ready.roles,
            Self::WorkerRequest(request) => &request.roles,
            Self::MountFailed(_) | Self::WorkerReady(_) => &[],
        }
    }

    /// What the message is called in an error line.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::MountRequest(_) => "mount request",
            Self::MountReady(_) => "mount answer",
            Self::MountFailed(_) => "mount failure",
            Self::WorkerRequest(_) => "worker request",
            Self::WorkerReady(_) => "worker answer",
        }
    }
}
