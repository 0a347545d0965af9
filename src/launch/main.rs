//! The `cowl-runtime` command: `run` is the monitor of one container ([`cowl_launch::monitor`]),
//! started by the engine.

use std::io::Write as _;
use std::process::ExitCode;

use lexopt::prelude::{Long, Short, Value};

const USAGE: &str = "usage: cowl-runtime run | --version | --help

run        run one container, whose plan is read from the socket on standard input; `cowl run` calls it
";

enum Command {
    Run,
    Version,
    Help,
}

fn parse() -> Result<Command, lexopt::Error> {
    let mut arguments = lexopt::Parser::from_env();
    let command = match arguments.next()? {
        Some(Value(word)) if word == "run" => Command::Run,
        Some(Long("version") | Short('V')) => Command::Version,
        Some(Long("help") | Short('h')) => Command::Help,
        Some(other) => return Err(other.unexpected()),
        None => return Err("no command".into()),
    };
    match arguments.next()? {
        Some(more) => Err(more.unexpected()),
        None => Ok(command),
    }
}

fn main() -> ExitCode {
    let text = match parse() {
        Ok(Command::Run) => return cowl_launch::monitor::run().into(),
        Ok(Command::Version) => concat!("cowl-runtime ", env!("CARGO_PKG_VERSION"), "\n"),
        Ok(Command::Help) => USAGE,
        Err(error) => {
            // If standard error is closed, the exit code has to do.
            drop(write!(std::io::stderr(), "cowl-runtime: {error}\n{USAGE}"));
            return ExitCode::from(125);
        }
    };
    let written = cowl_sys::stdio::check_output();
    match written.and_then(|()| std::io::stdout().write_all(text.as_bytes())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(125),
    }
}
