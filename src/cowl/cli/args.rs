//! The command line as clap parses it; the commands interpret the options.

use super::check::Check;
use super::container::args::{
    Attach, Cp, Create, Exec, InspectAny, InspectContainer, InspectImage, Kill, Logs, Names, Port,
    Ps, Rename, Rm, Run, Start, Stats, Stop, Top, Update,
};
use super::events::Events;
use super::gc::Gc;
use super::image_group::{Image, ImagePrune};
use super::prune::Prune;
use super::refused;
use super::system::System;
use super::volume::Volume;
use crate::engine::run;
use clap::builder::{ArgAction, OsStringValueParser, TypedValueParser};
use clap::{
    Arg, Args, Command as Definition, CommandFactory, FromArgMatches, Parser, Subcommand,
    value_parser,
};
use cowl_core::handover::{IdKind, IdMap, IoModeChoice, NoIdMapping};
use cowl_core::image::is_named_as_archive;
use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Run containers over content-addressed, deduplicated layers
#[derive(Debug, Parser)]
#[command(
    name = "cowl",
    version,
    disable_version_flag = true,
    arg = version_option(),
    arg_required_else_help = true,
    args_override_self = true,
    max_term_width = 110,
    after_help = "`cowl NAME` runs the program cowl-NAME for any other NAME. `cowl dedup` shows what images share, in bytes; `cowl layers IMAGE`, `cowl diff IMAGE IMAGE` and `cowl tree FILE` are options of it."
)]
pub(super) struct Cli<C: Subcommand = Command> {
    /// Directory of the store [default: $COWL_ROOT; else /var/lib/cowl for root,
    /// $XDG_DATA_HOME/cowl or ~/.local/share/cowl for anyone else]
    #[arg(long, global = true, value_name = "DIR", display_order = 100)]
    pub(super) root: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: C,
}

/// A path that may be empty, as in Docker: [`given`] and the commands define what that means.
pub(super) fn any_path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Checks a label, `NAME[=VALUE]` (docker/cli, `opts/opts.go`).
pub(super) fn label(text: &str) -> Result<String, String> {
    let blank = [' ', '\t'];
    let name = text.split_once('=').map_or(text, |(name, _)| name);
    let name = name.trim_start_matches(blank);
    if name.is_empty() {
        return Err(format!("invalid label '{text}': empty name"));
    }
    if name.contains(blank) {
        return Err(format!("label '{name}' contains whitespaces"));
    }
    Ok(text.to_owned())
}

/// Checks a filter, `KEY=VALUE`. As in Docker, an empty one counts as absent.
pub(super) fn filter(text: &str) -> Result<String, String> {
    if !text.is_empty() && !text.contains('=') {
        return Err("bad format of filter (expected name=value)".to_owned());
    }
    Ok(text.to_owned())
}

/// The value of an option; as in Docker, an empty one counts as absent.
pub(super) fn given<T: AsRef<OsStr> + ?Sized>(value: &T) -> Option<&T> {
    (!value.as_ref().is_empty()).then_some(value)
}

/// `--version` with Docker's short form `-v` and clap's `-V`.
fn version_option() -> Arg {
    Arg::new("version")
        .short('v')
        .short_alias('V')
        .long("version")
        .help("Print version information and quit")
        .action(ArgAction::Version)
        .display_order(101)
}

/// The command line. As in Docker, an option that takes a value takes the next word even if it
/// begins with a hyphen: `-m -5` is an invalid size, not an unknown option `-5`.
pub(super) fn definition() -> Definition {
    with_hyphen_values(<Cli>::command())
}

fn with_hyphen_values(definition: Definition) -> Definition {
    definition
        .mut_args(|arg| {
            if arg.get_action().takes_values()
                && !arg.is_positional()
                && !arg.is_require_equals_set()
            {
                arg.allow_hyphen_values(true)
            } else {
                arg
            }
        })
        .mut_subcommands(with_hyphen_values)
}

