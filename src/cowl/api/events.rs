//! `/events`.

use super::Server;
use super::http::{self, Handled, Request, Version};
use super::stream;
use crate::engine::error::Error;
use crate::engine::events::{Event, EventRequest, Type};
use serde::Serialize;
use std::io;
use std::sync::Arc;

/// Since this version an event has each member once.
const UNIQUE_MEMBERS: Version = Version(1, 52);

/// An event with the members that older clients read.
#[derive(Debug, Serialize)]
struct Shown<'e> {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'e str>,
    #[serde(flatten)]
    event: &'e Event,
}

impl<'e> Shown<'e> {
    fn new(event: &'e Event, version: Version) -> Self {
        let legacy = version < UNIQUE_MEMBERS && event.kind != Type::Volume;
        let image = event.actor.attributes.get("image");
        let image = image.filter(|_| event.kind == Type::Container);
        Self {
            status: legacy.then_some(event.action.as_str()),
            id: legacy.then_some(event.actor.id.as_str()),
            from: image.filter(|_| legacy).map(String::as_str),
            event,
        }
    }
}

/// Sends past and new events, until `until` or until the client is gone.
pub(super) fn events(server: &Arc<Server>, request: &Request) -> Handled {
    let query = &request.query;
    let filters = http::filters(query)?;
    let asked = EventRequest::parse(query.get("since"), query.get("until"), &filters)?;
    let (server, version) = (Arc::clone(server), request.version);
    let produce = move |stream: &stream::Stream, gone: std::os::fd::BorrowedFd<'_>| {
        let followed = server.open().and_then(|engine| {
            engine.events(&asked, Some(gone), |event| {
                match stream.json(&Shown::new(event, version)) {
                    Ok(()) => Ok(true),
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
                    Err(error) => Err(Error::from(error)),
                }
            })
        });
        followed.map_err(|error| io::Error::other(error.to_string()))
    };
    Ok(stream::follow("application/json", produce).map_err(Error::from)?)
}
