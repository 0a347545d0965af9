//! `cowl-dedup` (or `cowl dedup`): reports what images share: layers, and equal contents in
//! different layers.
//!
//! Reads a store and changes nothing. Sizes are those of objects, each counted once, so `du` of
//! the files that `--objects` lists confirms them to the byte.

mod gather;
mod report;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use cowl_core::digest::ObjectId;
use cowl_core::store::Store;

use report::Report;

/// What `--help` ends with: each column by its definition.
const COLUMNS: &str = "\
Columns, in bytes:
  LOGICAL    contents of all files in all layers, hidden and equal ones too
  VISIBLE    contents of all files that the image shows; hard links once
  STORED     the image's distinct contents: objects in the store
  EXCLUSIVE  of those: in no other image of the store
  SHARED     of those: in other images too; STORED = EXCLUSIVE + SHARED
  FAIR       each content's size divided by the number of images that hold it;
             over all images of the store this sums to what they keep";

/// Shows what images hold and have in common: shared layers, and equal contents in layers of their
/// own.
#[derive(Debug, Parser)]
#[command(name = "cowl-dedup", version, after_help = COLUMNS)]
struct Arguments {
    /// Directory of the store
    #[arg(
        long,
        value_name = "DIR",
        env = "COWL_ROOT",
        hide_env_values = true,
        default_value = "/var/lib/cowl"
    )]
    root: PathBuf,
    /// Print the report as JSON
    #[arg(long, conflicts_with = "objects")]
    json: bool,
    /// Print only the files of the contents that two or more of the images hold, one a line
    #[arg(long)]
    objects: bool,
    /// Names of images; all of the store if none is given
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
}

/// Exit code of a usage error, as `cowl`'s.
const USAGE: u8 = 125;
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => {
            let text = error.to_string();
            let what = text.lines().next().unwrap_or_default();
            let what = what.trim_start_matches("error: ");
            return print_error(&format!("{what}; see 'cowl dedup --help'"), USAGE);
        }
        Err(help) => return exit_code(help.print().context("standard output")),
    };
    exit_code(run(&arguments))
}

fn exit_code(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => print_error(&format!("{error:#}"), FAILURE),
    }
}

/// Prints one line on standard error; if that fails, the exit code is 2.
fn print_error(what: &str, code: u8) -> ExitCode {
    let told = writeln!(anstream::stderr(), "cowl-dedup: {what}");
    ExitCode::from(if told.is_ok() { code } else { 2 })
}

fn run(arguments: &Arguments) -> Result<()> {
    let store = Store::open(&arguments.root)
        .with_context(|| format!("store {}", arguments.root.display()))?;
    let gather::Images { images, skipped } = gather::images(&store, &arguments.images)?;
    for error in &skipped {
        writeln!(anstream::stderr(), "cowl-dedup: warning: {error:#}").context("standard error")?;
    }
    let report = Report::new(&images, store.usage()?.objects.bytes);
    let text = if arguments.json {
        serde_json::to_string_pretty(&report).context("the report as JSON")? + "\n"
    } else if arguments.objects {
        objects(&store, &report)
    } else {
        report.to_string()
    };
    match anstream::stdout().write_all(text.as_bytes()) {
        // A reader that has seen enough is no error.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output"),
    }
}

/// The files of the shared contents.
fn objects(store: &Store, report: &Report) -> String {
    let path = |id: &ObjectId| format!("{}\n", store.object_path(*id).display());
    report.shared_objects().iter().map(path).collect()
}