/// What the arguments mean, if they are a [`Frequent`] command without a fault. `None` leaves them
/// to the whole definition, which also has the messages and the help.
pub(super) fn frequent(arguments: &[OsString]) -> Option<Cli> {
    let word = match arguments {
        [_, root, _, word, ..] if root == "--root" => word,
        [_, word, ..] => word,
        _ => return None,
    };
    if !Frequent::has_subcommand(word.to_str()?) {
        return None;
    }
    let definition = with_hyphen_values(Cli::<Frequent>::command());
    let matches = definition.try_get_matches_from(arguments).ok()?;
    let Cli { root, command } = Cli::<Frequent>::from_arg_matches(&matches).ok()?;
    let command = command.into();
    Some(Cli { root, command })
}

/// The same command line with an optional value for every switch (`--rm=false`), as in Docker.
///
/// Help uses the plain definition, which shows switches without values.
pub(super) fn with_switch_values(definition: Definition) -> Definition {
    definition
        .mut_args(|arg| match arg.get_action() {
            ArgAction::SetTrue => arg
                .action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .default_value("false")
                .default_missing_value("true")
                .value_name("BOOL")
                .value_parser(parse_switch),
            _ => arg,
        })
        .mut_subcommands(with_switch_values)
}

/// The spellings of Go's `strconv.ParseBool`.
fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("use true or false".to_owned()),
    }
}

/// The commands that programs start again and again. Their options alone are defined in a fifth of
/// the time that those of all commands take.
#[derive(Debug, Subcommand)]
enum Frequent {
    #[command(disable_help_flag = true)]
    Run(Box<Run>),
    Exec(Exec),
    #[command(name = run::FINISH)]
    Finish {
        id: String,
    },
    #[command(name = run::HEALTH)]
    Health {
        id: String,
        word: String,
    },
}

