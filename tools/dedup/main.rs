//! `cowl-dedup` (or `cowl dedup`): reports what images share: layers, and equal contents in
//! different layers.
//!
//! Reads a store and changes nothing. Sizes are those of objects, each counted once, so `du` of
//! the files that `--objects` lists confirms them to the byte.

mod archive;
mod args;
mod browse;
mod choose;
mod chunk_set;
mod chunking;
mod cleanup;
mod compare;
mod compress;
mod condition;
mod gather;
mod html;
mod index;
mod installed;
mod ladder;
mod layers;
mod lossy;
mod model;
mod packages;
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

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use cowl_core::digest::ImageId;
use cowl_core::image::Loaded;
use cowl_core::store::{Platform, Store};

use args::{Arguments, Mode};
use choose::Wanted;
use compare::Comparison;
use model::Collection;
use progress::Progress;
use report::Report;
use sharing::Sharing;
use show::{Sizes, printable, printable_json};
use text::Layout;

/// Exit code of a wrong option, as in `cowl`.
const USAGE: u8 = 125;
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let mode = Mode::of(&words);
    let arguments = match mode.parse(&words) {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => {
            let what = mode.explain(&error, &words);
            return print_error(
                &format!("{what}; see '{} --help'", mode.name()),
                args::exit_code(&error),
            );
        }
        Err(help) => return exit_code(print(&help.render().ansi().to_string())),
    };
    let done = cleanup::watch_signals().and_then(|()| run(mode, &arguments));
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

/// Prints one line on standard error; the exit code is 2 if that fails, unless the pipe is closed.
fn print_error(what: &str, code: u8) -> ExitCode {
    let mut what = show::without_errno(what);
    if what.starts_with("store ") && what.ends_with("Permission denied") {
        what.push_str("; run as its owner, or use a store of your own with --root DIR");
    }
    match write_error(&what) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::from(2),
        _ => ExitCode::from(code),
    }
}

/// Writes one line on standard error in one write: other processes may write to it too.
fn write_error(what: &str) -> io::Result<()> {
    let line = format!("cowl-dedup: {}\n", printable(what));
    anstream::stderr().write_all(line.as_bytes())
}

/// Prints the report; returns a line for each thing that could not be read and each condition of
/// `--fail-if` that holds.
fn run(mode: Mode, arguments: &Arguments) -> Result<Vec<String>> {
    if let (Mode::Tree, [path]) = (mode, arguments.images.as_slice()) {
        print(&index::text(Path::new(path))?)?;
        return Ok(Vec::new());
    }
    let progress = Progress::new();
    let (stores, wanted) = open_stores(mode, arguments, &progress)?;
    let collection = gather::collect(&stores, &wanted)?;
    for error in &collection.skipped {
        let line = show::without_errno(&format!("warning: {error:#}"));
        write_error(&line).context("standard error")?;
    }
    let mut failures: Vec<String> = collection
        .failed
        .iter()
        .map(|error| format!("{error:#}"))
        .collect();
    if arguments.tui {
        tui::run(&collection)?;
        return Ok(failures);
    }
    if mode == Mode::Diff {
        failures.extend(diff(arguments, &collection, &stores)?);
        return Ok(failures);
    }
    let sharing = Sharing::of(&collection);
    let mut report = Report::new(&collection, &sharing)?;
    if has_ladder(mode, arguments) {
        let mut limits = ladder::Limits::default();
        if arguments.no_zstd {
            limits.zstd_bytes = None;
        }
        let ladder = ladder::climb(&collection, &stores, limits, &progress)?;
        report.set_ladder(&collection, &sharing, ladder);
    }
    if let Some(path) = &arguments.html {
        html::write(path, &collection, &sharing, &report)?;
    }
    let text = if arguments.json && mode == Mode::Layers {
        json(&report.only_layers())?
    } else if arguments.json {
        json(&report)?
    } else if arguments.objects {
        objects(&stores, &collection, &report)
    } else {
        tables(arguments, &report)
    };
    print(&text)?;
    failures.extend(report.damage());
    let conditions = arguments.fail_if.iter();
    failures.extend(conditions.flat_map(|condition| condition.failures(&report)));
    Ok(failures)
}

fn has_ladder(mode: Mode, arguments: &Arguments) -> bool {
    let all = (arguments.json && mode != Mode::Layers) || arguments.html.is_some();
    (arguments.ladder || arguments.all || all) && !arguments.no_ladder && !arguments.tui
}

