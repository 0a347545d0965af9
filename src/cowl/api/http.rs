//! Requests and replies of the API, on top of hyper.

use super::hijack::Takeover;
use crate::engine::error::{Error, Kind};
use crate::engine::list::Filters;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::{mpsc, oneshot};

/// Bytes of a JSON body; a create request with a seccomp profile inside has about 20 KB.
const JSON_LIMIT: usize = 4 << 20;
/// Chunks that wait between a stream and a slower peer.
const QUEUE: usize = 16;

/// A body sent to the client. An error cuts the connection, since the status is sent already.
pub(super) type Payload = UnsyncBoxBody<Bytes, io::Error>;
/// A reply.
pub(super) type Reply = Response<Payload>;

/// A version of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u32, pub(super) u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// What is said to a client instead of a result: `{"message": text}` with a status.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, message }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn into_reply(self) -> Reply {
        let body = serde_json::json!({ "message": self.message });
        reply(self.status, "application/json", format!("{body}\n"))
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Conflict => StatusCode::CONFLICT,
            // 400 with their texts is how the CLI finds its exit codes 126 and 127.
            Kind::Invalid | Kind::CommandNotFound | Kind::CommandNotExecutable => {
                StatusCode::BAD_REQUEST
            }
            Kind::Interrupted | Kind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

/// The result of a handler.
pub(super) type Handled<T = Reply> = Result<T, Refusal>;

/// A request without its version prefix.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) version: Version,
    /// The decoded segments of the path.
    pub(super) path: Vec<String>,
    pub(super) query: Query,
    pub(super) body: Incoming,
    /// Whether the client asks to speak something else than HTTP from now on.
    pub(super) wants_upgrade: bool,
    /// The connection, once a reply has said so.
    pub(super) takeover: Takeover,
}

/// The decoded segments of a path. A segment that is not UTF-8 names nothing that exists.
pub(super) fn segments(path: &str) -> Option<Vec<String>> {
    path.split('/')
        .filter(|segment| !segment.is_empty())
        .map(|segment| {
            let decoded = percent_decode_str(segment).decode_utf8().ok()?;
            Some(decoded.into_owned())
        })
        .collect()
}

/// Takes `/v1.47` off a path.
pub(super) fn split_version(path: &str) -> (Option<Version>, &str) {
    let split = || {
        let rest = path.strip_prefix("/v")?;
        let (version, rest) = rest.split_once('/')?;
        let (major, minor) = version.split_once('.')?;
        Some((Version(major.parse().ok()?, minor.parse().ok()?), rest))
    };
    split().map_or((None, path), |(version, rest)| (Some(version), rest))
}

/// The parameters of a request, in order.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: &str) -> Self {
        let pairs = form_urlencoded::parse(query.as_bytes());
        Self(pairs.into_owned().collect())
    }

    /// The first value of a parameter; an empty one counts as absent.
    pub(super) fn get<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).find(|value| !value.is_empty())
    }

    /// All values of a parameter.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.0.iter().filter(move |(own, _)| own == name);
        named.map(|(_, value)| value.as_str())
    }

    /// A switch: anything but empty, `0`, `no`, `false` and `none` is true, as in moby's httputils.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| {
            let value = value.trim().to_ascii_lowercase();
            !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
        })
    }
}

/// The `filters` parameter. Go's client writes `{"name": {"value": true}}`, others
/// `{"name": ["value"]}`.
pub(super) fn filters(query: &Query) -> Handled<Filters> {
    let Some(text) = query.get("filters") else {
        return Ok(Filters::new());
    };
    let all: BTreeMap<String, Value> = serde_json::from_str(text)
        .map_err(|error| Refusal::invalid(format!("invalid filter: {error}")))?;
    let mut filters = Filters::new();
    for (key, values) in all {
        let values = match values {
            Value::Object(values) => values.into_iter().map(|(value, _)| value).collect(),
            Value::Array(values) => values
                .into_iter()
                .map(|value| {
                    let text = value.as_str().map(str::to_owned);
                    text.unwrap_or_else(|| value.to_string())
                })
                .collect(),
            _ => return Err(Refusal::invalid(format!("invalid filter '{key}'"))),
        };
        filters.insert(key, values);
    }
    Ok(filters)
}

/// A reply with a body.
pub(super) fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    let body = Full::new(body.into()).map_err(|never| match never {});
    with_body(status, kind, body.boxed_unsync())
}