impl From<Frequent> for Command {
    fn from(command: Frequent) -> Self {
        match command {
            Frequent::Run(args) => Self::Run(args),
            Frequent::Exec(args) => Self::Exec(args),
            Frequent::Finish { id } => Self::Finish { id },
            Frequent::Health { id, word } => Self::Health { id, word },
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Load images from a tar archive (`docker save` or OCI layout), a directory or STDIN
    Load(Load),
    /// Save one or more images to a tar archive (streamed to STDOUT by default)
    Save(Save),
    /// Import the contents of a root file system's tarball to create an image
    Import(Import),
    /// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
    Tag(Tag),
    /// Inspect changes to files or directories on a container's filesystem, or between two images
    Diff(Diff),
    /// Create a new image from a container's changes
    Commit(Commit),
    /// Export the files of a container or an image as a tar archive
    Export(Export),
    /// Unpack the files of an image into an empty directory
    Unpack(Unpack),
    /// List images
    Images(Images),
    /// Show the history of an image
    History(History),
    /// Remove one or more images
    Rmi(Rmi),
    /// Display information about the store and the host
    Info(Info),
    /// Get events of containers, images and volumes as they happen
    Events(Events),
    /// Check the store for damage
    Check(Check),
    /// Free what no image, container or mount needs
    Gc(Gc),
    /// Mount an image on a directory
    Mount(Mount),
    /// Unmount an image
    #[command(visible_alias = "unmount")]
    Umount(Umount),
    /// Create and run a new container from an image
    #[command(disable_help_flag = true)]
    Run(Box<Run>),
    /// Create a new container
    #[command(disable_help_flag = true)]
    Create(Box<Create>),
    /// List containers
    Ps(Ps),
    /// Remove one or more containers
    Rm(Rm),
    /// Rename a container
    Rename(Rename),
    /// Update configuration of one or more containers
    Update(Update),
    /// Return low-level information on containers, images and volumes
    Inspect(InspectAny),
    /// Attach local standard input, output, and error streams to a running container
    Attach(Attach),
    /// Execute a command in a running container
    Exec(Exec),
    /// Kill one or more running containers
    Kill(Kill),
    /// Fetch the logs of a container
    Logs(Logs),
    /// Pause all processes within one or more containers
    Pause(Names),
    /// Restart one or more containers
    Restart(Stop),
    /// Start one or more stopped containers
    Start(Start),
    /// Stop one or more running containers
    Stop(Stop),
    /// Copy files/folders between a container and the local filesystem
    Cp(Cp),
    /// Display a live stream of container(s) resource usage statistics
    Stats(Stats),
    /// List port mappings for the container
    Port(Port),
    /// Display the running processes of a container
    Top(Top),
    /// Unpause all processes within one or more containers
    Unpause(Names),
    /// Block until one or more containers stop, then print their exit codes
    Wait(Names),
    /// Handle the end of a container (run by its monitor)
    #[command(name = run::FINISH, hide = true)]
    Finish { id: String },
    /// Record a change of a container's health (run by its monitor)
    #[command(name = run::HEALTH, hide = true)]
    Health { id: String, word: String },
    /// Manage containers
    #[command(subcommand, next_display_order = None, disable_help_subcommand = true)]
    Container(Container),
    /// `cowl container inspect`
    #[command(skip)]
    ContainerInspect(InspectContainer),
    /// Manage images
    #[command(subcommand, next_display_order = None, disable_help_subcommand = true)]
    Image(Image),
    /// Manage cowl
    #[command(subcommand, next_display_order = None, disable_help_subcommand = true)]
    System(System),
    /// Manage volumes
    #[command(subcommand, next_display_order = None, disable_help_subcommand = true)]
    Volume(Volume),
    /// `cowl container prune`
    #[command(skip)]
    ContainerPrune(Prune),
    /// `cowl image inspect`
    #[command(skip)]
    ImageInspect(InspectImage),
    /// `cowl image prune`
    #[command(skip)]
    ImagePrune(ImagePrune),
    /// Answer Docker's clients: the Docker Engine API on a unix socket
    Serve(Serve),
    /// Show the version information
    Version(Version),
    /// `cowl NAME` runs the program `cowl-NAME`
    #[command(external_subcommand)]
    External(Vec<OsString>),
}

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Socket to listen on [default: unix:///run/cowl/cowl.sock for root, else below
    /// $XDG_RUNTIME_DIR]
    #[arg(short = 'H', long, value_name = "unix:///PATH")]
    pub(super) host: Vec<String>,
    /// Group that may use the socket
    #[arg(short = 'G', long, value_name = "NAME")]
    pub(super) group: Option<String>,
    /// Configuration file, with dockerd's keys [default: /etc/cowl/daemon.json, if it exists]
    #[arg(long, value_name = "FILE")]
    pub(super) config_file: Option<PathBuf>,
    /// Storage driver; there is one, cowl
    #[arg(short = 's', long, value_name = "NAME")]
    pub(super) storage_driver: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Load {
    /// Read from a tar archive or an OCI directory, instead of STDIN
    #[arg(short, long, value_name = "FILE", value_parser = any_path())]
    pub(super) input: Option<PathBuf>,
    /// Load only the images for these platforms, separated by commas
    #[arg(long, value_name = "OS/ARCHITECTURE[/VARIANT]", value_delimiter = ',')]
    pub(super) platform: Vec<String>,
    /// Suppress the load output
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Hash the layers that the store already has, and repair damaged ones
    #[arg(long)]
    pub(super) verify: bool,
}

#[derive(Debug, Args)]
pub(super) struct Save {
    /// Write to a file, instead of STDOUT
    #[arg(short, long, value_name = "FILE", value_parser = any_path())]
    pub(super) output: Option<PathBuf>,
    /// Save only the images for this platform
    #[arg(long, value_name = "OS/ARCHITECTURE[/VARIANT]")]
    pub(super) platform: Option<String>,
    /// Names of images, IDs or prefixes of IDs; a name without a tag means all its tags
    #[arg(required = true, value_name = "IMAGE")]
    pub(super) images: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Import {
    /// The tar, plain, gzip, bzip2, xz or zstd; - is standard input
    #[arg(value_parser = any_path())]
    pub(super) file: PathBuf,
    /// Name of the image; without one it has only its ID
    #[arg(value_name = "NAME[:TAG]")]
    pub(super) name: Option<String>,
    /// Apply a Dockerfile instruction to the configuration
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub(super) change: Vec<String>,
    /// Message for the history of the image
    #[arg(
        short,
        long,
        value_name = "MESSAGE",
        default_value = "",
        hide_default_value = true
    )]
    pub(super) message: String,
    /// The platform that the image is for, instead of this host's
    #[arg(long, value_name = "OS/ARCHITECTURE[/VARIANT]")]
    pub(super) platform: Option<String>,
    /// Suppress the progress output
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Hash the files that the store already has, and repair damaged ones
    #[arg(long)]
    pub(super) verify: bool,
}

#[derive(Debug, Args)]
pub(super) struct Tag {
    /// Name of the image, its ID or a prefix of its ID
    #[arg(value_name = "SOURCE_IMAGE[:TAG]")]
    pub(super) source: String,
    /// The name to give it
    #[arg(value_name = "TARGET_IMAGE[:TAG]")]
    pub(super) target: String,
}

/// The end of the help of `cowl diff`.
const DIFF_HELP: &str = "\
Lines are `A PATH` for what is new, `D PATH` for what is gone, and `C PATH` for
what changed. Of two images, what only B has is new, what only A has is gone;
behind a changed name is what of it differs: type, mode, owner, device, content,
target or xattr, but not times. A table of packages follows: those of dpkg, apk
and rpm whose versions differ. docs/dedup.md has the fields of --json.

Exit codes: 0; 1 for an error, wrong arguments or a --fail-if that holds;
125 for a wrong option.

Examples:
  cowl diff web
  cowl diff --upper changes shop
  cowl diff shop:1 shop:2
  cowl diff shop ./shop.tar --json --fail-if 'packages>0'";

#[derive(Debug, Args)]
#[command(
    override_usage = "cowl diff [OPTIONS] CONTAINER\n       cowl diff [OPTIONS] --upper DIR IMAGE\n       cowl diff [OPTIONS] A B\n       cowl diff [OPTIONS] ARCHIVE",
    after_help = DIFF_HELP
)]
pub(super) struct Diff {
    /// Name of a container, its ID or a prefix of its ID; with --upper, of the image that it
    /// was mounted over; before B, an image
    #[arg(value_name = "CONTAINER|IMAGE|A")]
    pub(super) container: OsString,
    /// The image to compare A with. Each is a name or an id of the store, or an ARCHIVE that need
    /// not be imported: what `docker save`, `skopeo copy` and `cowl save` write, a tar or the
    /// directory of an OCI layout, by a path that begins with /, ./ or ../, or a file that ends in
    /// .tar, .tar.gz and the like; - is standard input. ARCHIVE:IMAGE (`./all.tar:shop:1`) is one
    /// image of it, by name, tag or id; of a name for several platforms, `shop:1 (linux/arm64)` is
    /// one. An archive of two images is enough alone
    #[arg(value_name = "B", conflicts_with = "upper")]
    pub(super) other: Option<OsString>,
    /// Of two images: print JSON
    #[arg(long, conflicts_with_all = ["upper", "bytes"])]
    pub(super) json: bool,
    /// Of two images: print whole bytes instead of sizes such as 1.98MB
    #[arg(long, conflicts_with = "upper")]
    pub(super) bytes: bool,
    /// Of two images: exit with 1 if this holds: FIGURE>NUMBER, or with >=, < or <=, where FIGURE
    /// is files, added, changed, removed or packages
    #[arg(long, value_name = "CONDITION", conflicts_with = "upper")]
    pub(super) fail_if: Vec<OsString>,
    /// Changes in an upper directory of `cowl mount`
    #[arg(long, value_name = "DIR")]
    pub(super) upper: Option<PathBuf>,
    /// Work directory of the upper [default: UPPER.work]
    #[arg(long, value_name = "DIR", requires = "upper")]
    pub(super) work: Option<PathBuf>,
}

