//! Encodes and decodes messages: payloads in the records of a frame ([`cowl_sys::frame`]).
//!
//! Invariant: [`decode`] returns an error for any bytes that [`encode`] would not give, but for
//! optional records, and never allocates more than [`MAX_MESSAGE`].

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};
use cowl_sys::frame::{FrameError, OPTIONAL, Protocol};
use thiserror::Error;

use super::message::{Message, MountFailed};

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 64 << 10;

const PROTOCOL: Protocol = Protocol {
    magic: *b"COWLHAND",
    version: 1,
};

/// Why a message could not be sent, received or understood.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HandoverError {
    /// The bytes do not start as a message does.
    #[error("not a handover message")]
    NotAMessage,
    /// A header of another version.
    #[error("handover version {0} is not known here")]
    Version(u32),
    /// A feature bit this side does not know.
    #[error("handover features {0:#x} are not known here")]
    Features(u32),
    /// The message ends within a record, or holds none or two messages.
    #[error("handover message is damaged")]
    Damaged,
    /// A record that this side does not know and that isn't optional.
    #[error("handover record {kind}, version {version}, is not known here")]
    Record {
        /// The record's type.
        kind: u16,
        /// The record's version.
        version: u16,
    },
    /// A payload that is not what its type says.
    #[error("handover record cannot be read")]
    Payload(#[from] DecodeError),
    /// A payload that cannot be written.
    #[error("handover record cannot be written")]
    Unwritable(#[from] EncodeError),
    /// A message longer than [`MAX_MESSAGE`].
    #[error("handover message of {0} bytes is too long")]
    TooLong(usize),
    /// The message speaks of another number of descriptors than came with it.
    #[error("handover message names {named} descriptors and came with {came}")]
    Descriptors {
        /// How many the message names.
        named: usize,
        /// How many came.
        came: usize,
    },
    /// A descriptor that the message needs did not come.
    #[error("handover message came without its {0}")]
    Missing(super::Role),
    /// The other side said something else than its turn allows.
    #[error("unexpected {0}")]
    Unexpected(&'static str),
    /// The other side is gone.
    #[error("the other side has ended")]
    Closed,
    /// The system refused to send or receive.
    #[error("handover socket")]
    Socket(#[from] rustix::io::Errno),
}

impl From<FrameError> for HandoverError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Foreign => Self::NotAMessage,
            FrameError::Version(version) => Self::Version(version),
            FrameError::Features(features) => Self::Features(features),
            FrameError::Damaged => Self::Damaged,
        }
    }
}

impl From<HandoverError> for MountFailed {
    /// For a process that cannot go on since it did not understand, or was not understood.
    fn from(error: HandoverError) -> Self {
        let errno = match &error {
            HandoverError::Socket(errno) => errno.raw_os_error(),
            _ => 0,
        };
        Self {
            what: error.to_string(),
            errno,
        }
    }
}

const fn payload_format() -> Configuration<LittleEndian, Varint, Limit<MAX_MESSAGE>> {
    bincode::config::standard().with_limit::<MAX_MESSAGE>()
}

/// The bytes of `message`: the header and one record.
pub fn encode(message: &Message) -> Result<Vec<u8>, HandoverError> {
    let (kind, version, payload) = match message {
        Message::MountRequest(it) => (1, 2, payload_of(it)?),
        Message::MountReady(it) => (2, 1, payload_of(it)?),
        Message::MountFailed(it) => (3, 1, payload_of(it)?),
        Message::WorkerRequest(it) => (4, 2, payload_of(it)?),
        Message::WorkerReady(it) => (5, 1, payload_of(it)?),
        Message::HoldChanges(it) => (6, 1, payload_of(it)?),
        Message::ChangesHeld(it) => (7, 1, payload_of(it)?),
    };
    let bytes = PROTOCOL.encode(kind, version, &payload);
    let bytes = bytes.ok_or(HandoverError::TooLong(payload.len()))?;
    if bytes.len() > MAX_MESSAGE {
        return Err(HandoverError::TooLong(bytes.len()));
    }
    Ok(bytes)
}

/// The message in `bytes`, whatever else optional is in there.
pub fn decode(bytes: &[u8]) -> Result<Message, HandoverError> {
    let mut message = None;
    for record in PROTOCOL.records(bytes)? {
        let record = record?;
        if let Some(read) = read_record(record.kind, record.version, record.body)?
            && message.replace(read).is_some()
        {
            return Err(HandoverError::Damaged);
        }
    }
    message.ok_or(HandoverError::Damaged)
}

fn read_record(kind: u16, version: u16, payload: &[u8]) -> Result<Option<Message>, HandoverError> {
    Ok(Some(match (kind, version) {
        (1, 2) => Message::MountRequest(whole(payload)?),
        (2, 1) => Message::MountReady(whole(payload)?),
        (3, 1) => Message::MountFailed(whole(payload)?),
        (4, 2) => Message::WorkerRequest(whole(payload)?),
        (5, 1) => Message::WorkerReady(whole(payload)?),
        (6, 1) => Message::HoldChanges(whole(payload)?),
        (7, 1) => Message::ChangesHeld(whole(payload)?),
        _ if kind & OPTIONAL != 0 => return Ok(None),
        _ => return Err(HandoverError::Record { kind, version }),
    }))
}

fn payload_of(it: &impl Encode) -> Result<Vec<u8>, HandoverError> {
    Ok(bincode::encode_to_vec(it, payload_format())?)
}

/// Decodes a payload that must be used up.
fn whole<T: Decode<()>>(payload: &[u8]) -> Result<T, HandoverError> {
    let (it, used) = bincode::decode_from_slice(payload, payload_format())?;
    if used == payload.len() {
        Ok(it)
    } else {
        Err(HandoverError::Damaged)
    }
}
