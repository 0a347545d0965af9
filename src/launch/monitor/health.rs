//! The health check of a container: a program that joins it now and then and whose exit code says
//! whether the container does its work.
//!
//! One runs at a time. The results are in `health.json` of the status directory. Rules: moby,
//! `daemon/health.go`.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::console::Attachment;
use super::container::Container;
use super::exec::Exec;
use crate::message::{Exited, HealthCheck, spawn};
use crate::status::{self, Moment};

/// Bytes of a program's output that are kept.
const OUTPUT: u64 = 4096;
/// Results that are kept.
const RESULTS: usize = 5;
/// Docker's exit code of a program that could not be run or took too long.
const NOT_RUN: i32 = -1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Starting,
    Healthy,
    Unhealthy,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Health {
    check: HealthCheck,
    verdict: Verdict,
    failing_streak: u32,
    results: VecDeque<ProbeResult>,
    container_started: Instant,
    /// When the next program is due, unless one runs.
    due: Instant,
    probe: Option<Probe>,
    probes: u64,
}

/// A program that runs.
#[derive(Debug)]
struct Probe {
    exec: String,
    started: (Moment, Instant),
    /// Of a fixed size: what comes after it is dropped.
    output: OwnedFd,
    timed_out: bool,
    /// Why it could not be run.
    failure: Option<String>,
}

#[derive(Debug)]
struct ProbeResult {
    start: Moment,
    end: Moment,
    exit_code: i32,
    output: String,
}

impl Health {
    /// Of a container that has just started.
    pub(super) fn new(check: HealthCheck, now: Instant) -> Self {
        let mut health = Self {
            check,
            verdict: Verdict::Starting,
            failing_streak: 0,
            results: VecDeque::new(),
            container_started: now,
            due: now,
            probe: None,
            probes: 0,
        };
        health.schedule(now);
        health
    }

    /// Writes `health.json`.
    pub(super) fn write(&self, directory: BorrowedFd<'_>) -> std::io::Result<()> {
        let results: Vec<String> = self.results.iter().map(ProbeResult::to_json).collect();
        let text = format!(
            "{{\"Status\":\"{}\",\"FailingStreak\":{},\"Log\":[{}]}}\n",
            self.verdict.word(),
            self.failing_streak,
            results.join(",")
        );
        status::replace(directory, status::HEALTH, &text)
    }

    /// Has the engine told that the verdict has changed. What it can't be told goes untold, as any
    /// event that can't be written.
    fn tell(&self) {
        let mut argv = self.check.on_change.clone();
        if argv.is_empty() {
            return;
        }
        argv.push(self.verdict.word().as_bytes().to_vec());
        // Reaped with the other children.
        drop(spawn(&argv, &[]));
    }

    /// When [`Container::check_health`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.probe {
            None => Some(self.due),
            Some(probe) if probe.timed_out => None,
            Some(probe) => Some(probe.started.1 + self.check.timeout),
        }
    }

    /// The container was frozen until now: neither a program's time nor the interval ran.
    pub(super) fn resume(&mut self, now: Instant) {
        if let Some(probe) = &mut self.probe {
            probe.started.1 = now;
        }
        self.schedule(now);
    }

    fn schedule(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.container_started);
        let starts = self.verdict == Verdict::Starting && age < self.check.start_period;
        let interval = if starts {
            self.check.start_interval
        } else {
            self.check.interval
        };
        self.due = now + interval;
    }

    /// Whether a program of this id is the one that runs.
    pub(super) fn is_probe(&self, id: &str) -> bool {
        self.probe.as_ref().is_some_and(|probe| probe.exec == id)
    }

    /// Whether a program of this id is the one that runs, and has taken too long.
    pub(super) fn has_timed_out(&self, id: &str) -> bool {
        self.is_probe(id) && self.probe.as_ref().is_some_and(|probe| probe.timed_out)
    }

    /// Keeps why the program could not be run.
    pub(super) fn not_run(&mut self, reason: String) {
        if let Some(probe) = &mut self.probe {
            probe.failure = Some(reason);
        }
    }

    /// Takes the result of the program that ran.
    pub(super) fn ended(&mut self, exited: Exited, now: Instant) {
        let Some(probe) = self.probe.take() else {
            return;
        };
        let began = probe.started.1;
        let result = probe.into_result(exited, self.check.timeout);
        self.judge(&result, began);
        self.keep(result);
        self.schedule(now);
    }

    fn keep(&mut self, result: ProbeResult) {
        self.results.push_back(result);
        if self.results.len() > RESULTS {
            self.results.pop_front();
        }
    }

    fn judge(&mut self, result: &ProbeResult, began: Instant) {
        if result.exit_code == 0 {
            (self.failing_streak, self.verdict) = (0, Verdict::Healthy);
            return;
        }
        let age = began.saturating_duration_since(self.container_started);
        if self.verdict == Verdict::Starting && age < self.check.start_period {
            return;
        }
        self.failing_streak = self.failing_streak.saturating_add(1);
        if self.failing_streak >= self.check.retries {
            self.verdict = Verdict::Unhealthy;
        }
    }
}