impl Diff {
    /// The container's name. One that is not UTF-8 can only be a path.
    pub(super) fn name(&self) -> Cow<'_, str> {
        self.container.to_string_lossy()
    }

    /// Whether it compares two images: also for one argument that can only be an archive, not a
    /// container's name.
    pub(super) fn is_of_images(&self) -> bool {
        let first = self.container.as_bytes();
        let is_path = ["-", ".", ".."].iter().any(|path| first == path.as_bytes())
            || ["/", "./", "../"]
                .iter()
                .any(|start| first.starts_with(start.as_bytes()));
        self.other.is_some() || (is_path && self.upper.is_none())
    }

    /// Whether the argument may be an archive of two images, if no container has that name. A colon
    /// separates an image in the archive, as in `cowl dedup`.
    pub(super) fn may_be_archive(&self) -> bool {
        let name = self.container.as_bytes();
        let ends = (0..name.len()).filter(|at| name.get(*at) == Some(&b':'));
        let mut paths = ends.chain([name.len()]).filter_map(|at| name.get(..at));
        let is_file = |path: &[u8]| {
            is_named_as_archive(&String::from_utf8_lossy(path)) && rustix::fs::lstat(path).is_ok()
        };
        self.upper.is_none() && paths.any(is_file)
    }
}

