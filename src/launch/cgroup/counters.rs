//! Reading a container's cgroups: counters, processes; and freezing it.
//!
//! Version 2 counts processor time and freezes without a controller, so where both versions are
//! mounted its cgroup is used for that.

use std::io;
use std::path::Path;

use rustix::event::poll;
use rustix::fs::Timespec;
use rustix::io::Errno;

use super::directory::{self, Directory};
use super::{ContainerCgroups, MemoryAt};
use crate::control::{BlkioStats, CpuStats, MemoryStats, Stats};

/// How often the state of a freezer is looked at: it has no event on version 1.
const FREEZE_TRIES: usize = 500;
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};
/// Clock ticks in which version 1 counts, and the nanoseconds of one: USER_HZ is 100 on every
/// architecture that is supported.
const TICK: u64 = 10_000_000;
/// Version 1 shows no limit as a number near 2^63.
const UNLIMITED: u64 = 1 << 62;

impl ContainerCgroups {
    /// Freezes or thaws all processes, and waits until they are.
    pub(crate) fn freeze(&self, freeze: bool) -> io::Result<()> {
        let set = |frozen: bool| -> io::Result<()> {
            if let Some((made, _)) = &self.unified {
                return made.write("cgroup.freeze", if frozen { "1" } else { "0" });
            }
            let made = self.legacy_of("freezer").ok_or(Errno::OPNOTSUPP)?;
            made.write("freezer.state", if frozen { "FROZEN" } else { "THAWED" })
        };
        set(freeze)?;
        for _attempt in 0..FREEZE_TRIES {
            if self.is_frozen()? == freeze {
                return Ok(());
            }
            poll(&mut [], Some(&PAUSE))?;
        }
        // Half of a container must not stay frozen.
        set(false)?;
        Err(Errno::TIMEDOUT.into())
    }

    fn is_frozen(&self) -> io::Result<bool> {
        if let Some((made, _)) = &self.unified {
            return Ok(made.read_counter("cgroup.events", "frozen")? == 1);
        }
        let made = self.legacy_of("freezer").ok_or(Errno::OPNOTSUPP)?;
        Ok(made.read("freezer.state")?.trim() == "FROZEN")
    }

    /// All processes, in the monitor's pid namespace; none without a cgroup.
    pub(crate) fn pids(&self) -> io::Result<Option<Vec<u32>>> {
        let Some(made) = self.any() else {
            return Ok(None);
        };
        let mut pids = Vec::new();
        collect_pids(made.path(), &mut pids)?;
        Ok(Some(pids))
    }

    /// The counters, as far as this host has them.
    pub(crate) fn stats(&self) -> io::Result<Stats> {
        let (pids, pids_limit) = match self.directory_of("pids") {
            Some(made) => (number(made, "pids.current")?, number(made, "pids.max")?),
            None => (None, None),
        };
        Ok(Stats {
            cpu: self.cpu()?,
            memory: self.memory_stats()?,
            pids,
            pids_limit,
            blkio: self.blkio()?,
        })
    }

    fn cpu(&self) -> io::Result<CpuStats> {
        let mut stats = CpuStats::default();
        if let Some((made, _)) = &self.unified {
            let text = made.read("cpu.stat")?;
            let of = |key: &str| value(&text, key).unwrap_or(0).saturating_mul(1000);
            (stats.total, stats.user) = (of("usage_usec"), of("user_usec"));
            stats.system = of("system_usec");
            stats.throttled = of("throttled_usec");
            stats.periods = value(&text, "nr_periods").unwrap_or(0);
            stats.throttled_periods = value(&text, "nr_throttled").unwrap_or(0);
        } else if let Some(made) = self.legacy_of("cpuacct") {
            stats.total = number(made, "cpuacct.usage")?.unwrap_or(0);
            let text = made.read("cpuacct.stat")?;
            let of = |key: &str| value(&text, key).unwrap_or(0).saturating_mul(TICK);
            (stats.user, stats.system) = (of("user"), of("system"));
        }
        if let Some(made) = self.legacy_of("cpu") {
            let text = made.read("cpu.stat")?;
            stats.periods = value(&text, "nr_periods").unwrap_or(0);
            stats.throttled_periods = value(&text, "nr_throttled").unwrap_or(0);
            stats.throttled = value(&text, "throttled_time").unwrap_or(0);
        }
        Ok(stats)
    }

