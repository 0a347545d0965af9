//! Reads the event files in order and waits for more.

use super::{Event, NAME, OLD};
use crate::engine::error::{Context as _, Error, Result};
use crate::engine::files;
use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{self, Mode, OFlags, inotify};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// The files, oldest first; the last one read is kept open, since it may grow.
#[derive(Debug)]
pub(super) struct Reader {
    root: OwnedFd,
    /// The file being read, and its inode number.
    current: Option<(BufReader<File>, u64)>,
    next: VecDeque<(BufReader<File>, u64)>,
    /// A partial line, whose end has not been written yet.
    line: Vec<u8>,
}

impl Reader {
    pub(super) fn open(root: &Path) -> Result<Self> {
        let mut reader = Self {
            root: files::open_dir(root)?,
            current: None,
            next: VecDeque::new(),
            line: Vec::new(),
        };
        reader.find_next()?;
        Ok(reader)
    }

    /// Skips the events that exist.
    pub(super) fn skip(&mut self) -> Result<()> {
        while self.advance() {}
        if let Some((file, _)) = &mut self.current {
            file.seek(SeekFrom::End(0))?;
        }
        Ok(())
    }

    /// The next event, if there is one yet. Lines that are not events are skipped.
    pub(super) fn next(&mut self) -> Result<Option<Event>> {
        loop {
            // Look for newer files first: a renamed file is not written to any more.
            self.find_next()?;
            while let Some((file, _)) = &mut self.current {
                file.read_until(b'\n', &mut self.line)
                    .context(|| "reading the events")?;
                if self.line.last() != Some(&b'\n') {
                    break;
                }
                let event = serde_json::from_slice(&self.line).ok();
                self.line.clear();
                if event.is_some() {
                    return Ok(event);
                }
            }
            if !self.advance() {
                return Ok(None);
            }
        }
    }

    /// Goes on to the next file; false if there is none.
    fn advance(&mut self) -> bool {
        let Some(next) = self.next.pop_front() else {
            return false;
        };
        self.line.clear();
        self.current = Some(next);
        true
    }

    /// Opens the files that are newer than those already open.
    fn find_next(&mut self) -> Result<()> {
        let newest = self.next.back().or(self.current.as_ref());
        let newest = newest.map(|(_, inode)| *inode);
        let Some(file) = self.open_file(NAME)? else {
            return Ok(());
        };
        if newest == Some(file.1) {
            return Ok(());
        }
        // Opened after `events`: if that is renamed in between, both are the same file.
        if let Some(old) = self.open_file(OLD)?
            && Some(old.1) != newest
            && old.1 != file.1
        {
            self.next.push_back(old);
        }
        self.next.push_back(file);
        Ok(())
    }

    fn open_file(&self, name: &str) -> Result<Option<(BufReader<File>, u64)>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match fs::openat(&self.root, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(Error::from(errno).context("opening the events")),
        };
        let inode = fs::fstat(&file)?.st_ino;
        Ok(Some((BufReader::new(file), inode)))
    }
}

/// Watches the files for changes.
pub(super) fn watch(root: &Path) -> Result<OwnedFd> {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let events = inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::CREATE
        | inotify::WatchFlags::MOVED_FROM
        | inotify::WatchFlags::ONLYDIR;
    inotify::init(flags)
        .and_then(|changes| inotify::add_watch(&changes, root, events).map(|_| changes))
        .context(|| "watching the events")
}

/// Waits for a change, or for `until`; false once `stop` is readable.
pub(super) fn wait(
    changes: BorrowedFd<'_>,
    stop: Option<BorrowedFd<'_>>,
    until: Option<Timestamp>,
) -> Result<bool> {
    let left = until.map(|until| until.duration_since(Timestamp::now()));
    // Rounded up, or the last wait would end too early.
    let left = left.map(|left| Duration::try_from(left).unwrap_or_default());
    let limit = left.map(|left| Timespec::try_from(left + Duration::from_millis(1)));
    let limit = limit.transpose().context(|| "the time of the wait")?;
    let mut waiting = vec![PollFd::from_borrowed_fd(changes, PollFlags::IN)];
    waiting.extend(stop.map(|stop| PollFd::from_borrowed_fd(stop, PollFlags::IN)));
    match poll(&mut waiting, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(Error::from(errno).context("waiting for events")),
    }
    if waiting
        .get(1)
        .is_some_and(|stop| !stop.revents().is_empty())
    {
        return Ok(false);
    }
    let mut buffer = [0; 4096];
    match rustix::io::read(changes, &mut buffer) {
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(true),
        Err(errno) => Err(Error::from(errno).context("watching the events")),
    }
}
