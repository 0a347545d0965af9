//! `cowl NAME` for an external command: runs the program `cowl-NAME`, as git does, on the same
//! store.

use super::args::Cli;
use super::usage;
use crate::engine::error::{Context, Error, Result};
use crate::engine::{helpers, host};
use clap::CommandFactory;
use cowl_sys::stack::on_own_stack;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// Commands that are options of `cowl-dedup`.
const DEDUP_COMMANDS: [(&str, &str); 3] = [
    ("layers", "--only-layers"),
    ("diff", "--diff"),
    ("tree", "--tree"),
];

/// Executes `cowl-NAME`; returns only on failure.
pub(super) fn run(words: &[OsString], root: Option<PathBuf>) -> Result<u8> {
    let Some((name, arguments)) = words.split_first() else {
        return Err(Error::invalid("missing command; see 'cowl --help'"));
    };
    let Some(name) = name.to_str().filter(|name| is_plain(name)) else {
        let name = name.to_string_lossy();
        return Err(on_own_stack(|| unknown(&name)).context(|| "starting a thread")?);
    };
    let (program, option) = program_of(name);
    let Some(program) = helpers::lookup(&program) else {
        return Err(on_own_stack(|| unknown(name)).context(|| "starting a thread")?);
    };
    let root = root.map_or_else(host::default_root, Ok)?;
    let failed = Command::new(&program)
        .args(option)
        .args(arguments)
        .env(super::ROOT, root)
        .exec();
    Err(failed).context(|| format!("running {}", program.display()))
}

/// Whether the program `cowl-NAME` exists.
pub(super) fn exists(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        is_plain(name)
            && !INTERNAL.contains(&name)
            && helpers::lookup(&program_of(name).0).is_some()
    })
}

/// The program of a command, and the option that selects the command.
fn program_of(name: &str) -> (String, Option<&'static str>) {
    match DEDUP_COMMANDS.iter().find(|(command, _)| *command == name) {
        Some((_, option)) => ("cowl-dedup".to_owned(), Some(*option)),
        None => (format!("cowl-{name}"), None),
    }
}

/// Whether a name cannot be a path.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// Programs of cowl that are not commands.
const INTERNAL: [&str; 2] = ["mountd", "runtime"];

/// Docker's commands that cowl does not have, and what to use instead.
const ABSENT: [(&str, &str); 5] = [
    ("pull", "use 'cowl load' or 'cowl import'"),
    ("push", "use 'cowl save'"),
    ("build", "create images with 'cowl commit' or 'cowl import'"),
    (
        "buildx",
        "create images with 'cowl commit' or 'cowl import'",
    ),
    (
        "network",
        "'cowl run --network' takes none, host and container:NAME",
    ),
];

fn unknown(name: &str) -> Error {
    if let Some((_, instead)) = ABSENT.iter().find(|(absent, _)| *absent == name) {
        return Error::invalid(format!("cowl has no command '{name}' yet: {instead}"));
    }
    let cli = <Cli>::command();
    let programs = helpers::with_prefix("cowl-");
    let own = cli
        .get_subcommands()
        .flat_map(|command| std::iter::once(command.get_name()).chain(command.get_all_aliases()));
    let others = programs
        .iter()
        .map(String::as_str)
        .filter(|name| !INTERNAL.contains(name));
    let hint = usage::similar(name, own.chain(others))
        .map(|command| format!("; did you mean 'cowl {command}'?"))
        .unwrap_or_default();
    Error::invalid(format!(
        "'{name}' is not a cowl command{hint}; see 'cowl --help'"
    ))
}
