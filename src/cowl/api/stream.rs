//! Bodies that are sent or read while they are made: replies of other threads and tasks, uploads,
//! and the reply whose connection is taken over.

use super::http::{Handled, Reply, with_body};
use crate::engine::error::Error;
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use serde::Serialize;
use serde_json::Value;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::{mpsc, oneshot};

/// Chunks that wait between a stream and a slower peer.
const QUEUE: usize = 16;

/// The sending side of a streamed reply, for a thread that may block. It fails once the client is
/// gone.
#[derive(Debug, Clone)]
pub(super) struct Stream(mpsc::Sender<io::Result<Bytes>>);

impl Stream {
    /// Sends a JSON object and a line end, as progress is sent.
    pub(super) fn json(&self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.extend_from_slice(b"\r\n");
        self.send(line)
    }

    /// Sends a JSON object and a line end unless the client is behind in reading.
    pub(super) fn offer_json(&self, value: &impl Serialize) {
        if let Ok(mut line) = serde_json::to_vec(value) {
            line.extend_from_slice(b"\r\n");
            // A client that reads nothing must not hold up the work that is reported.
            let _dropped = self.0.try_send(Ok(line.into()));
        }
    }

    /// Ends the stream with an error: `errorDetail` where the client reads JSON lines.
    pub(super) fn json_error(&self, error: &Error) -> io::Result<()> {
        let message = error.to_string();
        self.json(&serde_json::json!({"errorDetail": {"message": message}, "error": message}))
    }

    /// Waits until the client is gone.
    pub(super) async fn closed(&self) {
        self.0.closed().await;
    }

    /// Sends bytes as they are, from a task.
    pub(super) async fn give(&self, chunk: impl Into<Bytes>) -> io::Result<()> {
        let sent = self.0.send(Ok(chunk.into())).await;
        sent.map_err(|_gone| io::ErrorKind::BrokenPipe.into())
    }

    /// Sends bytes as they are.
    pub(super) fn send(&self, chunk: impl Into<Bytes>) -> io::Result<()> {
        self.0
            .blocking_send(Ok(chunk.into()))
            .map_err(|_gone| io::ErrorKind::BrokenPipe.into())
    }
}

impl io::Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(bytes.to_vec())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A body of chunks that arrive from another thread. What is kept with it goes when the body does:
/// when it was sent, or when the client is gone.
struct Chunks<K = ()>(mpsc::Receiver<io::Result<Bytes>>, K);

impl<K: Unpin> Body for Chunks<K> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let chunk = self.0.poll_recv(context);
        chunk.map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}

/// A body whose first chunk has arrived already.
struct Begun {
    first: Option<Bytes>,
    rest: Chunks,
}

impl Body for Begun {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(Frame::data(first)))),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }
}

/// A reply whose body `produce` writes, in a thread of its own, while the client reads it.
pub(super) fn produce(
    kind: &'static str,
    produce: impl FnOnce(&Stream) -> io::Result<()> + Send + 'static,
) -> Reply {
    let receiver = produced(produce);
    with_body(StatusCode::OK, kind, Chunks(receiver, ()).boxed_unsync())
}

/// The same, where an error before the first chunk is the reply.
pub(super) async fn produce_or_refuse(
    kind: &'static str,
    produce: impl FnOnce(&Stream) -> Result<(), Error> + Send + 'static,
) -> Handled {
    let (refuse, refused) = oneshot::channel();
    let mut receiver = produced(move |stream| {
        produce(stream).map_err(|error| {
            let cut = io::Error::other(error.to_string());
            // Nobody listens once the reply has begun: then the connection is cut.
            refuse.send(error).unwrap_or_default();
            cut
        })
    });
    let first = match receiver.recv().await {
        Some(Err(cut)) => return Err(refused.await.unwrap_or_else(|_| cut.into()).into()),
        first => first.and_then(Result::ok),
    };
    let rest = Chunks(receiver, ());
    let body = Begun { first, rest }.boxed_unsync();
    Ok(with_body(StatusCode::OK, kind, body))
}

