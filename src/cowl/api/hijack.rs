//! Connections that stop being HTTP: attach and exec.
//!
//! After the reply's head both sides send raw bytes: with a terminal as they are, else output in
//! frames of Docker's stream format (Engine API, "ContainerAttach"). The reply is a 101 where the
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

/// Bytes read from a pipe or a client at once.
const CHUNK: usize = 32 << 10;
/// How often it is looked, and how long apart, whether a client has read the head of its reply: for
/// half a minute at most, as one that reads nothing yet is served all the same. A client on a busy
/// machine may need some seconds.
const HEAD_LOOKS: u32 = 30_000;
const HEAD_PAUSE: Duration = Duration::from_millis(1);
/// Length of a frame's header: stream, three zero bytes, length (big endian).
pub(super) const HEADER: usize = 8;
/// The stream of standard output in a frame's header.
pub(super) const STDOUT: u8 = 1;
/// The stream of standard error in a frame's header.
pub(super) const STDERR: u8 = 2;
/// The media type of output without frames, or of which it is not said.
const RAW: &str = "application/vnd.docker.raw-stream";

/// How bytes pass.
#[derive(Debug, Clone)]
pub(super) struct Format {
    /// The program has a terminal: no frames.
    pub(super) terminal: bool,
    /// Keys that detach the client of a terminal.
    detach: DetachKeys,
    /// Which output the client wants.
    stdout: bool,
}

impl Format {
    /// `stdout`: the client wants the program's output, and not only to know its end.
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

/// What the connection of a request will be when its reply is sent: the socket, and what the client
/// has sent behind its request. An error if the reply was an ordinary one, or the client is gone.
pub(super) type Takeover = oneshot::Receiver<(UnixStream, Bytes)>;

/// The answer after which the connection belongs to the program: a change of protocol where the
/// client asks for one, else a reply that never says how long it is.
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
    // As dockerd says it.
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
    /// What the client sent right behind its request.
    first: Bytes,
}

/// How [`Client::pass`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    /// The program's output has ended.
    Whole,
    /// The client has sent the detach keys, or is gone.
    Left,
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

    /// Passes bytes until the program's output has ended, or the client detaches or is gone.
    pub(super) async fn pass(&mut self, pipes: Pipes, format: &Format) -> io::Result<Passed> {
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
            () = output => Passed::Whole,
            () = input => Passed::Left,
            () = self.peer.gone() => Passed::Left,
        })
    }

    /// Writes a text to the client as the program's output.
    pub(super) async fn say(&self, text: &str, format: &Format) -> io::Result<()> {
        let mut frame = Vec::with_capacity(HEADER + text.len());
        if !format.terminal {
            frame.extend(header(STDOUT, text.len()));
        }
        frame.extend_from_slice(text.as_bytes());
        self.write(&frame).await
    }

    /// Writes bytes to the client as they are.
    pub(super) async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.writer.lock().await.write_all(bytes).await
    }

    /// Ends the stream, which the client takes for the end of the output.
    pub(super) async fn close(self) {
        // One that is gone needs no end.
        let mut writer = self.writer.into_inner();
        writer.shutdown().await.unwrap_or_default();
    }
}

/// Waits until the client has read the head of the reply. docker-py takes the socket from under its
/// HTTP library's buffer then, and what came in one read with the head would be lost in that.
async fn head_is_read(stream: &UnixStream) -> io::Result<()> {
    for _attempt in 0..HEAD_LOOKS {
        if is_all_read(stream)? {
            break;
        }
        // The kernel tells nobody when the last byte is read.
        tokio::time::sleep(HEAD_PAUSE).await;
    }
    Ok(())
}

/// The head of a frame of so many bytes.
pub(super) fn header(stream: u8, length: usize) -> [u8; HEADER] {
    // No frame is longer than what is read at once.
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [stream, 0, 0, 0, a, b, c, d]
}

/// [`Pipes`] that the runtime polls.
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

/// Sends a pipe's bytes to the client, in frames of `stream` if there is one; without a client it
/// only waits for their end.
///
/// A client that can't be written to is gone: the pipe is closed, and the program's monitor drops
/// this reader.
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

/// Passes the client's bytes to the program. Returns when the client detaches; at the end of its
/// input the program's input is closed, and output goes on.
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
            // Half closed. If it is gone altogether, that is waited for elsewhere.
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
