//! `cowl-dedup` (or `cowl dedup`): what images have in common, layers that they share and, beyond those, contents that
//! no layer shows to be the same.
//!
//! Reads a store and changes nothing. All numbers are sizes of objects, each counted once, so `du` of the files that
//! `--objects` lists confirms them to the byte.

mod report;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use cowl_core::digest::ObjectId;
use cowl_core::store::{Reference, Store};

use report::{Held, Report};

/// Shows what images have in common: shared layers, and equal contents in layers of their own.
#[derive(Debug, Parser)]
#[command(name = "cowl-dedup", version)]
struct Arguments {
    /// Directory of the store
    #[arg(
        long,
        value_name = "DIR",
        env = "COWL_ROOT",
        default_value = "/var/lib/cowl"
    )]
    root: PathBuf,
    /// Print the report as JSON
    #[arg(long, conflicts_with = "objects")]
    json: bool,
    /// Print only the files of the shared contents, one a line
    #[arg(long)]
    objects: bool,
    /// Names of images
    #[arg(required = true, num_args = 2.., value_name = "IMAGE")]
    images: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where even this cannot be written, the exit code says it.
            let told = writeln!(anstream::stderr(), "cowl-dedup: {error:#}");
            ExitCode::from(if told.is_ok() { 1 } else { 2 })
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let store = Store::open(&arguments.root)
        .with_context(|| format!("store {}", arguments.root.display()))?;
    let held: Vec<Held> = arguments
        .images
        .iter()
        .map(|name| held(&store, name))
        .collect::<Result<_>>()?;
    let report = Report::new(&held, |layers| store.objects_of(layers))?;
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

fn held(store: &Store, name: &str) -> Result<Held> {
    let reference: Reference = name.parse()?;
    let record = store.find_ref(&reference)?.with_context(|| {
        format!("no image {reference} in the store; `cowl images` lists what there is")
    })?;
    let objects = store
        .objects_of(&record.layers)
        .with_context(|| format!("image {reference}"))?;
    Ok(Held {
        name: reference.to_string(),
        layers: record.layers,
        objects,
    })
}

/// The files of the shared contents.
fn objects(store: &Store, report: &Report) -> String {
    let path = |id: &ObjectId| format!("{}\n", store.object_path(*id).display());
    report.shared_objects().iter().map(path).collect()
}
