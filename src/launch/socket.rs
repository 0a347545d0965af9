//! Datagrams with descriptors over a `SOCK_SEQPACKET` socket. [`send`] does not allocate. Callers:
//! [`crate::wire`], and [`crate::monitor`] and its child for reports.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Most descriptors that the kernel takes in one message (`SCM_MAX_FD`).
pub(crate) const MAX_DESCRIPTORS: usize = 253;

/// A received message. No bytes: the other end is closed.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) bytes: usize,
    /// The message or its descriptors did not fit.
    pub(crate) truncated: bool,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// Sends one message whole; EPIPE if the other end is closed.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::TOOMANYREFS);
    }
    let slices = [IoSlice::new(message)];
    retry_on_intr(|| sendmsg(socket, &slices, &mut control, SendFlags::NOSIGNAL)).map(drop)
}

/// Receives one message.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    flags: RecvFlags,
    buffer: &mut [u8],
) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut slices = [IoSliceMut::new(buffer)];
        match recvmsg(
            socket,
            &mut slices,
            &mut control,
            flags | RecvFlags::CMSG_CLOEXEC,
        ) {
            // A peer that closed with messages unread causes this error once, before the messages
            // that it sent are read (net/unix/af_unix.c, unix_release_sock).
            Err(Errno::INTR | Errno::CONNRESET) => {}
            other => break other?,
        }
    };
    let mut descriptors = Vec::new();
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = item {
            descriptors.extend(rights);
        }
    }
    let truncated = received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok(Received {
        bytes: received.bytes,
        truncated,
        descriptors,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::os::fd::AsFd as _;

    #[test]
    fn receive_gets_messages_of_a_peer_that_closed_with_others_unread() {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        send(ours.as_fd(), b"never read", &[]).unwrap();
        send(theirs.as_fd(), b"last words", &[]).unwrap();
        drop(theirs);
        let mut buffer = [0; 16];
        assert_eq!(
            receive(ours.as_fd(), RecvFlags::empty(), &mut buffer)
                .unwrap()
                .bytes,
            10
        );
        assert_eq!(
            receive(ours.as_fd(), RecvFlags::empty(), &mut buffer)
                .unwrap()
                .bytes,
            0
        );
        assert_eq!(send(ours.as_fd(), b"x", &[]), Err(Errno::PIPE));
    }
}
