//! The `cowl` command: parses the command line, calls the engine and prints as Docker's CLI does.
//! It keeps no state and decides nothing.
//!
//! Errors are one line on standard error. Exit codes are Docker's: 125 for a wrong option and if
//! `run` starts no container, 126 if the container's program cannot be executed, 127 if it is not
//! found, 1 for an unknown command, missing or surplus arguments and errors of the other commands,
//! else 0 or the exit code of the program.

mod args;
mod changes;
mod check;
mod clock;
mod container;
mod events;
mod external;
mod format;
mod gc;
mod image;
mod image_group;
mod mount;
mod progress;
mod prune;
mod refused;
mod serve;
mod system;
mod table;
mod template;
mod units;
mod usage;
mod volume;

use crate::engine::error::{Error, Kind, Result};
use crate::engine::info::VERSION;
use crate::engine::{Engine, host};
use args::{Cli, Command};
use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, FromArgMatches};
use cowl_sys::memory;
use cowl_sys::stack::on_large_stack;
use cowl_sys::stdio::{self, Output};
use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use table::Out;

/// Standard output of a command.
type Stdout = Out<BufWriter<Output>>;

/// Environment variable that names the store. `cowl NAME` sets it for the program it runs.
const ROOT: &str = "COWL_ROOT";
/// Text of ENOSPC.
const FULL: &str = "No space left on device";
/// Text of EACCES.
const FORBIDDEN: &str = "Permission denied";
/// Contexts of writes that do not go to the store.
const OUTPUT: [&str; 2] = [
    "writing to standard output",
    "writing the container's output",
];
const USAGE: u8 = 125;
const FAILURE: u8 = 1;

/// Runs one command line.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // An import promises how much memory it has at most.
    if let Err(errno) = memory::keep_little() {
        print_error(&Error::from(errno).context("setting up the allocator"));
        return ExitCode::from(FAILURE);
    }
    // In a debug build clap needs hundreds of KiB of stack to define all commands.
    let cli = match on_large_stack(|| parse(&arguments)) {
        Ok(Ok(cli)) => cli,
        Ok(Err(code)) => return code,
        Err(error) => {
            print_error(&Error::from(error).context("starting a thread"));
            return ExitCode::from(FAILURE);
        }
    };
    // `run` returns 1 and other codes for the container's program.
    let failure = if matches!(
        cli.command,
        Command::Run(_) | Command::Container(args::Container::Run(_))
    ) {
        USAGE
    } else {
        FAILURE
    };
    if !starts_program(&cli.command)
        && let Err(errno) = stdio::keep_output_closed()
    {
        print_error(&Error::from(errno).context("standard output"));
        return ExitCode::from(FAILURE);
    }
    let mut out = Out::new(BufWriter::new(Output));
    let done = dispatch(cli, &mut out).and_then(|code| flush(&mut out).map(|()| code));
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            print_error(&error);
            ExitCode::from(exit_code(error.kind(), failure))
        }
    }
}

/// Whether the command creates or starts a container, or attaches to it. As in Docker, it runs and
/// its exit code is the program's even if its output is closed (`>&-`).
fn starts_program(command: &Command) -> bool {
    use args::Container as C;
    matches!(
        command,
        Command::Run(_)
            | Command::Create(_)
            | Command::Start(_)
            | Command::Exec(_)
            | Command::Attach(_)
            | Command::Container(
                C::Run(_) | C::Create(_) | C::Start(_) | C::Exec(_) | C::Attach(_)
            )
    )
}

fn exit_code(kind: Kind, otherwise: u8) -> u8 {
    match kind {
        Kind::CommandNotFound => 127,
        Kind::CommandNotExecutable => 126,
        // Not 125: the container was created.
        Kind::Interrupted | Kind::Output => FAILURE,
        Kind::NotFound | Kind::Conflict | Kind::Invalid | Kind::Failed => otherwise,
    }
}

