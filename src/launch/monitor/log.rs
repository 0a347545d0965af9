//! A container's log, in the format of Docker's json-file driver (moby, `daemon/logger`).
//!
//! One JSON object a line: `{"log":"text\n","stream":"stdout","time":"..."}`. A line that is longer
//! than 16 KiB comes in pieces without the newline; the pieces have the time of the first. When the
//! file `log` has reached its size, it is renamed to `log.1`, and that to `log.2`. An error drops
//! what could not be written: a full disk must not stop the container.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::message::LogOptions;
use crate::status::Moment;

/// Longest piece of a line.
const PIECE: usize = 16 << 10;
/// Name of the newest file.
pub(super) const LOG: &str = "log";

/// A stream of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The beginning of a line, until its end comes.
#[derive(Debug, Default)]
pub(super) struct Line {
    bytes: Vec<u8>,
    /// Of the first piece of a long line.
    begun: Option<Moment>,
}

/// The log of one container.
#[derive(Debug)]
pub(super) struct Log {
    directory: OwnedFd,
    options: LogOptions,
    file: Option<File>,
    size: u64,
    /// The first error.
    error: Option<std::io::Error>,
}

impl Log {
    /// Appends to what an earlier run has left.
    pub(super) fn open(directory: OwnedFd, options: LogOptions) -> Self {
        let mut log = Self {
            directory,
            options,
            file: None,
            size: 0,
            error: None,
        };
        let opened = log.reopen(OFlags::empty());
        log.keep_error(opened);
        log
    }

    /// Why lines are missing, if some are.
    pub(super) fn take_error(&mut self) -> Option<std::io::Error> {
        self.error.take()
    }

    /// Adds what a stream has sent, and keeps the beginning of its last line.
    pub(super) fn add(&mut self, stream: Stream, line: &mut Line, mut bytes: &[u8]) {
        let mut batch = Vec::new();
        while !bytes.is_empty() {
            let room = PIECE - line.bytes.len();
            let end = bytes.iter().take(room).position(|byte| *byte == b'\n');
            let length = end.map_or(bytes.len().min(room), |end| end + 1);
            let (taken, rest) = bytes.split_at(length);
            line.bytes.extend_from_slice(taken);
            bytes = rest;
            if end.is_some() || line.bytes.len() == PIECE {
                self.push(stream, line, end.is_some(), &mut batch);
            }
        }
        self.write(&mut batch);
    }

    /// Adds the rest of a stream that has ended.
    pub(super) fn finish(&mut self, stream: Stream, line: &mut Line) {
        if !line.bytes.is_empty() {
            let mut batch = Vec::new();
            self.push(stream, line, true, &mut batch);
            self.write(&mut batch);
        }
    }

    /// Moves a piece into the batch, and writes that before the file would be too large.
    fn push(&mut self, stream: Stream, line: &mut Line, last: bool, batch: &mut Vec<u8>) {
        let waiting = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        if self.options.max_size > 0 && self.size.saturating_add(waiting) >= self.options.max_size {
            self.write(batch);
            let rotated = self.rotate();
            self.keep_error(rotated);
        }
        let time = line.begun.unwrap_or_else(Moment::now);
        encode(stream, &line.bytes, time, batch);
        line.bytes.clear();
        line.begun = (!last).then_some(time);
    }

