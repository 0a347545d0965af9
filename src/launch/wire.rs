//! Messages between engine and monitor: framing, payloads and the descriptors sent with them.
//!
//! A message is one datagram of a `SOCK_SEQPACKET` socket:
//!
//! ```text
//!  0        8         12          16      18        20       24
//!  +--------+---------+-----------+-------+---------+--------+---------
//!  | magic  | version | features  | type  | version | length | payload   (the last four repeat)
//!  +--------+---------+-----------+-------+---------+--------+---------
//!   cowl-run  u32 = 1   u32 = 0     u16     u16       u32      bincode 2, standard configuration
//! ```
//!
//! Numbers are little-endian. Types with bit 15 set are optional: a reader skips those it doesn't
//! know. Any other unknown type, an unknown version of a known type and an unknown feature bit are
//! errors. A plan may be larger than a datagram, so it is a message of its own in a memory file,
//! the first descriptor of `Run`. Callers: [`crate::client`] and [`crate::monitor`].

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use bincode::{Decode, Encode};
use rustix::fs::MemfdFlags;
use rustix::net::RecvFlags;

use crate::plan::{ControlRequest, Event, Exited, Failed, Plan, Signal, Started, WindowSize};
use crate::socket::{self, MAX_DESCRIPTORS};

const MAGIC: [u8; 8] = *b"cowl-run";
const VERSION: u32 = 1;
const HEADER: usize = 16;
const RECORD: usize = 8;
const OPTIONAL: u16 = 0x8000;

/// The kernel limits arguments and environment to a quarter of the stack limit, 2 MiB by default.
/// The rest of a plan is small.
const MAX_PLAN: usize = 8 << 20;
/// Every message but a plan is shorter. The longest is a `Failed` that quotes a path.
const MAX_DATAGRAM: usize = 16 << 10;

/// Why a message was not understood or did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket's error.
    #[error("control socket: {0}")]
    Socket(#[from] rustix::io::Errno),
    /// The plan's memory file.
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

/// A payload with its place in the numbering.
trait Payload: Encode + Decode<()> {
    const TYPE: u16;
    const VERSION: u16;
}

macro_rules! payload {
    ($name:ty, $number:literal, version $version:literal) => {
        impl Payload for $name {
            const TYPE: u16 = $number;
            const VERSION: u16 = $version;
        }
    };
}

payload!(Run, 0x0001, version 2);
payload!(Plan, 0x0002, version 2);
payload!(Signal, 0x0010, version 1);
payload!(WindowSize, 0x0011, version 1);
payload!(Started, 0x0020, version 1);
payload!(Failed, 0x0021, version 1);
payload!(Exited, 0x0022, version 1);

/// The first message, with these descriptors: the plan's memory file, the mount of the monitor's
/// program, the container's root, the status directory, the standard streams and the volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Run {
    /// Length of the plan's message in the memory file.
    pub plan_bytes: u32,
    /// Stdin, stdout and stderr are among the descriptors.
    pub stdio: bool,
    /// Volumes among the descriptors.
    pub volumes: u16,
}

/// A message with one record.
fn encode<P: Payload>(payload: &P) -> Result<Vec<u8>, WireError> {
    let body = bincode::encode_to_vec(payload, bincode::config::standard())
        .map_err(|_encoding| WireError::Malformed("a payload that can't be encoded"))?;
    let length = u32::try_from(body.len()).map_err(|_range| WireError::TooLong(body.len()))?;
    let mut message = Vec::with_capacity(HEADER + RECORD + body.len());
    message.extend_from_slice(&MAGIC);
    message.extend_from_slice(&VERSION.to_le_bytes());
    message.extend_from_slice(&0_u32.to_le_bytes());
    message.extend_from_slice(&P::TYPE.to_le_bytes());
    message.extend_from_slice(&P::VERSION.to_le_bytes());
    message.extend_from_slice(&length.to_le_bytes());
    message.extend_from_slice(&body);
    Ok(message)
}

