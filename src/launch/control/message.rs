//! The messages on a monitor's control socket: the protocol that a later cowl must still speak with
//! an earlier monitor.
//!
//! A message is one datagram in the frame of [`cowl_sys::frame`] with one record, whose payload is
//! bincode 2 in its standard configuration; descriptors go with it. Invariant: a (type, version)
//! never changes its fields, nor the numbers of its enumerations; a new field is a new version.
//! `fixtures/golden/control` has the bytes of each.

use bincode::{Decode, Encode};
use cowl_sys::frame::{FrameError, OPTIONAL, Protocol, Record};

use crate::message::{Exited, Failed, Started};
use crate::process::{Process, WindowSize};
use crate::sandbox::Limits;
use crate::wire::WireError;

const PROTOCOL: Protocol = Protocol {
    magic: *b"COWLCTRL",
    version: 1,
};

/// The longest payload, which is a process in a memory file.
const MAX_PAYLOAD: usize = 8 << 20;

/// The program that a request is for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Target {
    /// The container's first process.
    Program,
    /// A process that joined it, by the id it was given.
    Exec(String),
}

/// The standard streams among a message's descriptors, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct StreamSet {
    /// The reading end of a pipe.
    pub stdin: bool,
    /// The writing end of a pipe; of a terminal everything.
    pub stdout: bool,
    /// The writing end of a pipe.
    pub stderr: bool,
}

/// See [`crate::control::Control::signal`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SignalRequest {
    /// To what.
    pub target: Target,
    /// As in signal(7).
    pub number: u8,
}

/// See [`crate::control::Control::resize`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ResizeRequest {
    /// Whose terminal.
    pub target: Target,
    /// The new size.
    pub size: WindowSize,
}

/// See [`crate::control::Control::attach`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct AttachRequest {
    /// To what.
    pub target: Target,
    /// The descriptors of this message.
    pub streams: StreamSet,
}

/// See [`crate::control::Control::exec`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ExecRequest {
    /// Of the caller's choice, not in use yet.
    pub id: String,
    /// Length of the [process](encode_process) in the memory file that is the first descriptor.
    pub process_bytes: u32,
    /// It has a standard input that can be attached to.
    pub open_stdin: bool,
    /// The other descriptors.
    pub streams: StreamSet,
}

/// See [`crate::control::Control::reserve`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ReserveRequest {
    /// Of the caller's choice, not in use yet.
    pub id: String,
    /// Length of the client's description in the memory file that comes with it.
    pub description_bytes: u32,
}

/// The namespaces among a message's descriptors, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct NamespaceSet {
    /// Process ids.
    pub pid: bool,
    /// System V IPC and message queues.
    pub ipc: bool,
    /// Host and domain name.
    pub uts: bool,
    /// Network.
    pub net: bool,
}

/// What is asked of a monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Send a signal.
    Signal(SignalRequest),
    /// Set the size of a terminal.
    Resize(ResizeRequest),
    /// Copy streams.
    Attach(AttachRequest),
    /// Say when a program has ended.
    Wait(Target),
    /// Start another program.
    Exec(ExecRequest),
    /// Say what runs.
    Inspect(()),
    /// Freeze (true) or thaw all processes.
    Pause(bool),
    /// Change limits.
    Update(Limits),
    /// Read the counters.
    Stats(()),
    /// List the processes.
    Pids(()),
    /// Give the mount of the root.
    Root(()),
    /// Give the namespaces.
    Namespaces(()),
    /// Keep a program's description until it is started.
    Reserve(ReserveRequest),
    /// Say what is known of the program of this id.
    FindExec(String),
}

/// A monitor's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is done; descriptors that were asked for come with it.
    Done(()),
    /// It is not, and nothing has changed.
    Failed(Failed),
    /// A program has ended.
    Exited(Exited),
    /// A program runs.
    Started(Started),
    /// What runs.
    State(State),
    /// What could not be enforced, a sentence each.
    Warnings(Vec<String>),
    /// The counters.
    Stats(Stats),
    /// Process ids in the monitor's pid namespace.
    Pids(Vec<u32>),
    /// The namespaces that come with it.
    Namespaces(NamespaceSet),
    /// A program that has joined, or is to.
    Exec(ExecDetails),
}

/// What runs in a container.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct State {
    /// Of the first process.
    pub pid: u32,
    /// All processes are frozen.
    pub paused: bool,
    /// Programs that have joined, in the order of their start; of those that have ended the last.
    pub execs: Vec<ExecState>,
}

/// A program that has joined a container.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ExecState {
    /// As it was given.
    pub id: String,
    /// 0 if it never ran.
    pub pid: u32,
    /// How it ended; none while it runs.
    pub exited: Option<Exited>,
}

/// What is known of a program that has joined a container, or is to.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ExecDetails {
    /// Its id, pid and end.
    pub state: ExecState,
    /// How far it is.
    pub phase: ExecPhase,
    /// Length of its client's description in the memory file that comes with it; none without one.
    pub description_bytes: Option<u32>,
}

/// How far a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ExecPhase {
    /// Described, and not started.
    Created,
    /// Between clone and exec.
    Starting,
    /// It runs.
    Running,
    /// It has ended, or has failed to start.
    Ended,
}