    fn write(&mut self, batch: &mut Vec<u8>) {
        if let Some(file) = &mut self.file {
            let written = file.write_all(batch);
            if written.is_ok() {
                self.size += u64::try_from(batch.len()).unwrap_or(0);
            }
            self.keep_error(written);
        }
        batch.clear();
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        if self.size == 0 {
            return Ok(());
        }
        let name = |number: u32| match number {
            0 => LOG.to_owned(),
            number => format!("{LOG}.{number}"),
        };
        for number in (1..self.options.max_file).rev() {
            let renamed = renameat(
                &self.directory,
                name(number - 1),
                &self.directory,
                name(number),
            );
            match renamed {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if self.options.max_file <= 1 {
            // A reader that follows sees that its file is gone, as with a rename.
            match unlinkat(&self.directory, LOG, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.reopen(OFlags::EXCL)
    }

    fn reopen(&mut self, flags: OFlags) -> std::io::Result<()> {
        let flags = flags
            | OFlags::WRONLY
            | OFlags::CREATE
            | OFlags::APPEND
            | OFlags::CLOEXEC
            | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o640);
        let file = File::from(openat(self.directory.as_fd(), LOG, flags, mode)?);
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn keep_error(&mut self, outcome: std::io::Result<()>) {
        if let Err(error) = outcome {
            self.error.get_or_insert(error);
        }
    }
}

/// Appends one line of the log. Text is escaped as by moby's `jsonlog`, invalid UTF-8 replaced.
fn encode(stream: Stream, text: &[u8], time: Moment, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"log\":\"");
    for character in String::from_utf8_lossy(text).chars() {
        match character {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\u{0}'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(character)).as_bytes());
            }
            other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.extend_from_slice(b"\",\"stream\":\"");
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(b"\",\"time\":\"");
    out.extend_from_slice(time.to_string().as_bytes());
    out.extend_from_slice(b"\"}\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(directory: &tempfile::TempDir, max_size: u64, max_file: u32) -> Log {
        let options = LogOptions { max_size, max_file };
        Log::open(File::open(directory.path()).unwrap().into(), options)
    }

    /// The texts of a file's lines, without their times.
    fn texts(directory: &tempfile::TempDir, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(directory.path().join(name)).unwrap();
        let before = |line: &str| line.split(",\"time\":\"").next().unwrap().to_owned();
        text.lines().map(before).collect()
    }

    #[test]
    fn add_writes_dockers_lines() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(&directory, 0, 1);
        let (mut out, mut err) = (Line::default(), Line::default());
        log.add(Stream::Stdout, &mut out, b"one\ntw");
        log.add(
            Stream::Stderr,
            &mut err,
            b"<&> \"\\\" \t\r \xff \xe2\x80\xa8\n\n",
        );
        log.add(Stream::Stdout, &mut out, b"o\nthree");
        log.finish(Stream::Stdout, &mut out);
        log.finish(Stream::Stderr, &mut err);
        assert_eq!(
            texts(&directory, LOG),
            [
                r#"{"log":"one\n","stream":"stdout""#,
                r#"{"log":"\u003c\u0026\u003e \"\\\" \u0009\r � \u2028\n","stream":"stderr""#,
                r#"{"log":"\n","stream":"stderr""#,
                r#"{"log":"two\n","stream":"stdout""#,
                r#"{"log":"three","stream":"stdout""#,
            ]
        );
        assert!(log.take_error().is_none());
    }

    #[test]
    fn a_long_line_comes_in_pieces_of_one_time() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(&directory, 0, 1);
        let mut line = Line::default();
        let long = vec![b'x'; 2 * PIECE + 5];
        log.add(Stream::Stdout, &mut line, &long[..7]);
        log.add(Stream::Stdout, &mut line, &long[7..]);
        log.add(Stream::Stdout, &mut line, b"\nlast\n");
        let text = std::fs::read_to_string(directory.path().join(LOG)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let lengths: Vec<usize> = lines.iter().map(|line| line.matches('x').count()).collect();
        assert_eq!(lengths, [PIECE, PIECE, 5, 0]);
        let time = |line: &str| line.split("\"time\":").nth(1).unwrap().to_owned();
        assert_eq!(time(lines[0]), time(lines[1]));
        assert_eq!(time(lines[1]), time(lines[2]));
        assert!(!lines[1].contains("\\n") && lines[2].contains("\\n"));
    }

    #[test]
    fn files_are_rotated_at_their_size() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(&directory, 100, 3);
        let mut line = Line::default();
        // Each is longer than half of the size: two in a file.
        let feed: Vec<u8> = (b'1'..=b'7')
            .flat_map(|digit| [b"line ".as_slice(), &[digit, b'\n']].concat())
            .collect();
        log.add(Stream::Stdout, &mut line, &feed);
        let numbers = |name| -> Vec<String> {
            let digit = |line: &String| line.chars().find(char::is_ascii_digit).unwrap();
            texts(&directory, name)
                .iter()
                .map(digit)
                .map(String::from)
                .collect()
        };
        assert_eq!(numbers("log"), ["7"]);
        assert_eq!(numbers("log.1"), ["5", "6"]);
        assert_eq!(numbers("log.2"), ["3", "4"]);
        assert!(!directory.path().join("log.3").exists());
        drop(log);
        // A restart goes on where the last run has ended.
        let mut log = self::log(&directory, 100, 1);
        log.add(Stream::Stdout, &mut line, b"8\n9\n");
        assert_eq!(numbers("log"), ["9"]);
    }

    #[test]
    fn an_error_drops_lines_and_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(LOG)).unwrap();
        let mut log = log(&directory, 0, 1);
        log.add(Stream::Stdout, &mut Line::default(), b"lost\n");
        assert!(log.take_error().is_some());
    }
}