fn parse(arguments: &[OsString]) -> Result<Cli, ExitCode> {
    if let Some(cli) = args::frequent(arguments) {
        return Ok(cli);
    }
    let read = |definition: clap::Command| {
        let matches = definition.try_get_matches_from(arguments)?;
        <Cli>::from_arg_matches(&matches)
    };
    let is_help = |error: &clap::Error| {
        matches!(
            error.kind(),
            ErrorKind::DisplayHelp
                | ErrorKind::DisplayVersion
                | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        )
    };
    let read = match read(args::definition()) {
        Err(error) if !is_help(&error) => read(args::with_switch_values(args::definition())),
        read => read,
    };
    let error = match read {
        Ok(cli) => return Ok(cli),
        Err(error) => error,
    };
    let words = match arguments {
        [_, root, _, words @ ..] if root == "--root" => words,
        [_, words @ ..] => words,
        [] => &[],
    };
    if error.kind() == ErrorKind::InvalidSubcommand
        && let [help, name] = words
        && help == "help"
        && external::exists(name)
    {
        // `cowl help NAME` is `cowl-NAME --help`, as with git.
        return Ok(Cli {
            root: None,
            command: Command::External(vec![name.clone(), "--help".into()]),
        });
    }
    let code = match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => 0,
        _ => {
            print_error(&usage::one_line(
                &error,
                arguments,
                &command_path(arguments),
            ));
            return Err(ExitCode::from(usage_code(&error)));
        }
    };
    // clap's own text. EPIPE is no error.
    Err(match stdio::check_output().and_then(|()| error.print()) {
        Ok(()) => ExitCode::from(code),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(code),
        Err(error) => {
            print_error(&format!(
                "writing to standard output: {}",
                Error::from(error)
            ));
            ExitCode::from(FAILURE)
        }
    })
}

/// Docker's exit code for a wrong command line: wrong options differ from unknown commands and from
/// missing or surplus arguments.
fn usage_code(error: &clap::Error) -> u8 {
    let is_option = || {
        let wrong = error.get(ContextKind::InvalidArg);
        wrong.is_some_and(|wrong| wrong.to_string().starts_with('-'))
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand
        | ErrorKind::MissingRequiredArgument
        | ErrorKind::TooManyValues
        | ErrorKind::TooFewValues
        | ErrorKind::WrongNumberOfValues => FAILURE,
        ErrorKind::UnknownArgument if !is_option() => FAILURE,
        _ => USAGE,
    }
}

