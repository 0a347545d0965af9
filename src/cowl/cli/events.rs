//! `cowl events`.

use super::Stdout;
use super::args::{filter, given};
use super::template::{Template, Type};
use super::{clock, format};
use crate::engine::Engine;
use crate::engine::error::{Error, Result};
use crate::engine::events::{Event, EventRequest};
use clap::Args;
use jiff::Timestamp;

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Only events that match: container, event, image, label, type or volume
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter)]
    filter: Vec<String>,
    /// Show all events created since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g.
    /// "42m")
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Stream events until this timestamp
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Format output: json, or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Prints events until `--until`, or for ever.
pub(super) fn events(engine: &Engine, args: &Events, out: &mut Stdout) -> Result<u8> {
    let filters = format::filters(&args.filter)?;
    let request = EventRequest::parse(
        args.since.as_deref().and_then(given),
        args.until.as_deref().and_then(given),
        &filters,
    )?;
    let template = match args.format.as_deref() {
        None | Some("" | "json") => None,
        Some(text) => match Template::parse(text) {
            Ok(template) => Some(template),
            Err(malformed) => return Ok(malformed.end_events()),
        },
    };
    let as_json = args.format.as_deref() == Some("json");
    engine.events(&request, None, |event| {
        let line = match &template {
            Some(template) => {
                let event = serde_json::to_value(event)?;
                let line = template.render(&event, &Type::Json);
                line.map_err(|why| Error::invalid(format!("Error parsing format: {why}")))?
            }
            None if as_json => serde_json::to_string(event)?,
            None => line(event),
        };
        out.line(&line)?;
        // Show each event at once.
        out.flush()?;
        Ok(!out.is_closed())
    })?;
    Ok(0)
}

/// An event as `docker events` shows it.
fn line(event: &Event) -> String {
    let at = i128::from(event.time_nano);
    let at = Timestamp::from_nanosecond(at).unwrap_or(Timestamp::UNIX_EPOCH);
    let actor = &event.actor;
    let (kind, action, id) = (event.kind.word(), &event.action, &actor.id);
    let at = clock::rfc3339_nano(at);
    let mut line = format!("{at} {kind} {action} {id}");
    let attributes: Vec<String> = actor
        .attributes
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    if !attributes.is_empty() {
        line.extend([" (", &attributes.join(", "), ")"]);
    }
    super::table::printable(&line)
}
