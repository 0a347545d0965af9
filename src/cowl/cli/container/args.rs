//! The options of the container commands, with Docker's names and short forms.

pub(in crate::cli) use super::options::Options;
use super::options::{UpdatableOptions, env_variable};
use crate::cli::args::{any_path, filter};
use crate::cli::refused;
use crate::engine::detach_keys::DetachKeys;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(override_usage = "cowl run [OPTIONS] IMAGE [COMMAND] [ARG]...")]
pub(in crate::cli) struct Run {
    /// Run container in background and print container ID
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "KEYS", value_parser = detach_keys)]
    pub(super) detach_keys: Option<DetachKeys>,
    /// Proxy all received signals to the process
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(super) sig_proxy: bool,
    #[command(flatten)]
    pub(in crate::cli) create: Options,
}

#[derive(Debug, Args)]
#[command(override_usage = "cowl create [OPTIONS] IMAGE [COMMAND] [ARG]...")]
pub(in crate::cli) struct Create {
    #[command(flatten)]
    pub(in crate::cli) create: Options,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Ps {
    /// Show all containers, not only running ones
    #[arg(short, long)]
    pub(super) all: bool,
    /// Only display IDs
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Show N last created containers (includes all states)
    #[arg(short = 'n', long, value_name = "N")]
    pub(super) last: Option<i64>,
    /// Show the latest created container (includes all states)
    #[arg(short, long)]
    pub(super) latest: bool,
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter)]
    pub(super) filter: Vec<String>,
    /// Format output: json, table, 'table TEMPLATE' or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub(super) format: Option<String>,
    /// Don't truncate output
    #[arg(long)]
    pub(super) no_trunc: bool,
    /// Display total file sizes
    #[arg(short, long)]
    pub(super) size: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Inspect {
    /// Names, IDs or prefixes of IDs
    #[arg(required = true, value_name = "NAME")]
    pub(super) names: Vec<String>,
    /// Format output: json or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    pub(super) format: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct InspectImage {
    #[command(flatten)]
    pub(super) inspect: Inspect,
    /// Inspect a specific platform of the multi-platform image
    #[arg(long, value_name = "OS/ARCHITECTURE[/VARIANT]")]
    pub(super) platform: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct InspectContainer {
    #[command(flatten)]
    pub(super) inspect: Inspect,
    /// Display total file sizes of containers
    #[arg(short, long)]
    pub(super) size: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct InspectAny {
    #[command(flatten)]
    pub(super) inspect: InspectContainer,
    /// Only inspect objects of this type: container, image or volume
    #[arg(long = "type", value_name = "TYPE")]
    pub(super) kind: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Rm {
    /// Name of a container, its ID or a prefix of its ID
    #[arg(required = true, value_name = "CONTAINER")]
    pub(super) containers: Vec<String>,
    /// Force the removal of a running container (SIGKILL)
    #[arg(short, long)]
    pub(super) force: bool,
    /// Remove the container's anonymous volumes too
    #[arg(short, long)]
    pub(super) volumes: bool,
    #[command(flatten)]
    pub(in crate::cli) refused: refused::OfRm,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Rename {
    /// Name of a container, its ID or a prefix of its ID
    #[arg(value_name = "CONTAINER")]
    pub(super) container: String,
    /// The new name
    #[arg(value_name = "NEW_NAME", allow_hyphen_values = true)]
    pub(super) name: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Update {
    #[command(flatten)]
    pub(super) limits: UpdatableOptions,
    /// Restart policy to apply when a container exits
    #[arg(long, value_name = "POLICY")]
    pub(super) restart: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) refused: refused::OfUpdate,
    /// Names, IDs or prefixes of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub(super) containers: Vec<String>,
}

/// The arguments of commands without options.
#[derive(Debug, Args)]
pub(in crate::cli) struct Names {
    /// Names, IDs or prefixes of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub(super) containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Start {
    /// Names, IDs or prefixes of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub(super) containers: Vec<String>,
    /// Attach STDOUT/STDERR and forward signals
    #[arg(short, long)]
    pub(super) attach: bool,
    /// Attach container's STDIN
    #[arg(short, long)]
    pub(super) interactive: bool,
    #[command(flatten)]
    pub(in crate::cli) refused: refused::OfStart,
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "KEYS", value_parser = detach_keys)]
    pub(super) detach_keys: Option<DetachKeys>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Stop {
    /// Names, IDs or prefixes of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub(super) containers: Vec<String>,
    /// Signal to send to the container
    #[arg(short, long, value_name = "SIGNAL")]
    pub(super) signal: Option<String>,
    /// Seconds to wait before killing the container (-1 for ever)
    #[arg(short, long, visible_alias = "time", value_name = "SECONDS")]
    pub(super) timeout: Option<i64>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Kill {
    /// Names, IDs or prefixes of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub(super) containers: Vec<String>,
    /// Signal to send to the container
    #[arg(short, long, value_name = "SIGNAL", default_value = "SIGKILL")]
    pub(super) signal: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Top {
    /// Name of a container, its ID or a prefix of its ID
    pub(super) container: String,
    /// Options of ps(1), -ef by default
    #[arg(
        value_name = "OPTIONS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(super) options: Vec<String>,
}

#[derive(Debug, Args)]
#[command(override_usage = "cowl cp [OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-
       cowl cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH")]
pub(in crate::cli) struct Cp {
    /// Archive mode (copy all uid/gid information)
    #[arg(short, long)]
    pub(super) archive: bool,
    /// Always follow symbol link in SRC_PATH
    #[arg(short = 'L', long)]
    pub(super) follow_link: bool,
    /// Suppress progress output during copy
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// File or directory to copy; - reads a tar from STDIN
    #[arg(value_name = "SOURCE")]
    pub(super) source: String,
    /// Where to copy it to; - writes a tar to STDOUT
    #[arg(value_name = "DESTINATION")]
    pub(super) destination: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Stats {
    /// Names, IDs or prefixes of IDs; all running containers without one
    #[arg(value_name = "CONTAINER")]
    pub(super) containers: Vec<String>,
    /// Show all containers, not only running ones
    #[arg(short, long)]
    pub(super) all: bool,
    /// Format output: json, table, 'table TEMPLATE' or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub(super) format: Option<String>,
    /// Disable streaming stats and only pull the first result
    #[arg(long)]
    pub(super) no_stream: bool,
    /// Do not truncate output
    #[arg(long)]
    pub(super) no_trunc: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Port {
    /// Name of a container, its ID or a prefix of its ID
    pub(super) container: String,
    /// Only where this port is published
    #[arg(value_name = "PRIVATE_PORT[/PROTO]")]
    pub(super) port: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Logs {
    /// Name of a container, its ID or a prefix of its ID
    pub(super) container: String,
    /// Follow log output
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Number of lines to show from the end of the logs
    #[arg(short = 'n', long, value_name = "N", default_value = "all")]
    pub(super) tail: String,
    /// Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m")
    #[arg(long, value_name = "TIME")]
    pub(super) since: Option<String>,
    /// Show logs before a timestamp or relative
    #[arg(long, value_name = "TIME")]
    pub(super) until: Option<String>,
    /// Show timestamps
    #[arg(short, long)]
    pub(super) timestamps: bool,
    /// Show extra details provided to logs
    #[arg(long)]
    pub(super) details: bool,
}

#[derive(Debug, Args)]
#[command(override_usage = "cowl exec [OPTIONS] CONTAINER COMMAND [ARG]...")]
pub(in crate::cli) struct Exec {
    /// Detached mode: run command in the background
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "KEYS", value_parser = detach_keys)]
    pub(super) detach_keys: Option<DetachKeys>,
    /// Keep STDIN open
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    pub(super) tty: bool,
    /// Set an environment variable, or pass on the caller's
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = env_variable)]
    pub(super) env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long, value_name = "FILE", value_parser = any_path())]
    pub(super) env_file: Vec<PathBuf>,
    /// Username or UID, and group or GID
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(super) user: Option<String>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "DIR")]
    pub(super) workdir: Option<String>,
    /// Give extended privileges to the command
    #[arg(long)]
    pub(super) privileged: bool,
    /// Container, then command and arguments
    #[arg(required = true, trailing_var_arg = true, value_names = ["CONTAINER", "COMMAND"], num_args = 2..)]
    pub(super) container_and_command: Vec<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Attach {
    /// Name of a container, its ID or a prefix of its ID
    pub(super) container: String,
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "KEYS", value_parser = detach_keys)]
    pub(super) detach_keys: Option<DetachKeys>,
    /// Do not attach STDIN
    #[arg(long)]
    pub(super) no_stdin: bool,
    /// Proxy all received signals to the process
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(super) sig_proxy: bool,
}

fn detach_keys(text: &str) -> Result<DetachKeys, String> {
    DetachKeys::parse(text).map_err(|error| error.to_string())
}
