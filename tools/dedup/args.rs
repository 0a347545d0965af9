//! The command lines of this program's commands: `cowl dedup`, `layers`, `diff` and `tree`. The
//! last three are options of `cowl-dedup`, with a help of their own.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, CommandFactory, FromArgMatches, Parser};

use crate::condition::Condition;
use crate::{FAILURE, USAGE, archive};

/// Help for the arguments of all commands but `tree`.
const IMAGES: &str = "IMAGE is a name (`shop`, `shop:1`) or an id (its beginning is enough) of an image in the \
    store, as `cowl images` lists it. ARCHIVE is what `docker save`, `skopeo copy` and `cowl save` write: a tar, or the \
    directory of an OCI layout. It need not be imported. It is a path that begins with /, ./ or ../, or . or .., or a \
    file that ends in .tar, .tar.gz and the like; - is standard input. ARCHIVE:IMAGE (`./all.tar:shop:1`) is one image \
    of it, by name, tag or id; of - it is all, of /dev/stdin:IMAGE one. Of a name for several platforms, \
    `shop:1 (linux/arm64)` is one";

/// The error for `-:shop:1`.
const INPUT_IS_WHOLE: &str = "standard input is read for all of its images: give -, or for one of them \
    /dev/stdin:IMAGE";

const EXIT_CODES: &str = "Exit codes: 0; 1 for an error, wrong arguments or a --fail-if that holds;\n125 for a wrong option.\n";

/// The end of the help of `cowl dedup`: the definition of each column.
const OF_REPORT: &str = "\
Columns:
  LOGICAL    contents of all files in all layers, hidden files and duplicates too
  VISIBLE    contents of all files that the image shows; hard links once
  STORED     the image's distinct contents: objects in the store
  EXCLUSIVE  of those: in no other image of the store
  SHARED     of those: in other images too; STORED = EXCLUSIVE + SHARED
  FAIR       each content's size divided by the number of images that hold it;
             over all images of the store this sums to what they keep
  WASTE      what a store of layers keeps needlessly, as a share of LOGICAL

Columns of the lists:
  BELOW      distinct contents of the layer that lower layers of the image have
  ELSEWHERE  distinct contents of the layer that another layer of the store has
  LAYER      the layer that holds the wasted bytes; LARGEST, the largest file
  STEP       the command that made the layer; of waste, the one that caused it
  JACCARD    the common bytes divided by those of the union of both images
  MISSED     what sharing by layer keeps more than once: (LAYERS - 1) x SIZE
  FREED      what removing the image, or another base, frees; what a container,
             a mount or another image holds stays
  INDEX      40 bytes for each chunk, its digest and offset; part of SUM
  OF LAYERS  SUM as a share of that of layers

Examples:
  cowl dedup                                  every image of the store
  cowl dedup shop ./blog.tar --layers --waste an image, an archive, more tables
  cowl dedup ./app.tar --fail-if 'waste>5%'   in CI

";

const OF_LAYERS: &str = "\
Columns:
  SIZE       contents of all files of the layer; hard links once
  ADDED      names that are new; no column counts directories
  CHANGED    names that lower layers have too
  DELETED    names that whiteouts, opaque directories or other files remove
  ELSEWHERE  distinct contents of the layer that another layer of the store has
  WASTE      bytes that the image does not need: of the layer, what later layers
             replace or delete and what duplicates visible files; and below it,
             what it repeats with the same content
  STEP       the command that made it

Example:
  cowl layers shop ./blog.tar --fail-if 'waste>5%'

";

const OF_DIFF: &str = "\
Lines are `A PATH` for what only B has, `D PATH` for what only A has, and
`C PATH  (WHAT, ...)` for what differs: type, mode, owner, device, content,
target or xattr. Times do not count. A table of packages follows: those of dpkg,
apk and rpm whose versions differ.

Examples:
  cowl diff shop:1 shop:2
  cowl diff shop ./shop.tar --json --fail-if 'packages>0'

";

const OF_TREE: &str = "\
Prints a line for the index, then one for each name: its node's number, mode,
owner, size, path, and the content's id, a link's target, a count of links,
xattrs or marks. A damaged index is refused.

Example:
  cowl tree /var/lib/cowl/layers/2bf0...a278/tree

Exit codes: 0; 1 for an error or wrong arguments; 125 for a wrong option.
";

