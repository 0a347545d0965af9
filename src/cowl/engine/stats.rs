//! The processes of a container and their resource usage: `top` and `stats`.

use super::Engine;
use super::container::state::Status;
use super::error::{Context, Error, Result};
use cowl_launch::control::{ControlError, Stats};
use jiff::Timestamp;
use std::collections::HashSet;
use std::process::{Command, Stdio};

/// Nanoseconds in a tick of /proc/stat (USER_HZ is 100 on all of Linux's ABIs here: time(7)).
const TICK: u64 = 10_000_000;
/// Fields of a processor's line of /proc/stat that moby adds up: from user to softirq (proc(5)).
const BUSY_AND_IDLE: usize = 7;

/// The processes of a container, as the host's ps(1) shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processes {
    /// The columns.
    pub titles: Vec<String>,
    /// A row for each process, with as many fields.
    pub rows: Vec<Vec<String>>,
}

/// The resource usage of a container.
#[derive(Debug, Clone)]
pub struct Usage {
    /// The container's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// None if it does not run.
    pub sample: Option<Sample>,
}

/// One reading of the counters.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When it was read.
    pub read: Timestamp,
    /// The container's counters.
    pub stats: Stats,
    /// CPU time of the whole host since boot, idle time included, in nanoseconds.
    pub host_cpu: u64,
    /// Number of CPUs of the host.
    pub processors: u32,
    /// The host's memory in bytes: the limit of a container that has none.
    pub host_memory: u64,
}

impl Engine {
    /// The processes of a running container, shown by `ps` with these arguments, `-ef` if there are
    /// none.
    pub fn top(&self, needle: &str, arguments: &[String]) -> Result<Processes> {
        check_arguments(arguments)?;
        let container = self.containers.find(needle)?;
        let pids = self.running(&container)?.pids()?;
        let default = ["-ef".to_owned()];
        let arguments = if arguments.is_empty() {
            &default
        } else {
            arguments
        };
        let shown = Command::new("ps")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context(|| "running ps")?;
        if !shown.status.success() {
            let why = String::from_utf8_lossy(&shown.stderr);
            // The lines after the first are ps's help.
            let why = why.lines().find(|line| !line.is_empty());
            let why = why.unwrap_or("it failed");
            return Err(Error::failed(format!("error running ps: {why}")));
        }
        rows(&String::from_utf8_lossy(&shown.stdout), &pids)
    }

    /// Reads a container's resource usage.
    pub fn usage_of(&self, needle: &str) -> Result<Usage> {
        let container = self.containers.find(needle)?;
        let mut usage = Usage {
            id: container.config.id.clone(),
            name: container.config.name.clone(),
            sample: None,
        };
        if !matches!(container.status()?, Status::Running | Status::Paused) {
            return Ok(usage);
        }
        let stats = match self.control(&container)?.map(|control| control.stats()) {
            None | Some(Err(ControlError::NotRunning)) => return Ok(usage),
            Some(stats) => stats?,
        };
        let memory = rustix::system::sysinfo();
        let (host_cpu, processors) = host_cpu()?;
        usage.sample = Some(Sample {
            read: Timestamp::now(),
            stats,
            host_cpu,
            processors,
            host_memory: u64::from(memory.mem_unit).saturating_mul(memory.totalram),
        });
        Ok(usage)
    }
}

/// Refuses a column titled like another, as moby's `validatePSArgs`.
fn check_arguments(arguments: &[String]) -> Result<()> {
    for word in arguments.iter().flat_map(|text| text.split_whitespace()) {
        for column in word.split(',') {
            if let Some((key, title)) = column.split_once('=')
                && title.starts_with("PID")
                && key.trim_start_matches("-o") != "pid"
            {
                return Err(Error::invalid(format!(
                    "specifying \"{key}={title}\" is not allowed"
                )));
            }
        }
    }
    Ok(())
}

/// The lines of ps for these processes. The last column has the rest of the line.
fn rows(shown: &str, pids: &[u32]) -> Result<Processes> {
    let pids: HashSet<String> = pids.iter().map(u32::to_string).collect();
    let mut lines = shown.lines();
    let titles: Vec<String> = lines
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .map(str::to_owned)
        .collect();
    let column = titles
        .iter()
        .position(|title| title == "PID")
        .ok_or_else(|| Error::failed("Couldn't find PID field in ps output"))?;
    let mut rows = Vec::new();
    for line in lines {
        let mut fields: Vec<String> = line.split_ascii_whitespace().map(str::to_owned).collect();
        if fields.get(column).is_none_or(|pid| !pids.contains(pid)) {
            continue;
        }
        let last = titles.len() - 1;
        if fields.len() > last {
            let rest = fields.split_off(last).join(" ");
            fields.push(rest);
        }
        rows.push(fields);
    }
    Ok(Processes { titles, rows })
}

/// The host's CPU time and number of CPUs.
fn host_cpu() -> Result<(u64, u32)> {
    let what = "reading /proc/stat";
    let text = std::fs::read_to_string("/proc/stat").context(|| what)?;
    let all = text
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("cpu "));
    let fields = all.ok_or_else(|| Error::failed(format!("{what}: it begins with no cpu")))?;
    let ticks: u64 = fields
        .split_ascii_whitespace()
        .take(BUSY_AND_IDLE)
        .map(|field| field.parse().unwrap_or(0))
        .sum();
    let is_one = |line: &&str| {
        let number = line.strip_prefix("cpu");
        number.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let processors = text.lines().filter(is_one).count();
    let processors = u32::try_from(processors).unwrap_or(u32::MAX);
    Ok((ticks.saturating_mul(TICK), processors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_those_of_the_processes_with_the_rest_in_the_last_column() {
        let shown =
            "UID   PID COMMAND\nroot    1 init\nroot   12 sh -c  a b\nweb   120 x\nroot 7\n";
        let processes = rows(shown, &[12, 7]).unwrap();
        assert_eq!(processes.titles, ["UID", "PID", "COMMAND"]);
        assert_eq!(
            processes.rows,
            [vec!["root", "12", "sh -c a b"], vec!["root", "7"]]
        );
        rows("UID COMMAND\n", &[12]).unwrap_err();
        rows("", &[12]).unwrap_err();
    }

    #[test]
    fn check_arguments_refuses_columns_titled_pid() {
        let check = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            check_arguments(&words)
        };
        check(&["-o", "pid=PID,comm"]).unwrap();
        check(&["-eo", "pid,args"]).unwrap();
        for words in [&["-o", "ppid=PID"], &["-o", "pid,ppid=PIDX"]] {
            let refused = check(words).unwrap_err().to_string();
            assert!(refused.ends_with("is not allowed"), "{refused}");
        }
    }
}
