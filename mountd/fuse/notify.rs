//! Notifications: what we tell the kernel unasked.
//!
//! Invariant: no answer that was given depends on one. The kernel refuses one (ENOENT) for a node
//! that it does not know, and that is no error.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use super::wire;
use crate::overlay::NodeId;

/// The kernel drops what it knows of a node's attributes; its pages stay.
pub(super) fn invalidate_attributes(device: BorrowedFd<'_>, node: NodeId) -> io::Result<()> {
    invalidate(device, node, -1)
}

/// The kernel writes a node's dirty pages to us, and drops all of them. Those requests come while
/// this waits, so the caller holds no lock.
pub(super) fn write_back(device: BorrowedFd<'_>, node: NodeId) -> io::Result<()> {
    invalidate(device, node, 0)
}

/// `offset`: from which byte on pages are dropped; none if it is negative.
fn invalidate(device: BorrowedFd<'_>, node: NodeId, offset: i64) -> io::Result<()> {
    let payload = wire::NotifyInvalInodeOut {
        ino: node.0,
        off: offset,
        len: 0,
    };
    match notify(device, wire::NOTIFY_INVAL_INODE, &payload) {
        Err(Errno::NOENT) => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// The kernel sends a request (NOTIFY_REPLY) that no client waits for: a thread that waits for one
/// wakes. It answers so to being asked for what it caches of the root from byte 0 on, 0 bytes.
pub(super) fn wake(device: BorrowedFd<'_>) -> io::Result<()> {
    let payload = wire::NotifyRetrieveOut {
        nodeid: NodeId::ROOT.0,
        ..wire::NotifyRetrieveOut::default()
    };
    match notify(device, wire::NOTIFY_RETRIEVE, &payload) {
        // The connection has ended, as the next read says.
        Err(Errno::NOENT | Errno::NODEV | Errno::NOTCONN | Errno::PERM) => Ok(()),
        outcome => Ok(outcome?),
    }
}

fn notify(
    device: BorrowedFd<'_>,
    code: i32,
    payload: &(impl IntoBytes + Immutable),
) -> Result<(), Errno> {
    let payload = payload.as_bytes();
    let len = size_of::<wire::OutHeader>() + payload.len();
    let header = wire::OutHeader {
        len: u32::try_from(len).map_err(|_beyond_u32| Errno::MSGSIZE)?,
        // Of a notification, which answers no request, this is the code.
        error: code,
        unique: 0,
    };
    let message = [header.as_bytes(), payload].concat();
    // The kernel takes a message whole or not at all.
    rustix::io::retry_on_intr(|| rustix::io::write(device, &message)).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn notifications_are_laid_out_as_in_the_kernels_header() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        invalidate_attributes(writer.as_fd(), NodeId(7)).unwrap();
        let mut message = [0; 64];
        assert_eq!(rustix::io::read(&reader, &mut message).unwrap(), 40);
        let head = [40_u32.to_ne_bytes(), 2_i32.to_ne_bytes(), [0; 4], [0; 4]].concat();
        assert_eq!(message[..16], head);
        let node = [7_u64.to_ne_bytes(), (-1_i64).to_ne_bytes(), [0; 8]].concat();
        assert_eq!(message[16..40], node);
        wake(writer.as_fd()).unwrap();
        assert_eq!(rustix::io::read(&reader, &mut message).unwrap(), 48);
        let head = [48_u32.to_ne_bytes(), 5_i32.to_ne_bytes(), [0; 4], [0; 4]].concat();
        let root = [0_u64.to_ne_bytes(), 1_u64.to_ne_bytes(), [0; 8], [0; 8]].concat();
        assert_eq!(message[..48], [head, root].concat());
    }
}