/// The counters of a container's cgroups. None where the host does not count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Stats {
    /// Processor time.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: Option<MemoryStats>,
    /// Tasks now.
    pub pids: Option<u64>,
    /// Most tasks; none is no limit.
    pub pids_limit: Option<u64>,
    /// Transfers of block devices.
    pub blkio: Vec<BlkioStats>,
}

/// Processor time in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct CpuStats {
    /// All.
    pub total: u64,
    /// In programs.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
    /// Periods of the quota that have passed.
    pub periods: u64,
    /// Those in which the quota ran out.
    pub throttled_periods: u64,
    /// Time waited for the quota.
    pub throttled: u64,
}

/// Memory in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct MemoryStats {
    /// In use, page cache included.
    pub usage: u64,
    /// The most that was in use, where it is counted.
    pub peak: Option<u64>,
    /// None is no limit.
    pub limit: Option<u64>,
    /// The lines of `memory.stat`.
    pub details: Vec<(String, u64)>,
}

/// Transfers of one block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct BlkioStats {
    /// Of its device number.
    pub major: u32,
    /// Of its device number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

macro_rules! records {
    ($name:ident { $($variant:ident = $number:literal version $version:literal,)* }) => {
        impl $name {
            /// The bytes of a message.
            pub fn encode(&self) -> Result<Vec<u8>, WireError> {
                match self {
                    $(Self::$variant(payload) => encode($number, $version, payload),)*
                }
            }

            /// Reads what [`Self::encode`] wrote, here or in another version of cowl.
            pub fn decode(message: &[u8]) -> Result<Self, WireError> {
                let record = only_record(message)?;
                match (record.kind, record.version) {
                    $(($number, $version) => decode(record.body).map(Self::$variant),)*
                    _ => Err(unknown(&record)),
                }
            }
        }
    };
}

records! { Request {
    Signal = 0x01 version 1,
    Resize = 0x02 version 1,
    Attach = 0x03 version 1,
    Wait = 0x04 version 1,
    Exec = 0x05 version 1,
    Inspect = 0x06 version 1,
    Pause = 0x07 version 1,
    Update = 0x08 version 1,
    Stats = 0x09 version 1,
    Pids = 0x0a version 1,
    Root = 0x0b version 1,
    Namespaces = 0x0c version 1,
    Reserve = 0x0d version 1,
    FindExec = 0x0e version 1,
} }

records! { Reply {
    Done = 0x40 version 1,
    Failed = 0x41 version 1,
    Exited = 0x42 version 1,
    Started = 0x43 version 1,
    State = 0x44 version 1,
    Warnings = 0x45 version 1,
    Stats = 0x46 version 1,
    Pids = 0x47 version 1,
    Namespaces = 0x48 version 1,
    Exec = 0x49 version 1,
} }

/// Type of a process in a memory file.
const PROCESS: (u16, u16) = (0x60, 1);

/// The bytes of a process, for a memory file.
pub fn encode_process(process: &Process) -> Result<Vec<u8>, WireError> {
    encode(PROCESS.0, PROCESS.1, process)
}

/// Reads what [`encode_process`] wrote.
pub fn decode_process(message: &[u8]) -> Result<Process, WireError> {
    let record = only_record(message)?;
    if (record.kind, record.version) == PROCESS {
        decode(record.body)
    } else {
        Err(unknown(&record))
    }
}

fn encode(kind: u16, version: u16, payload: &impl Encode) -> Result<Vec<u8>, WireError> {
    let body = bincode::encode_to_vec(payload, bincode::config::standard())
        .map_err(|_encoding| WireError::Malformed("a payload that can't be encoded"))?;
    if body.len() > MAX_PAYLOAD {
        return Err(WireError::TooLong(body.len()));
    }
    PROTOCOL
        .encode(kind, version, &body)
        .ok_or(WireError::TooLong(body.len()))
}

fn decode<P: Decode<()>>(body: &[u8]) -> Result<P, WireError> {
    // The limit keeps a length field from allocating more than any message can hold.
    let config = bincode::config::standard().with_limit::<MAX_PAYLOAD>();
    let (payload, used) = bincode::decode_from_slice(body, config)
        .map_err(|_decoding| WireError::Malformed("payload can't be decoded"))?;
    if used == body.len() {
        Ok(payload)
    } else {
        Err(WireError::Malformed("bytes left over in a payload"))
    }
}

/// The record of a message that is not optional.
fn only_record(message: &[u8]) -> Result<Record<'_>, WireError> {
    let malformed = |error| {
        WireError::Malformed(match error {
            FrameError::Foreign => "not a message of this protocol",
            FrameError::Version(_) => "another version of the protocol",
            FrameError::Features(_) => "unknown feature",
            FrameError::Damaged => "damaged record",
        })
    };
    let mut found = None;
    for record in PROTOCOL.records(message).map_err(malformed)? {
        let record = record.map_err(malformed)?;
        if record.kind & OPTIONAL == 0 && found.replace(record).is_some() {
            return Err(WireError::Malformed("two records"));
        }
    }
    found.ok_or(WireError::Malformed("no record"))
}

fn unknown(record: &Record<'_>) -> WireError {
    WireError::Unknown {
        kind: record.kind,
        version: record.version,
    }
}
