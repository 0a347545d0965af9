//! Health checks: how a container's `Healthcheck` configures the monitor, and the monitor's
//! results.

use super::Engine;
use super::container::Container;
use super::container::config::Config;
use super::docker::{ContainerConfig, Healthcheck};
use super::error::{Error, Result};
use super::files;
use super::process::Process;
use super::start;
use cowl_launch::message::HealthCheck;
use cowl_launch::status;
use serde_json::Value;
use std::time::Duration;

/// dockerd's defaults (moby, `daemon/health.go`).
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// The shortest interval or timeout that a client may set, in nanoseconds.
const SHORTEST: i64 = 1_000_000;
/// The shell of `CMD-SHELL`, unless the image names one.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// Refuses what dockerd refuses, with its texts, and unknown kinds of tests, which dockerd ignores.
pub(super) fn check(check: &Healthcheck) -> Result<()> {
    let times = [
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ];
    for (name, time) in times {
        if time != 0 && time < SHORTEST {
            return Err(Error::invalid(format!(
                "{name} in Healthcheck cannot be less than 1ms"
            )));
        }
    }
    if check.retries < 0 {
        return Err(Error::invalid("Retries in Healthcheck cannot be negative"));
    }
    match check.test.as_deref() {
        Some([kind, ..]) if !matches!(kind.as_str(), "NONE" | "CMD" | "CMD-SHELL") => {
            Err(Error::invalid(format!(
                "Unknown healthcheck type '{kind}' (expected 'CMD')"
            )))
        }
        Some([kind]) if kind != "NONE" => Err(Error::invalid(format!(
            "Healthcheck of type '{kind}' has no command"
        ))),
        _ => Ok(()),
    }
}

/// The program of a check, if there is a check.
fn argv(config: &ContainerConfig) -> Option<Vec<String>> {
    let test = config.healthcheck.as_ref()?.test.as_deref()?;
    match test {
        [kind, words @ ..] if kind == "CMD" => Some(words.to_vec()),
        [kind, words @ ..] if kind == "CMD-SHELL" => {
            let shell = config.shell.clone().filter(|shell| !shell.is_empty());
            let mut argv = shell.unwrap_or_else(|| SHELL.map(str::to_owned).to_vec());
            argv.extend_from_slice(words);
            Some(argv)
        }
        _ => None,
    }
}

/// The configuration for the monitor.
pub(super) fn plan(config: &Config) -> Result<Option<HealthCheck>> {
    let (Some(argv), Some(check)) = (argv(&config.config), &config.config.healthcheck) else {
        return Ok(None);
    };
    let process = Process {
        argv,
        ..Process::of(&config.config)
    };
    let or = |asked: i64, default| match u64::try_from(asked) {
        Ok(nanoseconds) if nanoseconds > 0 => Duration::from_nanos(nanoseconds),
        _ => default,
    };
    Ok(Some(HealthCheck {
        process: start::process(config, &process, None)?,
        interval: or(check.interval, INTERVAL),
        timeout: or(check.timeout, TIMEOUT),
        start_period: or(check.start_period, Duration::ZERO),
        start_interval: or(check.start_interval, START_INTERVAL),
        retries: match u32::try_from(check.retries) {
            Ok(0) | Err(_) => RETRIES,
            Ok(retries) => retries,
        },
        // Filled in by the caller that starts the container.
        on_change: Vec::new(),
    }))
}

impl Engine {
    /// Writes the event that a container has become `healthy` or `unhealthy`.
    pub fn tell_health(&self, id: &str, word: &str) -> Result<()> {
        let config = self.containers.find(id)?.config;
        self.tell_container(&config, &format!("health_status: {word}"), &[]);
        Ok(())
    }
}

impl Container {
    /// Docker's `Health` object, as the monitor wrote it; None without a check, or before the first
    /// start.
    pub fn health(&self) -> Result<Option<Value>> {
        if argv(&self.config.config).is_none() {
            return Ok(None);
        }
        files::read_json(self.status_dir(), status::HEALTH)
    }
}

/// The status in a `Health` object: `starting`, `healthy` or `unhealthy`.
pub(super) fn word(health: &Value) -> &str {
    health
        .get("Status")
        .and_then(Value::as_str)
        .unwrap_or("starting")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(test: &[&str]) -> ContainerConfig {
        ContainerConfig {
            healthcheck: Some(Healthcheck {
                test: Some(test.iter().map(|word| (*word).to_owned()).collect()),
                ..Healthcheck::default()
            }),
            ..ContainerConfig::default()
        }
    }

    #[test]
    fn argv_runs_a_command_or_the_shell() {
        let joined = |test: &[&str]| argv(&with(test)).map(|argv| argv.join("|"));
        assert_eq!(joined(&["CMD", "a", "b c"]).unwrap(), "a|b c");
        assert_eq!(joined(&["CMD-SHELL", "a b"]).unwrap(), "/bin/sh|-c|a b");
        assert_eq!(joined(&["NONE"]), None);
        assert_eq!(joined(&[]), None);
        let mut own = with(&["CMD-SHELL", "a"]);
        own.shell = Some(vec!["/bin/ash".to_owned(), "-ec".to_owned()]);
        assert_eq!(argv(&own).unwrap().join("|"), "/bin/ash|-ec|a");
    }

    #[test]
    fn check_refuses_what_dockerd_refuses() {
        let refused = |asked: Healthcheck| check(&asked).unwrap_err().to_string();
        let times = |interval, retries| Healthcheck {
            interval,
            retries,
            ..Healthcheck::default()
        };
        assert_eq!(
            refused(times(999_999, 0)),
            "Interval in Healthcheck cannot be less than 1ms"
        );
        assert_eq!(
            refused(times(0, -1)),
            "Retries in Healthcheck cannot be negative"
        );
        for (test, text) in [
            (
                &["curl", "x"][..],
                "Unknown healthcheck type 'curl' (expected 'CMD')",
            ),
            (&["CMD"], "Healthcheck of type 'CMD' has no command"),
        ] {
            assert_eq!(refused(with(test).healthcheck.unwrap()), text);
        }
    }
}
