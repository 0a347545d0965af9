//! `cowl inspect`: containers, else images, else volumes, in Docker's JSON.

use super::args::{Inspect, InspectAny, InspectContainer, InspectImage};
use crate::cli::args::given;
use crate::cli::template::Template;
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
        "image" => print(inspect, out, |name| engine.inspect_image(name)),
        "volume" => print(inspect, out, |name| engine.inspect_volume(name)),
        other => Err(Error::invalid(format!(
            "unknown type: \"{other}\": {kinds}"
        ))),
    }
}

fn find(engine: &Engine, name: &str, size: bool) -> Result<Value> {
    let missing = |error: &Error| error.kind() == Kind::NotFound;
    let found = match of_container(engine, name, size) {
        Err(error) if missing(&error) => match engine.inspect_image(name) {
            // An invalid image name may still be a volume's.
            Err(error) if missing(&error) || error.kind() == Kind::Invalid => {
                engine.inspect_volume(name)
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

fn of_container(engine: &Engine, name: &str, size: bool) -> Result<Value> {
    let mut found = engine.inspect(name)?;
    if size && let Some(fields) = found.as_object_mut() {
        let (changed, whole) = engine.sizes(&engine.container(name)?.config)?;
        fields.insert("SizeRw".to_owned(), changed.into());
        fields.insert("SizeRootFs".to_owned(), whole.into());
    }
    Ok(found)
}

/// `cowl image inspect`.
pub(in crate::cli) fn image(engine: &Engine, args: &InspectImage, out: &mut Stdout) -> Result<u8> {
    print(&args.inspect, out, |name| {
        engine.check_platforms(name, args.platform.as_deref().and_then(given))?;
        engine.inspect_image(name)
    })
}

/// Prints the objects as a JSON list, or formatted, one per line.
pub(in crate::cli) fn print(
    args: &Inspect,
    out: &mut Stdout,
    find: impl Fn(&str) -> Result<Value>,
) -> Result<u8> {
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
        let value = find(name)?;
        match &template {
            Some(template) => {
                out.line(&template.render(&value)?)?;
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
