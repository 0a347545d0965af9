//! `cowl inspect`: containers, else images, else volumes, in Docker's JSON.

use super::args::{Inspect, InspectAny, InspectContainer, InspectImage};
use crate::cli::args::given;
use crate::cli::template::{Template, Type, shapes};
use crate::cli::{Stdout, each};
use crate::engine::Engine;
use crate::engine::error::{Error, Kind, Result};
use serde::Serialize as _;
use serde_json::Value;

/// `cowl inspect`, of anything or of one type.
pub(in crate::cli) fn any(engine: &Engine, args: &InspectAny, out: &mut Stdout) -> Result<u8> {
    let InspectContainer { inspect, size } = &args.inspect;
    let Some(kind) = args.kind.as_deref() else {
        return print(inspect, out, |name| find(engine, name, *size));
    };
    let kinds = "must be one of \"container\", \"image\", \"volume\"";
    match kind {
        "" => Err(Error::invalid(format!("type is empty: {kinds}"))),
        "container" => container(engine, &args.inspect, out),
        _ if *size => Err(Error::invalid(
            "the --size option is for containers: use it with --type container or without",
        )),
        "image" => print(inspect, out, |name| an_image(engine, name)),
        "volume" => volume(engine, inspect, out),
        other => Err(Error::invalid(format!(
            "unknown type: \"{other}\": {kinds}"
        ))),
    }
}

/// What was found, and its type in templates.
type Found = (Value, &'static Type);

fn an_image(engine: &Engine, name: &str) -> Result<Found> {
    Ok((engine.inspect_image(name)?, &shapes::IMAGE))
}

fn a_volume(engine: &Engine, name: &str) -> Result<Found> {
    Ok((engine.inspect_volume(name)?, &shapes::VOLUME))
}

fn find(engine: &Engine, name: &str, size: bool) -> Result<Found> {
    let missing = |error: &Error| error.kind() == Kind::NotFound;
    let found = match of_container(engine, name, size) {
        Err(error) if missing(&error) => match an_image(engine, name) {
            // An invalid image name may still be a volume's.
            Err(error) if missing(&error) || error.kind() == Kind::Invalid => {
                a_volume(engine, name)
            }
            found => found,
        },
        found => found,
    };
    match found {
        Err(error) if missing(&error) => Err(Error::not_found(format!("No such object: {name}"))),
        found => found,
    }
}

/// `cowl container inspect`.
pub(in crate::cli) fn container(
    engine: &Engine,
    args: &InspectContainer,
    out: &mut Stdout,
) -> Result<u8> {
    print(&args.inspect, out, |name| {
        of_container(engine, name, args.size)
    })
}

fn of_container(engine: &Engine, name: &str, size: bool) -> Result<Found> {
    let mut found = engine.inspect(name)?;
    if size && let Some(fields) = found.as_object_mut() {
        let (changed, whole) = engine.sizes(&engine.container(name)?.config)?;
        fields.insert("SizeRw".to_owned(), changed.into());
        fields.insert("SizeRootFs".to_owned(), whole.into());
    }
    Ok((found, &shapes::CONTAINER))
}

/// `cowl volume inspect`.
pub(in crate::cli) fn volume(engine: &Engine, args: &Inspect, out: &mut Stdout) -> Result<u8> {
    print(args, out, |name| a_volume(engine, name))
}

/// `cowl image inspect`.
pub(in crate::cli) fn image(engine: &Engine, args: &InspectImage, out: &mut Stdout) -> Result<u8> {
    print(&args.inspect, out, |name| {
        engine.check_platforms(name, args.platform.as_deref().and_then(given))?;
        an_image(engine, name)
    })
}

/// Prints the objects as a JSON list, or formatted, one per line.
fn print(args: &Inspect, out: &mut Stdout, find: impl Fn(&str) -> Result<Found>) -> Result<u8> {
    let template = match args.format.as_deref() {
        None | Some("json" | "") => None,
        Some(format) => match Template::parse(format) {
            Ok(template) => Some(template),
            Err(malformed) => return Ok(malformed.end()),
        },
    };
    let mut found = Vec::new();
    let mut has_shown = false;
    let code = each(&args.names, out, |name, out| {
        let (value, of) = find(name)?;
        match &template {
            Some(template) => {
                out.line(&template.render(&value, of)?)?;
                has_shown = true;
            }
            None => found.push(value),
        }
        Ok(())
    })?;
    match args.format.as_deref() {
        None | Some("") => out.line(&pretty(&found)?)?,
        Some("json") => out.line(&serde_json::to_string(&found)?)?,
        // As in Docker, if nothing was found.
        Some(_) if !has_shown => out.line("")?,
        Some(_) => {}
    }
    Ok(code)
}

/// Indented by four, as Docker prints it.
fn pretty(values: &[Value]) -> Result<String> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut json = serde_json::Serializer::with_formatter(&mut text, formatter);
    values.serialize(&mut json)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
