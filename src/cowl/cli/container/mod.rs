//! The container commands, with Docker's texts.

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

use super::args::given;
use super::{FAILURE, Stdout, USAGE, each, print_error};
use crate::engine::Engine;
use crate::engine::create::Created;
use crate::engine::error::{Context, Error, Kind, Result};
use crate::engine::run::Presence;
use crate::engine::update::UpdateRequest;
use args::{Create, Rename, Rm, Run, Update};
use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::PathBuf;

/// Docker's error for `-t` with an input that is not a terminal.
const NO_TERMINAL: &str = "the input device is not a TTY; omit -t or run cowl in a terminal";

/// Whether a program with a terminal would read from a standard input that is not one.
fn lacks_terminal(tty: bool, attach_stdin: bool) -> bool {
    tty && attach_stdin && !std::io::stdin().is_terminal()
}

pub(super) fn run(engine: &mut Engine, args: Run, out: &mut Stdout) -> Result<u8> {
    let detach = args.detach;
    let presence = Presence {
        keys: args.detach_keys.unwrap_or_default(),
        sig_proxy: args.sig_proxy,
    };
    let options = args.create;
    let names_streams = !options.attach.is_empty();
    let cidfile = options.cidfile.clone();
    let request = request::request(options, detach)?;
    let config = &request.config;
    let refused = if detach {
        names_streams.then_some("conflicting options: cannot specify both --attach and --detach")
    } else {
        lacks_terminal(config.tty, config.attach_stdin).then_some(NO_TERMINAL)
    };
    // As in Docker, 125 is for wrong options and for what the engine refuses.
    if let Some(why) = refused {
        print_error(&why);
        return Ok(FAILURE);
    }
    let mut cidfile = CidFile::create(cidfile)?;
    if detach {
        let created = engine.create(&request)?;
        warn_of(&created);
        CidFile::write(&mut cidfile, &created.id)?;
        engine.start(&created.id, &[])?;
        out.line(&created.id)?;
        return Ok(0);
    }
    let shows = request.config.attach_stdout || request.config.attach_stderr;
    engine.run(&request, presence, |created| {
        warn_of(created);
        CidFile::write(&mut cidfile, &created.id)?;
        if !shows {
            out.line(&created.id)?;
        }
        Ok(())
    })
}

pub(super) fn create(engine: &Engine, args: Create, out: &mut Stdout) -> Result<u8> {
    let cidfile = args.create.cidfile.clone();
    let request = match request::request(args.create, false) {
        Ok(request) => request,
        // As in Docker, the exit codes of client-side errors and of the engine's differ.
        Err(error) => {
            print_error(&error);
            return Ok(USAGE);
        }
    };
    let mut cidfile = CidFile::create(cidfile)?;
    let created = engine.create(&request)?;
    warn_of(&created);
    CidFile::write(&mut cidfile, &created.id)?;
    out.line(&created.id)?;
    Ok(0)
}

fn warn_of(created: &Created) {
    for warning in &created.warnings {
        print_error(&format!("WARNING: {warning}"));
    }
}

/// The file of `--cidfile`. As in Docker, it is removed if no id was written.
struct CidFile {
    path: PathBuf,
    file: File,
    is_written: bool,
}

impl CidFile {
    /// Fails if it exists, so that two containers never share one.
    fn create(path: Option<PathBuf>) -> Result<Option<Self>> {
        let Some(path) = path.filter(|path| given(path).is_some()) else {
            return Ok(None);
        };
        match File::create_new(&path) {
            Ok(file) => Ok(Some(Self {
                path,
                file,
                is_written: false,
            })),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Error::invalid(format!(
                "container ID file found, make sure the other container isn't running or delete {}",
                path.display()
            ))),
            Err(error) => Err(error)
                .context(|| format!("failed to create the container ID file {}", path.display())),
        }
    }

    fn write(file: &mut Option<Self>, id: &str) -> Result<()> {
        let Some(own) = file else {
            return Ok(());
        };
        own.is_written = true;
        own.file
            .write_all(id.as_bytes())
            .context(|| "writing the container ID file")
    }
}

impl Drop for CidFile {
    fn drop(&mut self) {
        if !self.is_written
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            let path = self.path.display();
            print_error(&format!("failed to remove the CID file '{path}': {error}"));
        }
    }
}

pub(super) fn update(engine: &Engine, args: Update, out: &mut Stdout) -> Result<u8> {
    let request = UpdateRequest {
        resources: args.limits.into_resources()?,
        restart_policy: request::restart_policy(args.restart.as_deref(), false)?,
    };
    if request == UpdateRequest::default() && args.restart.is_none() {
        return Err(Error::invalid(
            "you must provide one or more flags when using this command",
        ));
    }
    each(&args.containers, out, |name, out| {
        for warning in engine.update(name, &request)? {
            print_error(&format!("WARNING: {warning}"));
        }
        Ok(out.line(name)?)
    })
}

pub(super) fn rename(engine: &Engine, args: &Rename) -> Result<u8> {
    engine.rename(&args.container, &args.name)?;
    Ok(0)
}

pub(super) fn rm(engine: &Engine, args: &Rm, out: &mut Stdout) -> Result<u8> {
    engine.sweep()?;
    each(&args.containers, out, |name, out| {
        match engine.remove(name, args.force, args.volumes) {
            Ok(()) => Ok(out.line(name)?),
            // As in Docker, with -f a missing container is reported but is not a failure.
            Err(error) if args.force && error.kind() == Kind::NotFound => {
                print_error(&error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    })
}
