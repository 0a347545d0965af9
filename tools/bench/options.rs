//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser};

const SYSTEMS: &str = "\
Systems:
  native               a plain directory: a copy of the lower, made anew for each round, so its
                       names are known from the start
  overlayfs            the kernel's (with userxattr in a user namespace)
  cowl image MODE      cowl mount --io MODE
  cowl dirs MODE       cowl-mountd -o lowerdir=...,io=MODE: plain directories
  fuse-overlayfs ...   each --peer, with its version
MODE is cached, passthrough or writeback. A system that cannot be mounted here is left out, with the
reason on standard error.

It needs root, or `unshare -Urm`, util-linux, tar, and strace for `ops`. All its files are in one
directory of $TMPDIR, which is removed at its end, also by SIGINT, SIGTERM and SIGHUP.";

/// Measures workloads on cowl, kernel overlayfs, fuse-overlayfs and a plain directory.
///
/// Each round mounts every system anew over an upper of its own. Each row of a round runs on all of
/// them, one right after the other, in an order that rotates. The first column is the median time
/// of the first system; the others are ratios to it in the same round and row: the median over the
/// rounds, and in brackets the lowest and the highest.
#[derive(Debug, Parser)]
#[command(name = "cowl-bench", version, after_help = SYSTEMS, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Subcommand>,
    #[command(flatten)]
    pub(crate) common: Common,
    /// How often every row runs on every system
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Factor for the sizes of all rows
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = scale)]
    pub(crate) scale: f64,
    /// Print medians only, without lowest and highest
    #[arg(long)]
    pub(crate) medians: bool,
}

/// The options of all commands.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Measure a program with fuse-overlayfs's command line, too; may be given several times
    /// [default: fuse-overlayfs, if it is installed]
    #[arg(long, value_name = "PROGRAM", global = true)]
    pub(crate) peer: Vec<PathBuf>,
    /// Measure only this system, by a prefix of its name; may be given several times, and the
    /// others are compared with the first [default: all, compared with overlayfs]
    #[arg(long, value_name = "NAME", global = true)]
    pub(crate) system: Vec<String>,
    /// Run only rows whose title contains this text; may be given several times
    #[arg(long, value_name = "TEXT", global = true)]
    pub(crate) row: Vec<String>,
    /// Directory of cowl's binaries [default: this program's]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) bin: Option<PathBuf>,
    /// Set by the command when it re-executes itself in its namespaces.
    #[arg(long, hide = true, global = true)]
    pub(crate) place: Option<PathBuf>,
}

impl Common {
    /// Whether a row is wanted.
    pub(crate) fn wants_row(&self, title: &str) -> bool {
        self.row.is_empty() || self.row.iter().any(|text| title.contains(text))
    }
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Subcommand {
    /// Count the requests and system calls that an operation costs the processes serving a mount
    ///
    /// A cell is `REQUESTS, CALLS` for one operation: requests read from /dev/fuse, and other
    /// system calls on files and descriptors that the serving threads make for them, counted by
    /// strace. Requests that no client waits for (RELEASE, RELEASEDIR, FORGET) and the kernel's own
    /// are left out with their calls; so are calls that only transport requests, replies and
    /// wake-ups.
    Ops(Wanted),
    /// Time starts of `true` in a container: cowl, other runtimes, and the bare system calls
    ///
    /// `bare calls` creates namespaces, mounts and masked paths and executes the program: no
    /// cgroups, no seccomp filter, no exec of a runtime. `cowl-runtime` is started as by the
    /// engine, on a directory; `cowl run` is `cowl run --rm` on an image, with mount, monitor and
    /// clean-up. runc, crun and bwrap are those in PATH, with their own defaults. All have the same
    /// root. They take turns, so that all see the same load; the first column is a median time, the
    /// others are ratios to it in the same turn. It needs root.
    Start(Starts),
}

#[derive(Debug, Args)]
pub(crate) struct Starts {
    /// How often each is started, in each row
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10000))]
    pub(crate) times: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Wanted {
    /// How often each operation is run while it is counted
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) times: u32,
    /// List what was counted below the table, by name of request and system call
    #[arg(long)]
    pub(crate) by_name: bool,
}

fn scale(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if factor > 0.0 && factor <= 100.0 => Ok(factor),
        _ => Err("a number above 0 and up to 100 is needed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::{Arguments, scale};

    #[test]
    fn the_command_line_is_valid() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn scales_are_positive_and_finite() {
        assert_eq!(scale("0.3"), Ok(0.3));
        for wrong in ["0", "-1", "nan", "inf", "101", "", "much"] {
            assert!(scale(wrong).is_err(), "{wrong}");
        }
    }
}