/// `cowl` and the subcommands among the arguments, such as `cowl volume ls`.
fn command_path(arguments: &[OsString]) -> String {
    let ours = <Cli>::command();
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
    let root_flag = cli.root;
    let root = root_flag.clone().or_else(root_of_environment);
    // Boxed: each match arm has its own stack slot for it.
    let open = |access| open(root.clone(), access).map(Box::new);
    match cli.command {
        Command::Load(args) => image::load(&*open(Access::Add)?, &args, out),
        Command::Save(args) => image::save(&*open(Access::Change)?, &args),
        Command::Import(args) => image::import(&*open(Access::Add)?, &args, out),
        Command::Tag(args) => image::tag(&*open(Access::Change)?, &args),
        Command::Diff(args) if args.is_of_images() => {
            external::run(&changes::of_images(args), root)
        }
        Command::Diff(args)
            if args.may_be_archive() && !changes::is_container(root.as_deref(), &args) =>
        {
            external::run(&changes::of_images(args), root)
        }
        Command::Diff(args) => changes::diff(&*open(Access::Change)?, &args, out),
        Command::Commit(args) => changes::commit(&*open(Access::Change)?, &args, out),
        Command::Export(args) => changes::export(&*open(Access::Change)?, &args),
        Command::Unpack(args) => changes::unpack(&*open(Access::Change)?, &args),
        Command::Images(args) => image::images(&*open(Access::Read)?, &args, out),
        Command::History(args) => image::history(&*open(Access::Read)?, &args, out),
        Command::Rmi(args) => image::rmi(&*open(Access::Change)?, &args, out),
        Command::Events(args) => events::events(&*open(Access::Read)?, &args, out),
        Command::Info(args) => image::info(&*open(Access::Read)?, &args, out),
        Command::Check(args) => check::check(&*open(args.access())?, &args, out),
        Command::Gc(args) => gc::gc(&*open(args.access())?, &args, out),
        Command::Mount(args) => mount::mount(&*open(Access::Change)?, &args),
        Command::Umount(args) => mount::umount(&*open(Access::Read)?, &args),
        Command::Run(args) => container::run(&mut *open(Access::Change)?, *args, out),
        Command::Create(args) => container::create(&*open(Access::Change)?, *args, out),
        Command::Rename(args) => container::rename(&*open(Access::Change)?, &args),
        Command::Update(args) => container::update(&*open(Access::Change)?, args, out),
        Command::Ps(args) => container::list::ps(&*open(Access::Read)?, &args, out),
        Command::Inspect(args) => container::inspect::any(&*open(Access::Read)?, &args, out),
        Command::ContainerInspect(args) => {
            container::inspect::container(&*open(Access::Read)?, &args, out)
        }
        Command::Attach(args) => container::life::attach(&*open(Access::Change)?, &args),
        Command::Exec(args) => container::life::exec(&*open(Access::Change)?, args),
        Command::Kill(args) => container::life::kill(&*open(Access::Change)?, &args, out),
        Command::Logs(args) => container::life::logs(&*open(Access::Read)?, &args),
        Command::Pause(args) => container::life::pause(&*open(Access::Change)?, &args, out),
        Command::Restart(args) => container::life::restart(&*open(Access::Change)?, &args, out),
        Command::Start(args) => container::life::start(&mut *open(Access::Change)?, &args, out),
        Command::Stop(args) => container::life::stop(&*open(Access::Change)?, &args, out),
        Command::Cp(args) => container::cp::cp(&*open(Access::Change)?, &args, out),
        Command::Stats(args) => container::stats::stats(&*open(Access::Read)?, &args, out),
        Command::Port(args) => container::port::port(&*open(Access::Read)?, &args, out),
        Command::Top(args) => container::life::top(&*open(Access::Change)?, &args, out),
        Command::Unpause(args) => container::life::unpause(&*open(Access::Change)?, &args, out),
        Command::Wait(args) => container::life::wait(&*open(Access::Read)?, &args, out),
        Command::Finish { id } => open(Access::Change)?.finish(&id).map(|()| 0),
        Command::Health { id, word } => open(Access::Change)?.tell_health(&id, &word).map(|()| 0),
        Command::Container(command) => {
            let command = Command::from(command);
            dispatch(Cli { root, command }, out)
        }
        Command::Rm(args) => container::rm(&*open(Access::Change)?, &args, out),
        Command::ContainerPrune(args) => prune::containers(&*open(Access::Change)?, &args, out),
        Command::Image(command) => {
            let command = Command::from(command);
            dispatch(Cli { root, command }, out)
        }
        Command::ImageInspect(args) => container::inspect::image(&*open(Access::Read)?, &args, out),
        Command::ImagePrune(args) => {
            let engine = open(Access::Change)?;
            prune::images(&engine, &args.prune, args.all, out)
        }
        Command::System(command) => system::system(&*open(command.access())?, command, out),
        Command::Volume(command) => volume::volume(&*open(command.access())?, command, out),
        Command::Serve(args) => serve::serve(root_flag, &args, out),
        Command::Version(args) => version(&args, out),
        Command::External(words) => external::run(&words, root),
    }
}

/// How a command uses the store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Creates it if missing.
    Add,
    /// Changes an existing store.
    Change,
    Read,
}

