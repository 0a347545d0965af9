//! `cowl inspect`: containers, else images, else volumes, in Docker's JSON.

use super::args::Inspect;
use crate::cli::template::Template;
use crate::cli::{Stdout, each};
use crate::engine::Engine;
use crate::engine::error::{Error, Kind, Result};
use serde::Serialize as _;
use serde_json::Value;

/// `cowl inspect`, of anything.
pub(in crate::cli) fn any(engine: &Engine, args: &Inspect, out: &mut Stdout) -> Result<u8> {
    print(args, out, |name| {
        let missing = |error: &Error| error.kind() == Kind::NotFound;
        let found = match engine.inspect(name) {
            Err(error) if missing(&error) => match engine.inspect_image(name) {
                // What cannot be the name of an image may be that of a volume.
                Err(error) if missing(&error) || error.kind() == Kind::Invalid => {
                    engine.inspect_volume(name)
                }
                found => found,
            },
            found => found,
        };
        match found {
            Err(error) if missing(&error) => {
                Err(Error::not_found(format!("No such object: {name}")))
            }
            found => found,
        }
    })
}

/// `cowl container inspect`.
pub(in crate::cli) fn container(engine: &Engine, args: &Inspect, out: &mut Stdout) -> Result<u8> {
    print(args, out, |name| engine.inspect(name))
}

/// `cowl image inspect`.
pub(in crate::cli) fn image(engine: &Engine, args: &Inspect, out: &mut Stdout) -> Result<u8> {
    print(args, out, |name| engine.inspect_image(name))
}

/// Prints a list of what is found, or a line for each.
pub(in crate::cli) fn print(
    args: &Inspect,
    out: &mut Stdout,
    find: impl Fn(&str) -> Result<Value>,
) -> Result<u8> {
    let template = match args.format.as_deref() {
        None | Some("json" | "") => None,
        Some(format) => Some(Template::parse(format)?),
    };
    let mut found = Vec::new();
    let code = each(&args.names, |name| {
        let value = find(name)?;
        match &template {
            Some(template) => out.line(&template.render(&value)?)?,
            None => found.push(value),
        }
        Ok(())
    });
    match args.format.as_deref() {
        None | Some("") => out.line(&pretty(&found)?)?,
        Some("json") => out.line(&serde_json::to_string(&found)?)?,
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
