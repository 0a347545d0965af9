//! `cowl-dedup` (or `cowl dedup`): reports what images share: layers, and equal contents in
//! different layers.
//!
//! Reads a store and changes nothing. Sizes are those of objects, each counted once, so `du` of
//! the files that `--objects` lists confirms them to the byte.

mod archive;
mod browse;
mod cleanup;
mod compare;
mod compress;
mod condition;
mod gather;
mod html;
mod index;
mod ladder;
mod layers;
mod model;
mod packages;
mod pieces;
mod progress;
mod report;
mod rpm;
mod sharing;
mod show;
mod state;
mod text;
mod tui;
mod walk;
mod whatif;

#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{ArgGroup, Parser};
use cowl_core::store::Store;

use condition::Condition;
use gather::Wanted;
use model::Collection;
use progress::Progress;
use report::Report;
use sharing::Sharing;
use show::{Sizes, printable};
use text::Layout;

/// What `--help` ends with: each column by its definition.
const COLUMNS: &str = "\
Columns:
  LOGICAL    contents of all files in all layers, hidden and equal ones too
  VISIBLE    contents of all files that the image shows; hard links once
  STORED     the image's distinct contents: objects in the store
  EXCLUSIVE  of those: in no other image of the store
  SHARED     of those: in other images too; STORED = EXCLUSIVE + SHARED
  FAIR       each content's size divided by the number of images that hold it;
             over all images of the store this sums to what they keep
  WASTE      what a store of layers would hold without need, as a share of LOGICAL;
             of `cowl layers`: the bytes of it whose LAYER this is, which holds them, or
             gave them again; STEP in --waste is the one to blame
docs/dedup.md defines every figure.";

/// Shows what images hold and have in common: shared layers, and equal contents in layers of their
/// own.
#[derive(Debug, Parser)]
#[command(name = "cowl-dedup", version, after_help = COLUMNS)]
#[command(group(ArgGroup::new("lists").multiple(true)))]
#[command(group(ArgGroup::new("report").multiple(true)))]
struct Arguments {
    /// Directory of the store [default: $COWL_ROOT; else /var/lib/cowl for root,
    /// $XDG_DATA_HOME/cowl or ~/.local/share/cowl for anyone else]
    #[arg(long, value_name = "DIR", env = "COWL_ROOT", hide_env = true)]
    root: Option<PathBuf>,
    /// Print the report as JSON, with every list
    #[arg(long, conflicts_with_all = ["objects", "lists", "bytes", "all_rows"])]
    json: bool,
    /// Print only the files of the contents that two or more of the images hold, one a line
    #[arg(long, conflicts_with_all = ["lists", "ladder", "bytes", "all_rows"])]
    objects: bool,
    /// Browse layers and files in the terminal
    #[arg(long, conflicts_with_all = ["json", "objects", "report"])]
    tui: bool,
    /// Compare two images: files, modes, owners, contents, packages (`cowl diff A B`)
    #[arg(long, conflicts_with_all = ["objects", "tui", "report"])]
    diff: bool,
    /// Print the layers of each image and nothing else (`cowl layers IMAGE`)
    #[arg(long, conflicts_with_all = ["json", "objects", "tui", "diff", "lists", "ladder"])]
    only_layers: bool,
    /// Print an index file of the store, a layer's or a merged one, name by name (`cowl tree FILE`)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "objects", "tui", "diff", "only_layers", "report", "images"])]
    tree: Option<PathBuf>,
    /// Write the report as a page for a browser, too
    #[arg(long, value_name = "FILE", group = "report", value_parser = page_path)]
    html: Option<PathBuf>,
    /// Print whole bytes instead of sizes such as 1.98MB
    #[arg(long, group = "report")]
    bytes: bool,
    /// List what each layer adds, changes and deletes, and what of it exists elsewhere
    #[arg(long, groups = ["lists", "report"])]
    layers: bool,
    /// List the waste by cause, layer and path
    #[arg(long, groups = ["lists", "report"])]
    waste: bool,
    /// List what each two images have in common
    #[arg(long, groups = ["lists", "report"])]
    matrix: bool,
    /// List the largest files that several layers have, which sharing by layer keeps more than once
    #[arg(long, groups = ["lists", "report"])]
    duplicates: bool,
    /// Show what removing each image frees, and what another base would
    #[arg(long, groups = ["lists", "report"])]
    what_if: bool,
    /// Show what each granularity would store: layers, files, pieces of fixed size, and pieces cut
    /// by content. Reads every file of the images; part of --json unless --no-ladder is given
    #[arg(long, group = "report")]
    ladder: bool,
    /// Leave the ladder out
    #[arg(long, group = "report", conflicts_with = "ladder")]
    no_ladder: bool,
    /// Leave compressed sizes out of the ladder: it is read, cut and hashed, which is much faster
    #[arg(long, group = "report", conflicts_with = "no_ladder")]
    no_zstd: bool,
    /// Every list
    #[arg(long, groups = ["lists", "report"])]
    all: bool,
    /// Show every row of long lists
    #[arg(long, group = "report")]
    all_rows: bool,
    /// Exit with 1 if this holds for an image: FIGURE>LIMIT, where FIGURE is waste, overwritten,
    /// deleted, metadata, duplicate, exclusive, stored or logical, and LIMIT a size (10MB) or a
    /// share of the logical bytes (5%)
    #[arg(long, value_name = "CONDITION", group = "report")]
    fail_if: Vec<Condition>,
    /// Names or ids of images, or archives that need not be imported: docker-archives and OCI
    /// layouts (tar or directory), by a path that begins with /, ./ or ../, by . or .., or a file that
    /// ends in .tar, .tar.gz and the like; all images of the store if none is given
    #[arg(value_name = "IMAGE|ARCHIVE")]
    images: Vec<String>,
}

