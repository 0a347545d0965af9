//! `cowl start`, `stop`, `kill`, `restart`, `pause`, `unpause`, `wait`, `logs`, `exec`, `attach`.

use super::args::{Attach, Exec, Kill, Logs, Names, Start, Stop, Top};
use super::session::{self, SessionOptions};
use crate::cli::{Stdout, each};
use crate::engine::error::{Error, Result};
use crate::engine::exec::ExecRequest;
use crate::engine::life::StopOptions;
use crate::engine::logs::LogRequest;
use crate::engine::run::Presence;
use crate::engine::signals::Signals;
use crate::engine::{Engine, attach, duration};
use cowl_sys::stdio::Output;
use jiff::Timestamp;
use std::io::Write as _;

pub(in crate::cli) fn start(engine: &mut Engine, args: &Start, out: &mut Stdout) -> Result<u8> {
    if !args.attach && !args.interactive {
        return each(&args.containers, out, |name, out| {
            engine.start(name, &[])?;
            Ok(out.line(name)?)
        });
    }
    match args.containers.as_slice() {
        [name] => {
            let keys = args.detach_keys.clone().unwrap_or_default();
            let presence = Presence {
                keys,
                sig_proxy: true,
            };
            engine.start_foreground(name, args.interactive, presence)
        }
        _ => Err(Error::invalid(
            "you cannot start and attach multiple containers at once",
        )),
    }
}

pub(in crate::cli) fn stop(engine: &Engine, args: &Stop, out: &mut Stdout) -> Result<u8> {
    each(&args.containers, out, |name, out| {
        engine.stop(name, options(args))?;
        Ok(out.line(name)?)
    })
}

pub(in crate::cli) fn restart(engine: &Engine, args: &Stop, out: &mut Stdout) -> Result<u8> {
    each(&args.containers, out, |name, out| {
        engine.restart(name, options(args))?;
        Ok(out.line(name)?)
    })
}

fn options(args: &Stop) -> StopOptions<'_> {
    StopOptions {
        signal: args.signal.as_deref(),
        timeout: args.timeout,
    }
}

pub(in crate::cli) fn kill(engine: &Engine, args: &Kill, out: &mut Stdout) -> Result<u8> {
    each(&args.containers, out, |name, out| {
        engine.kill(name, &args.signal)?;
        Ok(out.line(name)?)
    })
}

pub(in crate::cli) fn pause(engine: &Engine, args: &Names, out: &mut Stdout) -> Result<u8> {
    each(&args.containers, out, |name, out| {
        engine.pause(name)?;
        Ok(out.line(name)?)
    })
}

pub(in crate::cli) fn unpause(engine: &Engine, args: &Names, out: &mut Stdout) -> Result<u8> {
    each(&args.containers, out, |name, out| {
        engine.unpause(name)?;
        Ok(out.line(name)?)
    })
}

pub(in crate::cli) fn wait(engine: &Engine, args: &Names, out: &mut Stdout) -> Result<u8> {
    each(&args.containers, out, |name, out| {
        let code = engine.wait(name)?;
        Ok(out.line(&code.to_string())?)
    })
}

pub(in crate::cli) fn top(engine: &Engine, args: &Top, out: &mut Stdout) -> Result<u8> {
    let processes = engine.top(&args.container, &args.options)?;
    let rows = std::iter::once(processes.titles).chain(processes.rows);
    let rows: Vec<_> = rows.collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        for (column, field) in row.iter().enumerate() {
            let width = field.chars().count();
            match widths.get_mut(column) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    for row in rows {
        // As Go's tabwriter in `docker top`: cells of at least 20 columns, with a padding of 3.
        let padded = row.iter().zip(&widths).map(|(field, widest)| {
            let width = (widest + 3).max(20);
            format!("{field:width$}")
        });
        out.line(padded.collect::<String>().trim_end())?;
    }
    Ok(0)
}

pub(in crate::cli) fn logs(engine: &Engine, args: &Logs) -> Result<u8> {
    let now = Timestamp::now();
    let time = |option: &str, text: &Option<String>| {
        let given = text.as_deref().filter(|text| !text.is_empty());
        let moment = given.map(|text| duration::moment(text, now)).transpose();
        moment.map_err(|_why| {
            Error::invalid(format!(
                "invalid value for \"{option}\": failed to parse value as time or duration: \"{}\"",
                given.unwrap_or_default()
            ))
        })
    };
    let request = LogRequest {
        follow: args.follow,
        // As in dockerd, what is not a number means all.
        tail: args.tail.parse().ok(),
        since: time("since", &args.since)?,
        until: time("until", &args.until)?,
    };
    let (mut stdout, mut stderr) = (Output, std::io::stderr().lock());
    engine.logs(&args.container, request, |entry| {
        // The json-file log has no attributes here.
        let details = if args.details { " " } else { "" };
        let text = if args.timestamps {
            format!("{:.9} {details}{}", entry.time, entry.log)
        } else {
            format!("{details}{}", entry.log)
        };
        let written = if entry.stream == "stderr" {
            let written = stderr.write_all(text.as_bytes());
            written.and_then(|()| stderr.flush())
        } else {
            let written = stdout.write_all(text.as_bytes());
            written.and_then(|()| stdout.flush())
        };
        match written {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(Error::from(error).context("writing to standard output")),
        }
    })?;
    Ok(0)
}

pub(in crate::cli) fn exec(engine: &Engine, args: Exec) -> Result<u8> {
    let mut words = args.container_and_command.into_iter();
    let container = words.next().unwrap_or_default();
    let interactive = args.interactive && !args.detach;
    let request = ExecRequest {
        argv: words.collect(),
        env: super::request::environment(&args.env_file, &args.env)?,
        working_dir: args.workdir,
        user: args.user,
        terminal: args.tty.then(|| session::window_size().unwrap_or_default()),
        privileged: args.privileged,
        open_stdin: interactive,
    };
    let id = engine.new_exec_id(&container)?;
    if super::lacks_terminal(args.tty, interactive) {
        return Err(Error::invalid(super::NO_TERMINAL));
    }
    if args.detach {
        engine.exec(&container, &id, &request, attach::NONE)?;
        return Ok(0);
    }
    let signals = Signals::block()?;
    let (ends, pipes) = attach::pipes(attach::all(interactive, args.tty))?;
    let program = engine.exec(&container, &id, &request, ends.streams())?;
    drop(ends);
    let options = SessionOptions {
        tty: args.tty,
        interactive,
        sig_proxy: false,
        detach_keys: args.detach_keys.unwrap_or_default(),
    };
    session::run(&program, pipes, &signals, options)
}

pub(in crate::cli) fn attach(engine: &Engine, args: &Attach) -> Result<u8> {
    let config = engine.attachable(&args.container)?;
    let interactive = config.open_stdin && !args.no_stdin;
    if super::lacks_terminal(config.tty, !args.no_stdin) {
        return Err(Error::invalid(super::NO_TERMINAL));
    }
    let signals = Signals::block()?;
    let (ends, pipes) = attach::pipes(attach::all(interactive, config.tty))?;
    let program = engine.attach(&args.container, ends.streams())?;
    drop(ends);
    let options = SessionOptions {
        tty: config.tty,
        interactive,
        sig_proxy: args.sig_proxy,
        detach_keys: args.detach_keys.clone().unwrap_or_default(),
    };
    session::run(&program, pipes, &signals, options)
}
