//! Messages between the process that starts a monitor and the monitor.
//!
//! Both are of one build, so a message is a bincode 2 payload and nothing else: one datagram of a
//! `SOCK_SEQPACKET` socket, with its descriptors. [`Start`] may be larger than a datagram, so it is
//! in a memory file, the first descriptor of the first message. Callers: [`crate::client`] and
//! [`crate::monitor`].

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use bincode::{Decode, Encode};
use rustix::fs::MemfdFlags;
use rustix::net::RecvFlags;

use crate::control::StreamSet;
use crate::message::{ControlRequest, Event, Start};
use crate::socket::{self, MAX_DESCRIPTORS};

/// The kernel limits arguments and environment to a quarter of the stack limit, 2 MiB by default.
/// The rest is small.
const MAX_START: usize = 8 << 20;
/// Every other message is shorter. The longest is a `Failed` that quotes a path.
const MAX_DATAGRAM: usize = 16 << 10;

/// Why a message was not understood or did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket's error.
    #[error("control socket: {0}")]
    Socket(#[from] rustix::io::Errno),
    /// The memory file.
    #[error("plan: {0}")]
    Plan(#[from] std::io::Error),
    /// The other end has closed.
    #[error("the other end of the control socket is gone")]
    Closed,
    /// Not a valid message.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// A record that this version does not know.
    #[error("record type {kind:#06x} version {version} is not known here")]
    Unknown {
        /// Of the record.
        kind: u16,
        /// Of the record.
        version: u16,
    },
    /// More descriptors than one message can carry.
    #[error("{0} descriptors are more than one message can carry")]
    TooManyDescriptors(usize),
    /// Longer than a message may be.
    #[error("{0} bytes are more than a message may have")]
    TooLong(usize),
}

/// The first message, with these descriptors: the memory file of [`Start`], the mount of the
/// monitor's program, the container's root, the status directory, the streams that are attached,
/// joined namespaces and mounts.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Run {
    /// Length of [`Start`] in the memory file.
    pub start_bytes: u32,
    /// The streams among the descriptors, for each client.
    pub streams: Vec<StreamSet>,
}

fn encode(payload: &impl Encode) -> Result<Vec<u8>, WireError> {
    bincode::encode_to_vec(payload, bincode::config::standard())
        .map_err(|_encoding| WireError::Malformed("a payload that can't be encoded"))
}

fn decode<P: Decode<()>>(message: &[u8]) -> Result<P, WireError> {
    // The limit keeps a length field from allocating more than any message can hold.
    let config = bincode::config::standard().with_limit::<MAX_START>();
    let (payload, used) = bincode::decode_from_slice(message, config)
        .map_err(|_decoding| WireError::Malformed("it can't be decoded"))?;
    if used == message.len() {
        Ok(payload)
    } else {
        Err(WireError::Malformed("bytes left over"))
    }
}

/// Writes what to start into a memory file.
pub fn write_start(start: &Start) -> Result<(OwnedFd, u32), WireError> {
    let message = encode(start)?;
    let length =
        u32::try_from(message.len()).map_err(|_range| WireError::TooLong(message.len()))?;
    if message.len() > MAX_START {
        return Err(WireError::TooLong(message.len()));
    }
    let file = File::from(rustix::fs::memfd_create(
        c"cowl-start",
        MemfdFlags::CLOEXEC,
    )?);
    file.write_all_at(&message, 0)?;
    Ok((file.into(), length))
}

/// Reads what [`write_start`] wrote.
pub fn read_start(file: OwnedFd, length: u32) -> Result<Start, WireError> {
    let length = usize::try_from(length).map_err(|_range| WireError::Malformed("its length"))?;
    if length > MAX_START {
        return Err(WireError::TooLong(length));
    }
    let mut message = vec![0; length];
    File::from(file).read_exact_at(&mut message, 0)?;
    decode(&message)
}

/// Client to monitor, once: what to run.
pub fn send_run(
    socket: BorrowedFd<'_>,
    run: &Run,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), WireError> {
    send(socket, run, descriptors)
}

/// Waits for what [`send_run`] sent.
pub fn receive_run(socket: BorrowedFd<'_>) -> Result<(Run, Vec<OwnedFd>), WireError> {
    receive(socket, RecvFlags::empty())
}