/// Standard output has the tables, so `-` cannot mean it.
fn page_path(path: &str) -> Result<PathBuf, String> {
    match path {
        "-" => Err("the page goes to a file; for one that is named so write ./-".to_owned()),
        _ => Ok(PathBuf::from(path)),
    }
}

/// Exit code of a usage error, as `cowl`'s.
const USAGE: u8 = 125;
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => {
            let text = error.to_string();
            // The first paragraph may list arguments below its first line.
            let lines = text.lines().map(str::trim);
            let lines: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
            let what = lines.join(" ");
            let what = what.trim_start_matches("error: ");
            return print_error(&format!("{what}; see 'cowl dedup --help'"), USAGE);
        }
        Err(help) => return exit_code(print(&help.render().ansi().to_string())),
    };
    // One archive may have two images.
    let is_wrong = match arguments.images.as_slice() {
        [one] => !archive::is_archive(one),
        images => images.len() > 2,
    };
    if arguments.diff && is_wrong {
        let what = format!(
            "give two images to compare, not {}; see 'cowl diff --help'",
            arguments.images.len()
        );
        return print_error(&what, USAGE);
    }
    let done = cleanup::watch_signals().and_then(|()| run(&arguments));
    cleanup::release();
    match done {
        Ok(failures) if failures.is_empty() => ExitCode::SUCCESS,
        Ok(failures) => {
            let mut code = ExitCode::from(FAILURE);
            for failure in failures {
                code = print_error(&failure, FAILURE);
            }
            code
        }
        Err(error) => print_error(&format!("{error:#}"), FAILURE),
    }
}

fn exit_code(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => print_error(&format!("{error:#}"), FAILURE),
    }
}

/// Prints one line on standard error; if that fails, the exit code is 2, but for a reader that
/// has seen enough.
fn print_error(what: &str, code: u8) -> ExitCode {
    match writeln!(anstream::stderr(), "cowl-dedup: {}", printable(what)) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::from(2),
        _ => ExitCode::from(code),
    }
}

/// Prints the report; gives a line for each condition of `--fail-if` that holds.
fn run(arguments: &Arguments) -> Result<Vec<String>> {
    if let Some(path) = &arguments.tree {
        print(&index::text(path)?)?;
        return Ok(Vec::new());
    }
    let (stores, wanted) = open_stores(arguments)?;
    let collection = gather::collect(&stores, &wanted)?;
    for error in &collection.skipped {
        let line = printable(&format!("warning: {error:#}"));
        writeln!(anstream::stderr(), "cowl-dedup: {line}").context("standard error")?;
    }
    if arguments.tui {
        tui::run(&collection)?;
        return Ok(Vec::new());
    }
    if arguments.diff {
        print(&diff(arguments, &collection, &stores)?)?;
        return Ok(Vec::new());
    }
    let sharing = Sharing::of(&collection);
    let mut report = Report::new(&collection, &sharing)?;
    if (arguments.ladder || arguments.all || arguments.json || arguments.html.is_some())
        && !arguments.no_ladder
    {
        let mut limits = ladder::Limits::default();
        if arguments.no_zstd {
            limits.zstd_bytes = None;
        }
        let progress = Progress::new();
        report.set_ladder(ladder::climb(&collection, &stores, limits, &progress)?);
    }
    if let Some(path) = &arguments.html {
        html::write(path, &collection, &sharing, &report)?;
    }
    let text = if arguments.json {
        serde_json::to_string_pretty(&report).context("the report as JSON")? + "\n"
    } else if arguments.objects {
        objects(&stores, &collection, &report)
    } else {
        tables(arguments, &report)
    };
    print(&text)?;
    let failures = arguments
        .fail_if
        .iter()
        .flat_map(|condition| condition.failures(&report));
    Ok(failures.collect())
}