/// Opens the store, unless only archives are given, and creates one to read archives into.
fn open_stores(
    mode: Mode,
    arguments: &Arguments,
    progress: &Progress,
) -> Result<(Vec<Store>, Vec<Wanted>)> {
    let named = |argument: &OsString| archive::Named::of(argument).is_some();
    let archives = arguments.images.iter().filter(|a| named(a)).count();
    if archives > 0 && arguments.objects {
        bail!("--objects lists files of a store, and an archive has none; use cowl load first");
    }
    let mut stores = Vec::new();
    if archives == 0 || archives < arguments.images.len() {
        let root = arguments.root.clone().map_or_else(default_root, Ok)?;
        let store = Store::open(&root).with_context(|| format!("store {}", root.display()))?;
        stores.push(store);
    }
    let with_contents = mode == Mode::Diff || has_ladder(mode, arguments);
    let scratch = stores.len();
    if archives > 0 {
        stores.push(archive::scratch_store()?);
    }
    let mut wanted = Vec::new();
    // An archive given twice, for two of its images, has the same warnings.
    let mut told = BTreeSet::new();
    for argument in &arguments.images {
        let archive = archive::Named::of(argument).zip(stores.get(scratch));
        wanted.push(match archive {
            Some((archive, store)) => {
                let loaded = archive::load(store, archive, with_contents, progress);
                progress.end();
                let mut images = loaded?;
                for absent in progress.take_absent() {
                    let line = format!("warning: {}: {absent}", archive.shown());
                    if told.insert(line.clone()) {
                        write_error(&line).context("standard error")?;
                    }
                }
                if arguments.diff {
                    choose_sides(&archive.shown(), &mut images, arguments.images.len())?;
                }
                Wanted::Archive {
                    path: archive.shown(),
                    images,
                    of_platform: archive.is_of_platform(),
                    store: scratch,
                }
            }
            None if arguments.diff => Wanted::First(shown(argument)),
            None => Wanted::Named(shown(argument)),
        });
    }
    Ok((stores, wanted))
}

/// An argument for messages. Image names never contain what is escaped.
fn shown(argument: &OsString) -> String {
    show::lossy(argument.as_bytes())
}

/// Reduces an archive to the sides of a comparison: one image beside another argument, two alone. A
/// name for several platforms is the image for the first, unless these are the two images.
fn choose_sides(archive: &str, images: &mut [Loaded], given: usize) -> Result<()> {
    const LISTED: usize = 20;
    let firsts: BTreeSet<_> = images.iter().map(|loaded| loaded.image).collect();
    let others = images.iter().flat_map(|loaded| &loaded.others);
    let all: BTreeSet<_> = others
        .map(|(image, _)| *image)
        .chain(firsts.clone())
        .collect();
    let needed = if given == 1 { 2 } else { 1 };
    if firsts.len() == needed {
        for image in images {
            image.others.clear();
        }
        return Ok(());
    }
    if all.len() == needed {
        return Ok(());
    }
    let mut names: Vec<String> = images.iter().flat_map(side_names).collect();
    if names.len() > LISTED {
        names.truncate(LISTED);
        names.push("...".to_owned());
    }
    let found = all.len();
    let hint = match names.first() {
        Some(first) if archive != "standard input" && found > 1 => {
            let argument = format!("{archive}:{first}");
            let quote = if argument.contains(' ') { "'" } else { "" };
            format!("; name one as {quote}{argument}{quote}")
        }
        _ => String::new(),
    };
    let names = names.join(", ");
    bail!("a comparison is of two images, and {archive} has {found}, not {needed}: {names}{hint}")
}

/// The arguments that select each image of a name.
fn side_names(loaded: &Loaded) -> Vec<String> {
    let first = (loaded.image, loaded.platform.clone());
    let images = std::iter::once(&first).chain(&loaded.others);
    let name = |(image, platform): &(ImageId, Platform)| match loaded.tags.first() {
        Some(tag) if loaded.others.is_empty() => tag.to_string(),
        Some(tag) => show::with_platform(tag, platform),
        None => show::image_name(&image.to_string()),
    };
    images.map(name).collect()
}

/// The default store, as in `cowl`.
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
    if text.is_empty() {
        return Ok(());
    }
    cowl_sys::stdio::check_output().context("standard output")?;
    match anstream::stdout().write_all(text.as_bytes()) {
        // A closed pipe is not an error.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output"),
    }
}

fn diff(arguments: &Arguments, collection: &Collection, stores: &[Store]) -> Result<Vec<String>> {
    let sizes = sizes(arguments);
    let given: Vec<String> = arguments.images.iter().map(shown).collect();
    let comparison = Comparison::new(collection, stores, &given, sizes)?;
    let text = if arguments.json {
        json(&comparison)?
    } else {
        comparison.text(terminal_width())
    };
    print(&text)?;
    let conditions = arguments.fail_if.iter();
    let failures = conditions.filter_map(|condition| condition.failure(&comparison));
    Ok(failures.chain(comparison.damage.clone()).collect())
}

fn sizes(arguments: &Arguments) -> Sizes {
    if arguments.bytes {
        Sizes::Exact
    } else {
        Sizes::Human
    }
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value).context("the report as JSON")?;
    Ok(printable_json(&text) + "\n")
}

/// Formats one table of the report.
type List = fn(&Report, Layout) -> String;

fn tables(arguments: &Arguments, report: &Report) -> String {
    let layout = Layout {
        sizes: sizes(arguments),
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

/// Columns of the terminal on standard output, if it is one; 80 if its size is unknown.
fn terminal_width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&stdout);
    let columns = size.map_or(0, |size| size.ws_col);
    Some(if columns > 0 { columns.into() } else { 80 })
}

/// The object files of the shared contents.
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
