//! The options of the container commands, with Docker's names and short forms.

use crate::cli::units::parse_memory;
use clap::Args;
use cowl_core::handover::IoModeChoice;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(override_usage = "cowl run [OPTIONS] IMAGE [COMMAND] [ARG]...")]
pub(in crate::cli) struct Run {
    /// Run container in background and print container ID
    #[arg(short, long)]
    pub(super) detach: bool,
    #[command(flatten)]
    pub(in crate::cli) create: Options,
}

#[derive(Debug, Args)]
#[command(override_usage = "cowl create [OPTIONS] IMAGE [COMMAND] [ARG]...")]
pub(in crate::cli) struct Create {
    #[command(flatten)]
    pub(in crate::cli) create: Options,
}

/// What `run` and `create` have in common.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(in crate::cli) struct Options {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Automatically remove the container and its anonymous volumes when it exits
    #[arg(long)]
    pub(super) rm: bool,
    /// Keep STDIN open
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    pub(super) tty: bool,
    /// Assign a name to the container
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Write the container ID to the file
    #[arg(long, value_name = "FILE")]
    pub(super) cidfile: Option<PathBuf>,
    /// Overwrite the ENTRYPOINT of the image
    #[arg(long, value_name = "PROGRAM")]
    pub(super) entrypoint: Option<String>,
    /// Set an environment variable, or pass on the caller's
    #[arg(short, long, value_name = "NAME[=VALUE]", allow_hyphen_values = true)]
    pub(super) env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long, value_name = "FILE")]
    pub(super) env_file: Vec<PathBuf>,
    /// Set a label on the container
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(super) label: Vec<String>,
    /// Read in a line delimited file of labels
    #[arg(long, value_name = "FILE")]
    pub(super) label_file: Vec<PathBuf>,
    /// Container host name
    #[arg(short = 'h', long, value_name = "NAME")]
    pub(super) hostname: Option<String>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "DIR")]
    pub(super) workdir: Option<String>,
    /// Username or UID, and group or GID
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(super) user: Option<String>,
    /// Mount a volume or a directory of the host
    #[arg(short, long, value_name = "VOLUME:/DIR[:ro]")]
    pub(super) volume: Vec<String>,
    /// Attach a mount to the container: type=volume|bind,source=...,target=/dir[,readonly]
    #[arg(long, value_name = "KEY=VALUE,...")]
    pub(super) mount: Vec<String>,
    /// Mount volumes from the specified container
    #[arg(long, value_name = "CONTAINER[:ro]")]
    pub(super) volumes_from: Vec<String>,
    /// Mount the container's root filesystem as read only
    #[arg(long)]
    pub(super) read_only: bool,
    /// Memory limit in bytes, or with a unit of b, k, m or g: 512m
    #[arg(short, long, value_name = "BYTES", value_parser = parse_memory)]
    pub(super) memory: Option<u64>,
    /// Limit of processes and threads (-1 for unlimited)
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(super) pids_limit: Option<i64>,
    /// Add Linux capabilities
    #[arg(long, value_name = "NAME")]
    pub(super) cap_add: Vec<String>,
    /// Drop Linux capabilities
    #[arg(long, value_name = "NAME")]
    pub(super) cap_drop: Vec<String>,
    /// How files are read and written: auto, cached, passthrough or writeback
    #[arg(long, value_name = "MODE")]
    pub(super) io: Option<IoModeChoice>,
    /// Security option: seccomp=unconfined, no-new-privileges
    #[arg(long, value_name = "OPTION")]
    pub(super) security_opt: Vec<String>,
    /// Network: none, or bridge (as yet a loopback of its own)
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    pub(super) network: Option<String>,
    /// Logging driver for the container: json-file, none
    #[arg(long, value_name = "DRIVER")]
    pub(super) log_driver: Option<String>,
    /// Log driver options: max-size=10m, max-file=3
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) log_opt: Vec<String>,
    /// Restart policy to apply when a container exits: no, on-failure[:MAX], always, unless-stopped
    #[arg(long, value_name = "POLICY")]
    pub(super) restart: Option<String>,
    /// Command to run to check health
    #[arg(long, value_name = "COMMAND")]
    pub(super) health_cmd: Option<String>,
    /// Time between running the check (ms|s|m|h) (default 30s)
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    pub(super) health_interval: Option<String>,
    /// Maximum time to allow one check to run (ms|s|m|h) (default 30s)
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    pub(super) health_timeout: Option<String>,
    /// Consecutive failures needed to report unhealthy (default 3)
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(super) health_retries: Option<i64>,
    /// Start period for the container to initialize before starting health-retries countdown (ms|s|m|h)
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    pub(super) health_start_period: Option<String>,
    /// Time between running the check during the start period (ms|s|m|h) (default 5s)
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    pub(super) health_start_interval: Option<String>,
    /// Disable any container-specified HEALTHCHECK
    #[arg(long)]
    pub(super) no_healthcheck: bool,
    /// Signal to stop the container
    #[arg(long, value_name = "SIGNAL")]
    pub(super) stop_signal: Option<String>,
    /// Timeout (in seconds) to stop a container
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub(super) stop_timeout: Option<i64>,
    /// Image, then command and arguments
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"], num_args = 1..)]
    pub(super) image_and_command: Vec<String>,
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
    #[arg(short = 'n', long, value_name = "N", allow_hyphen_values = true)]
    pub(super) last: Option<i64>,
    /// Show the latest created container (includes all states)
    #[arg(short, long)]
    pub(super) latest: bool,
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(super) filter: Vec<String>,
    /// Format output: json, table, 'table TEMPLATE' or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub(super) format: Option<String>,
    /// Don't truncate output
    #[arg(long)]
    pub(super) no_trunc: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Inspect {
    /// Names, IDs or the beginnings of IDs
    #[arg(required = true, value_name = "NAME")]
    pub(super) names: Vec<String>,
    /// Format output: json or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    pub(super) format: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Rm {
    /// Name of a container, its ID or the beginning of its ID
    #[arg(required = true, value_name = "CONTAINER")]
    pub(super) containers: Vec<String>,
    /// Force the removal of a running container (SIGKILL)
    #[arg(short, long)]
    pub(super) force: bool,
    /// Remove the container's anonymous volumes too
    #[arg(short, long)]
    pub(super) volumes: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Rename {
    /// Name of a container, its ID or the beginning of its ID
    #[arg(value_name = "CONTAINER")]
    pub(super) container: String,
    /// The new name
    #[arg(value_name = "NEW_NAME", allow_hyphen_values = true)]
    pub(super) name: String,
}

/// Commands that take nothing but containers.
#[derive(Debug, Args)]
pub(in crate::cli) struct Names {
    /// Names, IDs or the beginnings of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub(super) containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Start {
    /// Names, IDs or the beginnings of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub(super) containers: Vec<String>,
    /// Attach STDOUT/STDERR and forward signals
    #[arg(short, long)]
    pub(super) attach: bool,
    /// Attach container's STDIN
    #[arg(short, long)]
    pub(super) interactive: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Stop {
    /// Names, IDs or the beginnings of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub(super) containers: Vec<String>,
    /// Signal to send to the container
    #[arg(short, long, value_name = "SIGNAL")]
    pub(super) signal: Option<String>,
    /// Seconds to wait before killing the container (-1 for ever)
    #[arg(
        short,
        long,
        visible_alias = "time",
        value_name = "SECONDS",
        allow_hyphen_values = true
    )]
    pub(super) timeout: Option<i64>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Kill {
    /// Names, IDs or the beginnings of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub(super) containers: Vec<String>,
    /// Signal to send to the container
    #[arg(short, long, value_name = "SIGNAL", default_value = "SIGKILL")]
    pub(super) signal: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Logs {
    /// Name of a container, its ID or the beginning of its ID
    pub(super) container: String,
    /// Follow log output
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Number of lines to show from the end of the logs
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value = "all",
        allow_hyphen_values = true
    )]
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
}

#[derive(Debug, Args)]
#[command(override_usage = "cowl exec [OPTIONS] CONTAINER COMMAND [ARG]...")]
pub(in crate::cli) struct Exec {
    /// Detached mode: run command in the background
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Keep STDIN open
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    pub(super) tty: bool,
    /// Set an environment variable, or pass on the caller's
    #[arg(short, long, value_name = "NAME[=VALUE]", allow_hyphen_values = true)]
    pub(super) env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long, value_name = "FILE")]
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
    /// Name of a container, its ID or the beginning of its ID
    pub(super) container: String,
    /// Do not attach STDIN
    #[arg(long)]
    pub(super) no_stdin: bool,
    /// Proxy all received signals to the process
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(super) sig_proxy: bool,
}
