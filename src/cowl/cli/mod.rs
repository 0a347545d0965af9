//! The `cowl` command: reads the command line, calls the engine, prints as Docker's command line does. It keeps no state and decides nothing.
//!
//! Errors are one line on standard error. Exit codes are Docker's: 125 for a wrong command line and for every error of `run` that is not the program's own
//! (126 not executable, 127 not found), 1 for errors of the other commands, else 0 or what the container's program ended with.

mod args;
mod container;
mod external;
mod image;
mod mount;
mod table;
mod units;
mod usage;
mod volume;

use crate::engine::error::{Error, Kind, Result};
use crate::engine::{Engine, host};
use args::{Cli, Command};
use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches};
use std::ffi::OsString;
use std::io::{self, BufWriter, StdoutLock, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use table::Out;

/// Standard output of a command.
type Stdout = Out<BufWriter<StdoutLock<'static>>>;

/// Names the store where --root does not; programs that `cowl NAME` runs are told by it.
const ROOT: &str = "COWL_ROOT";
/// What the system says of a full disk.
const FULL: &str = "No space left on device";
/// What the system says of another user's directory.
const FORBIDDEN: &str = "Permission denied";
/// What is written elsewhere than in the store.
const OUTPUT: [&str; 2] = [
    "writing to standard output",
    "writing the container's output",
];
const USAGE: u8 = 125;
const FAILURE: u8 = 1;

/// Runs one command line.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match parse(&arguments) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    // `run` keeps 1 and the like for the container's program; a command that doesn't exist is a wrong command line.
    let failure = if matches!(cli.command, Command::Run(_) | Command::External(_)) {
        USAGE
    } else {
        FAILURE
    };
    let mut out = Out::new(BufWriter::new(io::stdout().lock()));
    let done = dispatch(cli, &mut out).and_then(|code| {
        out.flush()
            .map_err(|error| Error::from(error).context("writing to standard output"))?;
        Ok(code)
    });
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            complain(&error);
            ExitCode::from(exit_code(error.kind(), failure))
        }
    }
}

fn exit_code(kind: Kind, otherwise: u8) -> u8 {
    match kind {
        Kind::CommandNotFound => 127,
        Kind::CommandNotExecutable => 126,
        Kind::NotFound | Kind::Conflict | Kind::Invalid | Kind::Failed => otherwise,
    }
}

fn parse(arguments: &[OsString]) -> Result<Cli, ExitCode> {
    let error = match Cli::command()
        .try_get_matches_from(arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches))
    {
        Ok(cli) => return Ok(cli),
        Err(error) => error,
    };
    let code = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => USAGE,
        _ => {
            complain(&usage::one_line(&error, arguments, &understood(arguments)));
            return Err(ExitCode::from(USAGE));
        }
    };
    // clap's own text; a reader that went away doesn't want it.
    Err(match error.print() {
        Ok(()) => ExitCode::from(code),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(code),
        Err(error) => {
            complain(&format!(
                "writing to standard output: {}",
                Error::from(error)
            ));
            ExitCode::from(FAILURE)
        }
    })
}

/// `cowl` and the commands that the arguments name, as far as there are such.
fn understood(arguments: &[OsString]) -> String {
    let ours = Cli::command();
    let (mut at, mut words) = (&ours, vec!["cowl"]);
    for word in arguments.iter().skip(1).filter_map(|word| word.to_str()) {
        if let Some(command) = at.find_subcommand(word) {
            at = command;
            words.push(command.get_name());
        }
    }
    words.join(" ")
}

fn dispatch(cli: Cli, out: &mut Stdout) -> Result<u8> {
    let root = cli.root.or_else(variable);
    match cli.command {
        Command::Load(args) => image::load(&open(root)?, &args, out),
        Command::Import(args) => image::import(&open(root)?, &args, out),
        Command::Images(args) => image::images(&open(root)?, &args, out),
        Command::History(args) => image::history(&open(root)?, &args, out),
        Command::Rmi(args) => Ok(image::rmi(&open(root)?, &args, out)),
        Command::Info => image::info(&open(root)?, out),
        Command::Check(args) => image::check(&open(root)?, &args, out),
        Command::Mount(args) => mount::mount(&open(root)?, &args),
        Command::Umount(args) => mount::umount(&open(root)?, &args),
        Command::Run(args) => container::run(&open(root)?, *args),
        Command::Ps(args) => container::ps(&open(root)?, &args, out),
        Command::Rm(args) => container::rm(&open(root)?, &args, out),
        Command::Volume(command) => volume::volume(&open(root)?, command, out),
        Command::Version => version(out),
        Command::External(words) => external::run(&words, root),
    }
}

/// The store that the environment names; an empty variable is none.
fn variable() -> Option<PathBuf> {
    std::env::var_os(ROOT)
        .filter(|root| !root.is_empty())
        .map(PathBuf::from)
}

fn open(root: Option<PathBuf>) -> Result<Engine> {
    let root = root.map_or_else(host::default_root, Ok)?;
    Engine::open(&root).map_err(|error| error.context(format!("store {}", root.display())))
}

fn version(out: &mut Stdout) -> Result<u8> {
    out.line(&format!("cowl {}", env!("CARGO_PKG_VERSION")))?;
    Ok(0)
}

/// One line on standard error, in one piece, so that those of several commands don't mix. If nobody can read it there is nobody to tell.
fn complain(what: &impl std::fmt::Display) {
    let mut line = table::printable(&format!("cowl: {what}"));
    if line.ends_with(FULL) && !OUTPUT.iter().any(|output| line.contains(output)) {
        line.push_str(
            "; free some space (cowl rmi, cowl rm, cowl volume rm), or use another --root",
        );
    }
    if line.starts_with("cowl: store ") && line.ends_with(FORBIDDEN) {
        line.push_str("; be who owns it, or name a store of your own with --root DIR");
    }
    line.push('\n');
    if io::stderr().write_all(line.as_bytes()).is_err() {
        // The exit code still says it.
    }
}

/// Does something for each of several names. Complains about those that failed and goes on, as Docker does.
fn each(names: &[String], mut what: impl FnMut(&str) -> Result<()>) -> u8 {
    let mut code = 0;
    for name in names {
        if let Err(error) = what(name) {
            complain(&error);
            code = FAILURE;
        }
    }
    code
}
