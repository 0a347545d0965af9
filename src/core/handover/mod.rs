//! The messages that make a mount, between the engine and the keeper, and between the keeper and
//! its worker; and those by which the engine has a worker hold changes back.
//!
//! A message is one datagram of a `SOCK_SEQPACKET` socket and carries its descriptors
//! (`SCM_RIGHTS`). Keeper and worker are started with their end of the socket as descriptor 0.
//!
//! A datagram has exactly one message: a frame of [`cowl_sys::frame`], `COWLHAND` version 1, whose
//! payloads are bincode 2 in its standard configuration.
//!
//! Invariant: a (type, version) never changes its fields, nor the numbers of its enumerations. A
//! new field is a new version or an optional record. `fixtures/golden/handover` has the bytes of
//! every released version.
//!
//! ```text
//!   engine                        keeper                              worker
//!     | -- MountRequest + files --> |                                   |
//!     |                             | -- WorkerRequest + files + fuse ->|
//!     |                             | <------- WorkerReady -------------|
//!     | <-- MountReady + mount -----|                                   |
//! ```
//!
//! Either answer can be a [`MountFailed`]. After [`MountReady`] the keeper closes its descriptor
//! of the mount and then its end of the socket, which the engine waits for: a mount with an open
//! descriptor cannot be unmounted.
//!
//! A worker that was given a listening socket ([`Role::Control`]) answers any later engine on it:
//!
//! ```text
//!   engine                                                            worker
//!     | -------------- HoldChanges --------------------------------------->| changes wait
//!     | <------------- ChangesHeld ----------------------------------------|
//!     |                   reads the upper                                  |
//!     | -------------- HoldChanges --------------------------------------->|
//!     | <------------- ChangesHeld: nothing has changed meanwhile ---------|
//!     X closes                                                             | changes go on
//! ```

mod client;
mod codec;
mod hold;
mod ids;
mod message;
mod socket;

pub use client::{MountError, MountSources, Mounted, UpperSource, mount};
pub use codec::{HandoverError, MAX_MESSAGE, decode, encode};
pub use hold::{Hold, listen};
pub use ids::{IdKind, IdMap, NoIdMapping};
pub use message::{
    ChangesHeld, HoldChanges, IoMode, IoModeChoice, Message, MountFailed, MountReady, MountRequest,
    NoIoMode, Role, WorkerReady, WorkerRequest,
};
pub use socket::{Descriptors, pair, receive, send};

#[cfg(test)]
mod tests;
