//! The files that a monitor keeps in its container's status directory.
//!
//! * `lock`: empty, held exclusively (flock) from before the program starts until after `exit.json`
//!   is there.
//! * `running.json`:
//!   `{"monitor":12,"pid":13,"boot":"...","start_time":4711,"started_at":"...","paused":false}`.
//!   Two process ids in the monitor's pid namespace, with what tells the second from another
//!   process of that number ([`Identity`]; empty and 0 if /proc doesn't show it). `pid` is 0 until
//!   there is a process that will become the program, `started_at` empty until it has.
//! * `exit.json`, when the program has ended or could not be started:
//!   `{"pid":13,"exit_code":137,"signal":9,"oom_killed":true,"started_at":"2026-11-25T01:02:03.000000004Z","finished_at":"...","error":""}`.
//!   `signal` is null where none ended it; `pid` is 0 and `started_at` empty where nothing was
//!   started. `error` is a sentence there, and also where something could not be cleaned up after
//!   the end; else it is empty.
//! * `health.json`, of a container with a health check: Docker's `Health` object, with the last five
//!   results: `{"Status":"starting","FailingStreak":0,"Log":[]}`.
//!
//! * `execs.json`, when a container has ended with programs that clients had described before they
//!   joined it: `[{"id":"...","pid":14,"exit_code":0,"description":"..."}]`.
//!
//! So: lock held = running; lock free and `exit.json` there = ended; lock free and none = the
//! monitor was killed, and the container with it, unless its program had freed itself from the
//! monitor's death (prctl(2), PR_SET_PDEATHSIG): then `running.json` says what to kill.
//!
//! Invariant: a record is renamed into place, so neither a kill at any moment nor a reader meets
//! half of one. It is not flushed: a power cut ends the container anyway, and may leave a record
//! empty.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use jiff::Timestamp;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, openat, renameat, unlinkat};
use rustix::io::{Errno, retry_on_intr};

use crate::identity::Identity;

/// Name of the lock file.
pub const LOCK: &str = "lock";
/// Name of the record of what runs.
pub const RUNNING: &str = "running.json";
/// Name of the exit record.
pub const EXIT: &str = "exit.json";

/// Name of the record of the container's health.
pub const HEALTH: &str = "health.json";

/// Name of the record of the programs that had joined.
pub const EXECS: &str = "execs.json";

/// A point in time, printed like Docker's: RFC 3339 in UTC with nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(Timestamp);

impl Moment {
    /// The wall clock.
    pub fn now() -> Self {
        Self(Timestamp::now())
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:.9}", self.0)
    }
}

/// How a container ended, or why it did not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitRecord {
    /// 0 if no process was started.
    pub pid: u32,
    /// As Docker's.
    pub exit_code: u8,
    /// The signal that killed the program.
    pub signal: Option<u8>,
    /// The OOM killer has killed a process of the container.
    pub oom_killed: bool,
    /// None if no process was started.
    pub started_at: Option<Moment>,
    /// When it ended, or failed to start.
    pub finished_at: Moment,
    /// Why the program did not start, or what could not be cleaned up after it; else empty.
    pub error: String,
}

impl ExitRecord {
    /// The text of `exit.json`.
    pub fn to_json(&self) -> String {
        let signal = self
            .signal
            .map_or_else(|| "null".to_owned(), |number| number.to_string());
        let started = self
            .started_at
            .map(|moment| moment.to_string())
            .unwrap_or_default();
        format!(
            "{{\"pid\":{},\"exit_code\":{},\"signal\":{signal},\"oom_killed\":{},\"started_at\":\"{started}\",\"finished_at\":\"{}\",\"error\":{}}}\n",
            self.pid,
            self.exit_code,
            self.oom_killed,
            self.finished_at,
            quoted(&self.error)
        )
    }