#[derive(Debug, Args)]
pub(super) struct Commit {
    /// Author
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub(super) author: String,
    /// Commit message
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub(super) message: String,
    /// Apply a Dockerfile instruction to the image, such as `ENV NAME=VALUE`
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub(super) change: Vec<String>,
    /// Pause container during commit
    #[arg(short, long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(super) pause: bool,
    /// Changes in an upper directory of `cowl mount`, instead of a container's
    #[arg(long, value_name = "DIR")]
    pub(super) upper: Option<PathBuf>,
    /// Work directory of the upper [default: UPPER.work]
    #[arg(long, value_name = "DIR", requires = "upper")]
    pub(super) work: Option<PathBuf>,
    /// Name of a container, its ID or a prefix of its ID; with --upper, of the image that it
    /// was mounted over
    pub(super) container: String,
    /// Name of the new image
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub(super) name: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    /// Write to a file, instead of STDOUT
    #[arg(short, long, value_name = "FILE", value_parser = any_path())]
    pub(super) output: Option<PathBuf>,
    /// Name of a container or an image, its ID or a prefix of its ID
    #[arg(value_name = "CONTAINER|IMAGE")]
    pub(super) source: String,
}

#[derive(Debug, Args)]
pub(super) struct Unpack {
    /// Name of the image, its ID or a prefix of its ID
    pub(super) image: String,
    /// An empty directory, created if missing
    pub(super) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Images {
    /// Only images of this repository or with this name and tag
    #[arg(value_name = "NAME[:TAG]")]
    pub(super) name: Option<String>,
    /// Only display IDs
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Don't truncate output
    #[arg(long)]
    pub(super) no_trunc: bool,
    /// Show all images; there are no intermediate ones that are hidden without
    #[arg(short, long)]
    pub(super) all: bool,
    /// Show digests
    #[arg(long)]
    pub(super) digests: bool,
    /// Only images that match: before, dangling, label, reference or since
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter)]
    pub(super) filter: Vec<String>,
    /// Format output: table, json, or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub(super) format: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) refused: refused::OfImages,
}