impl Probe {
    fn into_result(self, exited: Exited, timeout: Duration) -> ProbeResult {
        let mut output = String::from_utf8_lossy(&read_output(self.output)).into_owned();
        let mut exit_code = i32::from(exited.exit_code);
        if let Some(failure) = self.failure {
            (exit_code, output) = (NOT_RUN, failure);
        } else if self.timed_out {
            let said = if output.is_empty() { "" } else { ": " };
            output = format!(
                "Health check exceeded timeout ({}){said}{output}",
                go_duration(timeout)
            );
            exit_code = NOT_RUN;
        }
        ProbeResult {
            start: self.started.0,
            end: Moment::now(),
            exit_code,
            output,
        }
    }
}

impl ProbeResult {
    fn to_json(&self) -> String {
        format!(
            "{{\"Start\":\"{}\",\"End\":\"{}\",\"ExitCode\":{},\"Output\":{}}}",
            self.start,
            self.end,
            self.exit_code,
            status::quoted(&self.output)
        )
    }
}

impl Container {
    /// Runs the health check if it is due, and kills one that takes too long.
    pub(super) fn check_health(&mut self, now: Instant) -> Result<(), Errno> {
        let Some(health) = &mut self.health else {
            return Ok(());
        };
        self.execs
            .retain(|exec| !exec.is_over() || !exec.is_probe());
        if self.paused || health.deadline().is_none_or(|deadline| deadline > now) {
            return Ok(());
        }
        if let Some(probe) = &mut health.probe {
            probe.timed_out = true;
            let id = probe.exec.clone();
            return self.kill_probe(&id);
        }
        health.probes += 1;
        let exec = format!("{PROBE}{}", health.probes);
        let (output, ends) = output()?;
        health.probe = Some(Probe {
            exec: exec.clone(),
            started: (Moment::now(), now),
            output,
            timed_out: false,
            failure: None,
        });
        let process = health.check.process.clone();
        if let Err(failed) = self.start_exec(exec, process, false, ends, None) {
            self.health_ended(failed.to_string())?;
        }
        Ok(())
    }

    /// Kills it; one that has no pid yet is killed when it reports that.
    fn kill_probe(&self, id: &str) -> Result<(), Errno> {
        let probe = self.execs.iter().find(|exec| exec.id == id);
        let Some(pidfd) = probe.and_then(|exec| exec.pidfd.as_ref()) else {
            return Ok(());
        };
        match pidfd_send_signal(pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// The program could not even be cloned.
    fn health_ended(&mut self, reason: String) -> Result<(), Errno> {
        if let Some(health) = &mut self.health {
            health.not_run(reason);
        }
        self.take_health(Exited {
            exit_code: 0,
            signal: None,
            oom_killed: false,
        })
    }

    /// Takes the result of the health check that has ended.
    pub(super) fn take_health(&mut self, exited: Exited) -> Result<(), Errno> {
        let Some(health) = &mut self.health else {
            return Ok(());
        };
        let before = health.verdict;
        health.ended(exited, Instant::now());
        if health.verdict != before {
            health.tell();
        }
        let written = health.write(self.kept.status.as_fd());
        match written.map_err(|error| Errno::from_io_error(&error)) {
            // A full disk keeps the last record; the container does not end for it.
            Ok(()) | Err(None | Some(Errno::NOSPC | Errno::DQUOT | Errno::IO)) => Ok(()),
            Err(Some(errno)) => Err(errno),
        }
    }
}

/// The ids of these programs begin so. Those of clients have hex digits only.
const PROBE: &str = "health-";

impl Exec {
    /// Whether it is a health check's.
    pub(super) fn is_probe(&self) -> bool {
        self.id.starts_with(PROBE)
    }
}

/// A file of a fixed size, and two ends that write to it one after the other.
fn output() -> Result<(OwnedFd, Attachment), Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create(c"health", flags)?;
    ftruncate(&file, OUTPUT)?;
    fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK)?;
    let copy = || rustix::io::fcntl_dupfd_cloexec(&file, 3).map(Some);
    let ends = Attachment {
        stdin: None,
        stdout: copy()?,
        stderr: copy()?,
    };
    Ok((file, ends))
}

