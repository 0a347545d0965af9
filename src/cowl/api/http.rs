//! Requests and replies of the API, on top of hyper.

use super::hijack::Takeover;
use crate::engine::error::{Error, Kind};
use crate::engine::list::Filters;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;

/// Largest JSON body; a create request with a seccomp profile has about 20 KB.
const JSON_LIMIT: usize = 4 << 20;
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

/// An error reply: `{"message": text}` with a status.
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
            // From 400 and these texts the CLI derives its exit codes 126 and 127.
            Kind::Invalid | Kind::CommandNotFound | Kind::CommandNotExecutable => {
                StatusCode::BAD_REQUEST
            }
            Kind::Interrupted | Kind::Output | Kind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
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
    /// Whether the client asks for an upgrade.
    pub(super) wants_upgrade: bool,
    /// The connection, after an upgrade.
    pub(super) takeover: Takeover,
}

/// The decoded segments of a path; None if one is not UTF-8, which names nothing that exists.
pub(super) fn segments(path: &str) -> Option<Vec<String>> {
    path.split('/')
        .filter(|segment| !segment.is_empty())
        .map(|segment| {
            let decoded = percent_decode_str(segment).decode_utf8().ok()?;
            Some(decoded.into_owned())
        })
        .collect()
}

/// Splits `/v1.47` off a path.
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

    /// A boolean: anything but empty, `0`, `no`, `false` and `none` is true, as in moby's
    /// httputils.
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

/// A result as JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Handled {
    let mut text = serde_json::to_vec(value).map_err(Error::from)?;
    text.push(b'\n');
    Ok(reply(status, "application/json", text))
}

pub(super) fn with_body(status: StatusCode, kind: &'static str, body: Payload) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

/// Reads a JSON body. Unknown members are ignored; trailing data is an error.
pub(super) async fn json_body<T: DeserializeOwned>(body: Incoming) -> Handled<T> {
    let bytes = whole(body).await?;
    if bytes.is_empty() {
        return Err(Refusal::invalid(
            "invalid JSON: got EOF while reading request body",
        ));
    }
    let wrong = |error| Refusal::invalid(format!("invalid JSON: {error}"));
    // Parse an object first: serde would also accept a list of the members in order.
    let object: serde_json::Map<String, Value> = serde_json::from_slice(&bytes).map_err(wrong)?;
    serde_json::from_value(object.into()).map_err(wrong)
}

/// [`json_body`] for a body that may be missing or null.
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
