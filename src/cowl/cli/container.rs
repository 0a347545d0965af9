//! `cowl run`, `ps`, `rm`.

use super::args::{Ps, Rm, Run, SecurityOpt};
use super::image::warn;
use super::table::{Table, ellipsis, quoted};
use super::units::human_duration;
use super::{Stdout, each, print_error};
use crate::engine::container::config::Config;
use crate::engine::container::state::Status;
use crate::engine::error::{Context, Error, Kind, Result};
use crate::engine::process::{EnvChange, Overrides};
use crate::engine::{Engine, run, short};
use crate::volume::VolumeSpec;
use jiff::Timestamp;
use std::io::IsTerminal;

pub(super) fn run(engine: &mut Engine, args: Run) -> Result<u8> {
    if args.tty && args.interactive && !std::io::stdin().is_terminal() {
        return Err(Error::invalid(
            "the input device is not a TTY; omit -t or run cowl in a terminal",
        ));
    }
    engine.run(&request(args)?)
}

fn request(args: Run) -> Result<run::Request> {
    let cwd = std::env::current_dir().context(|| "the current directory")?;
    let from_caller = |name: &str| std::env::var(name).ok();
    let env = args
        .env
        .iter()
        .map(|text| EnvChange::parse(text, from_caller))
        .collect::<Result<_, _>>()
        .map_err(Error::invalid)?;
    let volumes = args
        .volume
        .iter()
        .map(|text| VolumeSpec::parse(text, &cwd))
        .collect::<Result<_, _>>()
        .map_err(Error::invalid)?;
    let mut words = args.image_and_command.into_iter();
    let image = words.next().unwrap_or_default();
    let overrides = Overrides {
        entrypoint: args.entrypoint,
        command: words.collect(),
        env,
        working_dir: args.workdir,
        user: args.user,
        tty: args.tty,
    };
    let seccomp_unconfined = args.security_opt.contains(&SecurityOpt::SeccompUnconfined);
    Ok(run::Request {
        image,
        overrides,
        name: args.name,
        volumes,
        // 0 is Docker's "no limit".
        memory: args.memory.filter(|bytes| *bytes != 0),
        seccomp_unconfined,
        auto_remove: args.rm,
        tty: args.tty,
        open_stdin: args.interactive,
    })
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
        if !args.all && status != Status::Running {
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
        let command = config.process.shown();
        let command = if args.no_trunc {
            quoted(&command)
        } else {
            quoted(&ellipsis(&command, 20))
        };
        let created = format!("{} ago", age(config.created, now));
        table.row([
            id.to_owned(),
            config.image.clone(),
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
        Status::Created | Status::Abandoned => "Created".to_owned(),
        // A container starts as soon as it is created.
        Status::Running => format!("Up {}", age(config.created, now)),
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