/// The store, unless archives alone are given, and one that the archives are read into.
fn open_stores(arguments: &Arguments) -> Result<(Vec<Store>, Vec<Wanted>)> {
    let is_archive = |argument: &&String| archive::is_archive(argument);
    let archives = arguments.images.iter().filter(is_archive).count();
    let mut stores = Vec::new();
    if archives == 0 || archives < arguments.images.len() {
        let root = arguments.root.clone().map_or_else(default_root, Ok)?;
        let store = Store::open(&root).with_context(|| format!("store {}", root.display()))?;
        stores.push(store);
    }
    let scratch = stores.len();
    if archives > 0 {
        stores.push(archive::scratch_store()?);
    }
    let mut wanted = Vec::new();
    for argument in &arguments.images {
        wanted.push(
            match stores.get(scratch).filter(|_| is_archive(&argument)) {
                Some(store) => Wanted::Archive {
                    path: argument.clone(),
                    images: archive::load(store, argument)?,
                    store: scratch,
                },
                None if arguments.diff => Wanted::First(argument.clone()),
                None => Wanted::Named(argument.clone()),
            },
        );
    }
    Ok((stores, wanted))
}

/// The default store, that of `cowl`.
fn default_root() -> Result<PathBuf> {
    let is_root = rustix::process::geteuid().is_root();
    if is_root && cowl_sys::userns::is_initial().unwrap_or(false) {
        return Ok(PathBuf::from("/var/lib/cowl"));
    }
    let absolute = |name: &str| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("cowl"))
        .context("no default store: XDG_DATA_HOME and HOME are unset; use --root DIR")
}

fn print(text: &str) -> Result<()> {
    match anstream::stdout().write_all(text.as_bytes()) {
        // A reader that has seen enough is no error.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output"),
    }
}

fn diff(arguments: &Arguments, collection: &Collection, stores: &[Store]) -> Result<String> {
    let comparison = compare::Comparison::new(collection, stores, arguments.images.len())?;
    if arguments.json {
        return Ok(serde_json::to_string_pretty(&comparison).context("the report as JSON")? + "\n");
    }
    Ok(comparison.text(terminal_width()))
}

/// Writes one list of the report.
type List = fn(&Report, Layout) -> String;

fn tables(arguments: &Arguments, report: &Report) -> String {
    let layout = Layout {
        sizes: if arguments.bytes {
            Sizes::Exact
        } else {
            Sizes::Human
        },
        width: terminal_width(),
        rows: (!arguments.all_rows).then_some(20),
    };
    if arguments.only_layers {
        return text::only_layers(report, layout);
    }
    let mut text = text::summary(report, layout);
    let lists: [(bool, List); 6] = [
        (arguments.layers || arguments.all, text::layers),
        (arguments.waste || arguments.all, text::waste),
        (arguments.matrix || arguments.all, text::matrix),
        (arguments.duplicates || arguments.all, text::duplicates),
        (arguments.what_if || arguments.all, text::what_if),
        (!report.ladder.is_empty(), text::ladder),
    ];
    for (wanted, list) in lists {
        if wanted {
            text.push_str(&list(report, layout));
        }
    }
    text
}

/// Columns of the terminal that standard output is; 80 of one that does not say.
fn terminal_width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&stdout);
    let columns = size.map_or(0, |size| size.ws_col);
    Some(if columns > 0 { columns.into() } else { 80 })
}

/// The files of the shared contents.
fn objects(stores: &[Store], collection: &Collection, report: &Report) -> String {
    let mut text = String::new();
    for id in &report.shared_objects {
        let number = collection.objects.find(id).unwrap_or_default();
        if let Some(store) = stores.get(collection.objects.store(number)) {
            text.push_str(&store.object_path(*id).display().to_string());
            text.push('\n');
        }
    }
    text
}