/// One record of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record<'m> {
    kind: u16,
    version: u16,
    body: &'m [u8],
}

impl<'m> Record<'m> {
    /// The first record of a message that is not an optional unknown one.
    fn first(message: &'m [u8]) -> Result<Self, WireError> {
        let (header, mut rest) = message
            .split_at_checked(HEADER)
            .ok_or(WireError::Malformed("shorter than its header"))?;
        let (magic, numbers) = header
            .split_at_checked(MAGIC.len())
            .ok_or(WireError::Malformed("shorter than its header"))?;
        if magic != MAGIC {
            return Err(WireError::Malformed("wrong magic"));
        }
        if numbers != [VERSION.to_le_bytes(), 0_u32.to_le_bytes()].as_flattened() {
            return Err(WireError::Malformed("unknown version or feature"));
        }
        loop {
            let Some((head, tail)) = rest.split_first_chunk::<RECORD>() else {
                return Err(WireError::Malformed("no record"));
            };
            let [t0, t1, v0, v1, length @ ..] = *head;
            let kind = u16::from_le_bytes([t0, t1]);
            let length = usize::try_from(u32::from_le_bytes(length))
                .map_err(|_range| WireError::Malformed("record length"))?;
            let (body, after) = tail
                .split_at_checked(length)
                .ok_or(WireError::Malformed("record longer than its message"))?;
            if kind & OPTIONAL == 0 {
                return Ok(Self {
                    kind,
                    version: u16::from_le_bytes([v0, v1]),
                    body,
                });
            }
            rest = after;
        }
    }

    /// The payload, if the record is of this kind.
    fn parse<P: Payload>(&self) -> Result<Option<P>, WireError> {
        if self.kind != P::TYPE {
            return Ok(None);
        }
        if self.version != P::VERSION {
            return Err(self.unknown());
        }
        // The limit keeps a length field in a payload from allocating more than any message can
        // hold.
        let config = bincode::config::standard().with_limit::<MAX_PLAN>();
        let (payload, used) = bincode::decode_from_slice(self.body, config)
            .map_err(|_decoding| WireError::Malformed("payload can't be decoded"))?;
        if used == self.body.len() {
            Ok(Some(payload))
        } else {
            Err(WireError::Malformed("bytes left over in a payload"))
        }
    }

    fn unknown(&self) -> WireError {
        WireError::Unknown {
            kind: self.kind,
            version: self.version,
        }
    }
}

/// Writes a plan into a memory file.
pub fn write_plan(plan: &Plan) -> Result<(OwnedFd, u32), WireError> {
    let message = encode(plan)?;
    let length =
        u32::try_from(message.len()).map_err(|_range| WireError::TooLong(message.len()))?;
    if message.len() > MAX_PLAN {
        return Err(WireError::TooLong(message.len()));
    }
    let file = File::from(rustix::fs::memfd_create(c"cowl-plan", MemfdFlags::CLOEXEC)?);
    file.write_all_at(&message, 0)?;
    Ok((file.into(), length))
}

/// Reads what [`write_plan`] wrote.
pub fn read_plan(file: OwnedFd, length: u32) -> Result<Plan, WireError> {
    let length = usize::try_from(length).map_err(|_range| WireError::Malformed("plan length"))?;
    if length > MAX_PLAN {
        return Err(WireError::TooLong(length));
    }
    let mut message = vec![0; length];
    let file = File::from(file);
    file.read_exact_at(&mut message, 0)?;
    let record = Record::first(&message)?;
    record.parse()?.ok_or_else(|| record.unknown())
}

/// Engine to monitor, once: what to run.
pub fn send_run(
    socket: BorrowedFd<'_>,
    run: &Run,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), WireError> {
    send(socket, &encode(run)?, descriptors)
}

