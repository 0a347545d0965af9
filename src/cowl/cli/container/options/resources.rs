//! Limits.

use crate::cli::units::parse_memory;
use crate::engine::docker::{Resources, ThrottleDevice, WeightDevice};
use crate::engine::error::{Error, Result};
use clap::Args;

/// Limits that `update` can change.
#[derive(Debug, Args)]
pub(in crate::cli) struct UpdatableOptions {
    /// Memory limit in bytes, or with a unit of b, k, m or g: 512m
    #[arg(short, long, value_name = "BYTES", value_parser = parse_memory)]
    memory: Option<u64>,
    /// Limit of memory and swap together: '-1' to enable unlimited swap
    #[arg(long, value_name = "BYTES", value_parser = parse_swap)]
    memory_swap: Option<i64>,
    /// Memory soft limit
    #[arg(long, value_name = "BYTES", value_parser = parse_memory)]
    memory_reservation: Option<u64>,
    /// Limit of processes and threads (-1 for unlimited)
    #[arg(long, value_name = "N")]
    pids_limit: Option<i64>,
    /// Number of CPUs
    #[arg(long, value_name = "NUMBER", value_parser = parse_cpus)]
    cpus: Option<i64>,
    /// CPU shares (relative weight)
    #[arg(short = 'c', long, value_name = "WEIGHT")]
    cpu_shares: Option<i64>,
    /// Limit CPU CFS (Completely Fair Scheduler) period
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<i64>,
    /// Limit CPU CFS (Completely Fair Scheduler) quota
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_quota: Option<i64>,
    /// CPUs in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// MEMs in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Block IO (relative weight), between 10 and 1000, or 0 to disable
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ResourceOptions {
    #[command(flatten)]
    updatable: UpdatableOptions,
    /// Tune container memory swappiness (0 to 100)
    #[arg(long, value_name = "PERCENT")]
    memory_swappiness: Option<i64>,
    /// Disable OOM Killer
    #[arg(long)]
    oom_kill_disable: bool,
    /// Block IO weight (relative device weight)
    #[arg(long, value_name = "DEVICE:WEIGHT", value_parser = parse_weight)]
    blkio_weight_device: Vec<WeightDevice>,
    /// Limit read rate (bytes per second) from a device
    #[arg(long, value_name = "DEVICE:BYTES", value_parser = parse_bps)]
    device_read_bps: Vec<ThrottleDevice>,
    /// Limit write rate (bytes per second) to a device
    #[arg(long, value_name = "DEVICE:BYTES", value_parser = parse_bps)]
    device_write_bps: Vec<ThrottleDevice>,
    /// Limit read rate (IO per second) from a device
    #[arg(long, value_name = "DEVICE:N", value_parser = parse_iops)]
    device_read_iops: Vec<ThrottleDevice>,
    /// Limit write rate (IO per second) to a device
    #[arg(long, value_name = "DEVICE:N", value_parser = parse_iops)]
    device_write_iops: Vec<ThrottleDevice>,
    /// Optional parent cgroup for the container
    #[arg(long, value_name = "CGROUP")]
    cgroup_parent: Option<String>,
}

impl UpdatableOptions {
    pub(in crate::cli) fn into_resources(self) -> Result<Resources> {
        let bytes = |asked: Option<u64>, what: &str| {
            let too_large = |_range| Error::invalid(format!("the {what} is too large"));
            i64::try_from(asked.unwrap_or_default()).map_err(too_large)
        };
        Ok(Resources {
            memory: bytes(self.memory, "memory limit")?,
            memory_swap: self.memory_swap.unwrap_or_default(),
            memory_reservation: bytes(self.memory_reservation, "memory reservation")?,
            pids_limit: self.pids_limit,
            nano_cpus: self.cpus.unwrap_or_default(),
            cpu_shares: self.cpu_shares.unwrap_or_default(),
            cpu_period: self.cpu_period.unwrap_or_default(),
            cpu_quota: self.cpu_quota.unwrap_or_default(),
            cpuset_cpus: self.cpuset_cpus.unwrap_or_default(),
            cpuset_mems: self.cpuset_mems.unwrap_or_default(),
            blkio_weight: self.blkio_weight.unwrap_or_default(),
            ..Resources::default()
        })
    }
}

impl ResourceOptions {
    pub(in crate::cli) fn into_resources(self) -> Result<Resources> {
        if let Some(percent) = self.memory_swappiness
            && !(-1..=100).contains(&percent)
        {
            return Err(Error::invalid(format!(
                "invalid value: {percent}. Valid memory swappiness range is 0-100"
            )));
        }
        Ok(Resources {
            memory_swappiness: self.memory_swappiness,
            oom_kill_disable: self.oom_kill_disable.then_some(true),
            blkio_weight_device: self.blkio_weight_device,
            blkio_device_read_bps: self.device_read_bps,
            blkio_device_write_bps: self.device_write_bps,
            blkio_device_read_iops: self.device_read_iops,
            blkio_device_write_iops: self.device_write_iops,
            cgroup_parent: self.cgroup_parent.unwrap_or_default(),
            ..self.updatable.into_resources()?
        })
    }
}

fn parse_swap(text: &str) -> Result<i64, String> {
    if text == "-1" {
        return Ok(-1);
    }
    let bytes = parse_memory(text)?;
    i64::try_from(bytes).map_err(|_range| format!("invalid size: '{text}'"))
}

/// Parses a decimal number of CPUs into billionths.
fn parse_cpus(text: &str) -> Result<i64, String> {
    let invalid = || format!("failed to parse {text} as a rational number");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() && fraction.is_empty() || !digits(whole) || !digits(fraction) {
        return Err(invalid());
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > 9 {
        return Err("value is too precise".to_owned());
    }
    let number = |part: &str| {
        if part.is_empty() {
            Ok(0)
        } else {
            part.parse::<i64>()
        }
    };
    let whole = number(whole).map_err(|_range| invalid())?;
    let nanos = number(&format!("{fraction:0<9}")).map_err(|_range| invalid())?;
    whole
        .checked_mul(1_000_000_000)
        .and_then(|whole| whole.checked_add(nanos))
        .ok_or_else(invalid)
}

fn parse_bps(text: &str) -> Result<ThrottleDevice, String> {
    throttle(
        text,
        "<device-path>:<number>[<unit>]. Number must be a positive integer. Unit is optional and can be kb, mb, or gb",
        |rate| parse_memory(rate).ok(),
    )
}

fn parse_iops(text: &str) -> Result<ThrottleDevice, String> {
    let format = "<device-path>:<number>. Number must be a positive integer";
    throttle(text, format, |rate| rate.parse().ok())
}

/// `device:weight`, with the texts of Docker's command line (docker/cli, `opts/weightdevice.go`).
fn parse_weight(text: &str) -> Result<WeightDevice, String> {
    let (path, weight) = of_device(text)?;
    let weight = weight.parse().ok();
    let weight = weight.filter(|weight| *weight == 0 || (10..=1000).contains(weight));
    Ok(WeightDevice {
        path: path.to_owned(),
        weight: weight.ok_or_else(|| format!("invalid weight for device: {text}"))?,
    })
}

/// A device's path, and the text after the colon.
fn of_device(text: &str) -> Result<(&str, &str), String> {
    let (path, value) = text
        .split_once(':')
        .filter(|(path, _)| !path.is_empty())
        .ok_or_else(|| format!("bad format: {text}"))?;
    if !path.starts_with("/dev/") {
        return Err(format!("bad format for device path: {text}"));
    }
    Ok((path, value))
}

/// `device:rate`, with the texts of Docker's command line (docker/cli, `opts/throttledevice.go`).
fn throttle(
    text: &str,
    format: &str,
    parse: impl Fn(&str) -> Option<u64>,
) -> Result<ThrottleDevice, String> {
    let (path, rate) = of_device(text)?;
    let rate = parse(rate).ok_or_else(|| {
        format!("invalid rate for device: {text}. The correct format is {format}")
    })?;
    Ok(ThrottleDevice {
        path: path.to_owned(),
        rate,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_read_exactly() {
        let table = [
            ("1.5", Ok(1_500_000_000)),
            (".25", Ok(250_000_000)),
            ("2", Ok(2_000_000_000)),
            ("0.0000000010", Ok(1)),
        ];
        for (text, expected) in table {
            assert_eq!(parse_cpus(text), expected, "{text}");
        }
        assert_eq!(
            parse_cpus("1.0000000001").unwrap_err(),
            "value is too precise"
        );
        for text in ["", ".", "-1", "1,5", "99999999999"] {
            parse_cpus(text).unwrap_err();
        }
    }

    #[test]
    fn a_weight_is_0_or_from_10_to_1000() {
        let device = parse_weight("/dev/sda:300").unwrap();
        assert_eq!((device.path.as_str(), device.weight), ("/dev/sda", 300));
        assert_eq!(parse_weight("/dev/sda:0").unwrap().weight, 0);
        for text in ["/dev/sda:9", "/dev/sda:1001", "/dev/sda:", "/dev/sda:-10"] {
            let why = format!("invalid weight for device: {text}");
            assert_eq!(parse_weight(text).unwrap_err(), why);
        }
    }

    #[test]
    fn a_rate_belongs_to_a_device() {
        let device = parse_bps("/dev/sda:1mb").unwrap();
        assert_eq!((device.path.as_str(), device.rate), ("/dev/sda", 1 << 20));
        assert_eq!(parse_iops("/dev/sda:10").unwrap().rate, 10);
        let table = [
            ("/dev/sda", "bad format: /dev/sda"),
            ("sda:1", "bad format for device path: sda:1"),
        ];
        for (text, why) in table {
            assert_eq!(parse_iops(text).unwrap_err(), why);
        }
        assert!(
            parse_iops("/dev/sda:1mb")
                .unwrap_err()
                .starts_with("invalid rate for device")
        );
    }
}