#[derive(Debug, Args)]
pub(super) struct History {
    /// Name of the image, its ID or a prefix of its ID
    pub(super) image: String,
    /// Only display IDs
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Don't truncate output
    #[arg(long)]
    pub(super) no_trunc: bool,
    /// Format output: table, json, or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub(super) format: Option<String>,
    /// Print sizes and dates in human readable format
    #[arg(short = 'H', long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(super) human: bool,
    /// Show history for the given platform
    #[arg(long, value_name = "OS/ARCHITECTURE[/VARIANT]")]
    pub(super) platform: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Rmi {
    /// Name to remove, or ID (or a prefix of one) of an image to remove with all its names
    #[arg(required = true, value_name = "IMAGE")]
    pub(super) images: Vec<String>,
    /// Force the removal of an image that has several names or that a stopped container uses
    #[arg(short, long)]
    pub(super) force: bool,
    #[command(flatten)]
    pub(in crate::cli) refused: refused::OfRmi,
}

#[derive(Debug, Args)]
pub(super) struct Info {
    /// Format output: json or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    pub(super) format: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Version {
    /// Format output: json or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    pub(super) format: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Mount {
    /// Name of the image, its ID or a prefix of its ID
    pub(super) image: String,
    /// Mount point: an existing directory
    pub(super) dir: PathBuf,
    /// Upper directory for changes, created if missing [default: mount read-only]
    #[arg(long, value_name = "DIR")]
    pub(super) upper: Option<PathBuf>,
    /// Work directory, on the same file system as the upper [default: UPPER.work]
    #[arg(long, value_name = "DIR", requires = "upper")]
    pub(super) work: Option<PathBuf>,
    /// How files are read and written: auto, cached, passthrough or writeback
    #[arg(long, value_name = "MODE", default_value_t, hide_default_value = true)]
    pub(super) io: IoModeChoice,
    #[command(flatten)]
    pub(super) owners: Owners,
}

/// How a mount shows the owners of files.
#[derive(Debug, Args)]
pub(super) struct Owners {
    /// Show users by ranges: those of files from FILE on as those from SHOWN on, and new files the
    /// other way round; no file is copied or changed
    #[arg(long, value_name = "FILE:SHOWN:LENGTH[:...]", value_parser = mapping)]
    pub(super) uidmapping: Option<String>,
    /// The same for groups
    #[arg(long, value_name = "FILE:SHOWN:LENGTH[:...]", value_parser = mapping)]
    pub(super) gidmapping: Option<String>,
    /// Show all files as this user's
    #[arg(long, value_name = "UID", value_parser = value_parser!(u32).range(..=MAX_ID))]
    pub(super) squash_to_uid: Option<u32>,
    /// Show all files as this group's
    #[arg(long, value_name = "GID", value_parser = value_parser!(u32).range(..=MAX_ID))]
    pub(super) squash_to_gid: Option<u32>,
    /// Show all files as root's
    #[arg(long)]
    pub(super) squash_to_root: bool,
}

/// Validates a mapping of ids.
fn mapping(text: &str) -> Result<String, NoIdMapping> {
    IdMap::default().map(IdKind::User, text)?;
    Ok(text.to_owned())
}

/// The last valid id: -1 means "unchanged" (chown(2)).
const MAX_ID: i64 = u32::MAX as i64 - 1;

#[derive(Debug, Args)]
pub(super) struct Umount {
    /// Mount point
    pub(super) dir: PathBuf,
}

/// The commands of `cowl container`, most of which exist without `container` too.
#[derive(Debug, Subcommand)]
pub(super) enum Container {
    /// Create a new container
    #[command(disable_help_flag = true)]
    Create(Box<Create>),
    /// Return low-level information on containers
    Inspect(InspectContainer),
    /// List containers
    #[command(visible_aliases = ["list", "ps"])]
    Ls(Ps),
    /// Attach local standard input, output, and error streams to a running container
    Attach(Attach),
    /// Execute a command in a running container
    Exec(Exec),
    /// Kill one or more running containers
    Kill(Kill),
    /// Fetch the logs of a container
    Logs(Logs),
    /// Pause all processes within one or more containers
    Pause(Names),
    /// Restart one or more containers
    Restart(Stop),
    /// Start one or more stopped containers
    Start(Start),
    /// Stop one or more running containers
    Stop(Stop),
    /// Create a new image from a container's changes
    Commit(Commit),
    /// Copy files/folders between a container and the local filesystem
    Cp(Cp),
    /// Inspect changes to files or directories on a container's filesystem
    Diff(Diff),
    /// Export the files of a container as a tar archive
    Export(Export),
    /// Display a live stream of container(s) resource usage statistics
    Stats(Stats),
    /// List port mappings for the container
    Port(Port),
    /// Display the running processes of a container
    Top(Top),
    /// Unpause all processes within one or more containers
    Unpause(Names),
    /// Block until one or more containers stop, then print their exit codes
    Wait(Names),
    /// Remove all stopped containers
    Prune(Prune),
    /// Rename a container
    Rename(Rename),
    /// Update configuration of one or more containers
    Update(Update),
    /// Remove one or more containers
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Create and run a new container from an image
    #[command(disable_help_flag = true)]
    Run(Box<Run>),
}

impl From<Container> for Command {
    fn from(command: Container) -> Self {
        match command {
            Container::Create(args) => Self::Create(args),
            Container::Attach(args) => Self::Attach(args),
            Container::Exec(args) => Self::Exec(args),
            Container::Kill(args) => Self::Kill(args),
            Container::Logs(args) => Self::Logs(args),
            Container::Pause(args) => Self::Pause(args),
            Container::Restart(args) => Self::Restart(args),
            Container::Start(args) => Self::Start(args),
            Container::Stop(args) => Self::Stop(args),
            Container::Commit(args) => Self::Commit(args),
            Container::Cp(args) => Self::Cp(args),
            Container::Diff(args) => Self::Diff(args),
            Container::Export(args) => Self::Export(args),
            Container::Stats(args) => Self::Stats(args),
            Container::Port(args) => Self::Port(args),
            Container::Top(args) => Self::Top(args),
            Container::Unpause(args) => Self::Unpause(args),
            Container::Wait(args) => Self::Wait(args),
            Container::Inspect(args) => Self::ContainerInspect(args),
            Container::Ls(args) => Self::Ps(args),
            Container::Prune(args) => Self::ContainerPrune(args),
            Container::Rename(args) => Self::Rename(args),
            Container::Update(args) => Self::Update(args),
            Container::Rm(args) => Self::Rm(args),
            Container::Run(args) => Self::Run(args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::{ContextKind, ContextValue, ErrorKind};

    /// The options that take a value, of a command and its subcommands, each with its command line.
    fn options(definition: &Definition, words: &[String], found: &mut Vec<Vec<String>>) {
        for arg in definition
            .get_arguments()
            .filter(|arg| !arg.is_positional())
        {
            if !arg.get_action().takes_values() || arg.is_require_equals_set() {
                continue;
            }
            let long = arg.get_long().map(|name| format!("--{name}"));
            let short = arg.get_short().map(|letter| format!("-{letter}"));
            for option in long.into_iter().chain(short) {
                found.push([words, &[option]].concat());
            }
        }
        for command in definition.get_subcommands() {
            options(
                command,
                &[words, &[command.get_name().to_owned()]].concat(),
                found,
            );
        }
    }

    #[test]
    fn a_frequent_command_has_the_options_of_the_whole_definition() {
        let (mut whole, mut frequent) = (definition(), Cli::<Frequent>::command());
        frequent = with_hyphen_values(frequent);
        whole.build();
        frequent.build();
        let options = |definition: &Definition| -> Vec<_> {
            let options = definition.get_arguments();
            options.map(|option| format!("{option:?}")).collect()
        };
        assert_eq!(options(&frequent), options(&whole));
        for command in frequent.get_subcommands() {
            let name = command.get_name();
            let same = whole.find_subcommand(name).unwrap();
            if name != "help" {
                assert_eq!(options(command), options(same), "{name}");
            }
        }
    }

    #[test]
    fn a_frequent_command_means_what_it_means_to_the_whole_definition() {
        for line in [
            "cowl run --rm -m -5 box sh -c true",
            "cowl run -it --rm -e A=-1 --name n -v /a:/b:ro box",
            "cowl run --rm -m 6m -e A=-1 box sh -c true --rm",
            "cowl --root /s run --root /t --sig-proxy=false box --help",
            "cowl run --name a --name b box",
            "cowl exec -it -w /x n sh -x",
            "cowl --root /s container-ended 0123",
            "cowl --root /s container-health 0123 healthy",
            "cowl run --help",
            "cowl run",
            "cowl run --rm=false box",
            "cowl exec --nope n sh",
            "cowl images",
            "cowl help run",
            "cowl",
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let matches = definition().try_get_matches_from(&words);
            let whole = matches.and_then(|matches| <Cli>::from_arg_matches(&matches));
            match (frequent(&words), whole) {
                (Some(frequent), Ok(whole)) => {
                    assert_eq!(format!("{frequent:?}"), format!("{whole:?}"), "{line}");
                }
                (Some(frequent), Err(error)) => panic!("{line}: {frequent:?}, but {error}"),
                (None, whole) => {
                    let left = whole.map_or(true, |cli| matches!(cli.command, Command::Images(_)));
                    assert!(left, "{line}");
                }
            }
        }
    }

    #[test]
    fn each_option_takes_a_value_that_begins_with_a_hyphen() {
        let mut all = Vec::new();
        options(&<Cli>::command(), &["cowl".to_owned()], &mut all);
        assert!(all.len() > 100, "{}", all.len());
        for words in all {
            let typed = words.iter().map(String::as_str).chain(["-5"]);
            let Err(error) = definition().try_get_matches_from(typed) else {
                continue;
            };
            let about = |kind, text: &str| match error.get(kind) {
                Some(ContextValue::String(about)) => about == text,
                _ => false,
            };
            let unknown =
                error.kind() == ErrorKind::UnknownArgument && about(ContextKind::InvalidArg, "-5");
            let missing =
                error.kind() == ErrorKind::InvalidValue && about(ContextKind::InvalidValue, "");
            assert!(!unknown && !missing, "{words:?}: {error}");
        }
    }
}
