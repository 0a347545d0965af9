//! The messages, and the roles of the descriptors that they carry.
//!
//! Invariant: each struct here is one (type, version) on the wire; read the rule at the head of
//! [`super`] before changing a field.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};

use super::ids::IdMap;

/// What a descriptor sent with a message is.
///
/// The order of the variants is the wire's: append only.
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
    /// The FUSE connection: an open `/dev/fuse`.
    Fuse,
    /// The mount, not yet attached to a directory.
    Mount,
    /// Shared memory with a counter of requests for each opcode.
    Counters,
    /// Shared memory with what a worker's successor needs.
    Journal,
    /// [`Work`](Self::Work) of an upper that is dropped if the machine boots again: nothing is
    /// synced.
    VolatileWork,
    /// A listening socket, over which the engine can have changes held ([`Hold`](super::Hold)).
    Control,
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
            Self::Journal => "journal",
            Self::VolatileWork => "volatile work directory",
            Self::Control => "control socket",
        })
    }
}

/// How a mount's file contents are read and written.
///
/// The order of the variants is the wire's: append only.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Encode, Decode)]
pub enum IoMode {
    /// The kernel reads and writes backing files itself where the overlay allows it; the rest goes
    /// through the worker. Each open is a request.
    Passthrough,
    /// Contents go through the worker and the kernel's page cache. An open is no request; a write
    /// is one when it is made.
    Cached,
    /// As [`Cached`](Self::Cached), but the kernel keeps what is written, and writes it back later.
    Writeback,
}

impl IoMode {
    /// Whether opens are requests, so that open files have handles.
    pub const fn has_handles(self) -> bool {
        matches!(self, Self::Passthrough)
    }
}

impl fmt::Display for IoMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passthrough => "passthrough",
            Self::Cached => "cached",
            Self::Writeback => "writeback",
        })
    }
}

/// The [`IoMode`] that a mount is asked to have. A mode that the host cannot give is an error.
///
/// The order of the variants is the wire's: append only.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Encode, Decode)]
pub enum IoModeChoice {
    /// The mode that `docs/io-modes.md` chooses: [`IoMode::Cached`].
    #[default]
    Auto,
    /// [`IoMode::Cached`].
    Cached,
    /// [`IoMode::Passthrough`].
    Passthrough,
    /// [`IoMode::Writeback`].
    Writeback,
}

impl IoModeChoice {
    /// All choices.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Cached, Self::Passthrough, Self::Writeback];

    /// The mode that a mount with this choice has.
    pub const fn mode(self) -> IoMode {
        match self {
            Self::Auto | Self::Cached => IoMode::Cached,
            Self::Passthrough => IoMode::Passthrough,
            Self::Writeback => IoMode::Writeback,
        }
    }

    /// The word for it, as the value of the option `io`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cached => "cached",
            Self::Passthrough => "passthrough",
            Self::Writeback => "writeback",
        }
    }

    /// The mode that came of it, and whether it was asked for.
    pub const fn outcome(self) -> &'static str {
        match self {
            Self::Auto => "cached (default)",
            asked => asked.name(),
        }
    }
}

impl fmt::Display for IoModeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A value of the option `io` that is none.
#[derive(Clone, Debug, thiserror::Error, Eq, PartialEq)]
#[error("`{0}` is no I/O mode: use auto, cached, passthrough or writeback")]
pub struct NoIoMode(pub String);

impl FromStr for IoModeChoice {
    type Err = NoIoMode;

    fn from_str(word: &str) -> Result<Self, NoIoMode> {
        let named = |choice: &Self| choice.name() == word;
        Self::ALL
            .into_iter()
            .find(named)
            .ok_or_else(|| NoIoMode(word.to_owned()))
    }
}

