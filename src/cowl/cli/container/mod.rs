//! The commands of containers, with Docker's words.

pub(super) mod args;
mod mount_option;
mod request;

use super::image::warn;
use super::table::{Table, ellipsis, quoted};
use super::units::human_duration;
use super::{Stdout, each, print_error};
use crate::engine::container::config::Config;
use crate::engine::container::state::Status;
use crate::engine::error::{Context, Error, Kind, Result};
use crate::engine::{Engine, process, short};
use args::{Create, Options, Ps, Rename, Rm, Run};
use jiff::Timestamp;
use std::io::{IsTerminal, Write};

pub(super) fn run(engine: &mut Engine, args: Run) -> Result<u8> {
    let options = args.create;
    if options.tty && options.interactive && !std::io::stdin().is_terminal() {
        return Err(Error::invalid(
            "the input device is not a TTY; omit -t or run cowl in a terminal",
        ));
    }
    let cidfile = new_cidfile(&options)?;
    let request = request::request(options, false)?;
    engine.run(&request, |created| write_cidfile(cidfile, &created.id))
}

pub(super) fn create(engine: &Engine, args: Create, out: &mut Stdout) -> Result<u8> {
    let cidfile = new_cidfile(&args.create)?;
    let created = engine.create(&request::request(args.create, false)?)?;
    for warning in &created.warnings {
        print_error(&format!("WARNING: {warning}"));
    }
    write_cidfile(cidfile, &created.id)?;
    out.line(&created.id)?;
    Ok(0)
}

/// A file that does not exist yet, so that two containers never share one.
fn new_cidfile(options: &Options) -> Result<Option<std::fs::File>> {
    let Some(path) = &options.cidfile else {
        return Ok(None);
    };
    match std::fs::File::create_new(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(Error::invalid(format!(
                "container ID file found, make sure the other container isn't running or delete {}",
                path.display()
            )))
        }
        Err(error) => Err(error)
            .context(|| format!("failed to create the container ID file {}", path.display())),
    }
}

fn write_cidfile(file: Option<std::fs::File>, id: &str) -> Result<()> {
    match file {
        Some(mut file) => file
            .write_all(id.as_bytes())
            .context(|| "writing the container ID file"),
        None => Ok(()),
    }
}

pub(super) fn rename(engine: &Engine, args: &Rename) -> Result<u8> {
    engine.rename(&args.container, &args.name)?;
    Ok(0)
}

pub(super) fn ps(engine: &Engine, args: &Ps, out: &mut Stdout) -> Result<u8> {
    if let Err(error) = engine.sweep() {
        // List the containers even if leftovers can't be removed now.
        print_error(&format!("warning: {error}"));
    }
    let mut table = Table::new([
        "CONTAINER ID",
        "IMAGE",
        "COMMAND",
        "CREATED",
        "STATUS",
        "PORTS",
        "NAMES",
    ]);
    let now = Timestamp::now();
    let containers = engine.containers()?;
    warn(&containers.skipped);
    for (container, status) in containers.items {
        if !args.all && !matches!(status, Status::Running | Status::Paused) {
            continue;
        }
        let config = &container.config;
        let id = if args.no_trunc {
            config.id.as_str()
        } else {
            short(&config.id)
        };
        if args.quiet {
            out.line(id)?;
            continue;
        }
        let command = process::shown(&process::argv(&config.config));
        let command = if args.no_trunc {
            quoted(&command)
        } else {
            quoted(&ellipsis(&command, 20))
        };
        let created = format!("{} ago", age(config.created, now));
        table.row([
            id.to_owned(),
            config.config.image.clone(),
            command,
            created,
            shown(config, &status, now),
            String::new(),
            config.name.clone(),
        ]);
    }
    if !args.quiet {
        table.lines().iter().try_for_each(|line| out.line(line))?;
    }
    Ok(0)
}

/// Docker's words for a status.
fn shown(config: &Config, status: &Status, now: Timestamp) -> String {
    match status {
        Status::Created(_) | Status::Starting => "Created".to_owned(),
        Status::Running => format!("Up {}", age(config.created, now)),
        Status::Paused => format!("Up {} (Paused)", age(config.created, now)),
        Status::Exited(exit) => match exit.finished_at {
            Some(at) => format!("Exited ({}) {} ago", exit.exit_code, age(at, now)),
            None => format!("Exited ({})", exit.exit_code),
        },
    }
}

fn age(then: Timestamp, now: Timestamp) -> String {
    human_duration(u64::try_from(now.duration_since(then).as_secs()).unwrap_or_default())
}

pub(super) fn rm(engine: &Engine, args: &Rm, out: &mut Stdout) -> Result<u8> {
    engine.sweep()?;
    Ok(each(&args.containers, |name| {
        match engine.remove(name, args.force, args.volumes) {
            Ok(()) => Ok(out.line(name)?),
            // As Docker: with -f a missing container is reported, and no failure.
            Err(error) if args.force && error.kind() == Kind::NotFound => {
                print_error(&error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }))
}
