//! The messages by which a mount is asked for: between whoever wants one (the engine) and the keeper, and between the keeper and its worker.
//!
//! One message is one datagram of a `SOCK_SEQPACKET` socket; the descriptors it speaks of ride with it (`SCM_RIGHTS`). A process started
//! for one of these talks finds its end of the socket as descriptor 0.
//!
//! ```text
//!   0               8       10      12              16
//!   +---------------+-------+-------+---------------+---------
//!   | "COWLHAND"    |version| zero  | features      | records
//!   +---------------+-------+-------+---------------+---------
//!   record, at any alignment:
//!   0       2       4               8
//!   +-------+-------+---------------+------------------------+
//!   | type  |version| payload bytes | payload (bincode 2)    |
//!   +-------+-------+---------------+------------------------+
//! ```
//!
//! All integers are little-endian; payloads are bincode 2's standard configuration. Exactly one record is a message; a record whose type
//! has the high bit set is optional: a receiver that does not know it goes on without it. An unknown type without that bit, or an unknown
//! feature bit, ends the talk.
//!
//! Invariant: a (type, version) never changes its fields. A new field is a new version, or an optional record of its own, and the bytes of
//! every released version stay in `fixtures/golden/handover`. The numbers that a payload gives an enumeration's cases are part of that.
//!
//! ```text
//!   engine                        keeper                              worker
//!     | -- MountRequest + files --> |                                   |
//!     |                             | -- WorkerRequest + files + fuse ->|
//!     |                             | <------- WorkerReady -------------|
//!     | <-- MountReady + mount -----|                                   |
//! ```
//!
//! Either answer can be a [`MountFailed`] instead. After [`MountReady`] the keeper lets go of its own descriptor of the mount and then
//! closes its end of the socket, which the engine waits for: a mount that somebody holds a descriptor of can't be unmounted.

mod client;
mod codec;
mod message;
mod socket;

pub use client::{MountError, MountSources, Mounted, UpperSource, mount};
pub use codec::{HandoverError, MAX_MESSAGE, decode, encode};
pub use message::{
    Message, MountFailed, MountReady, MountRequest, Profile, ProfileChoice, Role, WorkerReady,
    WorkerRequest,
};
pub use socket::{Descriptors, pair, receive, send};

#[cfg(test)]
mod tests;