    /// Removes the records of an earlier run, which would be taken for those of this one if this one
    /// is killed.
    pub fn clear(status: BorrowedFd<'_>) -> std::io::Result<()> {
        for record in [EXIT, EXECS] {
            match unlinkat(status, record, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Writes `exit.json`.
    pub fn write(&self, status: BorrowedFd<'_>) -> std::io::Result<()> {
        replace(status, EXIT, &self.to_json())
    }
}

/// Replaces a record: a reader sees all of the old or all of the new. A failure leaves the old.
pub(crate) fn replace(status: BorrowedFd<'_>, name: &str, text: &str) -> std::io::Result<()> {
    let temporary = format!(".{name}.new");
    // One that a killed monitor left.
    match unlinkat(status, &temporary, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut file = File::from(openat(
        status,
        &temporary,
        flags,
        Mode::from_raw_mode(0o644),
    )?);
    let replaced = file
        .write_all(text.as_bytes())
        .and_then(|()| Ok(renameat(status, &temporary, status, name)?));
    if replaced.is_err() {
        // The error to report is the first.
        let _second = unlinkat(status, &temporary, AtFlags::empty());
    }
    replaced
}

/// A JSON string (RFC 8259, section 7).
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            control if u32::from(control) < 0x20 => {
                out.extend(format!("\\u{:04x}", u32::from(control)).chars());
            }
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// The program of a container.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its pid.
    pub pid: u32,
    /// What differs in another process of that pid; none if /proc doesn't show it.
    pub identity: Option<Identity>,
    /// When it was started; none before exec.
    pub started_at: Option<Moment>,
}

/// The monitor's lock: held as long as the container runs.
#[derive(Debug)]
pub struct Lock {
    #[expect(dead_code, reason = "held for its lock")]
    file: OwnedFd,
    status: OwnedFd,
}

impl Lock {
    /// Takes the lock; `None` if another monitor holds it.
    pub fn take(status: BorrowedFd<'_>) -> std::io::Result<Option<Self>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = openat(status, LOCK, flags, Mode::from_raw_mode(0o644))?;
        let taken = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // A monitor's lock excludes a shared one. Without a monitor, a reader is asking for a moment.
            Err(Errno::WOULDBLOCK) => match flock(&file, FlockOperation::NonBlockingLockShared) {
                Ok(()) => retry_on_intr(|| flock(&file, FlockOperation::LockExclusive)),
                held => held,
            },
            taken => taken,
        };
        match taken {
            Ok(()) => Ok(Some(Self {
                file,
                status: status.try_clone_to_owned()?,
            })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Writes `running.json`: the monitor that holds the lock, and its program once there is one.
    pub fn describe(
        &mut self,
        monitor: u32,
        program: Option<&Program>,
        paused: bool,
    ) -> std::io::Result<()> {
        let pid = program.map_or(0, |program| program.pid);
        let started = program
            .and_then(|program| program.started_at)
            .map_or_else(String::new, |moment| moment.to_string());
        let (boot, start_time) = program
            .and_then(|program| program.identity.as_ref())
            .map_or(("", 0), |known| (known.boot.as_str(), known.start_time));
        let text = format!(
            "{{\"monitor\":{monitor},\"pid\":{pid},\"boot\":\"{boot}\",\"start_time\":{start_time},\"started_at\":\"{started}\",\"paused\":{paused}}}\n"
        );
        replace(self.status.as_fd(), RUNNING, &text)
    }
}

/// Whether a monitor holds the lock of this status directory.
pub fn is_running(status: BorrowedFd<'_>) -> std::io::Result<bool> {
    let file = match openat(
        status,
        LOCK,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    ) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    };
    match flock(file.as_fd(), FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// The text of `exit.json`; `None` where there is none.
pub fn read_exit(status: BorrowedFd<'_>) -> std::io::Result<Option<String>> {
    let file = match openat(
        status,
        EXIT,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    ) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let mut text = String::new();
    file.take(64 << 10).read_to_string(&mut text)?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moment_prints_nanoseconds() {
        let moment = Moment(Timestamp::new(951_782_400, 7).unwrap());
        assert_eq!(moment.to_string(), "2000-02-29T00:00:00.000000007Z");
    }

    #[test]
    fn to_json_escapes_the_error() {
        let record = ExitRecord {
            pid: 0,
            exit_code: 127,
            signal: None,
            oom_killed: false,
            started_at: None,
            finished_at: Moment(Timestamp::UNIX_EPOCH),
            error: "exec \"a\\b\"\n".to_owned(),
        };
        let expected = "{\"pid\":0,\"exit_code\":127,\"signal\":null,\"oom_killed\":false,\"started_at\":\"\",\
             \"finished_at\":\"1970-01-01T00:00:00.000000000Z\",\"error\":\"exec \\\"a\\\\b\\\"\\u000a\"}\n";
        assert_eq!(record.to_json(), expected);
    }

    #[test]
    fn replace_leaves_the_old_record_or_the_new_one_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let status = File::open(directory.path()).unwrap();
        replace(status.as_fd(), EXIT, "a first record, longer").unwrap();
        // A monitor that was killed left half of one.
        std::fs::write(at(&format!(".{EXIT}.new")), "half").unwrap();
        let old = File::open(at(EXIT)).unwrap();
        replace(status.as_fd(), EXIT, "a second").unwrap();
        assert_eq!(std::fs::read_to_string(at(EXIT)).unwrap(), "a second");
        // Who had it open reads the old one whole.
        assert_eq!(
            std::io::read_to_string(old).unwrap(),
            "a first record, longer"
        );
        // A file cannot take a directory's name.
        std::fs::create_dir(at(EXECS)).unwrap();
        assert!(replace(status.as_fd(), EXECS, "text").is_err());
        let mut names: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(names, [EXECS, EXIT]);
    }

    #[test]
    fn is_running_while_the_lock_is_held() {
        let directory = tempfile::tempdir().unwrap();
        let status = File::open(directory.path()).unwrap();
        assert!(!is_running(status.as_fd()).unwrap());
        let mut lock = Lock::take(status.as_fd()).unwrap().unwrap();
        let mut program = Program {
            pid: 22,
            identity: Some(Identity {
                boot: "0-1".to_owned(),
                start_time: 4711,
            }),
            started_at: Some(Moment(Timestamp::UNIX_EPOCH)),
        };
        lock.describe(1, Some(&program), true).unwrap();
        let text = std::fs::read_to_string(directory.path().join(RUNNING)).unwrap();
        assert_eq!(
            text,
            "{\"monitor\":1,\"pid\":22,\"boot\":\"0-1\",\"start_time\":4711,\"started_at\":\"1970-01-01T00:00:00.000000000Z\",\"paused\":true}\n"
        );
        (program.identity, program.started_at) = (None, None);
        lock.describe(1, Some(&program), false).unwrap();
        assert!(is_running(status.as_fd()).unwrap());
        assert!(Lock::take(status.as_fd()).unwrap().is_none());
        let text = std::fs::read_to_string(directory.path().join(RUNNING)).unwrap();
        assert_eq!(
            text,
            "{\"monitor\":1,\"pid\":22,\"boot\":\"\",\"start_time\":0,\"started_at\":\"\",\"paused\":false}\n"
        );
        drop(lock);
        assert!(!is_running(status.as_fd()).unwrap());
    }

    /// `cowl ps` asks with a shared lock whether a container runs.
    #[test]
    fn take_waits_for_a_reader_that_asks() {
        let directory = tempfile::tempdir().unwrap();
        let status = File::open(directory.path()).unwrap();
        drop(Lock::take(status.as_fd()).unwrap().unwrap());
        let reader = File::open(directory.path().join(LOCK)).unwrap();
        flock(&reader, FlockOperation::LockShared).unwrap();
        let waits = || {
            let locks = std::fs::read_to_string("/proc/locks").unwrap();
            let own = format!(" {} ", std::process::id());
            locks
                .lines()
                .any(|line| line.contains("->") && line.contains(&own))
        };
        std::thread::scope(|scope| {
            let taking = scope.spawn(|| Lock::take(status.as_fd()).unwrap().is_some());
            while !waits() && !taking.is_finished() {
                std::thread::yield_now();
            }
            drop(reader);
            assert!(taking.join().unwrap());
        });
    }
}