/// Waits for what [`send_run`] sent.
pub fn receive_run(socket: BorrowedFd<'_>) -> Result<(Run, Vec<OwnedFd>), WireError> {
    let (message, descriptors) = receive(socket, RecvFlags::empty())?;
    let record = Record::first(&message)?;
    Ok((
        record.parse()?.ok_or_else(|| record.unknown())?,
        descriptors,
    ))
}

/// Engine to monitor, at any time after `Run`.
pub fn send_request(socket: BorrowedFd<'_>, request: ControlRequest) -> Result<(), WireError> {
    let message = match request {
        ControlRequest::Signal(signal) => encode(&signal)?,
        ControlRequest::Resize(size) => encode(&size)?,
    };
    send(socket, &message, &[])
}

/// Takes a request that has arrived; doesn't wait for one.
pub fn receive_request(socket: BorrowedFd<'_>) -> Result<ControlRequest, WireError> {
    let (message, _none_expected) = receive(socket, RecvFlags::DONTWAIT)?;
    let record = Record::first(&message)?;
    if let Some(signal) = record.parse()? {
        return Ok(ControlRequest::Signal(signal));
    }
    record
        .parse()?
        .map(ControlRequest::Resize)
        .ok_or_else(|| record.unknown())
}

/// Monitor to engine; the master end of the terminal goes with `Started`.
pub fn send_event(
    socket: BorrowedFd<'_>,
    event: &Event,
    terminal: Option<BorrowedFd<'_>>,
) -> Result<(), WireError> {
    let message = match event {
        Event::Started(started) => encode(started)?,
        Event::Failed(failed) => encode(failed)?,
        Event::Exited(exited) => encode(exited)?,
    };
    send(socket, &message, terminal.as_slice())
}

/// Waits for what [`send_event`] sent.
pub fn receive_event(socket: BorrowedFd<'_>) -> Result<(Event, Option<OwnedFd>), WireError> {
    let (message, descriptors) = receive(socket, RecvFlags::empty())?;
    let record = Record::first(&message)?;
    let terminal = descriptors.into_iter().next();
    if let Some(started) = record.parse()? {
        return Ok((Event::Started(started), terminal));
    }
    if let Some(failed) = record.parse()? {
        return Ok((Event::Failed(failed), terminal));
    }
    record
        .parse()?
        .map(|exited| (Event::Exited(exited), terminal))
        .ok_or_else(|| record.unknown())
}

fn send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), WireError> {
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(WireError::TooManyDescriptors(descriptors.len()));
    }
    Ok(socket::send(socket, message, descriptors)?)
}