/// A reply without a body.
pub(super) fn empty(status: StatusCode) -> Reply {
    let body = Full::new(Bytes::new()).map_err(|never| match never {});
    let mut reply = Response::new(body.boxed_unsync());
    *reply.status_mut() = status;
    reply
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

/// A result as JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Handled {
    let mut text = serde_json::to_vec(value).map_err(Error::from)?;
    text.push(b'\n');
    Ok(reply(status, "application/json", text))
}

fn with_body(status: StatusCode, kind: &'static str, body: Payload) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

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
pub(super) fn stream(
    kind: &'static str,
    produce: impl FnOnce(&Stream) -> io::Result<()> + Send + 'static,
) -> Reply {
    let receiver = produced(produce);
    with_body(StatusCode::OK, kind, Chunks(receiver, ()).boxed_unsync())
}

/// The same, where an error before the first chunk is the reply.
pub(super) async fn stream_or_refuse(
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

/// Reads a JSON body. Unknown members are ignored; what follows the value is an error.
pub(super) async fn json_body<T: DeserializeOwned>(body: Incoming) -> Handled<T> {
    let bytes = whole(body).await?;
    if bytes.is_empty() {
        return Err(Refusal::invalid(
            "invalid JSON: got EOF while reading request body",
        ));
    }
    let wrong = |error| Refusal::invalid(format!("invalid JSON: {error}"));
    // Read as an object first: serde would take the members of a list in order.
    let object: serde_json::Map<String, Value> = serde_json::from_slice(&bytes).map_err(wrong)?;
    serde_json::from_value(object.into()).map_err(wrong)
}

/// The same of a body that may be left out, or null.
pub(super) async fn json_body_if_any<T: DeserializeOwned>(body: Incoming) -> Handled<Option<T>> {
    let bytes = whole(body).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let wrong = |error| Refusal::invalid(format!("invalid JSON: {error}"));
    let object: Option<serde_json::Map<String, Value>> =
        serde_json::from_slice(&bytes).map_err(wrong)?;
    let value = object.map(|object| serde_json::from_value(object.into()));
    value.transpose().map_err(wrong)
}

async fn whole(body: Incoming) -> Handled<Bytes> {
    let limited = http_body_util::Limited::new(body, JSON_LIMIT);
    match limited.collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => Err(Refusal::invalid(format!("invalid JSON: {error}"))),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_version_takes_a_whole_version_only() {
        for (path, expected) in [
            ("/v1.47/images/json", (Some(Version(1, 47)), "images/json")),
            ("/images/json", (None, "/images/json")),
            ("/v1/info", (None, "/v1/info")),
            ("/vx.y/info", (None, "/vx.y/info")),
            ("/version", (None, "/version")),
        ] {
            assert_eq!(split_version(path), expected, "{path}");
        }
    }

    #[test]
    fn segments_are_decoded_after_the_split() {
        assert_eq!(
            segments("/images/a%2Fb/c/json").unwrap(),
            ["images", "a/b", "c", "json"]
        );
        assert_eq!(segments("/%ff"), None);
    }

    #[test]
    fn flag_takes_what_moby_takes() {
        for (query, expected) in [
            ("", false),
            ("f=", false),
            ("f=0", false),
            ("f=False", false),
            ("f=none", false),
            ("f=1", true),
            ("f=True", true),
            ("f=anything", true),
        ] {
            assert_eq!(Query::parse(query).flag("f"), expected, "{query}");
        }
    }

    #[test]
    fn filters_come_in_two_shapes() {
        let parse = |json: &str| {
            let query: String = form_urlencoded::byte_serialize(json.as_bytes()).collect();
            filters(&Query::parse(&format!("filters={query}")))
        };
        for json in [
            r#"{"name": {"a": true, "b": true}}"#,
            r#"{"name": ["a", "b"]}"#,
        ] {
            assert_eq!(parse(json).unwrap()["name"], ["a", "b"], "{json}");
        }
        assert_eq!(parse(r#"{"all": [true]}"#).unwrap()["all"], ["true"]);
        assert!(parse("").unwrap().is_empty());
        let refused = parse("{").unwrap_err().message;
        assert!(refused.starts_with("invalid filter"), "{refused}");
        let refused = parse(r#"{"name": 1}"#).unwrap_err().message;
        assert_eq!(refused, "invalid filter 'name'");
    }
}
