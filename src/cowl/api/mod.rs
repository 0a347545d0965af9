//! `cowl serve`: Docker's Engine API over a unix socket.
//!
//! Each request opens the engine, calls one of its functions and answers in Docker's format. The
//! server holds no state but that of its connections, so a new one can continue after a kill. The
//! engine blocks, so each call runs in a thread of its own. Formats and texts: Docker Engine API
//! v1.51.

mod archive;
mod attach;
mod containers;
mod events;
mod exec;
mod hijack;
mod http;
mod images;
mod life;
mod listen;
mod logs;
mod network;
mod progress;
mod route;
mod stats;
mod stream;
mod system;
mod update;
mod volumes;
mod wait;
mod watch;

pub use listen::serve;
pub(crate) use system::version;

use crate::engine::Engine;
use crate::engine::error::Result;
use hijack::Takeover;
use http::{Handled, Refusal, Reply, Request, Version};
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

/// The API version that the server reports.
const API: Version = Version(1, 51);
/// The oldest version that it accepts.
const OLDEST: Version = Version(1, 24);
/// The newest version that it accepts, with the formats of [`API`]: bollard uses it without
/// negotiation.
const NEWEST: Version = Version(1, 53);

/// The server's shared state.
#[derive(Debug)]
pub(crate) struct Server {
    root: PathBuf,
    watches: watch::Watches,
    /// Clients attached to containers that are not started yet; they are dropped with their
    /// connections.
    pending: attach::Pending,
}

impl Server {
    /// Calls the engine in a thread that may block.
    async fn engine<T: Send + 'static>(
        self: &Arc<Self>,
        verb: impl FnOnce(&Engine) -> Result<T> + Send + 'static,
    ) -> Handled<T> {
        let server = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || verb(&server.open()?)).await;
        match done {
            Ok(done) => done.map_err(Refusal::from),
            Err(panic) => Err(Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("this request failed: {panic}"),
            )),
        }
    }

    fn open(&self) -> Result<Engine> {
        let engine = Engine::open_or_create(&self.root)?;
        engine.store().check_writable()?;
        Ok(engine)
    }

    /// Answers a request; errors become replies.
    async fn answer(
        self: Arc<Self>,
        request: hyper::Request<Incoming>,
        takeover: Takeover,
    ) -> std::result::Result<Reply, Infallible> {
        let is_head = request.method() == Method::HEAD;
        let mut reply = match self.handle(request, takeover).await {
            Ok(reply) => reply,
            Err(refusal) if is_head => http::empty(refusal.status),
            Err(refusal) => refusal.into_reply(),
        };
        if reply.status() != StatusCode::SWITCHING_PROTOCOLS {
            for (name, value) in [
                ("api-version", "1.51"),
                ("docker-experimental", "false"),
                ("ostype", "linux"),
                ("server", concat!("cowl/", env!("CARGO_PKG_VERSION"))),
            ] {
                let value = HeaderValue::from_static(value);
                reply.headers_mut().insert(name, value);
            }
        }
        Ok(reply)
    }

    async fn handle(
        self: Arc<Self>,
        request: hyper::Request<Incoming>,
        takeover: Takeover,
    ) -> Handled {
        let (parts, body) = request.into_parts();
        let (asked, path) = http::split_version(parts.uri.path());
        let version = asked.unwrap_or(API);
        if version > NEWEST {
            return Err(Refusal::invalid(format!(
                "client version {version} is too new. Maximum supported API version is {API}"
            )));
        }
        if version < OLDEST {
            // Such old clients do not parse JSON errors.
            let text = format!(
                "client version {version} is too old. Minimum supported API version is {OLDEST}, please upgrade your client to a newer version"
            );
            return Ok(http::reply(
                StatusCode::BAD_REQUEST,
                "text/plain; charset=utf-8",
                text,
            ));
        }
        let path = http::segments(path).ok_or_else(route::no_page)?;
        let request = Request {
            method: parts.method,
            version,
            path,
            query: http::Query::parse(parts.uri.query().unwrap_or_default()),
            body,
            wants_upgrade: parts.headers.contains_key(hyper::header::UPGRADE),
            takeover,
        };
        route::route(&self, request).await
    }
}
