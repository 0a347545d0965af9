//! The commands of containers, with Docker's words.

pub(super) mod args;
pub(super) mod cp;
pub(super) mod inspect;
pub(super) mod life;
pub(super) mod list;
mod mount_option;
mod options;
pub(super) mod port;
mod request;
mod session;
pub(super) mod stats;

use super::{Stdout, each, print_error};
use crate::engine::Engine;
use crate::engine::create::Created;
use crate::engine::error::{Context, Error, Kind, Result};
use crate::engine::run::Presence;
use crate::engine::update::UpdateRequest;
use args::{Create, Options, Rename, Rm, Run, Update};
use std::io::{IsTerminal, Write};

pub(super) fn run(engine: &mut Engine, args: Run, out: &mut Stdout) -> Result<u8> {
    let detach = args.detach;
    let presence = Presence {
        keys: args.detach_keys.unwrap_or_default(),
        sig_proxy: args.sig_proxy,
    };
    let options = args.create;
    if options.tty && options.interactive && !detach && !std::io::stdin().is_terminal() {
        return Err(Error::invalid(
            "the input device is not a TTY; omit -t or run cowl in a terminal",
        ));
    }
    if detach && !options.attach.is_empty() {
        return Err(Error::invalid(
            "conflicting options: cannot specify both --attach and --detach",
        ));
    }
    let cidfile = new_cidfile(&options)?;
    let request = request::request(options, detach)?;
    if detach {
        let created = engine.create(&request)?;
        warn_of(&created);
        write_cidfile(cidfile, &created.id)?;
        engine.start(&created.id, &[])?;
        out.line(&created.id)?;
        return Ok(0);
    }
    let shows = request.config.attach_stdout || request.config.attach_stderr;
    engine.run(&request, presence, |created| {
        warn_of(created);
        write_cidfile(cidfile, &created.id)?;
        if !shows {
            out.line(&created.id)?;
        }
        Ok(())
    })
}

pub(super) fn create(engine: &Engine, args: Create, out: &mut Stdout) -> Result<u8> {
    let cidfile = new_cidfile(&args.create)?;
    let created = engine.create(&request::request(args.create, false)?)?;
    warn_of(&created);
    write_cidfile(cidfile, &created.id)?;
    out.line(&created.id)?;
    Ok(0)
}

fn warn_of(created: &Created) {
    for warning in &created.warnings {
        print_error(&format!("WARNING: {warning}"));
    }
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

pub(super) fn update(engine: &Engine, args: Update, out: &mut Stdout) -> Result<u8> {
    let request = UpdateRequest {
        resources: args.limits.into_resources()?,
        restart_policy: request::restart_policy(args.restart.as_deref(), false)?,
    };
    if request == UpdateRequest::default() {
        return Err(Error::invalid(
            "you must provide one or more flags when using this command",
        ));
    }
    Ok(each(&args.containers, |name| {
        for warning in engine.update(name, &request)? {
            print_error(&format!("WARNING: {warning}"));
        }
        Ok(out.line(name)?)
    }))
}

pub(super) fn rename(engine: &Engine, args: &Rename) -> Result<u8> {
    engine.rename(&args.container, &args.name)?;
    Ok(0)
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