const DETAILS: &str = "docs/dedup.md defines every figure and every field.";

/// The command that the program is run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Report,
    Layers,
    Diff,
    Tree,
}

/// The modes that are options.
const OPTIONS: [(&str, Mode); 3] = [
    ("--only-layers", Mode::Layers),
    ("--diff", Mode::Diff),
    ("--tree", Mode::Tree),
];

impl Mode {
    /// Selected by the first mode option; parsing refuses a second one.
    pub(crate) fn of(words: &[OsString]) -> Self {
        let options = words.iter().skip(1).take_while(|word| *word != "--");
        let mut modes = options.filter_map(|word| {
            let is_it = |(option, _): &&(&str, Self)| word == *option;
            OPTIONS.iter().find(is_it).map(|(_, mode)| *mode)
        });
        modes.next().unwrap_or(Self::Report)
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Report => "cowl dedup",
            Self::Layers => "cowl layers",
            Self::Diff => "cowl diff",
            Self::Tree => "cowl tree",
        }
    }

    /// Rewrites a message for the user, who may have typed a command instead of the option.
    fn in_words(self, what: &str) -> String {
        let option = OPTIONS.iter().find(|(_, mode)| *mode == self);
        option.map_or_else(
            || what.to_owned(),
            |(option, _)| what.replace(&format!("'{option}'"), &format!("'{}'", self.name())),
        )
    }

    /// The definition of the command line. Options that the mode does not use are refused and
    /// hidden.
    fn command(self) -> clap::Command {
        let (about, arguments, options, after): (_, _, &[&str], _) = match self {
            Self::Report => {
                let after = [OF_REPORT, EXIT_CODES, DETAILS].concat();
                let usage = "cowl dedup [OPTIONS] [IMAGE|ARCHIVE]...";
                return Arguments::command().override_usage(usage).after_help(after);
            }
            Self::Layers => (
                "Lists the layers of images, the lowest first: what each adds, changes, deletes and wastes",
                "[IMAGE|ARCHIVE]...",
                &["root", "json", "bytes", "all_rows", "fail_if", "images"],
                [OF_LAYERS, EXIT_CODES, DETAILS].concat(),
            ),
            Self::Diff => (
                "Compares two images: names, modes, owners, contents, packages",
                "A B",
                &["root", "json", "bytes", "fail_if", "images"],
                [OF_DIFF, EXIT_CODES, DETAILS].concat(),
            ),
            Self::Tree => (
                "Prints an index of the store name by name, for debugging",
                "FILE",
                &["images"],
                OF_TREE.to_owned(),
            ),
        };
        let usage = match self {
            Self::Tree => format!("{} {arguments}", self.name()),
            _ => format!("{} [OPTIONS] {arguments}", self.name()),
        };
        let of_mode = |argument: Arg| {
            let hidden = !options.contains(&argument.get_id().as_str());
            let argument = match (self, argument.get_id().as_str()) {
                (Self::Diff, "images") => argument.value_name("A B").help(format!(
                    "The images: each is an IMAGE or an ARCHIVE. {IMAGES}. One archive of two images is \
                     enough alone"
                )),
                (Self::Tree, "images") => argument
                    .value_name("FILE")
                    .action(ArgAction::Set)
                    .num_args(1)
                    .required(true)
                    .help("An index in the store: layers/*/tree, or a file of merged/"),
                (Self::Diff, "fail_if") => argument.help(
                    "Exit with 1 if this holds: FIGURE>NUMBER, or with >=, < or <=, where FIGURE is files, added, \
                     changed, removed or packages",
                ),
                (Self::Layers, "all_rows") => argument.help("Show whole commands"),
                _ => argument,
            };
            argument.hide(hidden)
        };
        Arguments::command()
            .override_usage(usage)
            .about(about)
            .after_help(after)
            .mut_args(of_mode)
    }

    /// Parses and checks a command line.
    pub(crate) fn parse(self, words: &[OsString]) -> Result<Arguments, clap::Error> {
        let mut command = self.command();
        let matches = command.try_get_matches_from_mut(words)?;
        let arguments = Arguments::from_arg_matches(&matches)?;
        if let Some(what) = self.wrong_images(&arguments.images) {
            return Err(command.error(ErrorKind::WrongNumberOfValues, what));
        }
        match self.wrong_options(&arguments, &matches) {
            Some(what) => Err(command.error(ErrorKind::ArgumentConflict, what)),
            None => Ok(arguments),
        }
    }

    /// Checks arguments beyond what clap checks.
    fn wrong_images(self, images: &[OsString]) -> Option<String> {
        let inputs = images.iter().filter(|image| *image == "-");
        if inputs.count() > 1 {
            return Some("standard input can be read only once".to_owned());
        }
        if images.iter().any(|image| archive::is_of_input(image)) {
            return Some(INPUT_IS_WHOLE.to_owned());
        }
        if self != Self::Diff {
            return None;
        }
        // A single archive may contain two images.
        let is_wrong = match images {
            [one] => archive::Named::of(one).is_none_or(|archive| archive.image.is_some()),
            images => images.len() != 2,
        };
        is_wrong.then(|| format!("give two images to compare, not {}", images.len()))
    }

    /// Checks options beyond what clap checks.
    fn wrong_options(self, arguments: &Arguments, matches: &ArgMatches) -> Option<String> {
        for condition in &arguments.fail_if {
            if let Err(what) = condition.suits(self == Self::Diff) {
                return Some(what);
            }
        }
        let is_root_given = matches.value_source("root") == Some(ValueSource::CommandLine);
        (self == Self::Tree && is_root_given)
            .then(|| "--root has no effect: FILE is a path".to_owned())
    }

    /// Formats a clap error as one line. For conflicts clap lists all options of a group; only
    /// those given are named.
    pub(crate) fn explain(self, error: &clap::Error, words: &[OsString]) -> String {
        if error.kind() == ErrorKind::ArgumentConflict
            && let Some(ContextValue::String(wrong)) = error.get(ContextKind::InvalidArg)
            && let Some(ContextValue::Strings(others)) = error.get(ContextKind::PriorArg)
        {
            // Without its placeholder: `--html <FILE>`.
            let option = |shown: &str| shown.split(' ').next().unwrap_or_default().to_owned();
            let is_typed = |option: &String| {
                let with_value = format!("{option}=");
                let mut words = words.iter().filter_map(|word| word.to_str());
                words.any(|word| word == option || word.starts_with(&with_value))
            };
            let others = others.iter().map(|other| option(other));
            let typed: Vec<String> = others.filter(is_typed).map(|o| format!("'{o}'")).collect();
            if !typed.is_empty() {
                let (wrong, others) = (option(wrong), typed.join(", "));
                return self.in_words(&format!("'{wrong}' cannot be used with {others}"));
            }
        }
        let is_unknown = error.kind() == ErrorKind::UnknownArgument;
        if is_unknown && words.iter().any(|word| archive::is_of_input(word)) {
            return INPUT_IS_WHOLE.to_owned();
        }
        let text = error.to_string();
        // The first paragraph may list arguments below its first line.
        let lines = text.lines().map(str::trim);
        let lines: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
        let what = lines.join(" ");
        self.in_words(what.trim_start_matches("error: "))
    }
}

