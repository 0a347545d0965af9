//! The common options of `run` and `create`, with Docker's names and short forms.

mod health;
mod isolation;
mod network;
mod resources;

use crate::cli::args::{any_path, label};
use crate::cli::refused;
use crate::cli::units::parse_memory;
use clap::Args;
use cowl_core::handover::IoModeChoice;
use cowl_core::image::{PlatformError, PlatformName};
use health::Health;
use isolation::Isolation;
use network::{Namespaces, Network};
pub(super) use resources::{ResourceOptions, UpdatableOptions};
use std::path::PathBuf;
use std::str::FromStr;

/// The common options and arguments of `run` and `create`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(in crate::cli) struct Options {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Automatically remove the container and its anonymous volumes when it exits
    #[arg(long)]
    pub(in crate::cli::container) rm: bool,
    /// Keep STDIN open
    #[arg(short, long)]
    pub(in crate::cli::container) interactive: bool,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    pub(in crate::cli::container) tty: bool,
    /// Set platform if server is multi-platform capable
    #[arg(
        long,
        value_name = "PLATFORM",
        default_value = "",
        hide_default_value = true
    )]
    pub(in crate::cli::container) platform: Platform,
    /// Pull image before running: missing, never; there is no pulling yet, so "always" is refused
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pub(in crate::cli::container) pull: String,
    /// Suppress the pull output
    #[arg(short, long)]
    pub(in crate::cli::container) quiet: bool,
    /// Attach to STDIN, STDOUT or STDERR
    #[arg(short, long, value_name = "STREAM")]
    pub(in crate::cli::container) attach: Vec<String>,
    /// Add an annotation to the container
    #[arg(long, value_name = "NAME=VALUE")]
    pub(in crate::cli::container) annotation: Vec<String>,
    /// Expose a port or a range of ports
    #[arg(long, value_name = "PORT[/PROTO]")]
    pub(in crate::cli::container) expose: Vec<String>,
    /// Storage driver options for the container: io=MODE
    #[arg(long, value_name = "NAME=VALUE")]
    pub(in crate::cli::container) storage_opt: Vec<String>,
    #[command(flatten)]
    pub(in crate::cli::container) refused: refused::OfCreate,
    /// Assign a name to the container
    #[arg(long)]
    pub(in crate::cli::container) name: Option<String>,
    /// Write the container ID to the file
    #[arg(long, value_name = "FILE", value_parser = any_path())]
    pub(in crate::cli::container) cidfile: Option<PathBuf>,
    /// Overwrite the ENTRYPOINT of the image
    #[arg(long, value_name = "PROGRAM")]
    pub(in crate::cli::container) entrypoint: Option<String>,
    /// Set an environment variable, or pass on the caller's
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = env_variable)]
    pub(in crate::cli::container) env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long, value_name = "FILE", value_parser = any_path())]
    pub(in crate::cli::container) env_file: Vec<PathBuf>,
    /// Set a label on the container
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = label)]
    pub(in crate::cli::container) label: Vec<String>,
    /// Read in a line delimited file of labels
    #[arg(long, value_name = "FILE", value_parser = any_path())]
    pub(in crate::cli::container) label_file: Vec<PathBuf>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "DIR")]
    pub(in crate::cli::container) workdir: Option<String>,
    /// Username or UID, and group or GID
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(in crate::cli::container) user: Option<String>,
    /// Mount a volume or a directory of the host
    #[arg(short, long, value_name = "VOLUME:/DIR[:ro]")]
    pub(in crate::cli::container) volume: Vec<String>,
    /// Mount a tmpfs directory
    #[arg(long, value_name = "DIR[:OPTIONS]")]
    pub(in crate::cli::container) tmpfs: Vec<String>,
    /// Attach a mount to the container: type=volume|bind|tmpfs,source=...,target=/dir[,readonly]
    #[arg(long, value_name = "KEY=VALUE,...")]
    pub(in crate::cli::container) mount: Vec<String>,
    /// Mount volumes from the specified container
    #[arg(long, value_name = "CONTAINER[:ro]")]
    pub(in crate::cli::container) volumes_from: Vec<String>,
    /// Mount the container's root filesystem as read only
    #[arg(long)]
    pub(in crate::cli::container) read_only: bool,
    /// How files are read and written: auto, cached, passthrough or writeback
    #[arg(long, value_name = "MODE")]
    pub(in crate::cli::container) io: Option<IoModeChoice>,
    /// Logging driver for the container: json-file, none
    #[arg(long, value_name = "DRIVER")]
    pub(in crate::cli::container) log_driver: Option<String>,
    /// Log driver options: max-size=10m, max-file=3
    #[arg(long, value_name = "KEY=VALUE")]
    pub(in crate::cli::container) log_opt: Vec<String>,
    /// Restart policy to apply when a container exits: no, on-failure[:MAX], always, unless-stopped
    #[arg(long, value_name = "POLICY")]
    pub(in crate::cli::container) restart: Option<String>,
    #[command(flatten)]
    pub(in crate::cli::container) health: Health,
    /// Signal to stop the container
    #[arg(long, value_name = "SIGNAL")]
    pub(in crate::cli::container) stop_signal: Option<String>,
    /// Timeout (in seconds) to stop a container
    #[arg(long, value_name = "SECONDS")]
    pub(in crate::cli::container) stop_timeout: Option<i64>,
    /// Tune host's OOM preferences (-1000 to 1000)
    #[arg(long, value_name = "N")]
    pub(in crate::cli::container) oom_score_adj: Option<i64>,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES", value_parser = parse_memory)]
    pub(in crate::cli::container) shm_size: Option<u64>,
    #[command(flatten)]
    pub(in crate::cli::container) isolation: Isolation,
    #[command(flatten)]
    pub(in crate::cli::container) network: Network,
    #[command(flatten)]
    pub(in crate::cli::container) namespaces: Namespaces,
    #[command(flatten)]
    pub(in crate::cli::container) resources: ResourceOptions,
    /// Image, then command and arguments
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"], num_args = 1..)]
    pub(in crate::cli::container) image_and_command: Vec<String>,
}

/// A platform; as in Docker, an empty one means any.
#[derive(Debug, Clone)]
pub(in crate::cli::container) struct Platform(pub(in crate::cli::container) Option<PlatformName>);

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        text.parse().map(|name| Self(Some(name)))
    }
}

/// `NAME=VALUE`, or a name alone (docker/cli, `opts/env.go`).
pub(super) fn env_variable(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with('=') {
        return Err(format!("invalid environment variable: {text}"));
    }
    Ok(text.to_owned())
}
