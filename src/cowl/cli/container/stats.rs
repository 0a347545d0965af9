//! `cowl stats`: containers' resource usage, computed from the counters as Docker's client does
//! (docker/cli, `cli/command/container/stats_helpers.go`).

use super::args::Stats;
use crate::cli::template::Type;
use crate::cli::units::{binary_size, human_size};
use crate::cli::{Stdout, format};
use crate::engine::error::{Context as _, Kind, Result};
use crate::engine::list::ListRequest;
use crate::engine::stats::{Sample, Usage};
use crate::engine::{Engine, short};
use cowl_launch::control::MemoryStats;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use serde_json::{Value, json};
use std::collections::HashMap;

const TABLE: &str = "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}";
/// Time between two samples.
const INTERVAL: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// Moves to the screen's first line.
const HOME: &str = "\x1b[H";
/// The Go type of a row.
const ROW: &Type = &Type::Row("*container.statsContext");
/// Clears the rest of a line.
const CLEAR_LINE: &str = "\x1b[K";
/// Clears the screen below.
const CLEAR_BELOW: &str = "\x1b[J";

/// Prints containers' resource usage: once, or repeatedly until all named containers are gone.
pub(in crate::cli) fn stats(engine: &Engine, args: &Stats, out: &mut Stdout) -> Result<u8> {
    let format = match args.format.as_deref() {
        None | Some("") => "table",
        Some(format) => format,
    };
    // A malformed format is an error even if there is nothing to show.
    format::lines(format, TABLE, &header(), &[], ROW)?;
    // A container missing now is an error; one that disappears later is not.
    for name in &args.containers {
        engine.usage_of(name)?;
    }
    let mut before = HashMap::new();
    loop {
        let read = read(engine, args)?;
        let is_first = before.is_empty() && read.iter().any(|(_, usage)| usage.sample.is_some());
        let rows: Vec<Value> = read
            .iter()
            .map(|(asked, usage)| row(asked, usage, before.get(&usage.id), args.no_trunc))
            .collect();
        if !args.no_stream {
            let shown = format::lines(format, TABLE, &header(), &rows, ROW)?;
            show(&shown, out)?;
        } else if !is_first {
            // As in Docker, no header if there are no rows.
            if !rows.is_empty() {
                format::print(format, TABLE, &header(), &rows, ROW, out)?;
            }
            return Ok(0);
        }
        if out.is_closed() || rows.is_empty() && !args.all {
            return Ok(0);
        }
        // The CPU share is computed over the time between two readings.
        let samples = read.into_iter().map(|(_, usage)| (usage.id, usage.sample));
        before = samples
            .filter_map(|(id, sample)| Some((id, sample?)))
            .collect();
        if wait_for_reader_end(&INTERVAL)? {
            return Ok(0);
        }
    }
}

/// Waits for `time`, or until the reader of standard output is gone; returns whether it is.
fn wait_for_reader_end(time: &Timespec) -> Result<bool> {
    let stdout = std::io::stdout();
    // POLLERR is always reported.
    let mut waiting = [PollFd::new(&stdout, PollFlags::empty())];
    let left = retry_on_intr(|| poll(&mut waiting, Some(time)));
    Ok(left.context(|| "waiting for the next reading")? != 0)
}

/// Redraws the lines in place.
fn show(lines: &[String], out: &mut Stdout) -> Result<()> {
    out.text(HOME)?;
    for line in lines {
        out.line(&format!("{line}{CLEAR_LINE}"))?;
    }
    out.text(CLEAR_BELOW)?;
    Ok(out.flush()?)
}

/// The usage of the containers that still exist, each with the argument that named it.
fn read(engine: &Engine, args: &Stats) -> Result<Vec<(String, Usage)>> {
    let asked = if args.containers.is_empty() {
        let request = ListRequest {
            all: args.all,
            ..ListRequest::default()
        };
        let listed = engine.list(&request)?.items.into_iter();
        listed
            .map(|container| short(&container.config.id).to_owned())
            .collect()
    } else {
        args.containers.clone()
    };
    let mut read = Vec::new();
    for name in asked {
        match engine.usage_of(&name) {
            Ok(usage) => read.push((name, usage)),
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

fn header() -> Value {
    json!({
        "Container": "CONTAINER", "ID": "CONTAINER ID", "Name": "NAME", "CPUPerc": "CPU %",
        "MemUsage": "MEM USAGE / LIMIT", "MemPerc": "MEM %", "NetIO": "NET I/O",
        "BlockIO": "BLOCK I/O", "PIDs": "PIDS",
    })
}

/// The fields of Docker's `--format json`. All values are zero if it does not run.
fn row(asked: &str, usage: &Usage, before: Option<&Sample>, whole_id: bool) -> Value {
    let sample = usage.sample.as_ref();
    let memory =
        sample.and_then(|sample| Some((sample.stats.memory.as_ref()?, sample.host_memory)));
    let (used, limit) = memory.map_or((0, 0), |(memory, host)| {
        (in_use(memory), memory.limit.unwrap_or(host).min(host))
    });
    let blkio = sample.map_or(&[][..], |sample| &sample.stats.blkio);
    let read: u64 = blkio.iter().map(|device| device.read_bytes).sum();
    let written: u64 = blkio.iter().map(|device| device.write_bytes).sum();
    let pids = sample.and_then(|sample| sample.stats.pids).unwrap_or(0);
    let (part, whole) = processor_share(before, sample);
    // Sorted, as Go prints them.
    json!({
        "BlockIO": format!("{} / {}", human_size(read), human_size(written)),
        "CPUPerc": percent(part, whole),
        "Container": asked,
        "ID": if whole_id { &usage.id } else { short(&usage.id) },
        "MemPerc": percent(used.into(), limit.into()),
        "MemUsage": format!("{} / {}", binary_size(used), binary_size(limit)),
        "Name": usage.name,
        // Docker counts traffic of container networks, which do not exist here.
        "NetIO": "0B / 0B",
        "PIDs": pids.to_string(),
    })
}

/// The CPU time that a container used between two readings, and the time of one CPU in between.
fn processor_share(before: Option<&Sample>, now: Option<&Sample>) -> (u128, u128) {
    let (Some(before), Some(now)) = (before, now) else {
        return (0, 0);
    };
    let used = now.stats.cpu.total.saturating_sub(before.stats.cpu.total);
    let passed = now.host_cpu.saturating_sub(before.host_cpu);
    (u128::from(used) * u128::from(now.processors), passed.into())
}

/// Memory in use, without the inactive page cache.
fn in_use(memory: &MemoryStats) -> u64 {
    let detail = |key: &str| {
        let mut details = memory.details.iter();
        details
            .find(|(name, _)| name == key)
            .map(|(_, value)| *value)
    };
    // The names of cgroup v1 and v2.
    let inactive = detail("total_inactive_file").or_else(|| detail("inactive_file"));
    let rest = memory.usage.checked_sub(inactive.unwrap_or(0));
    rest.filter(|rest| *rest > 0).unwrap_or(memory.usage)
}

/// Formats a percentage with two decimals; 0 of 0 is 0.
fn percent(part: u128, whole: u128) -> String {
    let hundredths = (part * 10_000 + whole / 2).checked_div(whole).unwrap_or(0);
    format!("{}.{:02}%", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_has_two_decimals() {
        for (part, whole, shown) in [
            (0, 0, "0.00%"),
            (1, 3, "33.33%"),
            (2, 3, "66.67%"),
            (5, 2, "250.00%"),
        ] {
            assert_eq!(percent(part, whole), shown);
        }
    }
}
