//! Connections that are hijacked, in Docker's term: attach and exec.
//!
//! After the reply's head both sides send raw bytes: unframed with a terminal, else output in
//! frames of Docker's stream format (Engine API, "ContainerAttach"). The reply is a 101 if the
//! client asks for an upgrade, as all do today, else a 200.

use super::http::{Handled, Refusal, Reply, Version, empty};
use super::stream;
use super::watch::Peer;
use crate::engine::attach::Pipes;
use crate::engine::detach_keys::DetachKeys;
use crate::engine::error::Error;
use cowl_sys::socket::is_all_read;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::ext::ReasonPhrase;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, oneshot};

/// Bytes read from a pipe or a client at a time.
const CHUNK: usize = 32 << 10;
/// How often, and how long apart, it is polled whether a client has read the head of its reply: for
/// half a minute at most, since a client that reads nothing yet is served all the same. On a busy
/// machine a client may need some seconds.
const HEAD_POLLS: u32 = 30_000;
const HEAD_POLL_INTERVAL: Duration = Duration::from_millis(1);
/// Length of a frame's header: stream, three zero bytes, length (big endian).
pub(super) const HEADER: usize = 8;
/// The stream of standard output in a frame's header.
pub(super) const STDOUT: u8 = 1;
/// The stream of standard error in a frame's header.
pub(super) const STDERR: u8 = 2;
/// The media type of unframed output, and of any output before API 1.42.
const RAW: &str = "application/vnd.docker.raw-stream";

/// How a stream is encoded.
#[derive(Debug, Clone)]
pub(super) struct Format {
    /// The program has a terminal: output is not framed.
    pub(super) terminal: bool,
    /// Keys that detach the client of a terminal.
    detach: DetachKeys,
    /// Whether the client wants the output.
    stdout: bool,
}

impl Format {
    /// `stdout`: the client wants the program's output, not only its end.
    pub(super) fn new(terminal: bool, detach_keys: Option<&str>, stdout: bool) -> Handled<Self> {
        let detach = detach_keys.map_or_else(|| Ok(DetachKeys::default()), DetachKeys::parse)?;
        let detach = if terminal { detach } else { DetachKeys::none() };
        Ok(Self {
            terminal,
            detach,
            stdout,
        })
    }
}

/// The media type of a program's output.
pub(super) fn media_type(terminal: bool, version: Version) -> &'static str {
    if terminal || version < Version(1, 42) {
        RAW
    } else {
        "application/vnd.docker.multiplexed-stream"
    }
}

/// Receives a request's connection once its reply is sent: the socket, and the bytes that the
/// client sent after its request. Fails if the reply was an ordinary one, or the client is gone.
pub(super) type Takeover = oneshot::Receiver<(UnixStream, Bytes)>;

/// The reply after which the connection is raw: 101 if the client asks for an upgrade, else a reply
/// without a length.
pub(super) fn switching(wants_upgrade: bool, terminal: bool, version: Version) -> Reply {
    if !wants_upgrade {
        return stream::raw(RAW);
    }
    let mut reply = empty(StatusCode::SWITCHING_PROTOCOLS);
    for (name, value) in [
        (CONTENT_TYPE, media_type(terminal, version)),
        (CONNECTION, "Upgrade"),
        (UPGRADE, "tcp"),
    ] {
        let value = HeaderValue::from_static(value);
        reply.headers_mut().insert(name, value);
    }
    // dockerd's reason phrase.
    let reason = ReasonPhrase::from_static(b"UPGRADED");
    reply.extensions_mut().insert(reason);
    reply
}

/// A connection that is no longer HTTP.
#[derive(Debug)]
pub(super) struct Client {
    reader: OwnedReadHalf,
    writer: Mutex<OwnedWriteHalf>,
    peer: Peer,
    /// What the client sent right after its request.
    first: Bytes,
}

/// How [`Client::copy`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CopyEnd {
    /// The program's output has ended.
    OutputEnded,
    /// The client has sent the detach keys, or is gone.
    ClientLeft,
}

impl Client {
    /// Takes over a connection once its reply is sent.
    pub(super) async fn take(takeover: Takeover) -> io::Result<Self> {
        let (stream, first) = takeover.await.map_err(io::Error::other)?;
        head_is_read(&stream).await?;
        let peer = Peer::of(&stream)?;
        let (reader, writer) = stream.into_split();
        Ok(Self {
            reader,
            writer: Mutex::new(writer),
            peer,
            first,
        })
    }

