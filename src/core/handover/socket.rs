//! Sends and receives messages with descriptors over a `SOCK_SEQPACKET` socket.
//!
//! Invariant: a received message has exactly the descriptors that it names, all close-on-exec; the
//! descriptors of a refused message are closed.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

use super::codec::{HandoverError, MAX_MESSAGE, decode, encode};
use super::message::{Message, Role};

/// More descriptors than any message has.
const MAX_DESCRIPTORS: usize = 16;

/// Both ends of a talk, close-on-exec.
pub fn pair() -> Result<(OwnedFd, OwnedFd), HandoverError> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends `message` and, in the order of its roles, `descriptors`.
pub fn send(
    socket: BorrowedFd<'_>,
    message: &Message,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), HandoverError> {
    let named = message.roles().len();
    if named != descriptors.len() {
        return Err(HandoverError::Descriptors {
            named,
            came: descriptors.len(),
        });
    }
    let bytes = encode(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(HandoverError::Descriptors {
            named,
            came: MAX_DESCRIPTORS,
        });
    }
    // NOSIGNAL: a peer that died is an error to report, not a signal to die of.
    retry_on_intr(|| {
        sendmsg(
            socket,
            &[IoSlice::new(&bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })
    .map_err(gone)?;
    Ok(())
}

/// Waits for a message and what comes with it.
pub fn receive(socket: BorrowedFd<'_>) -> Result<(Message, Descriptors), HandoverError> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = retry_on_intr(|| {
        recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })
    .map_err(gone)?;
    let mut came = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            came.extend(descriptors);
        }
    }
    if received.bytes == 0 {
        return Err(HandoverError::Closed);
    }
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(HandoverError::Damaged);
    }
    let message = decode(bytes.get(..received.bytes).ok_or(HandoverError::Damaged)?)?;
    let named = message.roles().len();
    if named != came.len() {
        return Err(HandoverError::Descriptors {
            named,
            came: came.len(),
        });
    }
    let descriptors = Descriptors(message.roles().iter().copied().zip(came).collect());
    Ok((message, descriptors))
}

/// The errors by which a socket says that its other end is closed.
fn gone(errno: Errno) -> HandoverError {
    if matches!(errno, Errno::PIPE | Errno::CONNRESET) {
        HandoverError::Closed
    } else {
        errno.into()
    }
}

/// The descriptors that came with a message. Those that are not taken are closed with it.
#[derive(Debug)]
pub struct Descriptors(Vec<(Role, OwnedFd)>);

impl Descriptors {
    /// The descriptor for `role`, which must have come.
    pub fn take(&mut self, role: Role) -> Result<OwnedFd, HandoverError> {
        self.take_if_any(role).ok_or(HandoverError::Missing(role))
    }

    /// The descriptor for `role`, if it came.
    pub fn take_if_any(&mut self, role: Role) -> Option<OwnedFd> {
        let at = self.0.iter().position(|(its, _)| *its == role)?;
        Some(self.0.swap_remove(at).1)
    }
}
