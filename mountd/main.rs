//! The `cowl-mountd` command.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use cowl_mountd::{counters, dropin, keeper, process};
use cowl_sys::opcode;

/// Serves cowl's mounts: container images with a writable layer on top.
///
/// `cowl mount` and `cowl run` start this program. With `-o` it takes fuse-overlayfs's command line
/// and mounts plain directories: `cowl-mountd -o lowerdir=A:B,upperdir=U,workdir=W DIR`
/// (`cowl-mountd -o x -h` lists the options).
#[derive(Debug, Parser)]
#[command(name = "cowl-mountd", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a mount and hold it (started by cowl, with a socket as descriptor 0)
    Keeper,
    /// Print how many requests a mount has answered, by kind
    ///
    /// One line a kind of request that came at least once: its name in the FUSE protocol and the
    /// number. Needs the right to look into the daemon: its user's, or root's.
    Requests {
        /// The mount point
        mount: PathBuf,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<_> = std::env::args_os().collect();
    if dropin::is_drop_in_command_line(&arguments) {
        return Ok(dropin::run(arguments));
    }
    let parsed = Arguments::try_parse_from(arguments).map_err(|told| {
        let checked = if told.use_stderr() {
            Ok(())
        } else {
            cowl_sys::stdio::check_output()
        };
        checked.context("standard output").map(|()| told)
    });
    let command = match parsed {
        Ok(arguments) => arguments.command,
        Err(told) => told?.exit(),
    };
    match command {
        Command::Keeper => Ok(keeper::run(begin()?)),
        Command::Requests { mount } => print_requests(&mount).map(|()| ExitCode::SUCCESS),
    }
}

fn begin() -> anyhow::Result<std::os::fd::OwnedFd> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    process::begin().context("starting up")
}

fn print_requests(mount: &Path) -> anyhow::Result<()> {
    let shown = mount.display();
    let counts = counters::read(mount)
        .with_context(|| format!("{shown}"))?
        .with_context(|| {
            format!("{shown}: no daemon of cowl that this user may look into serves it")
        })?;
    cowl_sys::stdio::check_output().context("standard output")?;
    let mut out = std::io::stdout().lock();
    for (code, count) in counts {
        match opcode::name(code) {
            Some(name) => writeln!(out, "{name} {count}")?,
            None => writeln!(out, "{code} {count}")?,
        }
    }
    Ok(())
}