    /// Copies bytes in both directions until the program's output has ended, or the client detaches
    /// or is gone.
    pub(super) async fn copy(&mut self, pipes: Pipes, format: &Format) -> io::Result<CopyEnd> {
        let ends = Ends::new(pipes)?;
        let writer = &self.writer;
        let frame = |stream: u8| (!format.terminal).then_some(stream);
        let output = async {
            tokio::join!(
                copy_out(ends.stdout, format.stdout.then_some(writer), frame(STDOUT)),
                copy_out(ends.stderr, Some(writer), frame(STDERR)),
            );
        };
        let input = copy_in(&self.first, &mut self.reader, ends.stdin, format);
        Ok(tokio::select! {
            () = output => CopyEnd::OutputEnded,
            () = input => CopyEnd::ClientLeft,
            () = self.peer.gone() => CopyEnd::ClientLeft,
        })
    }

    /// Writes text to the client as output of the program.
    pub(super) async fn say(&self, text: &str, format: &Format) -> io::Result<()> {
        let mut frame = Vec::with_capacity(HEADER + text.len());
        if !format.terminal {
            frame.extend(header(STDOUT, text.len()));
        }
        frame.extend_from_slice(text.as_bytes());
        self.write(&frame).await
    }

    /// Writes bytes to the client unframed.
    pub(super) async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.writer.lock().await.write_all(bytes).await
    }

    /// Ends the stream, which for the client is the end of the output.
    pub(super) async fn close(self) {
        // If the client is gone, nothing needs to be ended.
        let mut writer = self.writer.into_inner();
        writer.shutdown().await.unwrap_or_default();
    }
}

/// Waits until the client has read the head of the reply. docker-py takes the socket away from its
/// HTTP library, and loses what the library's buffer read together with the head.
async fn head_is_read(stream: &UnixStream) -> io::Result<()> {
    for _attempt in 0..HEAD_POLLS {
        if is_all_read(stream)? {
            break;
        }
        // The kernel has no notification for when the last byte is read.
        tokio::time::sleep(HEAD_POLL_INTERVAL).await;
    }
    Ok(())
}

/// The header of a frame of `length` bytes.
pub(super) fn header(stream: u8, length: usize) -> [u8; HEADER] {
    // No frame is longer than one read.
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [stream, 0, 0, 0, a, b, c, d]
}

/// [`Pipes`] registered with the runtime.
struct Ends {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

impl Ends {
    fn new(pipes: Pipes) -> io::Result<Self> {
        let receiver = |end: Option<_>| end.map(pipe::Receiver::from_owned_fd).transpose();
        Ok(Self {
            stdin: pipes.stdin.map(pipe::Sender::from_owned_fd).transpose()?,
            stdout: receiver(pipes.stdout)?,
            stderr: receiver(pipes.stderr)?,
        })
    }
}

/// Copies a pipe to the client, in frames of `stream` if given; without a client it only waits for
/// the pipe's end.
///
/// If the client cannot be written to, it is gone: the pipe is closed, and the monitor drops this
/// reader.
async fn copy_out(
    pipe: Option<pipe::Receiver>,
    client: Option<&Mutex<OwnedWriteHalf>>,
    stream: Option<u8>,
) {
    let Some(mut pipe) = pipe else { return };
    let head = if stream.is_some() { HEADER } else { 0 };
    let mut buffer = vec![0; head + CHUNK];
    loop {
        let (place, free) = buffer.split_at_mut(head);
        let length = match pipe.read(free).await {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        if let Some(stream) = stream {
            place.copy_from_slice(&header(stream, length));
        }
        let Some(client) = client else { continue };
        let filled = buffer.get(..head + length).unwrap_or_default();
        if client.lock().await.write_all(filled).await.is_err() {
            return;
        }
    }
}

/// Copies the client's bytes to the program. Returns when the client detaches; the end of its input
/// closes the program's input, and output goes on.
async fn copy_in(
    first: &[u8],
    client: &mut OwnedReadHalf,
    mut stdin: Option<pipe::Sender>,
    format: &Format,
) {
    let mut keys = format.detach.clone();
    let mut buffer = vec![0; CHUNK];
    let mut read = first.to_vec();
    loop {
        let (bytes, detached) = keys.filter(&read);
        if let Some(pipe) = &mut stdin
            && pipe.write_all(&bytes).await.is_err()
        {
            // The program reads no more.
            stdin = None;
        }
        if detached {
            return;
        }
        match client.read(&mut buffer).await {
            // The client has closed its sending side. Others wait for the whole connection's end.
            Ok(0) | Err(_) => break,
            Ok(length) => {
                read.clear();
                read.extend_from_slice(buffer.get(..length).unwrap_or_default());
            }
        }
    }
    drop(stdin);
    std::future::pending::<()>().await;
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Error::from(error).into()
    }
}