/// The exit code of a wrong command line, as in `cowl`: missing or surplus arguments differ from
/// wrong options.
pub(crate) fn exit_code(error: &clap::Error) -> u8 {
    let is_option = || {
        let wrong = error.get(ContextKind::InvalidArg);
        // One of several is shown as `<--json|--ladder>`.
        let is_it =
            |wrong: &ContextValue| wrong.to_string().trim_start_matches('<').starts_with('-');
        wrong.is_some_and(is_it)
    };
    match error.kind() {
        ErrorKind::WrongNumberOfValues => FAILURE,
        ErrorKind::MissingRequiredArgument | ErrorKind::UnknownArgument if !is_option() => FAILURE,
        _ => USAGE,
    }
}

/// Shows what images hold and have in common: shared layers, and equal contents in layers of their
/// own.
#[derive(Debug, Parser)]
#[command(name = "cowl-dedup", version)]
#[command(group(ArgGroup::new("lists").multiple(true)))]
#[command(group(ArgGroup::new("report").multiple(true)))]
#[command(group(ArgGroup::new("measured").multiple(true)))]
pub(crate) struct Arguments {
    /// Directory of the store [default: $COWL_ROOT; else /var/lib/cowl for root,
    /// $XDG_DATA_HOME/cowl or ~/.local/share/cowl for anyone else]
    #[arg(long, value_name = "DIR", env = "COWL_ROOT", hide_env = true)]
    pub(crate) root: Option<PathBuf>,
    /// Print JSON, with every list, for programs
    #[arg(long, group = "measured", conflicts_with_all = ["objects", "lists", "bytes", "all_rows"])]
    pub(crate) json: bool,
    /// Print only the files of the contents that two or more of the images hold, one a line
    #[arg(long, conflicts_with_all = ["lists", "ladder", "bytes", "all_rows"])]
    pub(crate) objects: bool,
    /// Browse layers and files in the terminal
    #[arg(long, conflicts_with_all = ["json", "objects", "report", "bytes", "fail_if"])]
    pub(crate) tui: bool,
    /// Compare two images: files, modes, owners, contents, packages (`cowl diff A B`)
    #[arg(long, conflicts_with_all = ["objects", "tui", "report"])]
    pub(crate) diff: bool,
    /// Print the layers of each image and nothing else (`cowl layers IMAGE`)
    #[arg(long, conflicts_with_all = ["objects", "tui", "diff", "lists", "ladder", "no_ladder", "no_zstd", "html"])]
    pub(crate) only_layers: bool,
    /// Print an index file of the store, a layer's or a merged one, name by name (`cowl tree FILE`)
    #[arg(long, conflicts_with_all = ["json", "objects", "tui", "diff", "only_layers", "report", "bytes", "fail_if"])]
    pub(crate) tree: bool,
    /// Write the report as a page for a browser, too
    #[arg(long, value_name = "FILE", groups = ["report", "measured"], value_parser = page_path)]
    pub(crate) html: Option<PathBuf>,
    /// Print whole bytes instead of sizes such as 1.98MB
    #[arg(long)]
    pub(crate) bytes: bool,
    /// List what each layer adds, changes and deletes, and what of it exists elsewhere
    #[arg(long, groups = ["lists", "report"])]
    pub(crate) layers: bool,
    /// List the waste by cause, by LAYER, which holds the bytes, and by STEP, which caused it
    #[arg(long, groups = ["lists", "report"])]
    pub(crate) waste: bool,
    /// List what each two images have in common
    #[arg(long, groups = ["lists", "report"])]
    pub(crate) matrix: bool,
    /// List the largest files that several layers have, which sharing by layer keeps more than once
    #[arg(long, groups = ["lists", "report"])]
    pub(crate) duplicates: bool,
    /// Show what removing each image frees, and what another base would
    #[arg(long, groups = ["lists", "report"])]
    pub(crate) what_if: bool,
    /// Show what each granularity would store: layers, files, chunks of fixed size, and
    /// content-defined chunks. Reads every file of the images; part of --json and --html unless
    /// --no-ladder is given
    #[arg(long, groups = ["report", "measured"])]
    pub(crate) ladder: bool,
    /// Leave the ladder out
    #[arg(long, group = "report", conflicts_with = "ladder")]
    pub(crate) no_ladder: bool,
    /// Leave compressed sizes out of the ladder: it is read, cut and hashed, which is much faster
    #[arg(
        long,
        group = "report",
        conflicts_with = "no_ladder",
        requires = "measured"
    )]
    pub(crate) no_zstd: bool,
    /// Every list
    #[arg(long, groups = ["lists", "report", "measured"])]
    pub(crate) all: bool,
    /// Show every row of long lists
    #[arg(long, group = "report")]
    pub(crate) all_rows: bool,
    /// Exit with 1 if this holds for an image: FIGURE>LIMIT, or with >=, < or <=, where FIGURE is
    /// waste, overwritten, deleted, metadata, duplicate, exclusive, stored or logical, and LIMIT a
    /// size (10MB, 64KiB) or a share of the logical bytes (5%)
    #[arg(long, value_name = "CONDITION")]
    pub(crate) fail_if: Vec<Condition>,
    #[arg(value_name = "IMAGE|ARCHIVE", help = format!("{IMAGES}. Every image of the store if none is given"))]
    pub(crate) images: Vec<OsString>,
}

/// `-` cannot mean standard output, which has the tables.
fn page_path(path: &str) -> Result<PathBuf, String> {
    match path {
        "-" => Err("the page goes to a file; for a file of that name write ./-".to_owned()),
        _ => Ok(PathBuf::from(path)),
    }
}
