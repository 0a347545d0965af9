//! `logs`: a container's output, from the monitor's log files.
//!
//! A line is `{"log": "text\n", "stream": "stdout", "time": "..."}`; the monitor renames `log` to
//! `log.1` and so on when it is full (see `cowl_launch`).

use super::Engine;
use super::container::Container;
use super::error::{Context, Error, Result};
use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use serde::Deserialize;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

/// Name of the newest file.
const LOG: &str = "log";

/// The parameters of [`Engine::logs`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// Follow until the container ends.
    pub follow: bool,
    /// Only this many of the last lines.
    pub tail: Option<usize>,
    /// Only from this time on.
    pub since: Option<Timestamp>,
    /// Only up to this time.
    pub until: Option<Timestamp>,
}

/// An entry of the log: a line, or a part of a long one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct LogEntry {
    /// The text, with its newline if it has one.
    pub log: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// When it was written.
    pub time: Timestamp,
}

/// A container's output, read once or followed.
#[derive(Debug)]
pub struct Logs {
    container: Container,
    request: LogRequest,
    reader: Reader,
    /// Whether the entries that existed at the start have been read.
    begun: bool,
}

impl Engine {
    /// Passes a container's output to `each`, oldest first, until `each` returns false.
    pub fn logs(
        &self,
        needle: &str,
        request: LogRequest,
        mut each: impl FnMut(&LogEntry) -> Result<bool>,
    ) -> Result<()> {
        let mut logs = self.open_logs(needle, request)?;
        // Watch before reading: later entries then wake the wait.
        let changes = watch(&logs.container)?;
        while logs.read(&mut each)? {
            changes.wait()?;
        }
        Ok(())
    }

    /// Opens a container's output.
    pub fn open_logs(&self, needle: &str, request: LogRequest) -> Result<Logs> {
        let container = self.containers.find(needle)?;
        if super::start::log(&container.config.host)?.is_none() {
            return Err(Error::invalid(
                "configured logging driver does not support reading",
            ));
        }
        let reader = Reader::open(&container)?;
        Ok(Logs {
            container,
            request,
            reader,
            begun: false,
        })
    }
}

impl Logs {
    /// Whether the container's program has a terminal, so that all output is standard output.
    pub fn has_terminal(&self) -> bool {
        self.container.config.config.tty
    }

    /// Passes entries written since the last call to `each`, oldest first, until `each` returns
    /// false. Returns whether to wait for more.
    pub fn read(&mut self, mut each: impl FnMut(&LogEntry) -> Result<bool>) -> Result<bool> {
        // Checked before reading, so that everything written until the end is read.
        let live = self.container.status()?.is_live();
        let mut last = VecDeque::new();
        let tail = self.request.tail.filter(|_| !self.begun);
        self.begun = true;
        while let Some(entry) = self.reader.next(&self.container)? {
            let (since, until) = (self.request.since, self.request.until);
            if self.request.follow
                && tail.is_none()
                && until.is_some_and(|until| entry.time > until)
            {
                return Ok(false);
            }
            if since.is_some_and(|since| entry.time < since)
                || until.is_some_and(|until| entry.time > until)
            {
                continue;
            }
            match tail {
                None if !each(&entry)? => return Ok(false),
                None | Some(0) => {}
                Some(tail) => {
                    if last.len() == tail {
                        last.pop_front();
                    }
                    last.push_back(entry);
                }
            }
        }
        for entry in &last {
            if !each(entry)? {
                return Ok(false);
            }
        }
        Ok(self.request.follow && live)
    }
}

/// Wakes when a file in a directory changes.
struct Changes(OwnedFd);

fn watch(container: &Container) -> Result<Changes> {
    let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .context(|| "watching the log")?;
    let flags = inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::CREATE
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::DELETE_SELF
        | inotify::WatchFlags::MOVE_SELF;
    let path = format!("/proc/self/fd/{}", container.status_dir().as_raw_fd());
    inotify::add_watch(&events, path, flags).context(|| "watching the log")?;
    Ok(Changes(events))
}

impl Changes {
    fn wait(&self) -> Result<()> {
        rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&self.0, PollFlags::IN)], None))
            .context(|| "waiting for the log")?;
        let mut buffer = [0_u8; 4096];
        loop {
            match rustix::io::read(&self.0, &mut buffer) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(Error::from(errno).context("waiting for the log")),
            }
        }
    }
}

/// Reads the files in order, oldest first.
#[derive(Debug)]
struct Reader {
    /// Files still to read.
    older: Vec<File>,
    current: Option<BufReader<File>>,
    /// A partial line, whose end has not been written yet.
    partial: Vec<u8>,
    /// Whether the current file has been renamed.
    renamed: bool,
}

impl Reader {
    fn open(container: &Container) -> Result<Self> {
        // Newest first, so that a rotation in between shows a file twice rather than never.
        let mut files: Vec<File> = Vec::new();
        for number in 0.. {
            let name = match number {
                0 => LOG.to_owned(),
                number => format!("{LOG}.{number}"),
            };
            match open(container, &name)? {
                Some(file) => {
                    if !is_last(&files, &file)? {
                        files.push(file);
                    }
                }
                None => break,
            }
        }
        let current = files.pop().map(BufReader::new);
        Ok(Self {
            older: files,
            current,
            partial: Vec::new(),
            renamed: false,
        })
    }

    /// The next entry; None at the current end.
    fn next(&mut self, container: &Container) -> Result<Option<LogEntry>> {
        loop {
            let Some(current) = &mut self.current else {
                match open(container, LOG)? {
                    Some(file) => self.current = Some(BufReader::new(file)),
                    None => return Ok(None),
                }
                continue;
            };
            current
                .read_until(b'\n', &mut self.partial)
                .context(|| "reading the log")?;
            if self.partial.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.partial);
                // Skip a line that a full disk has truncated.
                if let Ok(entry) = serde_json::from_slice(&line) {
                    return Ok(Some(entry));
                }
                continue;
            }
            if !self.advance(container)? {
                return Ok(None);
            }
        }
    }

    /// Goes on to the next file, if this one can no longer grow.
    fn advance(&mut self, container: &Container) -> Result<bool> {
        if let Some(next) = self.older.pop() {
            self.partial.clear();
            self.current = Some(BufReader::new(next));
            return Ok(true);
        }
        let Some(newest) = open(container, LOG)? else {
            return Ok(false);
        };
        let same = match &self.current {
            Some(current) => same_file(current.get_ref(), &newest)?,
            None => false,
        };
        if same {
            return Ok(false);
        }
        // It may have been written to between our read and its renaming: read it once more.
        if !std::mem::replace(&mut self.renamed, true) {
            return Ok(true);
        }
        self.renamed = false;
        self.partial.clear();
        self.current = Some(BufReader::new(newest));
        Ok(true)
    }
}

fn open(container: &Container, name: &str) -> Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match openat(container.status_dir(), name, flags, Mode::empty()) {
        Ok(file) => Ok(Some(File::from(file))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(Error::from(errno).context(format!("opening {name}"))),
    }
}

fn is_last(files: &[File], file: &File) -> Result<bool> {
    files.last().map_or(Ok(false), |last| same_file(last, file))
}

fn same_file(a: &impl AsFd, b: &impl AsFd) -> Result<bool> {
    let (a, b) = (rustix::fs::fstat(a)?, rustix::fs::fstat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}
