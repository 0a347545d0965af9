//! `cowl cp`.

use super::args::Cp;
use crate::cli::units::human_size;
use crate::cli::{Stdout, print_note};
use crate::engine::Engine;
use crate::engine::archive::copy::CopyOptions;
use crate::engine::error::{Error, Result};
use std::io::IsTerminal as _;
use std::path::Path;

/// Standard input or output.
const STREAM: &str = "-";

pub(in crate::cli) fn cp(engine: &Engine, args: &Cp, out: &mut Stdout) -> Result<u8> {
    for (path, what) in [(&args.source, "source"), (&args.destination, "destination")] {
        if path.is_empty() {
            return Err(Error::invalid(format!("{what} can not be empty")));
        }
    }
    let how = CopyOptions {
        keep_owners: args.archive,
        follow_link: args.follow_link,
    };
    let (length, to) = match (place(&args.source), place(&args.destination)) {
        ((Some(container), path), (None, STREAM)) => {
            return match engine.copy_out_tar(container, path, &mut *out, how) {
                Err(_) if out.is_closed() => Ok(0),
                copied => copied.map(|()| 0),
            };
        }
        ((None, STREAM), (Some(container), path)) => {
            engine.copy_in_tar(std::io::stdin(), container, path, how)?;
            return Ok(0);
        }
        ((Some(container), path), (None, to)) => {
            let length = engine.copy_out(container, path, to, how)?;
            let to = std::path::absolute(to).unwrap_or_else(|_error| to.into());
            (length, to.display().to_string())
        }
        ((None, from), (Some(container), path)) => {
            let length = engine.copy_in(from, container, path, how)?;
            (length, args.destination.clone())
        }
        ((Some(_), _), (Some(_), _)) => {
            return Err(Error::invalid(
                "copying between containers is not supported",
            ));
        }
        ((None, _), (None, _)) => {
            return Err(Error::invalid("must specify at least one container source"));
        }
    };
    if !args.quiet && std::io::stdout().is_terminal() {
        print_note(&format!(
            "Successfully copied {} to {to}",
            human_size(length)
        ));
    }
    Ok(0)
}

/// `CONTAINER:PATH`, or a path of the host (docker/cli, `splitCpArg`).
fn place(text: &str) -> (Option<&str>, &str) {
    match text.split_once(':') {
        Some((container, path))
            if !Path::new(text).is_absolute() && !container.starts_with('.') =>
        {
            (Some(container), path)
        }
        _ => (None, text),
    }
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn place_is_a_containers_if_it_has_a_colon() {
        for (text, container, path) in [
            ("web:/a", Some("web"), "/a"),
            ("web:a:b", Some("web"), "a:b"),
            ("/web:a", None, "/web:a"),
            ("./web:a", None, "./web:a"),
            ("web", None, "web"),
            ("-", None, "-"),
        ] {
            assert_eq!(place(text), (container, path), "{text}");
        }
    }
}
