//! `cowl diff`, `commit`, `export`, `unpack`.

use super::args::{Commit, Diff, Export, Unpack, given};
use super::image::new_name;
use super::table::printable;
use super::{Stdout, print_error};
use crate::engine::commit::{ChangeKind, Changed, CommitRequest};
use crate::engine::error::{Error, Kind, Result};
use crate::engine::{Engine, host};
use std::ffi::OsString;
use std::path::Path;

fn changed<'a>(container: &'a str, upper: Option<&'a Path>, work: Option<&'a Path>) -> Changed<'a> {
    match upper {
        None => Changed::Container(container),
        Some(upper) => Changed::Upper {
            image: container,
            upper,
            work,
        },
    }
}

/// The arguments for a comparison of two images.
pub(super) fn of_images(args: Diff) -> Vec<OsString> {
    let mut words = vec!["diff".into()];
    for (given, option) in [(args.json, "--json"), (args.bytes, "--bytes")] {
        if given {
            words.push(option.into());
        }
    }
    for condition in args.fail_if {
        words.extend(["--fail-if".into(), condition]);
    }
    words.push("--".into());
    words.extend([Some(args.container), args.other].into_iter().flatten());
    words
}

/// Whether the argument names a container, even a damaged one. Without a store there is none, and
/// none is created.
pub(super) fn is_container(root: Option<&Path>, args: &Diff) -> bool {
    let root = root.map_or_else(host::default_root, |root| Ok(root.to_owned()));
    let Ok(engine) = root.and_then(|root| Engine::open(&root)) else {
        return false;
    };
    match engine.container(&args.name()) {
        Ok(_) => true,
        Err(error) => error.kind() != Kind::NotFound,
    }
}

pub(super) fn diff(engine: &Engine, args: &Diff, out: &mut Stdout) -> Result<u8> {
    let of_images = [
        ("--json", args.json),
        ("--bytes", args.bytes),
        ("--fail-if", !args.fail_if.is_empty()),
    ];
    if let Some((option, _)) = of_images.iter().find(|(_, given)| *given) {
        let what = format!("missing <B>: {option} is of two images; see 'cowl diff --help'");
        return Err(Error::invalid(what));
    }
    let name = args.name();
    let changed = changed(&name, args.upper.as_deref(), args.work.as_deref());
    let found = engine.diff(changed).map_err(|error| {
        let is_file = args.upper.is_none() && rustix::fs::lstat(&args.container).is_ok();
        if is_file && error.kind() == Kind::NotFound {
            return Error::not_found(format!("{error}; an archive is read as ./{name}"));
        }
        error
    })?;
    for (kind, path) in found {
        let letter = match kind {
            ChangeKind::Added => 'A',
            ChangeKind::Changed => 'C',
            ChangeKind::Deleted => 'D',
        };
        let path = printable(&String::from_utf8_lossy(&path));
        out.line(&format!("{letter} /{path}"))?;
    }
    Ok(0)
}

pub(super) fn commit(engine: &Engine, args: &Commit, out: &mut Stdout) -> Result<u8> {
    let name = match args.name.as_deref().and_then(given) {
        Some(name) => Some(new_name("commit", name)?),
        None => None,
    };
    let id = engine.commit(&CommitRequest {
        changed: changed(&args.container, args.upper.as_deref(), args.work.as_deref()),
        name: name.as_ref(),
        author: &args.author,
        comment: &args.message,
        changes: &args.change,
        pause: args.pause,
        config: None,
    })?;
    out.line(&id.to_string())?;
    Ok(0)
}

pub(super) fn export(engine: &Engine, args: &Export) -> Result<u8> {
    engine.export(&args.source, args.output.as_deref().and_then(given))?;
    Ok(0)
}

pub(super) fn unpack(engine: &Engine, args: &Unpack) -> Result<u8> {
    let left = engine.unpack(&args.image, &args.dir)?;
    let notes = [
        (
            left.owners,
            "files belong to this user instead of their owner",
        ),
        (left.devices, "devices are missing"),
        (left.xattrs, "extended attributes are missing"),
    ];
    for (number, what) in notes.into_iter().filter(|(number, _)| *number > 0) {
        print_error(&format!("warning: not permitted: {number} {what}"));
    }
    Ok(0)
}