/// Client to monitor, at any time after `Run`.
pub fn send_request(socket: BorrowedFd<'_>, request: ControlRequest) -> Result<(), WireError> {
    send(socket, &request, &[])
}

/// Takes a request that has arrived; doesn't wait for one.
pub fn receive_request(socket: BorrowedFd<'_>) -> Result<ControlRequest, WireError> {
    receive(socket, RecvFlags::DONTWAIT).map(|(request, _none_expected)| request)
}

/// Monitor to client.
pub fn send_event(socket: BorrowedFd<'_>, event: &Event) -> Result<(), WireError> {
    send(socket, event, &[])
}

/// Waits for what [`send_event`] sent.
pub fn receive_event(socket: BorrowedFd<'_>) -> Result<Event, WireError> {
    receive(socket, RecvFlags::empty()).map(|(event, _none_expected)| event)
}

fn send(
    socket: BorrowedFd<'_>,
    payload: &impl Encode,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), WireError> {
    let message = encode(payload)?;
    if message.len() > MAX_DATAGRAM {
        return Err(WireError::TooLong(message.len()));
    }
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(WireError::TooManyDescriptors(descriptors.len()));
    }
    Ok(socket::send(socket, &message, descriptors)?)
}

fn receive<P: Decode<()>>(
    socket: BorrowedFd<'_>,
    flags: RecvFlags,
) -> Result<(P, Vec<OwnedFd>), WireError> {
    let mut message = vec![0; MAX_DATAGRAM];
    let received = socket::receive(socket, flags, &mut message)?;
    if received.bytes == 0 {
        return Err(WireError::Closed);
    }
    if received.truncated {
        return Err(WireError::Malformed("longer than a message may be"));
    }
    message.truncate(received.bytes);
    Ok((decode(&message)?, received.descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Started;
    use crate::process::{Process, WindowSize};
    use crate::sandbox::{Mount, Sandbox};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::os::fd::AsFd as _;

    fn sample() -> Start {
        let mut sandbox = Sandbox::new("0123456789abcdef");
        sandbox.mounts.push(Mount::descriptor("/data", true));
        sandbox.limits.memory = Some(512 << 20);
        let mut process = Process::new(vec![b"sh".to_vec(), b"-c".to_vec(), b"exit 3".to_vec()]);
        process.env = vec![b"A=\xff".to_vec()];
        process.terminal = Some(WindowSize {
            rows: 24,
            columns: 80,
        });
        Start::new(sandbox, process)
    }

    #[test]
    fn a_start_larger_than_a_datagram_arrives_whole() {
        let mut start = sample();
        start.process.argv.push(vec![b'x'; 3 << 20]);
        let (file, length) = write_start(&start).unwrap();
        assert_eq!(read_start(file, length).unwrap(), start);
    }

    #[test]
    fn truncated_and_flipped_messages_are_errors() {
        let message = encode(&sample()).unwrap();
        for end in 0..message.len() {
            assert!(decode::<Start>(&message[..end]).is_err());
        }
        for position in 0..message.len() {
            let mut broken = message.clone();
            broken[position] ^= 0xff;
            drop(decode::<Start>(&broken));
        }
    }

    #[test]
    fn messages_carry_their_descriptors() {
        let (engine, monitor) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let run = Run {
            start_bytes: 1,
            streams: vec![StreamSet::default()],
        };
        send_run(engine.as_fd(), &run, &[engine.as_fd(), monitor.as_fd()]).unwrap();
        let (received, descriptors) = receive_run(monitor.as_fd()).unwrap();
        assert_eq!((received, descriptors.len()), (run, 2));
        for descriptor in &descriptors {
            assert_eq!(
                rustix::io::fcntl_getfd(descriptor).unwrap(),
                rustix::io::FdFlags::CLOEXEC
            );
        }

        let resize = ControlRequest::Resize(WindowSize {
            rows: 1,
            columns: 2,
        });
        send_request(engine.as_fd(), resize).unwrap();
        assert_eq!(receive_request(monitor.as_fd()).unwrap(), resize);
        let started = Event::Started(Started { pid: 7 });
        send_event(monitor.as_fd(), &started).unwrap();
        assert_eq!(receive_event(engine.as_fd()).unwrap(), started);
        drop((monitor, descriptors));
        assert!(matches!(
            receive_event(engine.as_fd()),
            Err(WireError::Closed)
        ));
    }
}