/// What was written: as far as the position that all ends share.
fn read_output(file: OwnedFd) -> Vec<u8> {
    let written = rustix::fs::tell(&file).unwrap_or_default().min(OUTPUT);
    let mut bytes = vec![0; usize::try_from(written).unwrap_or_default()];
    match File::from(file).read_exact_at(&mut bytes, 0) {
        Ok(()) => bytes,
        Err(_error) => Vec::new(),
    }
}

/// As Go prints a duration: `1m30s`, `500ms`.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        let micros = duration.as_micros();
        return if micros.is_multiple_of(1000) {
            format!("{}ms", micros / 1000)
        } else {
            format!("{micros}µs")
        };
    }
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let rest = duration.as_secs_f64() % 60.0;
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Process;

    const SECOND: Duration = Duration::from_secs(1);

    fn check(start_period: Duration) -> HealthCheck {
        HealthCheck {
            process: Process::new(vec![b"true".to_vec()]),
            interval: 30 * SECOND,
            timeout: 2 * SECOND,
            start_period,
            start_interval: 5 * SECOND,
            retries: 2,
            on_change: Vec::new(),
        }
    }

    /// A probe that ends with this code, begun so long after the container's start.
    fn probe(health: &mut Health, code: u8, after: Duration) {
        let (output, ends) = output().unwrap();
        rustix::io::write(ends.stdout.unwrap(), b"out").unwrap();
        let now = health.container_started + after;
        health.probe = Some(Probe {
            exec: "health-1".to_owned(),
            started: (Moment::now(), now),
            output,
            timed_out: false,
            failure: None,
        });
        let exited = Exited {
            exit_code: code,
            signal: None,
            oom_killed: false,
        };
        health.ended(exited, now);
    }

    #[test]
    fn failures_in_a_row_make_it_unhealthy_and_one_success_healthy() {
        let mut health = Health::new(check(Duration::ZERO), Instant::now());
        probe(&mut health, 1, SECOND);
        assert_eq!(
            (health.verdict, health.failing_streak),
            (Verdict::Starting, 1)
        );
        probe(&mut health, 1, SECOND);
        assert_eq!(
            (health.verdict, health.failing_streak),
            (Verdict::Unhealthy, 2)
        );
        probe(&mut health, 0, SECOND);
        assert_eq!(
            (health.verdict, health.failing_streak),
            (Verdict::Healthy, 0)
        );
        probe(&mut health, 1, SECOND);
        assert_eq!(
            (health.verdict, health.failing_streak),
            (Verdict::Healthy, 1)
        );
        for _more in 0..4 {
            probe(&mut health, 0, SECOND);
        }
        assert_eq!(health.results.len(), RESULTS);
        assert_eq!(health.results[0].output, "out");
    }

    #[test]
    fn failures_of_the_start_period_do_not_count() {
        let mut health = Health::new(check(10 * SECOND), Instant::now());
        assert_eq!(health.due, health.container_started + 5 * SECOND);
        for _more in 0..3 {
            probe(&mut health, 1, 9 * SECOND);
        }
        assert_eq!(
            (health.verdict, health.failing_streak),
            (Verdict::Starting, 0)
        );
        probe(&mut health, 1, 10 * SECOND);
        assert_eq!(health.due, health.container_started + 40 * SECOND);
        probe(&mut health, 1, 10 * SECOND);
        assert_eq!(health.verdict, Verdict::Unhealthy);
    }

    #[test]
    fn output_is_cut_at_its_size() {
        let (file, ends) = output().unwrap();
        let (stdout, stderr) = (ends.stdout.unwrap(), ends.stderr.unwrap());
        rustix::io::write(&stdout, &[b'a'; 100]).unwrap();
        assert_eq!(rustix::io::write(&stderr, &[b'b'; 5000]), Ok(3996));
        assert_eq!(rustix::io::write(&stdout, b"c"), Err(Errno::PERM));
        let bytes = read_output(file);
        assert_eq!((bytes.len(), bytes[99], bytes[100]), (4096, b'a', b'b'));
    }

    #[test]
    fn go_duration_prints_as_go_does() {
        let table = [
            (Duration::from_millis(500), "500ms"),
            (Duration::from_micros(1500), "1500µs"),
            (SECOND, "1s"),
            (Duration::from_millis(1500), "1.5s"),
            (90 * SECOND, "1m30s"),
            (3600 * SECOND, "1h0m0s"),
        ];
        for (duration, text) in table {
            assert_eq!(go_duration(duration), text);
        }
    }
}
