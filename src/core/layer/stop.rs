//! Ends the read of a pipe or socket that nobody wants the bytes of any more.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{Errno, retry_on_intr};

/// Ends all reads of [`Stop::reader`]s, also those that wait for input.
#[derive(Debug)]
pub struct Stop(OwnedFd);

impl Stop {
    /// A stop that was not signalled yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC)?))
    }

    /// Reads the file until [`Stop`] ends it. A wait happens only here, never in read(2), unless
    /// another process reads from the same pipe.
    pub fn reader<'s>(&'s self, file: &'s File) -> StoppableReader<'s> {
        StoppableReader { file, stop: self }
    }

    /// Ends the reads when the guard is dropped.
    pub(super) fn on_drop(&self) -> StopOnDrop<'_> {
        StopOnDrop(self)
    }
}

pub(super) struct StopOnDrop<'s>(&'s Stop);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        // Fails only where the counter is full, and then it is readable already.
        let _readable = rustix::io::write(&self.0.0, &1_u64.to_ne_bytes());
    }
}

/// A reader that [`Stop`] ends.
#[derive(Debug)]
pub struct StoppableReader<'s> {
    file: &'s File,
    stop: &'s Stop,
}

impl Read for StoppableReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut events = [
            PollFd::new(&self.stop.0, PollFlags::IN),
            PollFd::new(self.file, PollFlags::IN),
        ];
        retry_on_intr(|| poll(&mut events, None))?;
        let [stop, _] = events;
        if stop.revents().is_empty() {
            self.file.read(out)
        } else {
            Err(Errno::CANCELED.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn stop_ends_a_read_that_waits() {
        let (reader, mut writer) = io::pipe().unwrap();
        let reader = File::from(OwnedFd::from(reader));
        let stop = Stop::new().unwrap();
        std::thread::scope(|scope| {
            let read = scope.spawn(|| {
                let mut out = Vec::new();
                let error = stop.reader(&reader).read_to_end(&mut out).unwrap_err();
                (out, error.raw_os_error())
            });
            writer.write_all(b"first").unwrap();
            drop(stop.on_drop());
            let (out, error) = read.join().unwrap();
            assert!(out.is_empty() || out == b"first");
            assert_eq!(error, Some(Errno::CANCELED.raw_os_error()));
        });
        drop(writer);
    }

    #[test]
    fn reader_gives_a_regular_file_to_its_end() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let (stop, mut out) = (Stop::new().unwrap(), Vec::new());
        stop.reader(&file).read_to_end(&mut out).unwrap();
        assert_eq!(out, b"content");
    }
}
