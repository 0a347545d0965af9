//! The command line, as clap reads it. What an option means is decided where it is used.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// Runs containers over content-addressed, deduplicated layers.
#[derive(Debug, Parser)]
#[command(
    name = "cowl",
    version,
    arg_required_else_help = true,
    max_term_width = 110,
    after_help = "Any other NAME runs the program cowl-NAME. `cowl dedup` shows what images have in common, in bytes."
)]
pub(super) struct Cli {
    /// Directory of the store [default: $COWL_ROOT; else /var/lib/cowl for root, $XDG_DATA_HOME/cowl or
    /// ~/.local/share/cowl for anyone else]
    #[arg(long, global = true, value_name = "DIR", display_order = 100)]
    pub(super) root: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Load images from an archive of `docker save` or an OCI layout (file, directory or standard input)
    Load(Load),
    /// Make an image of one layer from a tar of a root file system
    Import(Import),
    /// List images
    Images(Images),
    /// Show how an image was made
    History(History),
    /// Remove images and free what only they used
    Rmi(Rmi),
    /// Show what the store holds and what the host can do
    Info,
    /// Check the store for damage
    Check(Check),
    /// Mount an image on a directory
    Mount(Mount),
    /// Take a mounted image away
    #[command(visible_alias = "unmount")]
    Umount(Umount),
    /// Run a command in a new container
    Run(Box<Run>),
    /// List containers
    Ps(Ps),
    /// Remove containers
    Rm(Rm),
    /// Make, list and remove volumes
    #[command(subcommand)]
    Volume(Volume),
    /// Show the version
    Version,
    /// Any other: `cowl NAME` runs the program `cowl-NAME`
    #[command(external_subcommand)]
    External(Vec<OsString>),
}

#[derive(Debug, Args)]
pub(super) struct Load {
    /// The archive or OCI directory [default: standard input]
    #[arg(short, long, value_name = "FILE")]
    pub(super) input: Option<PathBuf>,
    /// Print nothing
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Read and hash what the store has already, and repair what is damaged
    #[arg(long)]
    pub(super) verify: bool,
}

#[derive(Debug, Args)]
pub(super) struct Import {
    /// The tar, plain or gzip; - is standard input
    pub(super) file: PathBuf,
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]")]
    pub(super) name: String,
}

#[derive(Debug, Args)]
pub(super) struct Images {
    /// Only images of this repository, or this name and tag
    #[arg(value_name = "NAME[:TAG]")]
    pub(super) name: Option<String>,
    /// Only ids
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Don't shorten ids
    #[arg(long)]
    pub(super) no_trunc: bool,
    /// One JSON object a line
    #[arg(long, value_name = "json", value_parser = ["json"])]
    pub(super) format: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct History {
    /// Its name, or its id or the beginning of that
    pub(super) image: String,
    /// Only ids
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Don't shorten ids and commands
    #[arg(long)]
    pub(super) no_trunc: bool,
}

#[derive(Debug, Args)]
pub(super) struct Rmi {
    /// A name, which is taken away, or an id or the beginning of one: all names of that image
    #[arg(required = true, value_name = "IMAGE")]
    pub(super) images: Vec<String>,
    /// Also if a stopped container uses the image or it has several names
    #[arg(short, long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Hash every object and blob again
    #[arg(long)]
    pub(super) deep: bool,
}

#[derive(Debug, Args)]
pub(super) struct Mount {
    /// Its name, or its id or the beginning of that
    pub(super) image: String,
    /// Where; a directory that exists
    pub(super) dir: PathBuf,
    /// The upper, where changes go; made if it isn't there. Without it the mount is read-only
    #[arg(long, value_name = "DIR")]
    pub(super) upper: Option<PathBuf>,
    /// Work directory of the upper: beside it, on the same file system [default: UPPER.work]
    #[arg(long, value_name = "DIR", requires = "upper")]
    pub(super) work: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Umount {
    /// Where it is mounted
    pub(super) dir: PathBuf,
}

#[derive(Debug, Args)]
#[command(override_usage = "cowl run [OPTIONS] IMAGE [COMMAND] [ARG]...")]
pub(super) struct Run {
    /// Remove the container, with its anonymous volumes, when it ends
    #[arg(long)]
    pub(super) rm: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    /// Memory limit in bytes, or with a unit (b, k, m, g) in powers of 1024: 512m
    #[arg(short, long, value_name = "BYTES", value_parser = super::units::parse_memory)]
    pub(super) memory: Option<u64>,
    /// Set a variable, or pass on one of the caller's
    #[arg(short, long, value_name = "NAME[=VALUE]", allow_hyphen_values = true)]
    pub(super) env: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub(super) workdir: Option<String>,
    /// Name of the container
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Mount a volume or a directory of the host
    #[arg(short, long, value_name = "VOLUME:/DIR[:ro]")]
    pub(super) volume: Vec<String>,
    /// Run this instead of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    pub(super) entrypoint: Option<String>,
    /// User and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(super) user: Option<String>,
    /// Let the container make any system call, not only those of Docker's default profile
    #[arg(long, value_name = "OPTION", value_enum)]
    pub(super) security_opt: Vec<SecurityOpt>,
    /// The image, then the command; what follows the image belongs to the command
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"], num_args = 1..)]
    pub(super) image_and_command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum SecurityOpt {
    #[value(name = "seccomp=unconfined")]
    SeccompUnconfined,
}

#[derive(Debug, Args)]
pub(super) struct Ps {
    /// Also those that don't run
    #[arg(short, long)]
    pub(super) all: bool,
    /// Only ids
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Don't shorten ids and commands
    #[arg(long)]
    pub(super) no_trunc: bool,
}

#[derive(Debug, Args)]
pub(super) struct Rm {
    /// A name, or an id or the beginning of one
    #[arg(required = true, value_name = "CONTAINER")]
    pub(super) containers: Vec<String>,
    /// Kill a running container first
    #[arg(short, long)]
    pub(super) force: bool,
    /// Remove its anonymous volumes too
    #[arg(short, long)]
    pub(super) volumes: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Volume {
    /// List volumes
    Ls {
        /// Only names
        #[arg(short, long)]
        quiet: bool,
    },
    /// Make a volume
    Create {
        /// Its name [default: generated]
        name: Option<String>,
    },
    /// Show volumes as JSON
    Inspect {
        /// Names of volumes
        #[arg(required = true, value_name = "VOLUME")]
        names: Vec<String>,
    },
    /// Remove volumes
    Rm {
        /// Names of volumes that no container uses
        #[arg(required = true, value_name = "VOLUME")]
        names: Vec<String>,
        /// One that isn't there is fine
        #[arg(short, long)]
        force: bool,
    },
}