/// Asks for a mount of one merged tree. With it: [`Role::Tree`], [`Role::Objects`],
/// [`Role::Lease`] and, for a writable mount, [`Role::Upper`], either [`Role::Work`] or
/// [`Role::VolatileWork`], and perhaps [`Role::Control`].
#[derive(Clone, Debug, Eq, PartialEq, Encode, Decode)]
pub struct MountRequest {
    /// The mount's name in log lines, and its source in `/proc/self/mountinfo`: an image or a
    /// container.
    pub name: String,
    /// The ChainID (sha256) of the layers that the tree was merged from; the upper's stamp must
    /// match it.
    pub chain: [u8; 32],
    /// The I/O mode asked for.
    pub io_mode: IoModeChoice,
    /// How owners are shown.
    pub ids: IdMap,
    /// The descriptors of this message, in order.
    pub roles: Vec<Role>,
}

/// The mount is ready to use. With it: [`Role::Mount`].
#[derive(Clone, Debug, Eq, PartialEq, Encode, Decode)]
pub struct MountReady {
    /// The I/O mode in effect.
    pub io_mode: IoMode,
    /// The worker's process id. The worker is a child of the keeper, which reaps it.
    pub worker: u32,
    /// The descriptors of this message, in order.
    pub roles: Vec<Role>,
}

/// The mount could not be made, and nothing is left of the attempt.
#[derive(Clone, Debug, Eq, PartialEq, Encode, Decode)]
pub struct MountFailed {
    /// What failed and, where known, what to do about it: one line, without the system's error
    /// text.
    pub what: String,
    /// The system's error number; 0 if no system call failed.
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

/// Asks the worker to serve a mount. With it: [`Role::Fuse`], [`Role::Counters`], [`Role::Tree`],
/// [`Role::Objects`] (a read-only clone where the kernel allows one), [`Role::Lease`] (the
/// keeper's open file, so the lock lasts until both have closed it), for a writable mount
/// [`Role::Upper`], its work directory and what came of [`Role::Control`], and where memory for it
/// could be had [`Role::Journal`]: if a worker has negotiated INIT before, it says what came of it.
#[derive(Clone, Debug, Eq, PartialEq, Encode, Decode)]
pub struct WorkerRequest {
    /// As in [`MountRequest`].
    pub name: String,
    /// As in [`MountRequest`].
    pub chain: [u8; 32],
    /// As in [`MountRequest`].
    pub io_mode: IoModeChoice,
    /// As in [`MountRequest`].
    pub ids: IdMap,
    /// Whether [`Role::Objects`] is a read-only mount. Objects may back files in the kernel only
    /// if it is.
    pub objects_read_only: bool,
    /// The descriptors of this message, in order.
    pub roles: Vec<Role>,
}

/// The worker has negotiated INIT and answers requests.
#[derive(Clone, Debug, Eq, PartialEq, Encode, Decode)]
pub struct WorkerReady {
    /// The I/O mode in effect.
    pub io_mode: IoMode,
}

/// Asks the worker to hold changes back as long as the connection is open; or, if it does, whether
/// it has done so all the time.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Encode, Decode)]
pub struct HoldChanges;

/// The worker holds changes back. If it does not, it closes the connection instead.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Encode, Decode)]
pub struct ChangesHeld {
    /// The I/O mode in effect, which says what passes the worker by.
    pub io_mode: IoMode,
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
    /// Engine to worker.
    HoldChanges(HoldChanges),
    /// Worker to engine.
    ChangesHeld(ChangesHeld),
}

impl Message {
    /// The roles of the descriptors sent with this message, in order.
    #[must_use]
    pub fn roles(&self) -> &[Role] {
        match self {
            Self::MountRequest(request) => &request.roles,
            Self::MountReady(ready) => &ready.roles,
            Self::WorkerRequest(request) => &request.roles,
            Self::MountFailed(_)
            | Self::WorkerReady(_)
            | Self::HoldChanges(_)
            | Self::ChangesHeld(_) => &[],
        }
    }

    /// The message's name in error messages.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::MountRequest(_) => "mount request",
            Self::MountReady(_) => "mount reply",
            Self::MountFailed(_) => "mount failure",
            Self::WorkerRequest(_) => "worker request",
            Self::WorkerReady(_) => "worker reply",
            Self::HoldChanges(_) => "hold request",
            Self::ChangesHeld(_) => "hold reply",
        }
    }
}
