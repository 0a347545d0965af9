//! `cowl-bench` (or `cowl bench`): times workloads on cowl, kernel overlayfs, each fuse-overlayfs
//! and a plain directory, side by side; `cowl-bench ops`: counts what operations cost the processes
//! that serve a mount; `cowl-bench start`: times starts of containers.
//!
//! The command starts itself again in mount and pid namespaces of its own ([`place`]). Invariant:
//! all that it writes is in one temporary directory, and no mount or process outlives it.

mod bare;
mod base;
mod calls;
mod command;
mod operations;
mod ops;
mod options;
mod output;
mod place;
mod rounds;
mod rows;
mod servers;
mod starts;
mod statistics;
mod strace;
mod sys;
mod systems;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use options::{Arguments, Subcommand};
use output::print_error;

/// Exit code of a usage error, as in `cowl`.
const USAGE: u8 = 125;
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => {
            let text = error.to_string();
            let lines = text.lines().map(str::trim);
            let lines: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
            let what = lines.join(" ");
            let what = what.trim_start_matches("error: ");
            return print_error(&format!("{what}; see 'cowl bench --help'"), USAGE);
        }
        Err(help) => return ended(print(&help.render().ansi().to_string())),
    };
    match &arguments.common.place {
        None => match place::run() {
            Ok(code) => code,
            Err(error) => print_error(&format!("{error:#}"), FAILURE),
        },
        Some(place) => ended(place::enter().and_then(|()| match &arguments.command {
            None => rounds::run(&arguments, place),
            Some(Subcommand::Ops(wanted)) => ops::run(&arguments.common, wanted, place),
            Some(Subcommand::Start(wanted)) => starts::run(&arguments.common, wanted, place),
        })),
    }
}

fn ended(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => print_error(&format!("{error:#}"), FAILURE),
    }
}

/// Prints on standard output. A closed pipe is not an error.
fn print(text: &str) -> Result<()> {
    cowl_sys::stdio::check_output().context("standard output")?;
    match anstream::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output"),
    }
}
