//! `cowl serve`: Docker's Engine API over a unix socket.
//!
//! Each request opens the engine, calls a verb and answers in Docker's words. The server holds no
//! state but that of its connections: killed at any moment, the next one goes on. Verbs block, so
//! each runs in a thread of its own. Shapes and texts: Docker Engine API v1.51.

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

/// What the server says that it speaks.
const API: Version = Version(1, 51);
/// The oldest version that it answers.
const OLDEST: Version = Version(1, 24);
/// The newest version that it answers, with the shapes of [`API`]: bollard asks for it without
/// negotiation.
const NEWEST: Version = Version(1, 53);

/// What each request needs.
#[derive(Debug)]
pub(crate) struct Server {
    root: PathBuf,
    watches: watch::Watches,
    /// Clients whose containers are not started yet. They are lost with their connections.
    pending: attach::Pending,
}

impl Server {
    /// Calls a verb of the engine in a thread that may block.
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
            // Clients that old know no JSON errors.
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