/// A reply whose body waits for more than the client: the descriptor that `produce` gets is
/// readable once the client is gone.
pub(super) fn follow(
    kind: &'static str,
    produce: impl FnOnce(&Stream, BorrowedFd<'_>) -> io::Result<()> + Send + 'static,
) -> io::Result<Reply> {
    let (client, gone) = UnixStream::pair()?;
    let receiver = produced(move |stream| produce(stream, gone.as_fd()));
    let body = Chunks(receiver, client).boxed_unsync();
    Ok(with_body(StatusCode::OK, kind, body))
}

fn produced(
    produce: impl FnOnce(&Stream) -> io::Result<()> + Send + 'static,
) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::task::spawn_blocking(move || {
        let stream = Stream(sender);
        if let Err(error) = produce(&stream)
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            // Cuts the connection, which is the only sign left.
            stream.0.blocking_send(Err(error)).unwrap_or_default();
        }
    });
    receiver
}

/// A reply whose body a task sends, for as long as it likes. A client that is gone ends the stream,
/// and the task is to end with it.
pub(super) fn live<F: Future<Output = io::Result<()>> + Send>(
    kind: &'static str,
    produce: impl FnOnce(Stream) -> F + Send + 'static,
) -> Reply {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        if let Err(error) = produce(Stream(sender.clone())).await {
            // Cuts the connection, which is the only sign left.
            sender.send(Err(error)).await.unwrap_or_default();
        }
    });
    with_body(StatusCode::OK, kind, Chunks(receiver, ()).boxed_unsync())
}

/// A reply whose status goes out now and whose JSON body follows when it is known. A client that
/// is gone ends the wait for it.
pub(super) fn later(
    kind: &'static str,
    value: impl Future<Output = Handled<Value>> + Send + 'static,
) -> Reply {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let value = tokio::select! {
            value = value => value,
            () = sender.closed() => return,
        };
        let chunk = match value {
            Ok(value) => Ok(Bytes::from(format!("{value}\n"))),
            // Cuts the connection, which is the only sign left.
            Err(refusal) => Err(io::Error::other(refusal.message)),
        };
        // A client that is gone needs no answer.
        sender.send(chunk).await.unwrap_or_default();
    });
    with_body(StatusCode::OK, kind, Chunks(receiver, ()).boxed_unsync())
}

/// A reply whose body is what is sent on the connection after it, which the handler takes over. Of
/// version 1.0, as there the end of the connection is the end of the body.
pub(super) fn raw(kind: &'static str) -> Reply {
    let (_sender, receiver) = mpsc::channel(1);
    let body = Chunks(receiver, ()).boxed_unsync();
    let mut reply = with_body(StatusCode::OK, kind, body);
    *reply.version_mut() = hyper::Version::HTTP_10;
    reply
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    reply
}

/// An uploaded body as a file that a blocking reader takes: data, then its end; or ECONNRESET if
/// the client cuts it off, which a pipe could not tell from an end.
///
/// What the reader leaves is read and dropped: a client that is still sending would not see the
/// reply.
pub(super) fn upload(mut body: Incoming) -> io::Result<File> {
    let (mut ours, theirs) = UnixStream::pair()?;
    // A stream socket that is closed with unread bytes resets its peer (unix(7), unix_release_sock
    // in the kernel's net/unix/af_unix.c), after the peer has read what was sent.
    (&theirs).write_all(&[0])?;
    let (sender, mut chunks) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut wanted = true;
        while let Some(frame) = body.frame().await {
            // The client is gone. Without the end mark, the reader is told so.
            let Ok(frame) = frame else { return };
            if let Ok(chunk) = frame.into_data() {
                wanted = wanted && sender.send(Some(chunk)).await.is_ok();
            }
        }
        if wanted {
            // A reader that is gone needs no end.
            sender.send(None).await.unwrap_or_default();
        }
    });
    tokio::task::spawn_blocking(move || {
        while let Some(chunk) = chunks.blocking_recv() {
            let passed_on = match chunk {
                Some(chunk) => ours.write_all(&chunk),
                None => ours.read_exact(&mut [0]),
            };
            if passed_on.is_err() {
                // The reader has what it wanted.
                return;
            }
        }
    });
    Ok(OwnedFd::from(theirs).into())
}
