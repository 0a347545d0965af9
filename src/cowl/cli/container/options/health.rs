//! Health checks.

use crate::engine::docker::Healthcheck;
use crate::engine::duration;
use crate::engine::error::{Error, Result};
use clap::Args;

#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "they name the options")]
pub(in crate::cli::container) struct Health {
    /// Command to run to check health
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between running the check (ms|s|m|h) (default 30s)
    #[arg(long, value_name = "DURATION")]
    health_interval: Option<String>,
    /// Maximum time to allow one check to run (ms|s|m|h) (default 30s)
    #[arg(long, value_name = "DURATION")]
    health_timeout: Option<String>,
    /// Consecutive failures needed to report unhealthy (default 3)
    #[arg(long, value_name = "N")]
    health_retries: Option<i64>,
    /// Start period for the container to initialize before starting health-retries countdown
    /// (ms|s|m|h)
    #[arg(long, value_name = "DURATION")]
    health_start_period: Option<String>,
    /// Time between running the check during the start period (ms|s|m|h) (default 5s)
    #[arg(long, value_name = "DURATION")]
    health_start_interval: Option<String>,
    /// Disable any container-specified HEALTHCHECK
    #[arg(long)]
    no_healthcheck: bool,
}

impl Health {
    /// None if no option is given.
    pub(in crate::cli::container) fn into_healthcheck(self) -> Result<Option<Healthcheck>> {
        let time = |name: &str, text: &Option<String>| {
            let Some(text) = text else { return Ok(0) };
            let nanoseconds = duration::parse(text).map_err(|error| {
                Error::invalid(format!(
                    "invalid argument \"{text}\" for \"--{name}\" flag: {error}"
                ))
            })?;
            if nanoseconds < 0 {
                return Err(Error::invalid(format!("--{name} cannot be negative")));
            }
            Ok(nanoseconds)
        };
        let retries = self.health_retries.unwrap_or_default();
        if retries < 0 {
            return Err(Error::invalid("--health-retries cannot be negative"));
        }
        let command = self.health_cmd.as_ref().filter(|text| !text.is_empty());
        let check = Healthcheck {
            test: command.map(|text| vec!["CMD-SHELL".to_owned(), text.clone()]),
            interval: time("health-interval", &self.health_interval)?,
            timeout: time("health-timeout", &self.health_timeout)?,
            start_period: time("health-start-period", &self.health_start_period)?,
            start_interval: time("health-start-interval", &self.health_start_interval)?,
            retries,
        };
        let is_given = check != Healthcheck::default();
        if !self.no_healthcheck {
            return Ok(is_given.then_some(check));
        }
        if is_given {
            return Err(Error::invalid(
                "--no-healthcheck conflicts with --health-* options",
            ));
        }
        Ok(Some(Healthcheck {
            test: Some(vec!["NONE".to_owned()]),
            ..Healthcheck::default()
        }))
    }
}