fn receive(socket: BorrowedFd<'_>, flags: RecvFlags) -> Result<(Vec<u8>, Vec<OwnedFd>), WireError> {
    let mut message = vec![0; MAX_DATAGRAM];
    let received = socket::receive(socket, flags, &mut message)?;
    if received.bytes == 0 {
        return Err(WireError::Closed);
    }
    if received.truncated {
        return Err(WireError::Malformed("longer than a message may be"));
    }
    message.truncate(received.bytes);
    Ok((message, received.descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Limits, VolumeMount};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::os::fd::AsFd as _;

    fn sample() -> Plan {
        let mut plan = Plan::new(
            "0123456789abcdef",
            vec![b"sh".to_vec(), b"-c".to_vec(), b"exit 3".to_vec()],
        );
        plan.env = vec![b"A=\xff".to_vec()];
        plan.cwd = b"/work".to_vec();
        plan.user = b"app:1000".to_vec();
        plan.volumes = vec![VolumeMount {
            destination: b"/data".to_vec(),
            read_only: true,
        }];
        plan.limits = Limits {
            memory: Some(512 << 20),
            pids: None,
        };
        plan.terminal = Some(WindowSize {
            rows: 24,
            columns: 80,
        });
        plan
    }

    /// The bytes of each record version. A new version gets a new file.
    fn golden(name: &str, bytes: &[u8]) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../fixtures/golden/launch")
            .join(name);
        assert_eq!(
            std::fs::read(&path).unwrap(),
            bytes,
            "{} differs",
            path.display()
        );
    }

    #[test]
    fn records_have_their_golden_bytes() {
        golden("plan-v2", &encode(&sample()).unwrap());
        golden(
            "run-v2",
            &encode(&Run {
                plan_bytes: 700,
                stdio: true,
                volumes: 2,
            })
            .unwrap(),
        );
        golden("signal-v1", &encode(&Signal { number: 15 }).unwrap());
        golden(
            "resize-v1",
            &encode(&WindowSize {
                rows: 50,
                columns: 300,
            })
            .unwrap(),
        );
        golden("started-v1", &encode(&Started { pid: 70_000 }).unwrap());
        golden(
            "failed-v1",
            &encode(&Failed {
                what: "mount /proc".to_owned(),
                errno: 1,
                exit_code: 125,
            })
            .unwrap(),
        );
        golden(
            "exited-v1",
            &encode(&Exited {
                exit_code: 137,
                signal: Some(9),
                oom_killed: true,
            })
            .unwrap(),
        );
    }

    /// Version 1 has no seccomp field.
    #[test]
    fn a_plan_of_version_1_is_refused() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../fixtures/golden/launch/plan-v1"
        );
        let message = std::fs::read(path).unwrap();
        assert!(matches!(
            Record::first(&message).unwrap().parse::<Plan>(),
            Err(WireError::Unknown { version: 1, .. })
        ));
    }

    #[test]
    fn a_plan_larger_than_a_datagram_arrives_whole() {
        let mut plan = sample();
        plan.argv.push(vec![b'x'; 3 << 20]);
        let (file, length) = write_plan(&plan).unwrap();
        assert_eq!(read_plan(file, length).unwrap(), plan);
    }

    #[test]
    fn unknown_optional_records_are_skipped_and_others_refused() {
        let signal = encode(&Signal { number: 9 }).unwrap();
        let mut message = signal[..HEADER].to_vec();
        message.extend_from_slice(&[0x77, 0x80, 9, 0, 3, 0, 0, 0, 1, 2, 3]);
        message.extend_from_slice(&signal[HEADER..]);
        assert_eq!(
            Record::first(&message).unwrap().parse::<Signal>().unwrap(),
            Some(Signal { number: 9 })
        );

        let mut newer = signal.clone();
        newer[HEADER + 2] = 2;
        assert!(matches!(
            Record::first(&newer).unwrap().parse::<Signal>(),
            Err(WireError::Unknown { version: 2, .. })
        ));
        let mut feature = signal;
        feature[12] = 1;
        assert!(Record::first(&feature).is_err());
    }

    #[test]
    fn truncated_and_flipped_messages_are_errors() {
        let message = encode(&sample()).unwrap();
        for end in 0..message.len() {
            assert!(
                Record::first(&message[..end])
                    .and_then(|record| record.parse::<Plan>())
                    .is_err()
            );
        }
        for position in 0..message.len() {
            let mut broken = message.clone();
            broken[position] ^= 0xff;
            drop(Record::first(&broken).and_then(|record| record.parse::<Plan>()));
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
            plan_bytes: 1,
            stdio: false,
            volumes: 1,
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

        send_request(
            engine.as_fd(),
            ControlRequest::Resize(WindowSize {
                rows: 1,
                columns: 2,
            }),
        )
        .unwrap();
        assert_eq!(
            receive_request(monitor.as_fd()).unwrap(),
            ControlRequest::Resize(WindowSize {
                rows: 1,
                columns: 2
            })
        );
        send_event(
            monitor.as_fd(),
            &Event::Started(Started { pid: 7 }),
            Some(engine.as_fd()),
        )
        .unwrap();
        let (event, terminal) = receive_event(engine.as_fd()).unwrap();
        assert_eq!(event, Event::Started(Started { pid: 7 }));
        assert!(terminal.is_some());
        drop((monitor, descriptors, terminal));
        assert!(matches!(
            receive_event(engine.as_fd()),
            Err(WireError::Closed)
        ));
    }
}