    fn memory_stats(&self) -> io::Result<Option<MemoryStats>> {
        let (made, [usage, peak, limit]) = match (self.memory, &self.unified) {
            (Some(MemoryAt::Legacy(position)), _) => match self.legacy.get(position) {
                None => return Ok(None),
                Some(made) => (
                    &made.directory,
                    [
                        "memory.usage_in_bytes",
                        "memory.max_usage_in_bytes",
                        "memory.limit_in_bytes",
                    ],
                ),
            },
            (Some(MemoryAt::Unified), Some((made, _))) => {
                (made, ["memory.current", "memory.peak", "memory.max"])
            }
            _ => return Ok(None),
        };
        let details = made.read("memory.stat")?;
        let details = details.lines().filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.parse().ok()?))
        });
        Ok(Some(MemoryStats {
            usage: number(made, usage)?.unwrap_or(0),
            peak: number(made, peak)?,
            limit: number(made, limit)?.filter(|limit| *limit < UNLIMITED),
            details: details.collect(),
        }))
    }

    fn blkio(&self) -> io::Result<Vec<BlkioStats>> {
        let mut devices = Vec::new();
        if let Some(made) = self.legacy_of("blkio") {
            for (file, bytes) in [
                ("blkio.throttle.io_service_bytes_recursive", true),
                ("blkio.throttle.io_serviced_recursive", false),
            ] {
                let text = made.read_if_present(file)?.unwrap_or_default();
                text.lines()
                    .for_each(|line| count_legacy(line, bytes, &mut devices));
            }
        } else if let Some((made, _)) = &self.unified {
            let text = made.read_if_present("io.stat")?.unwrap_or_default();
            text.lines()
                .for_each(|line| count_unified(line, &mut devices));
        }
        Ok(devices)
    }
}

fn collect_pids(path: &Path, pids: &mut Vec<u32>) -> io::Result<()> {
    let text = match directory::read(&path.join("cgroup.procs")) {
        // A cgroup below that has just gone.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => text?,
    };
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_pids(&entry.path(), pids)?;
        }
    }
    Ok(())
}

/// The number that a file holds; none if it holds none (`max`) or is not there.
fn number(made: &Directory, file: &str) -> io::Result<Option<u64>> {
    let text = made.read_if_present(file)?;
    Ok(text.and_then(|text| text.trim().parse().ok()))
}

/// The number after a key, in lines of both.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

fn device<'d>(numbers: &str, devices: &'d mut Vec<BlkioStats>) -> Option<&'d mut BlkioStats> {
    let (major, minor) = numbers.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let found = devices
        .iter()
        .position(|device| (device.major, device.minor) == (major, minor));
    let position = found.unwrap_or_else(|| {
        devices.push(BlkioStats {
            major,
            minor,
            ..BlkioStats::default()
        });
        devices.len() - 1
    });
    devices.get_mut(position)
}

/// `8:0 Read 4096`.
fn count_legacy(line: &str, bytes: bool, devices: &mut Vec<BlkioStats>) {
    let mut fields = line.split(' ');
    let (Some(numbers), Some(operation), Some(count)) =
        (fields.next(), fields.next(), fields.next())
    else {
        return;
    };
    let (Ok(count), Some(device)) = (count.parse(), device(numbers, devices)) else {
        return;
    };
    match (operation, bytes) {
        ("Read", true) => device.read_bytes = count,
        ("Write", true) => device.write_bytes = count,
        ("Read", false) => device.reads = count,
        ("Write", false) => device.writes = count,
        _ => {}
    }
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`.
fn count_unified(line: &str, devices: &mut Vec<BlkioStats>) {
    let mut fields = line.split(' ');
    let Some(device) = fields.next().and_then(|numbers| device(numbers, devices)) else {
        return;
    };
    for (key, count) in fields.filter_map(|field| field.split_once('=')) {
        let Ok(count) = count.parse() else { continue };
        match key {
            "rbytes" => device.read_bytes = count,
            "wbytes" => device.write_bytes = count,
            "rios" => device.reads = count,
            "wios" => device.writes = count,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_are_counted_by_device_on_both_versions() {
        let expected = BlkioStats {
            major: 8,
            minor: 1,
            read_bytes: 4096,
            write_bytes: 7,
            reads: 1,
            writes: 2,
        };
        let (mut legacy, mut unified) = (Vec::new(), Vec::new());
        for (line, bytes) in [
            ("8:1 Read 4096", true),
            ("8:1 Write 7", true),
            ("8:1 Total 4103", true),
            ("Total 4103", true),
            ("8:1 Read 1", false),
            ("8:1 Write 2", false),
        ] {
            count_legacy(line, bytes, &mut legacy);
        }
        let line = "8:1 rbytes=4096 wbytes=7 rios=1 wios=2 dbytes=0 dios=0";
        count_unified(line, &mut unified);
        count_unified("garbage", &mut unified);
        assert_eq!((legacy, unified), (vec![expected], vec![expected]));
    }
}
