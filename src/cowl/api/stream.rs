//! Streamed bodies: replies written by other threads and tasks, uploads, and the reply whose
//! connection is taken over.

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

/// Chunks buffered for a slow peer.
const QUEUE: usize = 16;

/// The sending side of a streamed reply, for a thread that may block. It fails once the client is
/// gone.
#[derive(Debug, Clone)]
pub(super) struct Stream(mpsc::Sender<io::Result<Bytes>>);

impl Stream {
    /// Sends a JSON object and a line end.
    pub(super) fn json(&self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.extend_from_slice(b"\r\n");
        self.send(line)
    }

    /// Sends a JSON object and a line end, or drops it if the client is slow to read.
    pub(super) fn offer_json(&self, value: &impl Serialize) {
        if let Ok(mut line) = serde_json::to_vec(value) {
            line.extend_from_slice(b"\r\n");
            // A client that does not read must not block the work being reported.
            let _dropped = self.0.try_send(Ok(line.into()));
        }
    }

    /// Ends a stream of JSON lines with an error (`errorDetail`).
    pub(super) fn json_error(&self, error: &Error) -> io::Result<()> {
        let message = error.to_string();
        self.json(&serde_json::json!({"errorDetail": {"message": message}, "error": message}))
    }

    /// Waits until the client is gone.
    pub(super) async fn closed(&self) {
        self.0.closed().await;
    }

    /// Sends bytes from a task.
    pub(super) async fn give(&self, chunk: impl Into<Bytes>) -> io::Result<()> {
        let sent = self.0.send(Ok(chunk.into())).await;
        sent.map_err(|_gone| io::ErrorKind::BrokenPipe.into())
    }

    /// Sends bytes from a thread that may block.
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

/// A body of chunks from another thread. Its second field is dropped with the body: when it has
/// been sent, or when the client is gone.
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

/// A body whose first chunk has already arrived.
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

/// A reply whose body `produce` writes in a thread of its own while the client reads it.
pub(super) fn produce(
    kind: &'static str,
    produce: impl FnOnce(&Stream) -> io::Result<()> + Send + 'static,
) -> Reply {
    let receiver = produced(produce);
    with_body(StatusCode::OK, kind, Chunks(receiver, ()).boxed_unsync())
}

/// [`produce`], but an error before the first chunk becomes the reply.
pub(super) async fn produce_or_refuse(
    kind: &'static str,
    produce: impl FnOnce(&Stream) -> Result<(), Error> + Send + 'static,
) -> Handled {
    let (refuse, refused) = oneshot::channel();
    let mut receiver = produced(move |stream| {
        produce(stream).map_err(|error| {
            let cut = io::Error::other(error.to_string());
            // Once the reply has begun there is no receiver: then the connection is cut.
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

/// A reply whose body follows events: `produce` gets a descriptor that is readable once the client
/// is gone.
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

/// A reply whose body a task sends without limit. When the client is gone the stream fails, and the
/// task must end.
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

/// A reply whose status is sent now and whose JSON body follows when it is known. The wait ends
/// when the client is gone.
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
        // If the client is gone, nobody needs the answer.
        sender.send(chunk).await.unwrap_or_default();
    });
    with_body(StatusCode::OK, kind, Chunks(receiver, ()).boxed_unsync())
}

/// A reply whose body is what the handler then writes on the connection. It is HTTP/1.0, where the
/// end of the connection is the end of the body.
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

/// An uploaded body as a file for a blocking reader: data, then end of file, or ECONNRESET if the
/// client aborts, which a pipe could not distinguish from the end.
///
/// What the reader leaves unread is drained: a client that is still sending would not see the
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
            // The client is gone. The missing end mark makes the reader fail.
            let Ok(frame) = frame else { return };
            if let Ok(chunk) = frame.into_data() {
                wanted = wanted && sender.send(Some(chunk)).await.is_ok();
            }
        }
        if wanted {
            // If the reader is gone, it needs no end mark.
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
                // The reader has finished.
                return;
            }
        }
    });
    Ok(OwnedFd::from(theirs).into())
}