/// The store of the environment; an empty variable counts as unset.
fn root_of_environment() -> Option<PathBuf> {
    std::env::var_os(ROOT)
        .filter(|root| !root.is_empty())
        .map(PathBuf::from)
}

/// Only commands that add to a store create it if the user named it: the name may be mistyped.
fn open(root: Option<PathBuf>, access: Access) -> Result<Engine> {
    let engine = match root {
        Some(root) if access != Access::Add => Engine::open(&root)?,
        Some(root) => Engine::open_or_create(&root)?,
        None => Engine::open_or_create(&host::default_root()?)?,
    };
    if access != Access::Read {
        engine.store().check_writable()?;
    }
    Ok(engine)
}

/// Client and server are one program; the server's part is the API's answer.
fn version(args: &args::Version, out: &mut Stdout) -> Result<u8> {
    let Some(format) = args.format.as_deref().filter(|format| !format.is_empty()) else {
        out.line(&format!("cowl {VERSION}"))?;
        return Ok(0);
    };
    let server = crate::api::version();
    let part = |field: &str| server.get(field).cloned().unwrap_or_default();
    let client = serde_json::json!({
        "Version": VERSION,
        "ApiVersion": part("ApiVersion"),
        "DefaultAPIVersion": part("ApiVersion"),
        "GitCommit": "",
        "GoVersion": "",
        "Os": part("Os"),
        "Arch": part("Arch"),
        "BuildTime": "",
        "Context": "default",
    });
    let template = match template::Template::parse_named("version", format) {
        Ok(template) => template,
        Err(malformed) => return Ok(malformed.end()),
    };
    let mut both = serde_json::json!({"Client": client, "Server": &server});
    if format == "json" {
        out.line(&both.to_string())?;
        return Ok(0);
    }
    // Docker's templates use the name of Go's field.
    for fields in both
        .as_object_mut()
        .into_iter()
        .flat_map(|both| both.values_mut())
    {
        if let Some(fields) = fields.as_object_mut() {
            fields.insert("APIVersion".to_owned(), part("ApiVersion"));
        }
    }
    let line = template.render(&both, &template::Type::Json);
    out.line(&line.map_err(template::Failed::bare)?)?;
    Ok(0)
}

/// Prints an error as one line on standard error, in one write, so that lines of concurrent
/// commands do not mix.
fn print_error(what: &impl std::fmt::Display) {
    let mut line = table::printable(&format!("cowl: {what}"));
    if line.ends_with(FULL) && !OUTPUT.iter().any(|output| line.contains(output)) {
        line.push_str(
            "; free some space (cowl rmi, cowl rm, cowl volume rm) or use another --root",
        );
    }
    if line.starts_with("cowl: store ") && line.ends_with(FORBIDDEN) {
        line.push_str("; run as its owner, or use a store of your own with --root DIR");
    }
    line.push('\n');
    if io::stderr().write_all(line.as_bytes()).is_err() {
        // The exit code still reports the failure.
    }
}

/// Prints a line on standard error that is not an error.
fn print_note(line: &str) {
    let line = format!("{}\n", table::printable(line));
    if io::stderr().write_all(line.as_bytes()).is_err() {
        // Nobody reads standard error.
    }
}

/// Calls `action` for each name; as in Docker, prints errors and goes on. The output of each action
/// is flushed before the next one, which may take long.
fn each(
    names: &[String],
    out: &mut Stdout,
    mut action: impl FnMut(&str, &mut Stdout) -> Result<()>,
) -> Result<u8> {
    let mut code = 0;
    let mut written = Ok(());
    for name in names {
        if let Err(error) = action(name, out) {
            print_error(&error);
            code = FAILURE;
        }
        // A failed output does not stop the action for later names.
        written = written.and_then(|()| flush(out));
    }
    written.map(|()| code)
}

fn flush(out: &mut Stdout) -> Result<()> {
    out.flush()
        .map_err(|error| Error::new(Kind::Output, format!("writing to standard output: {error}")))
}
